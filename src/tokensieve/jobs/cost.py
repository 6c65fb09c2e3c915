"""Computes throughput and price of a job from the record of `tokensieve bench`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, SettingError


@dataclass(frozen=True)
class Cost:
    """The time and price of a job.

    Attributes:
        images_per_hour: throughput of all machines together.
        hours: duration of the job.
        price: price of all machines for these hours, in the currency of `price_per_hour`.
        limit: "model" or "decoding", whichever is slower.
    """

    images_per_hour: float
    hours: float
    price: float
    limit: str


def costs(
    record: Mapping[str, Any], *, price_per_hour: float, images: int = 1_000_000, machines: int = 1
) -> dict[str, Cost]:
    """The cost of a job with the dense and with the sieved model, each at its fastest batch size.

    Args:
        record: the output of `tokensieve bench --json` on the machine of the job; with `--data` it includes decoding,
            which is the limit if it is slower than the model.
        price_per_hour: price of one machine per hour.
        images: number of images of the job.
        machines: number of machines, each as fast as the measured one.

    Raises:
        InputError: the record has no measured run, or a number is not positive.
    """
    for name, value in (("price_per_hour", price_per_hour), ("images", images), ("machines", machines)):
        if not value > 0:
            raise SettingError(name, f"must be more than 0, not {value!r}.")
    runs = record.get("runs") or []
    if not runs:
        raise InputError(
            "The record holds no measured batch: give the output of tokensieve bench --json, without --waterfall."
        )
    decoding = record.get("decoding")
    costs_by_model = {}
    for name in ("dense", "sieved"):
        model_rate: float = max(run["images_per_second"][name] for run in runs)
        decoding_rate: float = decoding["per_second"] if decoding else float("inf")
        images_per_hour = 3600 * machines * min(model_rate, decoding_rate)
        hours = images / images_per_hour
        limit = "decoding" if decoding_rate < model_rate else "model"
        costs_by_model[name] = Cost(images_per_hour, hours, hours * machines * price_per_hour, limit)
    return costs_by_model
