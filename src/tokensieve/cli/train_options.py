"""What the commands that train share."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import typer.core

from ..errors import InputError
from .output import say


def json_object(text: str | None, option: str, example: str) -> dict[str, Any] | None:
    """The JSON object in an option's value; None where it is not given."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{option} is no JSON ({error}): {option} '{example}'.") from error
    if not isinstance(value, dict):
        raise InputError(f"{option} must be a JSON object: {option} '{example}'.")
    return value


def tell(row: dict[str, Any]) -> None:
    """Say on stderr what a validation found, and how long the training still takes."""
    left = row["seconds"] / row["step"] * (row["steps"] - row["step"])
    formats = {
        "train_top1": "right on training images {:.1f} %",
        "validation_top1": "on validation images {:.1f} %",
        "validation_miou": "validation mIoU {:.1f} %",
        "gmac": "{:.3g} GMAC a crop",
        "heldout_likeness": "held-out pictures alike {:.1f} %",
        "heldout_divergence": "divergence {:.4f}",
    }
    parts = [text.format(row[name]) for name, text in formats.items() if name in row]
    say(
        f"{row['model']} step {row['step']} of {row['steps']}, {row['seconds'] / 60:.0f} min, about {left / 60:.0f} "
        f"to go: loss {row['loss']:.3f}, {', '.join(parts)}"
    )


class WithKinds(typer.core.TyperCommand):
    """A command whose first word may name another one: `tokensieve train segment` beside `tokensieve train NAME`."""

    kinds: ClassVar[dict[str, Any]]

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        kind = self.kinds.get(args[0]) if args else None
        if kind is None:
            return super().make_context(info_name, args, parent, **extra)
        return kind.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
