"""Reductions of a feature map to one number per position: the channel mean and class activation maps (CAM), batched.

All have the same interface, `reduce(features, proposal, images, target=None)`: they reduce features (B, K, h, w) to a
map (B, h, w), in float32 or higher precision. `images` (B, 3, H, W) is the tensor that the proposal read. `target` is a
class index, or one per image (B,); by default it is the class predicted by the proposal, so no label is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import RecipeError
from .map import channel_mean

if TYPE_CHECKING:
    from .proposal import Proposal

Target = int | Tensor | None
Reduction = Callable[..., Tensor]

SCORE_CAM_CHUNK = 32
"""Number of masked images that Score-CAM runs at once, which limits its memory for any batch and number of channels."""


def mean(
    features: Tensor, proposal: Proposal | None = None, images: Tensor | None = None, target: Target = None
) -> Tensor:
    """PaPr's map (Mahmud et al., ECCV 2024): the mean over channels, equal to CAM with uniform class weights."""
    del proposal, images, target
    return channel_mean(features)


def cam(features: Tensor, proposal: Proposal, images: Tensor | None = None, target: Target = None) -> Tensor:
    """CAM (Zhou et al., CVPR 2016): sum_k w_k^c F_k, where w^c is the classifier's weight row of class c.

    A norm between pooling and classifier, as in ConvNeXt, is ignored. Raises `RecipeError` if the head is not a single
    linear layer or 1x1 convolution on the K channels.
    """
    del images
    weights = class_weights(proposal)
    if target is None:
        with torch.no_grad():
            target = proposal.logits(features).argmax(1)
    features = _full(features)
    rows = weights.to(features.dtype)[_classes(target, features)]
    return _weighted_sum(features, rows)


def grad_cam(features: Tensor, proposal: Proposal, images: Tensor | None = None, target: Target = None) -> Tensor:
    """Grad-CAM (Selvaraju et al., ICCV 2017): relu(sum_k a_k F_k), where a_k is the mean of dy_c / dF_k over positions.

    y_c is the logit of the target class.
    """
    del images
    gradients = _gradients(features, proposal, target)
    return _weighted_sum(_full(features), gradients.flatten(2).mean(2)).relu()


def grad_cam_pp(features: Tensor, proposal: Proposal, images: Tensor | None = None, target: Target = None) -> Tensor:
    """Grad-CAM++ (Chattopadhay et al., WACV 2018): relu(sum_k w_k F_k), w_k = sum_ij alpha_kij relu(g_kij).

    g = dy_c / dF and alpha_kij = g^2 / (2 g^2 + g^3 sum_ij F_k), 0 where that is not defined.
    """
    del images
    g = _gradients(features, proposal, target).flatten(2)
    features = _full(features)
    # Divided by g^2, whose float32 square may underflow.
    denominator = 2 + features.flatten(2).sum(2, keepdim=True) * g
    defined = (g != 0) & (denominator != 0)
    alpha = torch.where(defined, 1 / torch.where(defined, denominator, 1), 0)
    return _weighted_sum(features, (alpha * g.relu()).sum(2)).relu()


def eigen_cam(
    features: Tensor, proposal: Proposal | None = None, images: Tensor | None = None, target: Target = None
) -> Tensor:
    """Eigen-CAM (Muhammad and Yeasin, IJCNN 2020): the uncentred hw x K matrix times its first right singular vector.

    It needs no class. The sign is chosen so that the sum of the map is at least 0.
    """
    del proposal, images, target
    features = _full(features)
    # The Gram matrix squares the singular values, which needs float64; MPS only has float32.
    matrix = features.flatten(2).mT.to(torch.float32 if features.device.type == "mps" else torch.float64)
    positions, channels = matrix.shape[1:]
    if positions <= channels:
        values, vectors = torch.linalg.eigh(matrix @ matrix.mT)
        projection = vectors[..., -1] * values[:, -1:].clamp(min=0).sqrt()
    else:
        vectors = torch.linalg.eigh(matrix.mT @ matrix).eigenvectors
        projection = (matrix @ vectors[..., -1:])[..., 0]
    projection = torch.where(projection.sum(1, keepdim=True) < 0, -projection, projection)
    return projection.to(features.dtype).unflatten(1, features.shape[2:])


