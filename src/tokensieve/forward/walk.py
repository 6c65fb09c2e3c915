"""The walk: tokens through a host's blocks, with whoever acts on them and whoever looks on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .._frozen import replace
from ..attention import Attention
from ..hosts import HostBlock
from ..tokens import Tokens


class Reads(NamedTuple):
    """How many tokens, prefix included, a block reads where."""

    keys: int
    """Of which keys and values are made."""
    asked: int
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

    def rows(self, block: int, tokens: Tokens, attention: Attention) -> Tokens:
        """The same after a look at the attention; called only where `queries` left all."""
        return tokens

    def attend(self, block: int, tokens: Tokens, attention: Attention) -> tuple[Tensor, Tensor | None]:
        """The attention's output (B, H, M, d_h), and what `inside` is to know of it."""
        return attention.attend(), None

    def inside(self, block: int, tokens: Tokens, attention: Attention, found: Tensor | None) -> Tokens:
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
        return tokens.first(self.reads[block].asked)

    def rows(self, block: int, tokens: Tokens, attention: Attention) -> Tokens:
        return tokens.first(self.reads[block].queries)

    def inside(self, block: int, tokens: Tokens, attention: Attention, found: Tensor | None) -> Tokens:
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
        read = block.enter(actor.before(index, tokens))
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
    tokens, asked, queries = _attended(index, block, actor, tokens)
    tokens = replace(tokens, x=block.mlp(tokens.x))
    return tokens, Reads(keys, asked, queries, tokens.x.shape[1])


def _attended(index: int, block: HostBlock, actor: Actor, tokens: Tokens) -> tuple[Tokens, int, int]:
    """A block up to its MLP; how many queries were projected, and how many attended.

    A function of its own, so that queries, keys and values are freed before the MLP runs.
    """
    tokens = replace(tokens, row=None)
    asking = actor.queries(index, tokens)
    attention = replace(block.qkv(tokens, asking.row), weight=tokens.weight, lengths=tokens.lengths).asked(asking.row)
    heads = attention
    if asking.row is None:
        asking = actor.rows(index, tokens, attention)
        heads = attention if asking.row is None else attention.ask(asking.row)
    attended, found = actor.attend(index, asking, heads)
    tokens = replace(asking, x=block.attention_out(attended, heads, asking.x))
    tokens = actor.inside(index, tokens, attention, found)
    return tokens, attention.q.shape[2], asking.x.shape[1]
