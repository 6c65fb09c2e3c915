"""The options that several commands share, each said once."""

from __future__ import annotations

from typing import Annotated

import typer

from .._job import DTYPES
from ..search.default import SAID

ModelOption = Annotated[
    str, typer.Option(metavar="NAME", help="The model: a ViT, ConvNeXt or Swin that timm or torchvision knows.")
]
RecipeOption = Annotated[
    str, typer.Option(metavar="TEXT|FILE", help="What to read of a picture, e.g. 'papr(keep=0.8) + tome(r=8)'.")
]
OwnRecipeOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT|FILE",
        help=f"What to read, e.g. 'papr(keep=0.8) + tome(r=8)'. Default {SAID}.",
        show_default=False,
    ),
]
WeightsOption = Annotated[str | None, typer.Option(metavar="FILE", help="The model's weights, instead of a download.")]
PretrainedOption = Annotated[
    bool, typer.Option(help="Download weights that no FILE gives, of model and proposal, or let them be random.")
]
ProposalWeightsOption = Annotated[str | None, typer.Option(metavar="FILE", help="Weights of the recipe's proposal.")]
SizeOption = Annotated[str | None, typer.Option(metavar="224|224x256", help="Height x width; default the model's.")]
DtypeOption = Annotated[str, typer.Option(metavar="|".join(DTYPES), help="Precision of the model.")]
DeviceOption = Annotated[str, typer.Option(metavar="cpu|cuda|cuda:0|auto", help="Where to run.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads; default torch's choice.")]
CLASS_FILES = (
    "A folder name a line; lines 'n01440764 tench, Tinca tinca'; CSV or tabs under a header folder,index; or JSON."
)
ClassesOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help=f"Which folder is which class, for folders of some classes. {CLASS_FILES}"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, unrounded, and nothing else.")]
