"""transformers' hosts of video: opened at the right seams, pooled right after merging, called as they are there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.reference.hf_hosts import assert_asking_agrees, assert_verbs_compose
from tests.reference.video_hosts import still, still_clips, video_as_timm, video_clips, video_forms
from tests.reference.vit import reference_forward
from tokensieve import InputError, InputSpec, RecipeError, UnsupportedHost, sieve
from tokensieve.export import export_onnx
from tokensieve.hosts import open_host
from tokensieve.measure import macs

pytest.importorskip("transformers")

FORMS = video_forms()
each = pytest.mark.parametrize("name", FORMS)
CLASSIFIERS = ("videomae", "vivit", "vjepa2")


def close(name: str) -> dict[str, float]:
    """How close two ways come in float64."""
    return {"atol": 1e-10, "rtol": 1e-10}


def flat(output: Any) -> dict[str, Tensor]:
    """Every tensor in what a model returns, by name."""
    found = {}
    for key, value in output.items():
        parts = flat(value) if hasattr(value, "items") else {"": value}
        found |= {f"{key}.{inner}" if inner else key: part for inner, part in parts.items()}
    return found


def assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    a, b = flat(a), flat(b)
    assert list(a) == list(b)
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


@each
def test_identity_settings_are_the_host_bit_for_bit_and_change_nothing(name: str) -> None:
    model = FORMS[name]()
    clips, state, own = video_clips(model), {k: v.clone() for k, v in model.state_dict().items()}, set(model.__dict__)
    with torch.no_grad():
        whole = model(clips)
        for recipe in ("", "papr(keep=1)", "tome(r=0)", "rlt(threshold=0)"):
            assert_equal(sieve(model, recipe)(clips), whole)
        sieve(model, "random(keep=0.5) + tome(r=3)")(clips)
        assert_equal(model(clips), whole)
    assert set(model.__dict__) == own
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert list(sieve(model).state_dict()) == list(state)


@each
def test_the_verbs_compose_to_the_block(name: str) -> None:
    model = FORMS[name]().double()
    host = open_host(model)
    with torch.no_grad():
        tokens = host.embed(video_clips(model).double())
        few = tokens.select(torch.tensor([[0, 3, 4, 9, 20], [1, 2, 5, 12, 23]]))
        for block in host.blocks:
            assert block.closed is None
            for some in (tokens, few):
                assert_verbs_compose(block, some, **close(name))


@each
def test_only_some_may_ask(name: str) -> None:
    model = FORMS[name]().double()
    host = open_host(model)
    with torch.no_grad():
        tokens = host.embed(video_clips(model).double())
        for some in (tokens, tokens.select(torch.tensor([[0, 3, 4, 9, 20], [1, 2, 5, 12, 23]]))):
            assert_asking_agrees(host.blocks[1], some)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_kept_patch_is_read_as_the_host_reads_it_at_its_place(name: str) -> None:
    model = FORMS[name]().double()
    clips = video_clips(model, 3).double()
    trace = sieve(model, "random(keep=0.5)").trace(clips)
    known = video_as_timm(model)
    expected = reference_forward(known, clips, keep=0.5, significance=trace.significance.flatten(1))
    assert torch.equal(trace.kept, expected.kept)
    torch.testing.assert_close(trace.output.logits, expected.output, atol=1e-9, rtol=1e-9)


def test_rotary_rows_of_a_size_that_the_model_was_not_built_for_are_the_hosts() -> None:
    model = FORMS["vjepa2"]().double()
    host = open_host(model)
    for shape in ((4, 3, 32, 40), (1, 3, 24, 24)):
        clips = torch.randn(2, *shape, dtype=torch.float64)
        with torch.no_grad():
            assert torch.equal(sieve(model)(clips).logits, model(clips).logits)
            tokens = host.embed(clips)
            heads = host.blocks[0].qkv(tokens)
            out = host.blocks[0].rest(heads.attend(), heads, tokens.x)
            torch.testing.assert_close(out, host.blocks[0](tokens), atol=1e-10, rtol=1e-10)
        assert sieve(model, "papr(keep=0.5, significance=centre)").trace(clips).kept.shape[1] > 0


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("threshold", [0.05, 1.1])
def test_rlt_reads_what_changes_and_each_clip_by_itself(name: str, threshold: float) -> None:
    model = FORMS[name]().double()
    clips = still_clips(model, 3).double()
    fast = sieve(model, f"rlt(threshold={threshold})")
    trace, known = fast.trace(clips), video_as_timm(model)
    kept = [still(clip, (2, 8, 8), threshold) for clip in clips]
    assert len({len(each) for each in kept}) > 1
    prefix = fast.host.prefix
    assert trace.lengths[0].tolist() == [len(each) + prefix for each in kept]
    for index, each in enumerate(kept):
        assert trace.kept[index, : len(each)].tolist() == each
        assert (trace.kept[index, len(each) :] == -1).all()
        patches = trace.source.shape[1]
        score = torch.zeros(1, patches, dtype=torch.float64)
        score[0, each] = 1
        share = (len(each) + 0.5) / (patches + prefix)
        expected = reference_forward(known, clips[index : index + 1], keep=share, significance=score)
        torch.testing.assert_close(trace.output.logits[index], expected.output[0], atol=1e-9, rtol=1e-9)
        assert torch.equal(trace.source[index], expected.source[0])
    torch.testing.assert_close(fast(clips).logits, trace.output.logits, atol=1e-12, rtol=1e-12)
    alone = torch.cat([fast(clip[None]).logits for clip in clips])
    torch.testing.assert_close(alone, trace.output.logits, atol=1e-9, rtol=1e-9)
    counted = macs(fast, images=clips)
    assert counted == pytest.approx(sum(macs(fast, images=clip[None]) for clip in clips) / 3)
    assert counted < macs(model, images=clips)


@pytest.mark.parametrize("recipe", ["rlt() + tome(r=2)", "rlt() + mctf(r=2, layers=1:)"])
def test_methods_behind_rlt_see_no_padding(recipe: str) -> None:
    model = FORMS["videomae"]().double()
    clips = still_clips(model, 3).double()
    fast = sieve(model, recipe)
    together, alone = fast(clips).logits, torch.cat([fast(clip[None]).logits for clip in clips])
    torch.testing.assert_close(together, alone, atol=1e-9, rtol=1e-9)


@each
def test_equal_patches_merge_without_a_trace(name: str) -> None:
    """Without positions, merged copies change nothing: attention counts them, and so does every pooling."""
    model = FORMS[name]().double()
    clips = video_clips(model, 3).double()
    clips[:, :, :, :, 8:16] = clips[:, :, :, :, :8]
    with torch.no_grad():
        for part, value in model.named_parameters():
            if "position" in part:
                value.zero_()
        for part in model.modules():
            if "position_embeddings" in vars(part):  # VideoMAE's, neither parameter nor buffer
                part.position_embeddings = torch.zeros_like(part.position_embeddings)
            if hasattr(part, "d_dim"):
                part.d_dim = part.h_dim = part.w_dim = 0
        trace, whole = sieve(model, "tome(r=[5, 0, 0])").trace(clips), model(clips)
    start = trace.tokens.source.shape[1] + trace.tokens.prefix
    assert trace.tokens_per_block == [start - 5] * 3
    pooled = set(whole) - {"last_hidden_state", "masked_hidden_state", "predictor_output"}
    for field in pooled:
        torch.testing.assert_close(trace.output[field], whole[field], **close(name))
    grid = trace.restore().flatten(2).transpose(1, 2)
    if "last_hidden_state" in whole:
        torch.testing.assert_close(grid, whole.last_hidden_state[:, trace.tokens.prefix :], **close(name))


def test_what_is_known_of_a_host() -> None:
    hosts = {name: open_host(form()) for name, form in FORMS.items()}
    facts = {name: (host.prefix, host.class_token, host.reads_prefix, host.patch) for name, host in hosts.items()}
    assert facts["videomae"] == (0, False, False, (2, 8, 8))
    assert facts["vivit"] == (1, True, True, (2, 8, 8))
    assert facts["vivit-model"] == (1, True, False, (2, 8, 8))
    assert facts["vjepa2"] == (0, False, False, (2, 8, 8))
    assert InputSpec.of(FORMS["videomae"]()) == InputSpec((4, 3, 24, 32), "TCHW")
    assert InputSpec.of(FORMS["vjepa2"]()) == InputSpec((6, 3, 24, 24), "TCHW")


def test_a_head_of_the_class_token_alone_can_be_read_out() -> None:
    model = FORMS["vivit"]().double()
    clips = video_clips(model).double()
    with torch.no_grad():
        torch.testing.assert_close(sieve(model, "readout()")(clips).logits, model(clips).logits)
    with pytest.raises(UnsupportedHost, match="cannot take readout"):
        sieve(FORMS["videomae"](), "readout()")


def test_it_is_called_as_the_host_is() -> None:
    model = FORMS["videomae"]()
    clips, labels = video_clips(model), torch.tensor([1, 5])
    fast = sieve(model, "tome(r=3)")
    with torch.no_grad():
        whole = fast(clips)
        assert torch.equal(fast(pixel_values=clips).logits, whole.logits)
        assert torch.equal(fast(clips, return_dict=False)[0], whole.logits)
        loss = fast(pixel_values=clips, labels=labels).loss
        torch.testing.assert_close(loss, nn.functional.cross_entropy(whole.logits, labels))
        assert fast(clips[:0]).logits.shape == (0, 7)
        jepa = FORMS["vjepa2"]()
        clips = video_clips(jepa)
        fast = sieve(jepa, "tome(r=3)")
        assert torch.equal(fast(pixel_values_videos=clips).logits, fast(clips).logits)
    with pytest.raises(InputError, match="pixel_values_videos="):
        fast()


def test_hidden_states_lie_on_the_whole_grid() -> None:
    model = FORMS["videomae"]()
    clips = video_clips(model)
    with torch.no_grad():
        dense = model(clips, output_hidden_states=True)
        same = sieve(model)(clips, output_hidden_states=True)
        few = sieve(model, "random(keep=0.5)")(clips, output_hidden_states=True)
    assert len(same.hidden_states) == len(dense.hidden_states)
    assert all(torch.equal(a, b) for a, b in zip(same.hidden_states, dense.hidden_states, strict=True))
    assert [x.shape for x in few.hidden_states] == [x.shape for x in dense.hidden_states]


def test_vjepa2_predicts_only_from_everything() -> None:
    model = FORMS["vjepa2-model"]()
    clips = video_clips(model)
    with torch.no_grad():
        assert sieve(model)(clips).predictor_output is not None
        assert sieve(model)(clips, skip_predictor=True).predictor_output is None
        fast = sieve(model, "random(keep=0.5)")
        output = fast(clips)
        assert output.predictor_output is None
        assert output.last_hidden_state.shape == (2, 13, 40)
        assert torch.equal(fast(clips, skip_predictor=True).last_hidden_state, output.last_hidden_state)
        assert isinstance(fast(clips, return_dict=False), tuple)
        with pytest.raises(InputError, match="skip_predictor=False is not possible"):
            fast(clips, skip_predictor=False)


def test_what_is_refused_says_what_would_work() -> None:
    import transformers as hf

    for model, reason in (
        (hf.TimesformerModel, "divided attention"),
        (hf.TimesformerForVideoClassification, "divided attention"),
        (hf.VideoMAEForPreTraining, r"sieve model\.videomae"),
    ):
        refused = pytest.raises(UnsupportedHost, match=f"{model.__name__} cannot be sieved.*{reason}")
        small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        with refused:
            open_host(model(model.config_class(**small, image_size=32)))
    settings = FORMS["videomae"]().config
    settings.use_mean_pooling = False
    with pytest.raises(UnsupportedHost, match=r"first patch alone.*sieve model\.videomae"):
        open_host(hf.VideoMAEForVideoClassification(settings))
    model = FORMS["vjepa2"]()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedHost, match="cannot weigh merged tokens"):
        sieve(model, "tome(r=3)")
    sieve(model, "random(keep=0.5)")


def test_clips_of_another_shape_are_refused_in_a_sentence() -> None:
    fast = sieve(FORMS["videomae"](), "random(keep=0.5)")
    for shape, reason in (
        ((2, 3, 24, 32), r"Clips have shape \(2, 3, 24, 32\); .* reads \(batch, frames, channels, height, width\)"),
        ((2, 3, 4, 24, 32), r"reads \(batch, 4, 3, 24, 32\)"),
        ((2, 4, 3, 32, 32), r"reads \(batch, 4, 3, 24, 32\)"),
    ):
        with pytest.raises(InputError, match=reason):
            fast(torch.zeros(shape))
    with pytest.raises(InputError, match="cannot interpolate"):
        fast(torch.zeros(2, 4, 3, 24, 32), interpolate_pos_encoding=True)
    with pytest.raises(InputError, match="at least one patch"):
        sieve(FORMS["vjepa2"]())(torch.zeros(1, 4, 3, 4, 4))


def test_a_recipe_that_does_not_read_video_is_refused() -> None:
    model = FORMS["videomae"]()
    with pytest.raises(RecipeError, match=r"mobileone_s0 reads images.*x3d_s.*significance=motion"):
        sieve(model, "papr(keep=0.5)", pretrained=False)
    with pytest.raises(InputError, match=r"x3d_s has no weights.*proposal_weights=FILE.*pretrained=False"):
        sieve(model, "papr(keep=0.5, proposal=x3d_s, proposal_norm=shared)")
    with pytest.raises(RecipeError, match=r"pass mean= and std="):
        sieve(model, "papr(keep=0.5, proposal=x3d_s)", pretrained=False)
    with pytest.raises(RecipeError, match="threshold must be a number"):
        sieve(model, "rlt(threshold=-1)")


def test_gradients_reach_the_first_layer() -> None:
    model = FORMS["videomae"]()
    fast = sieve(model, "random(keep=0.5) + tome(r=3)").train()
    fast(video_clips(model), labels=torch.tensor([0, 1])).loss.backward()
    assert model.videomae.embeddings.patch_embeddings.projection.weight.grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["papr(keep=0.5, significance=motion) + tome(r=3)", "rlt(threshold=0.1)"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_it_compiles_in_one_graph(name: str, recipe: str) -> None:
    model = FORMS[name]()
    clips = still_clips(model)
    fast = sieve(model, recipe)
    with torch.no_grad():
        whole, compiled = fast(clips), torch.compile(fast, fullgraph=True, backend="eager")(clips)
    torch.testing.assert_close(compiled.logits, whole.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), [("videomae", "inductor"), ("vjepa2", "aot_eager_decomp_partition")])
def test_it_compiles_by_inductor(name: str, backend: str) -> None:
    """And another host down to the operators that inductor is given."""
    model = FORMS[name]()
    clips = still_clips(model)
    fast = sieve(model, "papr(keep=0.5, significance=motion) + tome(r=3)")
    with torch.no_grad():
        compiled = torch.compile(fast, fullgraph=True, backend=backend)(clips)
        torch.testing.assert_close(compiled.logits, fast(clips).logits, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        *((name, "papr(keep=0.5, significance=motion) + tome(r=3)") for name in CLASSIFIERS),
        ("vivit", "rlt(threshold=0.1)"),
    ],
)
def test_it_is_exported_to_onnx(name: str, recipe: str, tmp_path: Any) -> None:
    pytest.importorskip("onnxruntime")
    model = FORMS[name]()
    report = export_onnx(
        sieve(model, recipe), tmp_path / "model.onnx", InputSpec.of(model), mean=(0.5,) * 3, std=(0.5,) * 3
    )
    assert (tmp_path / "model.onnx").stat().st_size > 0
    assert report is not None


@pytest.mark.slow
def test_a_network_that_ranks_is_part_of_the_graph(tmp_path: Any) -> None:
    """X3D, whose folded form runs otherwise outside of graphs."""
    pytest.importorskip("onnxruntime")
    model = FORMS["videomae"]()
    recipe = "papr(keep=0.5, proposal=x3d_s, proposal_norm=shared, proposal_size=(4, 32, 32))"
    fast, clips = sieve(model, recipe, pretrained=False), still_clips(model)
    with torch.no_grad():
        compiled = torch.compile(fast, fullgraph=True, backend="eager")(clips)
    torch.testing.assert_close(compiled.logits, fast(clips).logits, atol=1e-5, rtol=1e-5)
    report = export_onnx(fast, tmp_path / "model.onnx", InputSpec.of(model), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert max(report.differences.values()) <= 1e-4
