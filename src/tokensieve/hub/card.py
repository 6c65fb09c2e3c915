"""The model card of a recipe: what it is, how it is opened, and what `tokensieve eval` measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..recipe import Recipe
from ..show.eval_view import INTERVALS, lost, signed
from ..show.files import files_line
from ..show.tables import a_unit, between, giga, sides
from .evaluation import Record

LIBRARY = "tokensieve"
PERCENT = ("miou", "pixel_accuracy", "delta1")
"""Figures that are percentages, beside those of top-k."""
TASKS = {"classes": "image-classification", "class-map": "image-segmentation", "depth": "depth-estimation"}
"""Kind of output -> what the hub calls the task."""
METRICS = {"top1": "accuracy", "miou": "mean_iou", "rmse": "rmse"}
"""Figures that the hub knows by another name, or at all."""


def model_card(
    recipe: Recipe,
    record: Record | None,
    *,
    repo_id: str | None,
    model: str | None,
    base_model: str | None,
    license: str | None,
    notes: str | None,
) -> ModelCard:
    """README.md of a repository: metadata in YAML, then Markdown. See `HubRecipe` for what the arguments are."""
    title = repo_id.split("/")[-1] if repo_id else f"Recipe for {model}" if model else "Recipe"
    results = [] if record is None else _results(record)
    data = ModelCardData(
        library_name=LIBRARY,
        license=license,
        base_model=base_model,
        tags=[LIBRARY, "vision-transformer", "token-reduction", *sorted({method.name for method in recipe})],
        pipeline_tag=None if record is None else TASKS.get(record.get("kind", "")),
        model_name=title if results else None,
        eval_results=results or None,
    )
    environment = Environment(
        loader=PackageLoader("tokensieve.hub", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    body = environment.get_template("card.md.jinja").render(
        title=_line(title),
        recipe=str(recipe.with_paths(lambda path: Path(path).name)),
        model=None if model is None else _line(model),
        named=model is not None and re.fullmatch(r"[\w.-]+", model) is not None,
        repo_id=repo_id,
        notes=notes,
        measured=None if record is None else _measured(record),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def is_ours(path: Path) -> bool:
    """Whether a README.md is a card that was written here, which may be written anew."""
    if not path.is_file():
        return False
    metadata = path.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
    return f"\nlibrary_name: {LIBRARY}\n" in f"{metadata}\n"


def _measured(record: Record) -> dict[str, Any]:
    """What the template shows of a record, as text."""
    rows = []
    for name in record["dense"] or ():
        low_high = [(record.get(f"{side}_low") or {}, record.get(f"{side}_high") or {}) for side in ("dense", "sieved")]
        ends = [(low.get(name), high.get(name)) for low, high in low_high]
        both = [_figure(name, record[side][name], *pair) for side, pair in zip(("dense", "sieved"), ends, strict=True)]
        rows.append((name.replace("top", "top-"), *both, _change(name, record["change"][name])))
    macs = record["macs"]
    rows.append((f"GMACs {a_unit(record)}", giga(macs["dense"]), giga(macs["sieved"]), f"{macs['ratio']:.2f}x fewer"))
    files = record.get("files")
    return {
        "rows": rows,
        "lost": _line(lost(record)),
        "intervals": INTERVALS,
        "images": record["images"],
        "files": None if files is None else _line(files_line(files)),
        "data": _line(record["data"]),
        "machine": _line(record["machine"]),
        "dtype": record["dtype"],
        "size": sides(record),
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    }


def _is_percent(name: str) -> bool:
    return name.startswith("top") or name in PERCENT


def _figure(name: str, value: float, low: float | None, high: float | None) -> str:
    if _is_percent(name):
        return f"{value:.1f}% {between(low, high)}".strip()
    return f"{value:.4g}" + ("" if low is None or high is None else f" [{low:.4g}-{high:.4g}]")


def _change(name: str, value: float) -> str:
    return signed(value) if _is_percent(name) else f"{value:+.3g}"


def _results(record: Record) -> list[EvalResult]:
    """The sieved model's figures as the hub's metadata; how far it is from the dense one is among them."""
    task = TASKS.get(record.get("kind", ""))
    if task is None:
        return []
    figures = {name: (METRICS.get(name, name), name, value) for name, value in (record["sieved"] or {}).items()}
    if record["agreement"] is not None:
        figures["agreement"] = ("agreement", "agreement with the dense model", record["agreement"])
    data = record["data"]
    return [
        EvalResult(
            task_type=task,
            dataset_type=data,
            dataset_name=data,
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 4),
        )
        for kind, name, value in figures.values()
    ]


def _line(text: str) -> str:
    """Text that stands within a line or a table's cell, whatever a file was called."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
