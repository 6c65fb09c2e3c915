"""What the command line prints for people, made from the same record that `--json` prints for programs."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Record = dict[str, Any]


def bench_view(record: Record) -> RenderableType:
    """The record of `tokensieve bench`: what ran, a row for each batch size, the verdicts."""
    table = _table("batch", "MACs", "limit", "measured", "of limit", "proposal", "ms an image")
    memory = _table("batch", "peak MiB, dense", "peak MiB, sieved")
    for run in record["runs"]:
        seconds, images = run["seconds"], run["batch"]
        times = " → ".join(_short(1000 * seconds[name] / images) for name in ("dense", "sieved"))
        table.add_row(
            str(images),
            f"{record['macs']['ratio']:.2f}x",
            f"{run['limit']:.2f}x",
            Text.assemble((f"{run['ratio']:.2f}x", "bold"), f" [{run['low']:.2f}-{run['high']:.2f}]"),
            f"{100 * run['of_limit']:.0f}%",
            f"{100 * run['proposal_share']:.1f}%" if record["macs"]["proposal"] or run["proposal_share"] else "none",
            times,
        )
        if run["memory_bytes"]:
            memory.add_row(str(images), *(_short(run["memory_bytes"][name] / 2**20) for name in ("dense", "sieved")))
    verdicts = Table.grid(padding=(0, 2))
    for run in record["runs"]:
        result, *reasons = run["verdict"]
        verdicts.add_row(f"batch {run['batch']}", Text.assemble((result, "bold"), *(f" {text}" for text in reasons)))
    tables: list[RenderableType] = ["", table]
    if memory.row_count:
        tables += ["", memory]
    legend = (
        "MACs and speed: dense over sieved, proposal included. "
        "Limit: the host on as many tokens, with selection and proposal for free."
    )
    return Group(_header(record), *tables, Text(legend, style="dim"), "", verdicts)


def eval_view(record: Record) -> RenderableType:
    """The record of `tokensieve eval`: what ran, both models beside each other, how far they agree."""
    scored = record["dense"] is not None
    ks = list(record["dense"]) if scored else []
    table = _table("", *(k.replace("top", "top-") for k in ks), "GMAC an image")
    rows = {name: record[name] if scored else {} for name in ("dense", "sieved")}
    for name, top in rows.items():
        table.add_row(name, *(f"{top[k]:.1f}%" for k in ks), _giga(record["macs"][name]))
    changes = [f"{rows['sieved'][k] - rows['dense'][k]:+.1f}".replace("-", "−") for k in ks]
    table.add_row("change", *changes, f"{record['macs']['ratio']:.2f}x fewer", style="dim")

    found = [f"cosine {record['cosine']:.4f}"]
    if record["agreement"] is not None:
        found = [
            f"same class {record['agreement']:.1f} ± {record['agreement_stderr']:.1f}%",
            f"KL {record['kl']:.4f} nats",
            *found,
        ]
    agreement = Text.assemble(("sieved against dense: ", "bold"), ", ".join(found))
    return Group(_header(record), "", table, "", agreement)


def _header(record: Record) -> RenderableType:
    """The lines above a table: model, recipe, machine, and what the recipe does."""
    grid = Table.grid(padding=(0, 2))
    height, width = record["input_size"][-2:]
    kind = "weights from file" if record["weights"] else "pretrained" if record["pretrained"] else "random weights"
    grid.add_row("model", Text(f"{record['model']}, {height} x {width}, {kind}", style="bold"))
    grid.add_row("recipe", Text(record["recipe"] or "(empty)", style="bold"))
    threads = record["threads"]
    packed = ", weights packed once" if record.get("prepacked") else ""
    grid.add_row(
        "machine",
        f"{record['machine']}, {record['device']}, {record['dtype']}{packed}, {threads} thread"
        f"{'s' if threads != 1 else ''}, torch {record['versions']['torch'].split('+')[0]}",
    )
    if "images" in record:
        count = f"{record['images']} image{'s' if record['images'] != 1 else ''}"
        grid.add_row("data", f"{record['data']}, {count}, preprocessing {record['preprocessing']['name']}")
    macs = record["macs"]
    proposal = f", proposal {_giga(macs['proposal'])} included" if macs["proposal"] else ""
    grid.add_row("MACs", f"{_giga(macs['dense'])} → {_giga(macs['sieved'])} G an image{proposal}")
    grid.add_row("tokens", _tokens(record["tokens"]["dense"], record["tokens"]["per_block"]))
    return grid


def _tokens(dense: int, per_block: list[int]) -> str:
    """What each block's MLP reads, prefix included."""
    first, last, depth = per_block[0], per_block[-1], len(per_block)
    if len(set(per_block)) == 1:
        return f"{dense} → {first} in all {depth} blocks"
    return f"{dense} → {first} in the first block, {last} in the last of {depth}"


def _table(first: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(first, justify="right" if first else "left", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _giga(macs: float) -> str:
    return f"{macs / 1e9:#.4g}"


def _short(value: float) -> str:
    """Three significant digits at least, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
