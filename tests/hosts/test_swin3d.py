"""torchvision's Swin on video: papr chooses pixels of its maps in time and space."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.video import mvit_v2_s
from torchvision.models.video.swin_transformer import SwinTransformer3d

from tests.reference.hf_hosts import seeded
from tokensieve import InputError, InputSpec, PaPr, UnsupportedHost, patch_significance, sieve
from tokensieve.export import export_onnx
from tokensieve.hosts import open_host
from tokensieve.measure import macs


def swin() -> Any:
    """Two stages, on clips of frames in pairs and patches of 4 x 4 pixels; every parameter random."""
    return seeded(
        lambda: SwinTransformer3d([2, 4, 4], 8, [2, 2], [1, 2], [2, 4, 4], stochastic_depth_prob=0.0, num_classes=5),
        zlib.crc32(b"swin3d"),
    )


def clips(*sides: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *sides, generator=torch.Generator().manual_seed(4))


def test_identity_settings_are_the_host_bit_for_bit() -> None:
    model, some = swin(), clips(5, 30, 32)
    with torch.no_grad():
        whole = model(some)
        for recipe in ("", "papr(keep=1)"):
            assert torch.equal(sieve(model, recipe)(some), whole)


@pytest.mark.parametrize("background", ["keep", "zero"])
@torch.no_grad()
def test_point_wise_operators_run_on_the_chosen_pixels_alone(background: str) -> None:
    """Block by block and pixel by pixel, from the host's own attention, norms and MLPs, in float64."""
    model, some = swin().double(), clips(4, 24, 32).double()
    features = torch.rand(2, 6, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    fast = sieve(model, PaPr(keep=0.4, significance=lambda _: features.mean(1), background=background))
    trace = fast.trace(some)

    x, stage, kept = model.pos_drop(model.patch_embed(some)), 0, []
    for part in model.features:
        if not isinstance(part, torch.nn.Sequential):
            x, stage = part(x), stage + 1
            continue
        grid = tuple(x.shape[1:4])
        score = patch_significance(features, grid).float()
        count = int(0.4 * grid[0] * grid[1] * grid[2])
        chosen = [sorted(sorted(range(len(row)), key=lambda j, r=row: (-float(r[j]), j))[:count]) for row in score]
        kept.append(chosen)
        for block in part:
            x = x + block.attn(block.norm1(x))
            out = x.clone() if background == "keep" else torch.zeros_like(x)
            for b, places in enumerate(chosen):
                for j in places:
                    t, rest = divmod(j, grid[1] * grid[2])
                    i, k = divmod(rest, grid[2])
                    out[b, t, i, k] = x[b, t, i, k] + block.mlp(block.norm2(x[b, t, i, k]))
            x = out
    expected = model.head(model.norm(x).mean((1, 2, 3)))
    assert [index.tolist() for index in trace.kept] == kept
    torch.testing.assert_close(trace.output, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(fast(some), expected, atol=1e-10, rtol=1e-10)
    assert trace.significance.shape == (2, 2, 6, 8)


def test_motion_ranks_the_pixels_of_each_stage() -> None:
    model, some = swin(), clips(6, 32, 32)
    some[:, :, 2:, :16] = some[:, :, :2, :16].repeat(1, 1, 2, 1, 1)  # the upper half stands still
    trace = sieve(model, "papr(keep=0.5, significance=motion)").trace(some)
    for index, (height, width) in zip(trace.kept, ((8, 8), (4, 4)), strict=True):
        assert ((index % (height * width)) // width >= height // 2).all()


def test_what_it_reads_and_what_it_costs() -> None:
    model = swin()
    host = open_host(model)
    assert (host.units, host.layout, host.widths, host.patch) == ("pixels", "CTHW", [8, 16], (2, 4, 4))
    assert InputSpec.of(model) == InputSpec((3, 16, 224, 224), "CTHW")
    whole, half = (macs(sieve(model, recipe), (3, 4, 32, 32)) for recipe in ("", "papr(keep=0.5, significance=centre)"))
    pixels = 2 * 8 * 8 * 2 * (2 * 4 * 8 * 8) + 2 * 4 * 4 * 2 * (2 * 4 * 16 * 16)  # of both stages' MLPs
    assert whole - half == pixels / 2


def test_what_is_refused_says_why() -> None:
    for recipe in ("tome(r=3)", "rlt(threshold=0.1)", "evit(keep=0.5)"):
        with pytest.raises(UnsupportedHost, match="its feature maps keep their full size"):
            sieve(swin(), recipe)
    with pytest.raises(UnsupportedHost, match="it is made for Swin"):
        sieve(swin(), "dynamicswin(keep=0.5)", pretrained=False)
    with pytest.raises(InputError, match="reads \\(batch, channels, frames, height, width\\)"):
        sieve(swin(), "random(keep=0.5)")(torch.zeros(2, 3, 32, 32))
    with torch.device("meta"), pytest.raises(UnsupportedHost, match="MViT cannot be sieved: its attention pools"):
        open_host(mvit_v2_s())


@pytest.mark.slow
def test_it_compiles_in_one_graph() -> None:
    fast, some = sieve(swin(), "papr(keep=0.5, significance=motion)"), clips(4, 32, 32)
    with torch.no_grad():
        compiled = torch.compile(fast, fullgraph=True, backend="eager")(some)
        torch.testing.assert_close(compiled, fast(some), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_it_is_exported_to_onnx(tmp_path: Any) -> None:
    pytest.importorskip("onnxruntime")
    fast = sieve(swin(), "papr(keep=0.5, significance=motion)")
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    report = export_onnx(fast, tmp_path / "model.onnx", InputSpec((3, 4, 32, 32), "CTHW"), **half)
    assert report.inputs["images"] == ("batch", 3, 4, 32, 32)
    assert max(report.differences.values()) <= 1e-4
