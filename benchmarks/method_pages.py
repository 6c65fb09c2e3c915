"""What the pages of single methods and of families of hosts say from results/*.csv. `readme.py` puts it there."""

from __future__ import annotations

from results import ROOT
from tables import Row, change, commands, measured, points, read, recipe_of, short, table, times


def method_rows(method: str) -> str:
    """What a method loses on a DeiT-Tiny at each share of the host's MACs, and how fast it is on a ViT-B."""
    rows = [
        row
        for row in read("compare.csv")
        if (row["host"], row["method"], row["counted"]) == ("deit_tiny", method, "host")
    ]
    timed = next((row for row in rows if row["ratio"]), None)
    told = f"""A DeiT-Tiny on {rows[0]["images"]} photographs, dense top-1 {float(rows[0]["top1_dense"]):.1f} %, by the
share of the host's MACs that is saved:

{loss(rows)}

{commands("compare.csv", host="deit_tiny", method=method)}"""
    if timed is not None:
        told += f"""

Measured beside the dense model on a CPU, batch {timed["batch"]}, at {times(macs_ratio(timed))} fewer MACs:
{measured(timed)} as fast. {fast(method)}"""
    elif fast(method):
        told += f"\n\n{fast(method)}"
    return told + "\n\nAll methods side by side: [results](../results.md#every-method)."


def macs_ratio(row: Row) -> float:
    return float(row["gmac_dense"]) / float(row["gmac"])


def loss(rows: list[Row]) -> str:
    cells = [
        [f"{row['saved']} %", times(macs_ratio(row)), change(row, row["top1_dense"]), *points(row)]
        for row in sorted(rows, key=lambda row: int(row["saved"]))
    ]
    return table(["saved", "fewer MACs", "top-1", "same answer", "KL"], cells)


def fast(method: str) -> str:
    """A sentence on the ViT-B of speed_methods.csv; nothing where the method was not timed there."""
    row = next((row for row in read("speed_methods.csv") if row["method"] == method), None)
    if row is None:
        return ""
    spread = f"{times(row['ratio'])} as fast [{float(row['low']):.2f}-{float(row['high']):.2f}]"
    return f"""A ViT-B at batch {row["batch"]} is {spread} at {times(row["macs_ratio"])} fewer MACs,
{100 * float(row["of_limit"]):.0f} % of what the host alone reaches on as many tokens
([results/speed_methods.csv](../../results/speed_methods.csv))."""


def cost_alone(method: str) -> str:
    """For a method whose loss depends on training that was not done here."""
    row = next(
        row for row in read("compare.csv") if (row["host"], row["method"]) == ("deit_tiny", method) and row["ratio"]
    )
    return f"""Without its trained predictors the loss says nothing, so here is the cost alone: a DeiT-Tiny at
{times(macs_ratio(row))} fewer MACs, random predictors included, is {measured(row)} as fast on a CPU at batch
{row["batch"]}. {fast(method)}

{commands("compare.csv", host="deit_tiny", method=method)}"""


def readout_rows() -> str:
    found = {(row["saved"], row["method"]): row for row in read("compare.csv") if row["host"] == "deit_tiny"}
    cells = []
    for saved in dict.fromkeys(saved for saved, _ in found):
        for method in ("tome", "tome + readout", "guarded", "guarded + readout"):
            row = found[saved, method]
            cells.append([f"{saved} %", f"`{method}`", change(row, row["top1_dense"]), *points(row)])
    return f"""What it saves in the last block is spent on tokens in the others. A DeiT-Tiny at the same MACs with it
and without:

{table(["saved", "recipe", "top-1", "same answer", "KL"], cells)}

{commands("compare.csv", host="deit_tiny")}

The schedules of the rows with `readout` were searched for it, those of the others are constant; so this shows recipes
as they would be used, not the step alone."""


def corrected_rows() -> str:
    rows = read("tuned_deit_tiny.csv")
    budgets = {row["budget"] for row in rows if row["kind"] == "corrected"}
    cells = [
        [times(row["macs_ratio"]), "with a correction" if row["kind"] == "corrected" else "the recipe",
         change(row, row["top1_dense"]), *points(row, 4)]
        for row in sorted(rows, key=lambda row: float(row["budget"]))
        if row["budget"] in budgets and row["kind"] in ("corrected", "searched") and "squeezenet" not in row["title"]
    ]  # fmt: skip
    return f"""The recipes that [`tokensieve tune`](../tune.md) found for a DeiT-Tiny, on {int(rows[0]["images"]):,}
photographs of ten classes; the correction was fitted on others of the same ten:

{table(["fewer MACs", "", "top-1", "same answer", "KL"], cells)}

{commands("tuned_deit_tiny.csv", kind="corrected")}"""


