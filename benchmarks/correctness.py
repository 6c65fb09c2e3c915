"""Identity, reference and threads on every form of host -> results/correctness.csv.

    python benchmarks/correctness.py

The numbers behind the assertions of tests/test_stream.py: for each small random host, whether identity settings are
bit-equal, and how far the stream is from the slow float64 reference.
"""

from __future__ import annotations

import copy
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from results import ROOT, write

sys.path.insert(0, str(ROOT))  # the references live with the tests

from tests.reference.hosts import host_forms, host_images
from tests.reference.vit import reference_forward
from tokensieve import PaPr, Recipe, ToMe, sieve

IDENTITIES = ("", "papr(keep=1)", "tome(r=0)", "papr(keep=1) + tome(r=0)")
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "papr": ({"keep": 0.5}, {}),
    "tome": ({}, {"r": 3}),
    "tome until half": ({}, {"r": 40}),
    "tome, not proportional": ({}, {"r": 3, "proportional": False}),
    "papr + tome": ({"keep": 0.7}, {"r": 3}),
    "papr by significance + tome": ({"keep": 0.7, "order": "significance"}, {"r": 3}),
}


def identity(model: nn.Module) -> tuple[int, int]:
    """How many of the runs at identity settings are bit-equal to the host, and how many there were."""
    equal = total = 0
    for dtype, training, recipe in itertools.product((torch.float32, torch.bfloat16), (False, True), IDENTITIES):
        host = copy.deepcopy(model).to(dtype).train(training)
        images = host_images(host).to(dtype)
        torch.manual_seed(1)
        expected = host(images)
        torch.manual_seed(1)
        got = sieve(host, recipe)(images)
        pairs = zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]
        equal += all(torch.equal(a, b) for a, b in pairs)
        total += 1
    return equal, total


def seam(model: nn.Module, images: Tensor) -> float:
    """Largest difference of a block opened under a size bias of ones from the block called whole."""
    host, worst = sieve(model).host, 0.0
    tokens = host.embed(images)
    for block in host.blocks:
        whole, ones = block(tokens), replace(tokens, weight=torch.ones(tokens.x.shape[:2]))
        heads = block.qkv(ones)
        opened = block.mlp(block.attention_out(heads.attend(ones.bias), heads, ones.x))
        worst = max(worst, ((opened - whole).abs().max() / whole.abs().max().clamp(min=1)).item())
        tokens = replace(tokens, x=whole)
    return worst


def threads(model: nn.Module) -> bool:
    """Whether eight threads that share one sieved model give, bit by bit, what one after the other gives."""
    fast = sieve(model, "papr(keep=0.6, significance=centre) + tome(r=3)")
    inputs = [host_images(model, batch) for batch in (1, 2, 3, 4, 5, 6, 7, 8)] * 3

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return fast(images)

    serial = [run(images) for images in inputs]
    with ThreadPoolExecutor(8) as pool:
        return all(torch.equal(a, b) for a, b in zip(pool.map(run, inputs), serial, strict=True))


@torch.no_grad()
def main() -> int:
    torch.set_num_threads(1)
    rows, wrong = [], 0
    for name, form in host_forms().items():
        model = form()
        images = host_images(model)
        equal, total = identity(model)
        row: dict[str, Any] = {
            "host": name, "identity_bit_equal": f"{equal}/{total}", "seam_difference": seam(model, images),
            "eight_threads_bit_equal": threads(model),
        }  # fmt: skip
        wrong += equal < total or row["seam_difference"] > 1e-6 or not row["eight_threads_bit_equal"]
        patches = sieve(model).host.embed(images).x.shape[1] - model.num_prefix_tokens
        ranks = torch.rand(images.shape[0], patches, generator=torch.Generator().manual_seed(3))
        for case, (papr, tome) in CASES.items():
            recipe = Recipe()
            recipe = recipe + PaPr(significance=ranks, **papr) if papr else recipe
            recipe = recipe + ToMe(**tome) if tome else recipe
            expected = reference_forward(model, images, significance=ranks if papr else None, **papr, **tome).output
            double = sieve(copy.deepcopy(model).double(), recipe)(images.double())
            single = sieve(model, recipe)(images)
            row[f"{case}, float64"] = (double - expected).abs().max().item()
            row[f"{case}, fp32"] = ((single - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
            wrong += row[f"{case}, float64"] > 1e-9 or row[f"{case}, fp32"] > 1e-5
        rows.append(row)
        worst = {end: max(v for k, v in row.items() if k.endswith(end)) for end in ("float64", "fp32")}
        print(f"{name:20} identity {row['identity_bit_equal']}  seam {row['seam_difference']:.1e}  "
              f"threads {row['eight_threads_bit_equal']}  float64 {worst['float64']:.1e}  fp32 {worst['fp32']:.1e}",
              flush=True)  # fmt: skip
    write("correctness.csv", rows)
    print(f"{len(rows)} hosts, {wrong} outside the bounds (1e-9 in float64, 1e-5 in fp32, 1e-6 at the seam)")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
