"""The base classes of methods that score the patches and keep the best."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from torch import Tensor

from ..tokens import Tokens
from .base import E, Method, Place, TokenSite
from .matching import keep_best, ranked
from .schedule import Layers, blocks, layers_field, quarters, share_field


@dataclass(frozen=True)
class Scored(Method[E]):
    """Keeps the patches with the highest scores; ties go to the lower index. Subclasses define `kept` and `score`."""

    @abstractmethod
    def kept(self, site: TokenSite) -> int | None:
        """Number of patches to keep here (at least one is kept); None if the method does not act here."""

    @abstractmethod
    def score(self, tokens: Tokens, evidence: E) -> Tensor:
        """Scores (B, n) of the n patch tokens, without prefix tokens; the highest are kept."""

    @property
    def by_score(self) -> bool:
        """Whether kept patches are sorted by descending score; otherwise they keep their order."""
        return False

    def left(self, site: TokenSite) -> int:
        patches, count = site.tokens - site.prefix, self.kept(site)
        return site.tokens if count is None else site.prefix + min(max(count, 1), patches)

    def reduce(self, tokens: Tokens, left: int, evidence: E) -> Tokens:
        scores, count = self.score(tokens, evidence), left - tokens.prefix
        return tokens.select(ranked(scores)[:, :count]) if self.by_score else keep_best(tokens, scores, count)


@dataclass(frozen=True)
class Ranking(Scored[E]):
    """Keeps a share of the patches in some blocks, between attention and MLP.

    Args:
        keep: share of the patch tokens to keep each time, in (0, 1].
        layers: the blocks that act; None is after one, two and three quarters of them (3, 6 and 9 of 12).
    """

    keep: float = share_field()
    layers: Layers = layers_field()

    place: ClassVar[Place] = "inside"

    def kept(self, site: TokenSite) -> int | None:
        if site.block not in blocks(self.layers, site.depth, quarters(site.depth)):
            return None
        return ceil(self.keep * (site.tokens - site.prefix))
