"""Segmenters whose heads read maps of patches: SETR and the linear head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..tokens import Tokens
from .segmenter import Segmenter, latest_values
from .setr_heads import MlaHead, MlaNeck, UpsamplingHead, on_grid


def patches(tokens: Tokens) -> Tensor:
    """The patch tokens (B, P, D), without class token and registers."""
    return tokens.x[:, tokens.prefix :]


@dataclass(frozen=True)
class LogitPrediction:
    """The output of a 1x1 head for each of N tokens."""

    logits: Tensor
    """(B, K, N)"""

    @property
    def probability(self) -> Tensor:
        """(B, K, N): softmax over the classes."""
        return self.logits.softmax(1)


class Setr(Segmenter):
    """SETR naive or PUP: a head after the last level, and auxiliary heads, for training, after the other levels."""

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        levels: Sequence[int],
        *,
        class_token: bool,
        final_norm: bool,
        channels: int,
        kernel: int,
        convs: int,
        scale: int,
        auxiliary_convs: int,
    ) -> None:
        super().__init__(backbone, num_classes, levels, class_token=class_token, final_norm=final_norm)
        self.decode_head = UpsamplingHead(self.width, num_classes, channels, convs, kernel, scale)
        self.auxiliary_head = nn.ModuleList(
            UpsamplingHead(self.width, num_classes, channels, auxiliary_convs, kernel, 4) for _ in self.levels[:-1]
        )

    @property
    def heads(self) -> list[UpsamplingHead]:
        """One head for each level."""
        return [*self.auxiliary_head, self.decode_head]

    @property
    def exits(self) -> tuple[int, ...]:
        """All levels, if the heads classify each patch separately: in the naive form with one convolution."""
        return self.levels if all(head.kernel == 1 and len(head.convs) == 1 for head in self.heads) else ()

    def predict(self, block: int, tokens: Tensor, real: Tensor | None) -> LogitPrediction:
        head = self.heads[self.levels.index(block)]
        if not self.training:
            return LogitPrediction(head.predict(tokens))
        # The head's BatchNorm statistics must come from patches only, without padding and prefix, as for whole maps.
        is_patch = torch.ones_like(tokens[..., 0], dtype=torch.bool) if real is None else real.clone()
        is_patch[:, : self.prefix] = False
        patch_logits = head.predict(tokens[is_patch][None])[0].transpose(0, 1)
        empty = patch_logits.new_zeros(*is_patch.shape, patch_logits.shape[1])
        logits = empty.masked_scatter(is_patch[..., None], patch_logits)
        return LogitPrediction(logits.transpose(1, 2))

    def assembled(self, stages: Sequence[tuple[LogitPrediction, Tensor, str]], grid: Sequence[int]) -> Tensor:
        """Class logits of the stage after which each patch exited, upsampled as by the head."""
        canvas = latest_values([(prediction.logits, source) for prediction, source, _ in stages])
        return self.decode_head.upsampled(canvas.unflatten(2, tuple(grid)))

    def scores(self, levels: Sequence[Tokens]) -> Tensor:
        return self.decode_head(patches(levels[-1]), levels[-1].grid)

    def supervised(self, levels: Sequence[Tokens]) -> list[Tensor]:
        return [head(patches(tokens), tokens.grid) for head, tokens in zip(self.heads, levels, strict=True)]

    def staged(self, stages: Sequence[tuple[LogitPrediction, Tensor]], grid: Sequence[int]) -> list[Tensor]:
        maps = [(prediction.logits, source) for prediction, source in stages]
        canvases = [latest_values(maps[: index + 1]).unflatten(2, tuple(grid)) for index in range(len(maps))]
        return [head.upsampled(canvas) for head, canvas in zip(self.heads, canvases, strict=True)]


class SetrMla(Segmenter):
    """SETR MLA: the levels are summed from the deepest on; an auxiliary 1x1 convolution, for training, reads each."""

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        levels: Sequence[int],
        *,
        class_token: bool,
        final_norm: bool,
        channels: int,
    ) -> None:
        super().__init__(backbone, num_classes, levels, class_token=class_token, final_norm=final_norm)
        count = len(self.levels)
        self.neck = MlaNeck(self.width, channels, count)
        self.decode_head = MlaHead(channels, num_classes, count)
        self.auxiliary_head = nn.ModuleList(nn.Conv2d(channels, num_classes, 1) for _ in self.levels)

    def scores(self, levels: Sequence[Tokens]) -> Tensor:
        return self.decode_head(self.aggregate(levels))

    def aggregate(self, levels: Sequence[Tokens]) -> list[Tensor]:
        """Maps (B, channels, h, w), the deepest level's first."""
        return self.neck([patches(tokens) for tokens in levels], levels[-1].grid)

    def supervised(self, levels: Sequence[Tokens]) -> list[Tensor]:
        maps = self.aggregate(levels)
        auxiliary = [head(level_map) for head, level_map in zip(self.auxiliary_head, maps, strict=True)]
        return [*auxiliary, self.decode_head(maps)]


class LinearHead(nn.Module):
    """BatchNorm and a 1x1 convolution over the concatenated channels of all levels, as in DINOv2's evaluation
    (Oquab et al., 2023, arXiv 2304.07193, section 7.4)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """Patch tokens (B, P, channels) -> class logits (B, K, h, w)."""
        return self.classifier(self.norm(on_grid(x, grid)))

    def predict(self, x: Tensor) -> Tensor:
        """Any tokens (B, N, channels) -> class logits of each token, (B, K, N)."""
        return self.forward(x, (x.shape[1], 1)).squeeze(3)


class LinearSegmenter(Segmenter):
    """A linear head on one or several levels. `final_norm` is applied to every level, as in DINOv2."""

    def __init__(
        self, backbone: nn.Module, num_classes: int, levels: Sequence[int], *, class_token: bool, final_norm: bool
    ) -> None:
        super().__init__(backbone, num_classes, levels, class_token=class_token, final_norm=final_norm)
        self.decode_head = LinearHead(self.width * len(self.levels), num_classes)

    def level(self, block: int, tokens: Tokens) -> Tokens:
        return self.host.features(tokens) if self.final_norm else tokens

    def scores(self, levels: Sequence[Tokens]) -> Tensor:
        return self.decode_head(torch.cat([patches(tokens) for tokens in levels], dim=2), levels[-1].grid)

    def supervised(self, levels: Sequence[Tokens]) -> list[Tensor]:
        return [self.scores(levels)]
