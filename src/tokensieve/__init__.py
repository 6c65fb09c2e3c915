"""tokensieve: let a pretrained vision transformer read only the tokens that matter.

The public names, and the folders as `tokensieve.data`, `tokensieve.measure` and so on: all are loaded on first use, so
that `tokensieve --help` answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import about as about
    from . import cascades as cascades
    from . import data as data
    from . import export as export
    from . import forward as forward
    from . import hosts as hosts
    from . import hub as hub
    from . import jobs as jobs
    from . import measure as measure
    from . import methods as methods
    from . import search as search
    from . import segmentation as segmentation
    from . import show as show
    from . import significance as significance
    from . import train as train
    from . import zoo as zoo
    from .cascade_recipe import CascadeRecipe
    from .cascades.cascade import Cascade
    from .data.inputs import InputSpec
    from .errors import ExportError, InputError, RecipeError, SieveError, UnsupportedHost
    from .export import export_cascade, export_onnx, export_program, prepack
    from .hosts import register_host
    from .methods import (
        ATS,
        GTP,
        MCTF,
        RLT,
        Adaptive,
        Corrected,
        DiffRate,
        DToP,
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
    from .model_spec import ModelSpec
    from .recipe import Recipe
    from .search.cascading import cascade
    from .search.correction import correct
    from .search.slimming import slim
    from .search.tuning import tune
    from .significance import patch_significance
    from .stream import Sieved, Trace, sieve
    from .train.heal_task import HealSettings
    from .train.healing import heal

__version__ = "0.1.0"

_MODULE_OF = {
    "ATS": "methods",
    "Adaptive": "methods",
    "Cascade": "cascades.cascade",
    "CascadeRecipe": "cascade_recipe",
    "Corrected": "methods",
    "DToP": "methods",
    "DiffRate": "methods",
    "DynamicCNN": "methods",
    "DynamicSwin": "methods",
    "DynamicViT": "methods",
    "EViT": "methods",
    "ExportError": "errors",
    "GTP": "methods",
    "Guarded": "methods",
    "HealSettings": "train.heal_task",
    "InputError": "errors",
    "InputSpec": "data.inputs",
    "MCTF": "methods",
    "ModelSpec": "model_spec",
    "RLT": "methods",
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
    "cascade": "search.cascading",
    "correct": "search.correction",
    "export_cascade": "export",
    "export_onnx": "export",
    "export_program": "export",
    "heal": "train.healing",
    "patch_significance": "significance",
    "prepack": "export",
    "register_host": "hosts",
    "sieve": "stream",
    "slim": "search.slimming",
    "tune": "search.tuning",
}

_SUBMODULES = {
    "about",
    "cascades",
    "data",
    "export",
    "forward",
    "hosts",
    "hub",
    "jobs",
    "measure",
    "methods",
    "search",
    "segmentation",
    "show",
    "significance",
    "train",
    "zoo",
}

__all__ = [
    "ATS",
    "GTP",
    "MCTF",
    "RLT",
    "Adaptive",
    "Cascade",
    "CascadeRecipe",
    "Corrected",
    "DToP",
    "DiffRate",
    "DynamicCNN",
    "DynamicSwin",
    "DynamicViT",
    "EViT",
    "ExportError",
    "Guarded",
    "HealSettings",
    "InputError",
    "InputSpec",
    "ModelSpec",
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
    "cascade",
    "correct",
    "export_cascade",
    "export_onnx",
    "export_program",
    "heal",
    "measure",
    "patch_significance",
    "prepack",
    "register_host",
    "sieve",
    "slim",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
