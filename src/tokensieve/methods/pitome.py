"""PiToMe: tokens with many near neighbours merge, the lonely ones are protected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import RecipeError
from ..tokens import Tokens
from .base import AttentionEvidence, register
from .matching import in_order, metric, product, ranked
from .merging import Merging


@register
@dataclass(frozen=True)
class PiToMe(Merging):
    """Merging ordered by energy (Tran et al., NeurIPS 2024, section 3).

    A token's energy is the mean over all patch tokens of f(cosine of their keys - margin), f(x) = x above 0 and
    e^x - 1 below: high where it has many near neighbours. In the order of energy, even ranks merge into odd ones: the
    `r` best pairs of all tokens before block `protect`; from there on the 2r tokens of highest energy take part alone.

    Args:
        r: tokens fewer after each block, as for `tome`.
        layers: the blocks that merge, as a slice or by their numbers; None means all.
        margin: in block 0; it falls linearly to 0 with depth. 0.9 for AugReg weights, 0.75 for DeiT and MAE.
        protect: the first block that protects tokens of low energy; None is half the depth, which suits DeiT.
    """

    margin: float = 0.9
    protect: int | None = None

    name: ClassVar[str] = "pitome"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protect is not None and (not isinstance(self.protect, int) or self.protect < 0):
            raise RecipeError(f"pitome: protect must be the number of a block, 0 or more, not {self.protect!r}.")

    def reduce(self, tokens: Tokens, left: int, evidence: AttentionEvidence) -> Tokens:
        unit = metric(evidence.keys(tokens))[:, tokens.prefix :]
        cosine = product(unit, unit.transpose(1, 2))
        energy = F.elu(cosine - self.margin * (1 - evidence.block / evidence.depth)).mean(2)
        r = tokens.x.shape[1] - left
        protect = evidence.depth // 2 if self.protect is None else self.protect
        sources, destinations = pair(cosine, energy, r, evidence.block >= protect)
        return tokens.merge(*in_order(tokens, sources + tokens.prefix, destinations + tokens.prefix), weigh=True)


@torch.no_grad()
def pair(cosine: Tensor, energy: Tensor, r: int, protected: bool) -> tuple[Tensor, Tensor]:
    """Sources and destinations, (B, r) each, of `r` merges; `cosine` (B, n, n), `energy` (B, n)."""
    order = ranked(energy)
    order = order[:, : 2 * r] if protected else order
    a, b = order[:, ::2], order[:, 1::2]
    scores = cosine.gather(1, a[:, :, None].expand(-1, -1, cosine.shape[2]))
    scores = scores.gather(2, b[:, None, :].expand(-1, a.shape[1], -1))
    best, partner = scores.max(dim=2)
    merged = ranked(best)[:, :r]
    return a.gather(1, merged), b.gather(1, partner.gather(1, merged))
