"""Losses of segmenters: presence, focal and dice losses for ATM heads, cross-entropy for maps of logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from ..data.segmentation_layouts import VOID
from ..segmentation.atm import AtmPrediction

ABSENT_WEIGHT = 0.1
FOCAL_WEIGHT, DICE_WEIGHT = 20.0, 1.0
ALPHA, GAMMA = 0.25, 2.0
AUXILIARY_WEIGHT = 0.4


def losses(stages: Sequence[Any], labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss over all heads of a segmenter, and the parts of the last head's loss for the log.

    For ATM heads the sum over heads of the parts of `atm_loss`, the focal loss with weight 20 (SegViT, arXiv
    2210.05844, section 3.3); for logits the cross-entropy of the last head plus 0.4 times that of each auxiliary head
    (SETR, arXiv 2012.15840, section 3.2).

    Args:
        stages: the outputs of `Segmenter.stages`, the decode head last.
        labels: (B, H, W) classes, 255 for pixels that are not scored.
    """
    if isinstance(stages[-1], AtmPrediction):
        parts = [atm_loss(stage, labels) for stage in stages]
        weighted = [presence + FOCAL_WEIGHT * focal + DICE_WEIGHT * dice for presence, focal, dice in parts]
        return torch.stack(weighted).sum(), dict(zip(("presence", "focal", "dice"), parts[-1], strict=True))
    stage_losses = [pixel_loss(stage, labels) for stage in stages]
    weights = [AUXILIARY_WEIGHT] * (len(stage_losses) - 1) + [1.0]
    weighted = [weight * loss for weight, loss in zip(weights, stage_losses, strict=True)]
    return torch.stack(weighted).sum(), {"cross_entropy": stage_losses[-1]}


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (B, K, h, w), resized to the labels (B, H, W), averaged over the labelled pixels."""
    logits = F.interpolate(_exact(logits), size=labels.shape[1:], mode="bilinear", align_corners=False)
    count = (labels != VOID).sum().clamp(min=1)
    return F.cross_entropy(logits, labels.long(), ignore_index=VOID, reduction="sum") / count


def atm_loss(prediction: AtmPrediction, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Presence, focal and dice loss of an ATM head, without their weights (arXiv 2210.05844, section 3.3).

    The index of a query is its class. Presence is a cross-entropy, with weight 0.1 for absent classes, over "present"
    and "absent" or, with K + 1 logits, over the query's own class and "none". Masks of the classes present in an image
    are compared with the labels at the labels' size; pixels that are not scored belong to no mask. Focal and dice loss
    are sums over these masks, divided by their number over all devices.

    Args:
        prediction: classes (B, K, C), masks (B, K, h, w).
        labels: (B, H, W) classes, 255 for pixels that are not scored.
    """
    batch, count, choices = prediction.classes.shape
    classes = torch.arange(count, device=labels.device)
    class_map = labels.flatten(1).long()
    flags = torch.zeros(batch, VOID + 1, dtype=torch.bool, device=labels.device).scatter(1, class_map, True)
    present = flags[:, :count]

    object_class, no_object = (torch.zeros_like(classes), 1) if choices == 2 else (classes, count)
    target = torch.where(present, object_class, no_object)
    choice = _exact(prediction.classes).flatten(0, 1)
    weight = torch.ones(choices, device=labels.device, dtype=choice.dtype)
    weight[no_object] = ABSENT_WEIGHT
    presence = F.cross_entropy(choice, target.flatten(), weight)

    image, index = present.nonzero(as_tuple=True)
    masks = _exact(prediction.masks[image, index])
    masks = F.interpolate(masks[:, None], size=labels.shape[1:], mode="bilinear", align_corners=False)[:, 0].flatten(1)
    truth = (class_map[image] == index[:, None]).to(masks.dtype)
    number = _over_devices(len(masks), labels.device)
    focal = sigmoid_focal_loss(masks, truth, alpha=ALPHA, gamma=GAMMA).mean(1).sum() / number
    inside = masks.sigmoid()
    overlap, sums = (inside * truth).sum(1), inside.sum(1) + truth.sum(1)
    dice = (1 - (2 * overlap + 1) / (sums + 1)).sum() / number
    return presence, focal, dice


def _exact(x: Tensor) -> Tensor:
    """`x` in fp32, or in its own type if that is more precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _over_devices(count: int, device: torch.device) -> Tensor:
    """The mean of a count over the devices, at least 1."""
    number = torch.tensor(float(count), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(number)
        number = number / torch.distributed.get_world_size()
    return number.clamp(min=1)
