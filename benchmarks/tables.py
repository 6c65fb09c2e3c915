"""Tables of README and docs, from results/*.csv. `readme.py` puts them in their places."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence

from results import ROOT

Row = dict[str, str]


def read(*names: str) -> list[Row]:
    rows = []
    for name in names:
        with (ROOT / "results" / name).open(newline="") as file:
            rows += csv.DictReader(file)
    return rows


def missing(name: str, command: str) -> str | None:
    """What stands where figures will be once a long benchmark has run."""
    return None if (ROOT / "results" / name).is_file() else f"Not measured yet: `python {command}`."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def commands(*names: str, **where: str) -> str:
    """The commands that wrote these files, or those of their rows that hold `where`."""
    chosen = [row for row in read(*names) if all(row[key] == value for key, value in where.items())]
    return "```bash\n" + "\n".join(dict.fromkeys(row["command"] for row in chosen)) + "\n```"


def times(value: str | float) -> str:
    return f"{float(value):.2f}x"


def measured(row: Row) -> str:
    return f"{times(row['ratio'])} [{float(row['ratio_low']):.2f}-{float(row['ratio_high']):.2f}]"


def change(row: Row, dense: str | float) -> str:
    """Of top-1, in points."""
    return f"{float(row['top1']) - float(dense):+.1f}"


def points(row: Row, digits: int = 3) -> list[str]:
    """Agreement and KL."""
    return [f"{float(row['agreement']):.1f} %", f"{float(row['kl']):.{digits}f}"]


def short(host: str) -> str:
    return host.partition("_patch")[0]


def recipe_of(row: Row) -> str:
    """Without the places of weights, and without lists that fill a line."""
    text = re.sub(r", proposal_weights='[^']*'", "", row["recipe"])
    return f"`{text}`"


# Loss and speed of the same host


def compared(host: str, saved: str) -> list[Row]:
    """Rows of compare.csv at one saving, the least changed first."""
    rows = [row for row in read("compare.csv") if (row["host"], row["saved"]) == (host, saved)]
    return sorted(rows, key=lambda row: float(row["kl"]))


def named(row: Row) -> str:
    told = {"papr": ", proposal on top", "dynamicvit": ""}
    return row["method"] + (", proposal in the budget" if row["counted"] == "all" else told.get(row["method"], ""))


def loss_and_speed(host: str, only: Sequence[str] = ()) -> str:
    """Every method at the saving at which time was measured, or `only` some."""
    cells = []
    for row in compared(host, "45"):
        if only and named(row) not in only:
            continue
        notes = [] if only else [row["unfair"]]
        speed = f"**{measured(row)}**" if row["ratio"] else ""
        lost = [change(row, row["top1_dense"]), *points(row)]
        if row["method"] == "dynamicvit":  # what random predictors lose says nothing
            lost = [""] * len(lost)
        cells.append(
            [f"`{row['method'].partition(',')[0]}`" + named(row).removeprefix(row["method"].partition(",")[0]),
             times(float(row["gmac_dense"]) / float(row["gmac"])), speed, *lost, *notes]
        )  # fmt: skip
    head = ["method", "fewer MACs", "speed", "top-1", "same answer", "KL"]
    return table(head if only else [*head, ""], cells)


# Loss


def accuracy() -> str:
    rows, dense = [], next(row for row in read("accuracy.csv") if row["table"] == "dense")
    shown = {"papr": "squeezenet1_1", "random": "random, mean of 10 draws", "centre": "centre", "tome": "",
             "papr+tome": "squeezenet1_1"}  # fmt: skip
    for row in read("accuracy.csv"):
        if shown.get(row["table"]) != row["source"]:
            continue
        if row["table"] == "papr+tome" and not re.search(r"keep=0\.8,.*r=8", row["recipe"]):
            continue
        if row["table"] != "papr+tome" and re.search(r"keep=0\.(7|6|3)\b", row["recipe"]):
            continue
        spread = ""
        if row["top1_min"]:
            low, high = (float(row[key]) - float(dense["top1"]) for key in ("top1_min", "top1_max"))
            spread = f" [{low:+.1f} to {high:+.1f}]"
        host, everything = (float(row["gmac_dense"]) / float(row[key]) for key in ("gmac_host", "gmac_with_proposal"))
        rows.append([recipe_of(row), times(host), times(everything), change(row, dense["top1"]) + spread, *points(row)])
    return table(["recipe", "fewer MACs, host alone", "fewer MACs", "top-1", "same answer", "KL"], rows)


def tuned() -> str:
    rows = []
    for host, title in (("deit_tiny", "DeiT-Tiny"), ("nano_vit", "bundled pair")):
        for row in sorted(read(f"tuned_{host}.csv"), key=lambda row: float(row["budget"])):
            if row is not None and row in best_of(host, row["budget"]):
                names = {"searched": "**searched**", "corrected": "**searched, corrected**"}
                name = names.get(row["kind"], f"`{row['title']}` alone")
                rows.append([title, times(row["macs_ratio"]), name, change(row, row["top1_dense"]), *points(row, 4)])
    return table(["host", "fewer MACs", "recipe", "top-1", "same answer", "KL"], rows)


def best_of(host: str, budget: str) -> list[Row]:
    """Of each kind the recipe that lost least at this budget."""
    same = [row for row in read(f"tuned_{host}.csv") if row["budget"] == budget]
    kinds = dict.fromkeys(row["kind"] for row in same)
    return [min((row for row in same if row["kind"] == kind), key=lambda row: float(row["kl"])) for kind in kinds]


def scenes() -> str:
    rows = read("scenes.csv")
    dense = rows[0]
    chosen = {row["method"]: row for row in rows if row["keep"] == "0.4"}
    cells = []
    for name in ("PaPr, nano proposal", "PaPr and ToMe", "ToMe", "centre", "random"):
        row = chosen[name]
        spread = ""
        if row["draws"] != "1":
            low, high = (float(row[key]) - float(dense["top1"]) for key in ("top1_low", "top1_high"))
            spread = f" [{low:+.1f} to {high:+.1f}]"
        recipe = recipe_of(row).replace(", seed=0", "")
        cells.append([name, recipe, times(row["macs_ratio"]), change(row, dense["top1"]) + spread, *points(row)])
    return table(["", "recipe", "fewer MACs", "top-1", "same answer", "KL"], cells)


def budgets(host: str) -> str:
    """For each saving what some methods lose: the table from budget to expected loss."""
    columns = {"guarded + readout": "`guarded + readout`", "tome": "`tome`", "papr": "`papr`, proposal on top",
               "random": "`random`"}  # fmt: skip
    rows = []
    for saved in dict.fromkeys(row["saved"] for row in read("compare.csv") if row["host"] == host):
        here = {named(row).partition(",")[0]: row for row in compared(host, saved) if row["counted"] == "host"
                and row["method"] in columns}  # fmt: skip
        cells = []
        for method in columns:
            row = here.get(method)
            cells.append("" if row is None else f"{change(row, row['top1_dense'])} / {points(row)[0]}")
        dense, host_macs = (float(next(iter(here.values()))[key]) for key in ("gmac_dense", "gmac_host"))
        rows.append([times(dense / host_macs), *cells])
    return table(["fewer MACs of the host", *columns.values()], rows)


# PaPr's map


def maps(photographs: str, target: str, host_at_least: str = "0", proposal_at_most: str = "1") -> list[Row]:
    told = (photographs, target, host_at_least, proposal_at_most)
    keys = ("photographs", "target", "host_at_least", "proposal_at_most")
    return [row for row in read("maps.csv") if tuple(row[key] for key in keys) == told]


MAPS = {"mean": "PaPr", "cam": "CAM of the proposal's answer", "cam, label": "CAM of the label", "centre": "centre",
        "random": "random"}  # fmt: skip


def maps_by_confidence(photographs: str = "both") -> str:
    """PaPr's map and CAMs on all photographs, and on those of which the host is sure and the proposal is not."""
    groups = {"all": ("0", "1"), "host >= .5": ("0.5", "1"), "and proposal <= .2": ("0.5", "0.2"),
              "and proposal <= .05": ("0.5", "0.05")}  # fmt: skip
    rows, head = [], ["map"]
    found = {title: {row["map"]: row for row in maps(photographs, "label", *ends)} for title, ends in groups.items()}
    for title, group in found.items():
        head.append(f"{title}, n = {group['mean']['count']}")
    dense = [f"{100 * float(group['mean']['confidence_dense']):.1f} %" for group in found.values()]
    rows.append(["all tokens", *dense])
    for name, title in MAPS.items():
        cells = []
        for group in found.values():
            row = group[name]
            left = f"{100 * float(row['confidence']):.1f} %"
            low, high = (-100 * float(row[key]) for key in ("papr_ahead_high", "papr_ahead_low"))
            against = (
                "" if name == "mean" else f" ({-100 * float(row['papr_ahead_by']):+.1f}; {low:+.1f} to {high:+.1f})"
            )
            cells.append(left + against)
        rows.append([title, *cells])
    return table(head, rows)


