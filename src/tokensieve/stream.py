"""The stream: one forward that holds host, significance and methods together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import InputError
from .frozen import replace
from .hosts import Host, HostBlock, open_host
from .methods import Evidence, Method
from .methods.base import Place
from .plan import Act, Plan, Reads, check
from .recipe import Recipe
from .tokens import Tokens, restore

OWN = ("significance.", "parts.")
"""Sub-modules that belong to the recipe and not to the host."""
NOT_OF_THE_MAP = ("keep", "order", "stages", "background")
"""Settings of a method that needs a map which say nothing of how the map is made."""
Memories = dict[int, Tensor | None]
"""What methods remember from before block 0, by their place in the recipe."""


def sieve(
    model: nn.Module,
    recipe: str | os.PathLike[str] | Method | Recipe = "",
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool = True,
) -> Sieved:
    """Let a pretrained model read only the tokens that matter.

    Args:
        model: the host. It is opened, not copied, and stays usable beside the result, with which it shares its weights.
        recipe: text such as "papr(keep=0.8) + tome(r=8)", the path of a recipe file such as "best.json", a method, a
            sum of methods, or a `Recipe`. Weights whose SHA-256 is not the recorded one are refused; the result's own
            recipe has that of the weights that were read.
        mean, std: the normalisation of the images this model reads, three numbers each; by default what timm's
            `pretrained_cfg` says. A proposal with `proposal_norm="native"` needs to know it.
        pretrained: False gives named proposals random weights where none are named: for measuring cost alone.

    Returns:
        A module that is called like the model and returns what the model returns.

    Raises:
        UnsupportedHost: the model, or a block of it, cannot take this recipe.
        RecipeError: the recipe cannot be read or makes no sense.
        InputError: weights cannot be had, or are not those that the recipe was written with.
    """
    from .stages import SievedStages  # a Sieved itself

    host, recipe = open_host(model), Recipe.of(recipe).with_hashes()
    fast = Sieved(host, recipe) if isinstance(host, Host) else SievedStages(host, recipe)
    config = getattr(model, "pretrained_cfg", None) or {}
    for index, method in fast.plan.methods:
        part = fast._build(method, pretrained)
        if part is not None:
            own = next(model.parameters())
            fast.parts[str(index)] = part.to(own.device, own.dtype).eval().requires_grad_(False)
        if method.needs_significance:
            from .significance import build  # only where a map is needed: building one loads proposal libraries

            words = {key: value for key, value in method.settings().items() if key not in NOT_OF_THE_MAP}
            words |= {"mean": mean or config.get("mean"), "std": std or config.get("std")}
            fast.significance = build(**words, pretrained=pretrained)
    return fast


class Sieved(nn.Module):
    """A host under a recipe. Keeps nothing between calls, so that threads may share it.

    Its `state_dict` is the host's: a proposal's weights never appear in it.
    """

    def __init__(self, host: Host, recipe: Recipe) -> None:
        super().__init__()
        self.host, self.recipe = host, recipe
        self.plan = self._planned()
        self.model = host.model
        self.parts = nn.ModuleDict()
        self.significance: nn.Module | None = None
        self.training = self.model.training
        self._register_state_dict_hook(_as_host_keys)
        self.register_load_state_dict_pre_hook(_from_host_keys)

    def _planned(self) -> Plan:
        """The recipe on this host, or a refusal."""
        plan = Plan(self.recipe, len(self.host.blocks), self.host.prefix)
        check(self.host, plan)
        return plan

    def _build(self, method: Method, pretrained: bool) -> nn.Module | None:
        return method.build(self.host.width, len(self.host.blocks), pretrained)

    def _part(self, index: int) -> nn.Module | None:
        """What `build` gave for the recipe's method of this number."""
        return self.parts[str(index)] if str(index) in self.parts else None  # noqa: SIM401

    def asking(self, images: Tensor) -> Callable[[], Any]:
        """A call that does nothing but make the significance map of these images, for whoever counts or times it."""
        assert self.significance is not None
        return partial(self.significance, images, self.host.embed(images[:1]).grid)

    def forward(self, images: Tensor | None = None, **words: Any) -> Any:
        """(B, 3, H, W) -> what the host returns. Hosts of transformers take words of their own: `labels` and others."""
        images, words = self.host.arguments(images, words)
        return self.host.head(self._features(images), **words)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the surviving tokens after the final norm, (B, N, d), prefix first."""
        return self._features(images).x

    def _features(self, images: Tensor, trace: Trace | None = None) -> Tokens:
        """Image to what the head reads: the surviving tokens after the final norm."""
        tokens = self.host.features(self._stream(images, trace))
        return self._reduce("end", self.plan.depth - 1, tokens, {})

    def _stream(self, images: Tensor, trace: Trace | None = None) -> Tokens:
        """Image to tokens, tokens through the blocks. A block in which nothing acts is called whole, as it is."""
        tokens = self.host.embed(images)
        if trace is not None:
            tokens = tokens.tracked()
        memories = {index: method.prepare(tokens) for index, method in self.plan.methods}

        if self._acts("start", 0, tokens):
            assert self.significance is not None
            significance = self.significance(images, tokens.grid)
            tokens = self._reduce("start", 0, tokens, memories, significance=significance)
            if trace is not None:
                trace.begin(tokens, significance)

        for index, block in enumerate(self.host.blocks):
            tokens = self._reduce("before", index, tokens, memories)
            keys = tokens.x.shape[1]
            asked = queries = keys
            if tokens.weight is None and not self.plan.opens(index, keys, prod(tokens.grid)):
                tokens = replace(tokens, x=block(tokens))
            else:
                tokens, asked, queries = self._attend(index, block, tokens, memories)
                tokens = replace(tokens, x=block.mlp(tokens.x))
            if trace is not None:
                trace.reads.append(Reads(keys, asked, queries, tokens.x.shape[1]))
        return tokens

    def _attend(self, index: int, block: HostBlock, tokens: Tokens, memories: Memories) -> tuple[Tokens, int, int]:
        """A block up to its MLP; how many queries were projected, and how many attended.

        A function of its own, so that queries, keys and values are freed before the MLP runs.
        """
        tokens = replace(tokens, row=None)
        asking = self._reduce("queries", index, tokens, memories)
        attention = replace(block.qkv(tokens, asking.row), weight=tokens.weight).asked(asking.row)
        heads = attention
        if asking.row is None:
            asking = self._reduce("rows", index, tokens, memories, attention=attention)
            heads = attention if asking.row is None else attention.ask(asking.row)

        own = [act.method for act in self._acts("inside", index, asking) if act.method.attends]
        attended, found = own[0].attend(heads) if own else (heads.attend(), None)
        tokens = replace(asking, x=block.attention_out(attended, heads, asking.x))
        tokens = self._reduce("inside", index, tokens, memories, attention=attention, found=found)
        return tokens, attention.q.shape[2], asking.x.shape[1]

    def _reduce(self, place: Place, block: int, tokens: Tokens, memories: Memories, **known: Any) -> Tokens:
        """Let every method of this place act, one after the other, each with what it may know."""
        for index, method, left in self._acts(place, block, tokens):
            evidence = Evidence(block, self.plan.depth, memory=memories.get(index), part=self._part(index), **known)
            tokens = method.reduce(tokens, left, evidence)
        return tokens

    def _acts(self, place: Place, block: int, tokens: Tokens) -> list[Act]:
        return self.plan.acts(place, block, tokens.x.shape[1], prod(tokens.grid))

    def trace(self, images: Tensor) -> Trace:
        """Run on (B, 3, H, W) and tell what happened: see `Trace`."""
        trace = Trace()
        tokens = self._features(images, trace)
        trace.finish(tokens, self.host.head(tokens))
        return trace

    def train(self, mode: bool = True) -> Sieved:
        """Training or evaluation mode, of the shared host too; a proposal stays in evaluation mode."""
        super().train(mode)
        return self

    def extra_repr(self) -> str:
        return f'recipe="{self.recipe}"'


class Mask(NamedTuple):
    """Patches, or the pixels of a stage, that were chosen."""

    title: str
    kept: Tensor
    """(B, K) int64, ascending unless the recipe's order says otherwise."""
    grid: tuple[int, int]
    """Of which they were chosen."""


