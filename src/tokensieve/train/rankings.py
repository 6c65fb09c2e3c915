"""Importance of each patch of a picture for a host: the targets of learned proposals.

- `attention`: attention of the class token to each patch, averaged over the last third of the blocks.
- `gradient`: minus the gradient of the divergence from the dense output with respect to each patch's weight in all
  attentions, while a random half of the patches is masked; averaged over several draws.
- `hidden`: the divergence when a square of patches is masked.
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
"""Number of random halves of the patches that `gradient` masks in a picture; the complement of each is masked too."""
LEFT_OUT = 1e-3
"""Weight of a masked patch: above 0, so that it has a gradient."""
SIDE = 2
"""Side, in patches, of the squares that `hidden` masks."""


class OpenBlocks(Actor):
    """Opens every block, so that token weights enter its attention and have a gradient."""

    def opens(self, block: int, tokens: Tokens) -> bool:
        return True

    def attend(self, block: int, tokens: Tokens, attention: BlockQKV) -> tuple[Tensor, None]:
        with sdpa_kernel(SDPBackend.MATH):  # other backends give no gradient for an attention bias
            return attention.attend(), None


class WeightedHost:
    """Runs a host with a weight for each patch.

    Raises:
        UnsupportedHost: a block of the host cannot be opened.
    """

    def __init__(self, dense: Sieved) -> None:
        self.host: Host = dense.host
        for number, block in enumerate(self.host.blocks):
            if block.closed:
                name = type(dense.model).__name__
                raise UnsupportedHost(f"Block {number} of {name} cannot be opened: {block.closed}.")

    def __call__(self, embedded: Tokens, weights: Tensor) -> Any:
        """The host's output for embedded images and the weight of each of their patches (B, P), normally 1."""
        prefix = weights.new_ones(len(weights), self.host.prefix)
        every = torch.cat([prefix, weights], dim=1)
        tokens = replace(embedded, size=every, weight=every)
        return self.host.head(self.host.features(walk(self.host.blocks, tokens, OpenBlocks())))


def ranking(target: str, dense: Sieved, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """A function from images (B, C, H, W) to the importance of each patch, (B, P) float32; larger is more important.

    Args:
        target: "attention", "gradient" or "hidden", see above.
        dense: the host under the empty recipe.
        seed: random seed of the masked halves.

    Raises:
        RecipeError: an unknown target.
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
        attention = dense.trace(images, attention=last).class_attention
        return torch.stack([attention[block] for block in last]).float().mean(0)[:, dense.host.prefix :]

    return ranked


class _Divergence:
    """The divergence of outputs with weighted patches from the dense ones."""

    def __init__(self, dense: Sieved) -> None:
        self.dense, self.weighted = dense, WeightedHost(dense)

    def begin(self, images: Tensor) -> tuple[Tokens, Callable[[Any], Tensor]]:
        """The embedded images, and a function from an output to its divergence from the dense one, (B,)."""
        with torch.no_grad():
            output = self.dense(images)
            embedded = self.weighted.host.embed(images)
        model = self.dense.model
        reference = as_output(output, model).float()
        kind = kind_of(reference, classifies(model, output), field_of(output))

        def divergence(output: Any) -> Tensor:
            tensor = as_output(output, model)
            if kind is KINDS["embeddings"]:  # 1 - cosine loses precision near 0
                return (tensor.double() - reference.double()).square().sum(1) / reference.double().square().sum(1)
            return kind.divergence(reference, tensor)

        return embedded, divergence


def _gradient(dense: Sieved, seed: int) -> Callable[[Tensor], Tensor]:
    divergence = _Divergence(dense)

    def ranked(images: Tensor) -> Tensor:
        embedded, divergence_of = divergence.begin(images)
        patches = embedded.x.shape[1] - embedded.prefix
        generator = torch.Generator().manual_seed(seed)
        total = torch.zeros(len(images), patches, device=images.device)
        for _ in range(DRAWS):
            rank = torch.rand(len(images), patches, generator=generator).argsort(1).argsort(1).to(images.device)
            for unmasked in (rank < patches // 2, rank >= patches // 2):
                weights = torch.where(unmasked, 1.0, LEFT_OUT).requires_grad_()
                with torch.enable_grad():
                    (gradient,) = torch.autograd.grad(
                        divergence_of(divergence.weighted(embedded, weights)).sum(), weights
                    )
                total -= gradient.float()
        return total / (2 * DRAWS)

    return ranked


def _hidden(dense: Sieved, _seed: int) -> Callable[[Tensor], Tensor]:
    divergence = _Divergence(dense)

    @torch.no_grad()
    def ranked(images: Tensor) -> Tensor:
        embedded, divergence_of = divergence.begin(images)
        height, width = embedded.grid
        scores = torch.zeros(len(images), height, width, device=images.device)
        for top in range(0, height, SIDE):
            for left in range(0, width, SIDE):
                weights = torch.ones(len(images), height, width, device=images.device)
                weights[:, top : top + SIDE, left : left + SIDE] = 0.0
                change = divergence_of(divergence.weighted(embedded, weights.flatten(1)))
                scores[:, top : top + SIDE, left : left + SIDE] = change.float()[:, None, None]
        return scores.flatten(1)

    return ranked


TARGETS: dict[str, Callable[[Sieved, int], Callable[[Tensor], Tensor]]] = {
    "attention": _attention,
    "gradient": _gradient,
    "hidden": _hidden,
}
"""Name of a target -> the function that creates its ranking function."""
