"""Hosts around another host, that of a part of their model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..data.inputs import InputSpec


class WrappingHost:
    """What such hosts leave to the inner one; the first parent, before `Host` or `StagedHost`."""

    model: Any
    inner: Any
    """The host of the part."""

    @property
    def input_spec(self) -> InputSpec:
        return self.inner.input_spec

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        return (self.model, *self.inner.bypassed)

    @property
    def patch(self) -> Sequence[int] | None:
        return self.inner.patch

    def embed(self, images: Tensor) -> Any:
        return self.inner.embed(images)

    def features(self, x: Any) -> Any:
        return self.inner.features(x)
