"""The storage of a search's trials, and the identity of a search."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._files import check_place, make_folder
from ..errors import InputError, first_line
from ..zoo import file_sha256
from .families import ranked_by

if TYPE_CHECKING:  # optuna is optional: it is imported at the start of a search, with an error if it is missing
    import optuna


def import_optuna() -> Any:
    """Import optuna. Raises `InputError` if it is not installed."""
    try:
        import cmaes  # noqa: F401  (optuna's sampler needs it)
        import optuna
    except ImportError as error:
        raise InputError(
            f"Tuning needs optuna and cmaes ({error.name} is not installed): pip install 'tokensieve[tune]'."
        ) from None
    return optuna


class quiet:
    """Context without optuna's own messages about every trial, which `report` gives too."""

    def __init__(self, optuna: Any) -> None:
        self.logging = optuna.logging

    def __enter__(self) -> None:
        self.before = self.logging.get_verbosity()
        self.logging.set_verbosity(self.logging.WARNING)

    def __exit__(self, *_: object) -> None:
        self.logging.set_verbosity(self.before)


def storage_for(
    optuna: Any, file: str | os.PathLike[str] | None, settings: dict[str, Any], folder: Path | None
) -> optuna.storages.BaseStorage:
    """The storage of the trials: a SQLite file, or memory. `folder` is a folder that may be made for the file.

    Raises:
        InputError: the file cannot be used, or holds another search.
    """
    if file is None:
        return optuna.storages.InMemoryStorage()
    path = check_place(file, new_folder=Path(file).parent == folder)
    make_folder(path.parent)
    from sqlalchemy.exc import SQLAlchemyError

    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        study = optuna.create_study(study_name="tokensieve", storage=storage, load_if_exists=True)
        before, now = study.user_attrs.get("settings"), json.loads(json.dumps(settings))
        if before is None:
            study.set_user_attr("settings", now)
    except (SQLAlchemyError, RuntimeError) as error:
        raise InputError(
            f"{path} cannot store the trials, it is not a search's storage: {first_line(error)}."
        ) from None
    changed = [name for name in {**(before or {}), **now} if before is not None and before.get(name) != now.get(name)]
    if changed:
        changes = ", ".join(f"{name} was {_brief(before.get(name))} and is {_brief(now.get(name))}" for name in changed)
        raise InputError(f"{path} holds another search ({changes}): give another file, or the same settings.")
    return storage


def _brief(value: Any) -> str:
    if value is None:
        return "not given"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 60 else f"{text[:40]}..."


def identity(proposal: Mapping[str, Any]) -> dict[str, Any]:
    """Name and SHA-256 of the weights of a proposal, which identify it."""
    file = proposal.get("proposal_weights")
    return {"name": ranked_by(proposal), "sha256": None if file is None else file_sha256(file)}


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The first half of the SHA-256 of names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
