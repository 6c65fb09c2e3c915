"""What a speed measurement means, in sentences: how much faster, and if not more, why."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..measure.attention import lost_attention
from ..measure.decoding import Decoding
from ..measure.load import WIDE
from ..measure.speed import Speed

STARVED = 0.9
"""Slicing below this share of the MAC ratio: the machine does not turn fewer tokens into less time."""
OVERHEAD = 0.95
"""Speed below this share of the slicing limit: choosing tokens costs something that deserves a name."""
SMALL, LARGE = 8, 64
"""Batches: below the first, small operations weigh; from the second on, a larger one is no remedy."""
MINOR = 0.025
"""Shares of the dense time up to this are not worth a remedy."""
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
    """Sentences on what was measured, then why it is not more. A spread that includes 1 is never called faster.

    Args:
        speed: one measurement.
        macs_ratio: MACs of the dense model over those of the sieved one, proposal included.
        dtype: "fp32", "bf16" or "fp16".
        device: "cpu", "cuda" or "cuda:0".
        host_macs_ratio: the same without the proposal, to hold the slicing limit against; by default `macs_ratio`.
        prepacked: whether the weights of both were packed once, by `tokensieve.prepack`.
        network: whether a network makes the significance map, and not a control or a tensor.
        attention: the kernels of the `dense` and the `sieved` model, of `attention_kernels`.
        decoded: how fast the pictures that the models read come, where that was measured.
        units: what the recipe leaves out, `pixels` on hosts with stages.

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
    # Judged as printed: a spread that reads 1.00-1.04 does not exclude 1.
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
    """The limit itself falls short of the arithmetic: nothing that a better method could change."""
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
    """What makes up the gap between limit and measurement; all times as shares of the dense time."""
    if speed.of_limit >= OVERHEAD:
        return []
    saved = max(0.0, 1 - 1 / speed.limit)
    lost = 1 / speed.ratio - 1 / speed.limit
    proposal, selection = speed.proposal_share, lost - speed.proposal_share
    parts = [f"fewer {units} save {percent(saved) if saved else 'nothing'}"]
    remedies = []
    if proposal > MINOR and proposal >= min(saved, 0.5 * lost):
        heavy = ", too heavy for this host" if proposal >= saved else ""
        parts.append(f"{_maker(network)} takes {percent(proposal)}{heavy}")
        lighter = "proposal_dtype=bfloat16" if device.startswith("cpu") and dtype == "bf16" else "a larger host"
        if network:
            remedies.append(f" A lighter proposal, a smaller proposal_size or {lighter} helps.")
    if selection > MINOR and (selection >= 0.5 * lost or 1 / speed.limit < OVERHEAD * (1 / speed.limit + selection)):
        parts.append(f"choosing {units} ({CHOOSING[units]}) takes {percent(selection)}")
        if speed.batch < SMALL:
            remedies.append(" Choosing is many small operations: a larger batch carries them better.")
    return [f"Of the dense time, {'; '.join(parts)}.{''.join(remedies)}"] if parts[1:] else []


def _maker(network: bool) -> str:
    return "the proposal" if network else "the significance map"


def kernel_lost(before: Collection[str], after: Collection[str], whose: str, whose_after: str) -> list[str]:
    """A sentence where attention was fused in what came `before`, and is not `after`."""
    if not lost_attention(before, after):
        return []
    return [
        f"The attention kernel was lost: {whose} runs in a fused one ({', '.join(before)}), {whose_after} writes out "
        "the whole attention matrix. If the mask of merged tokens does it, tome(proportional=False) has none; else "
        "take another --dtype."
    ]


def noise(low: float, ratio: float, high: float) -> list[str]:
    """A spread so wide that the reasons after it are guesses."""
    if (high - low) / ratio <= WIDE:
        return []
    return ["The spread is wide: measure for longer (--seconds), and leave the machine to it."]


def decoding_limit(decoded: Decoding, reader: str, rate: float) -> list[str]:
    """A sentence where a `reader` at `rate` images a second outruns the pictures."""
    if rate <= decoded.per_second:
        return []
    count = decoded.workers
    readers = f"{count} worker{'s' if count > 1 else ''}" if count else "one process, by turns with the model,"
    return [
        f"Decoding is the limit: {readers} prepare{'s' if count < 2 else ''} {decoded.per_second:.4g} {decoded.of} a "
        f"second, where {reader} alone reads {rate:.4g}. End to end no recipe gets faster than that: give more "
        f"--workers, or store smaller {decoded.of}."
    ]


def percent(share: float) -> str:
    """A share of 1 in words, with two digits."""
    return f"{100 * share:.1f}%" if share < 0.0995 else f"{100 * share:.0f}%"
