"""The answers of both models to each picture or video, as rows of a CSV file."""

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
    """Collects what two classifiers answer, batch by batch; `write` makes a file of it.

    Args:
        classes: names of the model's classes in index order, where they are known.
        labels: name of a label -> its index, as a set of pictures or videos has it.
    """

    def __init__(self, classes: Sequence[str] | None, labels: Mapping[str, int]) -> None:
        self.classes, self.labels = classes, {index: name for name, index in labels.items()}
        self.rows: list[dict[str, Any]] = []

    def see(self, batch: Batch, dense: Tensor, sieved: Tensor) -> None:
        """Both models' scores (B, K) for a batch."""
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
        """A row for each picture or video; `clips` are the seconds from and to which each clip of a video lasts.

        Raises:
            InputError: the place cannot be written to.
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
