"""A mixin for hosts whose model wraps another model that has its own host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..data.inputs import InputSpec


class WrappingHost:
    """A mixin that delegates input, embedding and final norm to the inner host; list it before the other base."""

    model: Any
    inner: Any
    """The host of the model inside."""

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
