"""A clip under a recipe as frames of a video: its layers beside each other, the answers, what is kept over time."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image, ImageDraw

from .clips import ExplainedClip
from .sheet import ACCENT, ALERT, GROUND, INK, MARGIN, RULE, SOFT, font, wrapped

GAP, BARS = 12, 44
"""Pixels between panels, and of the height of the bars."""
TITLE, SMALL = 20, 15
LAST = 0.25
"""Seconds for which a frame is shown of which it is not known when the next one comes."""


def annotated_frames(clip: ExplainedClip, name: str) -> Iterator[tuple[Image.Image, float]]:
    """Each frame of a clip, and for how many seconds it is shown.

    Above its layers stand the name, the time and both answers; below, where patches are dropped, how many are kept at
    each moment, as shares of the patches of a moment.
    """
    usual = sorted(after - before for before, after in zip(clip.times, clip.times[1:], strict=False)) or [LAST]
    middle = usual[len(usual) // 2] or LAST
    for frame, time in enumerate(clip.times):
        after = clip.times[frame + 1] if frame + 1 < len(clip.times) else time + middle
        yield _frame(clip, name, frame), after - time or middle


def _frame(clip: ExplainedClip, name: str, frame: int) -> Image.Image:
    pictures = [layer.pictures[frame] for layer in clip.layers]
    edge = MARGIN // 2
    width = max(sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1), 420)
    head = _head(clip, name, frame, width)
    top = edge + sum(height for *_, height in head) + GAP
    captions = top + pictures[0].height + 4
    bottom = captions + 2 * round(1.35 * SMALL)
    height = bottom + (BARS + round(1.35 * SMALL) + GAP if clip.kept is not None else 0) + edge
    # Sides of a video in 4:2:0 are even.
    canvas = Image.new("RGB", (width + 2 * edge + width % 2, height + height % 2), GROUND)
    draw = ImageDraw.Draw(canvas)
    y = edge
    for text, size, colour, bold, high in head:
        draw.text((edge, y), text, fill=colour, font=font(size, bold))
        y += high
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
    """Lines of text: each with size, colour, whether it is bold, and its height. As many for every frame."""
    written = [(line, TITLE, INK, True) for line in wrapped(f"{name}  {clip.times[frame]:.2f} s", width, TITLE, True)]
    verdict = clip.verdict
    if verdict is not None:
        text = f"dense {verdict.dense}"
        same = f"sieved the same, {verdict.sieved}" if verdict.same else f"sieved otherwise, {verdict.sieved}"
        written += [(line, SMALL, SOFT, False) for line in wrapped(text, width, SMALL, False)]
        colour = ACCENT if verdict.same else ALERT
        written += [(line, SMALL, colour, True) for line in wrapped(same, width, SMALL, True)]
    return [(*line, round(1.35 * line[1])) for line in written]


def _bars(draw: ImageDraw.ImageDraw, clip: ExplainedClip, frame: int, rectangle: tuple[int, int, int]) -> None:
    """Kept at each moment; the one that is shown in another colour."""
    assert clip.kept is not None
    x, y, width = rectangle
    moments, now = len(clip.kept), frame * len(clip.kept) // len(clip.times)
    for moment, count in enumerate(clip.kept):
        left, right = x + moment * width // moments, x + (moment + 1) * width // moments - 4
        high = round(BARS * count / clip.patches)
        draw.rectangle((left, y, right, y + BARS), fill=RULE)
        if high:
            draw.rectangle((left, y + BARS - high, right, y + BARS), fill=ACCENT if moment == now else SOFT)
    total = moments * clip.patches
    text = f"kept at each moment, {sum(clip.kept)} of {total} in all"
    draw.text((x, y + BARS + 4), text, fill=SOFT, font=font(SMALL, False))
