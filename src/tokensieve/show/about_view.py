"""Tables of methods, models and this machine, from the records that `--json` prints."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..methods.base import PLACES
from .tables import Record, giga, new_table, short


def methods_view(record: Record) -> RenderableType:
    """The record of `tokensieve methods`: a few lines for each method."""
    parts: list[RenderableType] = []
    for method in record["methods"]:
        settings = ", ".join(_call(setting) for setting in method["settings"])
        grid = _facts(("", method["summary"]), ("acts", _action(method)), ("settings", settings))
        parts += [Text(method["name"], style="bold"), Padding(grid, (0, 0, 1, 2))]
    return Group(*parts, Text("tokensieve methods NAME describes each setting.", style="dim"))


def method_view(record: Record) -> RenderableType:
    """The record of `tokensieve methods NAME`: one method with all its settings."""
    (method,) = record["methods"]
    table = Table.grid(padding=(0, 2))
    for setting in method["settings"]:
        kind = Text(setting["type"], style="dim")
        table.add_row(Text(_call(setting), style="bold"), Text.assemble(kind, "\n", setting["doc"]))
    head: list[RenderableType] = [
        Text.assemble((method["name"], "bold"), f": {method['summary']}"),
        "",
        _facts(("class", f"tokensieve.{method['class']}"), ("acts", _action(method))),
        "",
        table,
    ]
    notes: list[RenderableType] = ["", Text(method["notes"])] if method["notes"] else []
    return Group(*head, *notes)


def families_view(record: Record) -> RenderableType:
    """The record of `tokensieve models`: timm's families, and the names in those that hold hosts."""
    parts: list[RenderableType] = []
    if record["bundled"]:
        parts += [Text("bundled", style="bold"), *models_tables(record["bundled"]), ""]
    hosts = [family for family in record["families"] if family["hosts"]]
    unused = [family for family in record["families"] if not family["hosts"]]
    for family in hosts:
        title = Text.assemble((family["module"], "bold"), f", {_count(len(family['models']), 'model')}")
        parts += [title, Padding(Text(" ".join(family["models"])), (0, 0, 1, 2))]
    if unused:
        names = ", ".join(f"{family['module']} {len(family['models'])}" for family in unused)
        parts += [
            Text("Families without hosts, which contain proposals:", style="bold"),
            Padding(Text(names), (0, 2)),
        ]
    legend = "tokensieve models PATTERN, such as 'deit*', builds each match and shows whether it can be used, and how."
    return Group(*parts, "", Text(legend, style="dim"))


def models_view(record: Record) -> RenderableType:
    """The record of `tokensieve models PATTERN`: hosts, proposals, and with --all the refused models with reasons."""
    parts = models_tables(record["models"])
    if record["pretrained"]:
        parts += ["", Text("Pretrained weights", style="bold")]
        parts += [
            Text.assemble(f"{model['name']}  ", (" ".join(model["weights"]), "dim")) for model in record["models"]
        ]
    if record["refused"] and not record["all"]:
        count = f"{record['refused']} of the {record['matches']} models that match"
        parts += ["", Text(f"{count} can be neither host nor proposal; --all shows why.", style="dim")]
    return Group(*parts)


def models_tables(models: list[Record]) -> list[RenderableType]:
    """Tables of hosts, proposals and refused models."""
    hosts = [model for model in models if model["opens_as"] == "host"]
    proposals = [model for model in models if model["opens_as"] == "proposal"]
    parts: list[RenderableType] = []
    for cls, group in _grouped(hosts, "class").items():
        parts += ["", Text(f"Hosts, {cls}", style="bold"), _models(group, "blocks", "prefix")]
    for reason, group in _grouped([model for model in hosts if not model["merges"]], "merges_reason").items():
        parts += ["", *_reason("No merging", group, reason)]
    for reason, group in _grouped([model for model in models if model.get("macs_reason")], "macs_reason").items():
        parts += ["", *_reason("MACs unknown", group, reason)]
    if proposals:
        parts += ["", Text("Proposals", style="bold"), _models(proposals, "map")]
    for reason, group in _grouped([model for model in models if model["opens_as"] is None], "reason").items():
        parts += ["", *_reason("Refused", group, reason, *(model["reason_proposal"] for model in group))]
    return parts[1:]


