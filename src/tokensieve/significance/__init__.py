"""Where the information is: one number for every patch of an image."""

from .cam import REDUCTIONS
from .map import patch_significance
from .source import build

__all__ = ["REDUCTIONS", "build", "patch_significance"]
