"""The slicing limit: the host run on the recipe's numbers of tokens, with no cost for selecting them."""

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
    """The host of a sieved model on the first n tokens of each block: the cost if choosing tokens were free.

    Every attention and every MLP reads as many tokens as under the recipe. There is no proposal, no selection, no
    merging and no size bias: the outputs are meaningless, and the time is a lower bound on the time of the recipe.
    """

    def __init__(self, fast: Sieved, reads: Sequence[Reads] | None = None) -> None:
        """Create the limit of a sieved model; `reads` holds the tokens that each block reads, None: the recipe's plan.

        Raises:
            InputError: `fast` is not a sieved model.
        """
        super().__init__()
        fast = eager(fast)
        if isinstance(fast, Cascade):
            raise InputError(
                "A cascade has no slicing limit; each of its members has: SlicingLimit(cascade.members[0])."
            )
        if isinstance(fast, nn.Module) and not isinstance(fast, Sieved):
            raise InputError(f"SlicingLimit takes a model returned by sieve(), not {type(fast).__name__}.")
        self.model, self._fast, self._reads = fast.model, (fast,), reads
        self.training = fast.training

    @classmethod
    def on(cls, fast: Sieved, images: Tensor) -> SlicingLimit:
        """The limit on these images: if token counts depend on the images (`ats`), those of these images are used."""
        return cls(fast, fast.reads(images) if fast.plan.varies else None)

    def forward(self, images: Tensor) -> Any:
        (fast,) = self._fast
        return fast.stream.limit(images, self._reads)
