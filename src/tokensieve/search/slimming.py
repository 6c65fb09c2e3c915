"""The search of Patch Slimming: which patches each block of a model can do without, on pictures without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..attention import Attention
from ..errors import InputError, RecipeError, UnsupportedHost
from ..forward.walk import Step, walk
from ..hosts import Host, open_tokens
from ..measure.macs import macs
from ..measure.outputs import evaluating, nothing_read, unpack
from ..methods.patch_slimming import PatchSlimming
from ..recipe import Recipe
from ..stream import sieve
from ..tokens import Tokens

CHUNK = 8
"""Images whose attention matrices are held at a time."""
STEPS = 16
"""Tolerances that are tried for a budget, at most."""
Approximation = Literal["head_mean"]
DEFAULT = 0.02
"""Tolerance, where nothing is asked for."""
Masks = tuple[tuple[int, ...], ...]
"""The patches alive after each of the last blocks, the very last first."""


@dataclass(frozen=True)
class Slimmed:
    """What `slim` found."""

    recipe: Recipe
    """One `PatchSlimming`, for the model that was searched."""
    counts: tuple[int, ...]
    """Patches alive after each block."""
    errors: tuple[float, ...]
    """For each block the error that its choice of patches makes, see `slim`; 0 where nothing was chosen."""
    scores: Tensor
    """(L, P) float64: the significance by which each block's patches were ranked, mean over images, on the CPU."""
    tolerance: float
    """What every error is at most."""
    saving: float
    """Share of the model's MACs that the recipe saves."""
    images: int
    """Pictures that were looked at."""

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
    """Search the patches to keep, top-down as in section 3.3 of Patch Slimming, without its fine-tuning.

    From the last block to the first: the patches alive after a block are those alive after the next one, and
    `granularity` more at a time, most significant first, until the error is at most `tolerance` or all are kept. The
    error is ||Z' - Z||_F / ||Z||_F over the tokens that the next block keeps, mean over images, where Z is the dense
    model's activation: after the next block in form A, after the block itself in form B, which is where leaving
    patches out first shows. That the error is relative, and the default of `tolerance`, are choices made here.

    Args:
        model: a host whose head reads prefix tokens alone, one of them a class token. It is not changed.
        loader: batches of images (B, 3, H, W), or tuples that begin with them; labels are not looked at. All
            activations of these images are held in memory: L + 1 times images x tokens x width.
        tolerance: see above; 0.02 where neither it nor `saving` is given.
        saving: share of the MACs to save at least, in (0, 1); the smallest tolerance that does is searched instead.
        granularity: patches added at a time: small is exact, large is quick.
        form: of `PatchSlimming`.
        limit: images to look at, at most; None is all.
        approx: of `significance_scores`.
        report: is told how far the search has come, a line at a time.

    Raises:
        UnsupportedHost: a head that reads patches, no class token, or a block that cannot be opened.
        RecipeError: settings that make no sense, or a saving that cannot be had.
        InputError: there are no images, or of several sizes.
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
    say = report or (lambda _line: None)
    with evaluating(model), torch.no_grad():
        search = _Search(model, _Dense.read(model, loader, limit), form, granularity, approx, say)
        if saving is None:
            return search.within(DEFAULT if tolerance is None else tolerance)
        return search.saving(saving)


def significance_scores(
    model: nn.Module,
    loader: Iterable[Any],
    patches: Sequence[Sequence[int]] | None = None,
    *,
    limit: int | None = None,
    approx: Approximation | None = None,
) -> Tensor:
    """How much dropping each patch after each block can change what the head reads: section 3.2, exactly.

    The paper sums the squared norms over all H^(L-t) paths through the heads of the deeper blocks. With M = A'A for
    the product A of masked attentions along one path, the sum over paths follows

        M_L = I,  M_(l-1) = sum over h of P_l^h' (m_l m_l' * M_l) P_l^h,
        s_(t,i) = (M_t)_ii * sum over h of || P_t^h[i] |Z_(t-1)| ||^2,

    at O(H N^3) for a block and an image.

    Args:
        model, loader, limit: as in `slim`.
        patches: the patches alive after each block, nested, which mask the deeper blocks; None is all of them, but
            for the last block, after which prefix tokens alone are alive, as in the paper.
        approx: "head_mean" multiplies the attentions averaged over heads instead, and may rank otherwise.

    Returns:
        (L, P) float64, mean over images, on the CPU.

    Raises:
        UnsupportedHost, InputError: as `slim`.
        RecipeError: patches that are not nested, or of another depth.
    """
    with evaluating(model), torch.no_grad():
        dense = _Dense.read(model, loader, limit)
        depth, count = len(dense.host.blocks), math.prod(dense.grid)
        if patches is None:
            patches = [*[tuple(range(count))] * (depth - 1), ()]
        method = PatchSlimming(tuple(map(tuple, patches)), grid=dense.grid)
        if len(method.patches) != depth:
            raise RecipeError(f"patches names {len(method.patches)} blocks and this model has {depth}.")
        moments = _Moments(dense, approx)
        return torch.stack([moments.scores(method.patches[:block:-1]) for block in reversed(range(depth))]).flip(0)


class _Dense:
    """The dense model's activations on some images: before each block, and after the last."""

    def __init__(self, host: Host, chunks: list[list[Tokens]], size: tuple[int, ...]) -> None:
        self.host, self.chunks, self.size = host, chunks, size
        self.prefix, self.grid = host.prefix, chunks[0][0].grid
        self.images = sum(len(chunk[0].x) for chunk in chunks)

    @classmethod
    def read(cls, model: nn.Module, loader: Iterable[Any], limit: int | None) -> _Dense:
        host = _open(model)
        chunks: list[list[Tokens]] = []
        size: tuple[int, ...] = ()
        for images in _chunks(model, loader, limit):
            if size and images.shape[1:] != size:
                raise InputError(f"The search needs images of one size, not {size} and {tuple(images.shape[1:])}.")
            size, tokens = tuple(images.shape[1:]), host.embed(images)
            chunk = [tokens]

            def keep(step: Step, chunk: list[Tokens] = chunk) -> None:
                chunk.append(step.tokens)

            walk(host.blocks, tokens, watch=keep)
            chunks.append(chunk)
        if not chunks:
            raise nothing_read(loader)
        return cls(host, chunks, size)

    def index(self, patches: Sequence[int]) -> Tensor:
        """Prefix tokens and `patches` as places in the sequence, (M,)."""
        places = [*range(self.prefix), *(patch + self.prefix for patch in patches)]
        return torch.tensor(places, device=self.chunks[0][0].x.device)


