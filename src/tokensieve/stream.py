"""sieve(): a model that is called as before and reads only the tokens that matter. The forwards are in `forward/`:
`token_stream.py` for hosts whose tokens can be dropped and merged, `stage_stream.py` for hosts with stages."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .errors import DenseOnly, UnsupportedHost
from .forward.intermediates import Wanted
from .forward.stage_stream import StageStream
from .forward.token_stream import TokenStream
from .forward.trace import Mask, Trace
from .forward.walk import Reads
from .hosts import open_host
from .hosts.checks import check_images, hooked, refuse_hooks
from .methods import BaseMethod
from .recipe import Recipe

__all__ = ["Mask", "Sieved", "Stream", "Trace", "sieve"]

Stream = TokenStream | StageStream
STREAMS: dict[str, Any] = {stream.units: stream for stream in (TokenStream, StageStream)}
"""What a host has, tokens or pixels -> the forward of such hosts."""

OWN = ("model", "recipe", "stream")
"""Attributes of a sieved model itself; all others are its host's."""
DENSE = ("get_intermediate_layers", "forward_pruned", "get_last_selfattention")
"""What hosts offer that would run the dense model without a word."""

FILTERED = "forward_with_filtered_kwargs"
"""How transformers' segmenters and depth estimators call their backbone."""


