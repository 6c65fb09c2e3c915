"""What heads for dense prediction read: the tokens behind several blocks, and what was said of those that left."""

from __future__ import annotations

from collections.abc import Collection

from ..hosts import Exit, Host
from ..tokens import Tokens
from .walk import Step


class Levels:
    """Looks on at a walk, and keeps the tokens behind the blocks that the head reads."""

    def __init__(self, host: Host, exits: Collection[int] = ()) -> None:
        """Behind the blocks `exits` the heads run here; a recipe's methods ask them otherwise."""
        self.host, self.asks = host, exits
        self.tokens: list[Tokens] = []
        self.exits: list[Exit] = []

    def see(self, step: Step) -> None:
        if step.block == 0 and -1 in self.host.levels:
            self.tokens.append(step.read)
        if step.block in self.host.levels:
            self.tokens.append(step.tokens)
        if step.block in self.asks:
            self.exits.append(leave(self.host, step.block, step.tokens))


def leave(host: Host, block: int, tokens: Tokens, class_probability: str = "last") -> Exit:
    """Run the head behind a block on its tokens, which are tracked."""
    assert tokens.source is not None
    return Exit(block, host.predict(block, tokens), tokens.source, class_probability)
