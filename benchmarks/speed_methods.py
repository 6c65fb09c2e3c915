"""Every method's speed at the same MACs, beside the slicing limit of the same run -> results/speed_methods.csv.

    python benchmarks/speed_methods.py [--host vit_base_patch16_224] [--methods tome,evit] [--saved 45] [--batch 8]
                                       [--seconds 20] [--threads 2] [--out speed_methods.csv]
    python benchmarks/speed_methods.py --profile gtp       # where the time goes, beside the limit; writes nothing

For each method dense model, sieved model and limit run in turns in one process. Random weights and images: speed does
not depend on them, but for ATS, which keeps what each image asks for; its limit reads the tokens that this batch kept.
DynamicViT's predictors, random as well, come on top of the host's MACs.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import timm
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from compare_methods import SPEED_AT, Study, sampled, shown
from results import write
from tokensieve import PatchSlimming, Recipe, sieve
from tokensieve.measure import SlicingLimit, macs, speed
from tokensieve.search.costs import Costs
from tokensieve.search.families import SINGLES, Proposed, Scheduled
from tokensieve.search.fit import Fit
from tokensieve.stream import Sieved

TOP = 15
"""Operators that a profile shows."""


def recipes(study: Study, saved: int) -> dict[str, Callable[[], Recipe]]:
    """Method -> how to make the recipe that takes the host's MACs less `saved` per cent."""
    costs = Costs(sieve(study.model), study.size)
    fit = Fit(costs, costs.dense * (1 - saved / 100))
    exact = Fit(costs, fit.target, readout=True)

    def dynamic(thousandths: int) -> Recipe:
        return Recipe.parse(f"dynamicvit(keep={thousandths / 1000})")

    def single(name: str) -> Recipe:
        return SINGLES[name].recipe({}, SINGLES[name].variants()[0], fit)

    return {
        "papr, centre": partial(Proposed({"significance": "centre"}).recipe, {}, {}, fit),
        **{name: partial(single, name) for name in SINGLES if name != "ats"},
        "ats": partial(sampled, study, fit.target),
        "dynamicvit": partial(fit.count, 1, 999, dynamic),
        "patch_slimming, A": partial(thinned, fit, "A"),
        "patch_slimming, B": partial(thinned, fit, "B"),
        "tome + readout": partial(Scheduled("tome").recipe, {}, {}, exact),
        "guarded + readout": partial(Scheduled("guarded").recipe, {}, {}, exact),
    }


def thinned(fit: Fit, form: Literal["A", "B"]) -> Recipe:
    """Patch Slimming without a search: as many patches fewer in every block, what stays spread evenly."""
    patches = fit.costs.patches

    def build(gone: list[int]) -> Recipe:
        kept, nested = list(range(patches)), []
        for count in gone:
            stay = max(len(kept) - count, 1)
            kept = [kept[i * len(kept) // stay] for i in range(stay)]
            nested.append(tuple(kept))
        return Recipe.of(PatchSlimming(tuple(nested), form))

    return fit.schedule([1.0] * fit.costs.depth, build)


def measure(method: str, recipe: Recipe, study: Study, images: Tensor, seconds: float) -> dict[str, Any]:
    fast = sieve(study.model, recipe, pretrained=False)
    counted: dict[str, Any] = {"images": images} if method == "ats" else {}
    took = speed(fast, study.model, images, seconds=seconds)
    row: dict[str, Any] = {
        "host": study.name, "method": method, "recipe": shown(recipe), "batch": images.shape[0],
        "macs_ratio": macs(study.model, study.size) / macs(fast, study.size, **counted),
        "limit": took.limit, "ratio": took.ratio, "low": took.low, "high": took.high, "of_limit": took.of_limit,
        "of_limit_low": took.of_limit_low, "of_limit_high": took.of_limit_high, "rounds": took.rounds,
    }  # fmt: skip
    print(
        f"{method:18} MACs {row['macs_ratio']:.3f}x  limit {took.limit:.3f}  ratio {took.ratio:.3f} "
        f"[{took.low:.3f} {took.high:.3f}]  of limit {took.of_limit:.3f}  {row['recipe']}",
        flush=True,
    )
    return row


def compare_operators(fast: Sieved, limit: Callable[[Tensor], object], images: Tensor, calls: int = 5) -> None:
    """Print the operators that the sieved call spends most on, each beside the limit's."""
    times, counts = zip(*(_operators(partial(part, images), calls) for part in (fast, limit)), strict=True)
    total = [sum(time.values()) for time in times]
    print(f"{shown(fast.recipe)}\n")
    print(f"{'ms of a call, children left out':54} {'sieved':>9} {'limit':>9} {'more':>9}  calls of each")
    names = [name for name, _ in (times[0] - times[1]).most_common(TOP)]
    names += [name for name, _ in times[0].most_common(TOP) if name not in names]
    for name in names[:TOP]:
        ours, theirs = times[0][name], times[1][name]
        print(f"{name[:54]:54} {ours:9.2f} {theirs:9.2f} {ours - theirs:9.2f}  {counts[0][name]} {counts[1][name]}")
    print(f"{'all':54} {total[0]:9.2f} {total[1]:9.2f} {total[0] - total[1]:9.2f}")


def _operators(call: Callable[[], object], calls: int) -> tuple[Counter[str], Counter[str]]:
    """Milliseconds of a call in each operator, and how often it runs in one."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as record:
        for _ in range(calls):
            call()
    events = record.key_averages()
    times = Counter({event.key: event.self_cpu_time_total / 1000 / calls for event in events})
    return times, Counter({event.key: event.count // calls for event in events})


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="vit_base_patch16_224", help="a name that timm knows")
    parser.add_argument("--methods", help="by default all; those with a comma in their name come with their first word")
    parser.add_argument("--saved", type=int, default=SPEED_AT, help="per cent of the host's MACs")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20, help="for each method, after warm-up; 7 rounds at least")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="speed_methods.csv")
    parser.add_argument("--profile", metavar="METHOD", help="print its operators beside the limit's instead")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = timm.create_model(args.host).eval()
    size = (3, *model.patch_embed.img_size)
    images = torch.randn(args.batch, *size)
    study = Study(args.host, model, size, [], [images], {})
    known = recipes(study, args.saved)
    asked = args.profile or args.methods
    names = asked.split(",") if asked else list(known)
    chosen = [name for name in known if name in names or name.split(",")[0] in names]
    if missing := [name for name in names if name not in known and name not in {k.split(",")[0] for k in known}]:
        parser.error(f"{missing[0]} is none of {'; '.join(known)}")
    if args.profile:
        for name in chosen:
            fast = sieve(model, known[name](), pretrained=False)
            compare_operators(fast, SlicingLimit.on(fast, images), images)
        return 0
    rows: list[dict[str, Any]] = []
    for name in chosen:
        rows.append(measure(name, known[name](), study, images, args.seconds))
        write(args.out, rows)  # what is measured stays, should a long run be cut short
    return 0


if __name__ == "__main__":
    sys.exit(main())
