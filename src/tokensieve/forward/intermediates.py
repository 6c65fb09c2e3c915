"""Features of chosen blocks, as in timm's `forward_intermediates`, also if tokens were dropped or merged."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from timm.models._features import feature_take_indices
from torch import Tensor

from ..errors import InputError
from ..hosts import Host
from ..tokens import Tokens
from .walk import Step

FORMATS = ("NCHW", "NLC")


@dataclass(frozen=True)
class FeatureRequest:
    """The arguments of `forward_intermediates`: timm's, and `restore` and `fill`."""

    indices: int | list[int] | tuple[int, ...] | None = None
    return_prefix_tokens: bool = False
    norm: bool = False
    stop_early: bool = False
    output_fmt: str = "NCHW"
    intermediates_only: bool | None = None
    output_dict: bool = False
    restore: bool = False
    fill: str = "nearest"

    def take_indices(self, count: int) -> tuple[list[int], int]:
        """The requested indices among `count` blocks or stages, and the largest of them.

        Raises:
            InputError: an index out of range.
        """
        try:
            indices = list(self.indices) if isinstance(self.indices, (list, tuple)) else self.indices
            taken, last = feature_take_indices(count, indices)
        except AssertionError:
            raise InputError(f"indices={self.indices} must be of {count} blocks or stages, 0 to {count - 1}.") from None
        return list(taken), last

    def check(self, formats: tuple[str, ...] = FORMATS) -> None:
        """Raise `InputError` for an unsupported output format."""
        if self.output_fmt not in formats:
            raise InputError(f"output_fmt must be {' or '.join(formats)}, not {self.output_fmt!r}.")


class Intermediates:
    """Collects the tokens of the requested blocks during a forward."""

    def __init__(self, host: Host, request: FeatureRequest) -> None:
        request.check()
        self.host, self.request = host, request
        self.indices, last = request.take_indices(len(host.blocks))
        self.blocks = last + 1 if request.stop_early else len(host.blocks)
        self.collected: list[tuple[int, Tokens]] = []

    def see(self, step: Step) -> None:
        """Callback for `walk`."""
        if step.block in self.indices:
            tokens = self.host.features(step.tokens) if self.request.norm else step.tokens
            self.collected.append((step.block, tokens))

    def answer(self, tokens: Tokens, batch: int) -> Any:
        """The return value, as timm's: `tokens` are the last block's after the final norm, of `batch` images."""
        request, prefix = self.request, [x.x[:batch, : x.prefix] for _, x in self.collected]
        features = [self._formatted(block, x)[:batch] for block, x in self.collected]
        split = request.return_prefix_tokens and tokens.prefix > 0
        if request.output_dict:
            result: dict[str, Any] = {"image_intermediates": features}
            result |= {"image_intermediates_prefix": prefix} if split else {}
            return result if request.intermediates_only else result | {"image_features": tokens.x}
        intermediates: list[Any] = list(zip(features, prefix, strict=True)) if split else features
        return intermediates if request.intermediates_only else (tokens.x, intermediates)

    def _formatted(self, block: int, tokens: Tokens) -> Tensor:
        """The patch tokens of a block in the requested format."""
        count = tokens.x.shape[1] - tokens.prefix
        if self.request.restore:
            x = tokens.on_grid(fill=self.request.fill)
            return x if self.request.output_fmt == "NCHW" else x.flatten(2).transpose(1, 2)
        x = tokens.x[:, tokens.prefix :]
        if self.request.output_fmt == "NLC":
            return x
        if not tokens.whole:
            raise InputError(
                f"After block {block} {count} tokens represent {prod(tokens.grid)} patches and do not form a grid: use "
                'restore=True to put them back on the grid, or output_fmt="NLC" to get the tokens.'
            )
        return x.transpose(1, 2).unflatten(2, tokens.grid).contiguous()


class HiddenStates:
    """Collects transformers' hidden states during a forward: the input of block 0, and the output of each block.

    Each is (B, prefix + P, d): a dropped patch has the row of the nearest kept one, merged patches share a row.
    """

    def __init__(self) -> None:
        self.states: list[Tensor] = []

    def see(self, step: Step) -> None:
        """Callback for `walk`."""
        if not self.states:
            self.states.append(step.read.whole_grid().x)
        self.states.append(step.tokens.whole_grid().x)
