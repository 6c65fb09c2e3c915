"""Write the README's figures from results/*.csv, so that they are never typed by hand.

python benchmarks/readme.py [--check]
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKS = ("<!-- results: written by benchmarks/readme.py -->", "<!-- end of results -->")


def read(*names: str) -> list[dict[str, str]]:
    rows = []
    for name in names:
        with (ROOT / "results" / name).open(newline="") as file:
            rows += csv.DictReader(file)
    return rows


def speeds() -> list[dict[str, str]]:
    return read("speed.csv", "speed_large.csv")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def speed() -> str:
    rows = []
    for row in speeds():
        if row["batch"] != "8" or "centre" in row["recipe"]:
            continue
        ratio = macs_ratio(row)
        rows.append(
            [
                row["host"].removesuffix("_patch16_224"), f"`{row['recipe']}`", row["dtype"], f"{ratio:.2f}x",
                f"{float(row['limit']):.2f}x",
                f"**{float(row['ratio']):.2f}x** [{float(row['ratio_low']):.2f}-{float(row['ratio_high']):.2f}]",
                f"{100 * float(row['of_limit']):.0f} %",
            ]
        )  # fmt: skip
    head = ["host", "recipe", "dtype", "MACs", "limit", "measured", "of the limit"]
    return table(head, rows)


def stages() -> str:
    rows = []
    for row in read("speed_stages.csv"):
        if row["recipe"] != "papr(keep=0.3)":
            rows.append(
                [
                    row["host"].split("_patch4")[0], f"`{row['recipe']}`", row["batch"],
                    f"{float(row['macs_ratio']):.2f}x", f"{float(row['limit']):.2f}x",
                    f"**{float(row['ratio']):.2f}x** [{float(row['ratio_low']):.2f}-{float(row['ratio_high']):.2f}]",
                ]
            )  # fmt: skip
    return table(["host", "recipe", "batch", "MACs", "limit", "measured"], rows)


def macs_ratio(row: dict[str, str]) -> float:
    same = [r for r in speeds() if (r["host"], r["recipe"]) == (row["host"], row["recipe"]) and r["macs_ratio"]]
    return float(same[0]["macs_ratio"])


def accuracy() -> str:
    rows = []
    shown = {
        "papr": ("squeezenet1_1",), "random": ("random, mean of 10 draws",), "tome": ("",), "papr+tome": None,
    }  # fmt: skip
    for row in read("accuracy.csv"):
        sources = shown.get(row["table"], ())
        if sources is not None and row["source"] not in sources:
            continue
        recipe = re.sub(r", proposal_weights='[^']*'", "", row["recipe"])
        if row["table"] == "papr+tome" and not re.search(r"keep=0\.8,.*r=8", recipe):
            continue
        if row["table"] != "papr+tome" and re.search(r"keep=0\.(7|6|3)\b", recipe):
            continue
        spread = f" [{float(row['top1_min']):.1f}-{float(row['top1_max']):.1f}]" if row["top1_min"] else ""
        saved = float(row["gmac_dense"]) / float(row["gmac_host"])
        everything = float(row["gmac_dense"]) / float(row["gmac_with_proposal"])
        rows.append(
            [f"`{recipe}`", f"{saved:.2f}x", f"{everything:.2f}x", f"{float(row['top1']):.1f}{spread}",
             f"{float(row['agreement']):.1f}", f"{float(row['kl']):.3f}"]
        )  # fmt: skip
    return table(["recipe", "MACs saved, host", "with proposal", "top-1", "agreement", "KL"], rows)


def compare(host: str) -> str:
    """Every method at the saving at which time was measured, the least changed first."""
    every = [row for row in read("compare.csv") if row["host"] == host]
    rows = [row for row in every if row.get("ratio")]
    cells = []
    for row in sorted(rows, key=lambda row: float(row["kl"])):
        name = row["method"] + (", proposal counted" if row["counted"] == "all" else "")
        saved = float(row["gmac_dense"]) / float(row["gmac"])
        lost = float(row["top1"]) - float(row["top1_dense"])
        measured = f"{float(row['ratio']):.2f}x [{float(row['ratio_low']):.2f}-{float(row['ratio_high']):.2f}]"
        cells.append(
            [name, f"{saved:.2f}x", f"{lost:+.1f}", f"{float(row['agreement']):.1f}", f"{float(row['kl']):.3f}",
             measured, row["unfair"]]
        )  # fmt: skip
    head = ["method", "fewer MACs, everything", "top-1", "agreement", "KL", "measured, batch 16", ""]
    return table(head, cells)


def tuned() -> str:
    rows = []
    for host, title in (("deit_tiny", "DeiT-Tiny"), ("nano_vit", "bundled pair")):
        for row in sorted(read(f"tuned_{host}.csv"), key=lambda row: float(row["budget"])):
            same = [r for r in read(f"tuned_{host}.csv") if r["budget"] == row["budget"]]
            best = {kind: min((r for r in same if r["kind"] == kind), key=lambda r: float(r["kl"])) for kind in
                    {r["kind"] for r in same}}  # fmt: skip
            if row not in best.values():
                continue
            lost = float(row["top1"]) - float(row["top1_dense"])
            names = {"searched": "**searched**", "corrected": "**searched, corrected**"}
            name = names.get(row["kind"], f"`{row['title']}` alone")
            rows.append(
                [title, f"{float(row['macs_ratio']):.2f}x", name, f"{lost:+.1f}", f"{float(row['agreement']):.1f}",
                 f"{float(row['kl']):.4f}"]
            )  # fmt: skip
    return table(["host", "fewer MACs, everything", "recipe", "top-1", "agreement", "KL"], rows)


def scenes() -> str:
    rows = read("scenes.csv")
    dense = rows[0]
    chosen = {row["method"]: row for row in rows if row["keep"] == "0.4"}
    names = ("PaPr, nano proposal", "PaPr and ToMe", "ToMe", "centre", "random")
    cells = [["dense", "", "1.00x", f"{float(dense['top1']):.1f}", ""]]
    for name in names:
        if name in chosen:
            row = chosen[name]
            spread = f" [{float(row['top1_low']):.1f}-{float(row['top1_high']):.1f}]" if row["draws"] != "1" else ""
            recipe = f"`{row['recipe']}`".replace(", seed=0", "")
            cells.append(
                [name, recipe, f"{float(row['macs_ratio']):.2f}x", f"{float(row['top1']):.1f}{spread}",
                 f"{float(row['agreement']):.1f}"]
            )  # fmt: skip
    return table(["", "recipe", "fewer MACs", "right, %", "agrees, %"], cells)


def maps() -> str:
    rows = [row for row in read("maps.csv") if row["photographs"] == "imagenet_val_a"]
    return table(
        ["map", "confidence left", "answers kept", "PaPr higher / lower on", "cost, share of the host's MACs"],
        [
            [
                "PaPr (mean)" if row["map"] == "mean" else row["map"], f"{100 * float(row['confidence']):.1f} %",
                f"{float(row['answers_kept']):.1f} %",
                "" if row["map"] == "mean" else f"{row['papr_higher_on']} / {row['papr_lower_on']}",
                f"{100 * float(row['share_of_host_macs']):.0f} %",
            ]
            for row in rows
        ],
    )  # fmt: skip


def waterfall() -> str:
    rows = read("waterfall.csv")
    steps = {"dense": "dense, fp32, batch 8", "recipe": "+ recipe", "bf16": "+ bf16", "compile": "+ compile"}
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    cells: dict[str, list[str]] = {}
    for row in rows:
        name = steps.get(row["step"], f"+ batch {row['batch']}")
        cell = f"{float(row['ratio']):.2f}x"
        if row["limit"]:
            cell += f" [{float(row['low']):.2f}-{float(row['high']):.2f}], limit {float(row['limit']):.2f}x"
        cells.setdefault(name, [name]).append(cell)
    return table(["", *(f"`{recipe}`" for recipe in recipes)], list(cells.values()))


def onnx() -> str:
    rows = []
    for row in read("onnx.csv"):
        worst = max(float(row["difference_b1"]), float(row["difference_b5"]))
        rows.append(
            [row["host"].partition("_patch")[0], f"`{row['recipe']}`", row["batch"],
             f"{float(row['limit']):.2f}x",
             f"**{float(row['ratio']):.2f}x** [{float(row['ratio_low']):.2f}-{float(row['ratio_high']):.2f}]",
             f"{worst:.0e}"]
        )  # fmt: skip
    return table(["host", "recipe", "batch", "limit", "measured", "largest difference"], rows)


def section() -> str:
    dense = next(row for row in read("accuracy.csv") if row["table"] == "dense")
    machine = speeds()[0]["machine"]
    compiled = next(row for row in read("compile.csv") if row["recipe"].startswith("tome"))
    scene = read("scenes.csv")[0]
    ours = next(row for row in read("maps.csv") if (row["photographs"], row["map"]) == ("imagenet_val_a", "mean"))
    photographs = next(row["images"] for row in read("compare.csv") if row["host"] == "deit_tiny")
    sure = 100 * float(ours["confidence_dense"])
    return f"""{MARKS[0]}
