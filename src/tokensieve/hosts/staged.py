"""The contract of a host with stages: maps that shrink from stage to stage, and point-wise operators on them."""

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
    """One block: a spatial operator over the whole map, then an operator that reads each pixel by itself.

    Called whole where all pixels count; else through its verbs. Maps are in the host's own layout outside the verbs,
    and (B, H, W, C) between them.
    """

    pixelwise = True
    """Whether the point-wise operator reads nothing of other pixels."""
    leaves_zeros = False
    """Whether the residual is the unchanged input map, so that zeros stay zeros."""
    residual_module: nn.Module | None = None
    """The submodule that is called with the input map, where that is the residual too."""

    checkpoints = False
    """As of a `HostBlock`; a block here never does it by itself."""

    def __init__(self, block: Any) -> None:
        self.block = block

    @property
    def residual_hooked(self) -> bool:
        """Whether a hook may hold a reference to the input map."""
        parts = () if self.residual_module is None else self.residual_module.modules()
        return any(part._forward_hooks or part._forward_pre_hooks for part in parts)

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        """Modules that are not called once the block is opened."""
        return (self.block,)

    def __call__(self, x: Tensor) -> Tensor:
        """The block as it is."""
        return self.block(x)

    @abstractmethod
    def spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The spatial operator -> the residual, and the input of the point-wise operator; both (B, H, W, C)."""

    @abstractmethod
    def pointwise(self, y: Tensor) -> Tensor:
        """The point-wise operator, with norm, scale and drop path: (B, K, C) -> what is added to the residual."""


@dataclass(frozen=True)
class Stage:
    """Blocks on maps of one size."""

    enter: Callable[[Tensor], Tensor]
    """Downsamples the map of the stage before."""
    blocks: Sequence[PixelBlock]


def checkpointed(stages: list[Stage], switched: Sequence[bool]) -> list[Stage]:
    """The stages, whose blocks know whether gradient checkpointing is switched on in them."""
    for stage, on in zip(stages, switched, strict=True):
        for block in stage.blocks:
            block.checkpoints = on
    return stages


class StagedHost(BaseHost):
    """A model opened into its stages. Holds references to its sub-modules and nothing else.

    Maps of a model that reads video have a time axis in front of the height.
    """

    units = "pixels"
    """What recipes reduce."""
    family: str
    """ConvNeXt, Swin or Swin3D: what methods with weights of their own are made for."""
    stages: Sequence[Stage]
    widths: Sequence[int]
    """Channels of each stage's map."""
    background: Background
    """What the published code of PaPr does with pixels that are left out."""
    sized = False
    """Whether `answer` takes the height and width of the images, as `size`."""
    channels_first: bool
    """Whether a map is (B, C, H, W) in the host's own layout, else (B, H, W, C)."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the map that goes into stage 0."""

    def lay_out(self, x: Tensor) -> Tensor:
        """The same map, so in memory that (B, H, W, C) is a view of it: called where pixels are about to be chosen."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_first else x

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """The layers after the last stage that still give a map."""

    @abstractmethod
    def answer(self, maps: Sequence[Tensor]) -> Any:
        """The map that goes into stage 0, and then those behind each stage -> the host's own output."""

    @property
    def facts(self) -> tuple[Any, ...]:
        """As of a `Host`."""
        return self.family, tuple(self.widths), tuple(len(stage.blocks) for stage in self.stages)

    def size(self, x: Tensor) -> tuple[int, ...]:
        """Height and width of a map, of video its length before them."""
        return tuple(x.shape[2:] if self.channels_first else x.shape[1:-1])

    def arguments(self, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """As of a `Host`; the words go to `answer`."""
        if images is None and "x" in kwargs:
            images = kwargs.pop("x")
        if images is None or kwargs:
            raise InputError(f"{type(self.model).__name__} is called with images (B, 3, H, W) alone.")
        return images, kwargs
