"""`tokensieve train`: train the bundled models, or small models on folders of photographs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError, nearest
from .options import JsonOption, ThreadsOption
from .output import print_record, say
from .train_options import json_object, tell

ARGS = '{"drop_path_rate": 0.1}'
VIDEO, SEGMENTER = ("nano_video", "nano_video_proposal"), "nano_segmenter"
BUNDLED = {
    "nano": ("nano_convnet", "nano_vit", "nano_convnext", SEGMENTER),
    **{name: (name,) for name in VIDEO},
}


def train(
    what: Annotated[
        str,
        typer.Argument(
            metavar="nano|NAME|segment|dtop|proposal",
            help=f"nano (the bundled image models), {' or '.join(VIDEO)}; with --images a timm model; or see below.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(metavar="FOLDER", help="Folder for weights, logs and checkpoints; default the first argument."),
    ] = "",
    only: Annotated[str | None, typer.Option(metavar="NAME", help="One of the bundled models.")] = None,
    scenes: Annotated[
        int | None,
        typer.Option(min=64, metavar="N", help="Training scenes per model; default that of its configuration."),
    ] = None,
    images: Annotated[
        str | None, typer.Option(metavar="FOLDER|TAR", help="Training photographs in class folders.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option(metavar="FOLDER|TAR", help="Validation photographs of the same classes.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Passes over the photographs; default 60.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=32, metavar="PIXELS", help="Side of the photographs in pixels; default 128.")
    ] = None,
    args: Annotated[str | None, typer.Option(metavar="JSON", help="Arguments of the model's constructor.")] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="NAME", help="A model to distil from; it runs once on each photograph.")
    ] = None,
    teacher_weights: Annotated[str | None, typer.Option(metavar="FILE", help="The teacher's weights.")] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Random seed of images and initial weights.")] = 0,
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Data loader processes.")] = 1,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the bundled models on generated scenes, or a timm model on photographs. Resumes if it was stopped.

    nano means all bundled models that read images; nano_video and nano_video_proposal are trained on moving scenes.

    Writes NAME.safetensors, NAME.csv (the log) and NAME.checkpoint.pt for each model into the folder.

    `tokensieve train segment` trains segmenters, `tokensieve train dtop` segmenters with early exits for tokens, and
    `tokensieve train proposal` a proposal that ranks patches for a host; see the --help of each.
    """
    if images is None and what not in BUNDLED:
        raise InputError(
            f"There is no bundled model {what!r} to train{nearest(what, BUNDLED)}: use tokensieve train nano, or a "
            "model's name with --images and --validation."
        )
    if images is not None and (validation is None or only or scenes):
        raise InputError("Training on photographs needs --images and --validation, without --only and --scenes.")
    photograph_options = {
        "--validation": validation, "--epochs": epochs, "--size": size, "--args": args, "--teacher": teacher,
        "--teacher-weights": teacher_weights,
    }  # fmt: skip
    options_given = [option for option, value in photograph_options.items() if value is not None]
    if images is None and options_given:
        raise InputError(f"{options_given[0]} needs --images.")
    if teacher_weights and teacher is None:
        raise InputError("--teacher-weights needs --teacher.")
    names = BUNDLED[what] if images is None else (what,)
    if only is not None and only not in names:
        raise InputError(f"--only must be one of {', '.join(names)}, not {only!r}.")
    import torch

    from ..train import loop, nano, nano_video, scene_segmenter
    from ..train.task import Task

    joined = loop.devices()
    if threads is not None:
        torch.set_num_threads(threads)
    folder, trained, files_read = Path(out or what), list[dict[str, Any]](), dict[str, Any]()
    for name in names if only is None else (only,):
        task: Task
        if images is None and name in VIDEO:
            config, task = nano_video.prepare(name, scenes=scenes, seed=seed, workers=workers)
        elif images is None and name == SEGMENTER:
            config, task = scene_segmenter.prepare(folder, scenes=scenes, seed=seed, workers=workers, say=say)
        elif images is None:
            config, task = nano.prepare(name, scenes=scenes, seed=seed, workers=workers)
        else:
            from ..show.files import files_record, tell_files
            from ..train import photographs

            assert validation is not None
            config, task = photographs.prepare(
                name, images, validation, folder, epochs=epochs or 60, size=size or 128,
                args=json_object(args, "--args", ARGS) or {},
                seed=seed, teacher=teacher, teacher_weights=teacher_weights, workers=workers, say=say,
                opened=tell_files,
            )  # fmt: skip
            # `prepare` has raised if a picture cannot be read, so there are no failures
            sets = {"images": task.known, "validation": task.unseen}
            files_read = {name: files_record(image_set, len(image_set), ()) for name, image_set in sets.items()}
        weights = loop.train(config, task, folder, report=tell)
        images_seen = config.steps(task.samples) * config.batch_size
        plan = {"name": name, "images": images_seen, **asdict(config), "task": task.identity}
        trained.append({"model": name, "weights": str(weights), "plan": plan, "log": loop.read_log(folder, name)})
    if joined.is_main_process:
        print_record({"trained": trained, "data": files_read}, "train_view.train_view", as_json)
