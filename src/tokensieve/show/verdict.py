"""Explains a speed measurement in sentences: the result, and the reasons if it is lower than possible."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..measure.attention import lost_attention
from ..measure.decoding import Decoding
from ..measure.load import WIDE
from ..measure.speed import Speed

STARVED = 0.9
"""If the slicing limit is below this share of the MAC ratio, fewer tokens do not save enough time on this machine."""
OVERHEAD = 0.95
"""If the speed is below this share of the slicing limit, the cost of choosing tokens is reported."""
SMALL, LARGE = 8, 64
"""Batch sizes: below the first, small operations matter; from the second on, a larger batch does not help."""
MINOR = 0.025
"""Shares of the dense time up to this are not reported."""
NOTHING = {"tokens": "drops and merges nothing", "pixels": "leaves nothing out"}
CONSTANT = {
    "tokens": "reading the weights, patch embedding",
    "pixels": "reading the weights, convolutions and windows over the whole map",
}
CHOOSING = {
    "tokens": "ranking or matching, gathering or merging, the attention bias of merged tokens",
    "pixels": "ranking, taking them out of the map and putting them back",
}


def verdict(
    speed: Speed,
    *,
    macs_ratio: float,
    dtype: str,
    device: str,
    host_macs_ratio: float | None = None,
    prepacked: bool = False,
    network: bool = True,
    attention: Mapping[str, Collection[str]] | None = None,
    decoded: Decoding | None = None,
    units: str = "tokens",
) -> list[str]:
    """Sentences about a measurement: the result, then the reasons. A spread that includes 1 is never called faster.

    Args:
        speed: the measurement.
        macs_ratio: MACs of the dense model divided by those of the sieved one, proposal included.
        dtype: "fp32", "bf16" or "fp16".
        device: "cpu", "cuda" or "cuda:0".
        host_macs_ratio: the ratio without the proposal, to compare the slicing limit with; by default `macs_ratio`.
        prepacked: whether the weights of both models were packed once, by `tokensieve.prepack`.
        network: whether the significance map is computed by a network.
        attention: attention kernels of the `dense` and the `sieved` model, from `attention_kernels`.
        decoded: the measured speed of decoding the pictures, if any.
        units: `tokens`, or `pixels` on hosts with stages.

    Returns:
        Sentences; the first is the result, the others the reasons.
    """
    slow = [] if decoded is None else decoding_limit(decoded, "the sieved model", speed.batch / speed.seconds["sieved"])
    spread = f"{speed.low:.2f}-{speed.high:.2f}"
    if abs(macs_ratio - 1) < 1e-6 and not speed.proposal_share:
        return [
            f"The recipe {NOTHING[units]}: the dense model was measured against itself, {speed.ratio:.2f}x "
            f"(spread {spread}).",
            *slow,
        ]
    # Use the rounded values that are printed: a spread of 1.00-1.04 includes 1.
    if round(speed.low, 2) > 1:
        result = f"{speed.ratio:.2f}x faster than the dense model (spread {spread}), {_of_limit(speed)}."
    elif round(speed.high, 2) < 1:
        result = (
            f"Slower than the dense model: {speed.ratio:.2f}x its speed (spread {spread}), where slicing alone gives "
            f"{speed.limit:.2f}x."
        )
    else:
        result = (
            f"Not measurably faster than the dense model: {speed.ratio:.2f}x, and the spread {spread} includes 1; "
            f"slicing alone gives {speed.limit:.2f}x."
        )
    reasons = [
        *noise(speed.low, speed.ratio, speed.high),
        *_little_to_gain(macs_ratio, units),
        *_starved(speed, host_macs_ratio or macs_ratio, dtype, device, prepacked, units),
        *(
            kernel_lost(attention["dense"], attention["sieved"], "the dense model", "the sieved one")
            if attention
            else []
        ),
        *_overhead(speed, dtype, device, network, units),
    ]
    if not reasons and round(speed.low, 2) <= 1:
        reasons = ["No single cost stands out: measure for longer, with a larger batch, on a quiet machine."]
    return [result, *reasons, *slow]


def _of_limit(speed: Speed) -> str:
    share = round(100 * speed.of_limit)
    return "all that slicing alone gives" if share >= 100 else f"{share}% of what slicing alone gives"


def _little_to_gain(macs_ratio: float, units: str) -> list[str]:
    if macs_ratio >= 1.1:
        return []
    if macs_ratio <= 1:
        return [f"The recipe saves no MACs: its proposal costs as much as the {units} that it drops."]
    return [f"The recipe saves only {percent(1 - 1 / macs_ratio)} of the MACs: reduce more for a gain worth having."]


def _starved(speed: Speed, macs_ratio: float, dtype: str, device: str, prepacked: bool, units: str) -> list[str]:
    """Reasons if the limit itself is much lower than the MAC ratio, which no method could change."""
    if speed.limit >= STARVED * macs_ratio:
        return []
    gap = f"Fewer {units} alone give {speed.limit:.2f}x where the MACs promise {macs_ratio:.2f}x: "
    batch, larger = f"a batch of {speed.batch}", " Take a larger batch." if speed.batch < LARGE else ""
    if device.startswith("cpu") and dtype == "bf16" and not prepacked:
        return [
            f"{gap}in bf16 on CPUs the weights are re-packed at each call, a constant cost that {batch} does not "
            "amortise. Pack them once with tokensieve.prepack(model), here --prepack, or take a larger batch."
        ]
    if device.startswith("cuda"):
        return [
            f"{gap}{batch} does not fill the GPU, or launching kernels takes longer than running them. "
            "Take a larger batch, or compile the model."
        ]
    return [
        f"{gap}with {batch}, costs that do not shrink with the {units} weigh ({CONSTANT[units]}, "
        f"small matrices).{larger}"
    ]


def _overhead(speed: Speed, dtype: str, device: str, network: bool, units: str) -> list[str]:
    """Reasons for the gap between limit and measurement, with times as shares of the dense time."""
    if speed.of_limit >= OVERHEAD:
        return []
    saved = max(0.0, 1 - 1 / speed.limit)
    lost = 1 / speed.ratio - 1 / speed.limit
    proposal, selection = speed.proposal_share, lost - speed.proposal_share
    parts = [f"fewer {units} save {percent(saved) if saved else 'nothing'}"]
    remedies = []
    if proposal > MINOR and proposal >= min(saved, 0.5 * lost):
        heavy = ", too heavy for this host" if proposal >= saved else ""
        parts.append(f"{_map_name(network)} takes {percent(proposal)}{heavy}")
        lighter = "proposal_dtype=bfloat16" if device.startswith("cpu") and dtype == "bf16" else "a larger host"
        if network:
            remedies.append(f" A lighter proposal, a smaller proposal_size or {lighter} helps.")
    if selection > MINOR and (selection >= 0.5 * lost or 1 / speed.limit < OVERHEAD * (1 / speed.limit + selection)):
        parts.append(f"choosing {units} ({CHOOSING[units]}) takes {percent(selection)}")
        if speed.batch < SMALL:
            remedies.append(" Choosing is many small operations, which take a smaller share with a larger batch.")
    return [f"Of the dense time, {'; '.join(parts)}.{''.join(remedies)}"] if parts[1:] else []


def _map_name(network: bool) -> str:
    return "the proposal" if network else "the significance map"


def kernel_lost(before: Collection[str], after: Collection[str], model: str, model_after: str) -> list[str]:
    """A sentence if attention was fused in the kernels `before`, but not in those `after`."""
    if not lost_attention(before, after):
        return []
    return [
        f"The attention kernel was lost: {model} uses a fused one ({', '.join(before)}), {model_after} computes the "
        "whole attention matrix. If the mask of merged tokens is the reason, tome(proportional=False) has none; else "
        "use another --dtype."
    ]


def noise(low: float, ratio: float, high: float) -> list[str]:
    """A sentence if the spread is so wide that the reasons are uncertain."""
    if (high - low) / ratio <= WIDE:
        return []
    return ["The spread is wide: measure for longer (--seconds), on a quiet machine."]


def decoding_limit(decoded: Decoding, reader: str, rate: float) -> list[str]:
    """A sentence if a model, named `reader`, that reads `rate` images a second is faster than decoding."""
    if rate <= decoded.per_second:
        return []
    count = decoded.workers
    readers = f"{count} worker{'s' if count > 1 else ''}" if count else "one process, in turn with the model,"
    return [
        f"Decoding is the limit: {readers} prepare{'s' if count < 2 else ''} {decoded.per_second:.4g} {decoded.of} a "
        f"second, where {reader} alone reads {rate:.4g}. End to end no recipe gets faster than that: give more "
        f"--workers, or store smaller {decoded.of}."
    ]


def percent(share: float) -> str:
    """A share, 0 to 1, as a percentage with two digits."""
    return f"{100 * share:.1f}%" if share < 0.0995 else f"{100 * share:.0f}%"