## Measured

Speed on a CPU ({machine}), batch 8; dense model, sieved model and
limit interleaved in one process. **Limit**: the host
itself on as many tokens, with selection for free. **Measured**: everything included, with the 10th and 90th percentile.

{speed()}

Compiled with inductor, `{compiled["recipe"]}` is {float(compiled["ratio"]):.2f}x faster than the compiled dense
ViT-B (limit {float(compiled["limit"]):.2f}x). All batches, memory and other settings: [results/](results/).

Hosts with stages keep their maps whole; point-wise operators alone read less ([stages](docs/stages.md)).
The limit runs them on a slice of as many pixels; proposal included:

{stages()}

What it loses, without training: DeiT-Tiny on 250 ImageNet validation photographs, 1000-way (dense: top-1
{float(dense["top1"]):.1f}; one photograph is 0.4 points). Agreement and KL are with the dense model.

{accuracy()}

The random row is the mean and range of ten draws. On a host as small as this the proposal weighs: SqueezeNet is a fifth
of it. On a ViT-B, MobileOne-S0 is 1.6 %.

Every method at the same MACs: 45 % of the host's saved, on {photographs} photographs (DeiT-Tiny) and with what choosing
costs in the measured time. All of 25 to 65 %, and the same on the bundled pair: [results](results/compare.csv).

{compare("deit_tiny")}

![KL over MACs, every method, both hosts](docs/pictures/compare.png)

What `tokensieve tune` finds on 250 other pictures without labels, beside the best method alone at the same MACs:

{tuned()}

The bundled pair on {scene["scenes"]} scenes that it never saw, everything at the MACs of `papr(keep=0.4)`:

{scenes()}

![Right answers over MACs, by what chooses the tokens](docs/pictures/scenes.png)

Is PaPr's map better than a CAM's? The probability that DeiT-Tiny still gives its dense answer on {ours["count"]}
ImageNet photographs when it reads 40 % of the tokens, SqueezeNet ranking (all tokens: {sure:.1f} %):

{maps()}

The reduction is one of several things that make a model faster. ViT-B, each row added to the one before, time an image
against the dense model in fp32 at batch 8:

{waterfall()}

Exported to ONNX, in onnxruntime on the same CPU, dense, sieved and limit interleaved:

{onnx()}
{MARKS[1]}"""


def main() -> int:
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    written = before + section() + after
    if "--check" in sys.argv:
        return int(written != text)
    readme.write_text(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
