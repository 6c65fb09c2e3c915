"""The search of Patch Slimming for the patches that each block of a model needs, on pictures without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..attention import BlockQKV
from ..errors import RecipeError
from ..measure.macs import macs
from ..measure.outputs import evaluating
from ..methods.patch_slimming import PatchSlimming
from ..recipe import Recipe
from ..stream import sieve
from ..tokens import Tokens
from .dense_tokens import DenseTokens, exact
from .path_scores import Approximation, Masks, Moments

STEPS = 16
"""Maximum number of tolerances that are tried for a budget."""
DEFAULT = 0.02
"""The default tolerance."""


@dataclass(frozen=True)
class Slimmed:
    """The result of `slim`."""

    recipe: Recipe
    """A recipe of one `PatchSlimming`, for the model that was searched."""
    counts: tuple[int, ...]
    """Number of patches kept after each block."""
    errors: tuple[float, ...]
    """Error of each block's selection of patches, see `slim`; 0 if nothing was selected."""
    scores: Tensor
    """(L, P) float64: significance of the patches after each block, mean over images, on the CPU."""
    tolerance: float
    """The largest allowed error."""
    saving: float
    """Share of the model's MACs that the recipe saves."""
    images: int
    """Number of pictures used."""

    @property
    def method(self) -> PatchSlimming:
        (method,) = self.recipe
        assert isinstance(method, PatchSlimming)
        return method


def slim(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    tolerance: float | None = None,
    saving: float | None = None,
    granularity: int = 10,
    form: Literal["A", "B"] = "A",
    limit: int | None = 64,
    approx: Approximation | None = None,
    report: Callable[[str], None] | None = None,
) -> Slimmed:
    """Search for the patches to keep, top-down as in section 3.3 of Patch Slimming, without its fine-tuning.

    From the last block to the first: the patches kept after a block are those kept after the next one, plus
    `granularity` more at a time, most significant first, until the error is at most `tolerance` or all are kept. The
    error is ||Z' - Z||_F / ||Z||_F over the tokens that the next block keeps, mean over images, where Z is the first
    activation of the dense model that the selection changes: after the next block in form A, after the block itself in
    form B. The relative error and the default `tolerance` are choices of this implementation, not of the paper.

    Args:
        model: a host whose head reads only prefix tokens, one of them a class token. It is not changed.
        loader: batches of images (B, 3, H, W), or tuples that begin with them; labels are not used. All activations of
            these images are held in memory: L + 1 times images x tokens x width.
        tolerance: the largest allowed error; 0.02 if neither it nor `saving` is given.
        saving: minimum share of the MACs to save, in (0, 1); the smallest tolerance that reaches it is used.
        granularity: patches added at a time: small is more exact, large is faster.
        form: form of `PatchSlimming`.
        limit: maximum number of images; None is all.
        approx: as for `significance_scores`.
        report: called with messages about the progress.

    Raises:
        UnsupportedHost: a head that reads patches, no class token, or a block that cannot be opened.
        RecipeError: invalid settings, or a saving that cannot be reached.
        InputError: there are no images, or they have several sizes.
    """
    if tolerance is not None and saving is not None:
        raise RecipeError("slim takes a tolerance or a saving to reach, not both.")
    if tolerance is not None and not tolerance >= 0:
        raise RecipeError(f"The tolerance must be a number from 0 up, not {tolerance!r}.")
    if saving is not None and not 0 < saving < 1:
        raise RecipeError(f"The saving must be a share of the MACs in (0, 1), such as 0.25, not {saving!r}.")
    if granularity < 1:
        raise RecipeError(f"The granularity must be at least 1 patch, not {granularity!r}.")
    if form not in ("A", "B"):
        raise RecipeError(f"The form must be A or B, not {form!r}.")
    progress = report or (lambda _line: None)
    with evaluating(model), torch.no_grad():
        search = _Search(model, DenseTokens.read(model, loader, limit), form, granularity, approx, progress)
        if saving is None:
            return search.within(DEFAULT if tolerance is None else tolerance)
        return search.saving(saving)


