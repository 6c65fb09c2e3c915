"""The page's backend: runs a model on a picture or clip under a recipe, and returns answers, pictures and costs."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from threading import RLock
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..data import Preprocessing, VideoPreprocessing, read_clips, read_image
from ..data.video_reading import SUFFIXES
from ..errors import InputError, RecipeError, SieveError, nearest
from ..measure import macs
from ..measure.outputs import evaluating
from ..measure.speed import interleaved
from ..methods import PaPr
from ..model_spec import OpenedModel
from ..recipe import Recipe
from ..show.clips import explain_clips
from ..show.explain import Verdict, class_names, explain
from ..show.page import Fact, Section
from ..show.tables import giga, short, times
from ..show.variants import ranking, varied, with_keeps
from ..stream import Sieved
from ..zoo import BUNDLED
from . import examples
from .models import ModelEntry
from .presets import Preset, presets_for

Source = Path | int
"""A file, or the index of an example."""
MAX_PIXELS = 50_000_000
"""The most pixels of a picture: enough for a phone's, too few to fill the memory."""
MAX_RECIPE_LENGTH = 2000
"""Characters of a recipe's text."""
CACHE_SIZE = 64
"""Recipes of a model that are cached."""
FAST_SECONDS, TIMING_BATCH = 0.03, 8
"""A model that takes less than FAST_SECONDS seconds for a picture is timed on a batch of TIMING_BATCH."""
SECONDS, ROUNDS = 0.3, 3
"""Seconds for a measurement, and its fewest rounds."""
Value = TypeVar("Value")
log = logging.getLogger(__name__)


class Time(NamedTuple):
    """Median seconds for one picture or clip, `batch` of them at once."""

    dense: float
    sieved: float
    ratio: float
    batch: int


@dataclass(frozen=True)
class Result:
    """A result to show.

    Attributes:
        title: name of the picture or clip.
        headline: the answer in a sentence.
        section: figures and pictures.
        offer: the model.
        recipe: what it ran under.
        fast: the sieved model, for measuring its time.
        images: (1, ...) the input of both models.
    """

    title: str
    headline: str
    section: Section
    entry: ModelEntry
    recipe: Recipe
    fast: Sieved
    images: Tensor
    time: Time | None = None


class LoadedModel:
    """An open model: its presets, and a cache of its sieved forms."""

    def __init__(self, entry: ModelEntry, opened: OpenedModel, classes: Sequence[str] | None) -> None:
        self.entry, self.opened, self.classes = entry, opened, classes
        self.presets: dict[str, Preset] = presets_for(opened, entry)
        self._cache: OrderedDict[tuple[str, str], Any] = OrderedDict()

    @cached_property
    def macs(self) -> float:
        """MACs of the dense model for a picture or clip."""
        return macs(self.opened.dense, self.opened.input_spec)

    def sieved(self, recipe: Recipe) -> Sieved:
        """The model under a recipe, cached. Keep ratios share one map, which may take long to build."""
        return self.cached("sieved", str(recipe), lambda: self._sieved(recipe))

    def _sieved(self, recipe: Recipe) -> Sieved:
        try:
            keep = ranking(recipe).keep
        except RecipeError:
            return self._made(recipe)
        if isinstance(keep, tuple) or keep == 1:
            return self._made(recipe)
        shared = varied(recipe, keep=0.5)
        fast = self.cached("sieved", str(shared), lambda: self._made(shared))
        return with_keeps({"": fast}, [keep])["", keep]

    def _made(self, recipe: Recipe) -> Sieved:
        dense, _, preprocessing = self.opened
        return self.entry.spec.sieve(dense, preprocessing, recipe).fast

    def cached(self, what: str, text: str, make: Callable[[], Value]) -> Value:
        """A value from an LRU cache, made by `make` where it is missing."""
        key = what, text
        if key not in self._cache:
            self._cache[key] = make()
        self._cache.move_to_end(key)
        while len(self._cache) > 3 * CACHE_SIZE:
            self._cache.popitem(last=False)
        value: Value = self._cache[key]
        return value


