"""The forward of a host with tokens: image to tokens, tokens through the blocks under a recipe, tokens to the head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .._recording import dummy_batch, is_empty
from ..attention import BlockQKV
from ..errors import InputError, UnsupportedHost
from ..hosts import Exit, Host
from ..hosts.checks import refuse_hooks
from ..methods import AttentionEvidence, Evidence, ExitEvidence, MapEvidence, Method
from ..methods.base import Place
from ..padding import attend_per_length, faster_one_by_one, per_length
from ..recipe import Recipe
from ..tokens import Tokens
from .base_stream import BaseStream
from .intermediates import FeatureRequest, HiddenStates, Intermediates
from .levels import Levels, leave
from .plan import Plan, Reduction, check
from .trace import Trace
from .walk import Actor, Begun, FirstTokens, Reads, Step, walk


class TokenStream(BaseStream):
    """Runs the forward of a host with a recipe applied: patch embedding, blocks, head. Stateless."""

    units = "tokens"

    host: Host
    plan: Plan

    @staticmethod
    def planned(host: Host, recipe: Recipe) -> Plan:
        """The recipe's plan on this host; raises if the host cannot run it."""
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
        begun: Begun | None = None,
    ) -> Tokens:
        """Images -> the head's input, the remaining tokens after the final norm; `blocks`: run only the first n blocks.

        The outputs of auxiliary heads between blocks are appended to `exits`. With `begun` (see `begin`) the forward
        continues from its block, without computing the earlier ones again.
        """
        if is_empty(images):  # an empty batch: run a dummy one and return zero rows
            tokens = self.run(dummy_batch(images), trace, watch, blocks, exits)
            if trace is not None:
                trace.forget()
            return tokens.nothing()
        tokens, first = (self.host.embed(images), 0) if begun is None else begun
        if trace is not None or watch:
            tokens = tokens.tracked()  # record which token each patch ends up in
        acting = RecipeActor(self, tokens, () if trace is None else trace.looks, [] if exits is None else exits)
        if acting.starts(tokens):
            significance = self.significance(self.host.covered(images, tokens.grid), tokens.grid)
            tokens = acting.start(tokens, significance)
            if trace is not None:
                trace.begin(tokens, significance)
        watching = [*watch, *([] if trace is None else [trace.see])]
        tokens = walk(self.host.blocks[:blocks], tokens, acting, watching, first)
        tokens = acting.end(self.host.features(tokens))
        if trace is not None:
            trace.end(tokens, acting.seen, acting.exits)
        return tokens

    def begin(self, images: Tensor, blocks: int = 0, begun: Begun | None = None) -> Begun:
        """Images -> their tokens before block `blocks`, none of them reduced; continues from `begun`, if given. Any
        recipe that does not act in these blocks (`Plan.untouched`) can continue from there, with the same result."""
        tokens, first = (self.host.embed(images), 0) if begun is None else begun
        return Begun(walk(self.host.blocks[:blocks], tokens, first=first), max(first, blocks))

    def __call__(self, images: Tensor, **kwargs: Any) -> Any:
        """Images -> the host's own output; with `output_hidden_states`, also each block's, on the full grid."""
        hidden = HiddenStates() if kwargs.pop("output_hidden_states", False) else None
        return self.answer(images, hidden=hidden, **kwargs)

    def answer(
        self,
        images: Tensor,
        trace: Trace | None = None,
        hidden: HiddenStates | None = None,
        begun: Begun | None = None,
        **kwargs: Any,
    ) -> Any:
        """Images -> the host's own output, with the `hidden` states if requested. With `begun` (only for hosts whose
        head reads just the last block's tokens) the forward continues from there."""
        levels = Levels(self.host)
        watch = [levels.see] if self.host.levels else []
        watch += [] if hidden is None else [hidden.see]
        tokens = self.run(images, trace, watch, exits=levels.exits, begun=begun)
        if hidden is not None:
            # For an empty batch a dummy batch was run: cut its hidden states to zero images.
            kwargs["hidden_states"] = tuple(x[: len(images)] for x in hidden.states)
        if not self.host.levels:
            return self.host.head(tokens, **kwargs)
        output = self.host.read(levels.tokens, levels.exits, images.shape[-2:], **kwargs)
        return tree_map(lambda values: values[:0], output) if is_empty(images) else output

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the surviving tokens after the final norm, (B, N, d), prefix first."""
        return self.run(images).x

    def intermediates(self, images: Tensor, request: FeatureRequest) -> Any:
        """Features of chosen blocks, as timm's `forward_intermediates` returns them."""
        collector = Intermediates(self.host, request)
        tokens = self.run(images, watch=[collector.see], blocks=collector.blocks)
        return collector.answer(tokens, len(images))

    def trace(self, images: Tensor, trace: Trace) -> Trace:
        """Run on images and record what happened in `trace`."""
        self._check_looks(trace.looks)
        trace.output = self.answer(images, trace)
        return trace

    def _check_looks(self, looks: Sequence[int]) -> None:
        name, depth = type(self.host.model).__name__, len(self.host.blocks)
        if looks and not self.host.class_token:
            raise InputError(f"{name} has no class token whose attention could be recorded.")
        for block in looks:
            if not 0 <= block < depth:
                raise InputError(f"attention={block} must be one of {depth} blocks, 0 to {depth - 1}.")
            if self.host.blocks[block].closed:  # the reason why the block cannot be opened, or empty
                raise UnsupportedHost(
                    f"The attention of {name} cannot be recorded: in block {block}, {self.host.blocks[block].closed}."
                )

    def reads(self, images: Tensor) -> list[Reads]:
        """Number of tokens that each block reads for these images; from the plan if the counts do not vary by image."""
        if self.plan.varies:
            trace = Trace()
            self.run(images, trace)
            return trace.reads
        (size,) = self.sizes(images)
        return self.plan.reads(prod(size))

    def limit(self, images: Tensor, reads: Sequence[Reads] | None = None) -> Any:
        """Run the host on the first n tokens wherever the recipe leaves n: the cost with free token selection."""
        tokens = self.host.embed(images)
        patches = tokens.x.shape[1] - tokens.prefix
        planned, left = self.plan.walked(patches)
        first = FirstTokens(planned if reads is None else reads)
        if not self.host.levels:
            tokens = walk(self.host.blocks, tokens, first)
            tokens = tokens.first(min(tokens.x.shape[1], left))
            return self.host.head(self.host.features(tokens))
        levels = Levels(self.host, self.plan.exits(patches))
        walk(self.host.blocks, tokens.tracked(), first, [levels.see])
        return self.host.read(levels.tokens, levels.exits, images.shape[-2:])

    def sizes(self, images: Tensor) -> list[tuple[int, ...]]:
        """The grid of patches, as a list of one because hosts with stages return one size per stage."""
        return [self.host.embed(images[:1]).grid]

    def map_call(self, images: Tensor) -> Callable[[], Any]:
        """A function that only computes the significance map of these images, to count its FLOPs or to time it."""
        (grid,) = self.sizes(images)
        return partial(self.significance, self.host.covered(images, grid), grid)


