"""Which methods compile as one graph and can be written as ONNX? A small ViT -> results/graphs.csv.

    python benchmarks/graphs.py [--only METHOD ...]

`torch.compile(fullgraph=True)` with inductor at two batch sizes, and `export_onnx` with a dynamic batch, checked
against PyTorch at batch 1 and 5; for each the largest difference, or the sentence with which it was refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from results import write
from tokensieve import Sieved, SieveError, export_onnx, sieve

DEPTH = 4
RECIPES = {
    "papr": "papr(keep=0.6, proposal=nano_convnet, proposal_norm=shared)",
    "random": "random(keep=0.6)",
    "tome": "tome(r=4)",
    "tofu": "tofu(r=4)",
    "gtp": "gtp(r=4)",
    "gtp, sparse": "gtp(r=4, sparsity=0.6)",
    "evit": "evit(keep=0.7)",
    "ats": "ats(tokens=40)",
    "ats, fixed": "ats(tokens=40, adaptive=False)",
    "dynamicvit": "dynamicvit(keep=0.7)",
    "pitome": "pitome(r=4)",
    "diffrate": "diffrate(drop=2, merge=2)",
    "mctf": "mctf(r=4)",
    "guarded": "guarded(r=4, drop=[0, 0, 4, 4])",
    "readout": "readout()",
    "patch_slimming A": "patch_slimming(patches={nested})",
    "patch_slimming B": "patch_slimming(patches={nested}, form=B)",
    "four of them": "papr(keep=0.8, significance=centre) + evit(keep=0.9, layers=(1,)) + tome(r=4) + readout()",
}


def tried(what: Callable[[], float]) -> tuple[bool, float | None, str]:
    """Whether it worked, the largest difference, and else why not."""
    try:
        return True, float(what()), ""
    except SieveError as error:
        return False, None, str(error)
    except Exception as error:  # whatever a compiler says of a graph it cannot have is the finding
        return False, None, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def compiled(fast: Sieved) -> float:
    torch.compiler.reset()
    graph = torch.compile(fast, fullgraph=True)
    return max(float((graph(images) - fast(images)).abs().max()) for images in map(draw, (2, 3)))


def exported(fast: Sieved) -> float:
    with tempfile.TemporaryDirectory() as folder:
        done = export_onnx(fast, Path(folder) / "fast.onnx", (3, 64, 64), mean=[0.5] * 3, std=[0.5] * 3)
    return max(done.differences.values())


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = VisionTransformer(img_size=64, patch_size=8, embed_dim=64, depth=DEPTH, num_heads=2, num_classes=10).eval()
    nested = tuple(tuple(range(0, 64, step)) for step in (1, 2, 2, 4))
    rows = []
    for name, text in RECIPES.items():
        if args.only and name not in args.only:
            continue
        fast = sieve(model, text.replace("{nested}", str(nested)), pretrained=False)

        row: dict[str, Any] = {"method": name, "recipe": text}
        for kind, what in (("compile", compiled), ("onnx", exported)):
            row[kind], row[f"{kind}_difference"], row[f"{kind}_refusal"] = tried(partial(what, fast))
        rows.append(row)
        print(row, flush=True)
    if not args.only:
        write("graphs.csv", rows)
    return 0


def draw(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(count))


if __name__ == "__main__":
    sys.exit(main())
