"""sieve() wraps a pretrained model, the host, so that it is called as before but computes only the important tokens.
The forwards are in `forward/`: `token_stream.py` for plain ViTs, `stage_stream.py` for hierarchical models (stages)."""

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

from .cascade_recipe import CascadeRecipe, read_recipe
from .errors import DenseOnly, UnsupportedHost
from .forward.intermediates import FeatureRequest
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
"""`host.units`, "tokens" or "pixels" -> the class that runs the forward of such hosts."""

OWN = ("model", "recipe", "stream")
"""Attributes of a sieved model itself; all others are its host's."""
DENSE = ("get_intermediate_layers", "forward_pruned", "get_last_selfattention")
"""Host methods that would silently run the dense model; on a sieved model they raise `DenseOnly`."""

FILTERED = "forward_with_filtered_kwargs"
"""The method by which transformers' segmentation and depth models call their backbone."""


def sieve(
    model: nn.Module,
    recipe: str | os.PathLike[str] | BaseMethod | Recipe | CascadeRecipe = "",
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool = True,
) -> Sieved:
    """Let a pretrained model read only the tokens that matter.

    Args:
        model: the host. It is wrapped, not copied: it shares its weights with the result and can still be used alone.
        recipe: text such as "papr(keep=0.8) + tome(r=8)", the path of a recipe file such as "best.json", a method, a
            sum of methods, or a `Recipe`; or a cascade of several recipes, text, file or `CascadeRecipe`, see
            `tokensieve.cascade`. Weights of a proposal model (the small network that scores patches, as in
            PaPr) must match the SHA-256 in the recipe; the result's `recipe` records that of the weights loaded.
        mean, std: the normalisation of the images this model reads, three numbers each; by default what timm's
            `pretrained_cfg` says. A proposal with `proposal_norm="native"` needs to know it.
        pretrained: False: proposal models given without a weights file get random weights, to measure cost only.

    Returns:
        A module that is called like the model and returns what the model returns; of a cascade a `Cascade`.

    Raises:
        UnsupportedHost: the model, or a block of it, cannot take this recipe.
        RecipeError: the recipe cannot be read or makes no sense.
        InputError: weights cannot be loaded, or their SHA-256 is not the one in the recipe.
    """
    host, read = open_host(model), read_recipe(recipe).with_hashes()
    if isinstance(read, CascadeRecipe):
        from .cascades.cascade import Cascade

        settings: dict[str, Any] = {"mean": mean, "std": std, "pretrained": pretrained}
        return Cascade([sieve(model, each, **settings) for each in read.recipes], read)
    recipe = read
    stream_class = STREAMS[host.units]
    stream = stream_class(host, stream_class.planned(host, recipe), significance=None, parts=nn.ModuleDict())
    config = getattr(model, "pretrained_cfg", None) or {}
    for index, method in stream.plan.methods:
        learned = stream.build(method, pretrained)
        if learned is not None:
            parameter = next(model.parameters())
            stream.parts[str(index)] = learned.to(parameter.device, parameter.dtype).eval().requires_grad_(False)
        if method.needs_significance:
            from .significance import build  # only where a map is needed: building one loads proposal libraries

            kwargs = {**method.map_settings(), "mean": mean or config.get("mean"), "std": std or config.get("std")}
            stream.significance = build(**kwargs, pretrained=pretrained, video=host.layout != "CHW")
    return Sieved(stream, recipe)


