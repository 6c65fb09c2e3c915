"""The output of `tokensieve heal`."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from .eval_view import INTERVALS, signed
from .tables import between, header, new_table, percent

SETS = {"heldout_figures": "held-out pictures", "test_figures": "test pictures"}


def heal_view(record: dict[str, Any]) -> RenderableType:
    """The figures before and after on each set of pictures, the warnings, and the paths of recipe and weights."""
    sets = {title: record[key] for key, title in SETS.items() if record[key]}
    scored = any(measured["after"]["change"] for measured in sets.values())
    kind = next(iter(sets.values()))["after"]["kind"]
    classes = kind in ("classes", "class-map")
    same = "same nearest neighbour" if kind == "embeddings" else "same class" if classes else "cosine"
    table = new_table(
        "", "pictures", same, "KL" if classes else "divergence", *(["top-1 against dense"] if scored else [])
    )
    for title, measured in sets.items():
        for when, name in (("before", f"{title}, before"), ("after", "healed")):
            figures = measured[when]
            top = [signed(figures["change"]["top1"]) if figures["change"] else ""] if scored else []
            table.add_row(name, f"{figures['images']}", _same(figures), f"{figures['divergence']:.4f}", *top)
    parts: list[RenderableType] = [header(record), "", table, Text(INTERVALS, style="dim"), ""]
    summary = f"The best weights are of step {record['step']} of {record['steps']}, {record['weights_mb']:.0f} MB"
    parts.append(Text(f"{summary} in addition to the dense model's if both are used."))
    if record["interpolation"] < 1:
        share = percent(record["interpolation"])
        parts.append(
            Text(f"Saved: {share} of the way from the original weights to these, the best on held-out pictures.")
        )
    parts += [Text(sentence, style="yellow") for sentence in record["warnings"]]
    return Group(*parts, "", *(Text(path, style="bold") for path in record["out"].values()))


def _same(figures: dict[str, Any]) -> str:
    for name in ("agreement", "neighbours"):
        if figures.get(name) is not None:
            return f"{figures[name]:.1f}% {between(figures[f'{name}_low'], figures[f'{name}_high'])}"
    return f"{figures['cosine']:.4f}"
