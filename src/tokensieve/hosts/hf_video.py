"""transformers' video encoders VideoMAE and ViViT, alone or in a classifier (V-JEPA 2 is in `hf_vjepa2.py`).

transformers is imported only when a model is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, ClassVar

from torch import Tensor

from ..data.inputs import InputSpec
from ..errors import InputError, UnsupportedHost
from ..tokens import Tokens
from .checks import check_images, plain_patch
from .hf_calls import pair
from .hf_vit import Encoder, HFViT, Wrapper
from .registry import register_host

ENCODERS = {
    "VideoMAEModel": Encoder(prefix=0, pooling="none"),
    "VivitModel": Encoder("layers", pooling="pooler"),
}
WRAPPERS = {
    "VideoMAEForVideoClassification": Wrapper("videomae", reads_prefix=False, mean=True),
    "VivitForVideoClassification": Wrapper("vivit"),
}


@register_host(*(f"transformers.models.{name}" for name in (*ENCODERS, *WRAPPERS)))
class HFVideo(HFViT):
    """A video encoder, alone or in a classifier: it embeds clips (B, T, C, H, W) as tokens on a grid (t, h, w)."""

    layout = "TCHW"
    encoders: ClassVar[Mapping[str, Encoder]] = ENCODERS
    wrappers: ClassVar[Mapping[str, Wrapper]] = WRAPPERS
    kwargs: Sequence[str] = ()

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        if self.wrapper is not None and self.wrapper.mean and model.fc_norm is None:
            raise UnsupportedHost(
                f"{type(model).__name__} classifies by its first patch alone (config.use_mean_pooling=False), which a "
                f"recipe may drop: sieve model.{self.wrapper.encoder}, or build it with use_mean_pooling=True."
            )

    @property
    def input_spec(self) -> InputSpec:
        config = self.encoder.config
        return InputSpec((config.num_frames, config.num_channels, *self._image_size()), self.layout)

    @property
    def patch(self) -> Sequence[int] | None:
        return plain_patch(self.projection)

    @property
    def projection(self) -> Any:
        """The convolution that embeds patches."""
        return self.encoder.embeddings.patch_embeddings.projection

    def embed(self, images: Tensor) -> Tokens:
        self._check_size(check_images(self.model, images, self.layout), False)
        x = self.embedded(images.to(self.projection.weight.dtype))
        sides = (images.shape[1], images.shape[3], images.shape[4])
        grid = tuple(side // patch for side, patch in zip(sides, self.projection.stride, strict=True))
        if x.shape[1] != prod(grid) + self.prefix:
            name = type(self.model).__name__
            raise UnsupportedHost(
                f"{name} embeds {prod(grid)} patches as {x.shape[1]} tokens, so tokens cannot be assigned to patches."
            )
        return Tokens(x, self.prefix, grid)

    def embedded(self, clips: Tensor) -> Tensor:
        """(B, T, C, H, W) -> (B, N, d), prefix first."""
        return self.encoder.embeddings(clips) if self.prefix else self.encoder.embeddings(clips, None)

    def _check_size(self, images: Tensor, interpolates: bool) -> None:
        if interpolates:
            raise InputError(
                f"{type(self.model).__name__} cannot interpolate its positions over time and space once it is sieved: "
                f"give it clips (batch, {', '.join(map(str, self.input_spec))})."
            )
        if images.ndim == 5 and tuple(images.shape[1:]) != self.input_spec.shape:
            raise InputError(
                f"Clips have shape {tuple(images.shape)}; this {type(self.model).__name__} reads "
                f"(batch, {', '.join(map(str, self.input_spec))}): frames, channels, height, width."
            )

    def _image_size(self) -> tuple[int, int]:
        return pair(self.encoder.config.image_size)
