"""The bundled segmenter's training: what it writes opens, and its log is that of the weights in the package."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tokensieve.segmentation import open_trained
from tokensieve.train import loop
from tokensieve.train.scene_segmenter import NAME, PLAN, prepare

RESULTS = Path(__file__).parents[2] / "results"


def quiet(*_):
    pass


@pytest.mark.slow
def test_a_short_training_writes_what_opens(tmp_path):
    config, task = prepare(tmp_path, scenes=6, validation_scenes=2, workers=0, say=quiet)
    config = replace(config, batch_size=2, validate_every=3, precision="fp32")
    rows = []
    weights = loop.train(config, task, tmp_path, report=rows.append)
    assert weights == tmp_path / f"{NAME}.safetensors"
    assert rows[-1]["validation_miou"] > 0
    assert {value.dtype for value in load_file(weights).values()} == {torch.float16, torch.int64}
    segmenter, plan = open_trained(weights)
    assert (plan.head, plan.head_args, plan.classes) == (PLAN.head, PLAN.head_args, PLAN.classes)
    assert segmenter.exits == (0, 1, 2, 3, 5)


@pytest.mark.skipif(not (RESULTS / f"{NAME}.csv").is_file(), reason="its training has not come to its end yet")
def test_by_default_it_is_trained_as_its_log_says(tmp_path):
    config, task = prepare(tmp_path, say=quiet)
    with (RESULTS / f"{NAME}.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert config.steps(task.samples) == int(last["step"])
    assert config.steps(task.samples) * config.batch_size == int(last["images"])
    _, built = open_trained(NAME)
    assert replace(built, mean=None, std=None) == PLAN
