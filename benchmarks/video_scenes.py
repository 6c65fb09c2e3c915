"""The bundled models of video on moving scenes: right answers over MACs, by what chooses the patches ->
results/video.csv and docs/pictures/video.png.

    python benchmarks/video_scenes.py [--scenes 1000] [--draws 3]
    python benchmarks/video_scenes.py --plot          # the picture from the committed figures

Merging is given exactly the MACs that PaPr takes at each keep ratio, its proposal included. The rows "ranked by" have
one keep ratio and other maps, among them the exact share of the digit in each patch, which no proposal knows.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from curves import MACS_LABEL, draw_curves, save
from results import ROOT, read, write
from tokensieve import PaPr, Recipe, sieve
from tokensieve.data import MovingScene, MovingScenes
from tokensieve.errors import RecipeError
from tokensieve.measure import macs
from tokensieve.measure.budget import merge_to
from tokensieve.measure.outputs import collect_outputs
from tokensieve.zoo import create, video_proposal

KEEPS = (0.8, 0.65, 0.5, 0.4, 0.3)
THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.4)
RANKED_AT = 0.3
"""Keep ratio at which maps are compared."""
SEED = 2  # moving scenes that training never looked at, on the way or otherwise
BATCH = 50
TRACED = 200
"""Clips whose kept patches are counted."""
PROPOSAL = "proposal=nano_video_proposal"
CURVES = {
    "PaPr, nano proposal": "#0072b2",
    "PaPr, proposal x motion": "#009e73",
    "PaPr, motion": "#d55e00",
    "ToMe": "#cc79a7",
    "ToMe, window of 1": "#8c6bb1",
    "RLT": "#56b4e9",
    "centre tube": "#e69f00",
    "random": "#7a7a7a",
}
PICTURE = ROOT / "docs" / "pictures" / "video.png"


class Study:
    """The host, its clips, and what the dense model says of them."""

    def __init__(self, count: int) -> None:
        self.model, self.mean, self.std = create("nano_video")
        self.scenes: MovingScene = MovingScenes("validation", count, seed=SEED).batch(range(count))
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        self.clips = (self.scenes.clips - mean) / std
        self.share = F.avg_pool3d(self.scenes.masks[:, None].float(), (2, 8, 8)).flatten(1)
        self.whole = macs(self.model)
        self.dense = collect_outputs(self.model, self.clips.split(BATCH))

    def row(self, method: str, setting: float | str, recipes: list[Any], **more: Any) -> dict[str, Any]:
        """What the recipes, draws of one, make of the clips."""
        fasts = [sieve(self.model, recipe, mean=self.mean, std=self.std) for recipe in recipes]
        varies = fasts[0].plan.varies
        images = {"images": self.clips[:TRACED]} if varies else {}
        host, total = macs(fasts[0], proposal=False, **images), macs(fasts[0], **images)
        answers = [collect_outputs(fast, self.clips.split(BATCH)) for fast in fasts]
        made = {
            "method": method, "setting": setting, "recipe": more.pop("recipe", str(fasts[0].recipe)),
            "mmac_host": host / 1e6, "mmac": total / 1e6, "macs_ratio": self.whole / total,
            **self.scores(answers), **self.kept(fasts[0]), "clips": len(self.clips), "draws": len(recipes), **more,
        }  # fmt: skip
        print(made, flush=True)
        return made

    def scores(self, answers: list[Tensor]) -> dict[str, float]:
        """Percentages of right answers, and how far they are from the dense model's."""
        labels, log_dense = self.scenes.labels, self.dense.log_softmax(1)
        top1, figures = [], []
        for logits in answers:
            found = logits.argmax(1)
            top1.append(_percent(found == labels))
            figures.append(
                {
                    "digits": _percent(found // 8 == labels // 8),
                    "directions": _percent(found % 8 == labels % 8),
                    "agreement": _percent(found == self.dense.argmax(1)),
                    "kl": F.kl_div(logits.log_softmax(1), log_dense, log_target=True, reduction="batchmean").item(),
                }
            )
        means = {name: fmean(each[name] for each in figures) for name in figures[0]}
        return {"top1": fmean(top1), "top1_low": min(top1), "top1_high": max(top1), **means}

    def kept(self, fast: Any) -> dict[str, Any]:
        """Patches that are not dropped, of each pair of frames, and of those that show the digit; tokens in the end."""
        trace = fast.trace(self.clips[:TRACED])
        kept = (trace.source >= 0).float()
        shown = self.share[:TRACED] > 0.15
        steps = kept.unflatten(1, trace.tokens.grid).sum((2, 3))
        counts = {f"kept_{number}": value for number, value in enumerate(steps.mean(0).tolist(), 1)}
        lengths = trace.tokens.lengths_per_image().float()
        return {
            "tokens": lengths.mean().item(), **counts, "empty_steps": _percent(steps == 0),
            "kept_of_digit": _percent(kept.bool()[shown]),
        }  # fmt: skip


def _percent(right: Tensor) -> float:
    return 100 * right.float().mean().item()


def measure(count: int, draws: int) -> list[dict[str, Any]]:
    study = Study(count)
    rows = [study.row("dense", 1.0, [""])]
    for keep in KEEPS:
        rows.append(study.row("PaPr, nano proposal", keep, [f"papr(keep={keep}, {PROPOSAL})"]))
        budget = 1e6 * rows[-1]["mmac"]
        both = f"papr(keep={keep}, {PROPOSAL}, significance='mean*motion')"
        rows.append(study.row("PaPr, proposal x motion", keep, [both]))
        rows.append(study.row("PaPr, motion", keep, [f"papr(keep={keep}, significance=motion)"]))
        rows.append(study.row("random", keep, [f"random(keep={keep}, seed={seed})" for seed in range(draws)]))
        rows.append(study.row("centre tube", keep, [f"papr(keep={keep}, significance=centre)"]))
        try:
            (merging,) = merge_to(study.model, budget)
        except RecipeError as error:
            print(error)
            continue
        rows.append(study.row("ToMe", keep, [Recipe([merging])]))
        rows.append(study.row("ToMe, window of 1", keep, [Recipe([replace(merging, window=1)])]))
    rows += [study.row("RLT", threshold, [f"rlt(threshold={threshold})"]) for threshold in THRESHOLDS]
    return rows + ranked(study, draws)


def ranked(study: Study, draws: int) -> list[dict[str, Any]]:
    """The ablation of the proposal: other maps at one keep ratio."""
    keep, rows = RANKED_AT, []
    torch.manual_seed(0)
    untrained = [PaPr(keep, proposal=video_proposal("nano_video_proposal", pretrained=False)) for _ in range(draws)]
    frames = create("nano_convnet").model.features

    def frame_by_frame(clips: Tensor) -> Tensor:
        """The proposal of images on each frame by itself, (B, 3, T, H, W) -> (B, K, T, h, w)."""
        return frames(clips.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, clips.shape[2])).transpose(1, 2)

    for name, methods in (
        ("nano proposal", [PaPr(keep, proposal="nano_video_proposal")]),
        ("nano proposal, its largest feature", [PaPr(keep, significance=_largest)]),
        ("nano proposal x motion", [PaPr(keep, proposal="nano_video_proposal", significance="mean*motion")]),
        ("motion", [PaPr(keep, significance="motion")]),
        ("nano proposal, random weights", untrained),
        ("nano_convnet, frame by frame", [PaPr(keep, proposal=frame_by_frame)]),
        ("centre tube", [PaPr(keep, significance="centre")]),
    ):
        named = f"papr(keep={keep}, {name})"
        rows.append(study.row(f"ranked by: {name}", keep, methods, recipe=named))
    rows.append(exact(study, keep, rows[-1]))
    return rows


