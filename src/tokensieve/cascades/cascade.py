"""Cascade: every image is read by the cheapest recipe, and again by dearer ones while the answer is not sure enough.

Members that share a host share its weights, and what they compute alike is computed once: the embedding, and the blocks
from the first on that two readings in a row leave alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..cascade_recipe import CascadeRecipe
from ..errors import InputError, RecipeError, UnsupportedHost
from ..forward.token_stream import TokenStream
from ..forward.walk import Begun
from ..hosts.checks import check_images, hooked
from ..stream import Sieved, sieve
from .certifying import Certified
from .scores import read_again, sureness
from .watching import Watch


class Reading(NamedTuple):
    """What one member of a cascade did with a batch."""

    member: int
    images: Tensor
    """(B',) int64: the images that it read, by their places in the batch."""
    output: Any
    """What it answered to these, in their order."""
    scores: Tensor
    """(B',) how sure it was."""
    again: Tensor
    """(B',) bool: which of these are read again by the next."""
    begun: int
    """From which block on it computed: what came before had been computed by the member before. 0 where that is the
    first block, or nothing is shared."""
    shared: bool
    """Whether the embedding, and the blocks before `begun`, had been computed by the member before."""


@dataclass(frozen=True)
class CascadeTrace:
    """What a cascade did with a batch of B images.

    Attributes:
        member: (B,) int64, the member that gave each answer, counted from 0.
        scores: (B, M - 1) float, how sure each member but the last was of each image; NaN where it did not read it.
        readings: for each member that read anything, in order, what it did.
        output: as the dense model gives it, in the images' order.
    """

    member: Tensor
    scores: Tensor
    readings: tuple[Reading, ...]
    output: Any

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the images that each member read."""
        count, read = max(len(self.member), 1), {each.member: len(each.images) for each in self.readings}
        return tuple(read.get(index, 0) / count for index in range(self.scores.shape[1] + 1))


class Cascade(Sieved):
    """Members from cheap to dense; each image is answered by the first whose score reaches its threshold.

    A drop-in replacement of the dense model, as `Sieved` is: its parameters are those of the last member's host, and it
    returns what the dense model returns, in the order of the images. `tokensieve.cascade(...)` makes one with a
    promise, and `sieve(model, "cascade(...)")` one of known thresholds. It has no state between calls but the
    count of images read again (`watch`).
    """

    recipe: CascadeRecipe  # type: ignore[assignment]

    def __init__(
        self, members: Sequence[nn.Module], recipe: CascadeRecipe, certificate: Certified | None = None
    ) -> None:
        """`members`: what `sieve` returned, or models as they are, one for each of the recipe's recipes; `certificate`:
        what the calibration certified."""
        sieved = [member if isinstance(member, Sieved) else sieve(member) for member in members]
        if any(isinstance(member, Cascade) for member in sieved):
            raise RecipeError("A cascade is no member of a cascade: give its own members.")
        if len(sieved) != len(recipe.recipes):
            raise RecipeError(f"A cascade of {len(recipe.recipes)} recipes has as many members, not {len(sieved)}.")
        super().__init__(sieved[-1].stream, recipe)  # type: ignore[arg-type]
        self._members, self._certificate = tuple(sieved), certificate
        again = [share for share in (recipe.shares or ()) if share]
        used = [threshold for threshold in recipe.thresholds if threshold < 1]
        known = recipe.images is not None and len(again) > 0 and len(used) > 0
        self._watch = Watch(len(sieved), sum(again[1:2]) if known else None, recipe.images or 0)

    @property
    def members(self) -> tuple[Sieved, ...]:
        """From cheap to dense, each what `sieve` makes: `cascade.members[0](images)` is the first reading alone."""
        return self._members

    @property
    def dense(self) -> nn.Module:
        """The dense model that the last member stands for."""
        return self.model

    @property
    def thresholds(self) -> tuple[float, ...]:
        """For each member but the last the score below which an image is read again; at 1 it is left out."""
        return self.recipe.thresholds

    @property
    def shares(self) -> tuple[float, ...] | None:
        """The share of the calibration's images that each member read; None where it was not calibrated."""
        return self.recipe.shares

    @property
    def certificate(self) -> Certified | None:
        """What the calibration certified, with the lower bound of the agreement; None for a cascade that was loaded."""
        return self._certificate

    @property
    def watch(self) -> Watch:
        """How many images each member has read in use, in evaluation mode; where the calibration's share is known, it
        warns (`DriftWarning`) when the share read again is another."""
        return self._watch

    @property
    def one_host(self) -> bool:
        """Whether all members are recipes of one model, with one set of weights."""
        return all(member.model is self.model for member in self._members)

    def forward(
        self,
        images: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Images (B, C, H, W), or clips in the host's layout -> what the dense model returns, in the same order.

        Raises:
            InputError: arguments that need more than logits, such as `labels` or `output_hidden_states`; an output
                without a row of logits for each image.
        """
        given = {"pixel_values": pixel_values, "pixel_values_videos": pixel_values_videos, "labels": labels, **kwargs}
        given = {name: value for name, value in given.items() if value is not None}
        return self._traced(images, given).output

    def trace(self, images: Tensor, *, attention: Sequence[int] = ()) -> CascadeTrace:  # type: ignore[override]
        """Run on images; returns also which member answered each, and the scores: see `CascadeTrace`."""
        if attention:
            raise InputError("A cascade has no attention of its own: ask a member, cascade.members[0].trace(images).")
        return self._traced(images, {}, count=False)

    def _traced(self, images: Tensor | None, kwargs: dict[str, Any], count: bool = True) -> CascadeTrace:
        if images is not None:
            check_images(self.model, images, self.host.layout)
        images, kwargs = self._current_stream().host.arguments(images, kwargs)
        for name in ("labels", "output_hidden_states", "output_attentions"):
            if kwargs.pop(name, False) is not False:
                raise InputError(f"A cascade gives scores of classes alone: leave out {name}=, or ask a member for it.")
        if not len(images):  # nothing to decide
            output, empty = self._members[-1](images, **kwargs), torch.zeros(0, dtype=torch.int64, device=images.device)
            return CascadeTrace(empty, images.new_zeros(0, len(self.thresholds)), (), output)
        readings = tuple(self._readings(images, kwargs))
        if count and not self.training and not torch.compiler.is_compiling():
            self._watch.see({reading.member: len(reading.images) for reading in readings})
        member = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        scores = readings[0].scores.new_full((len(images), len(self.thresholds)), float("nan"))
        for reading in readings:
            member = member.index_fill(0, reading.images, reading.member)
            if reading.member < len(self.thresholds):
                scores[reading.images, reading.member] = reading.scores.detach()
        return CascadeTrace(member, scores, readings, _scattered(readings))

    def _readings(self, images: Tensor, kwargs: dict[str, Any]) -> Iterator[Reading]:
        """Run the active members in order, each on the images that none before accepted."""
        rows = torch.arange(len(images), device=images.device)
        begun: Begun | None = None
        separate = bool(kwargs) or not self.sharing  # arguments may be for the embedding
        if not separate:
            first: Any = self._members[self.active[0]]._current_stream()
            begun = first.begin(images)
        depths = self.depths(None if begun is None else prod(begun.tokens.grid))
        for position, (index, depth) in enumerate(zip(self.active, depths, strict=True)):
            member, before = self._members[index], begun
            if depth is None:
                output = member(images, **kwargs)
            else:
                stream: Any = member._current_stream()
                begun = stream.begin(images, depth, begun)
                output = stream.answer(images, begun=begun)
            scores = sureness(logits_of(output, member, self.recipe.score, len(images)), self.recipe.score)
            last = index == len(self._members) - 1
            again = torch.zeros_like(scores, dtype=torch.bool) if last else read_again(scores, self.thresholds[index])
            shared = position > 0 and before is not None
            yield Reading(index, rows, output, scores, again, before.block if shared and before else 0, shared)
            read_again_rows = again.nonzero()[:, 0]
            if not len(read_again_rows):
                return
            images, rows = images[read_again_rows], rows[read_again_rows]
            begun = None if begun is None else Begun(begun.tokens.images(read_again_rows), begun.block)

    def unwatched(self) -> Cascade:
        """A copy for measurements, which never warns of drift."""
        return Cascade(self._members, replace(self.recipe, shares=None, images=None), self._certificate)

    @property
    def active(self) -> list[int]:
        """Indices of the members that read images: those with a threshold below 1, and the last."""
        return [index for index, threshold in enumerate((*self.thresholds, 0.0)) if threshold < 1]

    @property
    def sharing(self) -> bool:
        """Whether each member continues from what the one before has computed.

        All must be of one host that has tokens from its first block to its last, and no hooks, which would miss calls.
        """
        first = self._members[0]
        return all(_shares(member, first) for member in self._members)

    def depths(self, patches: int | None) -> list[int | None]:
        """For each active member the first block that it computes by itself, for images of `patches` patches.

        The blocks before run without reducing tokens, so that the next member can continue from there. None for all
        where they do not share (`sharing`), or `patches` is None.
        """
        streams = [self._members[index].stream for index in self.active]
        if patches is None or not self.sharing:
            return [None] * len(streams)
        free = [stream.plan.untouched(patches) for stream in streams]
        # As far as all later members can share; nothing continues from the last.
        shared: list[int | None] = [min(free[index:]) for index in range(len(free) - 1)]
        return [*shared, 0]

    def _apply(self, fn: Any, recurse: bool = True) -> Cascade:
        """Apply `.to()`, `.half()` and the like to every member, once to a shared host."""
        done: set[int] = set()
        for member in self._members:
            for module in (member.model, member.parts, member.significance):
                if module is not None and id(module) not in done:
                    done.add(id(module))
                    module._apply(fn, recurse)
        return self

    def train(self, mode: bool = True) -> Cascade:
        """Set training or evaluation mode for every member's host."""
        for member in self._members:
            member.train(mode)
        return self

    @property
    def plan(self) -> Any:
        """Refused: each member has one."""
        raise self._of_members("plan")

    def reads(self, images: Tensor) -> Any:
        """Refused: each member reads as many tokens as its recipe says."""
        raise self._of_members("reads(images)")

    def map_call(self, images: Tensor) -> Any:
        """Refused: each member has a significance map, or none."""
        raise self._of_members("map_call(images)")

    def forward_features(self, images: Tensor) -> Any:
        """Refused: members keep different tokens."""
        raise self._of_members("forward_features(images)")

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Refused: members keep different tokens."""
        raise self._of_members("forward_intermediates(images)")

    def _of_members(self, what: str) -> UnsupportedHost:
        return UnsupportedHost(f"A cascade has several readings: ask one of them, cascade.members[0].{what}.")

    def _replicate_for_data_parallel(self) -> Cascade:
        raise UnsupportedHost("nn.DataParallel copies one model, and a cascade has several: run a process on each GPU.")

    def extra_repr(self) -> str:
        return f"recipe={self.recipe}"


def _shares(member: Sieved, first: Sieved) -> bool:
    """Whether a member may continue from what another one of the same host has computed."""
    stream = member.stream
    plain = isinstance(stream, TokenStream) and not stream.host.levels
    return plain and member.model is first.model and not any(map(hooked, stream.host.bypassed))


def logits_of(output: Any, model: Any, score: object, count: int) -> Tensor:
    """The logits (B, K) in what a model returned, or what `score` makes of it, where that is a function.

    Raises:
        UnsupportedHost: the output has no logits.
    """
    host = getattr(model, "model", model)
    if callable(score):
        logits = score(output)
    elif getattr(host, "num_classes", None) == 0:  # features, as many as there are channels
        logits = None
    else:
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2 or len(logits) != count:
        what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else "no scores of classes"
        raise UnsupportedHost(
            f"{type(host).__name__} gives {what}, and a cascade decides by (B, K) scores of two classes or more for "
            "each image: take a model with a classifier, or give score= a function that makes them of its outputs."
        )
    return logits


def _scattered(readings: Sequence[Reading]) -> Any:
    """The members' outputs merged: for each image that of the last member that read it, in the order of the images."""
    leaves, shape = tree_flatten(readings[0].output)
    for reading in readings[1:]:
        later, its_shape = tree_flatten(reading.output)
        if its_shape != shape:
            raise InputError("The members of a cascade return unlike things, which cannot be put together.")
        leaves = [_placed(old, reading.images, new) for old, new in zip(leaves, later, strict=True)]
    return tree_unflatten(leaves, shape)


def _placed(whole: Any, rows: Tensor, part: Any) -> Any:
    if not isinstance(whole, Tensor) or not isinstance(part, Tensor):
        return whole
    if part.shape[1:] != whole.shape[1:] or len(part) != len(rows):
        raise InputError(
            f"The members of a cascade return shapes {tuple(whole.shape)} and {tuple(part.shape)}, which cannot be put "
            "together: ask for scores of classes alone."
        )
    return whole.index_copy(0, rows, part.to(whole.dtype))
