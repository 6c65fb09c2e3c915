"""Values for shell completion, listed here because asking the package for them would import torch each time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

METHODS = (
    "adaptive", "ats", "corrected", "diffrate", "dtop", "dynamiccnn", "dynamicswin", "dynamicvit", "evit", "gtp",
    "guarded", "mctf", "papr", "patch_slimming", "pitome", "readout", "rlt", "tofu", "tome",
)  # fmt: skip
MODELS = (
    "nano_convnet", "nano_convnext", "nano_proposal", "nano_segmenter", "nano_video", "nano_video_proposal", "nano_vit",
    "videomae_base", "videomae_base_ssv2", "videomae_huge", "videomae_large", "videomae_small", "vivit_base",
    "vjepa2_giant_ssv2", "vjepa2_large_ssv2",
)  # fmt: skip
"""Names of the package's own models; timm has too many for completion, `tokensieve models PATTERN` lists them."""


def one_of(values: Iterable[str]) -> Callable[[str], list[str]]:
    """A completion function for typer: the values that begin with the typed text."""
    choices = tuple(values)

    def complete(incomplete: str) -> list[str]:
        return [value for value in choices if value.startswith(incomplete)]

    return complete
