"""The stream: one forward that holds host, significance and methods together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError, RecipeError, UnsupportedHost
from .hosts import Host, HostBlock, open_host
from .methods import Evidence, Method
from .recipe import Recipe
from .tokens import Tokens, restore


def sieve(
    model: nn.Module,
    recipe: str | Method | Recipe = "",
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool = True,
) -> Sieved:
    """Let a pretrained model read only the tokens that matter.

    Args:
        model: the host. It is opened, not copied, and stays usable beside the result, with which it shares its weights.
        recipe: text such as "papr(keep=0.8) + tome(r=8)", a method, a sum of methods, or a `Recipe`.
        mean, std: the normalisation of the images this model reads, three numbers each; by default what timm's
            `pretrained_cfg` says. A proposal with `proposal_norm="native"` needs to know it.
        pretrained: False gives named proposals random weights where none are named: for measuring cost alone.

    Returns:
        A module that is called like the model and returns what the model returns.

    Raises:
        UnsupportedHost: the model, or a block of it, cannot take this recipe.
        RecipeError: the recipe cannot be read or makes no sense.
        InputError: a proposal's weights cannot be had.
    """
    host, recipe = open_host(model), Recipe.of(recipe)
    _check(host, recipe)
    config = getattr(model, "pretrained_cfg", None) or {}
    fast = Sieved(host, recipe)
    for method in recipe:
        if method.needs_significance and not _idle(method, host):
            from .significance import build  # only where a map is needed: building one loads proposal libraries

            words = {key: value for key, value in method.settings().items() if key not in ("keep", "order")}
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
        self.model = host.model
        self.significance: nn.Module | None = None
        self.training = self.model.training
        self._register_state_dict_hook(_as_host_keys)
        self.register_load_state_dict_pre_hook(_from_host_keys)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> what the host returns."""
        return self.host.head(self.host.features(self._stream(images)))

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the surviving tokens after the final norm, (B, N, d), prefix first."""
        return self.host.features(self._stream(images)).x

    def _stream(self, images: Tensor, trace: Trace | None = None) -> Tokens:
        """Image to tokens, tokens through the blocks. A block in which nothing acts is called whole, as it is."""
        tokens = self.host.embed(images)
        if trace is not None:
            tokens = tokens.tracked()

        for method, left in self._acting("start", 0, tokens.x.shape[1]):
            assert self.significance is not None
            evidence = Evidence(significance=self.significance(images, tokens.grid))
            tokens = method.reduce(tokens, left, evidence)
            if trace is not None:
                trace.begin(tokens, evidence)

        for index, block in enumerate(self.host.blocks):
            acting = self._acting("inside", index, tokens.x.shape[1])
            if not acting and tokens.weight is None:
                tokens = replace(tokens, x=block(tokens))
            else:
                tokens = _attend_and_reduce(block, tokens, acting)
                tokens = replace(tokens, x=block.mlp(tokens.x))
            if trace is not None:
                trace.tokens_per_block.append(tokens.x.shape[1])
        return tokens

    def _acting(self, place: str, block: int, count: int) -> list[tuple[Method, int]]:
        """The methods that act here on `count` tokens, each with the number it leaves, known before any data."""
        acting = []
        for method in self.recipe:
            if method.place == place:
                left = method.left(block, len(self.host.blocks), count, self.host.prefix)
                if left < count:
                    acting.append((method, left))
                    count = left
        return acting

    def plan(self, patches: int) -> list[tuple[int, int]]:
        """For an image of `patches` patches: the tokens, prefix included, that each block's attention and MLP read."""
        count, counts = patches + self.host.prefix, []
        count = min([count, *(left for _, left in self._acting("start", 0, count))])
        for index in range(len(self.host.blocks)):
            attended = count
            count = min([count, *(left for _, left in self._acting("inside", index, count))])
            counts.append((attended, count))
        return counts

    def trace(self, images: Tensor) -> Trace:
        """Run on (B, 3, H, W) and tell what happened: see `Trace`."""
        trace = Trace()
        tokens = self.host.features(self._stream(images, trace))
        trace.finish(tokens, self.host.head(tokens))
        return trace

    def train(self, mode: bool = True) -> Sieved:
        """Training or evaluation mode, of the shared host too; a proposal stays in evaluation mode."""
        super().train(mode)
        return self

    def extra_repr(self) -> str:
        return f'recipe="{self.recipe}"'