def maps_everywhere() -> str:
    return table(
        ["map", "confidence left", "answers kept", "PaPr higher / lower on", "cost, share of the host's MACs"],
        [
            [
                "PaPr" if row["map"] == "mean" else row["map"], f"{100 * float(row['confidence']):.1f} %",
                f"{float(row['answers_kept']):.1f} %",
                "" if row["map"] == "mean" else f"{row['papr_higher_on']} / {row['papr_lower_on']}",
                f"{100 * float(row['share_of_host_macs']):.0f} %",
            ]
            for row in maps("both", "answer") if row["map"] != "cam, label"
        ],
    )  # fmt: skip


def overlap(a: str, b: str) -> float:
    return next(float(row["overlap"]) for row in read("overlap.csv") if (row["a"], row["b"]) == (a, b))


def papr_against_tome(host: str = "deit_tiny") -> str:
    """KL of both at each saving of the host's MACs."""
    found = {(row["saved"], row["method"]): row for row in read("compare.csv") if row["host"] == host
             and row["counted"] == "host"}  # fmt: skip
    savings = dict.fromkeys(saved for saved, _ in found)
    cells = [
        [f"`{method}`", *(f"{float(found[saved, method]['kl']):.3f}" for saved in savings)]
        for method in ("papr", "tome")
    ]
    return table(["KL", *(f"{saved} % saved" for saved in savings)], cells)


