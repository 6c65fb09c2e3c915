"""Significance maps: a score for every patch of an image, computed before the host runs."""

from .cam import REDUCTIONS
from .map import patch_significance
from .source import build

__all__ = ["REDUCTIONS", "build", "patch_significance"]
