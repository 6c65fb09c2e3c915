"""Clips under a recipe: layers, counts over time, frames of a film, and the files that they become."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("av")
pytest.importorskip("transformers")

import av

from tests.reference.video_hosts import still_clips, video_forms
from tokensieve import Sieved, sieve
from tokensieve.data import Failure, VideoPreprocessing
from tokensieve.errors import InputError
from tokensieve.model_spec import OpenedModel
from tokensieve.show import clip_gallery
from tokensieve.show.clip_frames import annotated_frames
from tokensieve.show.clip_gallery import Clip, show_clips
from tokensieve.show.clips import MOMENTS, ExplainedClip, explain_clips
from tokensieve.show.pictures import heat
from tokensieve.show.video_file import film, write_video

OWN = VideoPreprocessing((24, 32), (0.5,) * 3, (0.25,) * 3, frames=4, stride=2)
TIMES = torch.tensor([[0.0, 0.2, 0.4, 0.6]])


@pytest.fixture(scope="module")
def model() -> Any:
    return video_forms()["videomae"]()


def explained(model: Any, recipe: str, clips: Tensor | None = None) -> ExplainedClip:
    clips = still_clips(model, 1) if clips is None else clips
    (one,) = explain_clips(sieve(model, recipe), model, clips, TIMES, OWN, height=48)
    return one


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), dtype=int)


def test_layers_are_those_that_the_recipe_has(model: Any) -> None:
    for recipe, captions in {
        "": ["Input"],
        "papr(keep=0.5, significance=motion)": ["Input", "Significance map", "Kept patches"],
        "tome(r=2)": ["Input", "Merged patches"],
        "papr(keep=0.8, significance=centre) + tome(r=1)": [
            "Input", "Significance map", "Kept patches", "Merged patches",
        ],
    }.items():  # fmt: skip
        one = explained(model, recipe)
        assert [layer.caption for layer in one.layers] == captions
        assert {len(layer.pictures) for layer in one.layers} == {4}
        assert {picture.size for layer in one.layers for picture in layer.pictures} == {(64, 48)}


def test_counts_over_time_are_those_of_the_trace(model: Any) -> None:
    clips, fast = still_clips(model, 1), sieve(model, "papr(keep=0.5, significance=motion)")
    one, trace = explained(model, "papr(keep=0.5, significance=motion)"), fast.trace(clips)
    assert (one.moments, one.patches) == (2, 12)
    expected = [int((trace.kept[0] // 12 == moment).sum()) for moment in range(2)]
    assert one.kept == tuple(expected)
    record = one.record()
    assert (record["start"], record["end"]) == (0.0, pytest.approx(0.6))
    assert record["kept"] == sum(record["kept_per_moment"]) == trace.kept.shape[1]
    assert record["dense"]["index"] == int(model(clips).logits.argmax())
    assert record["tokens_per_block"] == trace.tokens_per_block


def test_kept_patches_are_bright_where_they_were_kept_at_their_moment(model: Any) -> None:
    clips = torch.ones(1, 4, 3, 24, 32)
    kept = torch.zeros(1, 24)
    kept[0, 0], kept[0, 12 + 7] = 2, 1  # the first patch of the first moment, one of the second
    one = explained_by(model, kept, 2, clips)
    drawn = next(layer for layer in one.layers if layer.caption == "Kept patches")
    bright = [[pixels(drawn.pictures[f])[8 + 16 * r, 8 + 16 * c].min() > 150 for r in range(3) for c in range(4)]
              for f in range(4)]  # fmt: skip
    assert [[index for index, is_bright in enumerate(row) if is_bright] for row in bright] == [[0], [0], [7], [7]]
    assert drawn.notes == ("1 of 12", "1 of 12", "1 of 12", "1 of 12")


def explained_by(model: Any, map: Tensor, count: int, clips: Tensor) -> ExplainedClip:
    from tokensieve import PaPr

    fast = sieve(model, PaPr(keep=(count + 0.5) / 24, significance=map))
    (one,) = explain_clips(fast, model, clips, TIMES, OWN, height=48)
    return one


def test_a_map_has_one_scale_over_all_moments(model: Any) -> None:
    map = torch.cat([torch.full((12,), 1.0), torch.full((12,), 3.0)])
    map[0], map[23] = 0, 4
    one = explained_by(model, map[None], 5, torch.zeros(1, 4, 3, 24, 32))
    drawn = next(layer.pictures for layer in one.layers if layer.caption == "Significance map")
    grey = Image.new("RGB", (64, 48), (128, 128, 128))
    whole = heat(grey, map.view(2, 3, 4)[0], (0.0, 4.0))
    assert np.abs(pixels(drawn[0]) - pixels(whole)).max() <= 1
    assert (pixels(drawn[0])[40, 40] != pixels(drawn[2])[8, 8]).any()


def test_merged_tubes_have_one_colour_over_time(model: Any) -> None:
    clips = torch.randn(1, 4, 3, 24, 32, generator=torch.Generator().manual_seed(3))
    clips[0, 2:] = clips[0, :2]
    one = explained(model, "tome(r=6)", clips)
    source = sieve(model, "tome(r=6)").trace(clips).source[0].view(2, 3, 4)
    drawn = next(layer.pictures for layer in one.layers if layer.caption == "Merged patches")
    across = [(r, c) for r in range(3) for c in range(4) if source[0, r, c] == source[1, r, c]]
    assert across  # what stands still is merged over time
    for r, c in across:
        one_side, other = (pixels(drawn[f])[8 + 16 * r, 8 + 16 * c] for f in (0, 2))
        assert (one_side == other).all()


def test_a_strip_has_a_column_for_each_moment_up_to_some() -> None:
    class Long:
        moments, times, layers = 32, tuple(range(64)), ()

    strip = ExplainedClip.panels(Long())  # type: ignore[arg-type]
    assert strip == ()
    long = ExplainedClip(tuple(map(float, range(64))), 32, (Long64(),), None, 0, None, 4)  # type: ignore[arg-type]
    (row,) = long.panels()
    assert [panel.note for panel in row] == [f"frame {8 * i}" for i in range(MOMENTS)]


class Long64:
    caption = "Input"
    pictures = tuple(Image.new("RGB", (8, 8)) for _ in range(64))
    notes = tuple(f"frame {i}" for i in range(64))


def test_hosts_with_stages_show_their_first_mask() -> None:
    from torchvision.models.video.swin_transformer import SwinTransformer3d

    torch.manual_seed(0)
    host = SwinTransformer3d([2, 4, 4], 8, [2, 2], [1, 2], [2, 4, 4], num_classes=5).eval()
    own = VideoPreprocessing((24, 32), (0.5,) * 3, (0.25,) * 3, frames=4, layout="CTHW")
    clips = torch.randn(1, 3, 4, 24, 32)
    (one,) = explain_clips(sieve(host, "papr(keep=0.5, significance=motion)"), host, clips, TIMES, own, height=48)
    assert one.layers[2].caption.startswith("Kept")
    assert one.kept is not None
    assert (len(one.kept), sum(one.kept), one.patches) == (2, 48, 48)


def test_frames_of_a_film_carry_name_time_answers_and_counts(model: Any) -> None:
    one = explained(model, "papr(keep=0.5, significance=motion)")
    frames = list(annotated_frames(one, "a/clip.mp4"))
    assert [round(seconds, 3) for _, seconds in frames] == [0.2] * 4
    assert len({picture.size for picture, _ in frames}) == 1
    assert all(side % 2 == 0 for side in frames[0][0].size)
    plain = next(iter(annotated_frames(explained(model, ""), "a/clip.mp4")))[0]
    assert plain.height < frames[0][0].height  # nothing is dropped: no bars
    assert (pixels(frames[0][0]) != pixels(frames[2][0])).any(), "the bar of the moment moves on"


def test_a_clip_of_one_frame_is_shown_for_a_while(model: Any) -> None:
    (one,) = explain_clips(sieve(model), model, still_clips(model, 1), torch.zeros(1, 4), OWN, height=48)
    assert all(seconds > 0 for _, seconds in annotated_frames(one, "still"))


@pytest.fixture
def opened(model: Any) -> OpenedModel:
    fast: Sieved = sieve(model, "papr(keep=0.5, significance=motion)")
    return OpenedModel(model, fast, OWN)


def some(count: int) -> Iterator[Clip | Failure]:
    clips = torch.randn(count, 4, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    for index, clip in enumerate(clips):
        yield Clip(f"/x/{index}.mp4", f"{index}.mp4", clip, TIMES[0] + index)
    yield Failure("/x/broken.mp4", "is empty: 0 bytes")


def test_a_reel_of_many_clips_shows_some_and_lists_all(opened: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_gallery, "SHOWN", 2)
    done: list[int] = []
    reel = show_clips(opened, some(7), on_clip=done.append)
    assert done == list(range(1, 8))
    assert (reel.videos, len(reel.failures), len(reel.sections)) == (7, 1, 4)
    *shown, last = reel.gallery().sections
    assert [section.title for section in shown] == ["0.mp4", "4.mp4"]
    assert last.table is not None
    assert [row[:3] for row in last.table.rows[:2]] == [("0.mp4", "0.00 s", "0.60 s"), ("1.mp4", "1.00 s", "1.60 s")]
    assert len(last.table.rows) == 7
    assert reel.gallery().facts[0].label == "answers stay"


def test_nothing_to_read_is_said(opened: OpenedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"None of 1 videos could be read; the first: /x/broken\.mp4 is empty"):
        show_clips(opened, some(0), films=[tmp_path / "a.mp4"])
    assert list(tmp_path.iterdir()) == []


def colour(value: int, size: tuple[int, int] = (65, 47)) -> Image.Image:
    return Image.new("RGB", size, (value, 255 - value, 0))


@pytest.mark.parametrize("ending", [".mp4", ".gif"])
def test_frames_come_back_at_their_times(tmp_path: Path, ending: str) -> None:
    frames = [(colour(40), 0.5), (colour(120), 0.1), (colour(200, (30, 30)), 0.25)]
    path = write_video(tmp_path / f"a{ending}", frames)
    if ending == ".gif":
        with Image.open(path) as gif:
            found = []
            for index in range(gif.n_frames):
                gif.seek(index)
                found.append((gif.convert("RGB").getpixel((3, 3)), gif.info["duration"]))
        assert [duration for _, duration in found] == [500, 100, 250]
        reds = [pixel[0] for pixel, _ in found]
    else:
        with av.open(str(path)) as container:
            decoded = [(frame.to_ndarray(format="rgb24"), float(frame.time)) for frame in container.decode(video=0)]
        assert [round(time, 3) for _, time in decoded] == [0, 0.5, 0.6, 0.85]
        assert decoded[0][0].shape == (48, 66, 3)
        reds = [int(frame[3, 3, 0]) for frame, _ in decoded[:3]]
        assert decoded[2][0][40, 60].min() > 240  # beside a smaller frame it is white
    assert np.abs(np.array(reds) - [40, 120, 200]).max() <= 6


def test_what_is_no_film_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.mp4 or \.gif"):
        write_video(tmp_path / "a.avi", [(colour(1), 1.0)])
    for ending in ("mp4", "gif"):
        with pytest.raises(InputError, match="There are no frames"):
            write_video(tmp_path / f"a.{ending}", [])
    assert list(tmp_path.iterdir()) == []


def test_a_film_that_is_given_up_is_gone(tmp_path: Path) -> None:
    def half_way() -> None:
        with film(tmp_path / "b.mp4") as made:
            made.add(colour(1), 1.0)
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        half_way()
    assert list(tmp_path.iterdir()) == []


def test_models_without_a_classifier_are_shown_by_their_cosine() -> None:
    class Embedding(nn.Module):
        def forward(self, clips: Tensor) -> Tensor:
            return clips.mean((3, 4)).flatten(1)

    host = video_forms()["vivit-model"]()
    one = explained(host, "papr(keep=0.5, significance=motion)")
    assert one.verdict is None
    assert one.record()["dense"] is None
    assert next(iter(annotated_frames(one, "clip")))[0].width > 0