def score_cam(features: Tensor, proposal: Proposal, images: Tensor, target: Target = None) -> Tensor:
    """Score-CAM (Wang et al., CVPR-W 2020): relu(sum_k s_k F_k), where s is the softmax over k of the target's logit
    for the image multiplied by F_k (min-max normalised, resized bilinearly).

    It costs K forwards of the proposal per image. A constant channel masks the whole image.
    """
    if target is None:
        target = proposal.logits(features).argmax(1)
    full = _full(features)
    classes = _classes(target, features)
    low, high = full.flatten(2).amin(2), full.flatten(2).amax(2)
    low, span = low[..., None, None], (high - low)[..., None, None]
    masks = torch.where(span > 0, (full - low) / torch.where(span > 0, span, 1), 0)
    rows = []
    for image, image_masks, label in zip(images, masks, classes, strict=True):
        scores = []
        for chunk in image_masks.split(SCORE_CAM_CHUNK):
            mask = F.interpolate(chunk[:, None], size=image.shape[-2:], mode="bilinear", align_corners=False)
            logits = proposal.logits(proposal(image * mask.to(image.dtype)))
            scores.append(logits.index_select(1, label[None])[:, 0])
        rows.append(torch.cat(scores).to(full.dtype).softmax(0))
    return _weighted_sum(full, torch.stack(rows)).relu()


REDUCTIONS: dict[str, Reduction] = {
    "mean": mean,
    "cam": cam,
    "grad-cam": grad_cam,
    "grad-cam++": grad_cam_pp,
    "eigen-cam": eigen_cam,
    "score-cam": score_cam,
}

CLASS_BASED = ("cam", "grad-cam", "grad-cam++", "score-cam")
"""Names of the reductions that need the proposal's classifier."""


def class_weights(proposal: Proposal) -> Tensor:
    """(classes, K): the weights of the head's linear layer or 1x1 convolution; raises `RecipeError` if it has more."""
    if proposal.head is None:
        raise RecipeError(
            f"The proposal {proposal.name} has no known classifier, which cam needs: use mean or eigen-cam."
        )
    layers = [module for module in proposal.head.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    weights = [layer.weight.flatten(1) for layer in layers if getattr(layer, "kernel_size", (1, 1)) == (1, 1)]
    matrices = [parameter for parameter in proposal.head.parameters() if parameter.ndim > 1]
    if not len(layers) == len(weights) == len(matrices) == 1 or weights[0].shape[1] != proposal.channels:
        raise RecipeError(
            f"After this layer the head of {proposal.name} is more than one linear layer on {proposal.channels} "
            "channels, so cam is not defined: use grad-cam, or the last feature map."
        )
    return weights[0]


def _gradients(features: Tensor, proposal: Proposal, target: Target) -> Tensor:
    """dy_c / dF, in the shape of the features, for all images in one backward pass."""
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        raise RecipeError("Grad-CAM needs gradients, which torch.inference_mode() disables: use torch.no_grad().")
    with torch.enable_grad():
        leaf = features.detach().clone().requires_grad_()
        # A view, because MAC counters that follow modules by autograd hooks fail on a leaf.
        logits = proposal.logits(leaf.view_as(leaf))
        classes = _classes(logits.detach().argmax(1) if target is None else target, features)
        # An image's logits depend only on its own features, so the gradient of the sum is right for each image.
        (gradients,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), leaf)
    return _full(gradients)


def _classes(target: int | Tensor, features: Tensor) -> Tensor:
    """(B,) int64 class indices."""
    classes = torch.as_tensor(target, device=features.device).long()
    return classes.expand(features.shape[0])


def _full(tensor: Tensor) -> Tensor:
    """The tensor in float32 or higher precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _weighted_sum(features: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over channels: (B, K, ...) and (B, K) -> (B, ...)."""
    return torch.einsum("bk...,bk->b...", features, weights)
