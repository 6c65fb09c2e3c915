"""MACs of segmenters against the published figures -> results/segmenters.csv.

python benchmarks/segmenters.py

A base is the backbone and the last exit's head, as the papers count it. "recounted" are figures of one more digit,
computed from formulas, without the class layers of the heads. SegViT v1's published figures hold the class layer of all
three stages, of which the first two are for training; they are not run here. The models have shapes and no weights.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import timm
import torch

from results import write
from tokensieve import segmentation
from tokensieve.measure import macs
from tokensieve.measure.macs import count
from tokensieve.zoo.models import without_memory


class Setting(NamedTuple):
    """A published configuration, and its figures in GMAC: (as papers print them, as recounted from formulas)."""

    name: str
    backbone: str
    size: int
    classes: int
    width: int
    heads: int
    base: tuple[str, str]
    cascade: tuple[str, str]
    head: str

    @property
    def exits(self) -> tuple[int, ...]:
        return (5, 7, 11) if "base" in self.backbone else (7, 15, 23)


BASE, LARGE = "vit_base_patch16_224", "vit_large_patch16_224"
SETTINGS = [
    Setting("ADE20K-B", BASE, 512, 150, 384, 6, ("109.9", "109.86"), ("120.9", "120.85"), "2.543"),
    Setting("ADE20K-L", LARGE, 640, 150, 512, 8, ("617.0", "616.98"), ("637.9", "637.83"), "5.813"),
    Setting("Pascal-Context-L", LARGE, 480, 59, 512, 16, ("315.4", "315.35"), ("321.6", "321.59"), "2.711"),
    Setting("COCO-Stuff10K-L", LARGE, 512, 171, 512, 16, ("366.9", "366.85"), ("383.9", "383.85"), "4.658"),
]
V2_STAGE = "2.225"
"""One stage of ATMHeadV2 in the setting of ADE20K-B."""


@torch.no_grad()
def main() -> int:
    rows = [row for setting in SETTINGS for row in counted(setting)]
    for each in rows:
        print(
            f"{each['setting']:18} {each['what']:34} {each['gmac']}  published {each['published'] or '-':6} "
            f"{each['to_published_digit']!s:5}  recounted {each['recounted'] or '-':6} {each['to_recounted_digit']}"
        )
    write("segmenters.csv", rows)
    return 1 if any(each["to_published_digit"] is False for each in rows) else 0


def counted(setting: Setting) -> Iterator[dict[str, Any]]:
    size, classes = (3, setting.size, setting.size), setting.classes
    deep = setting.backbone == LARGE
    with without_memory():
        backbone = timm.create_model(setting.backbone, img_size=setting.size).eval()
        base = segmentation.segvit(backbone, classes, setting.exits, setting.width, setting.heads).eval()
        v1 = segmentation.segvit_v1(backbone, classes, setting.exits, heads=setting.heads).eval()
        v2 = segmentation.segvit_v2(backbone, classes, setting.exits, heads=setting.heads).eval()
        levels = (9, 14, 19, 23) if deep else (3, 6, 9, 11)
        others = {
            "setr, naive": segmentation.setr(backbone, classes, "naive", levels).eval(),
            "setr, pup": segmentation.setr(backbone, classes, "pup", levels).eval(),
            "setr, mla": segmentation.setr(backbone, classes, "mla", class_token=False).eval(),
            "linear": segmentation.linear(backbone, classes).eval(),
        }

    yield row(setting, "segvit, base", macs(base, size, fvcore_compat=True), *setting.base)
    cascade = macs(v1, size, fvcore_compat=True)
    class_layer = v1.decode_head.classifier.weight.numel() * classes
    yield row(setting, "segvit_v1", cascade)
    yield row(setting, "segvit_v1, classes of all stages", cascade + 2 * class_layer, setting.cascade[0])
    yield row(setting, "segvit_v1, no class layer", cascade - class_layer, "", setting.cascade[1])
    yield row(setting, "segvit_v2", macs(v2, size, fvcore_compat=True))
    tokens = torch.zeros(1, (setting.size // 16) ** 2, base.width, device="meta")
    head = base.decode_head
    whole = count(head, lambda: head(tokens))
    yield row(setting, "one ATM head", whole)
    yield row(setting, "one ATM head, no class layer", whole - 2 * setting.width * classes, "", setting.head)
    stage = v2.decode_head.decoders[0]
    queries = torch.zeros(1, classes, stage.norm.normalized_shape[0], device="meta")
    figure = V2_STAGE if setting.name == "ADE20K-B" else ""
    yield row(setting, "one stage of segvit_v2", count(stage, lambda: stage(queries, tokens)), "", figure)
    for what, model in others.items():
        yield row(setting, what, macs(model, size, fvcore_compat=True))


def row(setting: Setting, what: str, counted: float, published: str = "", recounted: str = "") -> dict[str, Any]:
    gmac = counted / 1e9
    return {
        "setting": setting.name, "backbone": setting.backbone, "size": setting.size, "classes": setting.classes,
        "what": what, "gmac": f"{gmac:.4f}", "published": published, "to_published_digit": agrees(gmac, published),
        "recounted": recounted, "to_recounted_digit": agrees(gmac, recounted),
    }  # fmt: skip


def agrees(gmac: float, figure: str) -> bool | str:
    """Whether a count rounds to the figure; nothing where there is no figure."""
    return f"{gmac:.{len(figure.partition('.')[2])}f}" == figure if figure else ""


if __name__ == "__main__":
    sys.exit(main())
