"""Videos of every kind that turns up, read by time, upright, or refused in a sentence."""

from __future__ import annotations

import sys
import tarfile
import weakref
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av")

from tests.odd_clips import ODD_CLIPS, TURNS, VARYING, number_of, numbered, turn, write
from tokensieve.data import (
    VideoPreprocessing,
    average_views,
    load_batches,
    read_clips,
    sliding_clips,
    video_set,
    views_as_batch,
)
from tokensieve.data.video_frames import frames_at, timeline_of
from tokensieve.errors import InputError, RecipeError


def prepared(**changes):
    plain = {"input_size": (16, 16), "mean": (0.0,) * 3, "std": (1.0,) * 3, "frames": 4, "stride": 2}
    return VideoPreprocessing(**{**plain, **changes})


def numbers(clip):
    """Which frames of `numbered` a clip (T, 3, H, W) in [0, 1] shows, by its lower right corner."""
    return [number_of(float(frame[0, -2, -2]) * 255) for frame in clip]


def near(found, expected):
    """A lossy codec may be one grey off."""
    return len(found) == len(expected) and all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True))


@pytest.fixture
def clip(tmp_path):
    return write(tmp_path / "clip.mp4", numbered(60))


class TestFrames:
    KINDS = (
        ("mp4", "libx264", {"g": "12", "bf": "3", "preset": "medium"}),
        ("mkv", "libx264", {"g": "12", "bf": "3", "preset": "medium"}),
        ("ts", "libx264", {"g": "12", "bf": "3", "preset": "medium"}),
        ("avi", "mpeg4", {}),
        ("mpg", "mpeg2video", {}),
        ("webm", "libvpx-vp9", {}),
    )

    @pytest.mark.parametrize(("ending", "codec", "options"), KINDS, ids=lambda value: value if value else None)
    def test_skipping_to_key_frames_gives_the_frames_themselves(self, ending, codec, options, tmp_path):
        path = write(tmp_path / f"x.{ending}", numbered(60), codec=codec, options=options)
        timeline = timeline_of(path)
        assert (len(timeline), round(timeline.rate, 3), round(timeline.duration, 2)) == (60, 30, 2)
        every = dict(frames_at(path, timeline, range(60)))
        assert near([number_of(every[i][-2, -2].mean()) for i in range(60)], range(60)) or ending in ("avi", "mpg")
        for wanted in ([3, 4, 33, 50, 51], [59], [0], [12, 24, 36], [11, 13]):
            some = list(frames_at(path, timeline, wanted))
            assert [index for index, _ in some] == wanted
            assert all(np.array_equal(frame, every[index]) for index, frame in some)

    def test_what_is_skipped_is_not_decoded(self, tmp_path, monkeypatch):
        from tokensieve.data import video_frames

        path = write(tmp_path / "x.mp4", numbered(120), options={"g": "10"})
        timeline, seen = timeline_of(path), []
        decode = video_frames._Decoder._decode

        def watched(decoder):
            for stamp, frame in decode(decoder):
                seen.append(stamp)
                yield stamp, frame

        monkeypatch.setattr(video_frames._Decoder, "_decode", watched)
        assert [index for index, _ in frames_at(path, timeline, [95, 112])] == [95, 112]
        assert len(seen) <= 12

    @pytest.mark.parametrize("how", TURNS)
    def test_they_are_upright(self, how, clip):
        """The point (x, y) is shown at (a x + c y, b x + d y), moved into the picture."""
        (_, flat), *_ = frames_at(clip, timeline_of(clip), [0])
        turn(clip, how)
        (_, found), *_ = frames_at(clip, timeline_of(clip), [0])
        a, b, c, d = TURNS[how]
        height, width = flat.shape[:2]
        points = {(a * x + c * y, b * x + d * y): flat[y, x] for y in range(height) for x in range(width)}
        left, top = min(x for x, _ in points), min(y for _, y in points)
        expected = np.zeros((width, height, 3) if a == 0 else flat.shape, np.uint8)
        for (x, y), value in points.items():
            expected[y - top, x - left] = value
        assert np.array_equal(found, expected)

    def test_stamps_that_begin_late_count_from_the_first_frame(self, tmp_path):
        path = write(tmp_path / "x.mkv", numbered(6), stamps=[5000 + 100 * i for i in range(6)])
        assert timeline_of(path).seconds.round(3).tolist() == [0, 0.1, 0.2, 0.3, 0.4, 0.5]


