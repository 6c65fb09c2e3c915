"""The same numbers under every version -> results/versions.csv; what runs between the oldest and the newest.

    python benchmarks/versions.py                               # MACs of ten hosts and recipes, under what is installed
    python benchmarks/versions.py --with timm==1.0.18           # -> results/versions_between.csv: the tests of hosts
    python benchmarks/versions.py --with transformers==5.14.1
    python benchmarks/versions.py --tests                       # the same tests under what is installed

Rows of other versions stay. Run it under each environment that is to be compared (`make test-lowest` leaves one in
.venv-lowest). It says whether all rows of a host and recipe agree, and fails where they do not.

`--with` installs that release, and what it needs in another version than is there, into a folder of its own, in front
of what is installed, and runs the tests of hosts and of every method on every host (without the slow ones) on it.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from importlib.metadata import distributions, version
from typing import Any

import timm
import torch
from packaging.requirements import Requirement
from torch import nn

from results import ROOT, update
from tokensieve import sieve
from tokensieve.measure import macs

LIBRARIES = ("torch", "timm", "transformers", "open_clip_torch")
TESTS = ("tests/hosts", "tests/test_matrix.py")


def hugging_face(model: str, config: str, **settings: Any) -> nn.Module:
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**settings))


def open_clip_tower() -> nn.Module:
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(224, 32, 768, 12, 12, 4.0, output_dim=512)


HOSTS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    **{
        name: (partial(timm.create_model, name), recipe)
        for name, recipe in {
            "vit_base_patch16_224": "",
            "deit_tiny_patch16_224": "tome(r=13)",
            "vit_small_patch16_224": "papr(keep=0.5, order=significance) + tome(r=16, layers=6:12)",
            "vit_base_patch16_siglip_224": "tome(r=8)",
            "eva02_tiny_patch14_224": "papr(keep=0.5) + pitome(r=8, layers=4:)",
            "beit_base_patch16_224": "evit(keep=0.7)",
            "convnext_tiny": "papr(keep=0.65)",
            "swinv2_tiny_window8_256": "papr(keep=0.65)",
        }.items()
    },
    "transformers Dinov2Model": (
        partial(hugging_face, "Dinov2Model", "Dinov2Config", image_size=518, patch_size=14),
        "tome(r=40)",
    ),
    "open_clip ViT-B-32": (open_clip_tower, "papr(keep=0.6)"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with", dest="releases", nargs="+", default=[], metavar="NAME==VERSION")
    parser.add_argument("--tests", action="store_true", help="those tests under what is installed")
    args = parser.parse_args()
    if args.tests or args.releases:
        return max(tested(release) for release in args.releases or [""])
    rows = [{**installed(), "host": host, **counted(host)} for host in HOSTS]
    path = update("versions.csv", rows, "python", *LIBRARIES, "host")
    counts = defaultdict(set)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            counts[row["host"], row["recipe"]].add(row["macs"])
    for (host, recipe), found in counts.items():
        print(f"{'same ' if len(found) == 1 else 'OTHER'} {host:32} {recipe:62} {' '.join(sorted(found))}")
    return max(len(found) for found in counts.values()) - 1


def installed() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name).partition("+")[0] for name in LIBRARIES}}


@torch.no_grad()
def counted(host: str) -> dict[str, Any]:
    build, recipe = HOSTS[host]
    fast = sieve(build().eval(), recipe, mean=[0.5] * 3, std=[0.5] * 3, pretrained=False)
    return {"recipe": recipe, "macs": round(macs(fast))}


def tested(release: str) -> int:
    """Run the tests of hosts under what is installed, or with one release of one library in front of it."""
    name, _, number = release.partition("==")
    if release and (name not in LIBRARIES[1:] or not number):
        raise SystemExit(f"--with {release}: give a release of {', '.join(LIBRARIES[1:])}, as in timm==1.0.18.")
    with tempfile.TemporaryDirectory() as folder:
        if release:
            install(folder, release)
            install(folder, *unmet(folder, name))
        paths = [folder, str(ROOT / "src"), str(ROOT)]
        start = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-m", "pytest", *TESTS, "-m", "not slow", "-rs", "--tb=short", "-p", "no:cacheprovider"],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - start
    print(run.stdout[-3000:], run.stderr[-3000:], sep="\n", file=sys.stderr)
    counts = {what: int(many) for many, what in re.findall(r"(\d+) (passed|failed|skipped|error)", run.stdout)}
    if not counts:
        raise SystemExit(f"{release or 'what is installed'}: no test ran, as printed above.")
    used = installed() | ({name: number} if release else {})
    row = {
        **used, "tests": " ".join(TESTS), "passed": counts.get("passed", 0),
        "failed": counts.get("failed", 0) + counts.get("error", 0), "skipped": counts.get("skipped", 0),
        "cells": (re.findall(r"^(\d+ .*refused)$", run.stdout, re.M) or [""])[-1], "seconds": round(seconds),
        "versions": f"torch {used['torch']}, timm {used['timm']}",
    }  # fmt: skip
    update("versions_between.csv", [row], "python", *LIBRARIES)
    told = release or ", ".join(f"{library} {number}" for library, number in used.items())
    print(f"{told}: {row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped")
    return int(row["failed"] > 0)


def install(folder: str, *what: str) -> None:
    """These releases alone, without what they need."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
    if what:
        subprocess.run([*pip, *what], check=True)


def unmet(folder: str, name: str) -> list[str]:
    """What the release in `folder` needs in other versions than those installed, such as transformers' tokenizers."""
    (release,) = distributions(name=name, path=[folder])
    needs = [Requirement(text) for text in release.requires or []]
    needs = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return [str(need) for need in needs if not need.specifier.contains(version(need.name), prereleases=True)]


if __name__ == "__main__":
    sys.exit(main())
