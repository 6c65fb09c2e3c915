"""The bundled models that read video: what they are, and where their weights come from."""

from __future__ import annotations

import sys

import pytest
import torch

from tokensieve import InputError, InputSpec, sieve
from tokensieve.measure import macs
from tokensieve.zoo import bundled_weights, create, video_classifier, video_proposal

NAMES = ("nano_video", "nano_video_proposal")


def test_they_are_small() -> None:
    assert sum(bundled_weights(name).stat().st_size for name in NAMES) < 2_000_000
    assert macs(create("nano_video_proposal").model) < 0.08 * macs(create("nano_video").model)


def test_what_they_read() -> None:
    model, mean, std = create("nano_video")
    assert mean == std == (0.5, 0.5, 0.5)
    assert InputSpec.of(model) == InputSpec((8, 3, 64, 64), "TCHW")
    for network in (create("nano_video_proposal").model, video_proposal("nano_video_proposal")):
        assert InputSpec.of(network) == InputSpec((3, 8, 64, 64), "CTHW")


def test_the_proposal_has_its_bundled_weights_by_every_way() -> None:
    clips = torch.randn(1, 3, 8, 64, 64)
    whole = create("nano_video_proposal").model
    with torch.no_grad():
        features = video_proposal("nano_video_proposal")(clips)
        assert features.shape == (1, 48, 4, 8, 8)
        assert torch.equal(features, whole.features(clips))
        assert torch.equal(video_proposal("nano_video_proposal", bundled_weights(NAMES[1]))(clips), features)
        assert torch.equal(video_classifier("nano_video_proposal")(clips), whole(clips))
        assert whole(clips).shape == (1, 80)
        random = video_proposal("nano_video_proposal", pretrained=False)
        assert not torch.equal(random(clips), features)
    with pytest.raises(InputError, match=r"not its own \(features\.\.\.\), but blocks\.0\.conv"):
        video_proposal("nano_video_proposal", {"blocks.0.conv": torch.zeros(1)})


def test_a_recipe_needs_no_file() -> None:
    model, *_ = create("nano_video")
    clips = torch.randn(2, 8, 3, 64, 64)
    fast = sieve(model, "papr(keep=0.4, proposal=nano_video_proposal)")
    trace = fast.trace(clips)
    assert trace.output.logits.shape == (2, 80)
    assert trace.kept.shape == (2, 102)
    expected = video_proposal("nano_video_proposal")(clips.transpose(1, 2)).mean(1)
    torch.testing.assert_close(trace.significance, expected, rtol=1e-4, atol=1e-5)


def test_without_transformers_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"nano_video is a model of transformers.*pip install 'tokensieve\[hf\]'"):
        create("nano_video")
    create("nano_video_proposal")
