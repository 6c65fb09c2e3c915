"""Which patches to read: a proposal learnt without labels, beside a classifier, the centre, chance and no proposal
-> results/proposal.csv.

    python benchmarks/proposal.py oracle --limit 60              # the targets themselves as maps: which ranks best
    python benchmarks/proposal.py train --target gradient --loss listwise --folder FOLDER [--pictures N]
    python benchmarks/proposal.py judge --folder FOLDER [--limit N]
    python benchmarks/proposal.py scenes --folder FOLDER         # nano_vit, taught and judged on scenes
    python benchmarks/proposal.py time --folder FOLDER           # on a quiet machine: its share of the time
    python benchmarks/proposal.py maps --folder FOLDER           # docs/pictures/proposals.png

DeiT-Tiny at exactly 224 pixels: taught on photographs of imagenette_train, judged on those of compare_methods.py, at
keep 0.7 and 0.5, and at the share at which its MACs, the proposal's included, are what the learnt proposal's are at 0.7
and 0.5 (`equal` in the column `at`). Without a proposal the tokens are merged instead, by `guarded`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compare_methods import DATA, WEIGHTS
from results import ROOT, update
from tokensieve import PaPr, Recipe, sieve
from tokensieve.data import Preprocessing, image_set, load_batches, photograph_set, scene_set
from tokensieve.measure import fidelity, macs, speed
from tokensieve.measure.outputs import collect_outputs
from tokensieve.train.proposals import NAME, ProposalSettings, train_proposal
from tokensieve.train.rankings import TARGETS, ranking
from tokensieve.zoo import create

SIZE = (3, 224, 224)
KEEPS = (0.7, 0.5)
SQUEEZENET = {"proposal": "squeezenet1_1", "proposal_weights": str(WEIGHTS / "squeezenet1_1.safetensors"), "layer": -2}
SEEDS = 3
"""Of chance, whose figures are the mean."""


def say(told: Any) -> None:
    print(told, file=sys.stderr, flush=True)


def host() -> nn.Module:
    return create("deit_tiny_patch16_224", weights=WEIGHTS / "deit_tiny_patch16_224.safetensors").model.eval()


def photographs(names: tuple[str, ...], model: nn.Module, limit: int | None) -> list[tuple[Tensor, Tensor]]:
    prepared = Preprocessing.papers(model)
    return [
        (batch.images, batch.labels)
        for name in names
        for batch in load_batches(
            image_set(DATA / name, prepared, classes=DATA / "imagenet_classes.json", limit=limit), 50
        )
    ]


def row(model: nn.Module, recipe: Any, batches: Any, dense: Tensor, size: Any, **told: Any) -> dict[str, Any]:
    fast = sieve(model, recipe)
    found = fidelity(fast, dense, batches)
    say(f"{told}  KL {found.kl:.4f}  agreement {found.agreement:.2f}")
    whole = macs(model, size)
    return {
        **told, "images": found.count, "kl": found.kl, "agreement": found.agreement,
        "gmac": macs(fast, size) / 1e9, "gmac_dense": whole / 1e9,
        "gmac_proposal": (macs(fast, size) - macs(fast, size, proposal=False)) / 1e9,
    }  # fmt: skip


def oracle(args: argparse.Namespace) -> None:
    """What each target is worth as a map, before anything is learnt."""
    model, rows = host(), []
    batches = photographs(("imagenette_val.tar",), model, args.limit or 60)
    dense = collect_outputs(model, batches)
    maps: dict[str, Any] = {}
    for target in TARGETS:
        ranked = ranking(target, sieve(model))
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            maps[target] = [ranked(images).float() for images, _ in batches]
        say(target)
    for keep in KEEPS:
        for target, each in maps.items():
            shown = iter(each)
            recipe = PaPr(keep=keep, significance=lambda images, shown=shown: next(shown))
            rows.append(row(model, recipe, batches, dense, SIZE, set="photographs", proposal=f"{target}, itself",
                            at=f"keep {keep}"))  # fmt: skip
            update("proposal.csv", rows, *KEY)


KEY = ("set", "proposal", "at")


def train(args: argparse.Namespace) -> None:
    model = host()
    pictures = image_set(DATA / "imagenette_train.tar", Preprocessing.papers(model), limit=args.pictures)
    settings = ProposalSettings(target=args.target, loss=args.loss, epochs=args.epochs)
    train_proposal(model, pictures, args.folder, settings, report=say, say=say)


def baselines(weights: str, size: Any = None) -> dict[str, Any]:
    learnt = {"proposal": NAME, "proposal_weights": weights, "proposal_size": size}
    return {
        "learnt": [learnt],
        "centre": [{"significance": "centre"}],
        "random": [{"significance": "random", "seed": seed} for seed in range(SEEDS)],
    }


def at_cost(model: nn.Module, settings: dict[str, Any], wanted: float, size: Any) -> float:
    """The largest share of tokens with which a map costs no more MACs than this, its proposal included."""
    low, high = 0.02, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        below = macs(sieve(model, PaPr(keep=middle, **settings)), size) <= wanted
        low, high = (middle, high) if below else (low, middle)
    return low


def judge(args: argparse.Namespace) -> None:
    model, rows = host(), []
    batches = photographs(("imagenette_val.tar", "imagenet_val_a"), model, args.limit)
    dense = collect_outputs(model, batches)
    compete(args, model, batches, dense, SIZE, "photographs", {"squeezenet1_1": [SQUEEZENET]}, rows)


def compete(
    args: argparse.Namespace, model: Any, batches: Any, dense: Tensor, size: Any, of: str, more: Any, rows: Any
) -> None:
    every = baselines(str(args.folder / f"{NAME}.safetensors"), args.size) | more
    for keep in KEEPS:
        wanted = macs(sieve(model, PaPr(keep=keep, **every["learnt"][0])), size)
        for title, each in every.items():
            points = {f"keep {keep}": keep}
            if title != "learnt":
                points[f"equal to keep {keep}"] = at_cost(model, each[0], wanted, size)
            for at, share in points.items():
                found = [
                    row(model, PaPr(keep=share, **settings), batches, dense, size, set=of, proposal=title, at=at,
                        keep=share)
                    for settings in each
                ]  # fmt: skip
                for name in ("kl", "agreement"):
                    found[0][name] = sum(one[name] for one in found) / len(found)
                rows.append(found[0])
                update("proposal.csv", rows, *KEY)
        share = merged_share(model, wanted, size)
        rows.append(row(model, share, batches, dense, size, set=of, proposal="none (guarded)",
                        at=f"equal to keep {keep}"))  # fmt: skip
        update("proposal.csv", rows, *KEY)


def merged_share(model: nn.Module, wanted: float, size: Any) -> Recipe:
    """Guarded merging of one number of tokens in every block, the least that costs no more than this."""
    for r in range(1, 60):
        recipe = Recipe.parse(f"guarded(r={r})")
        if macs(sieve(model, recipe), size) <= wanted:
            return recipe
    raise SystemExit("guarded merging does not come down to these MACs")


def scenes(args: argparse.Namespace) -> None:
    """The bundled pair's host: taught on scenes, judged on others."""
    model, mean, std = create("nano_vit")
    prepared = Preprocessing.of(model)
    known = scene_set(prepared, args.pictures or 2000, seed=1)
    settings = ProposalSettings(target=args.target, loss=args.loss, epochs=args.epochs)
    train_proposal(model, known, args.folder, settings, mean=mean, std=std, report=say, say=say)
    batches = [(batch.images, batch.labels) for batch in load_batches(scene_set(prepared, args.limit or 1000), 100)]
    args.size = (224, 224)
    compete(args, model.eval(), batches, collect_outputs(model, batches), (3, 112, 112), "scenes",
            {"nano_convnet": [{"proposal": "nano_convnet"}]}, [])  # fmt: skip


