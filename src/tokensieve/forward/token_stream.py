"""The forward of a host with tokens: image to tokens, tokens through the blocks under a recipe, tokens to the head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .._recording import none, stand_in
from ..attention import BlockQKV
from ..errors import InputError, UnsupportedHost
from ..hosts import Exit, Host
from ..hosts.checks import refuse_hooks
from ..methods import AttentionEvidence, Evidence, ExitEvidence, MapEvidence, Method
from ..methods.base import Place
from ..padding import attend_each, each
from ..recipe import Recipe
from ..tokens import Tokens
from .base_stream import BaseStream
from .intermediates import HiddenStates, Intermediates, Wanted
from .levels import Levels, leave
from .plan import Act, Plan, check
from .trace import Trace
from .walk import Actor, First, Reads, Step, walk


class TokenStream(BaseStream):
    """A host under a recipe: image to tokens, tokens through the blocks, tokens to the head. Keeps nothing."""

    units = "tokens"

    host: Host
    plan: Plan

    @staticmethod
    def planned(host: Host, recipe: Recipe) -> Plan:
        """The recipe on this host, or a refusal."""
        plan = Plan(
            [method.on(host) if isinstance(method, Method) else method for method in recipe],
            len(host.blocks),
            host.prefix,
        )
        check(host, plan)
        return plan

    def build(self, method: Method[Any], pretrained: bool) -> nn.Module | None:
        """A method's own learned layers, for this host."""
        return method.build(self.host.width, len(self.host.blocks), pretrained)

    def run(
        self,
        images: Tensor,
        trace: Trace | None = None,
        watch: Sequence[Callable[[Step], None]] = (),
        blocks: int | None = None,
        exits: list[Exit] | None = None,
    ) -> Tokens:
        """Images to what the head reads: the surviving tokens after the final norm; of the first `blocks` alone.

        What heads between the blocks said is added to `exits`.
        """
        if none(images):
            tokens = self.run(stand_in(images), trace, watch, blocks, exits)
            if trace is not None:
                trace.forget()
            return tokens.nothing()
        tokens = self.host.embed(images)
        if trace is not None or watch:
            tokens = tokens.tracked()
        acting = Acting(self, tokens, () if trace is None else trace.looks, [] if exits is None else exits)
        if acting.starts(tokens):
            significance = self.significance(self.host.covered(images, tokens.grid), tokens.grid)
            tokens = acting.start(tokens, significance)
            if trace is not None:
                trace.begin(tokens, significance)
        watching = [*watch, *([] if trace is None else [trace.see])]
        tokens = walk(self.host.blocks[:blocks], tokens, acting, watching)
        tokens = acting.end(self.host.features(tokens))
        if trace is not None:
            trace.end(tokens, acting.seen, acting.exits)
        return tokens

    def __call__(self, images: Tensor, **kwargs: Any) -> Any:
        """Images -> the host's own output, with `output_hidden_states` those of every block on the whole grid."""
        hidden = HiddenStates() if kwargs.pop("output_hidden_states", False) else None
        return self.answer(images, hidden=hidden, **kwargs)

    def answer(
        self, images: Tensor, trace: Trace | None = None, hidden: HiddenStates | None = None, **kwargs: Any
    ) -> Any:
        """Images -> the host's own output, with the `hidden` states where they are asked for."""
        levels = Levels(self.host)
        watch = [levels.see] if self.host.levels else []
        watch += [] if hidden is None else [hidden.see]
        tokens = self.run(images, trace, watch, exits=levels.exits)
        if hidden is not None:
            kwargs["hidden_states"] = tuple(x[: len(images)] for x in hidden.states)
        if not self.host.levels:
            return self.host.head(tokens, **kwargs)
        output = self.host.read(levels.tokens, levels.exits, images.shape[-2:], **kwargs)
        return tree_map(lambda values: values[:0], output) if none(images) else output

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the surviving tokens after the final norm, (B, N, d), prefix first."""
        return self.run(images).x

    def intermediates(self, images: Tensor, wanted: Wanted) -> Any:
        """Features of chosen blocks, as timm's `forward_intermediates` gives them."""
        taken = Intermediates(self.host, wanted)
        tokens = self.run(images, watch=[taken.see], blocks=taken.blocks)
        return taken.answer(tokens, len(images))

    def trace(self, images: Tensor, trace: Trace) -> Trace:
        """Run on images, and tell what happened."""
        self._check_looks(trace.looks)
        trace.output = self.answer(images, trace)
        return trace

    def _check_looks(self, looks: Sequence[int]) -> None:
        name, depth = type(self.host.model).__name__, len(self.host.blocks)
        if looks and not self.host.class_token:
            raise InputError(f"{name} has no class token whose attention to keep.")
        for block in looks:
            if not 0 <= block < depth:
                raise InputError(f"attention={block} must be one of {depth} blocks, 0 to {depth - 1}.")
            if self.host.blocks[block].closed:
                raise UnsupportedHost(
                    f"The attention of {name} cannot be seen: in block {block}, {self.host.blocks[block].closed}."
                )

    def reads(self, images: Tensor) -> list[Reads]:
        """How many tokens each block reads of these images; of the plan, where it does not depend on them."""
        if self.plan.varies:
            trace = Trace()
            self.run(images, trace)
            return trace.reads
        (size,) = self.sizes(images)
        return self.plan.reads(prod(size))

    def limit(self, images: Tensor, reads: Sequence[Reads] | None = None) -> Any:
        """The host on the first n tokens wherever a block reads n of them: as if choosing were free."""
        tokens = self.host.embed(images)
        patches = tokens.x.shape[1] - tokens.prefix
        planned, left = self.plan.walked(patches)
        first = First(planned if reads is None else reads)
        if not self.host.levels:
            tokens = walk(self.host.blocks, tokens, first)
            tokens = tokens.first(min(tokens.x.shape[1], left))
            return self.host.head(self.host.features(tokens))
        levels = Levels(self.host, self.plan.exits(patches))
        walk(self.host.blocks, tokens.tracked(), first, [levels.see])
        return self.host.read(levels.tokens, levels.exits, images.shape[-2:])

    def sizes(self, images: Tensor) -> list[tuple[int, ...]]:
        """The grid of patches, alone in a list: hosts with stages have several maps."""
        return [self.host.embed(images[:1]).grid]

    def map_call(self, images: Tensor) -> Callable[[], Any]:
        """A call that does nothing but make the significance map of these images, for whoever counts or times it."""
        (grid,) = self.sizes(images)
        return partial(self.significance, self.host.covered(images, grid), grid)


