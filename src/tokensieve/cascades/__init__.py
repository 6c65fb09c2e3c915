"""Cascades: a cheap recipe runs first, and costlier ones only for images of low confidence, with a certified agreement
with the dense model."""

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
