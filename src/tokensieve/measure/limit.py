"""The slicing limit: the host itself on as many tokens, with selection for free."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..frozen import replace
from ..plan import Reads
from ..stages import SievedStages
from ..stream import Sieved
from ..tokens import Tokens
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
        if isinstance(fast, nn.Module) and not isinstance(fast, Sieved):
            raise InputError(f"The slicing limit is of what sieve() returned, not of {type(fast).__name__}.")
        self.model, self._fast, self._reads = fast.model, (fast,), reads
        self.training = fast.training

    @classmethod
    def on(cls, fast: Sieved, images: Tensor) -> SlicingLimit:
        """The limit on these images: where the counts depend on them (`ats`), those that they bring."""
        varies = any(method.varies for _, method in fast.plan.methods)
        return cls(fast, fast.trace(images).reads if varies else None)

    def forward(self, images: Tensor) -> Tensor:
        (fast,) = self._fast
        return self._stages(fast, images) if isinstance(fast, SievedStages) else self._tokens(fast, images)

    def _stages(self, fast: SievedStages, images: Tensor) -> Tensor:
        """Point-wise operators on the first pixels of each map, which is changed in place: choosing is for free."""
        host = fast.host
        x = host.embed(images)
        if fast.plan.methods:
            x = host.lay_out(x)
        maps = [x]
        for number, stage in enumerate(host.stages):
            x = stage.enter(x)
            for block, read in zip(stage.blocks, fast.plan.reads(number, prod(host.size(x))), strict=True):
                if read.mlp == read.keys:
                    x = block(x)
                    continue
                out, y = block.around(x)
                change = block.pixel(y.flatten(1, 2)[:, : read.mlp])
                out.flatten(1, 2)[:, : read.mlp] += change
                x = out.permute(0, 3, 1, 2) if host.channels_first else out
            maps.append(x)
        return host.answer(maps)

    def _tokens(self, fast: Sieved, images: Tensor) -> Tensor:
        host = fast.host
        tokens = host.embed(images)
        plan = self._reads or fast.plan.reads(tokens.x.shape[1] - tokens.prefix)
        for block, reads in zip(host.blocks, plan, strict=True):
            tokens = _first(tokens, reads.keys)
            if reads.keys == reads.mlp:
                tokens = replace(tokens, x=block(tokens))
            else:
                rows = torch.arange(reads.keys, device=images.device).expand(images.shape[0], -1)
                asking = rows[:, : reads.asked] if reads.asked < reads.keys else None
                heads = block.qkv(tokens, asking).asked(asking)
                if reads.queries < reads.asked:
                    heads = heads.ask(rows[:, : reads.queries])
                tokens = _first(tokens, reads.queries)
                tokens = replace(tokens, x=block.attention_out(heads.attend(), heads, tokens.x))
                tokens = _first(tokens, reads.mlp)
                tokens = replace(tokens, x=block.mlp(tokens.x))
        return host.head(host.features(tokens))


def _first(tokens: Tokens, count: int) -> Tokens:
    """The first `count` tokens, with the first rows of the positional table."""
    if count == tokens.x.shape[1]:
        return tokens
    table = None if tokens.table is None else tokens.table[..., : count - tokens.prefix, :]
    return replace(tokens, x=tokens.x[:, :count], table=table)
