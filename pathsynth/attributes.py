"""Measured attributes of a 28-px tile, and the captions made of them.

The base model is trained on these captions alone: they say what can be measured (stain, nuclei, white space,
texture), never which tissue it is. The same measurement scores how well a generated tile follows a
description.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

# A pixel this bright (mean of RGB, 0 to 1) is lumen, vacuole or glass; one with red this low is nuclear
# (haematoxylin).
WHITE_ABOVE = 0.86
NUCLEAR_RED_BELOW = 0.60
DIRECTED_FROM = 0.30


@dataclass(frozen=True)
class Attribute:
    """A measurable property: `edges` part its range into one more bin than there are edges, each with its
    own words.

    The edges were set at quantiles of PathMNIST train, so that every wording is common enough to be learnt.
    """

    name: str
    edges: tuple[float, ...]
    words: tuple[str, ...]

    def word(self, value: float) -> str:
        """The wording for a measured value."""
        return self.words[int(np.searchsorted(self.edges, value, side="right"))]


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        "brightness",
        (0.58, 0.64, 0.70, 0.79),
        ("very dark stain", "dark stain", "medium stain", "pale stain", "very pale stain"),
    ),
    Attribute(
        "redness",
        (0.005, 0.025, 0.045, 0.065),
        ("blue grey", "violet", "purple", "pink", "deep pink"),
    ),
    Attribute(
        "nuclear_density",
        (0.005, 0.05, 0.16, 0.35),
        ("no nuclei", "sparse nuclei", "scattered nuclei", "many nuclei", "densely packed nuclei"),
    ),
    Attribute(
        "white_space",
        (0.002, 0.03, 0.12, 0.40),
        ("no white space", "little white space", "some white space", "much white space", "mostly white"),
    ),
    Attribute(
        "contrast",
        (0.04, 0.07, 0.10, 0.13),
        ("flat", "low contrast", "medium contrast", "high contrast", "very high contrast"),
    ),
    Attribute(
        "grain",
        (0.72, 0.82, 0.90, 0.98),
        ("very smooth", "smooth texture", "medium grain", "fine grain", "very fine grain"),
    ),
    Attribute(
        "direction",
        (0.12, DIRECTED_FROM, 0.50),
        ("no direction", "faint direction", "aligned", "strongly aligned"),
    ),
)
ORIENTATIONS = ("horizontal", "rising diagonal", "vertical", "falling diagonal")


def measure(tiles: npt.NDArray[np.uint8]) -> dict[str, FloatArray]:
    """Attributes of RGB tiles (N, H, W, 3) uint8; every value is an array (N,).

    `brightness` mean of RGB (0 to 1); `redness` mean of red minus blue; `nuclear_density` share of nuclear
    pixels; `white_space` share of white pixels; `contrast` standard deviation of grey; `grain` root mean
    square gradient over contrast; `direction` coherence of the structure tensor (0 none, 1 parallel lines);
    `orientation` angle of the texture in degrees, 0 horizontal, counter-clockwise, below 180. Structure
    tensor: Bigun and Granlund, 1987.
    """
    rgb = tiles.astype(np.float64) / 255
    grey = rgb.mean(axis=3)
    contrast = grey.std(axis=(1, 2))
    rows, columns = np.gradient(grey, axis=(1, 2))
    along_x, along_y = (columns**2).mean(axis=(1, 2)), (rows**2).mean(axis=(1, 2))
    across = (columns * rows).mean(axis=(1, 2))
    energy = along_x + along_y
    # Rows grow downwards: the texture runs perpendicular to the dominant gradient, and the sign turns it
    # upright.
    gradient_angle = 0.5 * np.arctan2(2 * across, along_x - along_y)
    return {
        "brightness": grey.mean(axis=(1, 2)),
        "redness": (rgb[..., 0] - rgb[..., 2]).mean(axis=(1, 2)),
        "nuclear_density": (rgb[..., 0] < NUCLEAR_RED_BELOW).mean(axis=(1, 2)),
        "white_space": (grey > WHITE_ABOVE).mean(axis=(1, 2)),
        "contrast": contrast,
        "grain": np.sqrt(energy) / (contrast + 1e-3),
        "direction": np.hypot(along_x - along_y, 2 * across) / (energy + 1e-6),
        "orientation": np.degrees(np.pi / 2 - gradient_angle) % 180,
    }


def phrases(tiles: npt.NDArray[np.uint8]) -> list[tuple[str, ...]]:
    """The wording of every attribute of every tile, in the order of `ATTRIBUTES`."""
    values = measure(tiles)
    result = []
    for i in range(len(tiles)):
        words = [attribute.word(float(values[attribute.name][i])) for attribute in ATTRIBUTES]
        if values["direction"][i] >= DIRECTED_FROM:
            words[-1] += " " + ORIENTATIONS[int((values["orientation"][i] + 22.5) // 45) % 4]
        result.append(tuple(words))
    return result


def caption(words: Sequence[str], keep: Sequence[bool] | None = None) -> str:
    """A caption of the wordings to keep; the empty string when none is kept."""
    return ", ".join(word for i, word in enumerate(words) if keep is None or keep[i])
