"""`tokensieve heal`: train a model so that its outputs under a recipe match its dense outputs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from .opening import Media, read_spec, record_of
from .options import (
    ClassesOption,
    JsonOption,
    NetworkOptions,
    PlaceOptions,
    PreprocessingOption,
    ProposalWeightsOption,
    RecipeOption,
    WorkersOption,
)
from .output import print_record, say
from .train_options import tell


def heal(
    *,
    recipe: RecipeOption,
    data: Annotated[str, typer.Option(metavar="FOLDER", help="Pictures, without labels: a folder, a tar, a data set.")],
    out: Annotated[
        str, typer.Option(metavar="FOLDER", help="Folder for best.json, model.safetensors and checkpoints.")
    ],
    network: NetworkOptions,
    proposal_weights: ProposalWeightsOption = None,
    trainable: Annotated[
        str,
        typer.Option(metavar="all|lora|norms", help="Train all parameters, LoRA adapters (peft), or norms and biases."),
    ] = "all",
    epochs: Annotated[float, typer.Option(metavar="N", help="Passes over the pictures.")] = 8,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures per step.")] = 32,
    lr: Annotated[
        float | None, typer.Option(metavar="RATE", help="Learning rate; default 2e-5 for all, 2e-4 for lora and norms.")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, metavar="N", help="Rank of the LoRA adapters.")] = 16,
    views: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Views of each picture: whole, mirrored, cropped, cropped and mixed."),
    ] = 4,
    mixed: Annotated[bool, typer.Option(help="Mix every second view from the fourth on with other pictures.")] = True,
    patience: Annotated[
        int, typer.Option(min=0, metavar="N", help="Stop after N validations without improvement; 0: never.")
    ] = 4,
    test_data: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="More pictures to evaluate on, with or without labels.")
    ] = None,
    classes: ClassesOption = None,
    limit: Annotated[int | None, typer.Option(min=20, metavar="N", help="At most N pictures of each set.")] = None,
    preprocessing: PreprocessingOption = "timm",
    precision: Annotated[str, typer.Option(metavar="auto|fp32|bf16", help="Precision of the training.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Random seed of order, crops and held-out set.")] = 0,
    workers: WorkersOption = 0,
    machine: PlaceOptions,
    as_json: JsonOption = False,
) -> None:
    """Train a copy of the model, without labels, so that its outputs under a recipe match the dense model's.

    The same command resumes a stopped training. To open the result, use `--model NAME --weights
    FOLDER/model.safetensors --recipe FOLDER/best.json`.
    """
    if classes is not None and test_data is None:
        raise InputError("--classes maps the folders of --test-data to classes: give --test-data too.")
    from .._files import check_folder

    folder = check_folder(out)
    spec = read_spec(network, machine, recipe=recipe, proposal_weights=proposal_weights, preprocessing=preprocessing)
    from ..data import load_batches
    from ..measure.outputs import class_count
    from ..show.files import files_record
    from ..show.progress import working
    from ..show.record import compared
    from ..train.heal_task import HealSettings
    from ..train.healing import BeforeAfter
    from ..train.healing import heal as run_healing
    from ..train.loop import devices
    from ..train.views import set_of

    settings = HealSettings(
        trainable=trainable, epochs=epochs, batch_size=batch, lr=lr, rank=rank, views=views, mixed=mixed,
        patience=patience or None, precision=precision, seed=seed, workers=workers,
    )  # fmt: skip
    joined = devices()
    media = Media(data, limit=limit)
    test_media = None if test_data is None else Media(test_data, classes=classes, limit=limit)
    with working("opening the model"):
        dense, fast, prepared = opened = spec.open()
    pictures = media.prepared(prepared)
    test_batches = None if test_media is None else load_batches(test_media.prepared(prepared), batch, workers)
    if test_batches is not None and classes is None:
        folders = getattr(test_batches.dataset, "classes", ())
        if len(folders) != class_count(dense):  # the folders are not the model's classes: drop the labels
            test_batches = load_batches(set_of(test_batches), batch, workers)
    healed = run_healing(
        dense, fast.recipe, pictures, folder, settings, test_images=test_batches, mean=prepared.mean, std=prepared.std,
        pretrained=spec.pretrained, report=tell, say=say,
    )  # fmt: skip

    def figures(pair: BeforeAfter) -> dict[str, Any]:
        return {"before": compared(pair.before), "after": compared(pair.after)}

    record: dict[str, Any] = {
        **record_of(spec, opened),
        "data": data,
        "test_data": test_data,
        "preprocessing": {"name": preprocessing, **asdict(prepared)},
        "settings": asdict(settings),
        "step": healed.step,
        "steps": healed.steps,
        "interpolation": healed.interpolation,
        "heldout_figures": figures(healed.heldout),
        "test_figures": None if healed.test is None else figures(healed.test),
        "warnings": list(healed.warnings),
        "weights_mb": healed.mb,
        "log": healed.log,
        **files_record(pictures, len(pictures), ()),
        "out": {
            name: str(path)
            for name, path in (("recipe", healed.recipe), ("weights", healed.weights), ("adapter", healed.adapter))
            if isinstance(path, Path)
        },
    }
    if joined.is_main_process:
        print_record(record, "heal_view.heal_view", as_json)
