"""What `import tokensieve` gives: the public names, and the folders by attribute, none of them loaded early."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tokensieve

pytestmark = pytest.mark.versions

FOLDERS = (
    *("data", "export", "hosts", "hub", "jobs", "measure", "methods", "search", "segmentation"),
    *("show", "significance", "train", "zoo"),
)


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_is_loaded_before_it_is_used() -> None:
    code = "import sys, tokensieve; print(sorted(name for name in sys.modules if name.startswith('tokensieve.')))"
    assert fresh(f"{code}; assert 'torch' not in sys.modules") == "[]\n"


def test_folders_are_there_by_attribute() -> None:
    uses = "tokensieve.data.image_set, tokensieve.zoo.create, tokensieve.measure.fidelity, tokensieve.export.Exported"
    fresh(f"import tokensieve; {uses}; {', '.join(f'tokensieve.{name}' for name in FOLDERS)}")


def test_public_names_are_there_and_listed() -> None:
    assert {*tokensieve.__all__, *FOLDERS} <= set(dir(tokensieve))
    for name in tokensieve.__all__:
        assert getattr(tokensieve, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        _ = tokensieve.absent