def dynamic_rows() -> str:
    rows = [row for row in read("macs.csv") if row["recipe"].startswith(("dynamiccnn", "dynamicswin"))]
    cells = [
        [short(row["host"]), f"`{row['recipe']}`", f"{float(row['gmac']):.3f}", row["expected_gmac"]] for row in rows
    ]
    return f"""GMAC as the papers' counter has them, beside what they publish:

{table(["host", "recipe", "here", "published"], cells)}

{commands("macs.csv")}

The loss depends on the trained files, which were not at hand."""


def rlt_rows() -> str:
    if not (ROOT / "results" / "video.csv").is_file():
        return "Not measured yet: `python benchmarks/video_scenes.py`."
    every = read("video.csv")
    dense = next(row for row in every if row["method"] == "dense")
    cells = [
        [recipe_of(row), times(row["macs_ratio"]), change(row, dense["top1"]), *points(row)]
        for row in every
        if row["method"] == "RLT"
    ]
    return f"""The bundled `nano_video` on generated moving scenes, dense top-1 {float(dense["top1"]):.1f} %; MACs are
the mean over the clips.

{table(["recipe", "fewer MACs", "top-1", "same answer", "KL"], cells)}

{commands("video.csv", method="RLT")}"""


# Families of hosts


def family(*classes: str) -> str:
    """Models of timm that open, of these classes."""
    rows = [row for row in read("hosts.csv") if row["opens"] == "True" and row["class"] in classes]
    cells = []
    for cls in classes:
        own = [row for row in rows if row["class"] == cls]
        merging = [row for row in own if row["merges"] == "True"]
        cells.append([f"`{cls}`", str(len(own)), str(len(merging)), prefixes(own)])
    names = " ".join(f"`{row['model']}`" for row in rows)
    refused = "".join(
        f"- {why(row)} ({count(row, rows)})\n"
        for row in {why(row): row for row in rows if row["merges"] != "True"}.values()
    )
    told = f"""Of timm {rows[0]["versions"].rpartition(" ")[2]}:

{table(["class", "models that open", "of these take methods that merge", "prefix tokens"], cells)}"""
    if refused:
        told += f"\n\nWhat cannot merge, and takes methods that drop:\n\n{refused.strip()}"
    return f"""{told}

{commands("hosts.csv")}

<details><summary>All {len(rows)} names</summary>

{names}

</details>"""


def why(row: Row) -> str:
    """The part of the refusal that is about the model."""
    return row["merges_reason"].partition("tome: ")[2].partition(" (")[0]


def prefixes(rows: list[Row]) -> str:
    return ", ".join(str(number) for number in sorted({int(row["prefix"]) for row in rows}))


def count(row: Row, rows: list[Row]) -> str:
    same = [other["model"] for other in rows if why(other) == why(row)]
    return f"{len(same)}: `{same[0]}`" + (", ..." if len(same) > 1 else "")


def adaptive_rows() -> str:
    """Bars beside the numbers that they were set for; time where it was measured."""
    if not (ROOT / "results" / "adaptive.csv").is_file():
        return """On 150 photographs, from the schedule that `tune` found for a DeiT-Tiny at 1.9x fewer MACs, KL is
.036 where `guarded` has .049, and at 1.43x .0051 where it has .0076:
[research notes](../research-notes.md#adaptive-merging). `python benchmarks/adaptive.py` judges all 1,750 and measures
the time; it has not been run to its end yet."""
    rows, cells = read("adaptive.csv"), []
    timed = [batch for batch in (1, 8, 32) if any(row.get(f"time_{batch}") for row in rows)]
    for row in rows:
        few = {name.removesuffix("_250"): value for name, value in row.items() if name.endswith("_250")}
        speeds = [times(row[f"time_{batch}"]) if row[f"time_{batch}"] else "" for batch in timed]
        lost = [change(row, row["top1_dense"]), *points(row, 4), change(few, few["top1_dense"]), *points(few, 4)]
        cells.append([f"`{row['method']}`", times(row["macs_ratio"]), *lost, *speeds])
    head = ["method", "fewer MACs", "top-1", "same answer", "KL", "top-1, 250", "same, 250", "KL, 250"]
    head += [f"speed, batch {batch}" for batch in timed]
    dense = float(rows[0]["top1_dense"])
    return f"""A DeiT-Tiny on {int(rows[0]["images"]):,} photographs, dense top-1 {dense:.1f} %: the schedules of
`guarded` that `tune` found, and bars set for them on 250 other pictures; MACs are the mean over the photographs. The
columns with 250 are those that the model was not trained on. A [correction](corrected.md) is fitted in closed form on
500 unlabelled photographs of imagenette_train, of the same ten classes.

{table(head, cells)}

{commands("adaptive.csv")}"""
