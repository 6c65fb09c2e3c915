"""Cascades: cheap readings first, dearer ones where the answer is not sure, under a promise of agreement."""

from .cascade import Cascade, CascadeTrace, Reading
from .certifying import Certified, certify, images_needed, lower_bound
from .scores import sureness
from .watching import DriftWarning, Watch

__all__ = [
    "Cascade",
    "CascadeTrace",
    "Certified",
    "DriftWarning",
    "Reading",
    "Watch",
    "certify",
    "images_needed",
    "lower_bound",
    "sureness",
]
