"""A model whose answers are learnt: frozen, asked once about fixed views of every sample, its answers kept."""

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

Answer = Callable[[Any], Tensor]


def log_probabilities(logits: Tensor) -> Tensor:
    """(B, classes) -> the same, as log-probabilities."""
    return logits.log_softmax(1)


class Teacher:
    """A frozen model; the one given is copied, so that it may be trained itself.

    Args:
        model: called with a batch of images.
        name: under which it is known.
        answer: what is learnt of what the model returns; by default of logits their log-probabilities.
        device: where it runs.
        bf16: whether it computes in bfloat16, under autocast; its weights stay what they are.

    Attributes:
        known_as: the name with the SHA-256 of its weights.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        answer: Answer = log_probabilities,
        device: torch.device | str = "cpu",
        bf16: bool = False,
    ) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False).to(device)
        self.name, self.answer, self.device, self.bf16 = name, answer, torch.device(device), bf16
        digest = hashlib.sha256()
        for value in model.state_dict().values():
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        self.known_as = f"{name} {digest.hexdigest()}" + (", in bf16" if bf16 else "")

    @torch.no_grad()
    def ask(self, images: Tensor) -> Tensor:
        """Images as the teacher reads them, (B, C, H, W) -> its answers (B, ...), on the CPU."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.answer(self.model(images.to(self.device))).cpu()


def remember(teacher: Teacher, views: Iterable[Sequence[Tensor]], about: str, cache: Path | None = None) -> Tensor:
    """A teacher's outputs on every sample in each of its views, by number of sample and view: (N, V, ...).

    With `cache` the answers are kept in that file, and read from there, page by page as they are needed, when the same
    teacher is asked about the same again; `views` then is not even begun.

    Args:
        teacher: the model.
        views: the samples in order, a batch at a time: V tensors (B, C, H, W) of the same samples.
        about: what the samples and views are, so that it is noticed when they change.
        cache: a file; its folder is made.

    Raises:
        InputError: the file holds another teacher's answers, or answers about something else.
    """
    key = f"{teacher.known_as}, {about}"
    if cache is not None and cache.is_file():
        return _recall(cache, key)
    parts = [torch.stack([teacher.ask(view) for view in batch], 1) for batch in views]
    answers = torch.cat(parts)
    if cache is None:
        return answers
    cache.parent.mkdir(parents=True, exist_ok=True)
    with draft(cache) as path:
        save_file({"answers": answers}, path, {"asked": key})
    return _recall(cache, key)


def _recall(cache: Path, key: str) -> Tensor:
    try:
        with safe_open(cache, "pt") as file:
            if (file.metadata() or {}).get("asked") == key:
                return file.get_tensor("answers")
    except SafetensorError:
        pass  # cut short or no such file at all: no answers
    raise InputError(
        f"{cache} holds another teacher's answers, or answers about other photographs: delete it, or give another "
        "folder."
    )
