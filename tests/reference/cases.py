"""Settings of every method that really act on hosts of 3 blocks and 20 patches or more, and the reference's steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tests.reference import methods as slow


@dataclass(frozen=True)
class Case:
    """Recipe text, and the same as steps of the reference; PaPr and its kin go by `papr`."""

    text: str
    steps: Callable[[Facts], list] = lambda facts: []
    papr: dict | None = None


@dataclass(frozen=True)
class Facts:
    """What a case may need to know of its host."""

    patches: int
    depth: int
    predictors: tuple[tuple[Tensor, ...], ...] = ()

    def nested(self, pace: int) -> tuple[tuple[int, ...], ...]:
        """Patches for each block, `pace` fewer from block to block, taken from all over the image."""
        order = sorted(range(self.patches), key=lambda j: (j * 7 % 11, j))
        return tuple(tuple(sorted(order[: self.patches - pace * (block + 1)])) for block in range(self.depth))


def case(text: str, *steps: object, papr: dict | None = None) -> Case:
    return Case(text, lambda _: list(steps), papr)


CASES: dict[str, list[Case]] = {
    "papr": [
        case("papr(keep=0.6, significance=centre)", papr={"keep": 0.6}),
        case("papr(keep=0.4, significance=centre, order=significance)", papr={"keep": 0.4, "order": "significance"}),
    ],
    "random": [case("random(keep=0.5)", papr={"keep": 0.5})],
    "tome": [
        case("tome(r=3)", slow.Tome(3)),
        case("tome(r=(4, 1.0), layers=0:2, proportional=False)", slow.Tome((4, 1.0), slice(0, 2), False)),
        case("tome(r=(3, -1.0))", slow.Tome((3, -1.0))),
        case("tome(r=(5, 0, 2))", slow.Tome([5, 0, 2])),
        case("tome(r=4, layers=1:)", slow.Tome(4, slice(1, None))),
        case("tome(r=40)", slow.Tome(40)),  # more than there are pairs
    ],
    "tome in a window": [
        case("tome(r=3, window=0)", slow.Tome(3, window=0)),
        case("tome(r=4, window=1, layers=1:)", slow.Tome(4, slice(1, None), window=1)),
        case("tome(r=40, window=0, proportional=False)", slow.Tome(40, None, False, 0)),  # more than the window holds
    ],
    "tofu": [
        case("tofu(r=3)", slow.Tofu(3)),
        case("tofu(r=4, layers=0:2, switch=0, proportional=True)", slow.Tofu(4, slice(0, 2), 0, True)),
    ],
    "gtp": [
        case("gtp(r=4, sparsity=0.7)", slow.Gtp(4, sparsity=0.7)),
        case(
            "gtp(r=5, alpha=0.5, neighbours=3, graph=semantic, layers=(0, 2))",
            slow.Gtp(5, 0.5, neighbours=3, graph="semantic", layers=(0, 2)),
        ),
    ],
    "evit": [
        case("evit(keep=0.6, layers=(1,))", slow.Evit(0.6, (1,))),
        case("evit(keep=0.7)", slow.Evit(0.7)),
        case("evit(keep=0.8, fuse=False)", slow.Evit(0.8, fuse=False)),
    ],
    "ats": [
        case("ats(tokens=12, layers=1:3)", slow.Ats(12, slice(1, 3))),
        case("ats(tokens=20, layers=(0,), adaptive=False)", slow.Ats(20, (0,), False)),
        case("ats(tokens=197)", slow.Ats(197)),
    ],
    "dynamicvit": [
        Case("dynamicvit(keep=0.7)", lambda facts: [slow.Dynamicvit(0.7, facts.predictors)]),
        Case(
            "dynamicvit(keep=(0.8, 0.4), layers=(0, 2))",
            lambda facts: [slow.Dynamicvit((0.8, 0.4), facts.predictors, (0, 2))],
        ),
    ],
    "pitome": [
        case("pitome(r=3)", slow.Pitome(3)),
        case("pitome(r=4, margin=0.5, protect=0, layers=0:2)", slow.Pitome(4, 0.5, slice(0, 2), 0)),
    ],
    "diffrate": [
        case("diffrate(drop=2, merge=3)", slow.Diffrate(2, 3)),
        case("diffrate(drop=(3, 0, 1), merge=(0, 4, 2))", slow.Diffrate((3, 0, 1), (0, 4, 2))),
    ],
    "mctf": [
        case("mctf(r=3)", slow.Mctf(3)),
        case(
            "mctf(r=6, layers=(0, 1), tau_similarity=0.5, tau_information=5.0, tau_size=4.0)",
            slow.Mctf(6, (0, 1), 0.5, 5.0, 4.0),
        ),
    ],
    "guarded": [
        case("guarded(r=3, drop=2)", slow.Guarded(3, 2)),
        case("guarded(r=3, norm=False)", slow.Guarded(3, norm=False)),
        case(
            "guarded(r=4, source_guard=0.2, destination_guard=0.1, metric=keys, soften=False, layers=0:2)",
            slow.Guarded(4, 0, 0.2, 0.1, "keys", False, slice(0, 2)),
        ),
    ],
    "adaptive": [
        case("adaptive(bars=0.1, drop=0.2)", slow.Adaptive(0.1, 0.2)),
        case("adaptive(bars=(0.2, 1, 0.1), norm=False)", slow.Adaptive((0.2, 1, 0.1), norm=False)),
        case(
            "adaptive(bars=0.0, drop=(0, 0.3), source_guard=0.2, destination_guard=0.1, metric=keys, soften=False, "
            "layers=0:2)",
            slow.Adaptive(0.0, (0, 0.3), 0.2, 0.1, "keys", False, slice(0, 2)),
        ),
    ],
    "readout": [case("readout()", slow.Readout())],
    "patch_slimming": [
        Case("patch_slimming(patches={slimming}, form=A)", lambda facts: [slow.PatchSlimming(facts.nested(4), "A")]),
        Case("patch_slimming(patches={slimming}, form=B)", lambda facts: [slow.PatchSlimming(facts.nested(4), "B")]),
    ],
    "papr + tome": [
        case("papr(keep=0.7, significance=centre) + tome(r=3)", slow.Tome(3), papr={"keep": 0.7}),
        case(
            "papr(keep=0.7, significance=centre, order=significance) + tome(r=3)",
            slow.Tome(3),
            papr={"keep": 0.7, "order": "significance"},
        ),
    ],
    "random + evit + tome": [
        case(
            "random(keep=0.7) + evit(keep=0.8, layers=(1,)) + tome(r=2, layers=1:3)",
            slow.Evit(0.8, (1,)),
            slow.Tome(2, slice(1, 3)),
            papr={"keep": 0.7},
        )
    ],
    "tome + guarded + readout": [
        case(
            "tome(r=3, layers=0:2) + guarded(r=2, drop=2, layers=1:4) + readout()",
            slow.Tome(3, slice(0, 2)),
            slow.Guarded(2, 2, layers=slice(1, 4)),
            slow.Readout(),
        )
    ],
    "gtp + mctf + tofu": [
        case(
            "gtp(r=2, graph=spatial, layers=0:2) + mctf(r=3, layers=1:3) + tofu(r=3, layers=2:)",
            slow.Gtp(2, graph="spatial", layers=slice(0, 2)),
            slow.Mctf(3, slice(1, 3)),
            slow.Tofu(3, slice(2, None)),
        )
    ],
    "tome + ats": [
        case("tome(r=3, layers=(0,)) + ats(tokens=12, layers=(1,))", slow.Tome(3, (0,)), slow.Ats(12, (1,)))
    ],
    "pitome + diffrate": [
        case(
            "pitome(r=2, layers=0:2) + diffrate(drop=1, merge=2, layers=1:3)",
            slow.Pitome(2, layers=slice(0, 2)),
            slow.Diffrate(1, 2, slice(1, 3)),
        )
    ],
}

IDENTITY = {
    "adaptive": "adaptive(bars=1)",
    "papr": "papr(keep=1)",
    "random": "random(keep=1)",
    "tome": "tome(r=0)",
    "tofu": "tofu(r=0)",
    "gtp": "gtp(r=0, sparsity=0.5)",
    "evit": "evit(keep=1)",
    "ats": "ats(tokens=9, layers=())",
    "dynamicvit": "dynamicvit(keep=1)",
    "pitome": "pitome(r=0)",
    "diffrate": "diffrate(drop=0, merge=0)",
    "mctf": "mctf(r=0)",
    "guarded": "guarded(r=0)",
    "patch_slimming": "patch_slimming(patches={slimming})",
}
"""Settings at which a method does nothing, by whatever host."""

VIDEO_ONLY = ("tome in a window",)
"""Cases that hosts refuse whose patches have no time."""
OF_IMAGES = {name: cases for name, cases in CASES.items() if name not in VIDEO_ONLY}
BY_IMAGE = ("adaptive",)
"""Cases whose token counts follow from the values of each image: no graph has them, nor tensors without values."""
FIXED = {name: cases for name, cases in OF_IMAGES.items() if name not in BY_IMAGE}
