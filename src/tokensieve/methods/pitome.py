"""PiToMe: merges tokens with many similar tokens, and protects distinct ones."""

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
    """Merge pairs in order of energy (Tran et al., NeurIPS 2024, section 3).

    The energy of a token is the mean over all patch tokens of f(cosine of their keys - margin), where f(x) = x above 0
    and e^x - 1 below; it is high for tokens with many similar ones. Tokens are sorted by energy, and those at even
    ranks merge into those at odd ranks. Before block `protect` the `r` best pairs of all tokens merge; from there on
    only the 2r tokens with the highest energy are candidates.

    Args:
        r: tokens merged away in each block, as for `tome`.
        layers: the blocks that merge, as a slice or by their indices; None means all.
        margin: its value in block 0; it decreases linearly to 0 with depth. 0.9 for AugReg weights, 0.75 for DeiT and
            MAE.
        protect: the first block that protects tokens of low energy; None is half the depth, which suits DeiT.
    """

    margin: float = 0.9
    protect: int | None = None

    name: ClassVar[str] = "pitome"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protect is not None and (not isinstance(self.protect, int) or self.protect < 0):
            raise RecipeError(f"pitome: protect must be the index of a block, 0 or more, not {self.protect!r}.")

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
    """Sources and destinations, (B, r) each, of the `r` best pairs, from `cosine` (B, n, n) and `energy` (B, n).

    With `protected` only the 2r tokens with the highest energy are candidates.
    """
    order = ranked(energy)
    order = order[:, : 2 * r] if protected else order
    a, b = order[:, ::2], order[:, 1::2]
    scores = cosine.gather(1, a[:, :, None].expand(-1, -1, cosine.shape[2]))
    scores = scores.gather(2, b[:, None, :].expand(-1, a.shape[1], -1))
    best, partner = scores.max(dim=2)
    merged = ranked(best)[:, :r]
    return a.gather(1, merged), b.gather(1, partner.gather(1, merged))
