"""Whether the images that a cascade reads in use are like those that it was calibrated on."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from math import sqrt

LEAST = 200
"""Images before anything is said."""
WINDOW = 2000
"""Images after which the older ones begin to count half."""
SURE = 4.0
"""Standard errors that the share read again must be off by: of 15,000 looks one is wrong."""


class DriftWarning(UserWarning):
    """The share of images read again is not that of the calibration: its promise need not hold for these images."""


class Watch:
    """Counts the images that each member reads, and says once for each drift that they are not as in the calibration.

    Args:
        members: how many there are.
        expected: the share of the calibration's images that was read again after the first reading; None where that is
            not known, and nothing is said.
        images: how many those were.
    """

    def __init__(self, members: int, expected: float | None = None, images: int = 0) -> None:
        self.expected, self.images, self.seen = expected, images, 0
        """`seen`: images so far."""
        self.reads = [0] * members
        """How many of them each member read."""
        self.counts = [0.0, 0.0]
        """Images read, and read again, the latest ones."""
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
        """Count a batch of which each member read so many, the first of them all; warns where they drift."""
        read, again = [*reads.values(), 0][:2]
        with self._lock:
            self.seen += read
            for member, count in reads.items():
                self.reads[member] += count
            if self.expected is None:
                return
            seen, repeated = self.counts[0] + read, self.counts[1] + again
            share, off = repeated / max(seen, 1), self._off(seen, repeated)
            fade = 0.5 if seen > WINDOW else 1.0
            self.counts = [seen * fade, repeated * fade]
            says = seen >= LEAST and off > SURE and not self.drifted
            self.drifted = says or (self.drifted and off > SURE / 2)
            expected = self.expected
        if says:
            warnings.warn(
                f"Of the last {seen:.0f} images {100 * share:.0f} % were read again, of the {self.images} that this "
                f"cascade was calibrated on {100 * expected:.0f} %: these are other images, for which its promise "
                "need not hold. Calibrate it on images like these: tokensieve.cascade(members, images).",
                DriftWarning,
                stacklevel=3,
            )

    def _off(self, seen: float, repeated: float) -> float:
        """By how many standard errors the two shares differ, as two samples of one."""
        if self.expected is None or not seen:
            return 0.0
        pooled = (repeated + self.expected * self.images) / (seen + self.images)
        spread = sqrt(max(pooled * (1 - pooled), 1e-12) * (1 / seen + 1 / self.images))
        return abs(repeated / seen - self.expected) / spread
