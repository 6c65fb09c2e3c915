"""DToP's speed on a segmenter: time saved against MACs saved -> results/dtop_speed.csv.

    python benchmarks/dtop_speed.py [--settings base,large] [--seconds 40] [--rounds 4]    # other rows stay
    python benchmarks/dtop_speed.py --profile [--settings base] [--batch 8]     # operators beside the limit's

SegViT's heads at three exits of a ViT-B at 512 pixels (150 classes, width 384), batch 8 of different images and batch
1, and of a ViT-L at 640 pixels (width 512), batch 1. In each round run in turn: the segmenter without exits; with them;
the limit, which is each image on its own first n tokens of every block, unpadded, its heads asked and no token chosen;
and the shape of work of the published code, where a loop over the images of the batch runs in every block.

Weights are random, and a random head is about equally sure of everything: no fixed threshold means anything. Those here
are quantiles over the batch: a third of the patches that arrive at an exit leaves, on the mean over the images. How
many leave in one image differs, as in trained segmenters; the rows tell the range.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from results import update
from speed_methods import compare_operators
from tokensieve import DToP, Sieved, segmentation, sieve
from tokensieve.forward.walk import Reads
from tokensieve.measure import SlicingLimit, macs
from tokensieve.measure.macs import count
from tokensieve.measure.speed import interleaved, spread
from tokensieve.methods.dtop import exits
from tokensieve.search.exits import ExitReader

KEPT = 5
LEAVES = 1 / 3
ASKED = 0.95
"""Time saved over MACs saved that is asked for."""


class Setting(NamedTuple):
    """A segmenter, and the batches in which it is timed."""

    backbone: str
    size: int
    classes: int
    exits: tuple[int, ...]
    width: int
    heads: int
    batches: tuple[int, ...]


SETTINGS = {
    "base": Setting("vit_base_patch16_224", 512, 150, (5, 7, 11), 384, 6, (8, 1)),
    "large": Setting("vit_large_patch16_224", 640, 150, (7, 15, 23), 512, 8, (1,)),
}


def built(setting: Setting) -> Any:
    torch.manual_seed(0)
    backbone = timm.create_model(setting.backbone, img_size=setting.size)
    return segmentation.segvit(backbone, setting.classes, setting.exits, setting.width, setting.heads).eval()


def pictures(batch: int, size: int) -> Tensor:
    """Noise as smooth as each picture's own number of waves across it: unlike parts in one, unlike pictures in all."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in range(batch):
        coarse = torch.randn(1, 3, *[4 + 3 * index] * 2, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
        fine = torch.randn(1, 3, size, size, generator=generator)
        found.append(smooth + fine * torch.linspace(0, 1, size)[:, None])
    return torch.cat(found)


def with_exits(model: Any, images: Tensor) -> Sieved:
    """The segmenter under thresholds at which a third of the patches that arrive leaves, the mean over the images."""
    reader, inner = ExitReader(model, lambda: images.split(1)), model.exits[:-1]
    thresholds: list[float] = []
    for place, block in enumerate(inner):
        before = DToP(tuple(thresholds), layers=inner[:place], keep_per_class=KEPT) if thresholds else None
        at = reader.read(block + 1, before, [block])[0][block]
        arriving = at.left(1.0, KEPT).sum()
        thresholds.append(at.threshold(KEPT, lambda left, most=(1 - LEAVES) * arriving: bool(left.sum() <= most)))
    return sieve(model, DToP(tuple(thresholds), layers=inner, keep_per_class=KEPT))


class ImageLoop(nn.Module):
    """The same exits in the shape of the published code: in every block, and at every exit, image after image.

    Tokens that have left stay in the sequence as zeros, and what is active is taken out and put back.
    """

    def __init__(self, model: Any, dtop: DToP) -> None:
        super().__init__()
        self.model, self.dtop = model, dtop

    def forward(self, images: Tensor) -> Tensor:
        model, dtop = self.model, self.dtop
        tokens = model.embed(images)
        x, grid = tokens.x, tokens.grid
        exited = torch.zeros(x.shape[:2], dtype=torch.bool)
        canvas = x.new_zeros(len(x), model.num_classes, x.shape[1])
        for index, block in enumerate(model.backbone.blocks[: model.exits[-1] + 1]):
            read, x = x, torch.zeros_like(x)
            for image, gone in enumerate(exited):
                x[image, ~gone] = block(read[image, ~gone][None])[0]
            if index not in model.exits:
                continue
            prediction, presence = torch.zeros_like(canvas), []
            for image, gone in enumerate(exited):
                said = model.predict(index, x[image, ~gone][None], None)
                canvas[image, :, ~gone] = said.masks[0]
                prediction[image, :, ~gone] = said.probability[0]
                presence.append(said.classes.softmax(-1)[0, :, 0])
            if index != model.exits[-1]:
                threshold = dtop.threshold[model.exits.index(index)]  # type: ignore[index]
                exited = exits(prediction, exited, threshold, dtop.keep_per_class)
        scores = torch.stack(presence)[:, :, None] * canvas.sigmoid()
        return model.at_size(scores.unflatten(2, grid), images.shape[2:])


def limits_of(fast: Sieved, images: Tensor) -> tuple[list[SlicingLimit], Tensor]:
    """Each image's own limit, and (depth, B) how many tokens each block read of it."""
    lengths = torch.stack(fast.trace(images).lengths)
    reads = [[Reads(n, n, n, n) for n in own] for own in lengths.T.tolist()]
    return [SlicingLimit(fast, own) for own in reads], lengths


def one_by_one(limits: Sequence[SlicingLimit], images: Tensor) -> None:
    for limit, image in zip(limits, images.split(1), strict=True):
        limit(image)


def measure(name: str, setting: Setting, model: Any, batch: int, seconds: float, rounds: int) -> dict[str, Any]:
    images = pictures(batch, setting.size)
    fast = with_exits(model, images)
    (dtop,) = fast.recipe.methods
    loop = ImageLoop(model, dtop)
    limits, lengths = limits_of(fast, images)

    sliced = partial(one_by_one, limits, images)
    difference = float((fast(images) - loop(images)).abs().max())
    dense_macs, cost = macs(model, images=images[:1]), count(model, sliced) / batch
    contestants = {
        "dense": partial(model, images),
        "sieved": partial(fast, images),
        "limit": sliced,
        "loop": partial(loop, images),
    }
    times = interleaved(contestants, seconds=seconds, min_rounds=rounds, max_rounds=100)
    saved = 1 - cost / dense_macs
    row: dict[str, Any] = {
        "setting": name, "backbone": setting.backbone, "size": setting.size, "batch": batch, "recipe": str(dtop),
        "gmac_dense": dense_macs / 1e9, "gmac": cost / 1e9, "macs_saved": saved,
        "tokens": " ".join(f"{int(n.min())}-{int(n.max())}" for n in lengths[[e + 1 for e in model.exits[:-1]]]),
        "padding": float((lengths.amax(1) / lengths.double().mean(1)).max() - 1), "difference": difference,
    }  # fmt: skip
    for who in ("sieved", "limit", "loop"):
        each = [1 - t / d for t, d in zip(times[who], times["dense"], strict=True)]
        row[f"{who}_saved_low"], row[f"{who}_saved"], row[f"{who}_saved_high"] = spread(each)
        row[f"{who}_of_macs"] = row[f"{who}_saved"] / saved
    row |= {"rounds": len(times["dense"]), **{f"seconds_{who}": median(values) for who, values in times.items()}}
    told = "  ".join(f"{who} {100 * row[f'{who}_saved']:.1f} %" for who in ("sieved", "limit", "loop"))
    print(
        f"{name:6} batch {batch}  MACs saved {100 * saved:.1f} %  time saved: {told}  "
        f"of the MACs {row['sieved_of_macs']:.3f} (asked {ASKED})  tokens {row['tokens']}  difference {difference:.1e}",
        flush=True,
    )
    return row


@torch.no_grad()
def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--batch", type=int, help="instead of the settings' own")
    parser.add_argument("--seconds", type=float, default=40, help="of each race")
    parser.add_argument("--rounds", type=int, default=4, help="at least so many")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="dtop_speed.csv")
    parser.add_argument("--profile", action="store_true", help="print operators beside the limit's instead")
    args = parser.parse_args(given)
    torch.set_num_threads(args.threads)
    for name in args.settings.split(","):
        if name not in SETTINGS:
            parser.error(f"there is no {name}: one of {', '.join(SETTINGS)}")
        setting = SETTINGS[name]
        model = built(setting)
        for batch in (args.batch,) if args.batch else setting.batches:
            if args.profile:
                images = pictures(batch, setting.size)
                fast = with_exits(model, images)
                limits, _ = limits_of(fast, images)
                compare_operators(fast, partial(one_by_one, limits), images)
                continue
            row = measure(name, setting, model, batch, args.seconds, args.rounds)
            update(args.out, [row], "setting", "batch")
    return 0


if __name__ == "__main__":
    sys.exit(main())