# Speed


def speed() -> str:
    every = read("speed.csv", "speed_large.csv")
    macs = {(row["host"], row["recipe"]): row["macs_ratio"] for row in every if row["macs_ratio"]}
    rows = [
        [short(row["host"]), recipe_of(row), row["dtype"], times(macs[row["host"], row["recipe"]]), times(row["limit"]),
         f"**{measured(row)}**", f"{100 * float(row['of_limit']):.0f} %"]
        for row in every if row["batch"] == "8" and "centre" not in row["recipe"]
    ]  # fmt: skip
    return table(["host", "recipe", "dtype", "fewer MACs", "limit", "speed", "of the limit"], rows)


def stages() -> str:
    rows = [
        [short(row["host"]), recipe_of(row), row["batch"], times(row["macs_ratio"]), times(row["limit"]),
         f"**{measured(row)}**"]
        for row in read("speed_stages.csv") if row["recipe"] != "papr(keep=0.3)"
    ]  # fmt: skip
    return table(["host", "recipe", "batch", "fewer MACs", "limit", "speed"], rows)


def waterfall() -> str:
    rows = read("waterfall.csv")
    steps = {"dense": "dense, fp32, batch 8", "recipe": "+ recipe", "bf16": "+ bf16", "compile": "+ compile"}
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    cells: dict[str, list[str]] = {}
    for row in rows:
        name = steps.get(row["step"], f"+ batch {row['batch']}")
        cell = times(row["ratio"])
        if row["limit"]:
            cell += f" [{float(row['low']):.2f}-{float(row['high']):.2f}], limit {times(row['limit'])}"
        cells.setdefault(name, [name]).append(cell)
    return table(["", *(f"`{recipe}`" for recipe in recipes)], list(cells.values()))


def onnx() -> str:
    rows = []
    for row in read("onnx.csv"):
        worst = max(float(row["difference_b1"]), float(row["difference_b5"]))
        rows.append([short(row["host"]), recipe_of(row), row["batch"], times(row["limit"]), f"**{measured(row)}**",
                     f"{worst:.0e}"])  # fmt: skip
    return table(["host", "recipe", "batch", "limit", "speed", "largest difference"], rows)


def embeddings() -> str:
    rows = [
        [short(row["host"]), recipe_of(row) if row["recipe"] else "dense", f"{float(row['gmac']):.1f}",
         times(row["macs_ratio"]), row["tokens_last_block"]]
        for row in read("embeddings.csv")
    ]  # fmt: skip
    return table(["host", "recipe", "GMAC", "fewer MACs", "tokens in the last block"], rows)


