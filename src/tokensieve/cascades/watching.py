"""Drift detection: whether the images in use are like those on which a cascade was calibrated."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from math import sqrt

MIN_IMAGES = 200
"""Smallest number of images for a warning."""
WINDOW = 2000
"""Number of images after which the counts are halved, so that later images count more."""
DRIFT_AT = 4.0
"""Number of standard errors by which the share read again must differ for a warning: one false one in 15,000 tests."""


class DriftWarning(UserWarning):
    """The share of images read again differs from the calibration, so the certified agreement may not hold for these
    images."""


class Watch:
    """Counts the images that each member reads, and warns once when their shares drift from the calibration.

    Args:
        members: number of members.
        expected: the share of the calibration images that were read again after the first member; None if unknown, in
            which case there are no warnings.
        images: number of calibration images.
    """

    def __init__(self, members: int, expected: float | None = None, images: int = 0) -> None:
        self.expected, self.images, self.seen = expected, images, 0
        """`seen`: number of images so far."""
        self.reads = [0] * members
        """Number of these images that each member read."""
        self.counts = [0.0, 0.0]
        """Numbers of recent images read, and read again (see `WINDOW`)."""
        self.drifted = False
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of all images so far that each member read; zeros if there were none."""
        return tuple(count / max(self.seen, 1) for count in self.reads)

    def see(self, reads: Mapping[int, int]) -> None:
        """Count a batch, and warn of drift; `reads` is the number of images that each member read, where the first
        member read all."""
        first_count, second_count = [*reads.values(), 0][:2]
        with self._lock:
            self.seen += first_count
            for member, count in reads.items():
                self.reads[member] += count
            if self.expected is None:
                return
            seen, again = self.counts[0] + first_count, self.counts[1] + second_count
            share, deviation = again / max(seen, 1), self._standard_errors(seen, again)
            decay = 0.5 if seen > WINDOW else 1.0
            self.counts = [seen * decay, again * decay]
            warn = seen >= MIN_IMAGES and deviation > DRIFT_AT and not self.drifted
            self.drifted = warn or (self.drifted and deviation > DRIFT_AT / 2)
            expected = self.expected
        if warn:
            warnings.warn(
                f"Of the last {seen:.0f} images {100 * share:.0f} % were read again, of the {self.images} calibration "
                f"images {100 * expected:.0f} %: the images in use are different, and the certified agreement may not "
                "hold for them. Calibrate the cascade on images like these: tokensieve.cascade(members, images).",
                DriftWarning,
                stacklevel=3,
            )

    def _standard_errors(self, seen: float, again: float) -> float:
        """The difference of the two shares in standard errors, under the hypothesis that they are equal."""
        if self.expected is None or not seen:
            return 0.0
        pooled = (again + self.expected * self.images) / (seen + self.images)
        standard_error = sqrt(max(pooled * (1 - pooled), 1e-12) * (1 / seen + 1 / self.images))
        return abs(again / seen - self.expected) / standard_error
