"""`tokensieve demo`: compare a model with its sieved version, on generated scenes or on photographs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, NamedTuple

import typer

from ..errors import InputError, nearest
from ..search.default import DEFAULT_RECIPE_TEXT
from .opening import read_spec, record_of
from .options import JsonOption, MachineOptions, ModelOptions
from .output import print_record


class Task(NamedTuple):
    """A task of the demo.

    Attributes:
        recipes: bundled host -> its recipe; the first host is the default.
        module: module in `show/` whose `run_demo` measures and draws.
    """

    recipes: dict[str, str]
    module: str


TASKS = {
    "classify": Task(
        {
            "nano_vit": "papr(keep=0.4, proposal=nano_convnet)",
            "nano_convnext": "papr(keep=0.5, proposal=nano_convnet)",
        },
        "demo_classify",
    ),
    "segment": Task({"nano_segmenter": "dtop(threshold=0.95)"}, "demo_segment"),
    "video": Task(
        {"nano_video": "papr(keep=0.4, proposal=nano_video_proposal, significance='mean*motion')"}, "demo_video"
    ),
}
DEFAULT_MODELS = {name: next(iter(task.recipes)) for name, task in TASKS.items()}
MODELS = " or ".join(DEFAULT_MODELS.values())
RECIPES = " or ".join(next(iter(task.recipes.values())) for task in TASKS.values())
KINDS = "|".join(TASKS)
OUT = ("tokensieve-demo.png", "tokensieve-demo.html")
DemoModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help=f"A ViT, ConvNeXt or Swin with downloaded weights, or a segmenter's file. Default {MODELS}.",
    ),
]


@dataclass(frozen=True)
class DemoModel(ModelOptions):
    """A bundled model with its own recipe, or any other, with its weights."""

    model: DemoModelOption = None  # type: ignore[assignment]  # by default the task's model
    pretrained: Annotated[bool, typer.Option(help="Download weights not given as a FILE, or use random ones.")] = True
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT|FILE",
            help=f"Default {RECIPES}; for other models {DEFAULT_RECIPE_TEXT}.",
        ),
    ] = None


def demo(
    *,
    images: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGES]...", help="Your own photographs, or videos.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar=KINDS,
            help="Classify pictures, segment pictures, or classify videos; default the task of --model.",
        ),
    ] = None,
    network: DemoModel,
    scenes: Annotated[int, typer.Option(min=8, metavar="N", help="Generated scenes for the bundled model.")] = 300,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Random seed of the generated scenes.")] = 1,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Batch size at which speed is measured.")] = 16,
    seconds: Annotated[float, typer.Option(min=0, help="Time to spend on measuring speed.")] = 10.0,
    out: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help=f"A .png or .html; may be repeated. Default {' and '.join(OUT)}."),
    ] = None,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """Show a recipe at work: a bundled model on generated scenes, or any pretrained model on photographs.

    Compares the dense model and the recipe with random patches and with merging, and writes a picture and a web page.
    --task segment shows a segmenter in which easy patches exit early; --task video a video model on generated clips.
    """
    task = task or task_of(network.model)
    if task not in TASKS:
        raise InputError(f"--task {task!r} is unknown{nearest(task, TASKS)}: choose one of {', '.join(TASKS)}.")
    from .._files import check_place
    from ..show.page import SUFFIXES

    out_paths = [check_place(path, SUFFIXES) for path in out or OUT]
    model, recipes = network.model or DEFAULT_MODELS[task], TASKS[task].recipes
    recipe = recipes.get(model) if network.recipe is None else network.recipe
    spec = read_spec(network, machine, recipe=recipe, model=model)
    from ..data.scanning import PICTURES
    from ..data.video_reading import VIDEOS

    run_demo = import_module(f"..show.{TASKS[task].module}", __package__).run_demo
    from ..show.demo import DemoSettings
    from ..show.demo_view import demo_report
    from ..show.page import write_page, write_png
    from ..show.progress import list_failures, working
    from ..show.sheet import sheet

    with working("opening the model") as status:
        opened = spec.open()
        settings = DemoSettings(
            images=images or [], pretrained=spec.pretrained, generated=spec.model in recipes, scenes=scenes, seed=seed,
            batch=batch, seconds=seconds, progress=status.update,
        )  # fmt: skip
        record, sections, failures = run_demo(opened, settings)
        record = {"task": task, **record_of(spec, opened), **record}
        record["out"] = [str(path) for path in out_paths]
        status.update("drawing")
        report = demo_report(record, sections)
        for path in out_paths:
            if path.suffix.lower() == ".html":
                write_page(path, report)
            else:
                write_png(path, sheet(report))
    print_record(record, "demo_view.demo_view", as_json)
    list_failures(failures, VIDEOS if task == "video" else PICTURES)


def task_of(model: str | None) -> str:
    """The task of a model, by its name; `classify` by default."""
    from ..zoo.hf_video import is_video_model

    named = [name for name, task in TASKS.items() if model in task.recipes]
    if named or model is None:
        return named[0] if named else "classify"
    return "segment" if model.endswith(".safetensors") else "video" if is_video_model(model) else "classify"
