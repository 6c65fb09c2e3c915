"""Shared parts of the commands that train."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import typer.core

from ..errors import InputError
from .output import say


def json_object(text: str | None, option: str, example: str) -> dict[str, Any] | None:
    """The JSON object in an option's value; None if the option is not given."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{option} is not JSON ({error}): write for example {option} '{example}'.") from error
    if not isinstance(value, dict):
        raise InputError(f"{option} must be a JSON object, for example {option} '{example}'.")
    return value


def tell(row: dict[str, Any]) -> None:
    """Print the figures of a validation and the remaining training time to stderr."""
    left = row["seconds"] / row["step"] * (row["steps"] - row["step"])
    formats = {
        "train_top1": "training top-1 {:.1f} %",
        "validation_top1": "validation top-1 {:.1f} %",
        "validation_miou": "validation mIoU {:.1f} %",
        "gmac": "{:.3g} GMAC per crop",
        "heldout_likeness": "held-out agreement {:.1f} %",
        "heldout_divergence": "divergence {:.4f}",
    }
    parts = [template.format(row[name]) for name, template in formats.items() if name in row]
    say(
        f"{row['model']} step {row['step']} of {row['steps']}, {row['seconds'] / 60:.0f} min, about {left / 60:.0f} "
        f"to go: loss {row['loss']:.3f}, {', '.join(parts)}"
    )


class WithKinds(typer.core.TyperCommand):
    """A command whose first argument may be a sub-command: `tokensieve train segment` and `tokensieve train NAME`."""

    kinds: ClassVar[dict[str, Any]]

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        kind = self.kinds.get(args[0]) if args else None
        if kind is None:
            return super().make_context(info_name, args, parent, **extra)
        return kind.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
