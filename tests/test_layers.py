"""Imports run one way: each part of the package knows those below it alone, and no two files know each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src" / "tokensieve"

LAYERS = [
    ["__main__"],
    ["cli"],
    ["app", "jobs"],
    ["about", "hub"],
    ["search", "show", "train", "model_spec"],
    ["measure", "export"],
    ["stream", "cascades"],
    ["_spec_models"],
    ["segmentation"],
    ["forward"],
    ["hosts"],
    ["_spec_settings"],
    ["recipe", "cascade_recipe"],
    ["_recipe_folder", "_recipe_text"],
    ["methods"],
    ["significance"],
    ["data"],
    ["zoo"],
    ["padding"],
    ["pixels", "tokens", "attention"],
    ["_varlen"],
    ["_devices", "_recording", "_frozen", "_files"],
    ["errors"],
]
"""From the top down. A part may import what stands below it, and what stands beside it."""

UPWARDS = {
    ("methods.base", "recipe"): "the sum of two methods is a recipe",
}
"""Imports inside functions that look up -> why."""


def files() -> Iterator[tuple[str, Path]]:
    for path in sorted(SRC.rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


NAMES = {name for name, _ in files()}


def imported(name: str, path: Path, *, inner: bool) -> Iterator[str]:
    """Files of the package that one imports when it is loaded, or with `inner` in its functions."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    for node in ast.walk(ast.parse(path.read_text())) if inner else at_load(ast.parse(path.read_text()).body):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            whole = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                inside = f"{whole}.{alias.name}".lstrip(".")
                yield inside if inside in NAMES else whole


def at_load(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a file is loaded; what stands under TYPE_CHECKING never runs."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test):
            yield from at_load([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from at_load([*node.body, *node.orelse, *node.finalbody])


def test_no_two_files_import_each_other() -> None:
    graph = {name: {other for other in imported(name, path, inner=False) if other != name} for name, path in files()}
    # a folder's own __init__ names its files for those outside
    graph = {name: {o for o in others if not name.startswith(f"{o}.")} for name, others in graph.items() if name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(reversed(error.args[1]))}")


def test_every_part_has_its_place() -> None:
    parts = {name.split(".")[0] for name, _ in files() if name}
    assert parts == {part for layer in LAYERS for part in layer}


def test_imports_run_one_way() -> None:
    height = {part: -i for i, layer in enumerate(LAYERS) for part in layer}
    up = []
    for name, path in files():
        own = name.split(".")[0]
        for other in imported(name, path, inner=True):
            part = other.split(".")[0]
            if own and part and part != own and height[part] > height[own]:
                up.append((name, part))
    assert sorted(set(up) - set(UPWARDS)) == []
    assert set(UPWARDS) <= set(up), "an exception that is none any more"
