"""The visible mark: the word "synthetic" in a lower corner of pictures that are shown or exported.

It is drawn on a copy, after verification; what the store keeps has no mark. Only whoever runs PathSynth can
turn it off, by the environment variable `PATHSYNTH_VISIBLE_MARK=off`.
"""

import os
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pathsynth.images import Picture

MARK_VARIABLE: Final = "PATHSYNTH_VISIBLE_MARK"
LEGEND: Final = "synthetic"
MARKED_EDGE: Final = 112
"""Shortest edge in px of a picture that carries the mark."""

MARKED_SHARE: Final = 1 / 8
"""Share of the height, at the lower edge, outside of which the mark touches nothing."""

_OFF: Final = frozenset({"off", "0", "no", "false"})
_POINTS: Final = 11
_POINTS_PER_PX: Final = 0.05
_PADDING: Final = 2
_PLATE: Final = (20, 20, 20)
_PLATE_OPACITY: Final = 0.6
_INK: Final = (255, 255, 255)


def is_marking() -> bool:
    """Whether pictures get the mark: yes, unless `PATHSYNTH_VISIBLE_MARK` says off."""
    return os.environ.get(MARK_VARIABLE, "").strip().lower() not in _OFF


def marked(image: Picture) -> Picture:
    """A copy of a picture (H, W, 3) with the legend in its lower right corner, white on a dark plate.

    The copy is unchanged when an edge is shorter than 112 px or the mark is turned off.
    """
    height, width = image.shape[:2]
    if min(height, width) < MARKED_EDGE or not is_marking():
        return image.copy()
    font = ImageFont.load_default(max(_POINTS, round(_POINTS_PER_PX * min(height, width))))
    left, top, right, bottom = (round(each) for each in font.getbbox(LEGEND))
    plate_width, plate_height = right - left + 2 * _PADDING, bottom - top + 2 * _PADDING
    x, y = width - plate_width, height - plate_height
    picture = Image.fromarray(image)
    corner = (x, y, width, height)
    plate = Image.new("RGB", (plate_width, plate_height), _PLATE)
    picture.paste(Image.blend(picture.crop(corner), plate, _PLATE_OPACITY), corner)
    draw = ImageDraw.Draw(picture)
    draw.text((x + _PADDING - left, y + _PADDING - top), LEGEND, fill=_INK, font=font)
    return np.array(picture)
