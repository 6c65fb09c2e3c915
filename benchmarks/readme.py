"""Write the figures of README and docs from results/*.csv, so that they are never typed by hand.

python benchmarks/readme.py [--check]
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from functools import partial

from answer_pages import ANSWERS, answers
from command_pages import every_command
from method_pages import (
    adaptive_rows,
    corrected_rows,
    cost_alone,
    dynamic_rows,
    family,
    method_rows,
    readout_rows,
    rlt_rows,
)
from results import ROOT
from running_pages import RUNNING
from story_page import STORY
from tables import (
    LOST,
    accuracy,
    best_of,
    between,
    budgets,
    change,
    commands,
    compared,
    embeddings,
    environments,
    exit_baselines,
    exit_speed,
    exit_training,
    loss_and_speed,
    maps,
    maps_by_confidence,
    maps_everywhere,
    missing,
    named,
    onnx,
    overlap,
    page_visit,
    papr_against_tome,
    points,
    read,
    same_macs,
    scenes,
    segmenters,
    slimming,
    speed,
    stages,
    table,
    times,
    tuned,
    video_speed,
    waterfall,
)

MARKS = "<!-- {}: written by benchmarks/readme.py -->\n", "<!-- end of {} -->"
WIDTH = 120
SHOWN = ("guarded + readout", "guarded", "tome", "mctf", "pitome", "papr, centre", "papr, proposal on top", "random")
"""Rows of the README's table; all are in docs/results.md."""
EVAL = """```bash
tokensieve eval --model deit_tiny_patch16_224 --weights ../shared/weights/deit_tiny_patch16_224.safetensors \\
    --data ../shared/data/imagenet_val_a --classes ../shared/data/imagenet_classes.json --recipe "tome(r=8)"
```"""


def headline() -> str:
    best = row_of("guarded + readout")
    large = next(
        float(row["ratio"])
        for row in read("speed.csv")
        if (row["host"], row["batch"], row["dtype"], row["recipe"])
        == ("vit_base_patch16_224", "8", "fp32", "tome(r=13)")
    )
    return f"""A DeiT-Tiny with {float(saved(best)[:-1]):.1f} times fewer multiply-accumulates runs
{float(best["ratio"]):.1f}
times as fast on a CPU, gives the same answer to {float(best["agreement"]):.0f} of 100 photographs and loses
{-float(change(best, best["top1_dense"])):.1f} points of top-1 accuracy. A ViT-B runs {large:.1f} times as fast under
`tome(r=13)` ([results](docs/results.md#speed-of-larger-models)). Nothing is trained, and the weights stay as they
are."""


def row_of(name: str) -> dict[str, str]:
    """Of the README's table."""
    return next(row for row in compared("deit_tiny", "45") if named(row) == name)


def saved(row: dict[str, str]) -> str:
    return times(float(row["gmac_dense"]) / float(row["gmac"]))


def measured_readme() -> str:
    row = row_of("guarded + readout")
    return f"""One host, DeiT-Tiny, with 45 % of its multiply-accumulates (MACs) saved; {row["images"]}
ImageNet photographs, on
which the dense model has a top-1 accuracy of {float(row["top1_dense"]):.1f} %:

{loss_and_speed("deit_tiny", SHOWN)}

- **fewer MACs**: those of the dense model over those of the sieved one for an image, the proposal's included.
- **speed**: time of the dense model over time of the sieved one, everything included, at batch {row["batch"]} on a
  CPU, {row["machine"].rpartition(", ")[0]}. Both run in turns in one process; in brackets the 10th and 90th percentile
  of the rounds.
- **top-1**: change of the accuracy against the dense model, in percentage points. One photograph is
  {100 / int(row["images"]):.2f} points.
- **same answer**: share of the photographs to which both models give the same class.
- **KL**: mean Kullback-Leibler divergence from the dense model's class probabilities, in nats. It tells recipes apart
  where the other two are noise.

`papr` saves less here because its proposal, SqueezeNet, costs a fifth of a host this small; on a ViT-B the default
proposal costs 1.6 %. Written by

{commands("compare.csv", host="deit_tiny", saved="45")[:-4]}
python benchmarks/compare_methods.py --time        # the speed
```

[All results](docs/results.md): every method and budget, larger models, bf16, compiled, ONNX, models with stages.
[Which recipe](docs/which-recipe.md): from a budget to the loss to expect."""


