"""Images an hour and what they cost, from the record of `tokensieve bench`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, SettingError


@dataclass(frozen=True)
class Cost:
    """The time and price of a job on so many images.

    Attributes:
        images_per_hour: on all machines together.
        hours: from the first image to the last.
        price: of all machines for these hours, in the currency of the price that was given.
        limit: "model" or "decoding", whichever is slower.
    """

    images_per_hour: float
    hours: float
    price: float
    limit: str


def costs(
    record: Mapping[str, Any], *, price_per_hour: float, images: int = 1_000_000, machines: int = 1
) -> dict[str, Cost]:
    """The cost of a job with the dense and with the sieved model, each at its fastest batch.

    Args:
        record: what `tokensieve bench --json` printed on the machine that is meant; with `--data` decoding
            counts, where it is slower than the model.
        price_per_hour: of one machine.
        images: of the job.
        machines: that share it, each as fast as the one that was measured.

    Raises:
        InputError: the record holds no measured run; a number that makes no sense.
    """
    for name, value in (("price_per_hour", price_per_hour), ("images", images), ("machines", machines)):
        if not value > 0:
            raise SettingError(name, f"must be more than 0, not {value!r}.")
    runs = record.get("runs") or []
    if not runs:
        raise InputError(
            "The record holds no measured batch: give what tokensieve bench --json printed, without --waterfall."
        )
    decoding = record.get("decoding")
    figures = {}
    for name in ("dense", "sieved"):
        model: float = max(run["images_per_second"][name] for run in runs)
        decoded: float = decoding["per_second"] if decoding else float("inf")
        each_hour = 3600 * machines * min(model, decoded)
        hours = images / each_hour
        limit = "decoding" if decoded < model else "model"
        figures[name] = Cost(each_hour, hours, hours * machines * price_per_hour, limit)
    return figures