class Backend:
    """The models of a page, each opened at its first use. One request runs at a time, so that none disturbs a
    measurement."""

    def __init__(self, models: Sequence[ModelEntry], classes: str | None = None, pixels: int = MAX_PIXELS) -> None:
        """`classes` is a file with the class names of a given model; `pixels` the largest picture."""
        self.models = {entry.name: entry for entry in models}
        self.classes, self.pixels = classes, pixels
        self._loaded: dict[str, LoadedModel] = {}
        self._lock = RLock()

    def loaded(self, name: str) -> LoadedModel:
        """The model called `name`. Raises `InputError` for one that is not on this page."""
        if name not in self.models:
            known = ", ".join(self.models)
            raise InputError(f"There is no model {name!r} here{nearest(name, self.models)}. Choose one of: {known}.")
        with self._lock:
            if name not in self._loaded:
                entry = self.models[name]
                opened = entry.opened or entry.spec.open()
                named = entry.classes or class_names(opened.dense, self.classes if entry.opened else None)
                self._loaded[name] = LoadedModel(entry, opened, named)
            return self._loaded[name]

    def default_preset(self, name: str) -> Preset:
        """The first preset of a model."""
        return next(iter(self.loaded(name).presets.values()))

    def model_for(self, name: str, source: Source) -> str:
        """The model that reads a file: `name`, or the first that reads this kind of file.

        Raises:
            InputError: no model reads such files.
        """
        if isinstance(source, int):
            return name
        videos = source.suffix.lower() in SUFFIXES
        if name in self.models and self.models[name].videos is videos:
            return name
        for other, entry in self.models.items():
            if entry.videos is videos:
                return other
        kind, way = ("clip", "clips") if videos else ("picture", "pictures")
        raise InputError(f"{source.name} is a {kind}, and no model on this page reads {way}.")

    def recipe(self, name: str, text: str) -> Recipe:
        """Parse a recipe that a visitor wrote.

        Raises:
            RecipeError: it cannot be parsed, or names files or networks that the page was not started with: a visitor
                may neither read files of this machine nor make it download.
        """
        if len(text) > MAX_RECIPE_LENGTH:
            raise RecipeError(
                f"The recipe has {len(text)} characters; {MAX_RECIPE_LENGTH} is the most that is read here."
            )
        recipe, offered = Recipe.parse(text.strip()), self.loaded(name).entry.recipe or Recipe()
        files = {Path(path).name: path for path in offered.paths()}  # the page shows them without their folders
        if strange := set(recipe.paths()) - set(files):
            raise RecipeError(f"The recipe names the file {min(strange)}: files cannot be chosen on this page.")
        recipe = recipe.with_paths(files.__getitem__)
        rankers = [method for method in offered if isinstance(method, PaPr)]
        allowed = {*BUNDLED, *(method.proposal for method in rankers if method.needs_proposal)}
        sized = [(method.proposal_args, method.proposal_size) for method in rankers] + [(None, None)]
        for method in recipe:
            if not isinstance(method, PaPr):
                continue
            if method.needs_proposal and method.proposal not in allowed:
                raise RecipeError(
                    f"The recipe ranks by {method.proposal}, whose weights are not here: this page has "
                    f"{', '.join(sorted(map(str, allowed)))}, and the maps centre and random that need none."
                )
            if (method.proposal_args, method.proposal_size) not in sized:
                raise RecipeError("proposal_args and proposal_size cannot be set on this page.")
        return recipe

    def run(self, name: str, text: str, source: Source) -> Result:
        """Run a model under a recipe on a picture or clip, without measuring its time.

        Args:
            name: of the model.
            text: the recipe.
            source: a file, which must be of the model's kind (see `model_for`), or the index of an example.

        Raises:
            InputError: the file cannot be read.
            RecipeError, UnsupportedHost: the recipe cannot be read, or the model cannot take it.
        """
        with self._lock:
            loaded = self.loaded(name)
            recipe = self.recipe(name, text)
            fast = loaded.sieved(recipe)
            if isinstance(loaded.opened.preprocessing, VideoPreprocessing):
                clip, shown = self._clip(loaded.opened.preprocessing, source)
                result = _of_clip(loaded, fast, recipe, clip, shown)
            else:
                result = _of_picture(loaded, fast, recipe, self._picture(loaded.opened.preprocessing, source))
            if isinstance(source, Path):
                return replace(result, title=source.name)
            return replace(result, title=examples.all_of(videos=loaded.entry.videos)[source].name)

    def with_time(self, result: Result) -> Result:
        """The same result with its time and the dense model's.

        Measured once for each recipe; for each picture where the number of tokens depends on the picture.
        """
        with self._lock:
            loaded = self.loaded(result.entry.name)
            measured = partial(_measured, loaded.opened, result.fast, result.images)
            if result.fast.plan.varies:
                time = measured()
            else:
                time = loaded.cached("time", str(result.recipe), measured)
        facts = (*result.section.facts, _time_fact(time, "clip" if result.entry.videos else "picture"))
        return replace(result, section=replace(result.section, facts=facts), time=time)

    def _picture(self, preprocessing: Preprocessing, source: Source) -> Tensor:
        """A picture as the model reads it, (1, 3, H, W)."""
        if isinstance(source, int):
            picture = examples.pictures()[source].picture
        else:
            self._check_size(source)
            picture = _without_folder(source, lambda: read_image(source))
        return preprocessing.transform()(picture)[None]

    def _check_size(self, path: Path) -> None:
        """Raises `InputError` for a picture that is too large, before it is decoded."""
        try:
            with Image.open(path) as picture:
                width, height = picture.size
        except Image.DecompressionBombError:
            raise InputError(f"{path.name} has more pixels than the {self.pixels:,} that are read here.") from None
        except Exception:  # reading it raises the error
            return
        if width * height > self.pixels:
            raise InputError(f"{path.name} has {width} x {height} pixels; at most {self.pixels:,} are read here.")

    def _clip(self, preprocessing: VideoPreprocessing, source: Source) -> tuple[Tensor, Tensor]:
        """The middle clip of a video (1, *clip_shape), and the times of its frames in seconds (1, frames)."""
        if isinstance(source, int):
            return examples.clip(source, preprocessing)
        clips = _without_folder(source, lambda: read_clips(source, preprocessing))
        return clips.clips[:1], torch.from_numpy(clips.times[:1])


