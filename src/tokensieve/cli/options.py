"""The options that several commands share, and the groups in which commands take them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from ..errors import InputError
from ..model_spec import PRECISIONS, PREPROCESSINGS
from ..search.default import DEFAULT_RECIPE_TEXT
from .completion import MODELS, one_of

ModelOption = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="A model that timm or torchvision knows, videomae_base and its like; a segmenter's FILE.safetensors, of "
        "`train segment`; or package.module:function.",
        autocompletion=one_of(MODELS),
    ),
]
RecipeOption = Annotated[
    str, typer.Option(metavar="TEXT|FILE", help="What to read of a picture, e.g. 'papr(keep=0.8) + tome(r=8)'.")
]
OwnRecipeOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT|FILE",
        help=f"What to read, e.g. 'papr(keep=0.8) + tome(r=8)'. Default {DEFAULT_RECIPE_TEXT}.",
        show_default=False,
    ),
]
WeightsOption = Annotated[str | None, typer.Option(metavar="FILE", help="The model's weights, instead of a download.")]
PretrainedOption = Annotated[
    bool, typer.Option(help="Download weights that no FILE gives, of model and proposal, or let them be random.")
]
ProposalWeightsOption = Annotated[str | None, typer.Option(metavar="FILE", help="Weights of the recipe's proposal.")]
SizeOption = Annotated[str | None, typer.Option(metavar="224|224x256", help="Height x width; default the model's.")]
DtypeOption = Annotated[
    str,
    typer.Option(metavar="|".join(PRECISIONS), help="Precision of the model.", autocompletion=one_of(PRECISIONS)),
]
DeviceOption = Annotated[str, typer.Option(metavar="cpu|cuda|cuda:0|auto", help="Where to run.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads; default torch's choice.")]
PreprocessingOption = Annotated[
    str,
    typer.Option(
        metavar="|".join(PREPROCESSINGS), help="How pictures are resized.", autocompletion=one_of(PREPROCESSINGS)
    ),
]
BatchOption = Annotated[int, typer.Option(min=1, metavar="N", help="Pictures that go through together.")]
WorkersOption = Annotated[int, typer.Option(min=0, metavar="N", help="Processes that read ahead.")]
FramesOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Of videos: frames of a clip; default the model's.")
]
StrideOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Of videos: frames from one of a clip to the next; default the model's."),
]
SamplingOption = Annotated[
    str | None, typer.Option(metavar="dense|uniform", help="Of videos: neighbouring frames, or over the whole video.")
]
ViewsOption = Annotated[
    str | None, typer.Option(metavar="5x3", help="Of videos: clips x crops whose answers are averaged; default 1x1.")
]
RootOption = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Of a list of videos: where its paths begin; default beside it.")
]
CLASS_FILES = (
    "A folder name a line; lines 'n01440764 tench, Tinca tinca'; CSV or tabs under a header folder,index; or JSON."
)
ClassesOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help=f"Which folder is which class, for folders of some classes. {CLASS_FILES}"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, unrounded, and nothing else.")]


@dataclass(frozen=True)
class NetworkOptions:
    """Which model with which weights."""

    model: ModelOption = "vit_base_patch16_224"
    weights: WeightsOption = None
    pretrained: PretrainedOption = True


@dataclass(frozen=True)
class ModelOptions(NetworkOptions):
    """Which model under which recipe."""

    recipe: OwnRecipeOption = None
    proposal_weights: ProposalWeightsOption = None


@dataclass(frozen=True)
class PlaceOptions:
    """The size of the images, and the device."""

    size: SizeOption = None
    device: DeviceOption = "cpu"
    threads: ThreadsOption = None


@dataclass(frozen=True)
class MachineOptions(PlaceOptions):
    """The size of the images, the device, and the precision."""

    dtype: DtypeOption = "fp32"


@dataclass(frozen=True)
class ClipOptions:
    """How clips are taken from a video."""

    frames: FramesOption = None
    stride: StrideOption = None
    sampling: SamplingOption = None


@dataclass(frozen=True)
class SetOptions(ClipOptions):
    """How a set of videos is read."""

    views: ViewsOption = None
    root: RootOption = None


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes groups of options, as typer wants it: with each option of a group in the group's place."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind = groups.get(name)
        if kind is None:
            parameters.append(parameter.replace(annotation=hints[name]))
            continue
        types = get_type_hints(kind, include_extras=True)
        for option in fields(kind):
            default = inspect.Parameter.empty if option.default is MISSING else option.default
            parameters.append(
                inspect.Parameter(
                    option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[option.name]
                )
            )

    @wraps(command)
    def taking_options(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{option.name: values.pop(option.name) for option in fields(kind)})
        command(**values)

    taking_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    taking_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return taking_options


def numbers(text: str, option: str, separator: str = ",") -> list[int]:
    """'1,8,32' -> [1, 8, 32], all of them at least 1."""
    parts = [part.strip() for part in text.lower().split(separator)]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"{option} must be whole numbers from 1 up, joined by {separator!r}, not {text!r}.")
    return [int(part) for part in parts]
