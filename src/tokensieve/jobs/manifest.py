"""The manifest in a job's folder, by which a resumed job is checked to be the same job."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from typing import Any

import timm
import torch
from torch import nn

from .. import __version__
from ..cascades.cascade import Cascade
from ..data import ImageSet
from ..errors import InputError
from ..model_spec import OpenedModel
from .output_folder import OutputFolder
from .settings import Job
from .sources import fingerprint

VERSION_KEY, VERSION = "tokensieve_job", 1
FILE = "manifest.json"


def manifest_of(job: Job, opened: OpenedModel, items: ImageSet) -> dict[str, Any]:
    """The settings on which rows depend, as plain JSON, and library versions, which may change their last bits.

    It includes a hash of the weights in memory, so that changed weights are noticed, whatever their source.
    """
    spec, rows = job.spec, job.rows
    settings = {
        "sources": list(job.sources),
        "items": len(items),
        "items_sha256": fingerprint(items),
        "model": spec.model,
        "args": dict(spec.args),
        "weights_sha256": weights_sha256(opened),
        "recipe": str(opened.fast.recipe),
        "precision": spec.precision,
        "preprocessing": asdict(opened.preprocessing),
        **asdict(rows),
        "batch": rows.items_together(opened.views),
        "shard": rows.shard_size(opened.views),
    }
    if rows.output != "classes":
        settings.pop("k")
    return {VERSION_KEY: VERSION, "settings": json.loads(json.dumps(settings)), "versions": versions()}


def versions() -> dict[str, str]:
    """Versions of the libraries that compute the rows."""
    return {
        "tokensieve": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def weights_sha256(opened: OpenedModel) -> str:
    """SHA-256 of the weights of the model, its proposal and its methods' learned layers."""
    digest = hashlib.sha256()
    members = opened.fast.members if isinstance(opened.fast, Cascade) else (opened.fast,)
    parts = (part for member in members for part in (member.significance, member.parts))
    for module in (opened.dense, *parts):
        if isinstance(module, nn.Module):
            for name, tensor in module.state_dict().items():
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read(output: OutputFolder) -> dict[str, Any] | None:
    """The manifest in a folder; None if there is none.

    Raises:
        InputError: it is not a manifest of this version.
    """
    content = output.read(FILE)
    if content is None:
        return None
    try:
        manifest = json.loads(content)
        known = manifest[VERSION_KEY] == VERSION and manifest["settings"] and manifest["versions"]
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise InputError(
            f"{FILE} in {output.name} is not a manifest of this version of tokensieve: give another --out."
        )
    checked: dict[str, Any] = manifest
    return checked


def begin(output: OutputFolder, manifest: dict[str, Any]) -> list[str]:
    """Write the manifest of a new job, or check that the existing one is of the same job.

    Returns:
        A list with a sentence about library versions that differ, or an empty list.

    Raises:
        InputError: the folder has rows of other settings, or rows without a manifest.
    """
    existing = read(output)
    if existing is None:
        if output.names("rows"):
            raise InputError(f"{output.name}/rows holds files that were not written by a job: give another --out.")
        output.write_text(FILE, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        return []
    check_same(output, existing, manifest)
    changed = [
        f"{name} {old} then, {manifest['versions'].get(name)} now"
        for name, old in existing["versions"].items()
        if manifest["versions"].get(name) != old
    ]
    if not changed:
        return []
    return [f"The job was started with other versions ({'; '.join(changed)}): rows may differ in their last bits."]


def check_same(output: OutputFolder, existing: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Raise `InputError`, with the differences, if the existing manifest has other settings."""
    old, new = existing["settings"], manifest["settings"]
    different = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    if different:
        changes = "; ".join(_difference(name, old.get(name), new.get(name)) for name in different)
        raise InputError(
            f"{output.name} holds rows of a job with other settings: {changes}. Give the same ones, or another --out."
        )


def _difference(name: str, old: Any, new: Any) -> str:
    """A difference in one setting, in words."""
    if name == "items_sha256":
        return "the names of the items are different"
    if name == "weights_sha256":
        return "the weights are different (random weights are different each time)"
    if isinstance(old, dict) and isinstance(new, dict):
        different = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
        return "; ".join(_difference(f"{name} {key}", old.get(key), new.get(key)) for key in different)
    return f"{name} was {_short(old)} and is {_short(new)}"


def _short(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
