"""Nuclei in H&E tiles of about 0.5 um a pixel: how many, and how large.

Colour deconvolution after Ruifrok and Johnston, 2001; blobs as maxima of the Laplacian of Gaussian over
scales after Lindeberg, 1998. Both count and size are relative measures, to compare tiles with tiles.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from skimage.color import rgb2hed
from skimage.feature import blob_log
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label, regionprops

from pathsynth.images import Picture

FloatArray = npt.NDArray[np.float64]

SMALLEST_SIGMA: Final = 2.0  # px; a blob of standard deviation s has a diameter of 2.8 s: 2.8 to 8.5 um
LARGEST_SIGMA: Final = 6.0
_SIGMAS: Final = 6
_LEAST_RESPONSE: Final = 0.12  # where the count on real tiles is nearest to that by eye
_REFERENCE_DENSITY: Final = 0.15
_SMOOTHING: Final = 1.2
_LEAST_AREA: Final = 12  # px
_LEAST_SOLIDITY: Final = 0.9
_MOST_ECCENTRIC: Final = 0.85


def haematoxylin(tile: Picture) -> FloatArray:
    """Haematoxylin of an RGB tile (H, W, 3) as (H, W), 1 in a dark nucleus, 0 in glass."""
    stain: FloatArray = rgb2hed(tile)[..., 0] / _REFERENCE_DENSITY
    return stain


def count(tile: Picture) -> int:
    """Nuclei in an RGB tile (H, W, 3)."""
    smooth = gaussian(haematoxylin(tile), _SMOOTHING)
    found = blob_log(
        smooth,
        min_sigma=SMALLEST_SIGMA,
        max_sigma=LARGEST_SIGMA,
        num_sigma=_SIGMAS,
        threshold=_LEAST_RESPONSE,
        overlap=0.3,
    )
    return len(found)


def diameters(tile: Picture) -> FloatArray:
    """Diameters in px of the round, separate nuclei of an RGB tile (H, W, 3) that do not touch its border."""
    smooth = gaussian(haematoxylin(tile), _SMOOTHING)
    height, width = smooth.shape
    regions = regionprops(label(smooth > threshold_otsu(smooth)))
    return np.array(
        [
            region.equivalent_diameter_area
            for region in regions
            if region.area > _LEAST_AREA
            and region.solidity > _LEAST_SOLIDITY
            and region.eccentricity < _MOST_ECCENTRIC
            and min(region.bbox[:2]) > 0
            and region.bbox[2] < height
            and region.bbox[3] < width
        ],
        dtype=np.float64,
    )