def every_method() -> str:
    row = row_of("guarded + readout")
    return f"""DeiT-Tiny on {row["images"]} photographs, 45 % of the host's MACs saved, dense top-1
{float(row["top1_dense"]):.1f} %. Speed at batch {row["batch"]}; where it is missing, the recipe is new since it was
measured.

{loss_and_speed("deit_tiny")}

{commands("compare.csv", host="deit_tiny", saved="45")}

The same for savings of 25 to 65 %, and on the bundled pair, is in [results/compare.csv](../results/compare.csv):

![KL over MACs, every method, both hosts](pictures/compare.png)"""


def loss() -> str:
    dense, papers = (read(name)[0] for name in ("accuracy.csv", "accuracy_papers.csv"))
    return f"""DeiT-Tiny on 250 ImageNet validation photographs, 1000 classes, dense top-1
{float(dense["top1"]):.1f} %; one
photograph is 0.4 points. The random row is the mean and the range of ten draws.

{accuracy()}

{commands("accuracy.csv")}

or for one row

{EVAL}

With `--preprocessing papers` both commands prepare the photographs as the papers do, resized to exactly 224 pixels:
dense top-1 is then {float(papers["top1"]):.1f} % ([results/accuracy_papers.csv](../results/accuracy_papers.csv))."""


def searched() -> str:
    row = read("tuned_deit_tiny.csv")[0]
    return f"""What [`tokensieve tune`](tune.md) finds on 250 other pictures without labels, beside the best
method alone at
the same MACs; judged on {int(row["images"]):,} photographs, the bundled pair on 1,000 scenes.

{tuned()}

{commands("tuned_deit_tiny.csv", "tuned_nano_vit.csv")}"""


def bundled() -> str:
    row = read("scenes.csv")[0]
    return f"""The bundled pair on {row["scenes"]} scenes that it never saw, everything at the MACs of
`papr(keep=0.4)`; dense
top-1 {float(row["top1"]):.1f} %.

{scenes()}

{commands("scenes.csv")}

![Right answers over MACs, by what chooses the tokens](pictures/scenes.png)"""


def maps_all() -> str:
    ours = next(row for row in maps("both", "answer") if row["map"] == "mean")
    return f"""The probability that DeiT-Tiny still gives its dense answer on {int(ours["count"]):,}
photographs when it reads
40 % of the tokens, SqueezeNet ranking (all tokens: {100 * float(ours["confidence_dense"]):.1f} %). By confidence, which
is the paper's setting: [PaPr](papr.md#papr-or-a-cam).

{maps_everywhere()}

{commands("maps.csv")}"""


def larger() -> str:
    compiled = next(row for row in read("compile.csv") if row["recipe"].startswith("tome"))
    return f"""Batch 8, {read("speed.csv")[0]["machine"]}. The weights are random: speed does not depend on them.

{speed()}

{commands("speed.csv", "speed_large.csv")}

Compiled with inductor, `{compiled["recipe"]}` is {times(compiled["ratio"])} as fast as the compiled dense ViT-B (limit
{times(compiled["limit"])}; [results/compile.csv](../results/compile.csv))."""


def with_stages() -> str:
    return f"""[ConvNeXt and Swin](stages.md) keep their maps whole, and only point-wise operators read less.
Their limit runs
those operators on a slice of as many pixels.

{stages()}

{commands("speed_stages.csv")}"""


def steps() -> str:
    return f"""A recipe is one of several things that make a model faster. ViT-B, each row added to the one
before; time of an
image against the dense model in fp32 at batch 8.

{waterfall()}

{commands("waterfall.csv")}"""


def exported() -> str:
    return f"""In onnxruntime on the same CPU.

{onnx()}

{commands("onnx.csv")}"""


