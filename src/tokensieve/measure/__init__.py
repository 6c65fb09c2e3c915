"""Measurements of a sieved model: MACs, speed, memory, accuracy, and fidelity to the dense model."""

from .accuracy import Accuracy, accuracy, score
from .cascade_speed import CascadeSpeed, Latency, cascade_speed
from .fidelity import Fidelity, fidelity
from .limit import SlicingLimit
from .macs import macs
from .memory import peak_memory
from .scores import MapScore
from .speed import Speed, speed

__all__ = [
    "Accuracy",
    "CascadeSpeed",
    "Fidelity",
    "Latency",
    "MapScore",
    "SlicingLimit",
    "Speed",
    "accuracy",
    "cascade_speed",
    "fidelity",
    "macs",
    "peak_memory",
    "score",
    "speed",
]
