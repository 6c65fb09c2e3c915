"""Token Fusion (ToFu): early blocks drop what ToMe would merge, late blocks merge and keep the norm."""

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
    """Pruned merging where the network bends, MLERP merging where it is near linear (Kim et al., WACV 2024).

    ToMe's pairs. Before block `switch` the source of a pair is dropped. From there on a group becomes its mean,
    stretched to the norm of its longest token.

    Args:
        r: tokens fewer after each block, as for `tome`.
        layers: the blocks that act, as a slice or by their numbers; None means all.
        switch: the first block that merges; None is half the depth.
        proportional: add log(size) to the attention logits of merged keys.
    """

    switch: int | None = None
    proportional: bool = False

    name: ClassVar[str] = "tofu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.switch is not None and (not isinstance(self.switch, int) or self.switch < 0):
            raise RecipeError(f"tofu: switch must be the number of a block, 0 or more, not {self.switch!r}.")

    def reduce(self, tokens: Tokens, left: int, evidence: AttentionEvidence) -> Tokens:
        match = bipartite_match(evidence.keys(tokens), tokens.x.shape[1] - left, tokens.prefix)
        switch = evidence.depth // 2 if self.switch is None else self.switch
        if evidence.block < switch:
            return tokens.take(match.keep)
        plain = tokens.x.new_ones(tokens.x.shape[:2])
        return tokens.merge(*match, weigh=self.proportional, by=plain, norm="max")
