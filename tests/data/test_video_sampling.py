"""Which frames of a video are read."""

from __future__ import annotations

import numpy as np
import pytest

from tokensieve.data import Views
from tokensieve.data.video_frames import Timeline
from tokensieve.data.video_sampling import dense_clips, sliding_windows, uniform_clips
from tokensieve.errors import RecipeError


def constant(count, rate=30.0):
    stamps = np.round(np.arange(count) * 1000 / rate).astype(np.int64)  # rounded to thousandths, as in Matroska
    return Timeline(stamps, stamps[:1], 0.001, rate)


class TestViews:
    @pytest.mark.parametrize(
        ("text", "clips", "crops"),
        [("1x1", 1, 1), ("5x3", 5, 3), ("1x3", 1, 3), ("1x10", 10, 1), ("3x10", 10, 3), ("7x1", 7, 1), ("2×3", 2, 3)],
    )
    def test_what_papers_write(self, text, clips, crops):
        assert Views.parse(text) == (clips, crops)
        assert Views.parse(text).total == clips * crops

    @pytest.mark.parametrize("text", ["5", "4x5", "0x3", "3x0", "", "x3", "5x-3"])
    def test_what_makes_no_views(self, text):
        with pytest.raises(RecipeError, match="views must be clips x crops"):
            Views.parse(text)


class TestDense:
    def test_one_clip_lies_in_the_middle(self):
        assert dense_clips(constant(100), 16, 4, 1).tolist() == [[19 + 4 * k for k in range(16)]]

    def test_several_reach_from_end_to_end(self):
        found = dense_clips(constant(300), 16, 4, 5)
        assert found[:, 0].tolist() == [0, 60, 120, 179, 239]
        assert found[-1, -1] == 299
        assert (np.diff(found, axis=1) == 4).all()

    def test_the_last_frame_of_a_short_video_is_repeated(self):
        assert dense_clips(constant(10), 16, 4, 1).tolist() == [[0, 4, 8] + [9] * 13]
        assert dense_clips(constant(1), 4, 4, 2).tolist() == [[0] * 4] * 2

    @pytest.mark.parametrize("rate", [29.97002997, 23.976, 12.5, 59.94])
    def test_rounded_stamps_do_not_shift_frames(self, rate):
        found = dense_clips(constant(2000, rate), 16, 4, 3)
        assert found[-1].tolist() == [2000 - 61 + 4 * k for k in range(16)]

    def test_a_rate_that_varies_is_sampled_by_time(self):
        # a second at 30 frames, a second's pause, a second at 30 frames
        seconds = np.concatenate([np.arange(30) / 30, 2 + np.arange(30) / 30])
        timeline = Timeline(np.round(seconds * 1000).astype(np.int64), np.zeros(1, np.int64), 0.001, 60 / 3)
        found = dense_clips(timeline, 6, 10, 1)[0]
        expected = []
        for k in range(6):
            moment = (4 + 10 * k) / 20  # of nine frames that are left over, four lie before the clip
            expected.append(max(i for i, shown in enumerate(seconds) if shown <= moment + 1 / 60))
        assert found.tolist() == expected == [6, 21, 29, 29, 36, 51]


class TestUniform:
    def test_the_middle_of_equal_parts(self):
        found = uniform_clips(constant(100), 8, 1)[0]
        assert found.tolist() == [int((k + 0.5) * 100 / 8) for k in range(8)]

    def test_two_clips_take_other_places_of_each_part(self):
        found = uniform_clips(constant(80), 8, 2)
        assert found.tolist() == [[2 + 10 * k for k in range(8)], [7 + 10 * k for k in range(8)]]

    def test_a_video_shorter_than_the_clip(self):
        assert uniform_clips(constant(2), 4, 1).tolist() == [[0, 0, 1, 1]]


class TestSliding:
    def test_end_to_end(self):
        assert sliding_windows(constant(192), 16, 4, None)[:, 0].tolist() == [0, 64, 128]

    def test_the_last_one_ends_with_the_video(self):
        found = sliding_windows(constant(200), 16, 4, None)
        assert found[:, 0].tolist() == [0, 64, 128, 136]
        assert found[-1, -1] == 196

    def test_a_step_in_seconds(self):
        assert sliding_windows(constant(120), 16, 4, 0.5)[:, 0].tolist() == [0, 15, 30, 45, 56]

    def test_a_video_shorter_than_a_clip_is_one(self):
        assert sliding_windows(constant(5), 4, 4, None).tolist() == [[0, 4, 4, 4]]

    @pytest.mark.parametrize("step", [0, -1.0, float("nan")])
    def test_a_step_that_leads_nowhere(self, step):
        with pytest.raises(RecipeError, match="number of seconds above 0"):
            sliding_windows(constant(120), 16, 4, step)
