"""Answers: a picture or a clip, a model and a recipe in; what both models say, what is kept and what it costs out."""

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
from .offers import Offer
from .ready import Ready, ready_recipes

Source = Path | int
"""A file, or the number of an example."""
PIXELS = 50_000_000
"""Of a picture at most: what a phone takes is read, what would fill the memory is not."""
LONGEST_RECIPE = 2000
"""Characters of a recipe's text."""
REMEMBERED = 64
"""Recipes of a model that stay open, with what is known of them."""
QUICK, TOGETHER = 0.03, 8
"""A model that takes fewer seconds for a picture is timed on so many at once: one alone leaves most of it idle."""
SECONDS, ROUNDS = 0.3, 3
"""To spend on a measurement, and rounds at least."""
Value = TypeVar("Value")
log = logging.getLogger(__name__)


class Time(NamedTuple):
    """Median seconds for one picture or clip, `batch` of them at once."""

    dense: float
    sieved: float
    ratio: float
    batch: int


@dataclass(frozen=True)
class Look:
    """What is shown.

    Attributes:
        title: what was looked at.
        headline: the answer in a sentence.
        section: figures and pictures.
        offer: the model, and `recipe` what it ran under.
        images: (1, ...) what the models read, and `fast` the sieved one: for measuring its time.
    """

    title: str
    headline: str
    section: Section
    offer: Offer
    recipe: Recipe
    fast: Sieved
    images: Tensor
    time: Time | None = None


class Station:
    """A model that was opened: its ready recipes, and the sieved forms that were asked for last."""

    def __init__(self, offer: Offer, opened: OpenedModel, classes: Sequence[str] | None) -> None:
        self.offer, self.opened, self.classes = offer, opened, classes
        self.ready: dict[str, Ready] = ready_recipes(opened, offer)
        self._remembered: OrderedDict[tuple[str, str], Any] = OrderedDict()

    @cached_property
    def macs(self) -> float:
        """Of the dense model for a picture or clip."""
        return macs(self.opened.dense, self.opened.input_spec)

    def sieved(self, recipe: Recipe) -> Sieved:
        """The model under a recipe. Keep ratios share one map, which may take long to build."""
        return self.remembered("sieved", str(recipe), lambda: self._sieved(recipe))

    def _sieved(self, recipe: Recipe) -> Sieved:
        try:
            keep = ranking(recipe).keep
        except RecipeError:
            return self._made(recipe)
        if isinstance(keep, tuple) or keep == 1:
            return self._made(recipe)
        shared = varied(recipe, keep=0.5)
        fast = self.remembered("sieved", str(shared), lambda: self._made(shared))
        return with_keeps({"": fast}, [keep])["", keep]

    def _made(self, recipe: Recipe) -> Sieved:
        dense, _, preprocessing = self.opened
        return self.offer.spec.sieve(dense, preprocessing, recipe).fast

    def remembered(self, what: str, text: str, make: Callable[[], Value]) -> Value:
        """What was made of a recipe before, or is made now; of all that is known the oldest is forgotten."""
        key = what, text
        if key not in self._remembered:
            self._remembered[key] = make()
        self._remembered.move_to_end(key)
        while len(self._remembered) > 3 * REMEMBERED:
            self._remembered.popitem(last=False)
        found: Value = self._remembered[key]
        return found


