"""The walk: tokens through a host's blocks, with whoever acts on them and whoever looks on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .._frozen import replace
from ..attention import BlockQKV
from ..hosts import HostBlock
from ..tokens import Tokens


class Reads(NamedTuple):
    """How many tokens, prefix included, a block reads where."""

    keys: int
    """Of which keys and values are made."""
    q_proj: int
    """Of which queries are projected: all of them where the attention is looked at first."""
    queries: int
    """Whose queries attend."""
    mlp: int


class Actor:
    """What happens to tokens on their way. This one changes nothing: every block is called whole, as it is."""

    def before(self, block: int, tokens: Tokens) -> Tokens:
        """In front of a block: what it reads."""
        return tokens

    def opens(self, block: int, tokens: Tokens) -> bool:
        """Whether the block is opened, so that the next four are called; else it is called whole."""
        return False

    def queries(self, block: int, tokens: Tokens) -> Tokens:
        """Before the attention is known: the tokens that ask. Keys and values are of all."""
        return tokens

    def rows(self, block: int, tokens: Tokens, attention: BlockQKV) -> Tokens:
        """The same after a look at the attention; called only where `queries` left all."""
        return tokens

    def attend(self, block: int, tokens: Tokens, attention: BlockQKV) -> tuple[Tensor, Tensor | None]:
        """The attention's output (B, H, M, d_h), and what `inside` is to know of it."""
        return attention.attend(), None

    def inside(self, block: int, tokens: Tokens, attention: BlockQKV, attention_scores: Tensor | None) -> Tokens:
        """Between attention and MLP: what the MLP reads."""
        return tokens

    def after(self, block: int, tokens: Tokens) -> Tokens:
        """Behind a block: what goes on."""
        return tokens


class First(Actor):
    """The first n tokens wherever a block reads n: what a recipe would cost if choosing tokens cost nothing."""

    def __init__(self, reads: Sequence[Reads]) -> None:
        self.reads = reads

    def before(self, block: int, tokens: Tokens) -> Tokens:
        return tokens.first(self.reads[block].keys)

    def opens(self, block: int, tokens: Tokens) -> bool:
        return self.reads[block].mlp < self.reads[block].keys

    def queries(self, block: int, tokens: Tokens) -> Tokens:
        return tokens.first(self.reads[block].q_proj)

    def rows(self, block: int, tokens: Tokens, attention: BlockQKV) -> Tokens:
        return tokens.first(self.reads[block].queries)

    def inside(self, block: int, tokens: Tokens, attention: BlockQKV, attention_scores: Tensor | None) -> Tokens:
        return tokens.first(self.reads[block].mlp)


class Step(NamedTuple):
    """A block that has been walked through, for whoever looks on."""

    block: int
    read: Tokens
    """What its keys and values were made of."""
    tokens: Tokens
    """What it gave, before anything acts behind it."""
    reads: Reads


def walk(
    blocks: Sequence[HostBlock],
    tokens: Tokens,
    actor: Actor | None = None,
    watch: Sequence[Callable[[Step], None]] = (),
) -> Tokens:
    """Tokens through blocks: `actor` says what happens to them, each of `watch` is shown each block's step."""
    actor = Actor() if actor is None else actor
    for index, block in enumerate(blocks):
        read = actor.before(index, tokens)
        opens = actor.opens(index, read)
        run = partial(_opened, index, block, actor) if opens else partial(_whole, block)
        if block.checkpoints and (opens or not block.checkpoints_itself):
            tokens, reads = checkpoint(run, read, use_reentrant=False)
        else:
            tokens, reads = run(read)
        for look in watch:
            look(Step(index, read, tokens, reads))
        tokens = actor.after(index, tokens)
    return tokens


def _whole(block: HostBlock, tokens: Tokens) -> tuple[Tokens, Reads]:
    count = tokens.x.shape[1]
    return replace(tokens, x=block(tokens)), Reads(count, count, count, count)


def _opened(index: int, block: HostBlock, actor: Actor, tokens: Tokens) -> tuple[Tokens, Reads]:
    keys = tokens.x.shape[1]
    tokens, q_proj, queries = _attended(index, block, actor, tokens)
    tokens = replace(tokens, x=block.mlp(tokens.x))
    return tokens, Reads(keys, q_proj, queries, tokens.x.shape[1])


def _attended(index: int, block: HostBlock, actor: Actor, tokens: Tokens) -> tuple[Tokens, int, int]:
    """A block up to its MLP; how many queries were projected, and how many attended.

    A function of its own, so that queries, keys and values are freed before the MLP runs.
    """
    tokens = replace(tokens, block_rows=None)
    query_tokens = actor.queries(index, tokens)
    attention = block.qkv(tokens, query_tokens.block_rows)
    attention = replace(attention, weight=tokens.weight, lengths=tokens.lengths)
    attention = attention.ensure_queries(query_tokens.block_rows)
    heads = attention
    if query_tokens.block_rows is None:
        query_tokens = actor.rows(index, tokens, attention)
        heads = attention if query_tokens.block_rows is None else attention.only_queries(query_tokens.block_rows)
    attended, attention_scores = actor.attend(index, query_tokens, heads)
    tokens = replace(query_tokens, x=block.attention_out(attended, heads, query_tokens.x))
    tokens = actor.inside(index, tokens, attention, attention_scores)
    return tokens, attention.q.shape[2], query_tokens.x.shape[1]
