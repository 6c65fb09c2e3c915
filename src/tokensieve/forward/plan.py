"""The plan: which method acts where, on how many tokens. Computed from token counts alone, without any image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from .._recording import as_int
from ..errors import RecipeError, UnsupportedHost
from ..hosts import Host
from ..methods import BaseMethod, Method
from ..methods.base import Place, TokenSite
from .walk import Reads

PLENTY = 10**6
"""A patch count so large that every method that ever acts does act."""


class Reduction(NamedTuple):
    """One method acting at one place: its index in the recipe, and how many tokens remain, prefix included."""

    number: int
    method: Method[Any]
    left: int


_OPENING: tuple[Place, ...] = ("queries", "rows", "inside")
"""The places inside a block, for which it is run submodule by submodule."""


class Plan:
    """A recipe's methods on a host with `depth` blocks and `prefix` prefix tokens."""

    def __init__(self, methods: Iterable[BaseMethod], depth: int, prefix: int) -> None:
        self.depth, self.prefix = depth, prefix
        self.every = list(methods)
        acting = [(i, method) for i, method in enumerate(self.every) if isinstance(method, Method)]
        self.methods = [(i, method) for i, method in acting if not self._idle(method)]

    @property
    def varies(self) -> bool:
        """Whether the number of remaining tokens can differ between images."""
        return any(method.varies for _, method in self.methods)

    @property
    def merges(self) -> bool:
        """Whether a token may represent several patches (merged) or none (padding)."""
        return any(method.merges or method.pads for _, method in self.methods)

    def acts(self, place: Place, block: int, count: int, patches: int) -> list[Reduction]:
        """The methods that act at this place, in order, on `count` tokens of an image of `patches` patches."""
        acts, count, patches = [], as_int(count), as_int(patches)
        for index, method in self.methods:
            left = self.left_by(method, block, count, patches) if method.place == place else None
            if left is not None:
                count = left
                acts.append(Reduction(index, method, count))
        return acts

    def left_by(self, method: Method[Any], block: int, count: int, patches: int) -> int | None:
        """Number of tokens, out of `count`, that a method leaves here; None if it does not act."""
        site = TokenSite(block, self.depth, as_int(count), self.prefix, as_int(patches))
        return method.left(site) if method.acts(site) else None

    def opens(self, block: int, count: int, patches: int) -> bool:
        """Whether anything acts between the block's norm and its MLP."""
        return any(self.acts(place, block, count, patches) for place in _OPENING)

    def untouched(self, patches: int) -> int:
        """Number of blocks at the start in which no method acts, for an image with `patches` patches.

        0 if a method reads the embedded patches (`prepare`).
        """
        if any(type(method).prepare is not Method.prepare for _, method in self.methods):
            return 0
        places: tuple[Place, ...] = ("start", "before", *_OPENING, "after")
        blocks = range(self.depth)
        acting = (
            block for block in blocks for place in places if self.acts(place, block, patches + self.prefix, patches)
        )
        return next(acting, self.depth)

    def exits(self, patches: int) -> list[int]:
        """The blocks after which an auxiliary head runs, so that tokens can exit early."""
        counts = [reads.mlp for reads in self.reads(patches)]
        return [
            block
            for block, count in enumerate(counts)
            if any(act.method.reads_exits for act in self.acts("after", block, count, patches))
        ]

    def reads(self, patches: int) -> list[Reads]:
        """The number of tokens at each point of each block, for an image of `patches` patches."""
        return self.walked(patches)[0]

    def left(self, patches: int) -> int:
        """Number of tokens that the final norm and the head read."""
        return self.walked(patches)[1]

    def walked(self, patches: int) -> tuple[list[Reads], int]:
        """`reads(patches)` and `left(patches)` in one pass over the blocks."""

        def left(place: Place, block: int, count: int) -> int:
            return min([count, *(act.left for act in self.acts(place, block, count, patches))])

        count, reads = left("start", 0, patches + self.prefix), []
        for block in range(self.depth):
            keys = left("before", block, count)
            q_proj = left("queries", block, keys)
            queries = left("rows", block, q_proj)
            mlp = left("inside", block, queries)
            reads.append(Reads(keys, q_proj, queries, mlp))
            count = left("after", block, mlp)
        return reads, count

    def _idle(self, method: Method[Any]) -> bool:
        """Whether a method acts nowhere, whatever the number of tokens (keep=1, r=0)."""
        sites = [TokenSite(block, self.depth, PLENTY + self.prefix, self.prefix, PLENTY) for block in range(self.depth)]
        return not any(method.acts(site) for site in sites)


def check(host: Host, plan: Plan) -> None:
    """Raise, before anything runs, if methods conflict or the host cannot run all of them."""
    name = type(host.model).__name__
    methods = [method for _, method in plan.methods]
    for method in plan.every:
        if not method.on_tokens:
            raise UnsupportedHost(f"{name} cannot take {method.name}: it is made for {method.family}.")
    start = [method.name for method in methods if method.place == "start"]
    if len(start) > 1:
        raise RecipeError(f"{' and '.join(start)} both drop patches before block 0; keep one of them.")
    for method in methods:
        method.check(host, [other for other in methods if other is not method])
    for index, block in enumerate(host.blocks):
        places = {
            place: [act.method for act in plan.acts(place, index, PLENTY + plan.prefix, PLENTY)] for place in _OPENING
        }
        acting = [method for methods_here in places.values() for method in methods_here]
        attending = [method for method in acting if method.attends]
        exclusive = places["queries"] + places["rows"] + attending
        if attending or (places["queries"] and places["rows"]):
            _alone(exclusive, index)
        if acting and block.closed:
            raise UnsupportedHost(
                f"{name} cannot take {acting[0].name}: in block {index}, {block.closed}. "
                "Methods that act before the blocks, such as PaPr, work on it."
            )
        if block.closed and any(method.merges or method.weighs or method.pads for method in methods):
            raise UnsupportedHost(f"{name} cannot take merged or padded tokens: in block {index}, {block.closed}.")


def _alone(methods: list[Method[Any]], block: int) -> None:
    if len(methods) > 1:
        raise RecipeError(
            f"{methods[0].name} and {methods[1].name} would both select the queries or compute the attention of "
            f"block {block}; give them different layers, for example layers=0:6 and layers=6:12."
        )
