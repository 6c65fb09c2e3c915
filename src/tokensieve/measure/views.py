"""Averages a model's outputs over several views of a video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..data import average_views
from ..errors import InputError
from .outputs import as_tensor, classifies


class AveragedViews(nn.Module):
    """A clip model applied to videos with several views; the outputs are averaged: (B, views, *clip_shape) -> (B, K).

    For a classifier the output is the logarithm of the mean softmax over the views, so that its softmax is that mean;
    for other models it is the mean embedding over the views.

    Args:
        model: maps clips (N, *clip_shape) to scores (N, K) or embeddings (N, D); dense or sieved.
        views: number of views per video.
        at_once: clips per call of the model.

    Raises:
        InputError: when called with another number of views, or if the model does not return one row per clip.
    """

    def __init__(self, model: nn.Module, views: int, at_once: int = 8) -> None:
        super().__init__()
        self.model, self.views, self.at_once = model, views, at_once

    def forward(self, videos: Tensor) -> Tensor:
        if videos.ndim != 6 or videos.shape[1] != self.views:
            raise InputError(
                f"Videos have shape {tuple(videos.shape)}: expected (batch, {self.views} views, shape of a clip)."
            )
        outputs, classes = [], True
        for clips in videos.flatten(0, 1).split(self.at_once):
            output: Any = self.model(clips)
            classes = classes and classifies(self.model, output)
            outputs.append(as_tensor(output, self.model, len(clips)))
        rows = torch.cat(outputs)
        if rows.ndim != 2:
            raise InputError(
                f"{type(self.model).__name__} returns shape {tuple(rows.shape)}: only scores or embeddings, one row "
                "per clip, can be averaged over views. Use one view."
            )
        if not classes:
            return rows.unflatten(0, (-1, self.views)).mean(1)
        return average_views(rows, self.views).clamp(min=torch.finfo(torch.float32).tiny).log()
