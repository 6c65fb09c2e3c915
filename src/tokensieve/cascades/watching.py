"""Drift detection: whether the images in use are like those that a cascade was calibrated on."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from math import sqrt

MIN_IMAGES = 200
"""Images before a warning is possible."""
WINDOW = 2000
"""Images after which all counts so far are halved."""
DRIFT_AT = 4.0
"""Standard errors by which the share read again must differ: one false warning in 15,000 tests."""


class DriftWarning(UserWarning):
    """The share of images read again differs from the calibration's: its promise may not hold for these images."""


class Watch:
    """Counts the images that each member reads, and warns once per drift from the calibration.

    Args:
        members: number of members.
        expected: the share of the calibration's images that was read again after the first reading; None where that is
            not known, and no warning is given.
        images: number of images of the calibration.
    """

    def __init__(self, members: int, expected: float | None = None, images: int = 0) -> None:
        self.expected, self.images, self.seen = expected, images, 0
        """`seen`: images so far."""
        self.reads = [0] * members
        """How many of them each member read."""
        self.counts = [0.0, 0.0]
        """Images read, and read again, of the latest ones (see `WINDOW`)."""
        self.drifted = False
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of all images in use so far that each member read; zeros where there were none."""
        return tuple(count / max(self.seen, 1) for count in self.reads)

    def see(self, reads: Mapping[int, int]) -> None:
        """Count a batch, given how many images each member read, the first all of them; warns at a drift."""
        read, reread = [*reads.values(), 0][:2]
        with self._lock:
            self.seen += read
            for member, count in reads.items():
                self.reads[member] += count
            if self.expected is None:
                return
            seen, again = self.counts[0] + read, self.counts[1] + reread
            share, deviation = again / max(seen, 1), self._standard_errors(seen, again)
            decay = 0.5 if seen > WINDOW else 1.0
            self.counts = [seen * decay, again * decay]
            warn = seen >= MIN_IMAGES and deviation > DRIFT_AT and not self.drifted
            self.drifted = warn or (self.drifted and deviation > DRIFT_AT / 2)
            expected = self.expected
        if warn:
            warnings.warn(
                f"Of the last {seen:.0f} images {100 * share:.0f} % were read again, of the {self.images} that this "
                f"cascade was calibrated on {100 * expected:.0f} %: these are other images, for which its promise "
                "need not hold. Calibrate it on images like these: tokensieve.cascade(members, images).",
                DriftWarning,
                stacklevel=3,
            )

    def _standard_errors(self, seen: float, again: float) -> float:
        """By how many standard errors the two shares differ, under the hypothesis that they are equal."""
        if self.expected is None or not seen:
            return 0.0
        pooled = (again + self.expected * self.images) / (seen + self.images)
        spread = sqrt(max(pooled * (1 - pooled), 1e-12) * (1 / seen + 1 / self.images))
        return abs(again / seen - self.expected) / spread
