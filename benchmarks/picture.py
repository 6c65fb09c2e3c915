"""README's picture: what DeiT-Tiny reads of two photographs -> docs/pictures/photographs.png.

    python benchmarks/picture.py

The rows of the sheet that `tokensieve show` draws, without its title, so that one is seen whole on README's first
screen. The photographs are scikit-image's.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from accuracy import SQUEEZENET, WEIGHTS
from results import ROOT
from tokensieve import Recipe, ToMe, sieve
from tokensieve.data import Preprocessing, photograph_set
from tokensieve.show.explain import class_names, explain
from tokensieve.show.gallery import how_to_read
from tokensieve.show.page import Report, Section, write_png
from tokensieve.show.sheet import sheet
from tokensieve.zoo import create

PICTURE = ROOT / "docs" / "pictures" / "photographs.png"
SHOWN = ("coffee", "cat")
HEIGHT = 224
"""Of a panel. README shows the sheet at four fifths of its width."""
BLANK = 72
"""Pixels above the first row: the margin, and the rule under a title that is not there."""


def main() -> int:
    if not WEIGHTS.is_dir():
        print(f"skipped: weights are expected in {WEIGHTS}.", file=sys.stderr)
        return 0
    opened = create("deit_tiny_patch16_224", weights=WEIGHTS / "deit_tiny_patch16_224.safetensors")
    model = opened.model.eval()
    fast = sieve(model, Recipe([replace(SQUEEZENET, keep=0.5), ToMe(r=6)]))
    photographs = photograph_set(Preprocessing.of(model))
    indices = [[photographs.path(index) for index in range(len(photographs))].index(name) for name in SHOWN]
    images = torch.stack([photographs[index][0] for index in indices])
    told = explain(fast, model, images, opened.mean, opened.std, class_names(model), height=HEIGHT)
    sections = [Section("", facts=one.facts, panels=(one.panels,)) for one in told]
    drawn = sheet(Report("", sections=tuple(sections), notes=tuple(how_to_read(sections))))
    write_png(PICTURE, drawn.crop((0, BLANK, *drawn.size)))
    print(PICTURE.relative_to(ROOT), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