def segmenters() -> str:
    """MACs in GMAC, beside those that papers print; a row each segmenter."""
    rows = read("segmenters.csv")
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    lines = []
    for what in dict.fromkeys(row["what"] for row in rows):
        own = {row["setting"]: row for row in rows if row["what"] == what}
        cells = [own[setting] for setting in settings]
        figures = [row["published"] or row["recounted"] for row in cells]
        told = [f" ({figure})" if figure else "" for figure in figures]
        lines.append([what, *(f"{float(row['gmac']):.3f}{figure}" for row, figure in zip(cells, told, strict=True))])
    return table(["GMAC", *settings], lines)


WHOLE = ("base", "longer")
TRAINED = ("direct", "finetune", "finetune_heads", "retrain")
"""Variants of dtop.csv without exits, and with."""
LOST = 0.5
"""Points of mIoU on the validation pictures that a variant may lose where it is compared."""


def baselines() -> list[Row]:
    """Of dtop.csv, each head's base, @Direct at the threshold where it is compared, and what has as many MACs."""
    rows = read("dtop.csv") if (ROOT / "results" / "dtop.csv").is_file() else []
    found = []
    for head in dict.fromkeys(row["head"] for row in rows):
        own = [row for row in rows if row["head"] == head]
        direct = compared_exit(own, "direct")
        beside = [row for row in own if row["variant"] not in (*WHOLE, *TRAINED, "tome")]
        merged = [row for row in own if row["variant"] == "tome" and direct]
        merged.sort(key=lambda row, gmac=float(direct["gmac"]) if direct else 0.0: abs(float(row["gmac"]) - gmac))
        found += [row for row in own if row["variant"] == "base"] + [row for row in (direct, *merged[:1]) if row]
        found += sorted(beside, key=lambda row: -float(row["test_miou"]))
    return found


def compared_exit(rows: list[Row], variant: str) -> Row | None:
    """The lowest threshold that loses little, or else the highest."""
    base = next((float(row["val_miou"]) for row in rows if row["variant"] == "base"), None)
    own = sorted((row for row in rows if row["variant"] == variant), key=lambda row: float(row["setting"]))
    if base is None or not own:
        return None
    return next((row for row in own if float(row["val_miou"]) >= base - LOST), own[-1])


def exit_training() -> str:
    """Of dtop.csv, each head without exits and every variant at the threshold where it is compared, with its time."""
    names = {"base": "without exits", "longer": "without exits, trained on", "direct": "@Direct",
             "finetune": "@Finetune", "finetune_heads": "@Finetune, heads alone", "retrain": "@Retrain"}  # fmt: skip
    heads = {"segvit": "SegViT", "setr": "SETR, naive"}
    rows = read("dtop.csv") if (ROOT / "results" / "dtop.csv").is_file() else []
    lines = []
    for head in dict.fromkeys(row["head"] for row in rows):
        own = [row for row in rows if row["head"] == head]
        cells = [row for row in own if row["variant"] in WHOLE] + [compared_exit(own, variant) for variant in TRAINED]
        for row in cells:
            if row is None:
                continue
            times = [f"{float(row[name]):.2f}x" if row.get(name) else "" for name in TIMES]
            figures = [f"{float(row[f'{split}_miou']):.1f}" for split in ("val", "test")]
            lines.append(
                [heads[head], names[row["variant"]], row["setting"], f"{float(row['gmac']):.3f}",
                 f"{float(row['macs_saved']):.1f} %", *figures, *times]
            )  # fmt: skip
    return table(
        ["heads", "training", "threshold", "GMAC", "saved", "mIoU, validation", "mIoU, test", "MACs of those timed",
         "time, batch 1", "limit", "time, batch 8", "limit"], lines,
    )  # fmt: skip


TIMES = ("macs_timed", "time_1", "limit_1", "time_8", "limit_8")


def exit_baselines() -> str:
    titles = {"base": "no exits", "direct": "`dtop`", "tome": "`tome`", "papr": "`papr`, nearest patch",
              "papr, zero": "`papr`, zeros", "guarded": "`guarded`"}  # fmt: skip
    heads = {"segvit": "SegViT", "setr": "SETR, naive"}
    rows = [
        [heads[row["head"]], titles.get(row["variant"], row["variant"]),
         f"threshold={row['setting']}" if row["variant"] == "direct" else row["setting"], f"{float(row['gmac']):.3f}",
         f"{float(row['macs_saved']):.1f} %", f"{float(row['val_miou']):.1f}", f"{float(row['test_miou']):.1f}"]
        for row in baselines()
    ]  # fmt: skip
    return table(["heads", "what", "setting", "GMAC", "saved", "mIoU, validation", "mIoU, test"], rows)


