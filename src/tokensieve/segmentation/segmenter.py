"""A segmenter: the blocks of a plain vision transformer, and heads that read the patches after some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._frozen import replace
from .._recording import dummy_batch, is_empty
from ..data.inputs import check_images
from ..errors import InputError, UnsupportedHost, first_line
from ..forward.walk import Step, walk
from ..hosts import Host, open_host
from ..tokens import Tokens
from .resize import Resize
from .sliding import slide


class Segmenter(nn.Module):
    """A backbone with a head for dense prediction. Called with images, it returns class scores for each pixel.

    The backbone's own sub-modules are called: its final norm only with `final_norm`, and never its classifier or the
    blocks after the last level.

    Args:
        backbone: a model with tokens that `sieve` supports.
        num_classes: K.
        levels: the blocks that heads read, counted from 0; negative numbers count from the last; in rising order.
        class_token: whether the backbone's class token stays; False drops it after the position embedding.
        final_norm: whether the backbone's final norm is applied after its last block.

    Raises:
        UnsupportedHost: the backbone has no tokens, or needs its class token.
        InputError: levels out of range; fewer than one class.
    """

    probabilities = False
    """Whether the scores are independent class probabilities instead of logits."""

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        levels: Sequence[int],
        *,
        class_token: bool = False,
        final_norm: bool = False,
    ) -> None:
        super().__init__()
        host = _opened(backbone)
        if num_classes < 1:
            raise InputError(f"A segmenter needs at least one class, not {num_classes}.")
        self.backbone = backbone
        self._opened = host
        self.num_classes = num_classes
        self.levels = _levels(levels, len(host.blocks))
        self.class_token, self.final_norm = class_token, final_norm
        self.resize = Resize()
        self.pretrained_cfg: dict[str, Any] = dict(getattr(backbone, "pretrained_cfg", None) or {})
        """The normalisation of its images, as in timm's models: the backbone's, unless set otherwise."""
        self.crop: tuple[int, int] | None = None
        """Height and width of the crops that it was trained on; None if they are not known."""
        self.class_names: tuple[str, ...] = ()
        """The names of the classes in order; empty if they are not known."""

    @property
    def host(self) -> Host:
        """The host of the backbone in its current state."""
        if torch.compiler.is_compiling():
            return self._opened
        return type(self._opened)(self.backbone)

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self._opened.width

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches in the blocks."""
        return self._opened.prefix - (self._opened.class_token and not self.class_token)

    def embed(self, images: Tensor, host: Host | None = None) -> Tokens:
        """Everything before block 0: (B, C, H, W) -> tokens, without the class token if it is dropped.

        Images whose size is not a multiple of the patch size are padded with zeros at the right and at the bottom.
        `host` is the backbone's host, if the caller has opened it already.

        Raises:
            InputError: the backbone does not embed images of this size.
        """
        return self._embedded(images, self.host if host is None else host)

    def level(self, block: int, tokens: Tokens) -> Tokens:
        """The input of the head at `block`, from that block's output."""
        last = block == len(self._opened.blocks) - 1
        return self.host.features(tokens) if self.final_norm and last else tokens

    def features(self, images: Tensor) -> list[Tokens]:
        """(B, C, H, W) -> the tokens after each level, as heads read them."""
        levels: list[Tokens] = []

        def collect(step: Step) -> None:
            if step.block in self.levels:
                levels.append(self.level(step.block, step.tokens))

        host = self.host
        walk(host.blocks[: self.levels[-1] + 1], self._embedded(images, host), watch=[collect])
        return levels

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W): class scores."""
        if is_empty(check_images(images)):
            return self(dummy_batch(images))[:0]
        return self.answer(self.features(images), images.shape[2:])

    def answer(self, levels: Sequence[Tokens], size: Sequence[int]) -> Tensor:
        """The tokens after each level, on the whole grid -> the result of `forward` for images of `size` (H, W)."""
        return self.at_size(self.scores(levels), size)

    @property
    def exits(self) -> tuple[int, ...]:
        """The blocks followed by a head that classifies each token separately; none by default."""
        return ()

    def predict(self, block: int, tokens: Tensor, real: Tensor | None) -> Any:
        """The output of the head after a block on any of its tokens (B, N, D): an object with `probability` (B, K, N).

        `real` (B, N) bool is False for padding; None: no padding.
        """
        raise NotImplementedError

    def assembled(self, stages: Sequence[tuple[Any, Tensor, str]], grid: Sequence[int]) -> Tensor:
        """Outputs of successive heads on the tokens that reached them -> maps (B, K, h, w) for `at_size`.

        Each stage is a prediction, (B, P) int64 with the token of each patch (-1 if it exited before), and the setting
        `class_probability` of `dtop`. A patch gets the prediction of the last stage that it reached.
        """
        raise NotImplementedError

    def scores(self, levels: Sequence[Tokens]) -> Tensor:
        """Tokens of each level -> maps (B, K, h, w), which `at_size` resizes to the size of the images."""
        raise NotImplementedError

    def stages(self, images: Tensor) -> list[Any]:
        """(B, C, H, W) -> the predictions on the grid of every head that is supervised in training; the last one gives
        the output of `forward`."""
        return self.supervised(self.features(images))

    def supervised(self, levels: Sequence[Tokens]) -> list[Any]:
        """The tokens after each level, on the whole grid -> the result of `stages`."""
        raise NotImplementedError

    def staged(self, stages: Sequence[tuple[Any, Tensor]], grid: Sequence[int]) -> list[Any]:
        """Outputs of successive heads on the tokens that reached them -> the output of each head on the whole grid.

        As `supervised`, but from predictions and the token of each patch as for `assembled`. A patch that exited before
        a head has its last prediction there, with gradients.
        """
        raise NotImplementedError

    def at_size(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """Maps over all patches -> (B, K, H, W), resized bilinearly, without the padding of the images."""
        height, width = size
        padded = self._padded_size(height, width)
        maps = self.resize(maps, padded)
        return maps if padded == (height, width) else maps[..., :height, :width]

    def slide(
        self,
        images: Tensor,
        crop: int | Sequence[int],
        stride: int | Sequence[int],
        *,
        windows: int = 1,
        flip: bool = False,
    ) -> Tensor:
        """Scores (B, K, H, W) of images of any size, from windows: see `tokensieve.segmentation.slide`."""
        return slide(self, images, crop, stride, windows=windows, flip=flip)

    def _embedded(self, images: Tensor, host: Host) -> Tokens:
        height, width = check_images(images).shape[2:]
        padded_height, padded_width = self._padded_size(height, width)
        padding = (0, padded_width - width, 0, padded_height - height)
        try:
            tokens = host.embed(F.pad(images, padding) if any(padding) else images)
        except AssertionError as error:  # raised by timm for unsupported sizes
            raise InputError(
                f"{type(self.backbone).__name__} does not read images of shape {tuple(images.shape)}: "
                f"{first_line(error)}. Build it for images of that size (img_size=) or of any (dynamic_img_size=True), "
                "or call .slide(images, crop, stride)."
            ) from error
        if self.class_token or not host.class_token:
            return tokens
        reason = host.cannot_drop_prefix
        if tokens.table is not None:
            reason = f"its blocks leave their first {tokens.prefix} tokens out of the rotary embedding"
        if reason is not None:
            raise UnsupportedHost(
                f"{type(self.backbone).__name__} cannot do without its class token: {reason}. Build the segmenter with "
                "class_token=True."
            )
        return replace(tokens, x=tokens.x[:, 1:], prefix=tokens.prefix - 1)

    def _padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The image's size rounded up to whole patches; unchanged if the patch size is not known."""
        patch = self._opened.patch
        if patch is None:
            return height, width
        return -(-height // patch[0]) * patch[0], -(-width // patch[1]) * patch[1]

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, levels={self.levels}, class_token={self.class_token}"


def latest_values(stages: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Values for each patch, (B, K, P), from values of tokens (B, K, N) and the token of each patch, `source` (B, P);
    later stages overwrite earlier ones."""
    canvas: Tensor | None = None
    for values, source in stages:
        has_token = source >= 0
        index = source.clamp(min=0)[:, None].expand(-1, values.shape[1], -1)
        patch_values = values.gather(2, index)
        canvas = patch_values if canvas is None else torch.where(has_token[:, None], patch_values, canvas)
    assert canvas is not None
    return canvas


def quarters(backbone: nn.Module) -> list[int]:
    """Four block indices, evenly spaced up to the last block; fewer if the backbone has fewer blocks."""
    depth = len(_opened(backbone).blocks)
    return sorted({max(0, depth * part // 4 - 1) for part in (1, 2, 3, 4)})


def _opened(backbone: nn.Module) -> Host:
    host = open_host(backbone)
    if not isinstance(host, Host):
        raise UnsupportedHost(
            f"{type(backbone).__name__} cannot be the backbone of a segmenter: it has stages, and the heads read the "
            "tokens of a plain vision transformer."
        )
    return host


def _levels(levels: Sequence[int], depth: int) -> tuple[int, ...]:
    """Check block indices; returns them counted from 0."""
    if isinstance(levels, int) or not levels or not all(type(level) is int for level in levels):
        raise InputError(f"levels must be block indices, such as (5, 7, 11), not {levels!r}.")
    positive = tuple(level + depth if level < 0 else level for level in levels)
    if not all(0 <= level < depth for level in positive) or list(positive) != sorted(set(positive)):
        raise InputError(
            f"levels={tuple(levels)} must be indices of {depth} blocks, 0 to {depth - 1} or -{depth} to -1, in rising "
            "order, each once."
        )
    return positive