def _attend_and_reduce(block: HostBlock, tokens: Tokens, acting: list[tuple[Method, int]]) -> Tokens:
    """A block up to its MLP. A function of its own, so that queries, keys and values are freed before the MLP runs."""
    heads = block.qkv(tokens)
    tokens = replace(tokens, x=block.attention_out(heads.attend(tokens.bias), heads, tokens.x))
    for method, left in acting:
        tokens = method.reduce(tokens, left, Evidence(keys=heads.keys))
    return tokens


@dataclass
class Trace:
    """What a sieved model did with a batch of images."""

    output: Any = None
    """What the host returns."""
    significance: Tensor | None = None
    """(B, *grid) fp32: the map that ranked the patches; None where the recipe has none."""
    kept: Tensor | None = None
    """(B, K) int64: the patches kept before block 0, in token order; None where none were dropped there."""
    tokens_per_block: list[int] = field(default_factory=list)
    """Tokens, prefix included, that each block's MLP read."""
    tokens: Tokens | None = None
    """The last block's tokens after the host's final norm."""

    def begin(self, tokens: Tokens, evidence: Evidence) -> None:
        self.kept = tokens.positions
        if evidence.significance is not None:
            self.significance = evidence.significance.unflatten(1, tokens.grid)

    def finish(self, tokens: Tokens, output: Any) -> None:
        self.tokens, self.output = tokens, output

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


def _idle(method: Method, host: Host) -> bool:
    """Whether a method acts nowhere, whatever the number of tokens (keep=1, r=0)."""
    depth, plenty = len(host.blocks), 10**6 + host.prefix
    return all(method.left(block, depth, plenty, host.prefix) == plenty for block in range(depth))


def _check(host: Host, recipe: Recipe) -> None:
    """Refuse, before anything runs, what would be half applied."""
    name, depth = type(host.model).__name__, len(host.blocks)
    plenty = 10**6 + host.prefix
    if sum(method.place == "start" for method in recipe) > 1:
        raise RecipeError(f'"{recipe}" drops patches before block 0 more than once; keep one of these methods.')
    for method in recipe:
        if method.merges and host.cannot_merge and not _idle(method, host):
            raise UnsupportedHost(f"{name} cannot take {method.name}: {host.cannot_merge}. PaPr works on it.")
    for index, block in enumerate(host.blocks):
        acting = [m for m in recipe if m.place == "inside" and m.left(index, depth, plenty, host.prefix) < plenty]
        if len(acting) > 1:
            raise RecipeError(
                f"{acting[0].name} and {acting[1].name} would both act inside block {index}; "
                "give them different layers, for example layers=0:6 and layers=6:12."
            )
        if acting and block.closed:
            raise UnsupportedHost(
                f"{name} cannot take {acting[0].name}: in block {index}, {block.closed}. "
                "Methods that act before the blocks, such as PaPr, work on it."
            )
        if block.closed and any(m.merges and not _idle(m, host) for m in recipe):
            raise UnsupportedHost(f"{name} cannot take merged tokens: in block {index}, {block.closed}.")


def _as_host_keys(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Show the host's own keys: `model.` is dropped, and what belongs to the significance map with it."""
    for key in [key for key in state if key.startswith(prefix)]:
        inner = key[len(prefix) :]
        if inner.startswith("significance."):
            del state[key]
        elif inner.startswith("model."):
            state[prefix + inner.removeprefix("model.")] = state.pop(key)


def _from_host_keys(
    module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any, _strict: bool, *_rest: Any
) -> None:
    """Take the host's own keys, and the significance map's from the module itself, so that strict loading holds."""
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + "model." + key[len(prefix) :]] = state.pop(key)
    significance = module.significance
    if isinstance(significance, nn.Module):
        state.update({f"{prefix}significance.{key}": value for key, value in significance.state_dict().items()})
