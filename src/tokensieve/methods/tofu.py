"""Token Fusion (ToFu): early blocks drop the tokens that ToMe would merge, late blocks merge them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import RecipeError
from ..tokens import Tokens
from .base import AttentionEvidence, register
from .matching import bipartite_match
from .merging import Merging


@register
@dataclass(frozen=True)
class ToFu(Merging):
    """Drop tokens in early blocks, merge them by MLERP in late blocks (Kim et al., WACV 2024).

    Pairs are those of ToMe. In blocks before `switch`, where the network is far from linear, the source of each pair is
    dropped. In block `switch` and later a token and all that are merged into it are replaced by their mean, rescaled to
    the largest norm among them.

    Args:
        r: tokens removed in each block, as for `tome`.
        layers: the blocks that act, as a slice or by their indices; None means all.
        switch: the first block that merges; None is half the depth.
        proportional: add log(size) to the attention logits of merged keys.
    """

    switch: int | None = None
    proportional: bool = False

    name: ClassVar[str] = "tofu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.switch is not None and (not isinstance(self.switch, int) or self.switch < 0):
            raise RecipeError(f"tofu: switch must be the index of a block, 0 or more, not {self.switch!r}.")

    def reduce(self, tokens: Tokens, left: int, evidence: AttentionEvidence) -> Tokens:
        match = bipartite_match(evidence.keys(tokens), tokens.x.shape[1] - left, tokens.prefix)
        switch = evidence.depth // 2 if self.switch is None else self.switch
        if evidence.block < switch:
            return tokens.take(match.keep)
        equal_weights = tokens.x.new_ones(tokens.x.shape[:2])
        return tokens.merge(*match, weigh=self.proportional, by=equal_weights, norm="max")