def exit_speed() -> str:
    names = {"base": "ViT-B, 512 pixels", "large": "ViT-L, 640 pixels"}
    rows = [
        [names[row["setting"]], row["batch"], f"{100 * float(row['macs_saved']):.1f} %",
         *(f"{100 * float(row[f'{who}_saved']):.1f} %" for who in ("limit", "sieved", "loop")),
         f"**{float(row['sieved_of_macs']):.2f}**", row["tokens"]]
        for row in read("dtop_speed.csv")
    ]  # fmt: skip
    head = ["segmenter", "batch", "MACs saved", "limit", "time saved", "loop over images", "time over MACs"]
    return table([*head, "tokens left in the images"], rows)


def video_speed() -> str:
    rows = [
        [f"{row['host']}, `keep={row['recipe'].split('keep=')[1].split(',')[0]}`", row["batch"],
         f"{float(row['macs_ratio']):.2f}x", f"**{float(row['ratio']):.2f}x**",
         f"{float(row['ratio_low']):.2f}-{float(row['ratio_high']):.2f}", f"{float(row['limit']):.2f}x",
         f"{100 * float(row['proposal_share_of_sieved']):.0f} %", f"{float(row['tome_ratio']):.2f}x"]
        for row in read("video_speed.csv")
    ]  # fmt: skip
    head = ["host", "batch", "fewer MACs", "faster", "spread", "limit", "proposal's share of the time", "ToMe"]
    return table(head, rows)


def slimming() -> str:
    names = {"patch_slimming, form A": "Patch Slimming, form A",
             "patch_slimming, form A, head_mean": "the same, ranked by averaged heads",
             "patch_slimming, form B": "Patch Slimming, form B",
             "papr, squeezenet, its MACs in the budget": "PaPr, SqueezeNet's MACs within the budget",
             "papr, squeezenet, its MACs on top": "PaPr, SqueezeNet's MACs on top",
             "papr, centre": "PaPr by distance from the centre, no proposal",
             "papr, centre + readout": "the same + readout", "papr, random": "PaPr at random",
             "tome": "ToMe", "tome + readout": "ToMe + readout"}  # fmt: skip
    found: dict[str, list[Row]] = {}
    for row in read("slim.csv"):
        found.setdefault(row["method"], []).append(row)
    rows = []
    for name, title in names.items():
        both = found[name]
        same, kl = (" / ".join(cells) for cells in zip(*(points(row) for row in both), strict=True))
        rows.append([title, f"{float(both[0]['gmac']):.2f}", same, kl])
    return table(["recipe", "GMAC", "same answer", "KL"], rows)


# Versions

LIBRARIES = {"python": "Python", "torch": "torch", "timm": "timm", "transformers": "transformers",
             "open_clip_torch": "open_clip"}  # fmt: skip


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def environments(name: str) -> list[tuple[str, ...]]:
    """The combinations of versions in a file's rows, the oldest first."""
    found = {tuple(row[library] for library in LIBRARIES) for row in read(name)}
    return sorted(found, key=lambda versions: [number(version) for version in versions])


def between() -> str:
    """The tests of hosts and of every method on every host, under each combination of versions."""
    rows = {tuple(row[library] for library in LIBRARIES): row for row in read("versions_between.csv")}
    cells = [[*key, *(rows[key][told] for told in ("passed", "failed", "skipped"))]
             for key in environments("versions_between.csv")]  # fmt: skip
    return table([*LIBRARIES.values(), "passed", "failed", "skipped"], cells)


def page_visit() -> str:
    """What a visitor of the page did, what it said, and the seconds until all of it was there."""
    rows = [row for row in read("app.csv") if row["seconds"] and not row["worst"]]
    return table(
        ["", "the page says", "s"], [[row["what"], row["told"], f"{float(row['seconds']):.2f}"] for row in rows]
    )


def same_macs() -> str:
    """MACs of a host and recipe: one figure where all versions agree."""
    found: dict[tuple[str, str], dict[int, None]] = {}
    for row in read("versions.csv"):
        found.setdefault((row["host"], row["recipe"]), {})[int(row["macs"])] = None
    cells = [[f"`{host}`", f"`{recipe}`" if recipe else "(empty)", " or ".join(f"{macs:,}" for macs in all_of)]
             for (host, recipe), all_of in found.items()]  # fmt: skip
    return table(["model", "recipe", "MACs"], cells)