class _Search:
    """The top-down search. Rankings and errors are cached, so that a further tolerance is searched faster.

    It selects the patches from which a block's keys are computed: those kept after the block before it in form A, or
    gathered before the block in form B.
    """

    def __init__(
        self,
        model: nn.Module,
        dense: DenseTokens,
        form: Literal["A", "B"],
        granularity: int,
        approx: Approximation | None,
        progress: Callable[[str], None],
    ) -> None:
        self.model, self.dense, self.form, self.granularity, self.say = model, dense, form, granularity, progress
        self.moments = Moments(dense, approx)
        self.dense_macs = macs(model, dense.size)
        self._scores: dict[Masks, Tensor] = {}
        self._errors: dict[tuple[int, tuple[int, ...], tuple[int, ...]], float] = {}
        self._attention: tuple[int, list[BlockQKV]] | None = None

    def within(self, tolerance: float) -> Slimmed:
        """The search itself, for one tolerance."""
        depth, count = len(self.dense.host.blocks), math.prod(self.dense.grid)
        masks: Masks = ((),)
        scores, errors = [self._rank(())], list[float]()
        for block in range(depth - 1, 0 if self.form == "A" else -1, -1):
            scores.append(self._rank(masks))
            selected, error = self._choose(block, masks[-1], scores[-1], tolerance)
            self.say(f"block {block} reads {len(selected)} of {count} patches, error {error:.3g}")
            masks += (selected,)
            errors.append(error)
        if self.form == "A":
            errors.insert(0, 0.0)
        else:
            masks, scores = masks[1:], scores[1:]
        method = PatchSlimming(masks[::-1], form=self.form, grid=self.dense.grid)
        saved = 1 - macs(sieve(self.model, method), self.dense.size) / self.dense_macs
        return Slimmed(
            Recipe.of(method),
            tuple(map(len, method.patches)),
            tuple(errors[::-1]),
            torch.stack(scores[::-1]),
            tolerance,
            saved,
            self.dense.images,
        )

    def saving(self, share: float) -> Slimmed:
        """The search with the smallest tolerance, to 1 %, that saves `share` of the MACs."""
        low, high, tolerance, best = 0.0, math.inf, DEFAULT, None
        for _ in range(STEPS):
            candidate = self.within(tolerance)
            self.say(f"tolerance {tolerance:.4g} saves {100 * candidate.saving:.1f} % of the MACs")
            if candidate.saving >= share:
                high = tolerance
                best = candidate if best is None or candidate.saving <= best.saving else best
            else:
                low = tolerance
                if not any(candidate.counts):
                    break
            if high < 1.01 * low or high < 1e-5:
                break
            tolerance = 2 * low if math.isinf(high) else math.sqrt(max(low, high / 4) * high)
        if best is None:
            raise RecipeError(
                f"Patch Slimming in form {self.form} cannot save {100 * share:.0f} % of the MACs of "
                f"{type(self.model).__name__}: {100 * candidate.saving:.0f} % at a tolerance of {tolerance:.3g}."
            )
        return best

    def _rank(self, masks: Masks) -> Tensor:
        if masks not in self._scores:
            self._scores[masks] = self.moments.scores(masks)
        return self._scores[masks]

    def _choose(
        self, block: int, alive: tuple[int, ...], scores: Tensor, tolerance: float
    ) -> tuple[tuple[int, ...], float]:
        """The patches that `block` reads, if the patches `alive` are kept of its output; and their error."""
        alive_before = set(alive)
        remaining = [
            patch for patch in scores.argsort(descending=True, stable=True).tolist() if patch not in alive_before
        ]
        for added in range(0, len(remaining), self.granularity):
            selected = tuple(sorted([*alive, *remaining[:added]]))
            error = self._error(block, selected, alive)
            if error <= tolerance:
                return selected, error
        return tuple(range(len(scores))), 0.0

    def _error(self, block: int, keys: tuple[int, ...], rows: tuple[int, ...]) -> float:
        """||Z' - Z||_F / ||Z||_F of the tokens `rows` after `block` if it reads `keys` alone, mean over images."""
        key = (block, keys, rows)
        if key not in self._errors:
            if self._attention is None or self._attention[0] != block:
                attentions = [self.dense.host.blocks[block].qkv(chunk[block]) for chunk in self.dense.chunks]
                self._attention = block, attentions
            pairs = zip(self.dense.chunks, self._attention[1], strict=True)
            key_rows, query_rows = self.dense.index(keys), self.dense.index(rows)
            total = sum(self._errors_of(block, chunk, attention, key_rows, query_rows) for chunk, attention in pairs)
            self._errors[key] = total / self.dense.images
        return self._errors[key]

    def _errors_of(
        self, block: int, chunk: list[Tokens], attention: BlockQKV, key_rows: Tensor, query_rows: Tensor
    ) -> float:
        """The sum of the errors of one chunk's images."""
        host_block, x = self.dense.host.blocks[block], chunk[block].x
        heads = attention.only_queries(query_rows.expand(len(x), -1))
        heads = replace(
            heads,
            k=heads.k[:, :, key_rows],
            v=heads.v[:, :, key_rows],
            keys=heads.keys[:, :, key_rows],
            bias=None if heads.bias is None else heads.bias[..., key_rows],
        )
        sieved = exact(host_block.rest(heads.attend(), heads, x[:, query_rows]))
        dense = exact(chunk[block + 1].x[:, query_rows])
        return float(((sieved - dense).flatten(1).norm(dim=1) / dense.flatten(1).norm(dim=1)).double().sum())
