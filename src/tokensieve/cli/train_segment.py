"""`tokensieve train segment` and `tokensieve train dtop`: segmenters, and segmenters that tokens leave early."""

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

ImagesOption = Annotated[
    str, typer.Option(metavar="FOLDER|TAR", help="Pictures with a class for each pixel, to learn from.")
]
LayoutOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="How they lie: folders (images/ and labels/), ade20k, pascal-context, coco-stuff10k, coco-stuff164k, "
        "cityscapes or camvid.",
    ),
]
ValidationOption = Annotated[
    str | None,
    typer.Option(metavar="FOLDER|TAR", help="Pictures that are only looked at; default the split val of --images."),
]
LookedAtOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="At most N validation pictures, evenly spread.")
]
ClassesOption = Annotated[
    str | None, typer.Option(metavar="N|FILE", help="Of a pair of folders: how many classes, or a file of their names.")
]
SegmenterModelOption = Annotated[str | None, typer.Option(metavar="NAME", help="The backbone: a plain ViT.")]
PretrainedOption = Annotated[bool, typer.Option(help="Download the backbone's weights that no FILE gives.")]
ArgsOption = Annotated[
    str | None,
    typer.Option(metavar="JSON", help="Of the backbone's constructor; default of timm's dynamic_img_size."),
]
HeadOption = Annotated[
    str,
    typer.Option(metavar="NAME", help="segvit, segvit_v1, segvit_v2, setr_naive, setr_pup, setr_mla or linear."),
]
HeadArgsOption = Annotated[
    str | None,
    typer.Option(metavar="JSON", help='Of the head, e.g. \'{"exits": [5, 7, 11], "width": 384, "heads": 6}\'.'),
]
CropOption = Annotated[str, typer.Option(metavar="512|176x240", help="What is read at once, height x width.")]
StrideOption = Annotated[
    str | None, typer.Option(metavar="341|92x120", help="From window to window in validation; default 2/3 of the crop.")
]
StepsOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="Steps of the optimizer; default as DToP's.")]
BatchOption = Annotated[int, typer.Option(min=1, metavar="N", help="Crops a step.")]
RateOption = Annotated[float, typer.Option(metavar="RATE", help="Learning rate of the backbone, after the warm-up.")]
HeadRateOption = Annotated[float, typer.Option(metavar="TIMES", help="How many times as large that of the heads is.")]
WarmupOption = Annotated[int, typer.Option(min=0, metavar="N", help="Steps of linear warm-up.")]
DropPathOption = Annotated[float, typer.Option(metavar="RATE", help="Stochastic depth of the backbone.")]
TrainableOption = Annotated[str, typer.Option(metavar="all|heads", help="What learns.")]
PrecisionOption = Annotated[str, typer.Option(metavar="auto|fp32|bf16", help="Of the forward.")]
EveryOption = Annotated[int, typer.Option(min=1, metavar="N", help="Steps between validations.")]
CheckpointOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Steps between checkpoints; default at each validation.")
]
OutOption = Annotated[str, typer.Option(metavar="FOLDER", help="Weights, logs and checkpoints.")]
SeedOption = Annotated[int, typer.Option(min=0, metavar="N", help="Of crops and first weights.")]
WorkersOption = Annotated[int, typer.Option(min=0, metavar="N", help="Processes that make batches ahead.")]


@dataclass(frozen=True)
class SetOptions:
    """The training set and the validation set."""

    images: ImagesOption
    layout: LayoutOption = "folders"
    validation: ValidationOption = None
    looked_at: LookedAtOption = None
    classes: ClassesOption = None


@dataclass(frozen=True)
class SegmenterOptions:
    """How a segmenter is built, and how it learns."""

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
    """Train a segmenter on a plain ViT; stopped, the same command goes on where it was.

    Writes HEAD.safetensors, HEAD.json (how it is built), HEAD.csv (the log) and HEAD.checkpoint.pt into the folder.
    """
    _learn({**vars(sets), **vars(settings), "model": model, "out": out, "as_json": as_json})


def dtop(
    *,
    sets: SetOptions,
    base: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="What `train segment` trained, to go on from; without it one is begun anew."),
    ] = None,
    recipe: Annotated[
        str, typer.Option(metavar="TEXT|FILE", help="Which tokens leave; dtop, alone or with other methods.")
    ] = "dtop(threshold=0.95, keep_per_class=5)",
    model: SegmenterModelOption = None,
    settings: SegmenterOptions,
    out: OutOption = "dtop",
    as_json: JsonOption = False,
) -> None:
    """Train a segmenter that certain tokens leave early: with --base DToP's @Finetune, without its @Retrain.

    Writes HEAD_dtop.safetensors, its .json, .csv, .recipe.json and .checkpoint.pt into the folder.
    """
    options = {"base": base, "recipe": recipe, "model": model, "out": out, "as_json": as_json}
    _learn({**vars(sets), **vars(settings), **options})


def _learn(options: dict[str, Any]) -> None:
    base, with_exits = options.get("base"), "recipe" in options
    if base is not None:
        of_plan = {"model": "--model", "weights": "--weights", "args": "--args", "head_args": "--head-args"}
        for name, option in of_plan.items():
            if options[name] is not None:
                raise InputError(f"{option} belongs to a segmenter that is begun anew; --base says how it is built.")
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
        limit=options["looked_at"],
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
    read = {name: files_record(picture_set, len(picture_set), ()) for name, picture_set in sets.items()}
    if joined.is_main_process:
        print_record({"trained": [trained], "data": read}, "train_view.train_view", options["as_json"])


def _sides(text: str, option: str) -> tuple[int, int]:
    sides = numbers(text, option, separator="x")
    if len(sides) > 2:
        raise InputError(f"{option} must be a side in pixels or HEIGHTxWIDTH, such as 176x240, not {text!r}.")
    return sides[0], sides[-1]
