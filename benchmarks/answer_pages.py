"""What README, docs/cascade.md, heal.md and proposals.md say of the same answers for less, from results/."""

from __future__ import annotations

from tables import Row, change, commands, missing, read, table, times

TAUGHT = {
    "photographs": "`learnt` was taught on 700 photographs of imagenette_train, without labels, by the gradient and "
    "listwise; `equal` is as many MACs as `learnt` has in all.",
    "scenes": "`learnt` was taught on other scenes, without labels; `equal` is as many MACs as `learnt` has in all.",
}
WHOLE = "imagenette_val + imagenet_val_a"
PHOTOGRAPHS = "photographs of the ten classes"
SPEED = ("speed", "speed_low", "speed_high")
NAMES = {
    ("tuned", "none"): "the recipe that `tune` found",
    ("tuned", "norms"): "the same, norms and biases healed",
    ("tuned", "all"): "the same, all of it healed",
    ("adaptive", "none"): "adaptive merging",
    ("adaptive", "all"): "adaptive merging, all of it healed",
}
MODES = {
    "none": "not healed",
    "all": "healed, all parameters",
    "lora": "healed, LoRA",
    "norms": "healed, norms and biases",
}


def answers() -> str:
    """DeiT-Tiny, from the dense model to cascades of healed ones."""
    for name, command in (("heal.csv", "benchmarks/heal.py judge"), ("cascade.csv", "benchmarks/cascade.py judge")):
        if told := missing(name, command):
            return told
    healed = read("heal.csv")
    cells = [["dense", "1.00x", "1.00x", "-", f"{float(healed[0]['top1_dense']):.1f} %"]]
    timed = next((row for row in healed if row.get("speed") and row["recipe"] == "tuned" and not row["promise"]), {})
    for (recipe, mode), name in NAMES.items():  # other weights take the same time
        for row in healed:
            if _is(row, recipe, mode):
                same = {key: timed.get(key, "") for key in SPEED} if recipe == "tuned" else {}
                cells.append(_cells(name, row | same))
    most = max(int(row["calibrated_on"]) for row in _promises())
    cells += [
        _cells(f"a cascade that promises {row['wanted']}", row)
        for row in _promises() if int(row["calibrated_on"]) == most
    ]  # fmt: skip
    head = ["DeiT-Tiny", "fewer MACs", "speed, batch 32", "same answer [95 %]", "top-1"]
    return f"""Your photographs, no labels, one small model: what can be had. Judged on 1,750 ImageNet photographs
that neither the search nor the healing nor the calibration saw.

{table(head, cells)}

A [healed](docs/heal.md) model holds a second set of weights; a [cascade](docs/cascade.md) reads again what its first
reading is not sure of, and keeps its promise on images like those it was calibrated on."""


def _is(row: Row, recipe: str, mode: str) -> bool:
    wanted = (recipe, mode, PHOTOGRAPHS, "")
    return (row["recipe"], row["mode"], row["judged_on"], row["promise"]) == wanted


def _promises() -> list[Row]:
    return [row for row in read("cascade.csv") if row["kind"] == "promise" and row["judged_on"] == WHOLE]


def _same(row: Row) -> str:
    ends = f"{float(row['agreement_low']):.1f}-{float(row['agreement_high']):.1f}"
    return f"{float(row['agreement']):.1f} % [{ends}]"


def _cells(name: str, row: Row) -> list[str]:
    return [name, times(row["macs_ratio"]), _speed(row), _same(row), f"{float(row['top1']):.1f} %"]


def _speed(row: Row) -> str:
    if not row.get("speed"):
        return ""
    return f"{times(row['speed'])} [{float(row['speed_low']):.2f}-{float(row['speed_high']):.2f}]"