def _without_folder(path: Path, read: Callable[[], Value]) -> Value:
    """What `read` returns; errors name the file without its folder."""
    try:
        return read()
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from None


def _of_picture(loaded: LoadedModel, fast: Sieved, recipe: Recipe, images: Tensor) -> Result:
    dense, _, preprocessing = loaded.opened
    (explained,) = explain(fast, dense, images, preprocessing.mean, preprocessing.std, loaded.classes)
    section = Section("Result", facts=explained.facts, panels=(explained.panels,))
    return _with_costs(loaded, fast, recipe, images, section, explained.verdict, explained.tokens_per_block)


def _of_clip(loaded: LoadedModel, fast: Sieved, recipe: Recipe, clips: Tensor, times: Tensor) -> Result:
    dense, _, preprocessing = loaded.opened
    assert isinstance(preprocessing, VideoPreprocessing)
    (explained,) = explain_clips(fast, dense, clips, times, preprocessing, loaded.classes)
    section = Section("Result", facts=explained.facts, panels=explained.panels())
    return _with_costs(loaded, fast, recipe, clips, section, explained.verdict, explained.both.trace.tokens_per_block)


def _with_costs(
    loaded: LoadedModel,
    fast: Sieved,
    recipe: Recipe,
    images: Tensor,
    section: Section,
    verdict: Verdict | None,
    tokens: Sequence[int],
) -> Result:
    opened, dense_macs = loaded.opened, loaded.macs
    if fast.plan.varies:
        cost = macs(fast, images=images.to(opened.device, opened.dtype))
    else:
        cost = loaded.cached("macs", str(recipe), lambda: macs(fast, opened.input_spec))
    what = "clip" if loaded.entry.videos else "picture"
    facts = list(section.facts)
    unit = f"multiply-accumulates for this {what}: {giga(dense_macs)} → {giga(cost)} billion"
    facts.append(Fact(times(dense_macs / cost), f"fewer {unit}" if cost <= dense_macs else f"of the {unit}"))
    if fast.units == "tokens":
        facts.append(Fact(f"{tokens[-1]} of {_dense_tokens(loaded)}", "tokens reach the last block"))
    headline = f"{_answer(verdict, section.facts)} {_work(dense_macs / cost)}"
    return Result("", headline, replace(section, facts=tuple(facts)), loaded.entry, recipe, fast, images)


def _dense_tokens(loaded: LoadedModel) -> int:
    like = next(loaded.opened.dense.parameters())
    image = like.new_zeros(1, *loaded.opened.input_spec)
    reads = loaded.cached("reads", "", lambda: loaded.opened.fast.reads(image))
    return reads[-1].mlp


def _answer(verdict: Verdict | None, facts: Sequence[Fact]) -> str:
    if verdict is None:
        return f"{facts[0].value} {facts[0].label}." if facts else ""
    if verdict.same:
        return f"Same answer: {verdict.dense.label}."
    return f"Another answer: {verdict.sieved.label} instead of {verdict.dense.label}."


def _work(ratio: float) -> str:
    if abs(ratio - 1) < 0.005:
        return "The model reads everything."
    return f"{ratio:.2g} times less work." if ratio > 1 else f"{1 / ratio:.2g} times more work."


def _time_fact(time: Time, what: str) -> Fact:
    span = f"{short(1000 * time.dense)} → {short(1000 * time.sieved)} ms a {what}"
    together = f", {time.batch} at once" if time.batch > 1 else ""
    slower = time.ratio < 1
    return Fact(
        times(time.ratio), f"{'the speed: slower' if slower else 'faster'} here, {span}{together}", alert=slower
    )


@torch.no_grad()
def _measured(opened: OpenedModel, fast: Sieved, images: Tensor) -> Time:
    images = images.to(opened.device, opened.dtype)
    with evaluating(opened.dense, fast):
        opened.dense(images)  # warms up
        start = perf_counter()
        opened.dense(images)
        batch = TIMING_BATCH if perf_counter() - start < FAST_SECONDS else 1
        inputs = images.expand(batch, *images.shape[1:]).contiguous()
        calls: dict[str, Callable[[], object]] = {
            "dense": partial(opened.dense, inputs),
            "sieved": partial(fast, inputs),
        }
        seconds = interleaved(calls, seconds=SECONDS, min_rounds=ROUNDS, max_rounds=100)
    ratio = median(dense / ours for dense, ours in zip(seconds["dense"], seconds["sieved"], strict=True))
    return Time(median(seconds["dense"]) / batch, median(seconds["sieved"]) / batch, ratio, batch)


def message_for(error: Exception) -> str:
    """The message of an error for a visitor; unexpected errors go to the log."""
    if isinstance(error, SieveError):
        return str(error)
    if isinstance(error, RuntimeError) and "memory" in str(error):
        return "This machine has not enough memory for that."
    log.error("a question could not be answered", exc_info=error)
    return "Something went wrong here that should not have. Whoever runs this page finds in its log what it was."