def time(args: argparse.Namespace) -> None:
    """Time against dense and against the slicing limit, of PaPr with the learnt proposal and with the paper's."""
    rows = []
    for name in ("vit_small_patch16_224", "vit_base_patch16_224"):
        model = create(name, pretrained=False).model.eval()
        images = torch.randn(args.batch, *SIZE)
        for proposal in (NAME, "mobileone_s0"):
            fast = sieve(model, PaPr(keep=0.5, proposal=proposal), pretrained=False)
            took = speed(fast, model, images)
            rows.append(
                {"set": f"time, {name}, batch {args.batch}", "proposal": proposal, "at": "keep 0.5",
                 "ratio": took.ratio, "limit": took.limit, "of_limit": took.ratio / took.limit}
            )  # fmt: skip
            say(rows[-1])
            update("proposal.csv", rows, *KEY)


def maps(args: argparse.Namespace) -> None:
    """Photographs of scikit-image and scikit-learn, and what each proposal says of them."""
    import matplotlib.pyplot as plt

    model = host()
    prepared = Preprocessing.papers(model)
    pictures = photograph_set(prepared)
    chosen = range(min(len(pictures), args.limit or 6))
    images = torch.stack([pictures[index][0] for index in chosen])
    learnt = {"proposal": NAME, "proposal_weights": str(args.folder / f"{NAME}.safetensors")}
    shown = {
        "learnt, 0.009 GMACs": sieve(model, PaPr(keep=0.5, **learnt)).trace(images),
        "squeezenet1_1, 0.27 GMACs": sieve(model, PaPr(keep=0.5, **SQUEEZENET)).trace(images),
    }
    mean, std = (torch.tensor(values)[:, None, None] for values in (prepared.mean, prepared.std))
    figure, axes = plt.subplots(1 + 2 * len(shown), len(chosen), figsize=(1.9 * len(chosen), 9.4), layout="constrained")
    plain = (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1)
    for column in range(len(chosen)):
        axes[0][column].imshow(plain[column])
        for number, trace in enumerate(shown.values()):
            axes[1 + 2 * number][column].imshow(trace.significance[column], cmap="magma")
            mask = torch.zeros(196)
            mask[trace.kept[column]] = 1
            mask = mask.view(14, 14).repeat_interleave(16, 0).repeat_interleave(16, 1)[..., None]
            axes[2 + 2 * number][column].imshow(plain[column] * mask + (1 - mask))
    titles = ["photograph", *(line for title in shown for line in (f"{title}\nits map", "the half that is read"))]
    for axis, title in zip(axes[:, 0], titles, strict=True):
        axis.set_ylabel(title, fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.savefig(ROOT / "docs" / "pictures" / "proposals.png", dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("oracle", "train", "judge", "scenes", "time", "maps"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--target", choices=TARGETS, default="gradient")
    parser.add_argument("--loss", default="listwise")
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--pictures", type=int, help="to learn from")
    parser.add_argument("--limit", type=int, help="pictures of each set to judge on")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--bf16", action="store_true", help="of the targets")
    args = parser.parse_args()
    args.size = None
    globals()[args.what](args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
