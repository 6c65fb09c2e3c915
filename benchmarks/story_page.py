"""The figures of docs/story.md, from results/story.csv. `readme.py` puts them in their places."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from results import ROOT
from tables import Row, commands, read, table, times

FILE = "story.csv"
UNKNOWN = "Not measured yet: `python benchmarks/story.py`."


def steps() -> dict[str, Row]:
    return {row["step"]: row for row in read(FILE)} if (ROOT / "results" / FILE).is_file() else {}


def told(step: str, say: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """A section of the page: what a step found, or that nobody has looked."""
    return lambda: say(json.loads(steps()[step]["figures"])) if step in steps() else UNKNOWN


def tuned(found: dict[str, Any]) -> str:
    return f"""It found, on {found["images"]} photographs, at {times(found["macs_ratio"])} fewer MACs:

```text
{found["recipe"]}
```

and wrote it as `tuned/best.json`, beside a recipe for every other point of the front and a picture of it:

![Divergence over MACs of the recipes that were tried](pictures/story.png)"""


def benched(found: dict[str, Any]) -> str:
    cells = [
        [str(run["batch"]), f"**{times(run['ratio'])} [{run['low']:.2f}-{run['high']:.2f}]**", times(run["limit"])]
        for run in found["runs"]
    ]
    return f"On {steps()['bench']['machine']}:\n\n{table(['batch', 'as fast', 'limit'], cells)}"


def evaluated(found: dict[str, Any]) -> str:
    (name,) = [name for name in found["dense"] if name in ("top1", "top-1")] or list(found["dense"])[:1]
    dense, sieved = found["dense"][name], found["sieved"][name]
    return f"""On {found["images"]} other photographs the answer is the dense model's in {found["agreement"]:.1f} %
[{found["agreement_low"]:.1f}-{found["agreement_high"]:.1f}], at a KL of {found["kl"]:.4f}. Top-1 accuracy is
{sieved:.1f} %, of the dense model {dense:.1f} %. Without labels the command is the same without `--classes`, and tells
all but the accuracy."""


def shown(found: dict[str, Any]) -> str:
    return f"""It draws {found["pictures"]} photographs, each with both answers and the patches that were merged, as
`{found["out"][0]}` and `{found["out"][1]}`. Look at them before you trust a figure: what matters to you should not have
gone."""


def exported(found: dict[str, Any]) -> str:
    worst = max(found["differences"].values())
    return f"""The file, {found["mb"]:.0f} MB, was run in onnxruntime before it took its place; its answers differ from
PyTorch's by {worst:.0e} at most. [Export](export.md)."""


def ran(found: dict[str, Any]) -> str:
    return f"""```bash
tokensieve run photographs/ --model deit_tiny_patch16_224 --weights deit_tiny.safetensors --recipe tuned/best.json \\
    --out answers
```

wrote {found["rows"]:,} rows, classes with their probabilities, as Parquet files in `answers/`, at
{found["per_second"]:.0f} photographs a second; {found["errors"]} could not be read. Killed and started again it would
have gone on where it was."""


def elapsed() -> str:
    rows = steps()
    if not rows:
        return UNKNOWN
    cells = [[f"`{step}`", clock(float(row["seconds"]))] for step, row in rows.items()]
    cells.append(["all", f"**{clock(sum(float(row['seconds']) for row in rows.values()))}**"])
    return f"{table(['step', 'time'], cells)}\n\n{commands(FILE)}"


def clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


STORY = {
    "tune": told("tune", tuned),
    "bench": told("bench", benched),
    "eval": told("eval", evaluated),
    "show": told("show", shown),
    "export": told("export", exported),
    "run": told("run", ran),
    "times": elapsed,
}