class Acting(Actor):
    """A recipe's methods, each where it acts, with what it may look at."""

    def __init__(
        self, stream: TokenStream, tokens: Tokens, looks: Sequence[int] = (), exits: list[Exit] | None = None
    ) -> None:
        """`tokens` are the embedded patches, all of them; of the blocks `looks` the class attention is kept, and what
        heads between blocks say is added to `exits`."""
        self.exits = [] if exits is None else exits
        self.stream, self.host, self.plan, self.looks = stream, stream.host, stream.plan, looks
        self.prepared = {index: method.prepare(tokens) for index, method in self.plan.methods}
        self.seen: dict[int, Tensor] = {}

    def starts(self, tokens: Tokens) -> bool:
        """Whether a significance map is needed before block 0."""
        return len(self._acts("start", 0, tokens)) > 0

    def start(self, tokens: Tokens, significance: Tensor) -> Tokens:
        return self._reduce("start", 0, tokens, partial(MapEvidence, significance=significance))

    def before(self, block: int, tokens: Tokens) -> Tokens:
        return self._reduce("before", block, tokens)

    def opens(self, block: int, tokens: Tokens) -> bool:
        opens = tokens.weight is not None or tokens.lengths is not None or block in self.looks
        opens = opens or self.plan.opens(block, tokens.x.shape[1], prod(tokens.grid))
        if opens and not torch.compiler.is_compiling():
            refuse_hooks(self.host.model, self.host.blocks[block].bypassed)
        return opens

    def queries(self, block: int, tokens: Tokens) -> Tokens:
        return self._reduce("queries", block, tokens)

    def rows(self, block: int, tokens: Tokens, attention: BlockQKV) -> Tokens:
        return self._reduce("rows", block, tokens, partial(AttentionEvidence, attention=attention))

    def attend(self, block: int, tokens: Tokens, attention: BlockQKV) -> tuple[Tensor, Tensor | None]:
        if block in self.looks:
            self.seen[block] = attention.query_probabilities().mean(1)
        own = [act.method for act in self._acts("inside", block, tokens) if act.method.attends]
        if not own:
            return attention.attend(), None
        return own[0].attend(attention) if tokens.lengths is None else attend_each(own[0], attention)

    def inside(self, block: int, tokens: Tokens, attention: BlockQKV, attention_scores: Tensor | None) -> Tokens:
        return self._reduce(
            "inside", block, tokens, partial(AttentionEvidence, attention=attention, attention_scores=attention_scores)
        )

    def after(self, block: int, tokens: Tokens) -> Tokens:
        for index, method in self.plan.methods:
            if (
                method.place != "after"
                or self.plan.left_by(method, block, tokens.x.shape[1], prod(tokens.grid)) is None
            ):
                continue
            known: dict[str, Any] = {"block": block, "depth": self.plan.depth, "prepared": self.prepared.get(index)}
            known["module"] = self.stream.learned(index, tokens.x)
            evidence = Evidence(**known)
            if method.reads_exits:
                exit_here = leave(self.host, block, tokens, getattr(method, "class_probability", "last"))
                self.exits.append(exit_here)
                evidence = ExitEvidence(**known, probability=exit_here.prediction.probability)
            tokens = self._act(method, tokens, evidence)
        return tokens

    def end(self, tokens: Tokens) -> Tokens:
        return self._reduce("end", self.plan.depth - 1, tokens)

    def _reduce(self, place: Place, block: int, tokens: Tokens, kind: Callable[..., Evidence] | None = None) -> Tokens:
        """Let every method of this place act, one after the other, each with what it may know."""
        for index, method in self.plan.methods:
            if method.place == place:
                known: dict[str, Any] = {"block": block, "depth": self.plan.depth, "prepared": self.prepared.get(index)}
                known["module"] = self.stream.learned(index, tokens.x)
                # A class that is a default argument cannot be called in a compiled forward.
                evidence = Evidence(**known) if kind is None else kind(**known)
                tokens = self._act(method, tokens, evidence)
        return tokens

    def _act(self, method: Method[Any], tokens: Tokens, evidence: Evidence) -> Tokens:
        """One method, on as many tokens as there are; where images have unlike numbers, on each by its own."""
        left = self.plan.left_by(method, evidence.block, tokens.x.shape[1], prod(tokens.grid))
        if left is None:
            return tokens
        if tokens.lengths is None or method.knows_padding:
            return method.reduce(tokens, left, evidence)

        def act(images: Tensor, some: Tokens) -> Tokens:
            return self._act(method, some, evidence.of(images, some.x.shape[1]))

        return each(tokens, act, left, method.name)

    def _acts(self, place: Place, block: int, tokens: Tokens) -> list[Act]:
        return self.plan.acts(place, block, tokens.x.shape[1], prod(tokens.grid))
