"""Cascade: the cheapest recipe runs on every image, and costlier ones on images for which its confidence is too low.

Members with the same host share its weights. They also share computation: the embedding, and the first blocks in which
neither of two consecutive members reduces tokens, are computed once.
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
    """The run of one member of a cascade on a batch."""

    member: int
    """Index of the member."""
    images: Tensor
    """(B',) int64: indices in the batch of the images that it read."""
    output: Any
    """Its output for these images, in their order."""
    scores: Tensor
    """(B',) its confidence for each of these images."""
    again: Tensor
    """(B',) bool: which of these images the next member reads again."""
    begun: int
    """The first block that this member computed; the previous member computed the blocks before it. 0 if it computed
    all blocks."""
    shared: bool
    """Whether the previous member computed the embedding, and the blocks before `begun`."""


@dataclass(frozen=True)
class CascadeTrace:
    """The run of a cascade on a batch of B images.

    Attributes:
        member: (B,) int64, index of the member whose output was used for each image.
        scores: (B, M - 1) float, confidence of each member but the last for each image; NaN if it did not read it.
        readings: the run of each member that read any images, in order.
        output: the output in the form of the dense model's, in the order of the images.
    """

    member: Tensor
    scores: Tensor
    readings: tuple[Reading, ...]
    output: Any

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the images that each member read."""
        count = max(len(self.member), 1)
        images_of_member = {reading.member: len(reading.images) for reading in self.readings}
        return tuple(images_of_member.get(index, 0) / count for index in range(self.scores.shape[1] + 1))


class Cascade(Sieved):
    """Members from cheap to dense; the output for an image is that of the first one whose score reaches its threshold.

    Like `Sieved` it is a drop-in replacement of the dense model: its parameters are those of the last member's host,
    and it returns what the dense model returns, in the order of the images. `tokensieve.cascade(...)` creates a cascade
    with a certified agreement, `sieve(model, "cascade(...)")` one with known thresholds. Its only state between calls
    is the count of images read by each member (`watch`).
    """

    recipe: CascadeRecipe  # type: ignore[assignment]

    def __init__(
        self, members: Sequence[nn.Module], recipe: CascadeRecipe, certificate: Certified | None = None
    ) -> None:
        """Combine members into a cascade.

        Args:
            members: sieved or dense models, from cheap to dense, one for each of the recipe's recipes.
            recipe: recipes, thresholds and score.
            certificate: the result of the calibration, if there was one.
        """
        sieved = [member if isinstance(member, Sieved) else sieve(member) for member in members]
        if any(isinstance(member, Cascade) for member in sieved):
            raise RecipeError("A cascade cannot be a member of a cascade: give its own members.")
        if len(sieved) != len(recipe.recipes):
            raise RecipeError(f"A cascade of {len(recipe.recipes)} recipes needs as many members, not {len(sieved)}.")
        super().__init__(sieved[-1].stream, recipe)  # type: ignore[arg-type]
        self._members, self._certificate = tuple(sieved), certificate
        active_shares = [share for share in (recipe.shares or ()) if share]
        active_thresholds = [threshold for threshold in recipe.thresholds if threshold < 1]
        calibrated = recipe.images is not None and len(active_shares) > 0 and len(active_thresholds) > 0
        self._watch = Watch(len(sieved), sum(active_shares[1:2]) if calibrated else None, recipe.images or 0)

    @property
    def members(self) -> tuple[Sieved, ...]:
        """The members from cheap to dense, all sieved models; `cascade.members[0](images)` runs only the first."""
        return self._members

    @property
    def dense(self) -> nn.Module:
        """The dense model, which is the host of the last member."""
        return self.model

    @property
    def thresholds(self) -> tuple[float, ...]:
        """For each member but the last, the score below which an image is read again; a member with threshold 1 is
        skipped."""
        return self.recipe.thresholds

    @property
    def shares(self) -> tuple[float, ...] | None:
        """The share of the calibration images that each member read; None if the cascade was not calibrated."""
        return self.recipe.shares

    @property
    def certificate(self) -> Certified | None:
        """The result of the calibration, with the lower bound of the agreement; None if the cascade was loaded."""
        return self._certificate

    @property
    def watch(self) -> Watch:
        """Counts the images that each member reads in evaluation mode. If the calibration's shares are known it warns
        (`DriftWarning`) when the share of images read again differs from them."""
        return self._watch

    @property
    def one_host(self) -> bool:
        """Whether all members are recipes of the same model, with the same weights."""
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
            InputError: arguments that need more than logits, such as `labels` or `output_hidden_states`.
            UnsupportedHost: the output does not have a row of logits for each image.
        """
        kwargs |= {"pixel_values": pixel_values, "pixel_values_videos": pixel_values_videos, "labels": labels}
        return self._traced(images, {name: value for name, value in kwargs.items() if value is not None}).output

    def trace(self, images: Tensor, *, attention: Sequence[int] = ()) -> CascadeTrace:  # type: ignore[override]
        """Run on images, and also return the member used for each image, and the scores: see `CascadeTrace`."""
        if attention:
            raise InputError("A cascade has no attention of its own: use a member, cascade.members[0].trace(images).")
        return self._traced(images, {}, count=False)

    def _traced(self, images: Tensor | None, kwargs: dict[str, Any], count: bool = True) -> CascadeTrace:
        if images is not None:
            check_images(self.model, images, self.host.layout)
        images, kwargs = self._current_stream().host.arguments(images, kwargs)
        for name in ("labels", "output_hidden_states", "output_attentions"):
            if kwargs.pop(name, False) is not False:
                raise InputError(f"A cascade returns only logits: leave out {name}=, or call a member with it.")
        if not len(images):  # an empty batch
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
        """Run the active members in order, each on the images for which no earlier member's score was high enough."""
        rows = torch.arange(len(images), device=images.device)
        begun: Begun | None = None
        separate = bool(kwargs) or not self.sharing  # keyword arguments may be for the embedding
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
        """A copy that never warns of drift, for measurements."""
        return Cascade(self._members, replace(self.recipe, shares=None, images=None), self._certificate)

    @property
    def active(self) -> list[int]:
        """Indices of the members that read images: those with a threshold below 1, and the last."""
        return [index for index, threshold in enumerate((*self.thresholds, 0.0)) if threshold < 1]

    @property
    def sharing(self) -> bool:
        """Whether each member continues from the tokens computed by the previous one.

        All must have the same host. It must have tokens, a head that reads only the last block, and no hooks, which
        would miss calls.
        """
        first = self._members[0]
        return all(_shares(member, first) for member in self._members)

    def depths(self, patches: int | None) -> list[int | None]:
        """For each active member, the number of first blocks to run without reducing tokens, for images of `patches`
        patches, so that the next member can continue from there.

        None for all members if they do not share computation (see `sharing`), or if `patches` is None.
        """
        streams = [self._members[index].stream for index in self.active]
        if patches is None or not self.sharing:
            return [None] * len(streams)
        untouched = [stream.plan.untouched(patches) for stream in streams]
        # As many blocks as all later members can share; no member continues from the last one.
        shared: list[int | None] = [min(untouched[index:]) for index in range(len(untouched) - 1)]
        return [*shared, 0]

    def _apply(self, fn: Any, recurse: bool = True) -> Cascade:
        """Apply `.to()`, `.half()` and the like to every member; a shared host is converted only once."""
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
        """Raises UnsupportedHost: each member has its own plan."""
        raise self._of_members("plan")

    def reads(self, images: Tensor) -> Any:
        """Raises UnsupportedHost: members read different numbers of tokens."""
        raise self._of_members("reads(images)")

    def map_call(self, images: Tensor) -> Any:
        """Raises UnsupportedHost: each member has its own significance map, or none."""
        raise self._of_members("map_call(images)")

    def forward_features(self, images: Tensor) -> Any:
        """Raises UnsupportedHost: members keep different tokens."""
        raise self._of_members("forward_features(images)")

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Raises UnsupportedHost: members keep different tokens."""
        raise self._of_members("forward_intermediates(images)")

    def _of_members(self, name: str) -> UnsupportedHost:
        return UnsupportedHost(f"A cascade has several members: use one of them, cascade.members[0].{name}.")

    def _replicate_for_data_parallel(self) -> Cascade:
        raise UnsupportedHost("nn.DataParallel copies one model, but a cascade has several: run a process on each GPU.")

    def extra_repr(self) -> str:
        return f"recipe={self.recipe}"


def _shares(member: Sieved, first: Sieved) -> bool:
    """Whether a member can continue from the tokens computed by `first`: see `Cascade.sharing`."""
    stream = member.stream
    reads_last_block = isinstance(stream, TokenStream) and not stream.host.levels
    return reads_last_block and member.model is first.model and not any(map(hooked, stream.host.bypassed))


def logits_of(output: Any, model: Any, score: object, count: int) -> Tensor:
    """The logits (B, K) in a model's output, or the result of `score(output)` if `score` is a function.

    Raises:
        UnsupportedHost: there are no logits for `count` images.
    """
    host = getattr(model, "model", model)
    if callable(score):
        logits = score(output)
    elif getattr(host, "num_classes", None) == 0:  # the output is features, not logits
        logits = None
    else:
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2 or len(logits) != count:
        description = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else "no logits"
        raise UnsupportedHost(
            f"{type(host).__name__} returns {description}, but a cascade needs logits (B, K) of two or more classes "
            "for each image: use a model with a classifier, or pass as score= a function that computes them from the "
            "output."
        )
    return logits


def _scattered(readings: Sequence[Reading]) -> Any:
    """Merge the members' outputs: for each image that of the last member that read it, in the order of the images."""
    leaves, structure = tree_flatten(readings[0].output)
    for reading in readings[1:]:
        later_leaves, later_structure = tree_flatten(reading.output)
        if later_structure != structure:
            raise InputError("The members of a cascade return outputs of different structure, which cannot be merged.")
        leaves = [_replaced(leaf, reading.images, new) for leaf, new in zip(leaves, later_leaves, strict=True)]
    return tree_unflatten(leaves, structure)


def _replaced(whole: Any, rows: Tensor, part: Any) -> Any:
    """A copy of the tensor `whole` with `part` in these rows; other values are returned unchanged."""
    if not isinstance(whole, Tensor) or not isinstance(part, Tensor):
        return whole
    if part.shape[1:] != whole.shape[1:] or len(part) != len(rows):
        raise InputError(
            f"The members of a cascade return shapes {tuple(whole.shape)} and {tuple(part.shape)}, which cannot be "
            "merged: use models that return only logits."
        )
    return whole.index_copy(0, rows, part.to(whole.dtype))
