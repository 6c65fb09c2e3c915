"""What openers refuse alike."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import InputError, UnsupportedHost


def no_checkpointing(model: nn.Module, *switched: bool) -> None:
    """Refuse a model whose gradient checkpointing a sieve would lose."""
    if any(switched):
        raise UnsupportedHost(
            f"{type(model).__name__} has gradient checkpointing switched on, which would be lost: "
            "call model.set_grad_checkpointing(False) first."
        )


def check_images(model: nn.Module, images: Tensor) -> Tensor:
    """The images, if they have the rank of images."""
    if images.ndim != 4:
        raise InputError(f"Images have shape {tuple(images.shape)}; {type(model).__name__} reads (B, 3, H, W).")
    return images
