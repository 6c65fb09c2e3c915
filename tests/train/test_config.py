"""The settings of a training: what they mean in steps, and what makes no sense."""

from dataclasses import fields, replace

import pytest

from tokensieve.errors import RecipeError
from tokensieve.train.config import TrainConfig


@pytest.mark.parametrize(
    ("epochs", "batch_size", "samples", "steps"),
    [(1, 64, 60_000, 937), (3, 8, 30, 11), (1.6, 8, 30, 6), (0.29, 1, 100, 29), (1, 64, 10, 1)],
)
def test_steps_are_whole_batches_of_all_epochs_together(epochs, batch_size, samples, steps):
    assert TrainConfig(epochs=epochs, batch_size=batch_size).steps(samples) == steps


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochs": 0}, "epochs must be above 0, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"accumulation": 0}, "accumulation must be at least 1"),
        ({"lr": 0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0, not nan"),
        ({"weight_decay": -1}, "weight_decay must be at least 0"),
        ({"layer_decay": 1.5}, r"layer_decay must lie in \(0, 1\], not 1.5"),
        ({"schedule": "cosin"}, "schedule must be one of cosine, poly, constant, not 'cosin'; the nearest is cosine"),
        ({"min_lr": -1}, "min_lr must be at least 0"),
        ({"power": 0}, "power must be above 0"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"clip": 0}, "clip must be above 0"),
        ({"precision": "fp16"}, "precision must be one of auto, fp32, bf16, not 'fp16'"),
        ({"ema": 1}, "ema must lie between 0 and 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"validate_every": 0}, "validate_every must be at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"workers": -1}, "workers must be at least 0"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, sentence):
    with pytest.raises(RecipeError, match=sentence):
        TrainConfig(**settings)


def test_only_what_changes_nothing_of_what_is_learnt_is_left_out_of_the_course():
    config = TrainConfig()
    assert config.course() == replace(config, workers=7, checkpoint_every=3).course()
    assert {each.name for each in fields(config)} - config.course().keys() == {"workers", "checkpoint_every"}
