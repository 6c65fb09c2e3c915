"""The slicing limit: the host itself on as many tokens, with selection for free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..cascades.cascade import Cascade
from ..errors import InputError
from ..forward.walk import Reads
from ..stream import Sieved
from .pair import eager


class SlicingLimit(nn.Module):
    """What a sieved model would cost if choosing tokens cost nothing: its host on the first n tokens.

    Every attention and every MLP reads as many tokens as under the recipe. There is no proposal, no selection, no
    merging and no size bias, so its answers are worthless and its time is the honest ceiling of the recipe's.
    """

    def __init__(self, fast: Sieved, reads: Sequence[Reads] | None = None) -> None:
        """`reads` says how many tokens each block reads; None is the recipe's plan.

        Raises:
            InputError: `fast` is not what `sieve` returned.
        """
        super().__init__()
        fast = eager(fast)
        if isinstance(fast, Cascade):
            raise InputError(
                "A cascade has no slicing limit; each of its members has: SlicingLimit(cascade.members[0])."
            )
        if isinstance(fast, nn.Module) and not isinstance(fast, Sieved):
            raise InputError(f"The slicing limit is of what sieve() returned, not of {type(fast).__name__}.")
        self.model, self._fast, self._reads = fast.model, (fast,), reads
        self.training = fast.training

    @classmethod
    def on(cls, fast: Sieved, images: Tensor) -> SlicingLimit:
        """The limit on these images: where the counts depend on them (`ats`), those that they bring."""
        return cls(fast, fast.reads(images) if fast.plan.varies else None)

    def forward(self, images: Tensor) -> Any:
        (fast,) = self._fast
        return fast.stream.limit(images, self._reads)
