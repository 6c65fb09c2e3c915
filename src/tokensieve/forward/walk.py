"""The loop over a host's blocks, with an `Actor` that reduces the tokens and callbacks that observe each block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import padding
from .._frozen import replace
from ..attention import BlockQKV
from ..hosts import HostBlock
from ..tokens import Tokens


class Reads(NamedTuple):
    """The number of tokens, prefix included, at each point of a block."""

    keys: int
    """Tokens projected to keys and values."""
    q_proj: int
    """Tokens projected to queries; equal to `keys` if queries are selected by the attention itself."""
    queries: int
    """Queries for which the attention output is computed."""
    mlp: int


class Actor:
    """The hooks that `walk` calls around and inside blocks. This base class changes nothing and opens no block."""

    def before(self, block: int, tokens: Tokens) -> Tokens:
        """Before a block: returns the block's input tokens."""
        return tokens

    def opens(self, block: int, tokens: Tokens) -> bool:
        """Whether to run the block submodule by submodule, calling the next four methods; else as block(tokens)."""
        return False

    def one_by_one(self, block: int, tokens: Tokens) -> bool:
        """Whether to call the block as it is once for each image, without the padding of a batch; asked first."""
        return False

    def queries(self, block: int, tokens: Tokens) -> Tokens:
        """Before the QKV projection: returns the tokens to project to queries. Keys and values use all tokens."""
        return tokens

    def rows(self, block: int, tokens: Tokens, attention: BlockQKV) -> Tokens:
        """After the QKV projection: returns the tokens whose queries attend. Called only if `queries` kept all."""
        return tokens

    def attend(self, block: int, tokens: Tokens, attention: BlockQKV) -> tuple[Tensor, Tensor | None]:
        """The attention output (B, H, M, d_h) of the M queries, and scores for `inside` or None."""
        return attention.attend(), None

    def inside(self, block: int, tokens: Tokens, attention: BlockQKV, attention_scores: Tensor | None) -> Tokens:
        """Between attention and MLP: returns the tokens that the MLP reads."""
        return tokens

    def after(self, block: int, tokens: Tokens) -> Tokens:
        """After a block: returns the tokens that go to the next block."""
        return tokens


class FirstTokens(Actor):
    """Keeps the first n tokens wherever the recipe leaves n: the recipe's cost with free token selection."""

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


class Begun(NamedTuple):
    """A forward up to a block without any reduction, from which several recipes can continue."""

    tokens: Tokens
    """The input of that block, with all patches."""
    block: int


class Step(NamedTuple):
    """The argument of the callbacks of `walk`, after each block."""

    block: int
    read: Tokens
    """The block's input tokens."""
    tokens: Tokens
    """The block's output tokens, before any method at "after"."""
    reads: Reads


def walk(
    blocks: Sequence[HostBlock],
    tokens: Tokens,
    actor: Actor | None = None,
    watch: Sequence[Callable[[Step], None]] = (),
    first: int = 0,
) -> Tokens:
    """Run tokens through blocks: `actor` reduces them, each callback in `watch` is called after each block.

    With `first`, start at that block: the tokens have been through the earlier ones.
    """
    actor = Actor() if actor is None else actor
    for index, block in enumerate(blocks[first:], start=first):
        read = block.enter(actor.before(index, tokens))
        separately = actor.one_by_one(index, read)
        opens = not separately and actor.opens(index, read)
        run = partial(_opened, index, block, actor) if opens else partial(_whole, block, separately)
        # Gradient checkpointing; a block that is not opened may already do it in its own forward.
        if block.checkpoints and (opens or not block.checkpoints_itself):
            tokens, reads = checkpoint(run, read, use_reentrant=False)
        else:
            tokens, reads = run(read)
        for callback in watch:
            callback(Step(index, read, tokens, reads))
        tokens = actor.after(index, tokens)
    return tokens


def _whole(block: HostBlock, separately: bool, tokens: Tokens) -> tuple[Tokens, Reads]:
    count = tokens.x.shape[1]
    x = padding.one_by_one(tokens, block) if separately else block(tokens)
    return replace(tokens, x=x), Reads(count, count, count, count)


def _opened(index: int, block: HostBlock, actor: Actor, tokens: Tokens) -> tuple[Tokens, Reads]:
    keys = tokens.x.shape[1]
    tokens, q_proj, queries = up_to_mlp(index, block, actor, tokens)
    tokens = through_mlp(block, tokens)
    return tokens, Reads(keys, q_proj, queries, tokens.x.shape[1])


def up_to_mlp(index: int, block: HostBlock, actor: Actor, tokens: Tokens) -> tuple[Tokens, int, int]:
    """A block up to its MLP -> tokens after attention, number of queries projected, number of queries that attended.

    A separate function, so that queries, keys and values are freed before the MLP runs.
    """
    # block_rows (B, N): each token's index among the block's input tokens; None while all are present.
    tokens = replace(tokens, block_rows=None)
    query_tokens = actor.queries(index, tokens)
    attention = _qkv(block, tokens, query_tokens.block_rows)
    attention = replace(attention, weight=tokens.weight, lengths=tokens.lengths)
    attention = attention.ensure_queries(query_tokens.block_rows)
    selected = attention
    if query_tokens.block_rows is None:
        query_tokens = actor.rows(index, tokens, attention)
        selected = attention if query_tokens.block_rows is None else attention.only_queries(query_tokens.block_rows)
    attended, attention_scores = actor.attend(index, query_tokens, selected)
    tokens = replace(query_tokens, x=_attention_out(block, attended, selected, query_tokens))
    tokens = actor.inside(index, tokens, attention, attention_scores)
    return tokens, attention.q.shape[2], query_tokens.x.shape[1]


def through_mlp(block: HostBlock, tokens: Tokens) -> Tokens:
    """The tokens after the block's MLP, which does not read padding."""
    packing = _packing(block, tokens)
    x = block.mlp(tokens.x) if packing is None else packing.unpack(block.mlp(packing.pack(tokens.x)))
    return replace(tokens, x=x)


def _packing(block: HostBlock, tokens: Tokens) -> padding.Packing | None:
    return None if tokens.lengths is None or block.trains else padding.Packing.of(tokens)


def _qkv(block: HostBlock, tokens: Tokens, query_rows: Tensor | None) -> BlockQKV:
    packing = _packing(block, tokens) if block.by_token and query_rows is None else None
    if packing is None:
        return block.qkv(tokens, query_rows)
    packed = block.qkv(Tokens(packing.pack(tokens.x), tokens.prefix, tokens.grid))
    q, k, v = (packing.unpack(x.transpose(1, 2)).transpose(1, 2) for x in (packed.q, packed.k, packed.v))
    keys = k if packed.keys is packed.k else packing.unpack(packed.keys.transpose(1, 2)).transpose(1, 2)
    gate = None if packed.gate is None else packing.unpack(packed.gate)
    return replace(packed, q=q, k=k, v=v, keys=keys, gate=gate)


def _attention_out(block: HostBlock, attended: Tensor, attention: BlockQKV, tokens: Tokens) -> Tensor:
    packing = _packing(block, tokens) if block.by_token else None
    if packing is None:
        return block.attention_out(attended, attention, tokens.x)
    gate = None if attention.gate is None else packing.pack(attention.gate)
    heads = packing.pack(attended.transpose(1, 2)).transpose(1, 2)
    return packing.unpack(block.attention_out(heads, replace(attention, gate=gate), packing.pack(tokens.x)))