@dataclass
class Trace:
    """What a sieved model did with a batch of images."""

    output: Any = None
    """What the host returns."""
    significance: Tensor | None = None
    """(B, *grid) fp32: the map that ranked the patches; None where the recipe has none."""
    kept: Any = None
    """(B, K) int64: the patches kept before block 0, in token order; None where none were dropped there. On a host with
    stages a list, one entry a stage: the pixels that the stage's last block ran on, None for all."""
    reads: list[Reads] = field(default_factory=list)
    """Tokens, prefix and padding included, that each block's keys, queries and MLP were made of."""
    tokens: Tokens | None = None
    """The last block's tokens after the host's final norm."""

    masks: list[Mask] = field(default_factory=list)
    """What was chosen by ranking: one entry where patches were dropped before block 0, one for each stage on a host
    with stages; what the entries of `kept` are without their grids."""

    def begin(self, tokens: Tokens, significance: Tensor) -> None:
        self.kept, self.significance = tokens.positions, significance.unflatten(1, tokens.grid)
        if tokens.positions is not None:
            self.masks.append(Mask("Kept patches", tokens.positions, (tokens.grid[-2], tokens.grid[-1])))

    def finish(self, tokens: Tokens, output: Any) -> None:
        self.tokens, self.output = tokens, output

    @property
    def tokens_per_block(self) -> list[int]:
        """Tokens, prefix included, that each block's MLP read."""
        return [reads.mlp for reads in self.reads]

    @property
    def source(self) -> Tensor:
        """(B, P) int64: for each patch the last block's token that stands for it, prefix counted; -1 if dropped."""
        assert self.tokens is not None
        assert self.tokens.source is not None
        return self.tokens.source

    def restore(self, features: Tensor | None = None, fill: str = "nearest") -> Tensor:
        """Token features back on the grid of patches.

        Args:
            features: (B, N, C) for all tokens of the last block, or (B, N - prefix, C) without the prefix; by default
                the final features.
            fill: what a dropped patch shows, the `nearest` kept patch or `zero`.

        Returns:
            (B, C, *grid).
        """
        assert self.tokens is not None
        count, source = self.tokens.x.shape[1], self.source
        if count == self.tokens.prefix:
            raise InputError(
                "No patch token is left to restore: in its last block this recipe computes the prefix tokens alone."
            )
        if features is None:
            features = self.tokens.x
        if features.ndim != 3 or features.shape[1] not in (count, count - self.tokens.prefix):
            raise InputError(
                f"restore() takes features of shape (B, {count}, C), or (B, {count - self.tokens.prefix}, C) without "
                f"prefix tokens, not {tuple(features.shape)}."
            )
        if features.shape[1] != count:
            source = torch.where(source < 0, source, source - self.tokens.prefix)
        return restore(features, source, self.tokens.grid, fill)


def _as_host_keys(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Show the host's own keys: `model.` is dropped, and what belongs to the recipe with it."""
    for key in [key for key in state if key.startswith(prefix)]:
        inner = key[len(prefix) :]
        if inner.startswith(OWN):
            del state[key]
        elif inner.startswith("model."):
            state[prefix + inner.removeprefix("model.")] = state.pop(key)


def _from_host_keys(
    module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any, _strict: bool, *_rest: Any
) -> None:
    """Take the host's own keys, and the recipe's from the module itself, so that strict loading holds."""
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + "model." + key[len(prefix) :]] = state.pop(key)
    for own in OWN:
        part = getattr(module, own[:-1])
        if part is not None:
            state.update({f"{prefix}{own}{key}": value for key, value in part.state_dict().items()})
