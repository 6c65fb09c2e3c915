"""What is published: the wheel, the sdist, and what stands in several places about them."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import tokensieve

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_all_places_have_the_same_version() -> None:
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), flags=re.M)
    assert cited is not None
    assert PROJECT["version"] == cited[1] == tokensieve.__version__


def test_every_extra_is_told_of() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    untold = [name for name in PROJECT["optional-dependencies"] if f"| `{name}` |" not in page]
    assert not untold, f"docs/install.md has no row for {', '.join(untold)}"


def test_dev_has_every_other_extra() -> None:
    (own,) = [need for need in PROJECT["optional-dependencies"]["dev"] if need.startswith("tokensieve[")]
    others = set(PROJECT["optional-dependencies"]) - {"dev"}
    left_out = others - set(own.removeprefix("tokensieve[").removesuffix("]").split(","))
    # Gradio wants an older pillow than the tests do; Ray is large, and its test skips where it is not.
    assert left_out <= {"app", "ray"}


def build(kind: str, source: Path, place: Path) -> Path:
    """A wheel or an sdist, by the build backend, without an isolated environment."""
    code = f"from hatchling.build import build_{kind}; print(build_{kind}({str(place)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, text=True)
    return place / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """What the sdist holds, unpacked."""
    pytest.importorskip("hatchling", reason="the build backend, part of the extra dev, is not installed")
    place = tmp_path_factory.mktemp("dist")
    with tarfile.open(build("sdist", ROOT, place)) as tar:
        tar.extractall(place, filter="data")
    (folder,) = (path for path in place.iterdir() if path.is_dir())
    return folder


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory) -> zipfile.ZipFile:
    """As it is made for an upload: out of the sdist."""
    return zipfile.ZipFile(build("wheel", sdist, tmp_path_factory.mktemp("wheel")))


@pytest.mark.slow
def test_the_sdist_is_the_project_without_what_was_made_of_it(sdist) -> None:
    there = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("which files belong to the project is asked of git, and this is no clone")
    project = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    apart = {name for name in project if name.startswith((".github/", ".ci/", ".pre-commit", ".gitignore"))}
    assert there >= project - apart
    assert not {name for name in there if "__pycache__" in name or name.startswith((".venv", "build/"))}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel) -> None:
    names = set(wheel.namelist())
    source = ROOT / "src"
    package = {path.relative_to(source).as_posix() for path in (source / "tokensieve").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    assert {name for name in names if not name.split("/")[0].endswith(".dist-info")} == package
    assert {"tokensieve/py.typed", "tokensieve/show/page.html.jinja", "tokensieve/show/parts.css"} <= names
    assert any(name.endswith("nano_vit.safetensors") for name in names)
    assert sum(info.file_size for info in wheel.infolist()) < 20e6


@pytest.mark.slow
def test_the_wheels_metadata(wheel) -> None:
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    told = message_from_string(wheel.read(f"{folder}/METADATA").decode())
    assert told["License-Expression"] == "Apache-2.0"
    assert {f"{folder}/licenses/LICENSE", f"{folder}/licenses/NOTICE"} <= set(wheel.namelist())
    assert set(told.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert told.get_payload().startswith("# tokensieve")
    assert "tokensieve = tokensieve.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()