class _Moments:
    """Significance of patches, from the last block upwards. Only the latest step is held."""

    def __init__(self, dense: _Dense, approx: Approximation | None) -> None:
        if approx not in (None, "head_mean"):
            raise RecipeError(f'approx must be "head_mean" or None, not {approx!r}.')
        self.dense, self.average = dense, approx == "head_mean"
        self._norms: dict[int, list[Tensor]] = {}
        self._masks: Masks = ()
        self._held: list[Tensor] | None = None

    def scores(self, masks: Masks) -> Tensor:
        """(P,) float64 on the CPU: s of the block before those that `masks` are of; of -1, what is embedded."""
        block = len(self.dense.host.blocks) - 1 - len(masks)
        if block not in self._norms:
            self._norms[block] = [self._norm(block, chunk) for chunk in self.dense.chunks]
        total = torch.zeros(self._norms[block][0].shape[1], dtype=torch.float64)
        held = self._at(masks)
        for turn, norm in enumerate(self._norms[block]):
            share = norm.double() if held is None else norm.double() * self._diagonal(held[turn]).double()
            total += share.sum(0).cpu()
        # The paper's sum over head paths; the mean, which fp32 holds at any depth, is what is carried along.
        paths = 1.0 if self.average else float(self._heads()) ** len(masks)
        return total[self.dense.prefix :] * (paths / self.dense.images)

    def _at(self, masks: Masks) -> list[Tensor] | None:
        """For each chunk M (B, N, N), or with averaged heads A (B, m, N), under `masks`; None is the identity."""
        known = len(self._masks)
        if masks[:known] != self._masks:
            self._masks, self._held, known = (), None, 0
        for mask in masks[known:]:
            block = len(self.dense.host.blocks) - 1 - len(self._masks)
            held: Sequence[Tensor | None] = self._held or [None] * len(self.dense.chunks)
            index = self.dense.index(mask)
            self._held = [
                self._step(block, chunk, index, moment) for chunk, moment in zip(self.dense.chunks, held, strict=True)
            ]
            self._masks += (mask,)
        return self._held

    def _step(self, block: int, chunk: list[Tokens], index: Tensor, moment: Tensor | None) -> Tensor:
        """One block further up, where the tokens `index` (m,) are alive after it."""
        tokens = chunk[block]
        asking = index.expand(len(tokens.x), -1)
        attention = self.dense.host.blocks[block].qkv(tokens).ask(asking)
        heads = attention.q.shape[1]
        if self.average:
            mean = sum(attention.head(head) for head in range(heads)) / heads
            assert isinstance(mean, Tensor)
            return mean if moment is None else moment[:, :, index] @ mean
        alive = None if moment is None else moment[:, index][:, :, index]
        found = torch.zeros((), device=tokens.x.device)
        for head in range(heads):
            rows = attention.head(head)
            found = found + rows.transpose(1, 2) @ (rows if alive is None else alive @ rows) / heads
        return found

    def _norm(self, block: int, chunk: list[Tokens]) -> Tensor:
        """(B, N): for each token the sum over heads of || P^h[i] |Z| ||^2; before block 0 of || Z[i] ||^2."""
        if block < 0:
            return _exact(chunk[0].x).square().sum(-1)
        size = _exact(chunk[block].x).abs()
        attention = self.dense.host.blocks[block].qkv(chunk[block])
        norms = (attention.head(head) @ size for head in range(attention.q.shape[1]))
        return torch.stack([norm.square().sum(-1) for norm in norms]).sum(0)

    def _diagonal(self, moment: Tensor) -> Tensor:
        return moment.square().sum(1) if self.average else moment.diagonal(dim1=1, dim2=2)

    def _heads(self) -> int:
        return self.dense.host.blocks[0].qkv(self.dense.chunks[0][0]).q.shape[1]