def doctor_view(record: Record) -> RenderableType:
    """The record of `tokensieve doctor`: hardware and software, results of the checks, and warnings."""
    versions = record["versions"]
    threads = f"{_count(record['threads'], 'thread')} on {_count(record['cores'], 'core')}"
    variable = record["omp_num_threads"]
    rows = [
        ("tokensieve", versions["tokensieve"] + ("" if record["installed"] else ", from source, not installed")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if name != "tokensieve")),
        ("processor", f"{record['machine']}, {record['architecture']}, torch uses {record['instructions']}"),
        ("threads", threads + (f", OMP_NUM_THREADS={variable}" if variable else "")),
        *((gpu["device"], f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB") for gpu in record["accelerators"]),
        *(("attention", _attention(row)) for row in record["attention"]),
        ("compiler", record["compiler"] or "none found"),
        *((f"[{extra['name']}]", _extra(extra)) for extra in record["extras"]),
        *(("bundled", f"{m['name']} {'loads' if m['loads'] else 'does not load'}") for m in record["bundled"]),
        ("MACs", _counts(record["macs"])),
        ("self-test", "failed" if record["failures"] else "passed"),
    ]
    if not record["accelerators"]:
        rows.insert(4, ("GPU", "none that torch can use"))
    if not record["bundled"]:
        rows.insert(-2, ("bundled", "no models"))
    warnings: list[RenderableType] = [Text.assemble(("! ", "bold"), warning) for warning in record["warnings"]]
    return Group(_facts(*rows), *(["", *warnings] if warnings else []))


def _attention(row: Record) -> str:
    same = row["plain"] == row["masked"]
    kernels = row["plain"] if same else f"{row['plain']}, with the mask of merged tokens {row['masked']}"
    return f"{row['device']} {row['dtype']}: {kernels}"


def _counts(macs: Record) -> str:
    if macs["counted"] == macs["expected"]:
        return f"correct: {macs['expected']:,} counted for a tiny ViT, as a formula says"
    return "counted wrongly"


def _extra(extra: Record) -> str:
    if not extra["missing"]:
        return ", ".join(f"{name} {version}" for name, version in extra["versions"].items()) or "present"
    return f"{', '.join(extra['missing'])} missing: {extra['install']}"


def _action(method: Record) -> str:
    """Where a method acts, and whether it drops or merges tokens."""
    phrases = [PLACES[method["place"]]] if method["on_tokens"] else []
    if method["needs_significance"]:
        phrases.append("by a significance map")
    if method["on_tokens"]:
        phrases.append("merges tokens" if method["merges"] else "drops tokens")
    if method["on_pixels"]:
        phrases.append("on models with stages selects the pixels for point-wise operators")
    return "; ".join(phrases)


def _call(setting: Record) -> str:
    return setting["name"] if setting["required"] else f"{setting['name']}={setting['default']}"


def _models(models: list[Record], *columns: str) -> Table:
    table = new_table("", "M param.", "input", *columns, "GMAC")
    table.collapse_padding = True
    for model in models:
        height, width = model["input_size"][-2:]
        facts = {**model, "map": " x ".join(map(str, model.get("features", ())))}
        size = f"{height} x {width}"
        macs = "unknown" if model["macs"] is None else giga(model["macs"])
        values = [str(facts[column]) for column in columns]
        table.add_row(model["name"], short(model["parameters"] / 1e6), size, *values, macs)
    return table


def _reason(title: str, models: list[Record], *reasons: str) -> list[RenderableType]:
    """A reason that several models share, with their names."""
    names = ", ".join(model["name"] for model in models)
    return [Text.assemble((f"{title}: ", "bold"), names), *(Padding(Text(reason), (0, 2)) for reason in reasons)]


def _grouped(models: list[Record], key: str) -> dict[Any, list[Record]]:
    groups = defaultdict(list)
    for model in models:
        groups[model[key]].append(model)
    return dict(groups)


def _facts(*rows: tuple[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, text in rows:
        grid.add_row(Text(name, style="dim"), Text(text))
    return grid


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
