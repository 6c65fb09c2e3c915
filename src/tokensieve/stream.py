"""The stream: one forward that holds host, significance and methods together."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .errors import DenseOnly, InputError, UnsupportedHost
from .frozen import replace
from .hosts import Host, HostBlock, open_host
from .hosts.checks import check_images, hooked, refuse_hooks
from .methods import Evidence, Method
from .methods.base import Place
from .plan import Act, Plan, Reads, check
from .recipe import Recipe
from .recording import none
from .tokens import Tokens, restore

OWN = ("model", "host", "recipe", "plan", "significance", "parts")
"""Attributes of a sieved model itself; all others are its host's."""
DENSE = ("forward_intermediates", "get_intermediate_layers", "forward_pruned", "get_last_selfattention")
"""What hosts offer that would run the dense model without a word."""
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

    It stands in the host's place: its parameters, buffers and sub-modules are the host's own, under the host's names,
    and so are all attributes but its own. What is done to either is done to both: `fast.half()` converts the host too.
    A proposal and layers of a method's own are no part of them: `fast.significance`, `fast.parts`.
    """

    model: nn.Module
    host: Any
    recipe: Recipe
    plan: Any
    significance: Any
    parts: nn.ModuleDict

    def __init__(self, host: Host, recipe: Recipe) -> None:
        super().__init__()
        self.host, self.recipe = host, recipe
        self.plan = self._planned()
        self.parts, self.significance = nn.ModuleDict(), None
        self._stand_for(host.model)

    def _stand_for(self, model: nn.Module) -> None:
        """Share the registries of the host, so that whoever walks, reads or swaps them finds one model."""
        self.model = model
        for registry in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            object.__setattr__(self, registry, getattr(model, registry))

    @property
    def accepts_loss_kwargs(self) -> bool:
        """What transformers' Trainer asks: whether the host's own loss minds the number of items in a batch."""
        kinds = [parameter.kind for parameter in inspect.signature(self.model.forward).parameters.values()]
        return getattr(self.model, "accepts_loss_kwargs", inspect.Parameter.VAR_KEYWORD in kinds)

    @property
    def training(self) -> bool:
        """Whether the host is in training mode."""
        return self.model.training

    @training.setter
    def training(self, mode: bool) -> None:
        if "model" in self.__dict__:  # not yet when nn.Module sets its first value
            self.model.training = mode

    def __getattr__(self, name: str) -> Any:
        """What the host has, unless it would silently run the dense model."""
        model = self.__dict__.get("model")
        if model is None or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        if name in DENSE and hasattr(model, name):
            raise DenseOnly(
                f"{name}() of a sieved {type(model).__name__} would run the dense model: fast.trace(images).restore() "
                f"gives the last block's tokens on the grid, fast.model.{name}() asks the dense model."
            )
        if name == "forward_head" and not self._head_is_enough():
            raise DenseOnly(
                f"forward_head() of {type(model).__name__} averages tokens, and would not weigh merged ones by what "
                "they stand for: call fast(images), which does."
            )
        return getattr(model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """What is set on a sieved model is set on its host, apart from its own attributes."""
        if name.startswith("_") or name in OWN or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            setattr(self.model, name, value)

    def get_submodule(self, target: str) -> nn.Module:
        """The host's, also where the host itself has a part called `model`."""
        return self.model.get_submodule(target) if target else self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Sieved:
        """Moves and conversions, of the shared host too."""
        for module in (self.model, self.parts, self.significance):
            if module is not None:
                module._apply(fn, recurse)
        return self

    def _replicate_for_data_parallel(self) -> Sieved:
        """A replica stands for a replica of the host, whose parts torch then puts into it."""
        replica = super()._replicate_for_data_parallel()
        replica._stand_for(self.model._replicate_for_data_parallel())
        return replica

    def _now(self) -> Self:
        """The same on the host as it is now, since it may have been changed after it was sieved."""
        if torch.compiler.is_compiling():  # a graph holds the host as it was when it was compiled
            return self
        host: Any = type(self.host)(self.model)
        if host.facts != self.host.facts:
            sharded = any(type(part).__name__.startswith("FSDP") for part in self.model.modules())
            raise UnsupportedHost(
                f"{type(self.model).__name__} has other blocks, tokens or another pooling than when it was sieved: "
                + (
                    "fully_shard() was called on its blocks, which the recipe opens; call it on what sieve() returns."
                    if sharded
                    else "call sieve() again."
                )
            )
        if self.plan.methods:
            refuse_hooks(self.model, host.bypassed)
        now = object.__new__(type(self))
        now.__dict__.update(self.__dict__, host=host)
        if getattr(self, "_is_replica", False):  # of nn.DataParallel, which knows nothing of what is not the host's
            device = _device(self.model)
            now.__dict__.update(parts=copy.deepcopy(self.parts).to(device))
            if self.significance is not None:
                now.__dict__.update(significance=copy.deepcopy(self.significance).to(device))
        return now

    def _head_is_enough(self) -> bool:
        """Whether the host's own head gives the right answer for the surviving tokens alone."""
        return self.host.reads_prefix or not any(method.merges for _, method in self.plan.methods)

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
        grid = self.host.embed(images[:1]).grid
        return partial(self.significance, self.host.covered(images, grid), grid)

    def covered(self, images: Tensor) -> Tensor:
        """What of the images (B, C, H, W) the host's grid covers, which is what a map is made of."""
        return self.host.covered(images, self.host.embed(images[:1]).grid)

    def forward(
        self,
        images: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        **words: Any,
    ) -> Any:
        """(B, C, H, W) -> what the host returns. `pixel_values`, `labels` and other words are for transformers' hosts.

        Where nothing acts and the host has hooks, it is called itself, hooks and all.
        """
        if images is not None:
            check_images(self.model, images)
        named = {"pixel_values": pixel_values, "labels": labels}  # by name, for those who read the signature
        words |= {word: value for word, value in named.items() if value is not None}
        now = self._now()
        if not now.plan.methods and any(map(hooked, now.host.bypassed)):
            return self.model(*(() if images is None else (images,)), **words)
        images, words = now.host.arguments(images, dict(words))
        return now._answer(images, words)

    def _answer(self, images: Tensor, words: dict[str, Any]) -> Any:
        return self.host.head(self._features(images), **words)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the surviving tokens after the final norm, (B, N, d), prefix first."""
        return self._now()._features(images).x

    def _features(self, images: Tensor, trace: Trace | None = None) -> Tokens:
        """Image to what the head reads: the surviving tokens after the final norm."""
        if none(images):
            tokens = self._features(stand_in(images), trace)
            if trace is not None:
                trace.forget()
            return tokens.nothing()
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
            significance = self.significance(self.host.covered(images, tokens.grid), tokens.grid)
            tokens = self._reduce("start", 0, tokens, memories, significance=significance)
            if trace is not None:
                trace.begin(tokens, significance)

        for index, block in enumerate(self.host.blocks):
            tokens = self._reduce("before", index, tokens, memories)
            keys = tokens.x.shape[1]
            opens = tokens.weight is not None or self.plan.opens(index, keys, prod(tokens.grid))
            run = partial(self._opened, index, block, memories) if opens else partial(_whole, block)
            if block.checkpoints and (opens or not block.checkpoints_itself):
                tokens, reads = checkpoint(run, tokens, use_reentrant=False)
            else:
                tokens, reads = run(tokens)
            if trace is not None:
                trace.reads.append(reads)
        return tokens

    def _opened(self, index: int, block: HostBlock, memories: Memories, tokens: Tokens) -> tuple[Tokens, Reads]:
        """A block in which something acts, and how many tokens it read where."""
        if not torch.compiler.is_compiling():
            refuse_hooks(self.model, block.bypassed)
        keys = tokens.x.shape[1]
        tokens, asked, queries = self._attend(index, block, tokens, memories)
        tokens = replace(tokens, x=block.mlp(tokens.x))
        return tokens, Reads(keys, asked, queries, tokens.x.shape[1])

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
        now, trace = self._now(), Trace()
        tokens = now._features(images, trace)
        trace.finish(tokens, now.host.head(tokens))
        return trace

    def train(self, mode: bool = True) -> Sieved:
        """Training or evaluation mode, of the shared host too; a proposal stays in evaluation mode."""
        self.model.train(mode)
        return self

    def extra_repr(self) -> str:
        return f'recipe="{self.recipe}"'


def _whole(block: HostBlock, tokens: Tokens) -> tuple[Tokens, Reads]:
    """A block as it is, and how many tokens it read where."""
    count = tokens.x.shape[1]
    return replace(tokens, x=block(tokens)), Reads(count, count, count, count)


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

    def forget(self) -> None:
        """Leave nothing of the image that stood in for an empty batch but its token counts."""
        self.significance = None if self.significance is None else self.significance[:0]
        kept = self.kept if isinstance(self.kept, list) else [self.kept]
        kept = [None if one is None else one[:0] for one in kept]
        self.kept = kept if isinstance(self.kept, list) else kept[0]
        self.masks = [mask._replace(kept=mask.kept[:0]) for mask in self.masks]

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


def stand_in(images: Tensor) -> Tensor:
    """One blank image in the place of none: blocks of several hosts, and what ranks, fail on an empty batch."""
    return images.new_zeros(1, *images.shape[1:])


def _device(replica: nn.Module) -> torch.device:
    """Where a replica's weights are, which are no parameters there."""
    for module in replica.modules():
        for tensor in getattr(module, "_former_parameters", {}).values():
            return tensor.device
    return torch.device("cpu")
