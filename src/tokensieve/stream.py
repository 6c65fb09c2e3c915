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

OWN_ATTRIBUTES = ("model", "recipe", "stream")
"""Attributes of a sieved model itself; all others are its host's."""
DENSE_METHODS = ("get_intermediate_layers", "forward_pruned", "get_last_selfattention")
"""Host methods that would silently run the dense model; on a sieved model they raise `DenseOnly`."""

BACKBONE_CALL = "forward_with_filtered_kwargs"
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
        mean, std: the normalisation of the images this model reads, three numbers each; by default that of timm's
            `pretrained_cfg`. Needed for a proposal with `proposal_norm="native"`.
        pretrained: False: proposal models given without a weights file get random weights, to measure cost only.

    Returns:
        A module that is called like the model and returns what the model returns; for a cascade a `Cascade`.

    Raises:
        UnsupportedHost: the model, or a block of it, cannot take this recipe.
        RecipeError: the recipe cannot be read or makes no sense.
        InputError: weights cannot be loaded, or their SHA-256 is not the one in the recipe.
    """
    host, parsed = open_host(model), read_recipe(recipe).with_hashes()
    if isinstance(parsed, CascadeRecipe):
        from .cascades.cascade import Cascade

        settings: dict[str, Any] = {"mean": mean, "std": std, "pretrained": pretrained}
        return Cascade([sieve(model, single, **settings) for single in parsed.recipes], parsed)
    recipe = parsed
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
    the host's names, and so are nearly all attributes. A change to one changes both: `fast.half()` converts the host.
    The proposal model (`fast.significance`) and methods' learned layers (`fast.parts`) are not among its submodules.
    """

    model: nn.Module
    recipe: Recipe
    stream: Any

    def __init__(self, stream: Stream, recipe: Recipe) -> None:
        super().__init__()
        self.stream, self.recipe = stream, recipe
        self._share_registries(stream.host.model)

    def _share_registries(self, model: nn.Module) -> None:
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
        """Which method acts in which block, and on how many tokens or pixels."""
        return self.stream.plan

    @property
    def significance(self) -> Any:
        """The module that computes the significance map, or None."""
        return self.stream.significance

    @property
    def parts(self) -> nn.ModuleDict:
        """The methods' own learned layers; the key is str(index of the method in the recipe)."""
        return self.stream.parts

    @property
    def units(self) -> str:
        """Unit that the recipe reduces: `tokens`, or `pixels` for a host with stages."""
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
        """The host's attribute; raises `DenseOnly` for those that would silently run the dense model."""
        model = self.__dict__.get("model")
        if model is None or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        host = self.__dict__["stream"].host
        if name in getattr(host, "rebound", ()):  # must call the sieved forward: bind it to self, not to the host
            return MethodType(getattr(type(model), name), self)
        if (name in DENSE_METHODS or name in getattr(host, "dense_only", ())) and hasattr(model, name):
            raise DenseOnly(
                f"{name}() of a sieved {type(model).__name__} would run the dense model: fast.forward_intermediates() "
                f"gives features of chosen blocks, fast.model.{name}() runs the dense model."
            )
        if name == "forward_head" and not self._head_is_enough():
            raise DenseOnly(
                f"forward_head() of {type(model).__name__} averages tokens, and would not weight merged tokens by the "
                "number of patches they represent: call fast(images), which does."
            )
        if name == BACKBONE_CALL and hasattr(model, name):  # bound to the host, it would run the dense forward
            return partial(getattr(type(model), name), self)
        return getattr(model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the attribute on the host, apart from the sieved model's own attributes."""
        if name.startswith("_") or name in OWN_ATTRIBUTES or hasattr(type(self), name):
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
        replica._share_registries(self.model._replicate_for_data_parallel())
        return replica

    def _current_stream(self) -> Stream:
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
        """Run the host on its reduced tokens and return what the host returns.

        Args:
            images: (B, C, H, W), or clips in the layout that the host reads.
            pixel_values, pixel_values_videos, labels: the same input and the labels, by transformers' names for them.
            kwargs: further arguments of the host's forward.

        With an empty recipe and hooks on the host, the host itself is called, so that its hooks run.
        """
        if images is not None:
            check_images(self.model, images, self.host.layout)
        # named in the signature: Trainer inspects it
        by_keyword = {"pixel_values": pixel_values, "pixel_values_videos": pixel_values_videos, "labels": labels}
        kwargs |= {name: value for name, value in by_keyword.items() if value is not None}
        stream = self._current_stream()
        if not stream.plan.methods and any(map(hooked, stream.host.bypassed)):
            return self.model(*(() if images is None else (images,)), **kwargs)
        images, kwargs = stream.host.arguments(images, dict(kwargs))
        return stream(images, **kwargs)

    def forward_features(self, images: Tensor) -> Tensor:
        """The surviving tokens after the final norm, (B, N, d), prefix first; for hosts with stages the last feature
        map, as the host's own `forward_features` returns it. Takes the same images as `forward`."""
        return self._current_stream().features(images)

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
            indices: the last n blocks or stages (int), those listed, or all (None).
            return_prefix_tokens: return each block's features as (features, prefix tokens).
            norm: apply the host's final norm to the features.
            stop_early: do not run the blocks after the last one in `indices`.
            output_fmt: "NCHW", on the grid of patches, or "NLC", a row for each token.
            intermediates_only: return no final features. None: False, but True for hosts with stages.
            output_dict: return a dict with `image_intermediates`, `image_intermediates_prefix` and `image_features`.
            restore: put dropped and merged patches back on the grid, so that every block has all patches.
            fill: value of a dropped patch with `restore`: that of the `nearest` kept patch, or `zero`.

        Returns:
            (final features, list of features), or the form that the arguments above select.

        Raises:
            InputError: a block index out of range, or "NCHW" without `restore` where the tokens no longer form a grid.
        """
        kwargs = {name: value for name, value in locals().items() if name not in ("self", "x")}
        images = check_images(self.model, x, self.host.layout)
        return self._current_stream().intermediates(images, FeatureRequest(**kwargs))

    def trace(self, images: Tensor, *, attention: Sequence[int] = ()) -> Trace:
        """Run on images or clips and record the tokens that each block reads: see `Trace`.

        Args:
            images: as for `forward`.
            attention: indices of blocks whose class-token attention is recorded too.

        Raises:
            InputError: a block index out of range, or a host without a class token or with stages.
            UnsupportedHost: one of these blocks cannot be opened.
        """
        return self._current_stream().trace(images, Trace(looks=tuple(attention)))

    def reads(self, images: Tensor) -> list[Reads]:
        """Number of tokens, or pixels, that each block reads for these images."""
        return self._current_stream().reads(images)

    def sizes(self, images: Tensor) -> list[tuple[int, ...]]:
        """Size of the grid of patches, (h, w) or (t, h, w), or of the feature map of each stage."""
        return self.stream.sizes(images)

    def covered(self, images: Tensor) -> Tensor:
        """The part of the images that the host's grid covers, from which the significance map is computed:
        (B, C, H, W), or (B, C, T, H, W) for clips of any layout."""
        return self.stream.covered(images)

    def map_call(self, images: Tensor) -> Callable[[], Any]:
        """A function that only computes the significance map of these images, to count its FLOPs or to time it."""
        return self.stream.map_call(images)

    def train(self, mode: bool = True) -> Sieved:
        """Set training or evaluation mode, of the shared host too; a proposal model stays in evaluation mode."""
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
