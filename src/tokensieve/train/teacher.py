"""A frozen model that a student learns from. It runs once on fixed views of every sample; its outputs are cached."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .._files import draft
from ..errors import InputError

Target = Callable[[Any], Tensor]
"""A function from a model's output to the targets (B, ...) that the student learns."""


def log_probabilities(logits: Tensor) -> Tensor:
    """Logits (B, classes) -> log-probabilities (B, classes)."""
    return logits.log_softmax(1)


class Teacher:
    """A frozen copy of a model; the original may be trained.

    Args:
        model: called with a batch of images.
        name: name of the model, part of `identity`.
        answer: function from the model's output to the targets; by default from logits to log-probabilities.
        device: device of the copy.
        bf16: whether it computes in bfloat16, under autocast; its weights keep their precision.

    Attributes:
        identity: the name and the SHA-256 of its weights.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        answer: Target = log_probabilities,
        device: torch.device | str = "cpu",
        bf16: bool = False,
    ) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False).to(device)
        self.name, self.answer, self.device, self.bf16 = name, answer, torch.device(device), bf16
        digest = hashlib.sha256()
        for value in model.state_dict().values():
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        self.identity = f"{name} {digest.hexdigest()}" + (", in bf16" if bf16 else "")

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Preprocessed images (B, C, H, W) -> the teacher's targets (B, ...), on the CPU."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.answer(self.model(images.to(self.device))).cpu()


def remember(teacher: Teacher, views: Iterable[Sequence[Tensor]], content: str, cache: Path | None = None) -> Tensor:
    """A teacher's targets for every view of every sample: (N, V, ...), by sample and view.

    With `cache` they are saved in that file, and read from there (memory-mapped) if the same teacher is used on the
    same samples again; `views` is not iterated then.

    Args:
        teacher: the model.
        views: the samples in order, a batch at a time: V tensors (B, C, H, W) of the same samples.
        content: identifies the samples and views, so that the cache is not used after they change.
        cache: a file; its folder is made.

    Raises:
        InputError: the file holds the targets of another teacher, or of other samples.
    """
    key = f"{teacher.identity}, {content}"
    if cache is not None and cache.is_file():
        return _read_cache(cache, key)
    parts = [torch.stack([teacher.predict(view) for view in batch], 1) for batch in views]
    targets = torch.cat(parts)
    if cache is None:
        return targets
    cache.parent.mkdir(parents=True, exist_ok=True)
    with draft(cache) as path:
        save_file({"answers": targets}, path, {"asked": key})
    return _read_cache(cache, key)


def _read_cache(cache: Path, key: str) -> Tensor:
    """The cached targets. Raises `InputError` if they are not those of `key`."""
    try:
        with safe_open(cache, "pt") as file:
            if (file.metadata() or {}).get("asked") == key:
                return file.get_tensor("answers")
    except SafetensorError:
        pass  # truncated, or not a safetensors file
    raise InputError(
        f"{cache} holds the targets of another teacher, or of other photographs: delete it, or give another folder."
    )
