"""Maps of clips: by networks that read video, by motion, by both, and without either."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.reference.significance import patch_significance as slow_significance
from tests.reference.video import x3d_state
from tokensieve import InputError, RecipeError, patch_significance
from tokensieve.methods.papr import REDUCTIONS, top_patches
from tokensieve.significance import REDUCTIONS as BUILT
from tokensieve.significance import build
from tokensieve.significance.motion import motion_map
from tokensieve.zoo import file_sha256, video_proposal

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def clips(*sides: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, 3, *sides) of noise."""
    return torch.randn(batch, 3, *sides, generator=torch.Generator().manual_seed(sum(sides)), dtype=dtype)


class Small(nn.Module):
    """Features (B, 5, T, H / 8, W / 8), all positive."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv3d(3, 5, (3, 8, 8), (1, 8, 8), (1, 0, 0))

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).relu()


def slow_motion(clip: Tensor, grid: tuple[int, int, int]) -> list[float]:
    """One clip (C, T, H, W), number by number."""
    channels, frames, height, width = clip.shape
    long, tall, wide = (side // count for side, count in zip((frames, height, width), grid, strict=True))
    values = clip.tolist()
    found = []
    for t, y, x in itertools.product(*map(range, grid)):
        t = max(t, 1)
        places = itertools.product(range(channels), range(long), range(tall), range(wide))
        change = [
            abs(
                values[c][t * long + f][y * tall + i][x * wide + j]
                - values[c][(t - 1) * long + f][y * tall + i][x * wide + j]
            )
            for c, f, i, j in places
        ]
        found.append(sum(change) / len(change))
    return found


def test_motion_is_the_mean_difference_from_the_patch_before() -> None:
    some = clips(6, 8, 12, dtype=torch.float64)
    maps = motion_map(some, (3, 2, 3))
    expected = torch.tensor([slow_motion(clip, (3, 2, 3)) for clip in some], dtype=torch.float64)
    torch.testing.assert_close(maps.flatten(1), expected, atol=1e-12, rtol=1e-12)
    assert motion_map(some, (1, 2, 3)).eq(0).all()
    assert motion_map(some.bfloat16(), (3, 2, 3)).dtype == torch.float32
    with pytest.raises(InputError, match="T a multiple of 4"):
        motion_map(some, (4, 2, 3))
    with pytest.raises(InputError, match="between frames"):
        motion_map(some[:, :, 0], (3, 2, 3))


@pytest.mark.parametrize("size", [(8, 5, 5), (8, 7, 7), (16, 7, 7)])
def test_the_ranking_over_a_grid_in_time_is_the_slow_one(size: tuple[int, ...]) -> None:
    """Averaging the channels first gives what resizing all of them and averaging then does (PaPr's own order)."""
    features = torch.rand(2, 12, *size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    fast = patch_significance(features, (8, 14, 14))
    resized = F.interpolate(features, size=(8, 14, 14), mode="trilinear", align_corners=True)
    torch.testing.assert_close(fast, resized.mean(1).flatten(1), atol=1e-12, rtol=0)
    torch.testing.assert_close(fast[:1], slow_significance(features[:1], (8, 14, 14)), atol=1e-12, rtol=0)
    count = int(1568 * 0.45)
    slow = [sorted(range(1568), key=lambda j, row=row: (-float(row[j]), j))[:count] for row in fast]
    assert top_patches(fast, count).tolist() == slow


def test_a_module_is_given_the_clip_as_it_is_and_its_map_is_laid_on_the_grid() -> None:
    net, some = Small(), clips(4, 16, 24)
    made = build(proposal=net, video=True)
    expected = F.interpolate(net(some).mean(1, keepdim=True), size=(2, 4, 6), mode="trilinear", align_corners=True)
    torch.testing.assert_close(made(some, (2, 4, 6)), expected.flatten(1))
    moving = build(proposal=net, significance="mean*motion", video=True)
    torch.testing.assert_close(
        moving(some, (2, 4, 6)), (expected[:, 0] * motion_map(some, (2, 4, 6))).flatten(1), atol=1e-6, rtol=1e-5
    )
    alone = build(significance="motion", video=True)
    torch.testing.assert_close(alone(some, (2, 4, 6)), motion_map(some, (2, 4, 6)).flatten(1))
    assert alone.proposal is None


@pytest.mark.parametrize(
    ("size", "read"), [(None, (4, 16, 24)), ("host", (4, 16, 24)), (32, (4, 32, 32)), ((8, 16), (4, 8, 16)),
                       ((2, 8, 16), (2, 8, 16))]
)  # fmt: skip
def test_the_size_of_what_a_proposal_reads(size: Any, read: tuple[int, ...]) -> None:
    seen = []

    def net(images: Tensor) -> Tensor:
        seen.append(images)
        return images

    some = clips(4, 16, 24)
    build(proposal=net, proposal_size=size, video=True)(some, (2, 4, 6))
    assert tuple(seen[0].shape[2:]) == read
    torch.testing.assert_close(seen[0], F.interpolate(some, size=read, mode="trilinear", align_corners=True))


def test_x3d_reads_the_papers_clips_unless_it_is_told_otherwise() -> None:
    for name, size, read in (
        ("x3d_s", None, (8, 160, 160)),
        ("x3d_m", None, (8, 224, 224)),
        ("x3d_m", "host", None),
        ("x3d_s", (4, 32, 32), (4, 32, 32)),
    ):
        made = build(proposal=name, proposal_size=size, proposal_norm="shared", pretrained=False, video=True)
        assert made.source.size == read
        assert made.source.scale is None


def test_x3d_by_name_is_the_network_on_the_clip_resized_and_normalised(tmp_path: Any) -> None:
    state = x3d_state("mmaction2")
    file = tmp_path / "x3d.safetensors"
    save_file(state, file)
    settings = {"proposal_weights": str(file), "proposal_size": (4, 32, 32), "video": True}
    made = build(proposal="x3d_s", mean=MEAN, std=STD, proposal_sha256=file_sha256(file), **settings)
    net, some = video_proposal("x3d_s", state), clips(6, 40, 48, batch=1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1, 1) for values in (MEAN, STD))
    resized = F.interpolate(some, size=(4, 32, 32), mode="trilinear", align_corners=True)
    for setting, given in (("native", (resized * std + mean - 0.45) / 0.225), ("shared", resized)):
        made = build(proposal="x3d_s", mean=MEAN, std=STD, proposal_norm=setting, **settings)
        with torch.no_grad():
            expected = patch_significance(net(given), (3, 4, 4))
        torch.testing.assert_close(made(some, (3, 4, 4)), expected, atol=1e-5, rtol=1e-4)
    assert made.name == "x3d_s"
    with pytest.raises(InputError, match="not the file that was expected"):
        build(proposal="x3d_s", proposal_norm="shared", proposal_sha256="0" * 64, **settings)


def test_a_network_of_torchvision_can_be_cut_at_a_layer() -> None:
    from torchvision.models.video import r3d_18

    net = r3d_18().eval()
    some = clips(4, 32, 32, batch=1)
    made = build(proposal=net, layer="layer4", video=True)
    with torch.no_grad():
        features = net.layer4(net.layer3(net.layer2(net.layer1(net.stem(some)))))
    torch.testing.assert_close(made(some, (2, 4, 4)), patch_significance(features, (2, 4, 4)))


def test_maps_without_a_network_fit_a_grid_in_time() -> None:
    some = clips(4, 16, 16)
    centre = build(significance="centre", video=True)(some, (2, 3, 3)).view(2, 2, 3, 3)
    assert torch.equal(centre[:, 0], centre[:, 1])
    assert centre[0, 0].argmax() == 4
    random = build(significance="random", video=True)
    assert torch.equal(random(some, (2, 3, 3))[1:], random(some[1:], (2, 3, 3)))
    assert random(some, (2, 3, 3)).flatten().unique().numel() == 36
    given = torch.randn(2, 3, 3)
    assert torch.equal(build(significance=given, video=True)(some, (2, 3, 3))[1], given.flatten())


def test_the_words_of_recipes_are_those_that_are_built() -> None:
    assert set(REDUCTIONS) == set(BUILT)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"proposal": "x3d_s"}, "reads video, and this model reads images"),
        ({"proposal": "mobileone_s0", "video": True}, "reads images, and this model reads video"),
        ({"significance": "motion"}, "between frames"),
        ({"significance": "mean*motion"}, "between frames"),
        ({"proposal": "x3d_s", "video": True, "layer": 2, "proposal_norm": "shared"}, "layer= and proposal_args="),
        ({"proposal": "resnet18", "proposal_size": (8, 32, 32), "proposal_norm": "shared"}, "has frames"),
        ({"proposal": "resnet18", "proposal_size": "hosts", "proposal_norm": "shared"}, "is not a size"),
        ({"proposal": "x3d_s", "video": True, "significance": "cam", "proposal_norm": "shared"}, "no known classifier"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises((RecipeError, InputError), match=reason):
        build(**settings, pretrained=False)
