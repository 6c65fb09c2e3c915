"""Rows of results/*.csv say of which revision they are, and keep what they said."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import pytest

from benchmarks import results


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=someone", "-c", "user.email=someone@example.com"]
    command = ["git", *settings, *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "source.py").write_text("a = 1\n")
    git(tmp_path, "add", "source.py")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "benchmarks" / "some.py"), "--fast"])
    return tmp_path


def test_the_revision_is_the_commit_and_whether_the_source_differs(repository) -> None:
    commit = git(repository, "rev-parse", "--short", "HEAD")
    assert results.revision(repository) == commit
    (repository / "results").mkdir()
    (repository / "results" / "some.csv").write_text("a\n1\n")
    assert results.revision(repository) == commit  # figures that were just written
    (repository / "source.py").write_text("a = 2\n")
    assert results.revision(repository) == f"{commit}+changes"


def test_outside_of_git_there_is_no_revision(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert results.revision(tmp_path) == ""


def test_old_rows_get_no_revision_and_new_ones_their_own(repository) -> None:
    old = {"host": "a", "ratio": "1", "command": "python old.py", "machine": "m", "versions": "v", "date": "2020-01-01"}
    (repository / "results").mkdir()
    with (repository / "results" / "some.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, old)
        writer.writeheader()
        writer.writerow(old)
    results.update("some.csv", [{"host": "b", "ratio": 2.0, "versions": "other"}], "host")
    kept, new = results.read("some.csv")
    assert kept == {**old, "revision": ""}
    assert (new["command"], new["versions"]) == ("python benchmarks/some.py --fast", "other")
    assert new["revision"] == git(repository, "rev-parse", "--short", "HEAD")
    results.update("some.csv", [], "host")
    assert results.read("some.csv") == [kept, new]
