"""The options that commands share, checked before anything slow begins, and the pair of models they ask for."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import InputError, RecipeError
from .search.default import RANKED, default_recipe

if TYPE_CHECKING:  # heavy imports wait until a command needs them, so that --help answers at once
    import torch
    from torch import nn

    from .data import Preprocessing
    from .recipe import Recipe
    from .stream import Sieved

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Opened(NamedTuple):
    """A pair of models that share their weights, and how the dense one reads pictures."""

    dense: nn.Module
    fast: Sieved
    own: Preprocessing


@dataclass
class Job:
    """The options that commands with a model share, checked before anything slow begins."""

    model: str
    recipe_text: str | None
    """None leaves the choice to `default_recipe`, once the model is there; to `RANKED` where a proposal has weights."""
    weights: str | None
    pretrained: bool
    proposal_weights: str | None
    size: str | None
    dtype: str
    device: str
    threads: int | None

    def __post_init__(self) -> None:
        self.sides = None if self.size is None else numbers(self.size, "--size", separator="x")
        if self.sides and len(self.sides) > 2:
            raise InputError(f"--size must be a side in pixels or HEIGHTxWIDTH, such as 224x256, not {self.size!r}.")
        if self.dtype not in DTYPES:
            raise InputError(f"--dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}.")
        import torch

        from .recipe import Recipe

        self.precision: torch.dtype = getattr(torch, DTYPES[self.dtype])
        self.where = device_of(self.device)
        text = self.recipe_text
        if text is None:
            text = "" if self.proposal_weights is None else RANKED
        self.recipe = Recipe.load(text)
        self.undecided = self.recipe_text is None and self.proposal_weights is None
        if self.proposal_weights is not None:
            self.recipe = _with_proposal_weights(self.recipe, self.proposal_weights)
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def open(self) -> Opened:
        """The dense model in its size, precision and place, and the sieved one beside it."""
        from .data import Preprocessing
        from .zoo import create

        model, mean, std = create(self.model, weights=self.weights, pretrained=self.pretrained)
        dense: Any = model
        size = None if self.sides is None else (self.sides[0], self.sides[-1])
        if size is not None and hasattr(dense, "set_input_size"):
            patch = dense.patch_embed.patch_size
            if size[0] % patch[0] or size[1] % patch[1]:
                raise InputError(
                    f"--size {self.size} does not divide into {self.model}'s patches of {patch[0]} pixels."
                )
            dense.set_input_size(img_size=size)
        maps = getattr(dense, "feature_info", None)
        if size is not None and maps and min(size) < (least := maps[-1]["reduction"]):
            raise InputError(f"--size {self.size} is too small for {self.model}: give at least {least} pixels.")
        own = Preprocessing.of(dense, mean, std, size)
        dense = dense.to(self.where, self.precision)
        if self.undecided:
            self.recipe = default_recipe(dense, (3, *own.input_size))
        return self.sieve(dense, own)

    def sieve(self, dense: nn.Module, own: Preprocessing) -> Opened:
        from .stream import sieve

        fast = sieve(dense, self.recipe, mean=own.mean, std=own.std, pretrained=self.pretrained)
        return Opened(dense, fast.to(self.where), own)

    def record(self, opened: Opened) -> dict[str, Any]:
        """What ran, and where, as plain JSON."""
        from .show.record import describe

        return {
            "command": shlex.join(["tokensieve", *sys.argv[1:]]),
            "model": self.model,
            "weights": self.weights,
            "proposal_weights": self.proposal_weights,
            "pretrained": self.pretrained,
            "dtype": self.dtype,
            "recipe_is_default": self.undecided,
            "recipe_json": json.loads(opened.fast.recipe.to_json()),
            **describe(opened.fast, opened.dense, opened.own.input_size),
        }


def _with_proposal_weights(recipe: Recipe, file: str) -> Recipe:
    """The same recipe, its named proposals reading `file`."""
    from .methods import PaPr

    asking = [isinstance(method, PaPr) and method.significance not in ("random", "centre") for method in recipe]
    if not any(asking):
        raise RecipeError(f'--proposal-weights has nothing to load into: "{recipe}" asks no proposal.')
    if not Path(file).is_file():
        raise InputError(f"There is no weights file {file}.")
    changed = {"proposal_weights": file, "proposal_sha256": None}
    methods = (replace(method, **changed) if asks else method for method, asks in zip(recipe, asking, strict=True))
    return replace(recipe, methods=tuple(methods))


def device_of(name: str) -> torch.device:
    """The device that `--device` names; raises InputError where it is not there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()) or (kind == "cpu" and index):
        raise InputError(f"--device must be cpu, cuda, cuda:0 or auto, not {name!r}.")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name} is not there: torch sees {torch.cuda.device_count()} CUDA devices.")
    return torch.device(name)


def numbers(text: str, option: str, separator: str = ",") -> list[int]:
    """'1,8,32' -> [1, 8, 32], all of them at least 1."""
    parts = [part.strip() for part in text.lower().split(separator)]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"{option} must be whole numbers from 1 up, joined by {separator!r}, not {text!r}.")
    return [int(part) for part in parts]