class Desk:
    """The models of a page, each opened when it is first asked for. One question is answered at a time, so that none
    slows down what is measured for another."""

    def __init__(self, offers: Sequence[Offer], classes: str | None = None, pixels: int = PIXELS) -> None:
        """`classes` is a file that names those of a model that was given; `pixels` how large pictures may be."""
        self.offers = {offer.name: offer for offer in offers}
        self.classes, self.pixels = classes, pixels
        self._stations: dict[str, Station] = {}
        self._lock = RLock()

    def station(self, name: str) -> Station:
        """The model called `name`. Raises `InputError` for one that is not offered."""
        if name not in self.offers:
            known = ", ".join(self.offers)
            raise InputError(f"There is no model {name!r} here{nearest(name, self.offers)}. Choose one of: {known}.")
        with self._lock:
            if name not in self._stations:
                offer = self.offers[name]
                opened = offer.opened or offer.spec.open()
                named = offer.classes or class_names(opened.dense, self.classes if offer.opened else None)
                self._stations[name] = Station(offer, opened, named)
            return self._stations[name]

    def first(self, name: str) -> Ready:
        """The recipe that a model begins with."""
        return next(iter(self.station(name).ready.values()))

    def reading(self, name: str, source: Source) -> str:
        """The model that reads a file: `name`, or the first that reads clips where `name` reads pictures alone, and the
        other way round.

        Raises:
            InputError: none does.
        """
        if isinstance(source, int):
            return name
        videos = source.suffix.lower() in SUFFIXES
        if name in self.offers and self.offers[name].videos is videos:
            return name
        for other, offer in self.offers.items():
            if offer.videos is videos:
                return other
        kind, way = ("clip", "clips") if videos else ("picture", "pictures")
        raise InputError(f"{source.name} is a {kind}, and no model on this page reads {way}.")

    def recipe(self, name: str, text: str) -> Recipe:
        """A recipe that somebody wrote on the page.

        Raises:
            RecipeError: it cannot be read, or names files or networks that the page was not started with: a visitor
                chooses neither what is read of this machine nor what it downloads.
        """
        if len(text) > LONGEST_RECIPE:
            raise RecipeError(f"The recipe has {len(text)} characters; {LONGEST_RECIPE} is the most that is read here.")
        recipe, own = Recipe.parse(text.strip()), self.station(name).offer.recipe or Recipe()
        files = {Path(path).name: path for path in own.paths()}  # the page shows them without their folders
        if strange := set(recipe.paths()) - set(files):
            raise RecipeError(f"The recipe names the file {min(strange)}: files cannot be chosen on this page.")
        recipe = recipe.with_paths(files.__getitem__)
        known = [method for method in own if isinstance(method, PaPr)]
        allowed = {*BUNDLED, *(method.proposal for method in known if method.needs_proposal)}
        sized = [(method.proposal_args, method.proposal_size) for method in known] + [(None, None)]
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

    def look(self, name: str, text: str, source: Source) -> Look:
        """What a model under a recipe makes of a picture or clip, without its time.

        Args:
            name: of an offer.
            text: the recipe.
            source: a file, which must be of the model's kind (see `reading`), or the number of an example.

        Raises:
            InputError: the file cannot be read.
            RecipeError, UnsupportedHost: the recipe cannot be read, or the model cannot take it.
        """
        with self._lock:
            station = self.station(name)
            recipe = self.recipe(name, text)
            fast = station.sieved(recipe)
            if isinstance(station.opened.preprocessing, VideoPreprocessing):
                clip, shown = self._clip(station.opened.preprocessing, source)
                look = _of_clip(station, fast, recipe, clip, shown)
            else:
                look = _of_picture(station, fast, recipe, self._picture(station.opened.preprocessing, source))
            if isinstance(source, Path):
                return replace(look, title=source.name)
            return replace(look, title=examples.all_of(videos=station.offer.videos)[source].name)

    def timed(self, look: Look) -> Look:
        """The same with its time beside the dense model's, measured once for each recipe; for each picture where the
        recipe reads as much as that needs."""
        with self._lock:
            station = self.station(look.offer.name)
            measured = partial(_measured, station.opened, look.fast, look.images)
            if look.fast.plan.varies:
                time = measured()
            else:
                time = station.remembered("time", str(look.recipe), measured)
        facts = (*look.section.facts, _time_fact(time, "clip" if look.offer.videos else "picture"))
        return replace(look, section=replace(look.section, facts=facts), time=time)

    def _picture(self, preprocessing: Preprocessing, source: Source) -> Tensor:
        """(1, 3, H, W)."""
        if isinstance(source, int):
            picture = examples.pictures()[source].picture
        else:
            self._check_size(source)
            picture = _named(source, lambda: read_image(source))
        return preprocessing.transform()(picture)[None]

    def _check_size(self, path: Path) -> None:
        """Raises `InputError` for a picture that is too large, before it is decoded."""
        try:
            with Image.open(path) as picture:
                width, height = picture.size
        except Image.DecompressionBombError:
            raise InputError(f"{path.name} has more pixels than the {self.pixels:,} that are read here.") from None
        except Exception:  # what is wrong with it is found, and said, by reading it
            return
        if width * height > self.pixels:
            raise InputError(f"{path.name} has {width} x {height} pixels; at most {self.pixels:,} are read here.")

    def _clip(self, preprocessing: VideoPreprocessing, source: Source) -> tuple[Tensor, Tensor]:
        """(1, *clip_shape), and the times of its frames (1, frames): the middle of a video."""
        if isinstance(source, int):
            return examples.clip(source, preprocessing)
        found = _named(source, lambda: read_clips(source, preprocessing))
        return found.clips[:1], torch.from_numpy(found.times[:1])


