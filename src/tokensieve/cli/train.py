"""`tokensieve train`: the recipes behind the bundled weights."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError, nearest
from .options import JsonOption, ThreadsOption
from .output import print_record, say

PAIRS = {"nano": ("nano_convnet", "nano_vit")}


def train(
    what: Annotated[str, typer.Argument(metavar="nano", help="What to train: the bundled pair.")],
    out: Annotated[
        str, typer.Option(metavar="FOLDER", help="Weights, logs and checkpoints; default what is trained.")
    ] = "",
    only: Annotated[str | None, typer.Option(metavar="NAME", help="One model of the pair.")] = None,
    scenes: Annotated[
        int | None, typer.Option(min=64, metavar="N", help="Scenes each model sees; default its plan's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of scenes and first weights.")] = 0,
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Processes that draw scenes ahead.")] = 1,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the bundled pair on generated scenes: under two hours on two cores, and it goes on where it was stopped.

    Writes NAME.safetensors, NAME.csv (the log) and NAME.checkpoint.pt for each model into the folder.
    """
    if what not in PAIRS:
        raise InputError(f"There is nothing called {what!r} to train{nearest(what, PAIRS)}: tokensieve train nano.")
    names = PAIRS[what]
    if only is not None and only not in names:
        raise InputError(f"--only must be one of {', '.join(names)}, not {only!r}.")
    import torch

    from ..train import nano

    if threads is not None:
        torch.set_num_threads(threads)
    folder, trained = Path(out or what), list[dict[str, Any]]()
    for name in names if only is None else (only,):
        plan = replace(nano.PLANS[name], seed=seed, scenes=scenes or nano.PLANS[name].scenes)
        weights = nano.train(plan, folder, workers=workers, report=_tell)
        rows = nano.read_log(folder, name)
        trained.append({"model": name, "weights": str(weights), "plan": asdict(plan), "log": rows})
    print_record({"trained": trained}, "train_view.train_view", as_json)


def _tell(row: dict[str, Any]) -> None:
    left = row["seconds"] / row["step"] * (row["steps"] - row["step"])
    say(
        f"{row['model']} step {row['step']} of {row['steps']}, {row['seconds'] / 60:.0f} min, about {left / 60:.0f} "
        f"to go: loss {row['loss']:.3f}, right on training scenes {row['train_top1']:.1f} %, on validation scenes "
        f"{row['validation_top1']:.1f} %"
    )
