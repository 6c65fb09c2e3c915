"""X3D's convolutions on this CPU, each in several ways, and the whole network -> results/video_depthwise.csv.

    python benchmarks/video_depthwise.py [--threads 2]

The depthwise 3 x 3 x 3 ones: contiguous and channels-last by torch's own kernel, and as the sum of three 2-D
convolutions over frames. Those of flat kernels: by torch's 3-D kernel, and as a proposal runs them (`fold.py`). X3D-S
as it is built, and as a proposal runs it. The ways take turns, and the median ratio to the one in use counts. All must
agree to 1e-5.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from results import write
from tokensieve.significance.fold import fold
from tokensieve.zoo import video_proposal

DEPTHWISE = [(54, 80, 2), (54, 40, 1), (108, 20, 1), (216, 10, 1), (432, 5, 1)]
"""Channels, height and width, stride of X3D-S's 3 x 3 x 3 convolutions on clips of 8 x 160 x 160."""
FLAT = [
    ("1 x 3 x 3", 3, 24, 160), ("5 x 1 x 1, depthwise", 24, 24, 80), ("1 x 1 x 1", 24, 54, 80),
    ("1 x 1 x 1", 54, 24, 40), ("1 x 1 x 1", 48, 108, 20), ("1 x 1 x 1", 96, 216, 10), ("1 x 1 x 1", 192, 432, 5),
]  # fmt: skip
"""Kernel, channels in and out, height and width of some of its other convolutions."""
FRAMES, ROUNDS = 8, 15
Ways = dict[str, Callable[[], Tensor]]


def sum_of_planes(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """(B, C, T, H, W) by (C, 1, 3, 3, 3): each frame, the one before and the one after it by a kernel of their own."""
    frames = x.transpose(1, 2).flatten(0, 1)
    before, here, after = (
        F.conv2d(frames, weight[:, :, i], stride=stride, padding=1, groups=len(weight)).unflatten(0, (len(x), -1))
        for i in range(3)
    )
    here[:, 1:] += before[:, :-1]
    here[:, :-1] += after[:, 1:]
    return here.transpose(1, 2)


def depthwise(channels: int, side: int, stride: int) -> Ways:
    """The way in use first."""
    plain, weight = torch.randn(1, channels, FRAMES, side, side), torch.randn(channels, 1, 3, 3, 3)
    last, last_weight = (each.to(memory_format=torch.channels_last_3d) for each in (plain, weight))
    settings: dict[str, Any] = {"stride": (1, stride, stride), "padding": 1, "groups": channels}
    return {
        "channels-last": lambda: F.conv3d(last, last_weight, **settings),
        "contiguous": lambda: F.conv3d(plain, weight, **settings),
        "sum of 2-D, channels-last": lambda: sum_of_planes(last, weight, stride),
        "sum of 2-D, contiguous": lambda: sum_of_planes(plain, weight, stride),
    }


def flat(kernel: str, inward: int, outward: int, side: int) -> Ways:
    long, wide = int(kernel[0]), int(kernel[4])
    stride, padding = (1, 2, 2) if wide > 1 else 1, (long // 2, wide // 2, wide // 2)
    groups = inward if "depthwise" in kernel else 1
    conv = nn.Conv3d(inward, outward, (long, wide, wide), stride, padding, groups=groups)
    graph = fx.symbolic_trace(nn.Sequential(conv).eval())
    fold(graph)
    clip = torch.randn(1, inward, FRAMES, side, side).to(memory_format=torch.channels_last_3d)
    return {"flat": lambda: graph(clip), "3-D": lambda: conv(clip)}


def network() -> Ways:
    built = video_proposal("x3d_s")
    graph = fx.symbolic_trace(copy.deepcopy(built))
    fold(graph)
    clip = torch.randn(1, 3, FRAMES, 160, 160)
    return {"as a proposal": lambda: graph(clip), "as it is built": lambda: built(clip)}


def compared(what: str, ways: Ways, **where: Any) -> list[dict[str, Any]]:
    expected, times = next(iter(ways.values()))(), {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - begin)
    rows, used = [], next(iter(ways))
    for name, way in ways.items():
        ratios = [a / b for a, b in zip(times[name], times[used], strict=True)]
        rows.append(
            {
                "what": what, **where, "way": name, "milliseconds": 1e3 * statistics.median(times[name]),
                "times_the_one_in_use": statistics.median(ratios),
                "relative_difference": float((way() - expected).abs().max() / expected.abs().max()),
            }
        )  # fmt: skip
        print(f"{what:22} {' '.join(map(str, where.values())):12} {name:28} {rows[-1]['milliseconds']:8.2f} ms "
              f"{rows[-1]['times_the_one_in_use']:6.2f} x  {rows[-1]['relative_difference']:.1e}")  # fmt: skip
    return rows


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    torch.manual_seed(0)
    rows = []
    for channels, side, stride in DEPTHWISE:
        rows += compared("3 x 3 x 3, depthwise", depthwise(channels, side, stride), channels=channels, side=side)
    for kernel, inward, outward, side in FLAT:
        rows += compared(kernel, flat(kernel, inward, outward, side), channels=f"{inward}-{outward}", side=side)
    rows += compared("X3D-S", network(), channels="", side=160)
    write("video_depthwise.csv", rows)
    return 1 if any(row["relative_difference"] > 1e-5 for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