def cascades() -> str:
    """Savings, plain recipes beside them, promises, and how often those were broken."""
    rows = [row for row in read("cascade.csv") if row["judged_on"] == WHOLE]
    cells = [
        [_kind(row), f"{int(row['calibrated_on']):,}" if row["kind"] != "plain" else "-", times(row["macs_ratio"]),
         "-" if row["kind"] == "plain" else f"{100 * float(row['read_again']):.1f} %", _same(row),
         f"{float(row['top1']):.1f} %", _speed(row)]
        for row in rows
    ]  # fmt: skip
    head = ["", "calibrated on", "fewer MACs", "read again", "same answer [95 %]", "top-1", "speed, batch 32"]
    dense, count = float(rows[0]["top1_dense"]), int(rows[0]["images"])
    told = [
        f"{row['wanted']} was broken {row['broken']} times (lowest {float(row['lowest']):.1f} %)"
        for row in read("cascade.csv") if row["kind"] == "splits"
    ]  # fmt: skip
    unseen = [
        f"{row['wanted']} ({int(row['calibrated_on']):,} to calibrate): {_same(row)} at {times(row['macs_ratio'])}"
        for row in read("cascade.csv") if row["kind"] == "promise" and row["judged_on"] != WHOLE
    ]  # fmt: skip
    return f"""DeiT-Tiny, two readings, the first with three blocks left alone and strong merging behind, the last
dense with `readout()`; calibrated on photographs of imagenette_train, judged on {count:,} others, MACs of both readings
counted; dense top-1 {dense:.1f} %. `1.6x` and so on: a threshold that spends so much on the pictures of the
calibration, and beside it one recipe of the same saving.

{table(head, cells)}

In 100 random splits of imagenette_train, 500 photographs to calibrate and the rest to judge, the promise of
{", that of ".join(told)}. On the 250 photographs that the model was not trained on, which are harder than those of
the calibration: {"; ".join(unseen)}.

{commands("cascade.csv")}"""


def _kind(row: Row) -> str:
    names = {"saving": "{}", "plain": "one recipe, {}", "tuned": "found by `tune --agree`, a promise of {}"}
    return names.get(row["kind"], "a promise of {}").format(row["wanted"])


def _change(row: Row) -> str:
    return change(row, row["top1_dense"])


def healing() -> str:
    """Before and after, by what was trained; with a cascade on top."""
    if told := missing("heal.csv", "benchmarks/heal.py judge"):
        return told
    rows = read("heal.csv")
    cells = [
        [row["recipe"], MODES[row["mode"]], row["judged_on"], f"{int(row['images']):,}", f"{float(row['kl']):.4f}",
         _same(row), _change(row) if row["top1"] else "-",
         f"{float(row['minutes']):.0f}" if row["minutes"] else "-"]
        for row in rows if not row["promise"]
    ]  # fmt: skip
    head = ["recipe", "", "judged on", "images", "KL", "same answer [95 %]", "top-1", "minutes"]
    above = [
        [f"{row['recipe']}, {MODES[row['mode']]}", row["promise"], row["judged_on"], times(row["macs_ratio"]),
         f"{100 * float(row['read_again']):.0f} %", _same(row), _change(row), _speed(row)]
        for row in rows if row["promise"]
    ]  # fmt: skip
    over = ["first reading", "promise", "judged on", "fewer MACs", "read again", "same answer [95 %]", "top-1", "speed"]
    return f"""DeiT-Tiny at {times(rows[0]["macs_ratio"])} fewer MACs, by the recipe that `tune` found or by
[adaptive merging](methods/adaptive.md), healed on unlabelled
photographs of imagenette_train, of ten classes; street scenes are of none of them:

{table(head, cells)}

With a [cascade](cascade.md) on top, the dense model behind, calibrated on 500 photographs of imagenette_val:

{table(over, above)}

{commands("heal.csv")}"""


def proposals() -> str:
    """The learned proposal beside a classifier, the centre, chance and none; its share of the time."""
    if told := missing("proposal.csv", "benchmarks/proposal.py judge"):
        return told
    rows = read("proposal.csv")
    told = []
    for title, name in (("photographs", "Photographs, DeiT-Tiny"), ("scenes", "Scenes, `nano_vit`")):
        judged = [row for row in rows if row["set"] == title and not row["proposal"].endswith(", itself")]
        if judged:
            cells = [
                [row["proposal"], row["at"], f"{float(row['gmac']):.3f}", f"{float(row['kl']):.3f}",
                 f"{float(row['agreement']):.1f} %"]
                for row in sorted(judged, key=lambda row: (row["at"][-3:], float(row["kl"])))
            ]  # fmt: skip
            head = ["proposal", "at", "GMACs", "KL", "same answer"]
            told.append(f"{name}, {int(judged[0]['images']):,} images. {TAUGHT[title]}\n\n{table(head, cells)}")
    timed = [row for row in rows if row["set"].startswith("time")]
    if timed:
        cells = [
            [row["set"].removeprefix("time, "), row["proposal"], times(row["ratio"]), times(row["limit"]),
             f"{float(row['of_limit']):.2f}"]
            for row in timed
        ]  # fmt: skip
        head = ["host", "proposal", "speed", "limit", "of the limit"]
        told.append(f"`papr(keep=0.5)`, speed against the dense model, and the slicing limit:\n\n{table(head, cells)}")
    return "\n\n".join([*told, commands("proposal.csv")])


ANSWERS = {
    "docs/cascade.md": {"measured": cascades},
    "docs/heal.md": {"measured": healing},
    "docs/proposals.md": {"measured": proposals},
}
