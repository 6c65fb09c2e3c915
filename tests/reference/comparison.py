"""How outputs compare, in slow float64 numpy and plain loops, from the definitions."""

from __future__ import annotations

import math
from itertools import product

import numpy as np


def softmax(scores):
    scores = np.asarray(scores, dtype=np.float64)
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def kl(dense, sieved):
    """Of two rows of scores, in nats."""
    p, q = softmax(dense), softmax(sieved)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def cosine(a, b):
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def pixels(image):
    """(C, H, W) -> the C numbers of each pixel."""
    return [image[:, y, x] for y, x in product(*map(range, image.shape[1:]))]


def of_pixels(measure, dense, sieved):
    """The mean over the pixels of one image."""
    return float(np.mean([measure(a, b) for a, b in zip(pixels(dense), pixels(sieved), strict=True)]))


def same_class(dense, sieved):
    return float(np.argmax(dense) == np.argmax(sieved))


def relative_error(dense, sieved):
    pairs = list(zip(dense.ravel().tolist(), sieved.ravel().tolist(), strict=True))
    return sum(abs(a - b) for a, b in pairs) / sum(abs(a) for a, _ in pairs)


def within(dense, sieved, factor=1.25):
    pairs = zip(dense.ravel().tolist(), sieved.ravel().tolist(), strict=True)
    return float(np.mean([a == b or (a * b > 0 and max(a / b, b / a) < factor) for a, b in pairs]))


def nearest(rows):
    found = []
    for i, row in enumerate(rows):
        others = [(-cosine(row, other), j) for j, other in enumerate(rows) if j != i]
        found.append(min(others)[1])
    return found


def mean_iou(told, truth, classes, ignored):
    """Class maps (N, H, W) of all images -> mean IoU, IoU of each class (None where there is none), pixel accuracy."""
    hits, unions, right, counted = [0] * classes, [0] * classes, 0, 0
    for a, b in zip(told.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if b == ignored or b < 0:
            continue
        counted += 1
        right += a == b
        hits[b] += a == b
        for c in {a, b}:
            unions[c] += 1
    iou = [100 * h / u if u else None for h, u in zip(hits, unions, strict=True)]
    known = [each for each in iou if each is not None]
    return sum(known) / len(known), iou, 100 * right / counted


def depth_errors(depth, truth):
    """One image's maps -> (abs_rel, rmse, percent within a factor of 1.25) over its labelled pixels."""
    pairs = [
        (d, t)
        for d, t in zip(depth.ravel().tolist(), truth.ravel().tolist(), strict=True)
        if t > 0 and math.isfinite(t)
    ]
    relative = np.mean([abs(d - t) / t for d, t in pairs])
    rmse = math.sqrt(np.mean([(d - t) ** 2 for d, t in pairs]))
    right = np.mean([d > 0 and max(d / t, t / d) < 1.25 for d, t in pairs])
    return float(relative), rmse, 100 * float(right)


def bilinear(image, height, width):
    """(C, h, w) -> (C, height, width), pixels' corners aligned."""
    image = np.asarray(image, dtype=np.float64)
    _, h, w = image.shape
    resized = np.zeros((len(image), height, width))
    for y, x in product(range(height), range(width)):
        at_y = min(max((y + 0.5) * h / height - 0.5, 0), h - 1)
        at_x = min(max((x + 0.5) * w / width - 0.5, 0), w - 1)
        y0, x0 = int(at_y), int(at_x)
        y1, x1, b, a = min(y0 + 1, h - 1), min(x0 + 1, w - 1), at_y - y0, at_x - x0
        top = image[:, y0, x0] * (1 - a) + image[:, y0, x1] * a
        low = image[:, y1, x0] * (1 - a) + image[:, y1, x1] * a
        resized[:, y, x] = top * (1 - b) + low * b
    return resized
