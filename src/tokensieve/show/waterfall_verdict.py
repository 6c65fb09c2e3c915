"""Explains the rows of a waterfall in sentences."""

from __future__ import annotations

from .._devices import UNITS, lacks_units
from ..measure.decoding import Decoding
from ..measure.waterfall import Row, Skipped, Waterfall
from .verdict import decoding_limit, kernel_lost, noise, percent, verdict

HEAVY = 0.25
"""A significance map that takes more than this share of a row's time hides the gain of the row."""


def waterfall_verdicts(
    fall: Waterfall,
    *,
    macs_ratio: float,
    host_macs_ratio: float,
    device: str,
    network: bool = True,
    decoded: Decoding | None = None,
    units: str = "tokens",
) -> list[list[str]]:
    """Sentences about each row; empty for a row that is faster than the row before and not limited by decoding.

    Arguments as in `verdict`, which makes the sentences for the recipe's row.
    """
    verdicts: list[list[str]] = []
    before: Row | None = None
    decoding_limited = False
    for row in fall.rows:
        if isinstance(row, Skipped):
            verdicts.append([f"Cannot run here: {row.reason.rstrip('.')}. The next row adds to the last that can."])
            continue
        sentences: list[str] = []
        if before is not None and row.step == "recipe":
            sentences = verdict(
                fall.recipe,
                macs_ratio=macs_ratio,
                host_macs_ratio=host_macs_ratio,
                dtype=row.dtype,
                device=device,
                network=network,
                attention={"dense": before.attention, "sieved": row.attention},
                units=units,
            )
        elif before is not None:
            sentences = _of_step(row, before, device, network)
        if decoded is not None and not decoding_limited:
            slow = decoding_limit(decoded, "this row", row.images_per_second)
            sentences, decoding_limited = [*sentences, *slow], bool(slow)
        verdicts.append(sentences)
        before = row
    return verdicts


def _of_step(row: Row, before: Row, device: str, network: bool) -> list[str]:
    if round(row.gain_low, 2) > 1:
        return []
    compared = "Slower" if round(row.gain_high, 2) < 1 else "Not measurably faster"
    result = f"{compared} than the row before: {row.gain:.2f}x (spread {row.gain_low:.2f}-{row.gain_high:.2f})."
    if row.step == "prepack":
        reasons = [f"Packing is a cost per call, not per image: at a batch of {row.batch} it is already small."]
    elif row.step == "compile":
        reasons = [
            "Nothing left to fuse: matrix products, which the compiler leaves to the same libraries, take nearly all "
            "the time."
        ]
    elif row.step == "batch":
        reasons = [f"A batch of {before.batch} keeps the machine busy already: the time grows with the images."]
    else:
        reasons = _of_precision(row, before, device, network)
    return [result, *noise(row.gain_low, row.gain, row.gain_high), *reasons]


def _of_precision(row: Row, before: Row, device: str, network: bool) -> list[str]:
    if lacks_units(row.dtype, device):
        names = "" if device.startswith("cuda") else f" ({' or '.join(UNITS[row.dtype])})"
        return [f"This processor has no units for {row.dtype}{names} and emulates it: stay in fp32 here."]
    reasons = kernel_lost(before.attention, row.attention, "the row before", "this row")
    if network and row.map_share is not None and row.map_share > HEAVY:
        reasons.append(
            f"The proposal keeps its own precision (proposal_dtype) and takes {percent(row.map_share)} of this row's "
            "time."
        )
    if device.startswith("cpu") and row.dtype == "bf16":
        reasons.append(
            f"In bf16 on CPUs the weights are re-packed at each call, a constant cost that a batch of {row.batch} does "
            "not amortise: pack them once with tokensieve.prepack(model), here --prepack, or take a larger batch."
        )
    if device.startswith("cuda"):
        reasons.append(
            f"A batch of {row.batch} does not fill the GPU: launching kernels takes longer than running them, in any "
            "precision. Take a larger batch, or compile the model."
        )
    return reasons or [f"The libraries of this processor are no faster in {row.dtype}."]
