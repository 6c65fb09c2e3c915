"""Published checkpoints: what is loaded, what is left out, what is refused. Their numbers: test_heads.py."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.segmentation import published
from tokensieve import InputError, UnsupportedHost, segmentation
from tokensieve.segmentation import load_mmseg


def vit(**settings: Any) -> nn.Module:
    shape: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return VisionTransformer(**{**shape, **settings}).eval()


def segvit(classes: int = 3, **settings: Any) -> segmentation.Segmenter:
    return segmentation.segvit(vit(**settings), classes, (0, 1), width=12, heads=3, layers=1).eval()


def state(classes: int = 3) -> dict[str, Tensor]:
    heads = [published.atm(name, 16, classes, 2, 12, 1, 1) for name in ("auxiliary_head.0", "decode_head")]
    weights = published.weights(published.backbone(2, 16, 16, 8), *heads)
    return {name: value.float() for name, value in weights.items()}


def scores(segmenter: segmentation.Segmenter) -> Tensor:
    with torch.no_grad():
        return segmenter(torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32))


def test_it_returns_the_segmenter_and_warns_of_nothing() -> None:
    segmenter = segvit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_mmseg(segmenter, state()) is segmenter


@pytest.mark.parametrize("form", ["dict", "whole", "file", "whole file", "safetensors"])
def test_forms_of_a_checkpoint(form: str, tmp_path: Any) -> None:
    weights = state()
    expected = scores(load_mmseg(segvit(), weights))
    given: Any = {"meta": {"epoch": 3}, "state_dict": weights} if form.startswith("whole") else weights
    if form.endswith("file"):
        torch.save(given, tmp_path / "iter_160000.pth")
        given = tmp_path / "iter_160000.pth"
    elif form == "safetensors":
        from safetensors.torch import save_file

        save_file(weights, tmp_path / "weights.safetensors")
        given = str(tmp_path / "weights.safetensors")
    assert torch.equal(scores(load_mmseg(segvit(), given)), expected)


class Anything:
    """What a file may not hold."""


def test_files_that_hold_more_than_tensors_are_not_run(tmp_path: Any) -> None:
    torch.save({"state_dict": state(), "meta": Anything()}, tmp_path / "unsafe.pth")
    with pytest.raises(InputError, match=r"cannot be read as weights.*save its state_dict to a new file"):
        load_mmseg(segvit(), tmp_path / "unsafe.pth")
    with pytest.raises(InputError, match="There is no weights file"):
        load_mmseg(segvit(), tmp_path / "none.pth")
    with pytest.raises(InputError, match="must map names to tensors"):
        load_mmseg(segvit(), {"model": {"a": 1}})


def test_what_no_head_uses_is_listed_and_left_out() -> None:
    weights = state()
    unused = {
        "decode_head.conv_seg.weight": torch.zeros(3, 16, 1, 1),
        "auxiliary_head.0.conv_seg.bias": torch.zeros(3),
        "decode_head.loss_decode.criterion.empty_weight": torch.ones(4),
    }
    with pytest.warns(UserWarning, match="do not use them") as caught:
        segmenter = load_mmseg(segvit(), weights | unused)
    assert all(name in str(caught[0].message) for name in unused)
    assert torch.equal(scores(segmenter), scores(load_mmseg(segvit(), weights)))


def test_the_second_version_holds_a_self_attention_that_it_does_not_run() -> None:
    def build() -> segmentation.Segmenter:
        return segmentation.segvit_v2(vit(), 3, (0, 1), width=12, heads=3, layers=1).eval()

    shapes = [published.atm("decode_head", 16, 3, 2, 12, 1, 2, mixes=mixes) for mixes in (True, False)]
    whole, lean = (published.weights(published.backbone(2, 16, 16, 8), each) for each in shapes)
    whole |= lean
    with pytest.warns(UserWarning, match=r"decoder_1\.layers\.0\.self_attn\.in_proj_weight"):
        segmenter = load_mmseg(build(), {name: value.float() for name, value in whole.items()})
    lean = {name: value.float() for name, value in lean.items()}
    assert torch.equal(scores(segmenter), scores(load_mmseg(build(), lean)))


def test_stages_of_a_single_head_need_no_number() -> None:
    weights = state()
    expected = scores(load_mmseg(segvit(), weights))
    bare = {name.replace("_1.", "."): value for name, value in weights.items()}
    assert bare.keys() != weights.keys()
    assert torch.equal(scores(load_mmseg(segvit(), bare)), expected)


@pytest.mark.parametrize("name", ["backbone.layers.1.attn.attn.in_proj_bias", "auxiliary_head.0.q.weight"])
def test_missing_names_are_named_and_nothing_is_loaded(name: str) -> None:
    weights, segmenter = state(), segvit()
    before = scores(segmenter)
    del weights[name]
    with pytest.raises(InputError, match=f"does not fit .*SegViT: it lacks {name}"):
        load_mmseg(segmenter, weights)
    assert torch.equal(scores(segmenter), before)


def test_unknown_names_are_named() -> None:
    extra = {"backbone.ln1.weight": torch.ones(16), "decode_head.more": torch.ones(1)}
    with pytest.raises(InputError, match=r"which does not have backbone\.ln1\.weight, decode_head\.more"):
        load_mmseg(segvit(), state() | extra)


def test_another_head_or_another_number_of_classes() -> None:
    segmenter = segvit(classes=4)
    before = scores(segmenter)
    with pytest.raises(InputError, match=r"q\.weight has shape \(3, 12\) in the checkpoint and \(4, 12\)"):
        load_mmseg(segmenter, state())
    assert torch.equal(scores(segmenter), before)
    setr = segmentation.setr(vit(), 3, "naive", (0, 1), class_token=False)
    with pytest.raises(InputError, match=r"does not fit .*Setr: it lacks .*up_convs\.0\.0.* and \d+ more"):
        load_mmseg(setr, state())


def test_a_position_embedding_of_another_grid_is_resized() -> None:
    weights = state()
    own = load_mmseg(segvit(img_size=(24, 48)), weights).backbone.pos_embed
    table = weights["backbone.pos_embed"]
    patches = table[:, 1:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    expected = F.interpolate(patches, size=(3, 6), mode="bicubic", align_corners=False)
    assert torch.equal(own[:, :1], table[:, :1])
    torch.testing.assert_close(own[:, 1:], expected.flatten(2).transpose(1, 2))
    weights["backbone.pos_embed"] = table[:, :-1]
    with pytest.raises(InputError, match="has 15 patches, which are not a square grid"):
        load_mmseg(segvit(), weights)


def test_backbones_and_heads_without_a_layout() -> None:
    with pytest.raises(UnsupportedHost, match=r"no published checkpoints in .* for LinearSegmenter"):
        load_mmseg(segmentation.linear(vit(), 3), state())
    beit = timm.create_model("beit_base_patch16_224", embed_dim=16, depth=2, num_heads=2)
    with pytest.raises(UnsupportedHost, match="on timm's VisionTransformer, not on Beit"):
        load_mmseg(segmentation.segvit(beit, 3, (0, 1), width=12, heads=3), state())
    with pytest.raises(InputError, match=r"it lacks .*backbone\.blocks\.0\.ls1\.gamma"):
        load_mmseg(segvit(init_values=1.0), state())
