"""What a job costs, by hand."""

from __future__ import annotations

import pytest

from tokensieve.errors import InputError
from tokensieve.jobs import costs

RECORD = {
    "runs": [
        {"batch": 8, "images_per_second": {"dense": 100.0, "sieved": 150.0}},
        {"batch": 32, "images_per_second": {"dense": 120.0, "sieved": 140.0}},
    ],
    "decoding": None,
}


def test_the_fastest_batch_of_each_counts():
    found = costs(RECORD, price_per_hour=3, images=864_000, machines=2)
    assert found["dense"].images_per_hour == 864_000
    assert (found["dense"].hours, found["dense"].price) == (1, 6)
    assert found["sieved"].hours == pytest.approx(120 / 150)
    assert {cost.limit for cost in found.values()} == {"model"}


def test_decoding_may_be_the_limit():
    found = costs({**RECORD, "decoding": {"per_second": 125.0}}, price_per_hour=1)
    assert (found["dense"].limit, found["sieved"].limit) == ("model", "decoding")
    assert found["sieved"].images_per_hour == 125 * 3600


def test_what_makes_no_sense_is_a_sentence():
    with pytest.raises(InputError, match="no measured batch"):
        costs({"runs": [], "waterfall": [1]}, price_per_hour=1)
    with pytest.raises(InputError, match="machines must be more than 0"):
        costs(RECORD, price_per_hour=1, machines=0)
