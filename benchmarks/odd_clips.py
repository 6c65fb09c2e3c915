"""What becomes of each kind of odd or broken video, alone and in a folder -> results/odd_clips.csv.

    python benchmarks/odd_clips.py

Each is made with PyAV in a folder of its own, beside a good clip, and read as 16 frames with a stride of 4.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import av

from results import ROOT, write

sys.path.insert(0, str(ROOT))  # the clips are shared with the tests
from tests.odd_clips import ODD_CLIPS, numbered
from tests.odd_clips import write as write_clip
from tokensieve.data import VideoPreprocessing, load_batches, read_clips, video_set
from tokensieve.data.video_frames import timeline_of


def main() -> int:
    rows, wrong = [], 0
    prepared = VideoPreprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for name, odd in ODD_CLIPS.items():
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "set" / "odd.mp4"
            write_clip(path.with_name("good.mp4"), numbered(90))
            odd.make(path)
            batches = load_batches(video_set(path.parent, prepared), 2)
            read = [Path(each).name for batch in batches for each in batch.paths]
            reason = batches.failures[0].reason if batches.failures else ""
            row = {"clip": name, "read": "odd.mp4" in read, "said": reason, "others_read": "good.mp4" in read}
            if row["read"]:
                timeline, clips = timeline_of(path), read_clips(path, prepared)
                row |= {
                    "frames": len(timeline),
                    "rate": timeline.rate,
                    "seconds": timeline.duration,
                    "first_s": float(clips.times[0, 0]),
                    "last_s": float(clips.times[0, -1]),
                }
            right = row["others_read"] and (
                reason.startswith(odd.fails) if odd.fails else row.get("frames") == odd.frames
            )
            wrong += not right
            rows.append({**row, "as_expected": right, "pyav": av.__version__})
    write("odd_clips.csv", rows)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
