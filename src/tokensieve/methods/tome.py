"""Token Merging (ToMe): in every block, average the most similar pairs of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import RecipeError
from ..tokens import Tokens
from .base import Evidence, Here, Method, register


@register
@dataclass(frozen=True)
class ToMe(Method):
    """Bipartite soft matching on the keys, between attention and MLP (Bolya et al., ICLR 2023, section 3).

    Args:
        r: tokens merged away in each block. An integer; a pair (r, inflect) with inflect in [-1, 1] for a schedule
            that falls (-1) or rises (1) linearly around r; or a list with one number for each block, padded with 0.
        layers: the blocks that merge, as a slice (`6:12`); None means all.
        proportional: add log(size) to the attention logits of merged keys. Right for supervised weights; ToMe's
            authors turn it off for MAE weights that were not trained with it.

    At most half of the patch tokens can be merged in one block; prefix tokens never are.
    """

    r: int | tuple[float, ...]
    layers: slice | None = None
    proportional: bool = True

    name: ClassVar[str] = "tome"
    place: ClassVar[Literal["inside"]] = "inside"
    merges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        r = self.r
        if isinstance(r, list):
            # A pair has a meaning of its own, so a list of two blocks is stored with its padding.
            object.__setattr__(self, "r", r := tuple(r) if len(r) != 2 else (*r, 0))
        if isinstance(r, tuple) and len(r) == 2:
            if not -1 <= r[1] <= 1:
                raise RecipeError(
                    f"tome: r={r} is read as (r, inflect) and inflect must lie in [-1, 1]; "
                    f"for a number for each block write a list, r={list(r)}."
                )
            counts: tuple[float, ...] = r[:1]
        else:
            counts = r if isinstance(r, tuple) else (r,)
        if not all(isinstance(n, Real) and not isinstance(n, bool) and n == int(n) and n >= 0 for n in counts):
            raise RecipeError(f"tome: r must be made of whole numbers from 0 up, not {self.r!r}.")
        if self.layers is not None and not isinstance(self.layers, slice):
            raise RecipeError(f"tome: layers must be a slice of blocks such as 6:12, not {self.layers!r}.")

    def schedule(self, depth: int) -> list[int]:
        """r for each of `depth` blocks, before the limit of half the tokens."""
        r = self.r
        if not isinstance(r, tuple):
            wanted = [int(r)] * depth
        elif len(r) == 2:
            low = int(r[0] * (1 - r[1]))
            high = 2 * r[0] - low
            wanted = [int(low + (high - low) * i / max(depth - 1, 1)) for i in range(depth)]
        else:
            wanted = [int(n) for n in r[:depth]] + [0] * (depth - len(r))
        acting = range(depth)[self.layers] if self.layers is not None else range(depth)
        return [n if i in acting else 0 for i, n in enumerate(wanted)]

    def left(self, here: Here) -> int:
        return here.tokens - min(self.schedule(here.depth)[here.block], (here.tokens - here.prefix) // 2)

    def reduce(self, tokens: Tokens, left: int, evidence: Evidence) -> Tokens:
        match = bipartite_match(evidence.keys(tokens), tokens.x.shape[1] - left, tokens.prefix)
        return tokens.merge(*match, weigh=self.proportional)


class Match(NamedTuple):
    """Which tokens stay, which are merged away, and where to: the arguments of `Tokens.merge`."""

    keep: Tensor
    sources: Tensor
    destinations: Tensor


@torch.no_grad()
def bipartite_match(keys: Tensor, r: int, prefix: int) -> Match:
    """Find the `r` most similar pairs between the tokens at even and at odd positions of the sequence.

    Args:
        keys: (B, H, N, d_h); tokens are compared by the cosine of their mean over heads.
        r: how many even tokens merge into their best odd token, at most half of the patch tokens.
        prefix: leading tokens that take no part.

    Returns:
        A `Match` whose new order is: prefix, unmerged even tokens, odd tokens. Equal scores go to the lower index.
    """
    # fp32 whatever the model runs in: half precision would turn near ties into other matches. The cosine of the sum
    # over heads is that of the mean.
    metric = F.normalize(keys.sum(1, dtype=torch.promote_types(keys.dtype, torch.float32)), dim=-1)
    first_even, first_odd = prefix + prefix % 2, prefix + (prefix + 1) % 2
    best, partner = _product(metric[:, first_even::2], metric[:, first_odd::2].transpose(1, 2)).max(dim=-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    merged, unmerged = order[:, :r], order[:, r:]
    if prefix:  # published behaviour: without any prefix token the unmerged stay in order of their score
        unmerged = unmerged.sort(dim=-1).values

    places = torch.arange(keys.shape[2], device=keys.device).expand(keys.shape[0], -1)
    evens = places[:, first_even::2]
    keep = torch.cat([places[:, :prefix], evens.gather(1, unmerged), places[:, first_odd::2]], dim=1)
    destinations = partner.gather(1, merged) + (prefix + unmerged.shape[1])
    return Match(keep, evens.gather(1, merged), destinations)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the precision they have, also under autocast."""
    if not torch.is_autocast_enabled(a.device.type):
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b
