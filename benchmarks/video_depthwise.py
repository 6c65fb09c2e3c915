"""X3D's depthwise 3 x 3 x 3 convolutions on this CPU, in three ways -> results/video_depthwise.csv.

    python benchmarks/video_depthwise.py

Contiguous and channels-last by torch's own kernel, and as the sum of three 2-D convolutions over frames: they take
turns, and the median ratio to the channels-last one counts. All must agree to 1e-5.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from results import write

SHAPES = [(54, 80, 2), (54, 40, 1), (108, 20, 1), (216, 10, 1), (432, 5, 1)]
"""Channels, height and width, stride of X3D-S's convolutions on clips of 8 x 160 x 160."""
FRAMES, ROUNDS = 8, 15


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


@torch.no_grad()
def main() -> int:
    torch.manual_seed(0)
    rows, wrong = [], 0
    for channels, side, stride in SHAPES:
        plain, weight = torch.randn(1, channels, FRAMES, side, side), torch.randn(channels, 1, 3, 3, 3)
        last, last_weight = (each.to(memory_format=torch.channels_last_3d) for each in (plain, weight))
        settings = {"stride": (1, stride, stride), "padding": 1, "groups": channels}
        ways = {
            "channels-last": lambda: F.conv3d(last, last_weight, **settings),  # noqa: B023
            "contiguous": lambda: F.conv3d(plain, weight, **settings),  # noqa: B023
            "sum of 2-D, channels-last": lambda: sum_of_planes(last, weight, stride),  # noqa: B023
            "sum of 2-D, contiguous": lambda: sum_of_planes(plain, weight, stride),  # noqa: B023
        }
        expected, times = ways["contiguous"](), {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                begin = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - begin)
        for name, way in ways.items():
            difference = float((way() - expected).abs().max() / expected.abs().max())
            wrong += difference > 1e-5
            ratios = [a / b for a, b in zip(times[name], times["channels-last"], strict=True)]
            rows.append(
                {
                    "channels": channels, "side": side, "stride": stride, "way": name,
                    "milliseconds": 1e3 * statistics.median(times[name]),
                    "times_channels_last": statistics.median(ratios), "relative_difference": difference,
                }
            )  # fmt: skip
            print(f"{channels:4} {side:3} {name:28} {rows[-1]['milliseconds']:8.2f} ms "
                  f"{rows[-1]['times_channels_last']:6.2f} x  {difference:.1e}")  # fmt: skip
    write("video_depthwise.csv", rows)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
