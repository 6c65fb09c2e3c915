"""Writes and reads the files of a job: rows and errors, as Parquet or JSON lines."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .columns import Columns
from .output_folder import OutputFolder
from .rows import pyarrow

ENDINGS = {"parquet": ".parquet", "jsonl": ".jsonl"}


def shard_name(number: int, form: str) -> str:
    """The path of a shard's rows, relative to the job's folder."""
    return f"rows/{number:05d}{ENDINGS[form]}"


def errors_name(number: int) -> str:
    """The path of a shard's errors, relative to the job's folder."""
    return f"errors/{number:05d}.json"


def write_rows(path: Path, columns: Columns, form: str) -> None:
    """Write columns as one file."""
    if form == "jsonl":
        _write_lines(path, columns)
        return
    arrow = pyarrow()
    table = arrow.table({name: _array(arrow, values) for name, values in columns.items()})
    arrow.parquet.write_table(table, path, compression="zstd")


def _array(arrow: Any, values: Any) -> Any:
    """An Arrow column; arrays of more dimensions become nested lists of fixed size."""
    if isinstance(values, np.ndarray):
        array = arrow.array(np.ascontiguousarray(values).reshape(-1))
        for side in reversed(values.shape[1:]):
            array = arrow.FixedSizeListArray.from_arrays(array, side)
        return array
    kind = arrow.binary() if any(isinstance(value, bytes) for value in values) else arrow.string()
    return arrow.array(values, kind)


def _write_lines(path: Path, columns: Columns) -> None:
    """Write rows as JSON lines, with bytes in base64."""
    lists = [values.tolist() if isinstance(values, np.ndarray) else values for values in columns.values()]
    with path.open("w", encoding="utf-8") as file:
        for item in zip(*lists, strict=True):
            encoded = (base64.b64encode(value).decode() if isinstance(value, bytes) else value for value in item)
            file.write(json.dumps(dict(zip(columns, encoded, strict=True)), ensure_ascii=False) + "\n")


def no_rows(columns: Columns) -> Columns:
    """The same columns without rows, for a shard in which no item could be read."""
    return {name: values[:0] for name, values in columns.items()}


def write_errors(output: OutputFolder, number: int, errors: Sequence[Mapping[str, str]]) -> None:
    """Write the errors of a shard; called before its rows are written."""
    if errors:
        output.write_text(errors_name(number), json.dumps(list(errors), ensure_ascii=False))
    else:
        output.remove(errors_name(number))


def gathered_errors(output: OutputFolder, shards: Sequence[int]) -> list[dict[str, str]]:
    """The errors of finished shards, in the order of the items."""
    names = set(output.names("errors"))
    errors = []
    for number in shards:
        name = errors_name(number)
        if name.rpartition("/")[2] in names:
            errors += json.loads(output.read(name) or b"[]")
    return errors


def write_gathered(output: OutputFolder, form: str, errors: Sequence[Mapping[str, str]]) -> None:
    """Write errors.parquet or errors.jsonl, with the `id` and `error` of each item without a row."""
    columns: Columns = {key: [error[key] for error in errors] for key in ("id", "error")}
    output.write(f"errors{ENDINGS[form]}", lambda path: write_rows(path, columns, form))


def finished(output: OutputFolder, form: str) -> set[int]:
    """Numbers of the shards whose rows are written."""
    ending = ENDINGS[form]
    stems = (name.removesuffix(ending) for name in output.names("rows") if name.endswith(ending))
    return {int(stem) for stem in stems if stem.isdecimal()}
