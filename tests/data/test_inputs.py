"""What images a model reads: as it was built, whatever its weights were for."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import tokensieve
from tests.reference.hf_hosts import hf_forms, open_clip_forms
from tokensieve import InputError, prepack, sieve, zoo
from tokensieve.data.inputs import InputSpec, channels_of, check_images, own_input, own_input_size, reading, size_of
from tokensieve.hosts import Host
from tokensieve.hosts.registry import HOSTS
from tokensieve.measure import SlicingLimit, macs
from tokensieve.measure.budget import merge_to
from tokensieve.tokens import Tokens


def built(name: str, **settings: Any) -> nn.Module:
    with zoo.without_memory():
        return timm.create_model(name, **settings)


GETTER = {"feature_cls": "getter"}


@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        ("vit_base_patch16_224", {}, (3, 224, 224)),
        ("vit_base_patch16_384", {}, (3, 384, 384)),
        ("vit_small_patch14_dinov2", {}, (3, 518, 518)),
        ("vit_small_patch14_dinov2", {"img_size": 224}, (3, 224, 224)),
        ("vit_tiny_patch16_224", {"img_size": (192, 256), "in_chans": 13}, (13, 192, 256)),
        ("eva02_tiny_patch14_336", {"in_chans": 1}, (1, 336, 336)),
        ("beit_base_patch16_384", {}, (3, 384, 384)),
        ("swin_tiny_patch4_window7_224", {"img_size": 256, "in_chans": 4}, (4, 256, 256)),
        ("convnext_atto", {"in_chans": 4}, (4, 224, 224)),
        ("convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384", {}, (3, 384, 384)),
        ("convnext_atto", {"features_only": True, "in_chans": 13}, (13, 224, 224)),
        ("swin_tiny_patch4_window7_224", {"features_only": True, "img_size": 192}, (3, 192, 192)),
        ("swin_tiny_patch4_window7_224", {"features_only": True, "img_size": 192, **GETTER}, (3, 192, 192)),
        ("test_resnet", {"in_chans": 1}, (1, 160, 160)),
        ("tresnet_m", {"in_chans": 4}, (4, 224, 224)),  # 16 pixels become channels before its first convolution
        ("sequencer2d_s", {}, (3, 224, 224)),
    ],
)  # fmt: skip
def test_timm(name: str, settings: dict[str, Any], size: tuple[int, int, int]) -> None:
    assert own_input_size(built(name, **settings)) == size


@pytest.mark.parametrize("name", hf_forms())
def test_transformers(name: str) -> None:
    height, width = (32, 48) if name == "vit-rectangular" else (40, 40)
    assert own_input_size(hf_forms()[name]()) == (3, height, width)


def test_transformers_of_other_channels_and_sizes() -> None:
    hf = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "num_channels": 4}
    assert own_input_size(hf.Dinov2Model(hf.Dinov2Config(**small))) == (4, 28, 28)
    staged = {"num_channels": 13, "image_size": 64, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
    assert own_input_size(hf.ConvNextModel(hf.ConvNextConfig(**staged))) == (13, 64, 64)
    swin = hf.SwinModel(hf.SwinConfig(num_channels=1, image_size=96, embed_dim=12, depths=[1], num_heads=[2]))
    assert own_input_size(swin) == (1, 96, 96)


def test_open_clip() -> None:
    pytest.importorskip("open_clip")
    for form in open_clip_forms().values():
        assert own_input_size(form()) == (3, 40, 40)


def vit(**settings: Any) -> nn.Module:
    return VisionTransformer(img_size=(32, 48), patch_size=8, embed_dim=16, depth=1, num_heads=2, **settings).eval()


@pytest.mark.parametrize(
    "wrap",
    [
        sieve,
        partial(sieve, recipe="papr(keep=0.5, proposal=test_resnet, proposal_norm=shared)", pretrained=False),
        torch.compile,
        nn.DataParallel,
        prepack,
        lambda model: SlicingLimit(sieve(model)),
        lambda model: nn.Sequential(nn.Identity(), model),
    ],
)
def test_what_is_around_a_model_does_not_hide_it(wrap) -> None:
    assert own_input_size(wrap(vit(in_chans=5))) == (5, 32, 48)


def test_a_size_may_be_given() -> None:
    model = vit(in_chans=4)
    assert own_input_size(model, 64) == (4, 64, 64)
    assert own_input_size(model, (64, 80)) == (4, 64, 80)
    assert own_input_size(model, [3, 64, 80]) == (3, 64, 80)
    for wrong in (0, -1, (64,), (3, 64, 64, 64), (3, 0, 64), 64.0, "64", (), True, (3.0, 64, 64)):
        with pytest.raises(InputError, match="input_size is a side in pixels"):
            own_input_size(model, wrong)  # type: ignore[arg-type]


def test_what_is_not_stated_is_asked_for() -> None:
    net = nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU())
    assert (size_of(net), channels_of(net)) == (None, 6)
    with pytest.raises(InputError, match=r"Sequential states no size of its images: give input_size=\(channels"):
        own_input_size(net)
    assert own_input_size(net, 20) == (6, 20, 20)
    assert channels_of(nn.Linear(3, 4)) is None
    with pytest.raises(InputError, match="Linear states no number of channels"):
        own_input_size(nn.Linear(3, 4), 20)
    assert own_input_size(nn.Linear(3, 4), (1, 20, 30)) == (1, 20, 30)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, 8, 8), r"not float32 of shape \(3, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"not uint8 of shape \(1, 3, 8, 8\)"),
        ([torch.zeros(1, 3, 8, 8)], "not list"),
    ],
)
def test_images_are_one_tensor_of_numbers(images, words) -> None:
    with pytest.raises(InputError, match=rf"one tensor \(batch, channels, height, width\).*{words}"):
        check_images(images)


def test_what_fails_while_a_model_reads_says_what_it_was_built_for() -> None:
    images = torch.zeros(1, 3, 40, 40)
    words = r"on images of shape \(1, 3, 40, 40\): Input height.*for \(3, 32, 48\)\."
    with pytest.raises(InputError, match=words), reading(vit(), images):
        vit()(images)
    with pytest.raises(InputError, match=r"^Sequential does not run on .*: boom\.$"), reading(nn.Sequential(), images):
        raise RuntimeError("boom.")


def test_a_spec_says_which_side_is_which() -> None:
    image = InputSpec((3, 32, 48))
    assert (image.layout, image.channels, image.frames, image.size) == ("CHW", 3, 1, (32, 48))
    for layout, shape in (("TCHW", (16, 3, 32, 48)), ("CTHW", (3, 16, 32, 48))):
        video = InputSpec(shape, layout)
        assert (video.channels, video.frames, video.size) == (3, 16, (32, 48))
        assert video.resized(8, 24) == InputSpec((*shape[:2], 8, 24), layout)
        assert torch.zeros(2, *video).shape == (2, *shape)
        assert (len(video), list(video), video[-2:], video[0]) == (4, list(shape), (32, 48), shape[0])
    assert InputSpec([3, 32, 48]) == image  # type: ignore[arg-type]
    assert hash(InputSpec([3, 32, 48])) == hash(image)  # type: ignore[arg-type]
    assert tokensieve.InputSpec is InputSpec


@pytest.mark.parametrize(
    ("shape", "layout", "words"),
    [
        ((3, 32, 48), "HWC", "layout must be one of CHW, TCHW, CTHW, not 'HWC'"),
        ((3, 32), "CHW", r"shape of CHW must be \(channels, height, width\), not \(3, 32\)"),
        ((3, 32, 48), "TCHW", r"shape of TCHW must be \(frames, channels, height, width\), not"),
        ((16, 3, 32, 48), "CHW", "shape of CHW must be"),
        ((3, 0, 48), "CHW", "shape of CHW must be"),
        ((3, 32.0, 48), "CHW", "shape of CHW must be"),
        ((True, 32, 48), "CHW", "shape of CHW must be"),
        (224, "CHW", "shape of CHW must be"),
        ("abc", "CHW", "shape of CHW must be"),
    ],
)
def test_a_spec_that_is_none(shape: Any, layout: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        InputSpec(shape, layout)


def test_the_spec_of_a_model() -> None:
    assert InputSpec.of(vit(in_chans=5)) == InputSpec((5, 32, 48))
    assert InputSpec.of(nn.Conv2d(6, 4, 3)) == InputSpec((6, 224, 224))
    assert InputSpec.of(nn.Linear(2, 2)) == InputSpec((3, 224, 224))
    assert own_input(vit(), InputSpec((1, 8, 8))) == InputSpec((1, 8, 8))
    assert own_input_size(vit(), InputSpec((4, 1, 8, 8), "TCHW")) == (4, 1, 8, 8)


class Clips(nn.Module):
    """Reads videos (B, T, 3, H, W), and states nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 5)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(clips.flatten(0, 1)).mean((2, 3)).unflatten(0, clips.shape[:2]).mean(1))


