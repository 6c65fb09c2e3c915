"""MACs against published tables and recounts, to the printed digit -> results/macs.csv.

python benchmarks/macs.py
"""

from __future__ import annotations

import sys

import timm
import torch

from results import write
from tokensieve import sieve
from tokensieve.measure import macs

# host, recipe, counter ("compat": with the papers' LayerNorm terms, "pure"), expected GMAC as printed
CHECKS = [
    ("vit_small_patch16_224", "", "compat", "4.608"),
    ("vit_small_patch16_224", "", "pure", "4.599"),
    ("vit_base_patch16_224", "", "compat", "17.583"),
    ("vit_base_patch16_224", "", "pure", "17.564"),
    ("vit_large_patch16_224", "", "compat", "61.604"),
    ("vit_large_patch16_224", "", "pure", "61.555"),
    ("vit_huge_patch14_224", "", "compat", "167.40"),
    ("vit_medium_patch16_gap_256", "", "pure", "10.57"),
    ("vit_small_patch16_224", "papr(keep=0.45)", "compat", "2.299"),
    ("vit_small_patch16_224", "papr(keep=0.5)", "compat", "2.529"),
    ("vit_small_patch16_224", "papr(keep=0.55)", "compat", "2.761"),
    ("vit_base_patch16_224", "papr(keep=0.45)", "compat", "8.104"),
    ("vit_base_patch16_224", "papr(keep=0.5)", "compat", "8.989"),
    ("vit_base_patch16_224", "papr(keep=0.5)", "pure", "8.980"),
    ("vit_base_patch16_224", "papr(keep=0.55)", "compat", "9.878"),
    ("vit_large_patch16_224", "papr(keep=0.5)", "compat", "30.833"),
    ("vit_huge_patch14_224", "papr(keep=0.5)", "compat", "83.04"),
    ("vit_medium_patch16_gap_256", "papr(keep=0.5)", "pure", "5.492"),
    ("vit_small_patch16_224", "papr(keep=0.55, order=significance) + tome(r=16, layers=6:12)", "compat", "2.20"),
    ("vit_small_patch16_224", "papr(keep=0.5, order=significance) + tome(r=16, layers=6:12)", "compat", "1.97"),
    ("vit_base_patch16_224", "papr(keep=0.55, order=significance) + tome(r=12, layers=6:12)", "compat", "8.21"),
    ("vit_base_patch16_224", "papr(keep=0.5, order=significance) + tome(r=16, layers=6:12)", "compat", "6.82"),
    ("vit_large_patch16_224", "papr(keep=0.55, order=significance) + tome(r=8, layers=12:24)", "compat", "26.33"),
    ("vit_large_patch16_224", "papr(keep=0.5, order=significance) + tome(r=6, layers=12:24)", "compat", "25.12"),
    ("vit_small_patch16_224", "tome(r=16)", "compat", "2.30"),
    ("vit_base_patch16_224", "tome(r=16)", "compat", "8.78"),
    ("vit_large_patch16_224", "tome(r=8)", "compat", "30.99"),
    ("vit_base_patch16_224", "tome(r=13)", "pure", "10.37"),
    ("vit_base_patch16_224", "tome(r=16)", "pure", "8.77"),
    ("vit_large_patch16_224", "tome(r=8)", "pure", "30.96"),
    ("deit_small_patch16_224", "tome(r=13)", "pure", "2.703"),
    ("deit_tiny_patch16_224", "tome(r=13)", "pure", "0.731"),
    # hosts with stages: PaPr's table and its stage subsets, DynamicCNN and DynamicSwin (whose counts leave norms out)
    ("convnext_base", "papr(keep=0.65)", "compat", "10.420"),
    ("convnext_base", "papr(keep=0.65, stages=(1, 2, 3))", "compat", "10.854"),
    ("convnext_base", "papr(keep=0.65, stages=(2, 3))", "compat", "11.287"),
    ("convnext_base", "papr(keep=0.65, stages=(2,))", "compat", "11.740"),
    ("convnext_large", "papr(keep=0.65)", "compat", "22.904"),
    ("swin_base_patch4_window7_224", "papr(keep=0.65)", "compat", "12.254"),
    ("swin_base_patch4_window7_224", "papr(keep=0.65, stages=(1, 2, 3))", "compat", "12.543"),
    ("swin_base_patch4_window7_224", "papr(keep=0.65, stages=(2, 3))", "compat", "12.832"),
    ("swin_base_patch4_window7_224", "papr(keep=0.65, stages=(2,))", "compat", "13.134"),
    ("swin_large_patch4_window7_224", "papr(keep=0.65)", "compat", "26.961"),
    ("swin_large_patch4_window12_384", "papr(keep=0.65, proposal_size=224)", "compat", "81.44"),
    ("convnext_tiny", "dynamiccnn(keep=0.7)", "compat", "3.59"),
    ("convnext_small", "dynamiccnn(keep=0.7)", "compat", "5.79"),
    ("convnext_base", "dynamiccnn(keep=0.7)", "compat", "10.206"),
    ("convnext_base", "dynamiccnn(keep=0.9)", "compat", "11.957"),
    ("swin_tiny_patch4_window7_224", "dynamicswin(keep=0.7)", "pure", "4.04"),
    ("swin_small_patch4_window7_224", "dynamicswin(keep=0.7)", "pure", "6.85"),
    ("swin_base_patch4_window7_224", "dynamicswin(keep=0.7)", "pure", "12.067"),
]
PROPOSALS = [((3, 224, 224), "0.2741"), ((3, 256, 256), "0.3580"), ((3, 384, 384), "0.8055")]


@torch.no_grad()
def main() -> int:
    rows, wrong, host, model = [], 0, "", None
    for name, recipe, counter, expected in sorted(CHECKS, key=lambda check: check[0]):
        if name != host:
            host, model = name, timm.create_model(name).eval()
        fast = sieve(model, recipe, pretrained=False)
        size = model.pretrained_cfg["input_size"]
        count = macs(fast, size, fvcore_compat=counter == "compat") / 1e9
        rows.append(
            {
                "host": name, "recipe": recipe, "counter": counter, "expected_gmac": expected, "gmac": count,
                "to_the_digit": _agrees(count, expected),
                "with_selection_gmac": macs(fast, size, fvcore_compat=counter == "compat", selection=True) / 1e9,
                "tokens_per_block": " ".join(map(str, fast.trace(torch.zeros(1, *size)).tokens_per_block)),
            }
        )  # fmt: skip
    proposal = sieve(
        timm.create_model("vit_tiny_patch16_224"), "papr(keep=0.5)", pretrained=False
    ).significance.proposal
    for size, expected in PROPOSALS:
        count = macs(proposal, size) / 1e9
        rows.append({"host": "mobileone_s0", "counter": "pure", "expected_gmac": expected, "gmac": count,
                     "recipe": f"features at {size[1]}", "to_the_digit": _agrees(count, expected)})  # fmt: skip
    for row in rows:
        wrong += not row["to_the_digit"]
        mark = "ok   " if row["to_the_digit"] else "WRONG"
        print(f"{mark} {row['host']:28} {row['recipe']:66} {row['counter']:6} "
              f"{row['gmac']:9.4f}  expected {row['expected_gmac']}")  # fmt: skip
    write("macs.csv", rows)
    return 1 if wrong else 0


def _agrees(count: float, expected: str) -> bool:
    digits = len(expected.split(".")[1])
    return f"{count:.{digits}f}" == expected


if __name__ == "__main__":
    sys.exit(main())