class TestClips:
    def test_the_frames_that_are_asked_for(self, clip):
        found = read_clips(clip, prepared(views="3x1"))
        starts = [0, 27, 53]  # 60 frames, spans of 7
        assert found.clips.shape == (3, 4, 3, 16, 16)
        for view, start in enumerate(starts):
            assert near(numbers(found.clips[view]), [start + 2 * k for k in range(4)])
        assert np.allclose(found.times, [[(start + 2 * k) / 30 for k in range(4)] for start in starts])
        assert (found.duration, found.rate) == (pytest.approx(2), 30)

    def test_five_clips_of_three_crops_come_crop_by_crop(self, clip):
        five = read_clips(clip, prepared(views="5x1"))
        found = read_clips(clip, prepared(views="5x3"))
        assert (found.clips.shape, found.times.shape) == ((15, 4, 3, 16, 16), (5, 4))
        assert torch.equal(found.clips[1::3], five.clips)
        assert found.clips[0, 0, 0, 0, 0] > 0.9  # the corner is white on the left alone
        assert found.clips[2, 0, 0, 0, 3] < 0.2

    def test_uniform_sampling(self, clip):
        assert near(numbers(read_clips(clip, prepared(sampling="uniform")).clips[0]), [7, 22, 37, 52])

    def test_files_that_are_open(self, clip):
        with clip.open("rb") as file:
            assert torch.equal(read_clips(file, prepared()).clips, read_clips(clip, prepared()).clips)

    def test_a_rate_that_is_a_fraction(self, tmp_path):
        path = write(tmp_path / "x.mp4", numbered(60), rate=Fraction(30000, 1001))
        assert near(numbers(read_clips(path, prepared()).clips[0]), [26, 28, 30, 32])

    def test_a_rate_that_varies(self, tmp_path):
        path = write(tmp_path / "x.mp4", numbered(12), stamps=VARYING)
        timeline = timeline_of(path)
        assert np.allclose(timeline.seconds * 1000, VARYING, atol=0.1)
        found = read_clips(path, prepared(stride=3))
        expected = []
        for k in range(4):
            moment = 1000 * (1 + 3 * k) / timeline.rate  # the one frame that is left over lies half before the clip
            expected.append(max(i for i, stamp in enumerate(VARYING) if stamp <= moment + 17))
        assert near(numbers(found.clips[0]), expected)


class TestSliding:
    def test_they_cover_the_video(self, clip):
        windows = list(sliding_clips(clip, prepared()))
        assert [window.clip.shape for window in windows] == [(4, 3, 16, 16)] * 8
        starts = [0, 8, 16, 24, 32, 40, 48, 52]
        assert [round(window.start * 30) for window in windows] == starts
        assert [round(window.end * 30) for window in windows] == [start + 6 for start in starts]
        assert all(near(numbers(w.clip), range(s, s + 8, 2)) for w, s in zip(windows, starts, strict=True))

    def test_overlapping_ones_are_those_of_the_clips_alone(self, clip):
        for window in sliding_clips(clip, prepared(), step=0.1):
            start = round(window.start * 30)
            assert near(numbers(window.clip), range(start, start + 8, 2))

    def test_crops(self, clip):
        assert next(sliding_clips(clip, prepared(views="1x3"))).clip.shape == (3, 4, 3, 16, 16)

    def test_few_frames_are_held(self, tmp_path, monkeypatch):
        frames, resize = [], VideoPreprocessing.resize

        def counted(self, frame):
            resized = resize(self, frame)
            frames.append(weakref.ref(resized))
            return resized

        monkeypatch.setattr(VideoPreprocessing, "resize", counted)
        windows, most = sliding_clips(write(tmp_path / "x.mp4", numbered(200)), prepared()), 0
        for _ in range(5):
            next(windows)
            most = max(most, sum(frame() is not None for frame in frames))
        assert 4 <= most <= 8

    def test_errors_are_sentences(self, tmp_path):
        (tmp_path / "x.mp4").write_bytes(b"")
        with pytest.raises(InputError, match=r"x\.mp4 is empty: 0 bytes\."):
            next(sliding_clips(tmp_path / "x.mp4", prepared()))


class TestOddClips:
    @pytest.mark.parametrize("name", ODD_CLIPS)
    def test_each_is_read_or_a_sentence(self, name, tmp_path):
        odd, path = ODD_CLIPS[name], tmp_path / "odd.mp4"
        odd.make(path)
        if odd.fails is not None:
            with pytest.raises(InputError) as raised:
                read_clips(path, prepared())
            assert str(raised.value).startswith(f"{path} {odd.fails}")
            assert str(raised.value).endswith(".")
            return
        assert len(timeline_of(path)) == odd.frames
        found = read_clips(path, prepared())
        assert found.clips.shape == (1, 4, 3, 16, 16)
        if odd.frames == 20:
            assert near(numbers(found.clips[0]), [6, 8, 10, 12])

    def test_a_job_goes_on(self, tmp_path):
        for name, odd in ODD_CLIPS.items():
            odd.make(tmp_path / "set" / "c" / f"{name}.mp4") if odd.fails is None else None
        for name, odd in ODD_CLIPS.items():
            if odd.fails is not None:
                odd.make(tmp_path / "set" / "c" / f"{name}.mp4")
        found = video_set(tmp_path / "set", prepared())
        batches = load_batches(found, 3)
        read = [path for batch in batches for path in batch.paths]
        good = {name for name, odd in ODD_CLIPS.items() if odd.fails is None}
        assert {Path(path).stem.removesuffix(".mp4") for path in read} == {name.removesuffix(".mp4") for name in good}
        assert len(batches.failures) == len(ODD_CLIPS) - len(good)
        for failure in batches.failures:
            name = next(name for name in ODD_CLIPS if failure.path.endswith(f"{name}.mp4"))
            assert failure.reason.startswith(ODD_CLIPS[name].fails)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(InputError, match=r"none\.mp4 does not exist\."):
            read_clips(tmp_path / "none.mp4", prepared())

    def test_the_cover_of_a_song_is_no_video(self, tmp_path):
        import av

        with av.open(str(tmp_path / "x.mp4"), "w") as out:
            stream = out.add_stream("mjpeg", rate=1)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
            try:
                stream.disposition = 1 << 10
            except (AttributeError, TypeError):
                pytest.skip("this PyAV cannot mark a stream as a cover")
            out.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(1)[0], format="rgb24")))
            out.mux(stream.encode())
        with pytest.raises(InputError, match="holds no video"):
            read_clips(tmp_path / "x.mp4", prepared())


