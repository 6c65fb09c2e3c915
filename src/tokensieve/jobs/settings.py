"""Settings of a job: its model, its sources, and the rows it writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import RecipeError, nearest
from ..model_spec import ModelSpec
from .sources import SourceSettings

OUTPUTS = ("classes", "embeddings", "features", "maps")
FORMATS = ("parquet", "jsonl")
STORES = {"fp32": "float32", "fp16": "float16"}
"""Value of `store` -> numpy dtype."""
SHARD = {"classes": 1024, "embeddings": 1024, "features": 128, "maps": 128}
"""Output -> number of items in a shard. A shard is in memory until it is written, and is lost if a process is
killed."""


@dataclass(frozen=True)
class RowSettings:
    """Settings that change the rows or their files.

    Attributes:
        output: "classes", the k most likely classes with their probabilities; "embeddings", a vector for each item;
            "features", a vector for each patch, on the grid; "maps", the class of each pixel for segmenters, or its
            depth for depth estimators.
        format: "parquet" or "jsonl".
        k: number of classes for each item.
        pooling: for embeddings, a value of timm's `global_pool` such as "token", "avg" or "max"; None is the model's
            own pooling.
        normalize: divide each embedding by its norm.
        store: dtype in which embeddings, features and depths are stored, "fp32" or "fp16".
        batch: batch size, in pictures or clips.
        shard: number of items in a file of rows, rounded up to whole batches; None is that of `SHARD`.
        classes: a class file whose names are written in addition to the class indices; None uses those of the model.

    Raises:
        RecipeError: invalid settings, or settings that exclude each other.
    """

    output: str = "classes"
    format: str = "parquet"
    k: int = 5
    pooling: str | None = None
    normalize: bool = False
    store: str = "fp32"
    batch: int = 32
    shard: int | None = None
    classes: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (("output", OUTPUTS), ("format", FORMATS), ("store", tuple(STORES))):
            if (value := getattr(self, name)) not in choices:
                raise RecipeError(
                    f"{name} must be one of {', '.join(choices)}, not {value!r}{nearest(value, choices)}."
                )
        for name in ("k", "batch", "shard"):
            value = getattr(self, name)
            if not (name == "shard" and value is None) and (type(value) is not int or value < 1):
                raise RecipeError(f"{name} must be an integer from 1 up, not {value!r}.")
        if self.output != "embeddings" and (self.pooling is not None or self.normalize):
            raise RecipeError(f"pooling and normalize are only for embeddings, but the output is {self.output}.")
        if self.output not in ("classes", "maps") and self.classes is not None:
            raise RecipeError(f"classes is only for the outputs classes and maps, but the output is {self.output}.")

    def items_together(self, views: int) -> int:
        """Number of items in a batch, if each has `views` views."""
        return max(1, self.batch // views)

    def shard_size(self, views: int) -> int:
        """Number of items in a shard: a multiple of the items in a batch, so that batches are full."""
        batch = self.items_together(views)
        return -(-(self.shard or SHARD[self.output]) // batch) * batch


class Job(NamedTuple):
    """A job as plain data, so that it can be sent to other processes."""

    spec: ModelSpec
    sources: tuple[str, ...]
    out: str
    rows: RowSettings = RowSettings()
    reading: SourceSettings = SourceSettings()


@dataclass(frozen=True)
class RunSettings:
    """Settings that change how a job runs, but not its rows.

    Attributes:
        workers: decoding processes for each device; 0 decodes in the process of the model, alternating with it.
        devices: names of devices, with a process for each; () is the spec's device, in this process.
        engine: "local" or "ray".
        max_errors: number of failed items above which the job stops; None for no limit.
        ray: settings of the cluster; see `ray_engine.RaySettings`.
    """

    workers: int = 1
    devices: tuple[str, ...] = ()
    engine: str = "local"
    max_errors: int | None = None
    ray: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.engine not in ("local", "ray"):
            raise RecipeError(f"engine must be local or ray, not {self.engine!r}.")
        if self.engine == "ray" and self.devices:
            raise RecipeError("devices are only for the local engine: on a cluster Ray assigns devices to actors.")
        if self.engine == "local" and self.ray:
            raise RecipeError(f"{next(iter(self.ray))} is a setting of the ray engine: give engine='ray'.")
        if self.workers < 0 or (self.max_errors is not None and self.max_errors < 0):
            raise RecipeError("workers and max_errors must be at least 0.")
