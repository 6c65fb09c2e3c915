"""A stand-in for the hub's client: repositories with commits in a folder; whoever asks a network fails."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import hub_mixin
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError

from tokensieve.hub import published

RESPONSE: Any = SimpleNamespace(headers={}, request=None, status_code=404)


@dataclass
class StandIn:
    """What the client does, as far as the mixin and this package ask it to.

    Attributes:
        root: repositories are folders here, a folder a commit.
        heads: branches of each repository.
        asked: what was downloaded.
        before: called with a file's name before it is downloaded.
    """

    root: Path
    heads: dict[tuple[str, str], str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    before: Callable[[str], None] = lambda name: None

    def commit(self, repo_id: str, branch: str = "main") -> Path:
        return self.root / "hub" / repo_id / self.heads[repo_id, branch]

    def download(self, repo_id: str, filename: str, *, revision: str | None = None, **settings: Any) -> str:
        assert set(settings) <= {"cache_dir", "force_download", "token", "local_files_only"}
        self.before(filename)
        if not any(name == repo_id for name, _ in self.heads):
            raise RepositoryNotFoundError(f"404 Client Error. Repository Not Found: {repo_id}", response=RESPONSE)
        commit = self.heads.get((repo_id, revision or "main"), revision)
        source = self.root / "hub" / repo_id / str(commit) / filename
        if not source.is_file():
            raise RemoteEntryNotFoundError(f"404 Client Error. Entry Not Found: {filename}", response=RESPONSE)
        self.asked.append(filename)
        cached = Path(settings.get("cache_dir") or self.root / "cache") / repo_id / "snapshots" / str(commit) / filename
        cached.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, cached)
        return str(cached)

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> Any:
        assert exist_ok
        return SimpleNamespace(repo_id=repo_id, private=private)

    def upload_folder(
        self,
        *,
        repo_id: str,
        repo_type: str,
        folder_path: Path,
        commit_message: str,
        revision: str | None = None,
        delete_patterns: str | None = None,
        **_: Any,
    ) -> str:
        """A commit: what is there stays, unless it is to be deleted, and what comes replaces it."""
        branch, number = revision or "main", len(list((self.root / "hub" / repo_id).glob("*")))
        commit = self.root / "hub" / repo_id / f"{number:040x}"
        if (repo_id, branch) in self.heads:
            shutil.copytree(self.commit(repo_id, branch), commit)
            for path in commit.rglob("*"):
                if delete_patterns and fnmatch(path.name, delete_patterns):
                    path.unlink()
        shutil.copytree(folder_path, commit, dirs_exist_ok=True)
        self.heads[repo_id, branch] = commit.name
        assert repo_type == "model"
        return f"{repo_id}: {commit_message}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn(tmp_path / "stand-in")

    def refuse(*_: Any) -> None:
        raise AssertionError("a network was asked")

    for module in (hub_mixin, published):
        monkeypatch.setattr(module, "hf_hub_download", stand_in.download)
    monkeypatch.setattr(hub_mixin, "HfApi", lambda **_: stand_in)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return stand_in
