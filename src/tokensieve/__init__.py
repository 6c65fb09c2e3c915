"""tokensieve: let a pretrained vision transformer read only the tokens that matter.

The public names, loaded on first use so that `tokensieve --help` answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import measure, segmentation
    from .correction import correct
    from .data.inputs import InputSpec
    from .errors import ExportError, InputError, RecipeError, SieveError, UnsupportedHost
    from .export import export_onnx, export_program
    from .hosts import register_host
    from .methods import (
        ATS,
        GTP,
        MCTF,
        Corrected,
        DiffRate,
        DynamicCNN,
        DynamicSwin,
        DynamicViT,
        EViT,
        Guarded,
        PaPr,
        PatchSlimming,
        PiToMe,
        Readout,
        ToFu,
        ToMe,
    )
    from .packing import prepack
    from .recipe import Recipe
    from .significance import patch_significance
    from .stream import Sieved, Trace, sieve
    from .tuning import tune

__version__ = "0.1.0"

_HOMES = {
    "ATS": "methods",
    "Corrected": "methods",
    "DiffRate": "methods",
    "DynamicCNN": "methods",
    "DynamicSwin": "methods",
    "DynamicViT": "methods",
    "EViT": "methods",
    "ExportError": "errors",
    "GTP": "methods",
    "Guarded": "methods",
    "InputError": "errors",
    "InputSpec": "data.inputs",
    "MCTF": "methods",
    "PaPr": "methods",
    "PatchSlimming": "methods",
    "PiToMe": "methods",
    "Readout": "methods",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "SieveError": "errors",
    "Sieved": "stream",
    "ToFu": "methods",
    "ToMe": "methods",
    "Trace": "stream",
    "UnsupportedHost": "errors",
    "correct": "correction",
    "export_onnx": "export",
    "export_program": "export",
    "patch_significance": "significance",
    "prepack": "packing",
    "register_host": "hosts",
    "sieve": "stream",
    "tune": "tuning",
}

__all__ = [
    "ATS",
    "GTP",
    "MCTF",
    "Corrected",
    "DiffRate",
    "DynamicCNN",
    "DynamicSwin",
    "DynamicViT",
    "EViT",
    "ExportError",
    "Guarded",
    "InputError",
    "InputSpec",
    "PaPr",
    "PatchSlimming",
    "PiToMe",
    "Readout",
    "Recipe",
    "RecipeError",
    "SieveError",
    "Sieved",
    "ToFu",
    "ToMe",
    "Trace",
    "UnsupportedHost",
    "correct",
    "export_onnx",
    "export_program",
    "measure",
    "patch_significance",
    "prepack",
    "register_host",
    "segmentation",
    "sieve",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in ("measure", "segmentation"):
        return importlib.import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