def which() -> str:
    return f"""Change of top-1 in points / same answer. A DeiT-Tiny on photographs:

{budgets("deit_tiny")}

The bundled ViT on scenes, where the object is small and the background is nothing:

{budgets("nano_vit")}

What `tokensieve tune` found for both, on 250 pictures without labels:

{tuned()}"""


def papr_maps() -> str:
    def ahead(group: tuple[str, str], name: str = "cam") -> float:
        row = next(row for row in maps("both", "label", *group) if row["map"] == name)
        return 100 * float(row["papr_ahead_by"])

    everywhere, hard = ("0", "1"), ("0.5", "0.2")
    return f"""{maps_by_confidence()}

{commands("maps.csv")}

Where the host is sure and the proposal is not, PaPr's map leaves {ahead(hard):.1f} points more than the CAM of the
proposal's answer, as the paper says: that CAM points at another class. Over all photographs the CAM is ahead by
{-ahead(everywhere):.1f} points: most of the time the proposal is right, and its CAM then points at the object alone.
The CAM of the label is best of all, by {-ahead(hard, "cam, label"):.1f} points on the hard photographs, but at
inference the label is not known. A mean over channels costs no classifier either."""


def papr_loss() -> str:
    rows = read("accuracy.csv")
    sources = {"squeezenet1_1": "SqueezeNet", "mobilenetv2_100": "MobileNetV2", "centre": "the centre, no proposal",
               "random, mean of 10 draws": "random patches"}  # fmt: skip
    keeps = ("0.8", "0.7", "0.6", "0.5", "0.4", "0.3")
    dense, cells = rows[0], []
    for source, title in sources.items():
        found = [next(r for r in rows if r["source"] == source and f"keep={keep}," in r["recipe"]) for keep in keeps]
        cells.append([title, *(change(row, dense["top1"]) for row in found)])
    return f"""Change of top-1, in points, of a DeiT-Tiny on 250 photographs (dense {float(dense["top1"]):.1f} %; one
photograph is 0.4 points):

{table(["ranked by", *(f"keep={keep}" for keep in keeps)], cells)}

{commands("accuracy.csv")}

The centre of the picture costs nothing and does well on photographs while much is kept, because objects sit in the
middle. The halves that SqueezeNet and MobileNetV2 keep overlap by
{overlap("squeezenet1_1", "mobilenetv2_100"):.2f}, those of SqueezeNet and the centre by
{overlap("squeezenet1_1", "centre"):.2f}, those of SqueezeNet and random patches by
{overlap("squeezenet1_1", "random"):.2f} ([results/overlap.csv](../results/overlap.csv)): two proposals agree about as
much as one of them and the centre."""


def tome_loss() -> str:
    dense, *rows = [row for row in read("accuracy.csv") if row["table"] in ("dense", "tome")]
    lost = [
        f"`{row['recipe']}` {change(row, dense['top1'])} at {times(float(row['gmac_dense']) / float(row['gmac_host']))}"
        for row in rows
    ]
    return f"""Points of top-1 at so many times fewer MACs, on a DeiT-Tiny and 250 photographs (dense
{float(dense["top1"]):.1f} %): {", ".join(lost)} ([results](results.md#loss))."""


def tune_found() -> str:
    here = {row["kind"]: row for row in best_of("deit_tiny", "1.9")}
    found = {
        kind: f"a KL of {points(row)[1]}, {points(row)[0]} same answers and {change(row, row['top1_dense'])}"
        " points of top-1"
        for kind, row in here.items()
    }
    text = f"""At {times(here["searched"]["macs_ratio"])} fewer MACs the searched recipe has
{found["searched"]}. The best
method alone, `{here["single"]["title"]}` with the same number in every block, has {found["single"]}."""
    if "corrected" in here:
        text += f""" Corrected, the searched recipe has {found["corrected"]}; these photographs are of ten classes, and
so are those that the correction was fitted on."""
    return text


