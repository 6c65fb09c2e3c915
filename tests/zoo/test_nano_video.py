"""The project's own models that read video: what they are, and where their weights come from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tokensieve import InputError, InputSpec, PaPr, sieve
from tokensieve.measure import macs
from tokensieve.zoo import bundled_weights, create, video_classifier, video_proposal

NAMES = ("nano_video", "nano_video_proposal")


def random(name: str) -> torch.nn.Module:
    return create(name, pretrained=False).model


def test_they_are_small() -> None:
    models = [random(name) for name in NAMES]
    assert sum(parameter.numel() for model in models for parameter in model.parameters()) < 1_000_000
    assert macs(models[1]) < 0.08 * macs(models[0])


def test_what_they_read() -> None:
    model, mean, std = create("nano_video", pretrained=False)
    assert mean == std == (0.5, 0.5, 0.5)
    assert InputSpec.of(model) == InputSpec((8, 3, 64, 64), "TCHW")
    for network in (random("nano_video_proposal"), video_proposal("nano_video_proposal", pretrained=False)):
        assert InputSpec.of(network) == InputSpec((3, 8, 64, 64), "CTHW")


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_not_in_the_package_are_told(name: str) -> None:
    if bundled_weights(name).is_file():
        assert create(name).model is not None
    else:
        with pytest.raises(InputError, match=f"{name} has no weights in this version: tokensieve train {name} makes"):
            create(name)


def test_the_proposal_takes_its_weights_by_every_way(tmp_path: Path) -> None:
    clips, whole, file = torch.randn(1, 3, 8, 64, 64), random("nano_video_proposal"), tmp_path / "w.safetensors"
    save_file(whole.state_dict(), file)
    with torch.no_grad():
        features = whole.features(clips)
        assert features.shape == (1, 48, 4, 8, 8)
        assert torch.equal(video_proposal("nano_video_proposal", file)(clips), features)
        assert torch.equal(video_classifier("nano_video_proposal", file)(clips), whole(clips))
        assert torch.equal(create("nano_video_proposal", weights=file).model(clips), whole(clips))
        assert whole(clips).shape == (1, 80)
    with pytest.raises(InputError, match=r"names do not begin with features, but blocks\.0\.conv"):
        video_proposal("nano_video_proposal", {"blocks.0.conv": torch.zeros(1)})


def test_it_ranks_the_patches_of_the_host(tmp_path: Path) -> None:
    model, network, file = random("nano_video"), random("nano_video_proposal"), tmp_path / "w.safetensors"
    save_file(network.state_dict(), file)
    clips = torch.randn(2, 8, 3, 64, 64)
    fast = sieve(model, PaPr(keep=0.4, proposal="nano_video_proposal", proposal_weights=str(file)))
    trace = fast.trace(clips)
    assert trace.output.logits.shape == (2, 80)
    assert trace.kept.shape == (2, 102)
    expected = network.features(clips.transpose(1, 2)).mean(1)
    torch.testing.assert_close(trace.significance, expected, rtol=1e-4, atol=1e-5)


def test_without_transformers_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"nano_video is a model of transformers.*pip install 'tokensieve\[hf\]'"):
        create("nano_video", pretrained=False)
    create("nano_video_proposal", pretrained=False)
