"""Writes the predictions of both models for each picture or video as rows of a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .._files import draft
from ..data import Batch
from .explain import compare_answers


class Predictions:
    """Collects the predictions of two classifiers, batch by batch; `write` writes them to a file.

    Args:
        classes: names of the model's classes in index order; None if they are not known.
        labels: name of a label -> its index, from the dataset.
    """

    def __init__(self, classes: Sequence[str] | None, labels: Mapping[str, int]) -> None:
        self.classes, self.labels = classes, {index: name for name, index in labels.items()}
        self.rows: list[dict[str, Any]] = []

    def see(self, batch: Batch, dense: Tensor, sieved: Tensor) -> None:
        """Add both models' scores (B, K) for a batch."""
        verdicts = compare_answers(dense.float().softmax(-1), sieved, self.classes)
        for index, (path, label, verdict) in enumerate(zip(batch.paths, batch.labels.tolist(), verdicts, strict=True)):
            assert verdict is not None
            columns: dict[str, Any] = {"path": path}
            if batch.times is not None:
                columns["clips"] = spans(batch.times[index])
            columns |= {"label": "" if label < 0 else label, "label_name": self._name(label)}
            for side, answer in (("dense", verdict.dense), ("sieved", verdict.sieved)):
                name = answer.name or self._name(answer.index)
                columns |= {
                    side: answer.index,
                    f"{side}_name": name,
                    f"{side}_probability": round(answer.probability, 6),
                }
            self.rows.append(columns)

    def write(self, path: Path) -> None:
        """Write a row for each picture or video; `clips` holds start and end of each clip of a video in seconds.

        Raises:
            InputError: the file cannot be written.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        with draft(path) as file:
            file.write_text(text.getvalue(), encoding="utf-8", errors="replace")

    def _name(self, index: int) -> str:
        return self.labels.get(index, "")


def spans(times: Tensor) -> str:
    """(clips, frames) seconds -> "0.00-2.00 3.97-5.97"."""
    return " ".join(f"{clip[0]:.2f}-{clip[-1]:.2f}" for clip in times.tolist())
