"""Reads pictures from tables: Parquet files, and datasets of Hugging Face's `datasets`."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..data.images import UnusableError
from ..data.remote import Opener, is_url, open_file
from ..errors import InputError, cause, nearest

NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "bytes", "content")
"""Usual names of columns with pictures, used if the type of the column is not enough to find it."""


def pyarrow() -> Any:
    """Import pyarrow, with Parquet. Raises `InputError` if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            f"Parquet needs pyarrow ({error.name} is not installed): pip install 'tokensieve[jobs]', or give --format "
            "jsonl."
        ) from error
    return pyarrow


class ParquetCell(Opener):
    """The picture in one row of a Parquet file."""

    def __init__(self, path: str, column: str, group: int, row: int) -> None:
        self.path, self.column, self.group, self.row = path, column, group, row

    def open(self) -> Any:
        return _opened(_column(self.path, self.column, self.group)[self.row].as_py(), os.path.dirname(self.path))


class TableCell(Opener):
    """The picture in one row of a `datasets.Dataset`."""

    def __init__(self, table: Any, column: str, row: int) -> None:
        self.table, self.column, self.row = table, column, row

    def open(self) -> Any:
        return _opened(self.table[self.row][self.column], "")


def _opened(value: Any, folder: str) -> Any:
    """Open the content of a cell as a file: bytes, a path, or Hugging Face's {"bytes", "path"}."""
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(content, str):
        content, path = None, content
    if content is not None:
        return io.BytesIO(content)
    if not path:
        raise UnusableError("is an empty cell")
    return open_file(path if is_url(path) or os.path.isabs(path) else f"{folder}/{path}" if folder else path)


@lru_cache(maxsize=2)
def _column(path: str, column: str, group: int) -> Any:
    """A column of a row group, cached since pictures are read in order."""
    with open_file(path) as file:
        return pyarrow().parquet.ParquetFile(file).read_row_group(group, [column], use_threads=False).column(0)


def parquet_rows(
    path: str, name: str, image_column: str | None, id_column: str | None
) -> tuple[list[str], list[ParquetCell]]:
    """The ids and pictures of a Parquet file.

    Args:
        path: the file, or its URL.
        name: its name in ids, which are NAME#ROW unless there is an `id_column`.
        image_column: the column with pictures: bytes, paths, or Hugging Face's `Image`. None: it is found by type and
            name.
        id_column: the column with ids, which must be unique.

    Raises:
        InputError: it is not a Parquet file, or has no such column.
    """
    arrow = pyarrow()
    try:
        with open_file(path) as file:
            table = arrow.parquet.ParquetFile(file)
            schema, groups = table.schema_arrow, table.metadata.num_row_groups
            lengths = [table.metadata.row_group(group).num_rows for group in range(groups)]
            types = {field.name: field.type for field in schema}
            column = _image_column(path, types, image_column)
            ids = None
            if id_column is not None:
                _check_column(path, id_column, list(types))
                ids = [str(value) for value in table.read([id_column], use_threads=False).column(0).to_pylist()]
    except arrow.ArrowException as error:
        raise InputError(f"{path} cannot be read as Parquet: {cause(error)}.") from error
    cells = [ParquetCell(path, column, group, row) for group in range(groups) for row in range(lengths[group])]
    return ids or [f"{name}#{row}" for row in range(len(cells))], cells


def _image_column(path: str, types: dict[str, Any], column: str | None) -> str:
    """The name of the column with pictures, found by type and name unless `column` is given."""
    if column is not None:
        _check_column(path, column, list(types))
        return column
    structs = [name for name, kind in types.items() if str(kind).startswith("struct<") and "bytes" in str(kind)]
    lower = {name.lower(): name for name in types}
    usual = [lower[name] for name in NAMES if name in lower]
    binary = [name for name, kind in types.items() if str(kind) in ("binary", "large_binary")]
    candidates = structs or [name for name in usual if name in binary] or usual or binary
    if not candidates:
        raise InputError(
            f"{path} has no column that looks like pictures among {', '.join(types)}: give it by --image-column."
        )
    return candidates[0]


def _check_column(path: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise InputError(f"{path} has no column {name!r}{nearest(name, names)}: it has {', '.join(names)}.")


def dataset_rows(
    name: str, split: str, image_column: str | None, id_column: str | None, *, saved: bool
) -> tuple[list[str], list[TableCell]]:
    """The ids and pictures of a dataset of Hugging Face's `datasets`.

    Args:
        name: the name on the hub, or with `saved` a folder written by `save_to_disk`.
        split: the split, such as "train".
        image_column: as in `parquet_rows`.
        id_column: as in `parquet_rows`; without it ids are row numbers.
        saved: whether `name` is a folder.

    Raises:
        InputError: `datasets` is not installed, or cannot open the dataset.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{name} needs Hugging Face's datasets: pip install datasets.") from error
    try:
        table: Any = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, split=split)
        if isinstance(table, datasets.DatasetDict):
            _check_column(name, split, list(table))
            table = table[split]
    except InputError:
        raise
    except Exception as error:  # builders and downloaders can raise any exception
        raise InputError(f"datasets cannot open {name} (split {split}): {cause(error)}.") from error
    pictures = [key for key, feature in table.features.items() if isinstance(feature, datasets.Image)]
    if image_column is None and pictures:
        image_column = pictures[0]
    column = _image_column(name, dict.fromkeys(table.features, ""), image_column)
    if isinstance(table.features[column], datasets.Image):
        table = table.cast_column(column, datasets.Image(decode=False))
    if id_column is not None:
        _check_column(name, id_column, list(table.features))
    ids = [str(i) for i in range(len(table))] if id_column is None else [str(value) for value in table[id_column]]
    table = table.select_columns([column])
    return ids, [TableCell(table, column, row) for row in range(len(table))]