class _Search:
    """The top-down search, which remembers what it has ranked and tried, so that another tolerance is soon searched.

    What is chosen is always the patches that a block's keys come from: those alive after the block before it, in form
    A, or gathered in front of the block, in form B.
    """

    def __init__(
        self,
        model: nn.Module,
        dense: _Dense,
        form: Literal["A", "B"],
        granularity: int,
        approx: Approximation | None,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.dense, self.form, self.granularity, self.say = model, dense, form, granularity, say
        self.moments = _Moments(dense, approx)
        self.whole = macs(model, dense.size)
        self._scores: dict[Masks, Tensor] = {}
        self._errors: dict[tuple[int, tuple[int, ...], tuple[int, ...]], float] = {}
        self._read: tuple[int, list[Attention]] | None = None

    def within(self, tolerance: float) -> Slimmed:
        """The search itself, for one tolerance."""
        depth, count = len(self.dense.host.blocks), math.prod(self.dense.grid)
        masks: Masks = ((),)
        scores, errors = [self._rank(())], list[float]()
        for block in range(depth - 1, 0 if self.form == "A" else -1, -1):
            scores.append(self._rank(masks))
            kept, error = self._choose(block, masks[-1], scores[-1], tolerance)
            self.say(f"block {block} reads {len(kept)} of {count} patches, error {error:.3g}")
            masks += (kept,)
            errors.append(error)
        if self.form == "A":
            errors.insert(0, 0.0)
        else:
            masks, scores = masks[1:], scores[1:]
        method = PatchSlimming(masks[::-1], form=self.form, grid=self.dense.grid)
        saved = 1 - macs(sieve(self.model, method), self.dense.size) / self.whole
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
        low, high, tried, best = 0.0, math.inf, DEFAULT, None
        for _ in range(STEPS):
            found = self.within(tried)
            self.say(f"tolerance {tried:.4g} saves {100 * found.saving:.1f} % of the MACs")
            if found.saving >= share:
                high = tried
                best = found if best is None or found.saving <= best.saving else best
            else:
                low = tried
                if not any(found.counts):
                    break
            if high < 1.01 * low or high < 1e-5:
                break
            tried = 2 * low if math.isinf(high) else math.sqrt(max(low, high / 4) * high)
        if best is None:
            raise RecipeError(
                f"Patch Slimming in form {self.form} cannot save {100 * share:.0f} % of the MACs of "
                f"{type(self.model).__name__}: {100 * found.saving:.0f} % at a tolerance of {tried:.3g}."
            )
        return best

    def _rank(self, masks: Masks) -> Tensor:
        if masks not in self._scores:
            self._scores[masks] = self.moments.scores(masks)
        return self._scores[masks]

    def _choose(
        self, block: int, alive: tuple[int, ...], scores: Tensor, tolerance: float
    ) -> tuple[tuple[int, ...], float]:
        """The patches that `block` reads, where those `alive` are kept of what it writes; and their error."""
        known = set(alive)
        others = [patch for patch in scores.argsort(descending=True, stable=True).tolist() if patch not in known]
        for more in range(0, len(others), self.granularity):
            kept = tuple(sorted([*alive, *others[:more]]))
            error = self._error(block, kept, alive)
            if error <= tolerance:
                return kept, error
        return tuple(range(len(scores))), 0.0

    def _error(self, block: int, keys: tuple[int, ...], rows: tuple[int, ...]) -> float:
        """||Z' - Z||_F / ||Z||_F of the tokens `rows` after `block` if it reads `keys` alone, mean over images."""
        known = (block, keys, rows)
        if known not in self._errors:
            if self._read is None or self._read[0] != block:
                self._read = block, [self.dense.host.blocks[block].qkv(chunk[block]) for chunk in self.dense.chunks]
            pairs = zip(self.dense.chunks, self._read[1], strict=True)
            read, asking = self.dense.index(keys), self.dense.index(rows)
            total = sum(self._errors_of(block, chunk, attention, read, asking) for chunk, attention in pairs)
            self._errors[known] = total / self.dense.images
        return self._errors[known]

    def _errors_of(self, block: int, chunk: list[Tokens], attention: Attention, read: Tensor, asking: Tensor) -> float:
        """The errors of one chunk's images, summed."""
        verbs, x = self.dense.host.blocks[block], chunk[block].x
        heads = attention.ask(asking.expand(len(x), -1))
        heads = replace(
            heads,
            k=heads.k[:, :, read],
            v=heads.v[:, :, read],
            keys=heads.keys[:, :, read],
            bias=None if heads.bias is None else heads.bias[..., read],
        )
        ours = _exact(verbs.rest(heads.attend(), heads, x[:, asking]))
        theirs = _exact(chunk[block + 1].x[:, asking])
        return float(((ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)).double().sum())


def _open(model: nn.Module) -> Host:
    """The host, or why Patch Slimming makes no sense on it."""
    host, name = open_tokens(model, "slimmed"), type(model).__name__
    if not host.class_token or not host.reads_prefix:
        why = "its head reads patch tokens too" if host.class_token else "it has no class token"
        raise UnsupportedHost(
            f"{name} cannot be slimmed: {why}, and the search starts from a head that reads a class token. "
            "PaPr and ToMe need none."
        )
    for index, block in enumerate(host.blocks):
        if block.closed:
            raise UnsupportedHost(f"{name} cannot be slimmed: in block {index}, {block.closed}.")
    return host


def _chunks(model: nn.Module, loader: Iterable[Any], limit: int | None) -> Iterator[Tensor]:
    """The first `limit` images, a few at a time, where the model is and in its precision."""
    if limit is not None and limit < 1:
        raise RecipeError(f"The limit on images must be at least 1, not {limit}.")
    like, left = next(model.parameters()), limit
    for batch in loader:
        images, _ = unpack(batch)
        images = images if left is None else images[:left]
        yield from images.to(like.device, like.dtype).split(CHUNK)
        if left is not None:
            left -= len(images)
            if not left:
                return


def _exact(x: Tensor) -> Tensor:
    """In fp32, or more where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
