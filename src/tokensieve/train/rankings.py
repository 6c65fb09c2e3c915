"""What a host itself says of the patches of a picture: which its answer hangs on. The targets of learned proposals.

- `attention`: how much the class token attends to each patch, the mean over the last third of the blocks.
- `gradient`: how much a patch, read a little more, brings the answer nearer to the dense one, where half of the other
  patches are left out at random; the mean over several such draws. The gradient is that of the divergence with respect
  to what each patch weighs in every attention.
- `hidden`: how far the answer moves when a block of patches is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._frozen import replace
from ..attention import BlockQKV
from ..errors import RecipeError, UnsupportedHost, nearest
from ..forward.walk import Actor, walk
from ..hosts import Host
from ..measure.comparison import KINDS, kind_of
from ..measure.outputs import as_output, classifies, field_of
from ..stream import Sieved
from ..tokens import Tokens

DRAWS = 4
"""Sets of patches that `gradient` leaves out of a picture, each beside its complement."""
LEFT_OUT = 1e-3
"""What a patch that is left out weighs: a little, for a gradient to reach it."""
SIDE = 2
"""Patches a side of the blocks that `hidden` leaves out."""


class Open(Actor):
    """Opens every block, so that what a token weighs counts in its attention, and a gradient reaches it."""

    def opens(self, block: int, tokens: Tokens) -> bool:
        return True

    def attend(self, block: int, tokens: Tokens, attention: BlockQKV) -> tuple[Tensor, None]:
        with sdpa_kernel(SDPBackend.MATH):  # others know no gradient of what is added to the logits
            return attention.attend(), None


class Weighed:
    """A host's answers where each patch weighs so much.

    Raises:
        UnsupportedHost: a host with a block that cannot be opened.
    """

    def __init__(self, dense: Sieved) -> None:
        self.host: Host = dense.host
        for number, block in enumerate(self.host.blocks):
            if block.closed:
                name = type(dense.model).__name__
                raise UnsupportedHost(f"Block {number} of {name} cannot be opened: {block.closed}.")

    def __call__(self, embedded: Tokens, weights: Tensor) -> Any:
        """Embedded images, and (B, P) what each of their patches weighs, 1 as usual -> what the host returns."""
        prefix = weights.new_ones(len(weights), self.host.prefix)
        every = torch.cat([prefix, weights], dim=1)
        tokens = replace(embedded, size=every, weight=every)
        return self.host.head(self.host.features(walk(self.host.blocks, tokens, Open())))


def ranking(target: str, dense: Sieved, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """A function from images (B, C, H, W) to how much each patch matters, (B, P) float32; larger is more.

    Args:
        target: "attention", "gradient" or "hidden", see above.
        dense: the host, sieved by nothing.
        seed: of the draws.

    Raises:
        RecipeError: another target.
        UnsupportedHost: the host has no class token (`attention`), stages, or a block that cannot be opened.
    """
    if target not in TARGETS:
        raise RecipeError(f"target must be one of {', '.join(TARGETS)}, not {target!r}{nearest(target, TARGETS)}.")
    if dense.units != "tokens":
        raise UnsupportedHost(f"{type(dense.model).__name__} has stages: patches are ranked for plain ViTs.")
    return TARGETS[target](dense, seed)


def _attention(dense: Sieved, _seed: int) -> Callable[[Tensor], Tensor]:
    depth = len(dense.host.blocks)
    last = list(range(depth - max(1, depth // 3), depth))
    if not dense.host.class_token:
        raise UnsupportedHost(
            f"{type(dense.model).__name__} has no class token whose attention ranks patches: use the target gradient."
        )

    def ranked(images: Tensor) -> Tensor:
        seen = dense.trace(images, attention=last).class_attention
        return torch.stack([seen[block] for block in last]).float().mean(0)[:, dense.host.prefix :]

    return ranked


class _Divergence:
    """How far answers under weights are from the dense ones."""

    def __init__(self, dense: Sieved) -> None:
        self.dense, self.weighed = dense, Weighed(dense)

    def begin(self, images: Tensor) -> tuple[Tokens, Callable[[Any], Tensor]]:
        """The embedded images, and what tells of an output how far it is from the dense answer, (B,)."""
        with torch.no_grad():
            output = self.dense(images)
            embedded = self.weighed.host.embed(images)
        model = self.dense.model
        wanted = as_output(output, model).float()
        kind = kind_of(wanted, classifies(model, output), field_of(output))

        def far(found: Any) -> Tensor:
            answer = as_output(found, model)
            if kind is KINDS["embeddings"]:  # a cosine near 1 is rounded where it matters
                return (answer.double() - wanted.double()).square().sum(1) / wanted.double().square().sum(1)
            return kind.divergence(wanted, answer)

        return embedded, far


def _gradient(dense: Sieved, seed: int) -> Callable[[Tensor], Tensor]:
    divergence = _Divergence(dense)

    def ranked(images: Tensor) -> Tensor:
        embedded, far = divergence.begin(images)
        patches = embedded.x.shape[1] - embedded.prefix
        generator = torch.Generator().manual_seed(seed)
        total = torch.zeros(len(images), patches, device=images.device)
        for _ in range(DRAWS):
            order = torch.rand(len(images), patches, generator=generator).argsort(1).argsort(1).to(images.device)
            for kept in (order < patches // 2, order >= patches // 2):
                weights = torch.where(kept, 1.0, LEFT_OUT).requires_grad_()
                with torch.enable_grad():
                    (slope,) = torch.autograd.grad(far(divergence.weighed(embedded, weights)).sum(), weights)
                total -= slope.float()
        return total / (2 * DRAWS)

    return ranked


def _hidden(dense: Sieved, _seed: int) -> Callable[[Tensor], Tensor]:
    divergence = _Divergence(dense)

    @torch.no_grad()
    def ranked(images: Tensor) -> Tensor:
        embedded, far = divergence.begin(images)
        high, wide = embedded.grid
        found = torch.zeros(len(images), high, wide, device=images.device)
        for top in range(0, high, SIDE):
            for left in range(0, wide, SIDE):
                weights = torch.ones(len(images), high, wide, device=images.device)
                weights[:, top : top + SIDE, left : left + SIDE] = 0.0
                moved = far(divergence.weighed(embedded, weights.flatten(1)))
                found[:, top : top + SIDE, left : left + SIDE] = moved.float()[:, None, None]
        return found.flatten(1)

    return ranked


TARGETS: dict[str, Callable[[Sieved, int], Callable[[Tensor], Tensor]]] = {
    "attention": _attention,
    "gradient": _gradient,
    "hidden": _hidden,
}
"""How patches are ranked by a host, by name."""
