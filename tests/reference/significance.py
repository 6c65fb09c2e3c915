"""Significance maps written as loops in float64: PaPr's and the class activation maps it is compared with.

Each function takes one obvious path from the formula to the number; speed does not matter here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CUBIC_A = -0.75  # the kernel of PyTorch's bicubic interpolation


def patch_significance(features: Tensor, grid: Sequence[int], align_corners: bool = True) -> Tensor:
    """PaPr's patch significance map: channel mean, resized to the token grid, row-major.

    (B, K, h, w) with a grid (H, W) is resized bicubically to (B, H*W); (B, K, t, h, w) with (T, H, W) trilinearly to
    (B, T*H*W).
    """
    maps = np.asarray(features.detach().cpu().to(torch.float64))
    if maps.ndim not in (4, 5) or len(grid) != maps.ndim - 2:
        raise ValueError(f"features {maps.shape} and grid {tuple(grid)} do not fit")
    taps = _cubic_taps if maps.ndim == 4 else _linear_taps
    axes = [
        [taps(i, size_in, size_out, align_corners) for i in range(size_out)]
        for size_in, size_out in zip(maps.shape[2:], grid, strict=True)
    ]
    rows = []
    for sample in maps:
        mean = sum(sample[k] for k in range(sample.shape[0])) / sample.shape[0]
        values = []
        for cell in itertools.product(*axes):  # last axis fastest: row-major
            value = 0.0
            for corner in itertools.product(*cell):
                weight = math.prod(w for _, w in corner)
                value += weight * mean[tuple(index for index, _ in corner)]
            values.append(value)
        rows.append(values)
    return torch.tensor(rows, dtype=torch.float64)


def _place(i: int, size_in: int, size_out: int, align_corners: bool) -> float:
    """Where output cell i lies among the input cells."""
    if align_corners:
        return i * (size_in - 1) / (size_out - 1) if size_out > 1 else 0.0
    return (i + 0.5) * size_in / size_out - 0.5


def _cubic_taps(i: int, size_in: int, size_out: int, align_corners: bool) -> list[tuple[int, float]]:
    place = _place(i, size_in, size_out, align_corners)
    base = math.floor(place)
    # beyond the border the outermost value repeats
    return [(min(max(base + k, 0), size_in - 1), _cubic(place - (base + k))) for k in (-1, 0, 1, 2)]


def _cubic(distance: float) -> float:
    """Cubic convolution kernel (Keys 1981)."""
    a, t = CUBIC_A, abs(distance)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    if t < 2:
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return 0.0


def _linear_taps(i: int, size_in: int, size_out: int, align_corners: bool) -> list[tuple[int, float]]:
    place = max(_place(i, size_in, size_out, align_corners), 0.0)
    base = min(math.floor(place), size_in - 1)
    rest = place - base
    return [(base, 1 - rest), (min(base + 1, size_in - 1), rest)]


def cam(features: Tensor, weight_row: Tensor) -> Tensor:
    """CAM (Zhou et al. 2016): sum_k w_k F_k for features (K, h, w) and one class's row (K,) of the classifier."""
    f, w = _numpy(features), _numpy(weight_row)
    return _weighted_sum(f, [w[k] for k in range(len(f))], relu=False)


def grad_cam(features: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017): relu(sum_k mean_ij(g_kij) F_k), g the class score's gradient at F."""
    f, g = _numpy(features), _numpy(gradients)
    count = f.shape[1] * f.shape[2]
    return _weighted_sum(f, [sum(g[k].flatten()) / count for k in range(len(f))], relu=True)


def grad_cam_pp(features: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++ (Chattopadhay et al. 2018): relu(sum_k w_k F_k) with w_k = sum_ij alpha_kij relu(g_kij)."""
    f, g = _numpy(features), _numpy(gradients)
    weights = []
    for k in range(len(f)):
        total = sum(f[k].flatten())
        weight = 0.0
        for slope in g[k].flatten():
            denominator = 2 * slope**2 + total * slope**3
            alpha = slope**2 / denominator if denominator != 0 else 0.0
            weight += alpha * max(slope, 0.0)
        weights.append(weight)
    return _weighted_sum(f, weights, relu=True)


def score_cam(features: Tensor, target_scores: Tensor) -> Tensor:
    """Score-CAM (Wang et al. 2020): relu(sum_k softmax_k(s) F_k), s_k the class score of the image masked by F_k."""
    f, s = _numpy(features), _numpy(target_scores)
    powers = [math.exp(value - max(s)) for value in s]
    return _weighted_sum(f, [power / sum(powers) for power in powers], relu=True)


def eigen_cam(features: Tensor) -> Tensor:
    """Eigen-CAM (Muhammad and Yeasin 2020): F (hw x K, not centred) on its first right singular vector.

    A singular vector has no sign of its own: the one is taken that makes the map's sum positive.
    """
    f = _numpy(features)
    channels, h, w = f.shape
    matrix = np.array([[f[k, i, j] for k in range(channels)] for i in range(h) for j in range(w)])
    direction = np.linalg.svd(matrix, full_matrices=False)[2][0]
    projection = [sum(row[k] * direction[k] for k in range(channels)) for row in matrix]
    if sum(projection) < 0:
        projection = [-value for value in projection]
    return torch.tensor(projection, dtype=torch.float64).reshape(h, w)


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().to(torch.float64))


def _weighted_sum(features: np.ndarray, weights: Sequence[float], relu: bool) -> Tensor:
    channels, h, w = features.shape
    out = torch.zeros(h, w, dtype=torch.float64)
    for i in range(h):
        for j in range(w):
            value = sum(weights[k] * features[k, i, j] for k in range(channels))
            out[i, j] = max(value, 0.0) if relu else value
    return out
