"""What a sieved model costs and what it loses."""

from .limit import SlicingLimit
from .speed import Speed, speed

__all__ = ["SlicingLimit", "Speed", "speed"]