def _named(path: Path, read: Callable[[], Value]) -> Value:
    """What is read, or an error that calls the file as its owner does, and not by where it lies here."""
    try:
        return read()
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from None


def _of_picture(station: Station, fast: Sieved, recipe: Recipe, images: Tensor) -> Look:
    dense, _, own = station.opened
    (one,) = explain(fast, dense, images, own.mean, own.std, station.classes)
    section = Section("Result", facts=one.facts, panels=(one.panels,))
    return _with_costs(station, fast, recipe, images, section, one.verdict, one.tokens_per_block)


def _of_clip(station: Station, fast: Sieved, recipe: Recipe, clips: Tensor, shown: Tensor) -> Look:
    dense, _, own = station.opened
    assert isinstance(own, VideoPreprocessing)
    (one,) = explain_clips(fast, dense, clips, shown, own, station.classes)
    section = Section("Result", facts=one.facts, panels=one.panels())
    return _with_costs(station, fast, recipe, clips, section, one.verdict, one.both.trace.tokens_per_block)


def _with_costs(
    station: Station,
    fast: Sieved,
    recipe: Recipe,
    images: Tensor,
    section: Section,
    verdict: Verdict | None,
    tokens: Sequence[int],
) -> Look:
    opened, whole = station.opened, station.macs
    if fast.plan.varies:
        cost = macs(fast, images=images.to(opened.device, opened.dtype))
    else:
        cost = station.remembered("macs", str(recipe), lambda: macs(fast, opened.input_spec))
    what = "clip" if station.offer.videos else "picture"
    facts = list(section.facts)
    said = f"multiply-accumulates for this {what}: {giga(whole)} → {giga(cost)} billion"
    facts.append(Fact(times(whole / cost), f"fewer {said}" if cost <= whole else f"of the {said}"))
    if fast.units == "tokens":
        facts.append(Fact(f"{tokens[-1]} of {_dense_tokens(station)}", "tokens reach the last block"))
    headline = f"{_answer(verdict, section.facts)} {_work(whole / cost)}"
    return Look("", headline, replace(section, facts=tuple(facts)), station.offer, recipe, fast, images)


def _dense_tokens(station: Station) -> int:
    like = next(station.opened.dense.parameters())
    image = like.new_zeros(1, *station.opened.input_spec)
    reads = station.remembered("reads", "", lambda: station.opened.fast.reads(image))
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
        batch = TOGETHER if perf_counter() - start < QUICK else 1
        several = images.expand(batch, *images.shape[1:]).contiguous()
        calls: dict[str, Callable[[], object]] = {
            "dense": partial(opened.dense, several),
            "sieved": partial(fast, several),
        }
        found = interleaved(calls, seconds=SECONDS, min_rounds=ROUNDS, max_rounds=100)
    ratio = median(dense / ours for dense, ours in zip(found["dense"], found["sieved"], strict=True))
    return Time(median(found["dense"]) / batch, median(found["sieved"]) / batch, ratio, batch)


def sentence(error: Exception) -> str:
    """What a visitor is told of an error; of a defect of ours the log has the rest."""
    if isinstance(error, SieveError):
        return str(error)
    if isinstance(error, RuntimeError) and "memory" in str(error):
        return "This machine has not enough memory for that."
    log.error("a question could not be answered", exc_info=error)
    return "Something went wrong here that should not have. Whoever runs this page finds in its log what it was."
