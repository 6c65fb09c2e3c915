"""Inputs of heads for dense prediction: the tokens after several blocks, and the predictions at exits."""

from __future__ import annotations

from collections.abc import Collection

from ..hosts import Exit, Host
from ..tokens import Tokens
from .walk import Step


class Levels:
    """A watcher of a walk that keeps the tokens after the blocks that the head reads."""

    def __init__(self, host: Host, exits: Collection[int] = ()) -> None:
        """`exits` are the blocks after which the heads run here; with methods that exit early, these run them."""
        self.host, self.exit_blocks = host, exits
        self.tokens: list[Tokens] = []
        self.exits: list[Exit] = []

    def see(self, step: Step) -> None:
        if step.block == 0 and -1 in self.host.levels:
            self.tokens.append(step.read)
        if step.block in self.host.levels:
            self.tokens.append(step.tokens)
        if step.block in self.exit_blocks:
            self.exits.append(leave(self.host, step.block, step.tokens))


def leave(host: Host, block: int, tokens: Tokens, class_probability: str = "last") -> Exit:
    """Run the head of a block on its tokens, whose sources are tracked."""
    assert tokens.source is not None
    return Exit(block, host.predict(block, tokens), tokens.source, class_probability)