def _largest(clips: Tensor) -> Tensor:
    return _FEATURES(clips).amax(1)


_FEATURES = video_proposal("nano_video_proposal")


def exact(study: Study, keep: float, like: dict[str, Any]) -> dict[str, Any]:
    """Ranked by the share of the digit in each patch, another map for each batch; `like` is a row of as much cost."""
    fasts = [
        sieve(study.model, PaPr(keep, significance=share), mean=study.mean, std=study.std)
        for share in study.share.split(BATCH)
    ]
    batches = zip(fasts, study.clips.split(BATCH), strict=True)
    answers = torch.cat([collect_outputs(fast, [clips]) for fast, clips in batches])
    fast = sieve(study.model, PaPr(keep, significance=study.share[:TRACED]), mean=study.mean, std=study.std)
    made = {
        **like, "method": "ranked by: exact masks", "recipe": f"papr(keep={keep}, exact masks)",
        **study.scores([answers]), **study.kept(fast),
    }  # fmt: skip
    print(made, flush=True)
    return made


def plot() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read("video.csv")
    figure, (axes, bars) = plt.subplots(1, 2, figsize=(10, 4.4), dpi=160, width_ratios=(1.75, 1))
    draw_curves(axes, rows, CURVES, "top1")
    axes.set(xlabel=MACS_LABEL, ylabel="right answers, %", ylim=(55, 84))
    axes.legend(frameon=False, loc="lower right", fontsize=8)

    ranked_rows = sorted(
        (row for row in rows if row["method"].startswith("ranked by")), key=lambda row: float(row["top1"])
    )
    names = [row["method"].removeprefix("ranked by: ") for row in ranked_rows]
    values = [float(row["top1"]) for row in ranked_rows]
    bars.barh(names, values, color=["#0072b2" if name == "nano proposal" else "#9fb8c8" for name in names])
    for place, value in enumerate(values):
        bars.text(value + 1.5, place, f"{value:.0f}", va="center", fontsize=8)
    bars.set(xlabel=f"right answers, %, keep {RANKED_AT}", xlim=(0, 110))
    bars.set_title("what ranks the patches", fontsize=9, loc="left")
    bars.tick_params(axis="y", labelsize=8, length=0)
    bars.spines[["top", "right"]].set_visible(False)
    save(figure, PICTURE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plot", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.plot:
        write("video.csv", measure(args.scenes, args.draws))
    plot()
    return 0


if __name__ == "__main__":
    sys.exit(main())
