"""X3D and SlowOnly: the papers' networks, whatever layout their weights come in."""

from __future__ import annotations

import pytest
import torch

from tests.reference import video as reference
from tokensieve.data.inputs import InputSpec
from tokensieve.errors import InputError, RecipeError
from tokensieve.measure import macs
from tokensieve.zoo import VIDEO_PROPOSALS, video_classifier, video_proposal

LAYOUTS = ["PyTorchVideo", "mmaction2"]
X3D_S, R50 = (3, 5, 11, 7), (3, 4, 6, 3)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def close(ours, expected):
    return (ours.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture
def clips():
    return torch.randn(2, 3, 3, 33, 40)


@pytest.mark.versions
class TestAgainstTheReference:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_x3d(self, layout, clips):
        state = reference.x3d_state(layout)
        expected = reference.x3d(state, clips, X3D_S, layout)
        with torch.no_grad():
            ours = video_proposal("x3d_s", state)(clips)
        assert ours.shape == (2, 432, 3, 2, 2)
        assert expected.std() > 0.1
        assert close(ours, expected)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_slowonly(self, layout, clips):
        state = reference.slowonly_state(layout)
        expected = reference.slowonly(state, clips, R50, layout)
        with torch.no_grad():
            ours = video_proposal("slowonly_r50", state)(clips)
        assert ours.shape == (2, 2048, 3, 2, 2)
        assert expected.std() > 0.1
        assert close(ours, expected)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_the_head_of_x3d_is_a_mean_and_two_layers(self, layout, clips):
        state = reference.x3d_state(layout, classes=7)
        mean = reference.x3d(state, clips, X3D_S, layout).mean((2, 3, 4))
        fc1, fc2 = ("blocks.5.pool.post_conv", "blocks.5.proj") if "blocks.5.proj.bias" in state else (
            "cls_head.fc1", "cls_head.fc2")  # fmt: skip
        hidden = reference.relu(mean @ state[f"{fc1}.weight"].reshape(2048, 432).double().T)
        expected = hidden @ state[f"{fc2}.weight"].double().T + state[f"{fc2}.bias"].double()
        with torch.no_grad():
            assert close(video_classifier("x3d_m", state)(clips), expected)


@pytest.mark.versions
class TestDeeperOnes:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_their_weights_are_those_of_more_blocks(self, layout):
        clips = torch.randn(1, 3, 1, 32, 32)
        deep, deeper = (5, 10, 25, 15), (3, 4, 23, 3)
        for name, make, run, depths in (
            ("x3d_l", reference.x3d_state, reference.x3d, deep),
            ("slowonly_r101", reference.slowonly_state, reference.slowonly, deeper),
        ):
            state = make(layout, depths)
            with torch.no_grad():
                assert close(video_proposal(name, state)(clips), run(state, clips, depths, layout))


@pytest.mark.versions
class TestPublishedFigures:
    @pytest.mark.parametrize(
        ("name", "size", "digits", "expected"),
        [
            ("x3d_s", (3, 8, 160, 160), 3, 1.249),
            ("x3d_m", (3, 8, 224, 224), 3, 2.449),
            ("x3d_m", (3, 16, 224, 224), 3, 4.897),
            ("slowonly_r50", (3, 8, 224, 224), 1, 41.9),
            ("slowonly_r101", (3, 8, 224, 224), 2, 85.67),
        ],
    )
    def test_macs(self, name, size, digits, expected):
        found = macs(video_proposal(name), InputSpec(size, "CTHW"), fvcore_compat=True) / 1e9
        assert round(found, digits) == expected

    @pytest.mark.parametrize(
        ("name", "size", "expected"),
        [
            ("x3d_s", (3, 13, 160, 160), 1.96),
            ("x3d_m", (3, 16, 224, 224), 4.73),
            ("x3d_l", (3, 16, 312, 312), 18.37),
            ("slowonly_r50", (3, 8, 256, 256), 54.52),
        ],
    )
    @pytest.mark.slow
    def test_macs_of_whole_networks_in_model_zoos(self, name, size, expected):
        assert round(macs(video_classifier(name), InputSpec(size, "CTHW")) / 1e9, 2) == expected

    def test_parameters(self):
        assert parameters(video_classifier("x3d_s")) == parameters(video_classifier("x3d_m")) == 3_794_274
        assert parameters(video_proposal("x3d_s")) == 2_089_986
        assert round(parameters(video_classifier("x3d_l")) / 1e6, 2) == 6.15
        assert round(parameters(video_classifier("slowonly_r50")) / 1e6, 2) == 32.45

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_checkpoints_have_as_many(self, layout):
        learned = {
            k: v for k, v in reference.x3d_state(layout).items() if "running" not in k and "num_batches" not in k
        }
        assert sum(v.numel() for v in learned.values()) == 3_794_274 + 48 * (layout == "mmaction2")
        assert parameters(video_classifier("x3d_s", reference.x3d_state(layout))) == sum(
            v.numel() for v in learned.values()
        )


class TestWeights:
    @pytest.fixture(scope="class")
    def state(self):
        return reference.x3d_state("mmaction2")

    def test_a_backbone_alone_is_enough(self, state, clips):
        bare = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
        with torch.no_grad():
            assert torch.equal(video_proposal("x3d_s", bare)(clips), video_proposal("x3d_s", state)(clips))
        with pytest.raises(InputError, match=r"has no 'cls_head\.fc1\.weight'"):
            video_classifier("x3d_s", bare)

    @pytest.mark.parametrize("wrapper", ["module.", "model.", "module.model."])
    def test_wrappers_are_passed_over(self, wrapper, state, clips):
        wrapped = {f"{wrapper}{key}": value for key, value in state.items()}
        with torch.no_grad():
            assert torch.equal(video_proposal("x3d_s", wrapped)(clips), video_proposal("x3d_s", state)(clips))

    @pytest.mark.parametrize("key", ["state_dict", "model_state"])
    def test_a_file_of_them(self, key, state, clips, tmp_path):
        torch.save({"meta": {"epoch": 3}, key: state}, tmp_path / "x3d.pth")
        with torch.no_grad():
            ours = video_proposal("x3d_s", tmp_path / "x3d.pth")(clips)
            assert torch.equal(ours, video_proposal("x3d_s", state)(clips))

    @pytest.mark.parametrize("name", ["x3d_s", "slowonly_r50"])
    def test_our_own_come_back(self, name, clips):
        whole = video_classifier(name)
        with torch.no_grad():
            expected = whole.features(clips)
            assert torch.equal(video_proposal(name, whole.state_dict())(clips), expected)
            assert torch.equal(video_proposal(name, whole.features.state_dict())(clips), expected)
            assert torch.equal(video_classifier(name, whole.state_dict())(clips), whole(clips))

    def test_old_checkpoints_have_no_step_counters(self, state, clips):
        old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        with torch.no_grad():
            assert torch.equal(video_proposal("x3d_s", old)(clips), video_proposal("x3d_s", state)(clips))

    def test_what_is_missing_is_named_as_in_the_file(self):
        state = reference.x3d_state("PyTorchVideo")
        del state["blocks.2.res_blocks.2.branch2.norm_b.1.block.2.bias"]
        with pytest.raises(
            InputError, match=r"has no 'blocks\.2\.res_blocks\.2\.branch2\.norm_b\.1\.block\.2\.bias' \(1 such"
        ):
            video_proposal("x3d_s", state)

    def test_what_is_superfluous_is_named(self, state):
        with pytest.raises(InputError, match=r"the model has no 'layer5\.0\.conv1\.conv\.weight' \(1 such"):
            video_proposal("x3d_s", {**state, "backbone.layer5.0.conv1.conv.weight": torch.zeros(1)})

    def test_what_has_another_shape_is_named_as_in_the_file(self, state):
        wrong = {**state, "backbone.conv5.conv.weight": torch.zeros(430, 192, 1, 1, 1)}
        with pytest.raises(InputError, match=r"'conv5\.conv\.weight' has shape \(430, 192, 1, 1, 1\) in the file"):
            video_proposal("x3d_s", wrong)

    def test_weights_of_another_network_are_refused(self, state):
        with pytest.raises(InputError, match="has no 'layer1"):
            video_proposal("x3d_l", state)
        with pytest.raises(InputError, match=r"has no 'layer3\.6\.conv1"):
            video_proposal("slowonly_r101", reference.slowonly_state("mmaction2"))
        with pytest.raises(InputError, match=r"has no 'conv1\.conv\.weight'"):
            video_proposal("slowonly_r50", state)

    def test_names_of_neither_layout_are_refused(self):
        with pytest.raises(InputError, match=r"names are neither PyTorchVideo's .* but s1\.conv"):
            video_proposal("x3d_s", {"s1.conv": torch.zeros(1)})

    def test_an_unknown_name(self):
        with pytest.raises(RecipeError, match="the nearest"):
            video_proposal("x3d_xs")

    def test_classes_are_those_of_the_weights(self, state):
        assert video_classifier("x3d_s", reference.x3d_state("mmaction2", classes=5)).head.fc2.out_features == 5
        assert video_classifier("x3d_s", num_classes=9).head.fc2.out_features == 9
        with pytest.raises(InputError, match="are for 400 classes, not 5"):
            video_classifier("x3d_s", state, num_classes=5)


class TestWhatItSays:
    def test_of_its_clips(self):
        assert {name: video_proposal(name).clip_size for name in VIDEO_PROPOSALS} == {
            "x3d_s": (8, 160, 160),
            "x3d_m": (8, 224, 224),
            "x3d_l": (16, 312, 312),
            "slowonly_r50": (8, 224, 224),
            "slowonly_r101": (8, 224, 224),
            "nano_video_proposal": (8, 64, 64),
        }

    def test_of_its_normalisation(self):
        assert video_proposal("x3d_s", reference.x3d_state("mmaction2")).mean == (0.45, 0.45, 0.45)
        assert video_proposal("slowonly_r50", reference.slowonly_state("PyTorchVideo")).std == (0.225, 0.225, 0.225)
        assert video_proposal("slowonly_r50", reference.slowonly_state("mmaction2")).mean == (0.485, 0.456, 0.406)

    def test_it_is_ready(self):
        assert not video_proposal("x3d_s").training


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x3d_s", "slowonly_r50"])
def test_it_becomes_a_graph(name, clips):
    network = video_proposal(name)
    graph = torch.export.export(network, (clips,)).module()
    with torch.no_grad():
        expected = network(clips)
        assert (graph(clips) - expected).abs().max() <= 1e-4 * expected.abs().max()
