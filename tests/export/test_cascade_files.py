"""A cascade's members and its rule in files."""

from __future__ import annotations

import json

import pytest
import torch

from tests.cascades.small import HALF, classifier, pictures
from tokensieve import CascadeRecipe, InputError, export_cascade, export_program, sieve
from tokensieve.export import cascade_files

pytestmark = pytest.mark.slow


@torch.no_grad()
def test_files_and_rule_answer_as_the_cascade_does(tmp_path) -> None:
    model = classifier()
    cascade = sieve(model, CascadeRecipe((HALF, "tome(r=2)", ""), (0.4, 1.0), agree=0.9, confidence=0.9))
    written = export_cascade(cascade, tmp_path / "out", format="program", batch=4, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert written.path == tmp_path / "out" / "cascade.json"
    rule = json.loads(written.path.read_text())
    assert rule["members"] == ["member-0.pt2", "member-1.pt2"]  # the one between reads nothing
    assert rule["thresholds"] == [0.4]
    assert rule["recipe"] == json.loads(cascade.recipe.to_json())
    images = pictures(4)
    for name, recipe in zip(rule["members"], (HALF, ""), strict=True):
        run = torch.export.load(tmp_path / "out" / name).module()
        torch.testing.assert_close(run(images), sieve(model, recipe)(images))
    assert written.difference <= 1e-4
    assert [len(written.members), written.bytes > 0] == [2, True]


def test_files_that_answer_otherwise_are_told_of(tmp_path, monkeypatch) -> None:
    cascade = sieve(classifier(), CascadeRecipe((HALF, ""), (0.4,)))
    monkeypatch.setattr(cascade_files, "_runner", lambda *_: lambda images: torch.zeros(len(images), 7))
    with pytest.raises(cascade_files.ExportError, match="differ from PyTorch"):
        export_cascade(cascade, tmp_path / "out", format="program", batch=4, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert not (tmp_path / "out" / "cascade.json").exists()


def test_what_cannot_be_written(tmp_path) -> None:
    model = classifier()
    cascade = sieve(model, CascadeRecipe((HALF, ""), (0.4,)))
    with pytest.raises(InputError, match="export_cascade"):
        export_program(cascade, tmp_path / "one.pt2")
    with pytest.raises(InputError, match="takes a cascade"):
        export_cascade(sieve(model, HALF), tmp_path / "out")
    with pytest.raises(InputError, match="onnx or program"):
        export_cascade(cascade, tmp_path / "out", format="tflite")
    own = sieve(model, CascadeRecipe((HALF, ""), (0.4,), lambda output: output))
    with pytest.raises(InputError, match="use a named score"):
        export_cascade(own, tmp_path / "out")
