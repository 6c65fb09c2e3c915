"""The base classes of hierarchical hosts: stages with maps that shrink from stage to stage, and their blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..pixels import Background
from .base import BaseHost


class PixelBlock(ABC):
    """One block: a spatial operator over the whole map, then a point-wise operator that computes each pixel alone.

    The block is called as a whole if all pixels are computed, otherwise by `spatial` and `pointwise`. Maps have the
    host's own layout outside the block, and (B, H, W, C) between its two operators.
    """

    pixelwise = True
    """Whether the point-wise operator computes each pixel independently of the others."""
    leaves_zeros = False
    """Whether the residual is the unchanged input map, so that zeros stay zeros."""
    residual_module: nn.Module | None = None
    """The submodule that is called with the input map, if the input map is also the residual."""

    checkpoints = False
    """As `HostBlock.checkpoints`; these blocks never apply gradient checkpointing by themselves."""

    def __init__(self, block: Any) -> None:
        self.block = block

    @property
    def residual_hooked(self) -> bool:
        """Whether `residual_module` has hooks, which could keep a reference to the input map."""
        parts = () if self.residual_module is None else self.residual_module.modules()
        return any(part._forward_hooks or part._forward_pre_hooks for part in parts)

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        """Modules whose own forward is not called when only some pixels are computed."""
        return (self.block,)

    def __call__(self, x: Tensor) -> Tensor:
        """The whole block, by its own forward."""
        return self.block(x)

    @abstractmethod
    def spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The spatial operator: the residual, and the input of the point-wise operator, both (B, H, W, C)."""

    @abstractmethod
    def pointwise(self, y: Tensor) -> Tensor:
        """The point-wise operator, with norm, scale and drop path: (B, K, C) -> (B, K, C) to add to the residual."""


@dataclass(frozen=True)
class Stage:
    """A stage: blocks whose maps have the same size."""

    enter: Callable[[Tensor], Tensor]
    """Downsamples the map of the previous stage."""
    blocks: Sequence[PixelBlock]


def checkpointed(stages: list[Stage], enabled: Sequence[bool]) -> list[Stage]:
    """Set `checkpoints` of all blocks: `enabled` says for each stage whether gradient checkpointing is on."""
    for stage, enabled_in_stage in zip(stages, enabled, strict=True):
        for block in stage.blocks:
            block.checkpoints = enabled_in_stage
    return stages


class StagedHost(BaseHost):
    """A hierarchical model, opened into its stages. It holds only references to submodules.

    In a model that reads video, maps have a time axis before the height.
    """

    units = "pixels"
    """What a recipe reduces on this host."""
    family: str
    """ConvNeXt, Swin or Swin3D: methods with learned weights work on hosts of one family."""
    stages: Sequence[Stage]
    widths: Sequence[int]
    """Channels of each stage's map."""
    background: Background
    """What happens to pixels that PaPr drops, as in PaPr's published code."""
    sized = False
    """Whether `answer` takes the height and width of the images, as `size`."""
    channels_first: bool
    """Whether a map is (B, C, H, W) in the host's own layout, else (B, H, W, C)."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> the input map of stage 0."""

    def lay_out(self, x: Tensor) -> Tensor:
        """The same map in a memory format of which (B, H, W, C) is a view; called before pixels are selected."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_first else x

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """The layers after the last stage that still return a map."""

    @abstractmethod
    def answer(self, maps: Sequence[Tensor]) -> Any:
        """The host's own output for `maps`: the input map of stage 0, then the output map of each stage."""

    @property
    def facts(self) -> tuple[Any, ...]:
        """As `Host.facts`: everything about the host that a plan depends on."""
        return self.family, tuple(self.widths), tuple(len(stage.blocks) for stage in self.stages)

    def size(self, x: Tensor) -> tuple[int, ...]:
        """(height, width) of a map, for video (time, height, width)."""
        return tuple(x.shape[2:] if self.channels_first else x.shape[1:-1])

    def arguments(self, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """As `Host.arguments`; the keyword arguments go to `answer`."""
        if images is None and "x" in kwargs:
            images = kwargs.pop("x")
        if images is None or kwargs:
            raise InputError(f"{type(self.model).__name__} is called with images (B, 3, H, W) alone.")
        return images, kwargs
