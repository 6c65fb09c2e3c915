"""Real weights on real photographs: what is loaded is the network that the numbers were published for."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tokensieve.significance import build

pytestmark = pytest.mark.shared

HALF = {"pretrained_cfg_overlay": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
NETWORKS = [
    ("squeezenet1_1", None, (512, 13, 13), 56.8),
    ("mobilenetv2_100", {"pad_type": "same", **HALF}, (1280, 7, 7), 65.6),
]


@pytest.fixture(scope="module")
def photographs(shared):
    """(250, 3, 224, 224) in [0, 1] and their classes (250,)."""
    wnids = json.loads((shared / "data/imagenet_classes.json").read_text())["wnids"]
    files = sorted((shared / "data/imagenet_val_a").glob("*/*.JPEG"))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    labels = torch.tensor([wnids.index(file.parent.name) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, labels


@pytest.mark.parametrize(("name", "args", "shape", "accuracy"), NETWORKS)
def test_accuracy_and_feature_map(shared, photographs, name, args, shape, accuracy):
    pixels, labels = photographs
    host = (0.5, 0.5, 0.5)
    significance = build(
        proposal=name,
        proposal_weights=shared / "weights" / f"{name}.safetensors",
        proposal_args=args,
        mean=host,
        std=host,
    )
    proposal, right = significance.proposal, 0
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (proposal.mean, proposal.std))
    for some, classes in zip(pixels.split(50), labels.split(50), strict=True):
        features = proposal((some - mean) / std)
        assert features.shape[1:] == shape
        right += int((proposal.logits(features).argmax(1) == classes).sum())
        # From the host's normalisation the module finds its way back to the proposal's own.
        maps = significance.maps(some * 2 - 1)
        torch.testing.assert_close(maps, features.mean(1), rtol=1e-3, atol=1e-3 * float(maps.max()))
    assert abs(100 * right / len(labels) - accuracy) <= 1
