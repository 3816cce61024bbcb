"""How the validator takes what it was not trained for: disturbed tiles, and images that are no such tiles.

The images are those that ship inside scikit-image and scikit-learn, noise, and real tiles whose patches are
shuffled, which have the right colours and no tissue.
"""

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import skimage
import sklearn
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.color import hsv2rgb, rgb2hsv
from sklearn.metrics import roc_auc_score

from pathsynth.data import Split
from pathsynth.errors import DataError
from pathsynth.images import NATIVE_EDGE, read_image, to_native
from pathsynth.progress import Progress
from pathsynth.records import Outside, OutsideSet, Stress
from pathsynth.tissues import CODES

Tiles = npt.NDArray[np.uint8]

JPEG_QUALITY = 20
HUE_DEGREES = 20
BLUR_SIGMA = 1.0
BRIGHTNESS = (0.8, 1.2)

CROPS = 40
NOISE_TILES = 500
STRESSED_TILES = 2500
SHUFFLED_TILES = 1000
PATCH = 7
BACKGROUND = 1  # index of the tissue that has no structure

# Whatever scikit-image ships as a photograph or a texture, apart from its only histological picture (`ihc`).
PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
TEXTURES = ("brick.png", "grass.png", "gravel.png")
SAMPLE_IMAGES = ("china.jpg", "flower.jpg")


class Classifier(Protocol):
    """What is measured here of a validator."""

    def probabilities(
        self, tiles: Tiles, on_batch: Callable[[int, int], None] | None = None
    ) -> torch.Tensor: ...

    def ood_scores(self, tiles: Tiles) -> torch.Tensor: ...


def jpeg(tiles: Tiles, quality: int = JPEG_QUALITY) -> Tiles:
    """Tiles (N, H, W, 3) stored as JPEG of `quality` and read again."""
    result = np.empty_like(tiles)
    for i, tile in enumerate(tiles):
        file = io.BytesIO()
        Image.fromarray(tile).save(file, "JPEG", quality=quality)
        result[i] = np.asarray(Image.open(file))
    return result


def turn_hue(tiles: Tiles, degrees: float) -> Tiles:
    """Tiles with the hue of every pixel turned by `degrees`."""
    hsv = rgb2hsv(tiles)
    hsv[..., 0] = (hsv[..., 0] + degrees / 360) % 1
    return _to_uint8(hsv2rgb(hsv) * 255)


def blur(tiles: Tiles, sigma: float = BLUR_SIGMA) -> Tiles:
    """Tiles under a Gaussian blur of `sigma` px."""
    blurred: npt.NDArray[np.float64] = gaussian_filter(tiles.astype(np.float64), (0, sigma, sigma, 0))
    return _to_uint8(blurred)


def brighten(tiles: Tiles, factor: float) -> Tiles:
    """Tiles with every value multiplied by `factor` and clipped."""
    return _to_uint8(tiles.astype(np.float64) * factor)


def _to_uint8(values: npt.NDArray[np.floating]) -> Tiles:
    rounded: Tiles = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded


DISTURBANCES: dict[str, Callable[[Tiles], Tiles]] = {
    f"JPEG quality {JPEG_QUALITY}": jpeg,
    f"hue +{HUE_DEGREES} degrees": partial(turn_hue, degrees=HUE_DEGREES),
    f"hue -{HUE_DEGREES} degrees": partial(turn_hue, degrees=-HUE_DEGREES),
    f"blur, sigma {BLUR_SIGMA:g} px": blur,
    **{f"brightness x {factor:g}": partial(brighten, factor=factor) for factor in BRIGHTNESS},
}


def stress(
    validator: Classifier,
    split: Split,
    unchanged: npt.NDArray[np.int64],
    seed: int,
    model: str,
    progress: Progress | None = None,
) -> Stress:
    """Accuracy under each disturbance on 2,500 tiles of `split` drawn with `seed`, or all if there are fewer;
    `unchanged` (N,) is what the validator names the tiles of `split` as they are.
    """
    drawn = np.random.default_rng(seed).permutation(len(split))[:STRESSED_TILES]
    tiles, labels = split.images[drawn], split.labels[drawn]
    accuracy = {"unchanged": float((unchanged[drawn] == labels).mean())}
    total = len(DISTURBANCES) * len(drawn)

    for i, (name, disturb) in enumerate(DISTURBANCES.items()):

        def on_batch(done: int, of: int, before: int = i, what: str = name) -> None:
            if progress is not None:
                progress(before * of + done, total, f"Stress: {what}")

        named = validator.probabilities(disturb(tiles), on_batch).argmax(1).numpy()
        accuracy[name] = float((named == labels).mean())
    return Stress(split=split.name, n=len(drawn), seed=seed, model=model, accuracy=accuracy)