def page_measured() -> str:
    """One visit of the page, and twenty at once."""
    told = missing("app.csv", "benchmarks/app.py")
    if told:
        return told
    rows = {row["what"]: row for row in read("app.csv")}
    one, many = rows["1 at once"], rows["20 at once"]
    return f"""One visit with headless Chromium, {one["machine"]}; the seconds are until the answer and
its time are there, drawn:

{page_visit()}

{rows["all of the visit"]["told"]}. Twenty visitors who ask at the same moment, each about a picture of their own and at
ten keep ratios, {many["told"]}: median {float(many["seconds"]):.1f} s, worst {float(many["worst"]):.1f} s; one alone
{float(one["seconds"]):.1f} s.

{commands("app.csv")}"""


def installed() -> str:
    """Time and size of the package in a clean environment."""
    told = missing("extras.csv", "benchmarks/extras.py")
    if told:
        return told
    rows = {row["extra"]: row for row in read("extras.csv")}
    alone = rows["none"]
    cells = [
        [f"`[{name}]`" if name != "none" else "(alone)", f"{float(row['environment_mb']) / 1000:.2f}", row["packages"],
         f"{float(row['install_seconds']):.0f}", f"`{row['tried']}`"]
        for name, row in rows.items()
    ]  # fmt: skip
    return f"""The wheel is {float(alone["wheel_mb"]):.1f} MB, the bundled weights included. `pip install` in an empty
environment took {float(alone["install_seconds"]):.0f} s with an empty cache, and the environment is
{float(alone["environment_mb"]) / 1000:.2f} GB; with each extra alone, from then on out of the cache:

{table(["extra", "GB", "packages", "seconds", "tried with"], cells)}

{commands("extras.csv")}"""


def speed_of_video() -> str:
    return f"""PaPr with X3D-S, the proposal included, and ToMe at the same MACs, random weights, 16 frames of 224
pixels;
{read("video_speed.csv")[0]["machine"]}. Dense time over each one's; the limit has nothing to choose and no proposal.

{video_speed()}

{commands("video_speed.csv")}"""


def dtop_training() -> str:
    return (
        missing("dtop.csv", "benchmarks/dtop_camvid.py evaluate")
        or f"""DeiT-Tiny on CamVid: 367 photographs to
learn from, crops of 240x176, exits (5, 7, 11), half an hour of training on one core in all for each kind of heads. Each
variant at the lowest threshold that loses no more than {LOST} mIoU on the validation pictures, or else the highest one
tried. MACs are the mean over windows of test pictures, every head that runs included; times are dense over sieved,
beside the limit, each image on its own first tokens with nothing to choose.

{exit_training()}

{commands("dtop.csv")}

![mIoU over MACs of trained exits, merging and the others](pictures/dtop.png)"""
    )


def dtop_baselines() -> str:
    return (
        missing("dtop.csv", "benchmarks/dtop_camvid.py evaluate")
        or f"""Without any training beside the base's own;
`dtop` at the lowest threshold that loses no more than {LOST} mIoU on the validation pictures, ToMe and the others at
about its MACs.

{exit_baselines()}"""
    )


def dtop_speed() -> str:
    return (
        missing("dtop_speed.csv", "benchmarks/dtop_speed.py")
        or f"""Segmenters with random weights, and thresholds
for which a third of the patches that arrive at an exit leaves; {read("dtop_speed.csv")[0]["machine"]}. The limit is
each image on its own first tokens, unpadded, with nothing to choose; the loop over images is the shape of work of the
published code.

{exit_speed()}

{commands("dtop_speed.csv")}"""
    )


def versions_tested() -> str:
    return f"""{between()}

Models whose settings an older library does not know are left out, so that fewer tests pass there. Written by

{commands("versions_between.csv")}"""