class TestSets:
    @pytest.fixture
    def root(self, tmp_path):
        for name in ("run/0.mp4", "run/1.mkv", "jump/0.mp4"):
            write(tmp_path / "set" / name, numbered(12))
        (tmp_path / "set" / "jump" / "notes.txt").write_text("text")
        (tmp_path / "set" / "sit").mkdir()
        return tmp_path / "set"

    def test_a_folder_of_class_folders(self, root):
        found = video_set(root, prepared())
        assert found.classes == {"jump": 0, "run": 1, "sit": 2}
        assert [label for _, label in found] == [0, 1, 1]
        assert [each.reason for each in found.skipped] == [".txt"]
        assert "the class folder sit holds no video; it stays class 2" in " ".join(found.notes)

    def test_a_tar_of_it(self, root, tmp_path):
        with tarfile.open(tmp_path / "set.tar", "w") as tar:
            tar.add(root, "set")
        packed, folder = video_set(tmp_path / "set.tar", prepared()), video_set(root, prepared())
        assert packed.classes == folder.classes
        for (ours, label), (theirs, expected) in zip(packed, folder, strict=True):
            assert torch.equal(ours, theirs)
            assert label == expected

    def test_a_list(self, root, tmp_path):
        (tmp_path / "val.csv").write_text("set/run/0.mp4,5\nset/gone.mp4,2\nset/jump/0.mp4,3\n")
        batches = load_batches(video_set(tmp_path / "val.csv", prepared()), 8)
        (batch,) = batches
        assert batch.labels.tolist() == [5, 3]
        (failure,) = batches.failures
        assert str(failure) == f"{tmp_path / 'set/gone.mp4'} does not exist"

    def test_one_file(self, root):
        (found,) = video_set(root / "run" / "0.mp4", prepared())
        assert (found[0].shape, found[1]) == ((4, 3, 16, 16), -1)

    def test_many_views_are_stacked_and_averaged(self, root):
        settings = prepared(views="2x3", layout="CTHW")
        (batch,) = load_batches(video_set(root, settings), 8)
        assert batch.images.shape == (3, 6, 3, 4, 16, 16)
        clips = views_as_batch(batch.images, settings)
        assert torch.equal(clips[7], batch.images[1, 1])
        scores = torch.randn(18, 5)
        expected = torch.stack([scores[6 * i : 6 * i + 6].softmax(1).mean(0) for i in range(3)])
        assert torch.allclose(average_views(scores, 6), expected)
        with pytest.raises(InputError, match="18 clips cannot be divided into videos of 4 views each"):
            average_views(scores, 4)

    def test_one_view_stays_a_batch(self, root):
        (batch,) = load_batches(video_set(root, prepared()), 8)
        assert views_as_batch(batch.images, prepared()) is batch.images

    def test_a_limit(self, root):
        assert [label for _, label in video_set(root, prepared(), limit=2)] == [0, 1]
        with pytest.raises(RecipeError, match="at least 1"):
            video_set(root, prepared(), limit=0)

    def test_nothing_there(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match=r"holds no videos\. Extensions that are read: \.3g2 "):
            video_set(tmp_path / "empty", prepared())
        with pytest.raises(InputError, match="does not exist: give a folder"):
            video_set(tmp_path / "none", prepared())

    def test_without_the_library(self, root, monkeypatch):
        monkeypatch.setitem(sys.modules, "av", None)
        with pytest.raises(InputError, match=r"needs PyAV: pip install 'tokensieve\[video\]'"):
            video_set(root, prepared())


@pytest.mark.shared
def test_real_clips(shared):
    found = video_set(shared / "data" / "clips", prepared(frames=16, stride=4, input_size=(224, 224), views="5x3"))
    assert len(found) == 3
    for clips, label in found:
        assert (clips.shape, label) == ((15, 16, 3, 224, 224), -1)
        assert 0.05 < clips.mean() < 0.95
        assert clips.std() > 0.05
        moved = (clips[7, 1:] - clips[7, :-1]).abs().mean()
        assert 0 < moved < 0.2  # neighbours are alike, and no two frames the same picture
    windows = list(sliding_clips(found.path(0), prepared(frames=16, stride=4)))
    assert [window.start for window in windows] == sorted(window.start for window in windows)
    assert windows[-1].end > 9
