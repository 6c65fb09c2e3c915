"""The model card of a recipe: its description, code to load it, and the results of `tokensieve eval`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..cascade_recipe import CascadeRecipe
from ..recipe import Recipe
from ..show.eval_view import INTERVALS, lost, signed
from ..show.files import files_line
from ..show.tables import a_unit, between, brief, giga, percent, sides
from .evaluation import Record

LIBRARY = "tokensieve"
PERCENT = ("miou", "pixel_accuracy", "delta1")
"""Metrics given in percent, in addition to top-k accuracies."""
TASKS = {"classes": "image-classification", "class-map": "image-segmentation", "depth": "depth-estimation"}
"""Kind of output -> the hub's name of the task."""
METRICS = {"top1": "accuracy", "miou": "mean_iou", "rmse": "rmse"}
"""Metric -> the hub's name of it, where the hub has one."""


def model_card(
    recipe: Recipe | CascadeRecipe,
    record: Record | None,
    *,
    repo_id: str | None,
    model: str | None,
    base_model: str | None,
    license: str | None,
    notes: str | None,
) -> ModelCard:
    """The README.md of a repository: metadata in YAML, then Markdown. The arguments are those of `HubRecipe`."""
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
        cascade=isinstance(recipe, CascadeRecipe),
        promise=_promise(recipe),
        model=None if model is None else _line(model),
        named=model is not None and re.fullmatch(r"[\w.-]+", model) is not None,
        repo_id=repo_id,
        notes=notes,
        measured=None if record is None else _measured(record),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def _promise(recipe: Recipe | CascadeRecipe) -> str | None:
    """The agreement that a cascade was calibrated for, as a sentence; None if there was no calibration."""
    if not isinstance(recipe, CascadeRecipe) or recipe.agree is None:
        return None
    certain = "" if recipe.confidence is None else f", with confidence {recipe.confidence:g}"
    images = "" if recipe.images is None else f" on {recipe.images} images"
    agreement = f"to agree with the dense model on {100 * recipe.agree:g} % of images like these"
    return f"It was calibrated{images} {agreement}{certain}."


def is_generated(path: Path) -> bool:
    """Whether a README.md is a model card written by this module, which may be overwritten."""
    if not path.is_file():
        return False
    metadata = path.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
    return f"\nlibrary_name: {LIBRARY}\n" in f"{metadata}\n"


def _measured(record: Record) -> dict[str, Any]:
    """The values of a record that the template shows, as text."""
    rows = []
    for name in record["dense"] or ():
        cells = []
        for side in ("dense", "sieved"):
            low, high = ((record.get(f"{side}_{end}") or {}).get(name) for end in ("low", "high"))
            cells.append(_figure(name, record[side][name], low, high))
        rows.append((name.replace("top", "top-"), *cells, _change(name, record["change"][name])))
    for member in (record.get("cascade") or {}).get("members", ()):
        name = _line(brief(member["recipe"])) or "the dense model"
        rows.append((f"images read by {name}", "", percent(member["share"]), ""))
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
    """The sieved model's metrics, and its agreement with the dense model, as metadata of the hub."""
    task = TASKS.get(record.get("kind", ""))
    if task is None:
        return []
    metrics = {name: (METRICS.get(name, name), name, value) for name, value in (record["sieved"] or {}).items()}
    if record["agreement"] is not None:
        metrics["agreement"] = ("agreement", "agreement with the dense model", record["agreement"])
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
        for kind, name, value in metrics.values()
    ]


def _line(text: str) -> str:
    """Text on one line, escaped for a table cell in Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
