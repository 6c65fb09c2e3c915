"""Features of chosen blocks: timm's `forward_intermediates`, also where tokens were dropped or merged on the way."""

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
        """Which of `count` blocks or stages, and the last of them.

        Raises:
            InputError: indices that are not there.
        """
        try:
            indices = list(self.indices) if isinstance(self.indices, (list, tuple)) else self.indices
            taken, last = feature_take_indices(count, indices)
        except AssertionError:
            raise InputError(f"indices={self.indices} must be of {count} blocks or stages, 0 to {count - 1}.") from None
        return list(taken), last

    def check(self, formats: tuple[str, ...] = FORMATS) -> None:
        """Raises `InputError` for a format that cannot be had."""
        if self.output_fmt not in formats:
            raise InputError(f"output_fmt must be {' or '.join(formats)}, not {self.output_fmt!r}.")


class Intermediates:
    """Looks on at a walk, and keeps the tokens of the blocks that are wanted."""

    def __init__(self, host: Host, request: FeatureRequest) -> None:
        request.check()
        self.host, self.request = host, request
        self.indices, last = request.take_indices(len(host.blocks))
        self.blocks = last + 1 if request.stop_early else len(host.blocks)
        self.kept: list[tuple[int, Tokens]] = []

    def see(self, step: Step) -> None:
        if step.block in self.indices:
            tokens = self.host.features(step.tokens) if self.request.norm else step.tokens
            self.kept.append((step.block, tokens))

    def answer(self, tokens: Tokens, batch: int) -> Any:
        """The return value, as timm's: `tokens` are the last block's after the final norm, of `batch` images."""
        request, prefix = self.request, [x.x[:batch, : x.prefix] for _, x in self.kept]
        features = [self._laid_out(block, kept)[:batch] for block, kept in self.kept]
        split = request.return_prefix_tokens and tokens.prefix > 0
        if request.output_dict:
            answer: dict[str, Any] = {"image_intermediates": features}
            answer |= {"image_intermediates_prefix": prefix} if split else {}
            return answer if request.intermediates_only else answer | {"image_features": tokens.x}
        every: list[Any] = list(zip(features, prefix, strict=True)) if split else features
        return every if request.intermediates_only else (tokens.x, every)

    def _laid_out(self, block: int, tokens: Tokens) -> Tensor:
        """The patch tokens as the format wants them."""
        count = tokens.x.shape[1] - tokens.prefix
        if self.request.restore:
            x = tokens.on_grid(fill=self.request.fill)
            return x if self.request.output_fmt == "NCHW" else x.flatten(2).transpose(1, 2)
        x = tokens.x[:, tokens.prefix :]
        if self.request.output_fmt == "NLC":
            return x
        if not tokens.whole:
            raise InputError(
                f"Behind block {block} {count} tokens stand for {prod(tokens.grid)} patches, and are no grid any more: "
                'restore=True puts them back on it, output_fmt="NLC" gives them as they are.'
            )
        return x.transpose(1, 2).unflatten(2, tokens.grid).contiguous()


class HiddenStates:
    """Looks on at a walk, and keeps what transformers calls the hidden states: what block 0 reads, and what each gives.

    Each is (B, prefix + P, d): dropped patches have the row of the nearest kept one, merged ones share theirs.
    """

    def __init__(self) -> None:
        self.states: list[Tensor] = []

    def see(self, step: Step) -> None:
        if not self.states:
            self.states.append(step.read.whole_grid().x)
        self.states.append(step.tokens.whole_grid().x)
