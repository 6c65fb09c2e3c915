"""The command line: options in, one table or one JSON object out. What is computed lives in `measure`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .errors import InputError, RecipeError, SieveError

if TYPE_CHECKING:  # torch, timm and the rest wait until a command needs them: --help answers at once
    import torch
    from torch import nn

    from .data import Batches, Preprocessing
    from .recipe import Recipe
    from .stream import Sieved
    from .zoo import Loaded

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, context_settings={"max_content_width": 120}
)

MODEL = "vit_base_patch16_224"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

Model = Annotated[str, typer.Option(metavar="NAME", help="The host: a name that timm knows.")]
RecipeText = Annotated[
    str, typer.Option("--recipe", metavar="TEXT|FILE", help="What to do with the tokens: 'papr(keep=0.8) + tome(r=8)'.")
]
Weights = Annotated[str | None, typer.Option(metavar="FILE", help="The model's weights; nothing is downloaded for it.")]
ProposalWeights = Annotated[str | None, typer.Option(metavar="FILE", help="Weights of the recipe's proposal.")]
Size = Annotated[str | None, typer.Option(metavar="PIXELS", help="224, or 224x256 (height x width); default the model's.")]
Dtype = Annotated[str, typer.Option(metavar="|".join(DTYPES), help="Precision of the model.")]
Device = Annotated[str, typer.Option(metavar="cpu|cuda|cuda:N|auto", help="Where to run.")]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads; default torch's choice.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, unrounded, instead of a table.")]


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    """Let a pretrained vision transformer read only the tokens that matter."""
    if version:
        typer.echo(f"tokensieve {__version__}")
        raise typer.Exit