def versions_macs() -> str:
    pythons: dict[tuple[str, ...], list[str]] = {}
    for python, *others in environments("versions.csv"):
        pythons.setdefault(tuple(others[:3]), []).append(python)
    told = [f"- torch {torch}, timm {timm}, transformers {transformers}; Python {', '.join(found)}"
            for (torch, timm, transformers), found in pythons.items()]  # fmt: skip
    return f"""Multiply-accumulates of one image:

{same_macs()}

The figures are those of each of these:

{chr(10).join(told)}

{commands("versions.csv")}"""


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"headline": headline, "measured": measured_readme, "answers": answers},
    "docs/index.md": {"headline": lambda: headline().replace("docs/results.md", "results.md")},
    "docs/app.md": {"app": page_measured},
    "docs/install.md": {"size": installed},
    "docs/reference/command-line.md": {"commands": every_command},
    "docs/results.md": {
        "every method": every_method,
        "loss": loss,
        "tuned": searched,
        "bundled": bundled,
        "maps": maps_all,
        "larger models": larger,
        "stages": with_stages,
        "waterfall": steps,
        "onnx": exported,
    },
    **RUNNING,
    **ANSWERS,
    "docs/story.md": STORY,
    "docs/which-recipe.md": {"budgets": which},
    "docs/papr.md": {"maps": papr_maps, "loss": papr_loss, "papr and tome": papr_against_tome},
    "docs/tome.md": {"loss": tome_loss},
    "docs/tune.md": {"found": tune_found},
    "docs/embeddings.md": {"embeddings": embeddings},
    "docs/segmentation.md": {"macs": segmenters},
    "docs/video.md": {"speed": speed_of_video},
    "docs/dtop.md": {"training": dtop_training, "baselines": dtop_baselines, "speed": dtop_speed},
    "docs/patch-slimming.md": {"slimming": slimming},
    **{
        f"docs/methods/{name}.md": {"row": partial(method_rows, name)}
        for name in ("ats", "diffrate", "evit", "gtp", "guarded", "mctf", "pitome", "tofu")
    },
    "docs/methods/adaptive.md": {"row": adaptive_rows},
    "docs/methods/corrected.md": {"row": corrected_rows},
    "docs/methods/dynamic-spatial.md": {"row": dynamic_rows},
    "docs/methods/dynamicvit.md": {"row": partial(cost_alone, "dynamicvit")},
    "docs/methods/readout.md": {"row": readout_rows},
    "docs/methods/rlt.md": {"row": rlt_rows},
    "docs/hosts/vit.md": {"family": partial(family, "VisionTransformer", "VisionTransformerDistilled")},
    "docs/hosts/eva.md": {"family": partial(family, "Eva")},
    "docs/hosts/beit.md": {"family": partial(family, "Beit")},
    "docs/versions.md": {"tested": versions_tested, "macs": versions_macs},
}


def wrapped(text: str) -> str:
    """Paragraphs and list entries filled to the width of a line; tables, commands and pictures as they are."""

    def fill(part: str, indent: str = "") -> str:
        words = " ".join(part.split())
        return textwrap.fill(words, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

    parts = []
    for part in text.split("\n\n"):
        if part.startswith("- "):
            part = "\n".join(fill(f"- {entry}", "  ") for entry in part[2:].split("\n- "))
        elif not part.startswith(("|", "```", "!", "<details")):
            part = fill(part)
        parts.append(part)
    return "\n\n".join(parts)


def written(text: str, sections: dict[str, Callable[[], str]]) -> str:
    """A page with its sections anew. Every section must have its place."""
    for name, section in sections.items():
        start, end = (mark.format(name) for mark in MARKS)
        before, rest = text.split(start)
        after = rest.split(end)[1]
        text = f"{before}{start}{wrapped(section())}\n{end}{after}"
    return text


def main() -> int:
    changed = []
    for name, sections in PAGES.items():
        page = ROOT / name
        text = page.read_text()
        new = written(text, sections)
        if new != text:
            changed.append(name)
            if "--check" not in sys.argv:
                page.write_text(new)
    unknown = [name for name in PAGES for found in re.findall(r"<!-- (.+?): written by", (ROOT / name).read_text())
               if found not in PAGES[name]]  # fmt: skip
    print("\n".join(f"{name} is written anew" for name in changed) or "all pages are as results/ has it")
    return int(bool(unknown) or ("--check" in sys.argv and bool(changed)))


if __name__ == "__main__":
    sys.exit(main())
