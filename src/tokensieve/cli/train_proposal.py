"""`tokensieve train proposal`: train a tiny ConvNet to rank patches by their importance for a host."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .opening import Media, read_spec
from .options import JsonOption, NetworkOptions, PlaceOptions, PreprocessingOption, WorkersOption
from .output import print_record, say
from .train_options import tell


def proposal(
    *,
    data: Annotated[str, typer.Option(metavar="FOLDER", help="Pictures, without labels: a folder, a tar, a data set.")],
    network: NetworkOptions,
    out: Annotated[
        str, typer.Option(metavar="FOLDER", help="Folder for weights, recipe, log and checkpoint.")
    ] = "proposal",
    target: Annotated[
        str,
        typer.Option(
            metavar="gradient|attention|hidden", help="The host's measure of importance; see docs/proposals.md."
        ),
    ] = "gradient",
    loss: Annotated[
        str, typer.Option(metavar="listwise|pairwise|regression", help="Loss on the ranking.")
    ] = "listwise",
    epochs: Annotated[float, typer.Option(metavar="N", help="Passes over the pictures.")] = 20,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures per step.")] = 64,
    lr: Annotated[float, typer.Option(metavar="RATE", help="Learning rate after the warm-up.")] = 4e-3,
    keep: Annotated[float, typer.Option(metavar="SHARE", help="Keep ratio of the recipe that is written.")] = 0.7,
    limit: Annotated[int | None, typer.Option(min=20, metavar="N", help="At most N pictures, evenly spread.")] = None,
    preprocessing: PreprocessingOption = "timm",
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Random seed of initial weights, order and held-out set.")
    ] = 0,
    workers: WorkersOption = 0,
    machine: PlaceOptions,
    as_json: JsonOption = False,
) -> None:
    """Train a tiny ConvNet on your own pictures, without labels, to rank patches by their importance for a host.

    It costs 1 % of the MACs of DeiT-Tiny. The recipe that is written, proposal.json, drops the patches of lowest rank
    before the first block. The same command resumes a stopped training.
    """
    from .._files import check_folder

    folder: Path = check_folder(out)
    spec = read_spec(network, machine, recipe="", preprocessing=preprocessing)
    from ..show.files import files_record
    from ..show.progress import working
    from ..train.loop import devices
    from ..train.proposals import ProposalSettings, train_proposal

    settings = ProposalSettings(
        target=target, loss=loss, epochs=epochs, batch_size=batch, lr=lr, seed=seed, workers=workers
    )
    joined = devices()
    media = Media(data, limit=limit)
    with working("opening the model"):
        dense, _, prepared = spec.open()
    pictures = media.prepared(prepared)
    result = train_proposal(
        dense, pictures, folder, settings, keep=keep, mean=prepared.mean, std=prepared.std, report=tell, say=say
    )
    plan = {"name": "nano_proposal", "host": spec.model, **asdict(settings)}
    trained: dict[str, Any] = {
        "model": "nano_proposal",
        "weights": str(result.weights),
        "plan": plan,
        "log": result.log,
    }
    record = {
        "trained": [{**trained, "recipe": str(result.recipe)}],
        "data": {"images": files_record(pictures, len(pictures), ())},
    }
    if joined.is_main_process:
        print_record(record, "train_view.train_view", as_json)
