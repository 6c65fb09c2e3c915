"""`tokensieve train segment` and `tokensieve train dtop`: train segmenters, without and with early exits for tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from .options import JsonOption, ThreadsOption, WeightsOption, numbers
from .output import print_record, say
from .train_options import json_object, tell

BASE_STEPS, FINETUNE_STEPS = 160_000, 40_000

ImagesOption = Annotated[str, typer.Option(metavar="FOLDER|TAR", help="Training pictures with a class for each pixel.")]
LayoutOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Layout of the dataset: folders (images/ and labels/), ade20k, pascal-context, coco-stuff10k, "
        "coco-stuff164k, cityscapes or camvid.",
    ),
]
ValidationOption = Annotated[
    str | None,
    typer.Option(metavar="FOLDER|TAR", help="Validation pictures; default the split val of --images."),
]
ValidationLimitOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="At most N validation pictures, evenly spread.")
]
ClassesOption = Annotated[
    str | None,
    typer.Option(metavar="N|FILE", help="For the layout folders: number of classes, or a file of their names."),
]
SegmenterModelOption = Annotated[str | None, typer.Option(metavar="NAME", help="The backbone: a plain ViT.")]
PretrainedOption = Annotated[bool, typer.Option(help="Download the backbone's weights unless --weights is given.")]
ArgsOption = Annotated[
    str | None,
    typer.Option(metavar="JSON", help="Arguments of the backbone's constructor; default for timm dynamic_img_size."),
]
HeadOption = Annotated[
    str,
    typer.Option(metavar="NAME", help="segvit, segvit_v1, segvit_v2, setr_naive, setr_pup, setr_mla or linear."),
]
HeadArgsOption = Annotated[
    str | None,
    typer.Option(
        metavar="JSON", help='Arguments of the head, e.g. \'{"exits": [5, 7, 11], "width": 384, "heads": 6}\'.'
    ),
]
CropOption = Annotated[str, typer.Option(metavar="512|176x240", help="Crop that the model reads, height x width.")]
StrideOption = Annotated[
    str | None, typer.Option(metavar="341|92x120", help="Step between validation windows; default 2/3 of the crop.")
]
StepsOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="Optimizer steps; default those of DToP.")]
BatchOption = Annotated[int, typer.Option(min=1, metavar="N", help="Crops per step.")]
RateOption = Annotated[float, typer.Option(metavar="RATE", help="Learning rate of the backbone, after the warm-up.")]
HeadRateOption = Annotated[
    float, typer.Option(metavar="TIMES", help="Learning rate of the heads, as a multiple of --lr.")
]
WarmupOption = Annotated[int, typer.Option(min=0, metavar="N", help="Steps of linear warm-up.")]
DropPathOption = Annotated[float, typer.Option(metavar="RATE", help="Stochastic depth of the backbone.")]
TrainableOption = Annotated[str, typer.Option(metavar="all|heads", help="Parameters to train.")]
PrecisionOption = Annotated[str, typer.Option(metavar="auto|fp32|bf16", help="Precision of the training.")]
EveryOption = Annotated[int, typer.Option(min=1, metavar="N", help="Steps between validations.")]
CheckpointOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Steps between checkpoints; default at each validation.")
]
OutOption = Annotated[str, typer.Option(metavar="FOLDER", help="Folder for weights, logs and checkpoints.")]
SeedOption = Annotated[int, typer.Option(min=0, metavar="N", help="Random seed of crops and initial weights.")]
WorkersOption = Annotated[int, typer.Option(min=0, metavar="N", help="Data loader processes.")]


@dataclass(frozen=True)
class SetOptions:
    """The training set and the validation set."""

    images: ImagesOption
    layout: LayoutOption = "folders"
    validation: ValidationOption = None
    validation_limit: ValidationLimitOption = None
    classes: ClassesOption = None


@dataclass(frozen=True)
class SegmenterOptions:
    """The architecture of a segmenter and the settings of its training."""

    weights: WeightsOption = None
    pretrained: PretrainedOption = True
    args: ArgsOption = None
    head: HeadOption = "segvit"
    head_args: HeadArgsOption = None
    crop: CropOption = "512"
    stride: StrideOption = None
    steps: StepsOption = None
    batch: BatchOption = 16
    lr: RateOption = 2e-5
    head_lr: HeadRateOption = 10.0
    warmup: WarmupOption = 1500
    drop_path: DropPathOption = 0.1
    trainable: TrainableOption = "all"
    precision: PrecisionOption = "auto"
    validate_every: EveryOption = 1000
    checkpoint_every: CheckpointOption = None
    seed: SeedOption = 0
    workers: WorkersOption = 1
    threads: ThreadsOption = None


def segment(
    *,
    sets: SetOptions,
    model: SegmenterModelOption = "vit_base_patch16_224",
    settings: SegmenterOptions,
    out: OutOption = "segment",
    as_json: JsonOption = False,
) -> None:
    """Train a segmenter with a plain ViT as its backbone. The same command resumes a stopped training.

    Writes HEAD.safetensors, HEAD.json (the architecture), HEAD.csv (the log) and HEAD.checkpoint.pt into the folder.
    """
    _train({**vars(sets), **vars(settings), "model": model, "out": out, "as_json": as_json})


def dtop(
    *,
    sets: SetOptions,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Segmenter of `train segment` to fine-tune; without it training starts anew."
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option(metavar="TEXT|FILE", help="The recipe to train with: dtop, alone or with other methods.")
    ] = "dtop(threshold=0.95, keep_per_class=5)",
    model: SegmenterModelOption = None,
    settings: SegmenterOptions,
    out: OutOption = "dtop",
    as_json: JsonOption = False,
) -> None:
    """Train a segmenter with early exits for confident tokens: with --base DToP's @Finetune, without it its @Retrain.

    Writes HEAD_dtop.safetensors, its .json, .csv, .recipe.json and .checkpoint.pt into the folder.
    """
    options = {"base": base, "recipe": recipe, "model": model, "out": out, "as_json": as_json}
    _train({**vars(sets), **vars(settings), **options})


def _train(options: dict[str, Any]) -> None:
    base, with_exits = options.get("base"), "recipe" in options
    if base is not None:
        of_plan = {"model": "--model", "weights": "--weights", "args": "--args", "head_args": "--head-args"}
        for name, option in of_plan.items():
            if options[name] is not None:
                raise InputError(f"{option} cannot be given with --base, whose segmenter already has it.")
    import torch

    from ..data import segmentation_set
    from ..segmentation.plan import SegmenterPlan
    from ..show.files import files_record, tell_files
    from ..train import loop
    from ..train.segmentation import SegmentSettings, prepare, prepare_dtop

    joined = loop.devices()
    if options["threads"] is not None:
        torch.set_num_threads(options["threads"])
    layout, validation, classes = options["layout"], options["validation"], options["classes"]
    separate = layout == "folders" and validation is not None
    training = segmentation_set(options["images"], layout, None if separate else "train", classes=classes)
    unseen = segmentation_set(
        validation or options["images"],
        layout,
        None if separate else "val",
        classes=classes,
        limit=options["validation_limit"],
    )
    for pictures in (training, unseen):
        tell_files(pictures)
    settings = SegmentSettings(
        steps=options["steps"] or (FINETUNE_STEPS if base else BASE_STEPS),
        batch_size=options["batch"],
        **{
            name: options[name]
            for name in (
                "lr", "head_lr", "warmup", "drop_path", "trainable", "precision", "seed", "validate_every",
                "checkpoint_every", "workers",
            )
        },
    )  # fmt: skip
    plan = None
    if base is None:
        crop = _sides(options["crop"], "--crop")
        stride = _sides(options["stride"], "--stride") if options["stride"] else (crop[0] * 2 // 3, crop[1] * 2 // 3)
        plan = SegmenterPlan(
            options["model"] or "vit_base_patch16_224", training.classes, options["head"],
            json_object(options["head_args"], "--head-args", '{"width": 384}') or {},
            json_object(options["args"], "--args", '{"img_size": 512}'), crop=crop, stride=stride,
        )  # fmt: skip
    folder = Path(options["out"])
    start: dict[str, Any] = {
        "backbone_weights": options["weights"],
        "pretrained": options["pretrained"],
        "say": say,
    }
    if with_exits:
        config, task = prepare_dtop(plan, options["recipe"], training, unseen, folder, settings, base=base, **start)
    else:
        assert plan is not None
        config, task = prepare(plan, training, unseen, folder, settings, **start)
    weights = loop.train(config, task, folder, report=tell)
    crops_seen = config.steps(task.samples) * config.batch_size
    plan_of = {"name": task.name, "images": crops_seen, **asdict(config), "task": task.identity}
    trained = {"model": task.name, "weights": str(weights), "plan": plan_of, "log": loop.read_log(folder, task.name)}
    sets = {"images": task.known, "validation": task.unseen}
    files_read = {name: files_record(picture_set, len(picture_set), ()) for name, picture_set in sets.items()}
    if joined.is_main_process:
        print_record({"trained": [trained], "data": files_read}, "train_view.train_view", options["as_json"])


def _sides(text: str, option: str) -> tuple[int, int]:
    sides = numbers(text, option, separator="x")
    if len(sides) > 2:
        raise InputError(f"{option} must be a side in pixels or HEIGHTxWIDTH, such as 176x240, not {text!r}.")
    return sides[0], sides[-1]