class RecipeActor(Actor):
    """Applies a recipe's methods at their places in the forward, passing each its `Evidence`."""

    def __init__(
        self, stream: TokenStream, tokens: Tokens, looks: Sequence[int] = (), exits: list[Exit] | None = None
    ) -> None:
        """`tokens`: all tokens after patch embedding. `looks`: blocks whose class-token attention goes to `seen`.
        `exits`: the list to which the outputs of auxiliary heads are appended."""
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

    def one_by_one(self, block: int, tokens: Tokens) -> bool:
        acts = tokens.weight is not None or block in self.looks
        acts = acts or self.plan.opens(block, tokens.x.shape[1], prod(tokens.grid))
        separate = not acts and faster_one_by_one(tokens)
        if separate:
            refuse_hooks(self.host.model, self.host.blocks[block].bypassed)  # they would see the images one by one
        return separate

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
        attending = [act.method for act in self._acts("inside", block, tokens) if act.method.attends]
        if not attending:
            return attention.attend(), None
        method = attending[0]  # `check` allows at most one
        return method.attend(attention) if tokens.lengths is None else attend_per_length(method, attention)

    def inside(self, block: int, tokens: Tokens, attention: BlockQKV, attention_scores: Tensor | None) -> Tokens:
        return self._reduce(
            "inside", block, tokens, partial(AttentionEvidence, attention=attention, attention_scores=attention_scores)
        )

    def after(self, block: int, tokens: Tokens) -> Tokens:
        return self._reduce("after", block, tokens)

    def end(self, tokens: Tokens) -> Tokens:
        return self._reduce("end", self.plan.depth - 1, tokens)

    def _reduce(self, place: Place, block: int, tokens: Tokens, kind: Callable[..., Evidence] | None = None) -> Tokens:
        """Apply every method of this place in recipe order, each with its `Evidence`."""
        for index, method in self.plan.methods:
            left = self._left(method, block, tokens) if method.place == place else None
            if left is None:
                continue
            settings: dict[str, Any] = {"block": block, "depth": self.plan.depth, "prepared": self.prepared.get(index)}
            settings["module"] = self.stream.learned(index, tokens.x)
            if method.reads_exits:
                exit_here = leave(self.host, block, tokens, method.exit_classes)
                self.exits.append(exit_here)
                evidence: Evidence = ExitEvidence(**settings, probability=exit_here.prediction.probability)
            else:
                # Not `kind=Evidence` by default: torch.compile cannot call a class that is a default argument.
                evidence = Evidence(**settings) if kind is None else kind(**settings)
            tokens = self._act(method, tokens, left, evidence)
        return tokens

    def _act(self, method: Method[Any], tokens: Tokens, left: int, evidence: Evidence) -> Tokens:
        """Apply one method; if images have different numbers of tokens, once for each group of equal length."""
        if tokens.lengths is None or method.knows_padding:
            return method.reduce(tokens, left, evidence)

        def act(indices: Tensor, unpadded: Tokens) -> Tokens:
            count = self._left(method, evidence.block, unpadded)
            if count is None:
                return unpadded
            return method.reduce(unpadded, count, evidence.of(indices, unpadded.x.shape[1]))

        return per_length(tokens, act, left, method.name)

    def _left(self, method: Method[Any], block: int, tokens: Tokens) -> int | None:
        """Number of these tokens that a method leaves; None if it does not act."""
        return self.plan.left_by(method, block, tokens.x.shape[1], prod(tokens.grid))

    def _acts(self, place: Place, block: int, tokens: Tokens) -> list[Reduction]:
        return self.plan.acts(place, block, tokens.x.shape[1], prod(tokens.grid))
