"""Draws a clip under a recipe as frames of a video: its layers side by side, the predictions, the patches kept over
time."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image, ImageDraw

from .clips import ExplainedClip
from .sheet import ACCENT, ALERT, GROUND, INK, MARGIN, RULE, SOFT, font, wrapped

GAP, BARS = 12, 44
"""Pixels between panels, and height of the bars in pixels."""
TITLE, SMALL = 20, 15
LAST = 0.25
"""Seconds for which a frame is shown if the time of the next frame is not known."""


def annotated_frames(clip: ExplainedClip, name: str) -> Iterator[tuple[Image.Image, float]]:
    """Yield each frame of a clip as a picture, with the seconds for which it is shown.

    Above the layers are the name, the time and both predictions; below them, if patches are dropped, a bar for each
    moment (temporal position of the patch grid) with the share of its patches that are kept.
    """
    gaps = sorted(after - before for before, after in zip(clip.times, clip.times[1:], strict=False)) or [LAST]
    median_gap = gaps[len(gaps) // 2] or LAST
    for frame, time in enumerate(clip.times):
        after = clip.times[frame + 1] if frame + 1 < len(clip.times) else time + median_gap
        yield _frame(clip, name, frame), after - time or median_gap


def _frame(clip: ExplainedClip, name: str, frame: int) -> Image.Image:
    pictures = [layer.pictures[frame] for layer in clip.layers]
    edge = MARGIN // 2
    width = max(sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1), 420)
    head = _head(clip, name, frame, width)
    top = edge + sum(height for *_, height in head) + GAP
    captions = top + pictures[0].height + 4
    bottom = captions + 2 * round(1.35 * SMALL)
    height = bottom + (BARS + round(1.35 * SMALL) + GAP if clip.kept is not None else 0) + edge
    # The sides of a video with 4:2:0 chroma subsampling must be even.
    canvas = Image.new("RGB", (width + 2 * edge + width % 2, height + height % 2), GROUND)
    draw = ImageDraw.Draw(canvas)
    y = edge
    for text, size, colour, bold, line_height in head:
        draw.text((edge, y), text, fill=colour, font=font(size, bold))
        y += line_height
    x = edge
    for layer, picture in zip(clip.layers, pictures, strict=True):
        canvas.paste(picture, (x, top))
        draw.text((x, captions), layer.caption, fill=INK, font=font(SMALL, True))
        draw.text((x, captions + round(1.35 * SMALL)), layer.notes[frame], fill=SOFT, font=font(SMALL, False))
        x += picture.width + GAP
    if clip.kept is not None:
        _bars(draw, clip, frame, (edge, bottom + GAP, width))
    return canvas


def _head(clip: ExplainedClip, name: str, frame: int, width: int) -> list[tuple[str, int, str, bool, int]]:
    """Lines of text above a frame: each with its size, colour, whether it is bold, and its height."""
    lines = [(line, TITLE, INK, True) for line in wrapped(f"{name}  {clip.times[frame]:.2f} s", width, TITLE, True)]
    verdict = clip.verdict
    if verdict is not None:
        dense_text = f"dense {verdict.dense}"
        sieved_text = f"sieved the same, {verdict.sieved}" if verdict.same else f"sieved otherwise, {verdict.sieved}"
        lines += [(line, SMALL, SOFT, False) for line in wrapped(dense_text, width, SMALL, False)]
        colour = ACCENT if verdict.same else ALERT
        lines += [(line, SMALL, colour, True) for line in wrapped(sieved_text, width, SMALL, True)]
    return [(*line, round(1.35 * line[1])) for line in lines]


def _bars(draw: ImageDraw.ImageDraw, clip: ExplainedClip, frame: int, rectangle: tuple[int, int, int]) -> None:
    """Draw a bar for each moment with its share of kept patches; the current moment has another colour."""
    assert clip.kept is not None
    x, y, width = rectangle
    moments, now = len(clip.kept), frame * len(clip.kept) // len(clip.times)
    for moment, count in enumerate(clip.kept):
        left, right = x + moment * width // moments, x + (moment + 1) * width // moments - 4
        bar_height = round(BARS * count / clip.patches)
        draw.rectangle((left, y, right, y + BARS), fill=RULE)
        if bar_height:
            draw.rectangle((left, y + BARS - bar_height, right, y + BARS), fill=ACCENT if moment == now else SOFT)
    total = moments * clip.patches
    text = f"kept at each moment, {sum(clip.kept)} of {total} in all"
    draw.text((x, y + BARS + 4), text, fill=SOFT, font=font(SMALL, False))
