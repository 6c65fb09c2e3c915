"""What a sieved model costs and what it loses."""

from .accuracy import Accuracy, accuracy, score
from .fidelity import Fidelity, fidelity
from .limit import SlicingLimit
from .macs import macs
from .memory import peak_memory
from .scores import MapScore
from .speed import Speed, speed

__all__ = [
    "Accuracy",
    "Fidelity",
    "MapScore",
    "SlicingLimit",
    "Speed",
    "accuracy",
    "fidelity",
    "macs",
    "peak_memory",
    "score",
    "speed",
]
