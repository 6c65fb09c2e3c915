"""Several views of a video, one answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..data import average_views
from ..errors import InputError
from .outputs import as_tensor, classifies


class AveragedViews(nn.Module):
    """A model of clips on videos of several views, scored by the mean over them: (B, views, *clip_shape) -> (B, K).

    Of a classifier it gives the logarithm of the mean of the views' softmax, so that softmax gives that mean back; of a
    model without one the mean of the views' embeddings.

    Args:
        model: clips (N, *clip_shape) to scores (N, K) or embeddings (N, D), dense or sieved.
        views: of a video.
        at_once: clips that go through the model together.

    Raises:
        InputError: when called, with another number of views, or on a model that returns no row for each clip.
    """

    def __init__(self, model: nn.Module, views: int, at_once: int = 8) -> None:
        super().__init__()
        self.model, self.views, self.at_once = model, views, at_once

    def forward(self, videos: Tensor) -> Tensor:
        if videos.ndim != 6 or videos.shape[1] != self.views:
            raise InputError(
                f"Videos have shape {tuple(videos.shape)}: expected (batch, {self.views} views, sides of a clip)."
            )
        outputs, classes = [], True
        for clips in videos.flatten(0, 1).split(self.at_once):
            output: Any = self.model(clips)
            classes = classes and classifies(self.model, output)
            outputs.append(as_tensor(output, self.model, len(clips)))
        rows = torch.cat(outputs)
        if rows.ndim != 2:
            raise InputError(
                f"{type(self.model).__name__} returns shape {tuple(rows.shape)}: views can be averaged of scores or "
                "embeddings, a row for each clip. Give one view."
            )
        if not classes:
            return rows.unflatten(0, (-1, self.views)).mean(1)
        return average_views(rows, self.views).clamp(min=torch.finfo(torch.float32).tiny).log()