def sieve(
    model: nn.Module,
    recipe: str | os.PathLike[str] | BaseMethod | Recipe = "",
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
    host, recipe = open_host(model), Recipe.of(recipe).with_hashes()
    kind = STREAMS[host.units]
    stream = kind(host, kind.planned(host, recipe), None, nn.ModuleDict())
    config = getattr(model, "pretrained_cfg", None) or {}
    for index, method in stream.plan.methods:
        part = stream.build(method, pretrained)
        if part is not None:
            own = next(model.parameters())
            stream.parts[str(index)] = part.to(own.device, own.dtype).eval().requires_grad_(False)
        if method.needs_significance:
            from .significance import build  # only where a map is needed: building one loads proposal libraries

            kwargs = {**method.map_settings(), "mean": mean or config.get("mean"), "std": std or config.get("std")}
            stream.significance = build(**kwargs, pretrained=pretrained, video=host.layout != "CHW")
    return Sieved(stream, recipe)


class Sieved(nn.Module):
    """A host under a recipe. Keeps nothing between calls, so that threads may share it.

    It stands in the host's place: its parameters, buffers and sub-modules are the host's own, under the host's names,
    and so are all attributes but its own. What is done to either is done to both: `fast.half()` converts the host too.
    A proposal and layers of a method's own are no part of them: `fast.significance`, `fast.parts`.
    """

    model: nn.Module
    recipe: Recipe
    stream: Any

    def __init__(self, stream: Stream, recipe: Recipe) -> None:
        super().__init__()
        self.stream, self.recipe = stream, recipe
        self._stand_for(stream.host.model)

    def _stand_for(self, model: nn.Module) -> None:
        """Share the registries of the host, so that whoever walks, reads or swaps them finds one model."""
        self.model = model
        for registry in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            object.__setattr__(self, registry, getattr(model, registry))

    @property
    def host(self) -> Any:
        """The model, opened."""
        return self.stream.host

    @property
    def plan(self) -> Any:
        """Which method acts where, on how many tokens or pixels."""
        return self.stream.plan

    @property
    def significance(self) -> Any:
        """What makes the significance map, or None."""
        return self.stream.significance

    @property
    def parts(self) -> nn.ModuleDict:
        """Learned layers of the methods' own, by the method's number in the recipe."""
        return self.stream.parts

    @property
    def units(self) -> str:
        """What the recipe reduces: `tokens`, or `pixels` of a host with stages."""
        return self.stream.units

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
        host = self.__dict__["stream"].host
        if name in getattr(host, "rebound", ()):
            return MethodType(getattr(type(model), name), self)
        if (name in DENSE or name in getattr(host, "dense_only", ())) and hasattr(model, name):
            raise DenseOnly(
                f"{name}() of a sieved {type(model).__name__} would run the dense model: fast.forward_intermediates() "
                f"gives features of chosen blocks, fast.model.{name}() asks the dense model."
            )
        if name == "forward_head" and not self._head_is_enough():
            raise DenseOnly(
                f"forward_head() of {type(model).__name__} averages tokens, and would not weigh merged ones by what "
                "they stand for: call fast(images), which does."
            )
        if name == FILTERED and hasattr(model, name):  # bound to the host, it would call that
            return partial(getattr(type(model), name), self)
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

    def _now(self) -> Stream:
        """The stream on the host as it is now, since it may have been changed after it was sieved."""
        stream = self.stream
        if torch.compiler.is_compiling():  # a graph holds the host as it was when it was compiled
            return stream
        host = type(stream.host)(self.model)
        if host.facts != stream.host.facts:
            sharded = any(type(part).__name__.startswith("FSDP") for part in self.model.modules())
            raise UnsupportedHost(
                f"{type(self.model).__name__} has other blocks, tokens or another pooling than when it was sieved: "
                + (
                    "fully_shard() was called on its blocks, which the recipe opens; call it on what sieve() returns."
                    if sharded
                    else "call sieve() again."
                )
            )
        if stream.plan.methods:
            refuse_hooks(self.model, host.bypassed)
        significance, parts = stream.significance, stream.parts
        if getattr(self, "_is_replica", False):  # of nn.DataParallel, which knows nothing of what is not the host's
            device = _device(self.model)
            parts = _replicated(parts, device)
            significance = None if significance is None else copy.deepcopy(significance).to(device)
        return type(stream)(host, stream.plan, significance, parts)

    def _head_is_enough(self) -> bool:
        """Whether the host's own head gives the right answer for the surviving tokens alone."""
        return self.units == "pixels" or self.host.reads_prefix or not self.plan.merges

    def forward(
        self,
        images: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """(B, C, H, W), or clips in the layout that the host reads, -> what the host returns. `pixel_values` (of some
        that read video `pixel_values_videos`), `labels` and other words are for transformers' hosts.

        Where nothing acts and the host has hooks, it is called itself, hooks and all.
        """
        if images is not None:
            check_images(self.model, images, self.host.layout)
        # by name, for those who read the signature
        named = {"pixel_values": pixel_values, "pixel_values_videos": pixel_values_videos, "labels": labels}
        kwargs |= {word: value for word, value in named.items() if value is not None}
        stream = self._now()
        if not stream.plan.methods and any(map(hooked, stream.host.bypassed)):
            return self.model(*(() if images is None else (images,)), **kwargs)
        images, kwargs = stream.host.arguments(images, dict(kwargs))
        return stream(images, **kwargs)

    def forward_features(self, images: Tensor) -> Tensor:
        """What `forward` reads -> the surviving tokens after the final norm, (B, N, d), prefix first; with stages the
        last map, as the host's own `forward_features` gives it."""
        return self._now().features(images)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool | None = None,
        output_dict: bool = False,
        *,
        restore: bool = False,
        fill: str = "nearest",
    ) -> Any:
        """Features of chosen blocks, or maps of chosen stages: arguments and return value are timm's.

        Args:
            x: images (B, C, H, W), or clips.
            indices: the last n blocks or stages, those in a sequence, or all.
            return_prefix_tokens: give each block's features as (features, prefix tokens).
            norm: bring the features through the host's final norm.
            stop_early: leave out the blocks behind the last that is wanted.
            output_fmt: "NCHW", on the grid of patches, or "NLC", a row for each token.
            intermediates_only: leave out the final features; by default they come first, but not with stages.
            output_dict: a dictionary with `image_intermediates`, `image_intermediates_prefix` and `image_features`.
            restore: put dropped and merged patches back on the grid, so that every block has all patches.
            fill: what a dropped patch then shows, the `nearest` kept patch or `zero`.

        Returns:
            (final features, list of features), or what the arguments above make of it.

        Raises:
            InputError: blocks that are not there, or "NCHW" without `restore` where tokens are no grid any more.
        """
        kwargs = {name: value for name, value in locals().items() if name not in ("self", "x")}
        return self._now().intermediates(check_images(self.model, x, self.host.layout), Wanted(**kwargs))

    def trace(self, images: Tensor, *, attention: Sequence[int] = ()) -> Trace:
        """Run on images or clips and tell what happened: see `Trace`; of the blocks `attention` class attention too.

        Raises:
            InputError: blocks that are not there, or a host without a class token or with stages.
            UnsupportedHost: one of these blocks cannot be opened.
        """
        return self._now().trace(images, Trace(looks=tuple(attention)))

    def reads(self, images: Tensor) -> list[Reads]:
        """How many tokens, or pixels, each block reads of these images."""
        return self._now().reads(images)

    def sizes(self, images: Tensor) -> list[tuple[int, ...]]:
        """Height and width, of video also length, of the grid of patches, or of each stage's map."""
        return self.stream.sizes(images)

    def covered(self, images: Tensor) -> Tensor:
        """What of the images the host's grid covers, which is what a significance map is made of: (B, C, H, W), of
        clips in whatever layout (B, C, T, H, W)."""
        return self.stream.covered(images)

    def map_call(self, images: Tensor) -> Callable[[], Any]:
        """A call that does nothing but make the significance map of these images, for whoever counts or times it."""
        return self.stream.map_call(images)

    def train(self, mode: bool = True) -> Sieved:
        """Training or evaluation mode, of the shared host too; a proposal stays in evaluation mode."""
        self.model.train(mode)
        return self

    def extra_repr(self) -> str:
        return f'recipe="{self.recipe}"'


def _replicated(parts: nn.ModuleDict, device: torch.device) -> nn.ModuleDict:
    """A copy on a device whose weights are no parameters, as in the replicas themselves: gradients go to `parts`."""
    replica = copy.deepcopy(parts).to(device)
    for own, copied in zip(parts.modules(), replica.modules(), strict=True):
        for name, parameter in own._parameters.items():
            if parameter is not None and parameter.requires_grad:
                del copied._parameters[name]
                object.__setattr__(copied, name, parameter.to(device))
    return replica


def _device(replica: nn.Module) -> torch.device:
    """Where a replica's weights are, which are no parameters there."""
    for module in replica.modules():
        for tensor in getattr(module, "_former_parameters", {}).values():
            return tensor.device
    return torch.device("cpu")
