"""The models of the page: the bundled ones, and the one that it was started with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

from ..data import VideoPreprocessing
from ..data.moving_scenes import MOVING_CLASSES
from ..model_spec import ModelSpec, OpenedModel
from ..recipe import Recipe

DIGITS = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True)
class ModelEntry:
    """A model to choose.

    Attributes:
        name: shown in the list.
        about: what it predicts, in a sentence.
        spec: how it is opened, with the empty recipe.
        videos: whether it reads clips instead of pictures.
        classes: names of its classes, where the model does not state them.
        proposal: the bundled network that ranks its patches.
        recipe: the one that the page was started with.
        opened: the model, if it is open already.
    """

    name: str
    about: str
    spec: ModelSpec
    videos: bool = False
    classes: Sequence[str] | None = None
    proposal: str | None = None
    recipe: Recipe | None = None
    opened: OpenedModel | None = field(default=None, repr=False, compare=False)


def given_entry(spec: ModelSpec) -> ModelEntry:
    """The model that a page was started with, and its recipe or the default one.

    Opens it, which shows whether it can be opened and what it reads.

    Raises:
        InputError, RecipeError, UnsupportedHost: as `ModelSpec.open`.
    """
    opened = spec.open()
    videos = isinstance(opened.preprocessing, VideoPreprocessing)
    known = [entry for entry in bundled_entries() if entry.name == spec.model]
    entry = (
        known[0]
        if known
        else ModelEntry(spec.model, f"Reads {'clips' if videos else 'pictures'}.", spec, videos=videos)
    )
    empty = spec.sieve(opened.dense, opened.preprocessing, Recipe())
    return replace(entry, spec=spec.with_recipe(""), recipe=opened.fast.recipe, opened=empty)


def bundled_entries(device: str = "cpu", precision: str = "fp32") -> list[ModelEntry]:
    """The bundled models; the one that reads clips needs transformers."""

    def spec(model: str) -> ModelSpec:
        return ModelSpec(model, "", device=device, precision=precision)

    entries = [
        ModelEntry(
            "nano_vit",
            "Names the digit in a picture: a small vision transformer. It knows digits and nothing else.",
            spec("nano_vit"), classes=DIGITS, proposal="nano_convnet",
        ),
        ModelEntry(
            "nano_convnext",
            "Names the digit in a picture: a small ConvNeXt, in which pixels are left out instead of tokens.",
            spec("nano_convnext"), classes=DIGITS, proposal="nano_convnet",
        ),
        ModelEntry(
            "nano_segmenter",
            "Names what every pixel shows: a digit, a fragment of one, or the background.",
            spec("nano_segmenter"),
        ),
    ]  # fmt: skip
    if find_spec("transformers") is not None:
        entries.append(
            ModelEntry(
                "nano_video",
                "Names the digit in a clip, and where it goes.",
                spec("nano_video"), videos=True, classes=MOVING_CLASSES, proposal="nano_video_proposal",
            )
        )  # fmt: skip
    return entries
