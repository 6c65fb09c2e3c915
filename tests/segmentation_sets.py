"""Small segmentation sets in every layout, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (20, 30)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def labels(path: Path, values: list[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """Stripes of the values, from left to right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.repeat(np.array(values, np.uint8), -(-size[1] // len(values)))[: size[1]]
    pixels = np.tile(pixels, (size[0], 1))
    Image.fromarray(pixels).save(path)
    return pixels


def plain(root: Path) -> Path:
    """A pair of folders: a and c hold the classes 0 and 1, b the classes 0 and 2 and a stripe that counts nowhere."""
    for number, (name, values) in enumerate({"a": [0, 1], "b": [0, 2, 255], "c": [1, 0]}.items()):
        picture(root / "images" / f"{name}.jpg", number)
        labels(root / "labels" / f"{name}.png", values)
    return root


def ade20k(root: Path) -> None:
    for split in ("training", "validation"):
        for number in range(2):
            name = f"ADE_{split}_{number}"
            picture(root / "ADEChallengeData2016" / "images" / split / f"{name}.jpg", number)
            labels(root / "ADEChallengeData2016" / "annotations" / split / f"{name}.png", [0, 1, 150])
    rows = "\n".join(f"{number}\t0.1\t1\t1\t0\tname {number}" for number in range(1, 151))
    (root / "ADEChallengeData2016" / "objectInfo150.txt").write_text(f"Idx\tRatio\tTrain\tVal\tStuff\tName\n{rows}\n")


def pascal_context(root: Path) -> None:
    folder = root / "VOC2010"
    for number in range(3):
        picture(folder / "JPEGImages" / f"2008_{number}.jpg", number)
    for number in range(2):
        labels(folder / "SegmentationClassContext" / f"2008_{number}.png", [0, 1, 59])
    lists = folder / "ImageSets" / "SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2008_0\n")
    (lists / "val.txt").write_text("2008_1\n2008_7\n")


def coco_stuff10k(root: Path) -> None:
    for split in ("train2014", "test2014"):
        picture(root / "images" / split / "COCO_1.jpg")
        labels(root / "annotations" / split / "COCO_1_labelTrainIds.png", [0, 1, 171])


def coco_stuff164k(root: Path) -> None:
    for split in ("train2017", "val2017"):
        picture(root / "images" / split / "000000000009.jpg")
        labels(root / "stuffthingmaps" / split / "000000000009.png", [0, 10, 12, 181, 255])


def cityscapes(root: Path) -> None:
    for split, city in (("train", "aachen"), ("val", "munster")):
        name = f"{city}_000000_000019"
        picture(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        folder = root / "gtFine" / split / city
        labels(folder / f"{name}_gtFine_labelIds.png", [7, 33, 0, 11, 29])
        picture(folder / f"{name}_gtFine_color.png")


def camvid(root: Path) -> None:
    for split in ("train", "val", "test"):
        picture(root / split / "images" / "0001TP_1.jpg")
        labels(root / split / "labels" / "0001TP_1.png", [0, 10, 11])


def segnet(root: Path) -> None:
    for split in ("train", "val", "test"):
        picture(root / split / "0001TP_1.png")
        labels(root / f"{split}annot" / "0001TP_1.png", [0, 10, 11])
