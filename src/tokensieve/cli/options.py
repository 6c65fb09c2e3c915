"""Options that several commands share, and the groups of options that commands use."""

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
        help="A model name of timm or torchvision, or a video model such as videomae_base; a segmenter's "
        "FILE.safetensors from `train segment`; or package.module:function.",
        autocompletion=one_of(MODELS),
    ),
]
RecipeOption = Annotated[
    str, typer.Option(metavar="TEXT|FILE", help="The methods to apply, e.g. 'papr(keep=0.8) + tome(r=8)'.")
]
OwnRecipeOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT|FILE",
        help=f"The methods to apply, e.g. 'papr(keep=0.8) + tome(r=8)'. Default {DEFAULT_RECIPE_TEXT}.",
        show_default=False,
    ),
]
WeightsOption = Annotated[str | None, typer.Option(metavar="FILE", help="The model's weights, instead of a download.")]
PretrainedOption = Annotated[
    bool, typer.Option(help="Download weights of model and proposal not given as a FILE, or use random ones.")
]
ProposalWeightsOption = Annotated[str | None, typer.Option(metavar="FILE", help="Weights of the recipe's proposal.")]
SizeOption = Annotated[str | None, typer.Option(metavar="224|224x256", help="Height x width; default the model's.")]
DtypeOption = Annotated[
    str,
    typer.Option(metavar="|".join(PRECISIONS), help="Precision of the model.", autocompletion=one_of(PRECISIONS)),
]
DeviceOption = Annotated[str, typer.Option(metavar="cpu|cuda|cuda:0|auto", help="Device to run on.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads; default torch's choice.")]
PreprocessingOption = Annotated[
    str,
    typer.Option(
        metavar="|".join(PREPROCESSINGS), help="How pictures are resized.", autocompletion=one_of(PREPROCESSINGS)
    ),
]
BatchOption = Annotated[int, typer.Option(min=1, metavar="N", help="Batch size.")]
WorkersOption = Annotated[int, typer.Option(min=0, metavar="N", help="Data loader processes.")]
FramesOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Videos: frames per clip; default the model's.")
]
StrideOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Videos: step between the frames of a clip; default the model's."),
]
SamplingOption = Annotated[
    str | None,
    typer.Option(metavar="dense|uniform", help="Videos: frames STRIDE apart, or spread over the whole video."),
]
ViewsOption = Annotated[
    str | None, typer.Option(metavar="5x3", help="Videos: clips x crops whose outputs are averaged; default 1x1.")
]
RootOption = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Folder of the paths in a list of videos; default the list's own folder."),
]
CLASS_FILES = (
    "One folder name per line; lines 'n01440764 tench, Tinca tinca'; CSV or TSV with a header folder,index; or JSON."
)
ClassesOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help=f"Maps folders to the model's classes. {CLASS_FILES}"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object with unrounded numbers.")]


@dataclass(frozen=True)
class NetworkOptions:
    """The model and its weights."""

    model: ModelOption = "vit_base_patch16_224"
    weights: WeightsOption = None
    pretrained: PretrainedOption = True


@dataclass(frozen=True)
class ModelOptions(NetworkOptions):
    """The model, its weights and the recipe."""

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
    """How clips are sampled from a video."""

    frames: FramesOption = None
    stride: StrideOption = None
    sampling: SamplingOption = None


@dataclass(frozen=True)
class SetOptions(ClipOptions):
    """How a dataset of videos is read."""

    views: ViewsOption = None
    root: RootOption = None


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command with groups of options usable by typer: each group is replaced by its single options."""
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
    """'1,8,32' -> [1, 8, 32]. Raises `InputError` unless all are whole numbers of at least 1."""
    parts = [part.strip() for part in text.lower().split(separator)]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"{option} must be whole numbers from 1 up, joined by {separator!r}, not {text!r}.")
    return [int(part) for part in parts]
