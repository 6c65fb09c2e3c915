"""Jobs: run a model on many pictures or videos and write a row for each, on one device, several, or a cluster."""

from .cost import Cost, costs
from .estimate import Estimate, estimate
from .ray_engine import RaySettings
from .running import Result, job_of, run
from .settings import Job, RowSettings, RunSettings
from .sources import SourceSettings

__all__ = [
    "Cost",
    "Estimate",
    "Job",
    "RaySettings",
    "Result",
    "RowSettings",
    "RunSettings",
    "SourceSettings",
    "costs",
    "estimate",
    "job_of",
    "run",
]
