"""Where the trials of a search are kept, and what tells one search from another."""

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

if TYPE_CHECKING:  # optuna is an extra: it is imported where a search begins, so that its absence can be explained
    import optuna


def import_optuna() -> Any:
    try:
        import cmaes  # noqa: F401  (what optuna's sampler runs on)
        import optuna
    except ImportError as error:
        raise InputError(
            f"Tuning needs optuna and cmaes ({error.name} is not here): pip install 'tokensieve[tune]'."
        ) from None
    return optuna


class quiet:
    """optuna's own lines on every trial are left out: `report` tells the same."""

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
    """Where trials are kept; a file that holds another search is refused. `folder` is one that is made for it."""
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
        raise InputError(f"{path} cannot keep the trials, it is no storage of a search: {first_line(error)}.") from None
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
    file = proposal.get("proposal_weights")
    return {"name": ranked_by(proposal), "sha256": None if file is None else file_sha256(file)}


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The first half of the SHA-256 of names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