class Sieved(nn.Module):
    """A host with a recipe applied. Stateless between calls, so threads can share it.

    A drop-in replacement, here `fast = sieve(model, ...)`: its parameters, buffers and submodules are the host's, under
    the host's names, as are all attributes but its own. A change to one changes both: `fast.half()` converts the host.
    The proposal model (`fast.significance`) and methods' learned layers (`fast.parts`) are not among its submodules.
    """

    model: nn.Module
    recipe: Recipe
    stream: Any

    def __init__(self, stream: Stream, recipe: Recipe) -> None:
        super().__init__()
        self.stream, self.recipe = stream, recipe
        self._stand_for(stream.host.model)

    def _stand_for(self, model: nn.Module) -> None:
        """Use the host's own parameter, buffer and module dicts, so that a change through either is seen in both."""
        self.model = model
        for registry in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            object.__setattr__(self, registry, getattr(model, registry))

    @property
    def host(self) -> Any:
        """The adapter that gives access to the model's patch embedding, blocks and head."""
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
        """The methods' own learned layers; the key is str(index of the method in the recipe)."""
        return self.stream.parts

    @property
    def units(self) -> str:
        """What the recipe reduces: `tokens`, or `pixels` of a host with stages."""
        return self.stream.units

    @property
    def accepts_loss_kwargs(self) -> bool:
        """For transformers' Trainer: whether the host's forward accepts loss kwargs such as `num_items_in_batch`."""
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
        if name in getattr(host, "rebound", ()):  # must call the sieved forward: bind it to self, not to the host
            return MethodType(getattr(type(model), name), self)
        if (name in DENSE or name in getattr(host, "dense_only", ())) and hasattr(model, name):
            raise DenseOnly(
                f"{name}() of a sieved {type(model).__name__} would run the dense model: fast.forward_intermediates() "
                f"gives features of chosen blocks, fast.model.{name}() runs the dense model."
            )
        if name == "forward_head" and not self._head_is_enough():
            raise DenseOnly(
                f"forward_head() of {type(model).__name__} averages tokens, and would not weight merged tokens by the "
                "number of patches they represent: call fast(images), which does."
            )
        if name == FILTERED and hasattr(model, name):  # bound to the host, it would run the dense forward
            return partial(getattr(type(model), name), self)
        return getattr(model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """What is set on a sieved model is set on its host, apart from its own attributes."""
        if name.startswith("_") or name in OWN or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            setattr(self.model, name, value)

    def get_submodule(self, target: str) -> nn.Module:
        """The host's submodule, even if the host itself has a submodule called `model`."""
        return self.model.get_submodule(target) if target else self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Sieved:
        """`.to()`, `.half()` and the like, applied to the shared host, `parts` and `significance`."""
        for module in (self.model, self.parts, self.significance):
            if module is not None:
                module._apply(fn, recurse)
        return self

    def _replicate_for_data_parallel(self) -> Sieved:
        """The replica shares the dicts of a replica of the host; torch then fills these with the copied modules."""
        replica = super()._replicate_for_data_parallel()
        replica._stand_for(self.model._replicate_for_data_parallel())
        return replica

    def _now(self) -> Stream:
        """The stream rebuilt on the host's current state; raises if its structure changed since sieve()."""
        stream = self.stream
        if torch.compiler.is_compiling():  # a graph holds the host as it was when it was compiled
            return stream
        host = type(stream.host)(self.model)  # `facts`: the blocks, tokens and pooling found in the model
        if host.facts != stream.host.facts:
            sharded = any(type(module).__name__.startswith("FSDP") for module in self.model.modules())
            raise UnsupportedHost(
                f"{type(self.model).__name__} has other blocks, tokens or another pooling than when it was sieved: "
                + (
                    "fully_shard() was called on its blocks, which are run in parts; call it on what sieve() returns."
                    if sharded
                    else "call sieve() again."
                )
            )
        if stream.plan.methods:
            refuse_hooks(self.model, host.bypassed)  # modules whose __call__ is bypassed: their hooks would not run
        significance, parts = stream.significance, stream.parts
        if getattr(self, "_is_replica", False):  # nn.DataParallel copies only the host's modules
            device = _device(self.model)
            parts = _replicated(parts, device)
            significance = None if significance is None else copy.deepcopy(significance).to(device)
        return type(stream)(host, stream.plan, significance, parts)

    def _head_is_enough(self) -> bool:
        """Whether the host's own head is right without token sizes: it reads only the prefix, or nothing is merged."""
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
        # named in the signature: Trainer inspects it
        by_keyword = {"pixel_values": pixel_values, "pixel_values_videos": pixel_values_videos, "labels": labels}
        kwargs |= {name: value for name, value in by_keyword.items() if value is not None}
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
            stop_early: do not run the blocks after the last one in `indices`.
            output_fmt: "NCHW", on the grid of patches, or "NLC", a row for each token.
            intermediates_only: return no final features. None: False, but True for hosts with stages.
            output_dict: a dictionary with `image_intermediates`, `image_intermediates_prefix` and `image_features`.
            restore: put dropped and merged patches back on the grid, so that every block has all patches.
            fill: what a dropped patch then shows, the `nearest` kept patch or `zero`.

        Returns:
            (final features, list of features), or the form that the arguments above select.

        Raises:
            InputError: a block index out of range, or "NCHW" without `restore` where the tokens no longer form a grid.
        """
        kwargs = {name: value for name, value in locals().items() if name not in ("self", "x")}
        return self._now().intermediates(check_images(self.model, x, self.host.layout), FeatureRequest(**kwargs))

    def trace(self, images: Tensor, *, attention: Sequence[int] = ()) -> Trace:
        """Run on images or clips and record what happened: see `Trace`; of the blocks `attention` class attention too.

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
        """A function that only computes the significance map of these images, to count its FLOPs or to time it."""
        return self.stream.map_call(images)

    def train(self, mode: bool = True) -> Sieved:
        """Training or evaluation mode, of the shared host too; a proposal stays in evaluation mode."""
        self.model.train(mode)
        return self

    def extra_repr(self) -> str:
        return f'recipe="{self.recipe}"'


def _replicated(parts: nn.ModuleDict, device: torch.device) -> nn.ModuleDict:
    """Copy `parts` to `device` as DataParallel does: plain tensors as weights, so that gradients reach `parts`."""
    replica = copy.deepcopy(parts).to(device)
    for original, copied in zip(parts.modules(), replica.modules(), strict=True):
        for name, parameter in original._parameters.items():
            if parameter is not None and parameter.requires_grad:
                del copied._parameters[name]
                object.__setattr__(copied, name, parameter.to(device))
    return replica


def _device(replica: nn.Module) -> torch.device:
    """The device of a DataParallel replica, whose weights are plain tensors and so not in `parameters()`."""
    for module in replica.modules():
        for tensor in getattr(module, "_former_parameters", {}).values():
            return tensor.device
    return torch.device("cpu")