class OpenClips(Host):
    """As far as it says what the model reads."""

    width, prefix, class_token, reads_prefix, blocks = 8, 0, False, False, ()
    spec: Any = InputSpec((6, 3, 32, 48), "TCHW")

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def input_spec(self) -> InputSpec:
        return self.spec

    def embed(self, images: torch.Tensor) -> Tokens:
        x = self.model.conv(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return Tokens(x.permute(0, 1, 3, 4, 2).flatten(1, 3), 0, (images.shape[1] * x.shape[3], x.shape[4]))

    def features(self, tokens: Tokens) -> Tokens:
        return tokens

    def head(self, tokens: Tokens) -> torch.Tensor:
        return self.model.head(tokens.x.mean(1))


@pytest.fixture
def clips(monkeypatch: pytest.MonkeyPatch) -> Clips:
    monkeypatch.setitem(HOSTS, Clips, OpenClips)
    return Clips().eval()


def test_a_host_states_what_its_model_reads(clips: Clips) -> None:
    spec = OpenClips.spec
    for around in (clips, sieve(clips), nn.DataParallel(clips), torch.compile(clips), nn.Sequential(clips)):
        assert InputSpec.of(around) == own_input(around) == spec
        assert (channels_of(around), size_of(around)) == (3, (32, 48))
    assert own_input(clips, 64) == InputSpec((6, 3, 64, 64), "TCHW")
    assert own_input(clips, (16, 24)) == InputSpec((6, 3, 16, 24), "TCHW")
    assert own_input(clips, (2, 3, 16, 24)) == InputSpec((2, 3, 16, 24), "TCHW")
    with pytest.raises(InputError, match=r"\(frames, channels, height, width\), not \(3, 16, 24\)"):
        own_input(clips, (3, 16, 24))
    words = r"\(1, 6, 3, 2, 2\): .*It was built for \(6, 3, 32, 48\)\."
    with pytest.raises(InputError, match=words), reading(clips, torch.zeros(1, 6, 3, 2, 2)):
        clips(torch.zeros(1, 6, 3, 2, 2))


def test_a_host_may_state_it_as_an_attribute_or_from_the_model(clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(OpenClips):
        input_spec = InputSpec((3, 4, 8, 8), "CTHW")  # type: ignore[assignment]

    class Larger(OpenClips):
        @property
        def input_spec(self) -> InputSpec:
            return Host.input_spec.fget(self).resized(96, 96)  # type: ignore[attr-defined]

    class Silent(OpenClips):
        input_spec = Host.input_spec  # type: ignore[assignment]

    for host, spec in ((Fixed, Fixed.input_spec), (Larger, InputSpec((3, 96, 96))), (Silent, InputSpec((3, 224, 224)))):
        monkeypatch.setitem(HOSTS, Clips, host)
        assert InputSpec.of(clips) == InputSpec.of(sieve(clips)) == spec
        assert host(clips).input_spec == spec


def test_built_in_hosts_leave_it_to_the_model() -> None:
    for model in (vit(in_chans=5), timm.create_model("convnext_atto")):
        host = sieve(model).host
        assert host.input_spec == InputSpec.of(model) == InputSpec.image(model)
        assert host.input_spec.layout == "CHW"


def test_a_video_models_macs(clips: Clips) -> None:
    def by_hand(frames: int, height: int, width: int) -> int:
        return frames * (height // 4) * (width // 4) * 3 * 16 * 8 + 8 * 5

    assert macs(clips) == by_hand(6, 32, 48)
    assert macs(clips, (16, 24)) == by_hand(6, 16, 24)
    assert macs(clips, InputSpec((2, 3, 16, 24), "TCHW")) == macs(clips, (2, 3, 16, 24)) == by_hand(2, 16, 24)
    assert macs(clips, images=torch.zeros(2, 4, 3, 16, 24)) == by_hand(4, 16, 24)
    with pytest.raises(InputError, match=r"one tensor \(batch, frames, channels, height, width\)"):
        macs(clips, images=torch.zeros(2, 3, 16, 24))


def test_a_video_model_without_a_host_is_counted_by_a_spec() -> None:
    model = nn.Sequential(nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4)), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    clip = InputSpec((3, 6, 32, 48), "CTHW")
    assert macs(model, clip) == 3 * 8 * 12 * (3 * 2 * 4 * 4) * 8
    assert macs(model, clip, images=torch.zeros(2, 3, 4, 16, 16)) == 2 * 4 * 4 * (3 * 2 * 4 * 4) * 8
    with pytest.raises(InputError, match=r"one tensor \(batch, channels, height, width\)"):
        macs(model, images=torch.zeros(2, *clip))
    with pytest.raises(InputError, match="input_size is a side in pixels"):
        macs(model, (3, 6, 32, 48))
    with pytest.raises(InputError, match="states no size of its images"):
        macs(model)


def test_images_of_a_spec_are_what_they_were() -> None:
    model = vit()
    assert macs(model, InputSpec((3, 32, 48))) == macs(model, (3, 32, 48)) == macs(model)
    assert merge_to(model, 0.9 * macs(model), InputSpec((3, 32, 48))) == merge_to(model, 0.9 * macs(model))