def crops(files: list[Path], per_file: int, seed: int) -> Tiles:
    """`per_file` square crops of each image, from half to all of its shorter edge, as 28-px tiles.

    Raises:
        DataError: an image is not there.
    """
    random = np.random.default_rng(seed)
    tiles = []
    for path in files:
        if not path.is_file():
            raise DataError(f"{path} is missing; install scikit-image and scikit-learn again.")
        picture = read_image(path)
        height, width = picture.shape[:2]
        shorter = min(height, width)
        for _ in range(per_file):
            edge = int(random.integers(max(NATIVE_EDGE, shorter // 2), shorter + 1))
            top, left = random.integers(height - edge + 1), random.integers(width - edge + 1)
            tiles.append(to_native(picture[top : top + edge, left : left + edge]))
    return np.stack(tiles)


def shuffled(tiles: Tiles, seed: int, patch: int = PATCH) -> Tiles:
    """Each tile (N, S, S, 3) with its patches of `patch` px in an order of its own; S is a multiple of it."""
    count, size = len(tiles), tiles.shape[1]
    side = size // patch
    parts = tiles.reshape(count, side, patch, side, patch, 3).swapaxes(2, 3)
    parts = parts.reshape(count, side * side, patch, patch, 3)
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(side * side), (count, 1)), axis=1)
    mixed = np.take_along_axis(parts, order[:, :, None, None, None], axis=1)
    return mixed.reshape(count, side, side, patch, patch, 3).swapaxes(2, 3).reshape(tiles.shape)


def outside_sets(split: Split, seed: int) -> dict[str, tuple[str, Tiles]]:
    """The images that are no such tiles, by name: what they are, and 28-px tiles of them (N, 28, 28, 3).

    Raises:
        DataError: scikit-image or scikit-learn lack an image that they ship.
    """
    of_skimage = Path(skimage.__file__).parent / "data"
    of_sklearn = Path(sklearn.__file__).parent / "datasets" / "images"
    photographs = [of_skimage / name for name in PHOTOGRAPHS] + [of_sklearn / name for name in SAMPLE_IMAGES]
    textures = [of_skimage / name for name in TEXTURES]
    random = np.random.default_rng(seed)
    shape = (NOISE_TILES, NATIVE_EDGE, NATIVE_EDGE, 3)
    pixels = split.images.reshape(-1, 3).astype(np.float64)
    coloured = random.multivariate_normal(pixels.mean(0), np.cov(pixels.T), size=shape[:3])
    chosen = random.permutation(len(split))[:SHUFFLED_TILES]
    tissue = chosen[split.labels[chosen] != BACKGROUND]
    patches = f"tiles of {split.name}, patches of {PATCH} px shuffled"
    names = _names((*PHOTOGRAPHS, *SAMPLE_IMAGES))
    return {
        "photographs": (
            f"{CROPS} crops each of the photographs in scikit-image and scikit-learn: {names}",
            crops(photographs, CROPS, seed),
        ),
        "textures": (
            f"{CROPS} crops each of the textures in scikit-image: {_names(TEXTURES)}",
            crops(textures, CROPS, seed),
        ),
        "uniform noise": ("every value uniform", random.integers(0, 256, size=shape, dtype=np.uint8)),
        "coloured noise": (
            f"Gaussian pixels with the mean and covariance of the colours of {split.name}",
            _to_uint8(coloured),
        ),
        "shuffled patches": (patches, shuffled(split.images[chosen], seed)),
        f"shuffled patches without {CODES[BACKGROUND]}": (
            f"{patches}; the plain background stays itself when shuffled, and is left out",
            shuffled(split.images[tissue], seed),
        ),
    }


def _names(files: Sequence[str]) -> str:
    return ", ".join(Path(name).stem for name in files)


def outside(
    validator: Classifier, split: Split, seed: int, model: str, progress: Progress | None = None
) -> Outside:
    """AUROC of the out-of-distribution score of each set against all of `split`, and what share is refused.

    Raises:
        DataError: scikit-image or scikit-learn lack an image that they ship.
    """
    say = progress or (lambda done, total, message: None)
    say(0, 1, "Out of distribution: preparing images")
    sets = outside_sets(split, seed)
    say(0, 1 + len(sets), f"Out of distribution: {split.name}")
    inside = validator.ood_scores(split.images).numpy()
    figures = {}
    for i, (name, (what, tiles)) in enumerate(sets.items()):
        say(1 + i, 1 + len(sets), f"Out of distribution: {name}")
        scores = validator.ood_scores(tiles).numpy()
        truth = np.repeat([0, 1], [len(inside), len(scores)])
        figures[name] = OutsideSet(
            what=what,
            n=len(tiles),
            auroc=float(roc_auc_score(truth, np.concatenate([inside, scores]))),
            refused=float((scores >= 1).mean()),
        )
    return Outside(
        split=split.name,
        n=len(split),
        seed=seed,
        model=model,
        refused=float((inside >= 1).mean()),
        sets=figures,
    )
