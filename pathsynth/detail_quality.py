"""How good the detail is: against real tiles that the detail model never saw, and against a plain enlargement
of the same thumbnails, which any figure has to beat by far.

The real tiles are the held-out ones of `pathsynth.training.hires`. What is compared with them is made from
their own thumbnails: detailed by the pipeline, enlarged with Lanczos, and put through the autoencoder alone.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.stats import wasserstein_distance
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from pathsynth import nuclei
from pathsynth.detail import TILE_EDGE, ProjectionError
from pathsynth.detailer import Detailer
from pathsynth.errors import DataError
from pathsynth.images import Picture, contact_sheet, to_native, upscale
from pathsynth.progress import Progress
from pathsynth.realism import (
    FeatureSpace,
    frechet_distance,
    imagenet_space,
    kernel_distance,
    radial_spectrum,
)
from pathsynth.records import DetailReport, DetailSpace, Distances, NucleiFigures
from pathsynth.text import TextContext
from pathsynth.tissues import CODES
from pathsynth.validator import Validator, features_of, from_model_range, to_model_range

Tiles = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
LEAST_TILES = 4
SHEET_ROWS = 6
GRADIENT_SAMPLES = 200_000
_BATCH = 8


@dataclass(frozen=True)
class Compared:
    """Tiles (N, 224, 224, 3): real ones, from the datasets `sources` (N), and what was made from their
    thumbnails, in which the validator sees the tissues `named` (N,).
    """

    real: Tiles
    sources: Sequence[str]
    detailed: Tiles
    lanczos: Tiles
    autoencoder: Tiles
    named: Labels


@dataclass(frozen=True)
class OnLayouts:
    """Layout tiles (N, 28, 28, 3) with their detail (N, 224, 224, 3), the tissues that the validator names
    before and after (N,), and the resizing errors in grey levels (N,). `failed` had no picture.
    """

    layouts: Tiles
    detailed: Tiles
    before: Labels
    after: Labels
    errors: npt.NDArray[np.float64]
    failed: int
    seconds_per_tile: float


def validator_space(validator: Validator) -> FeatureSpace:
    """The penultimate layer of the validator on tiles at their full 224 px, which it was not trained on:
    features of stain and fine texture. 14 GFLOP a tile.
    """

    def embed(tiles: Tiles) -> torch.Tensor:
        parts = [features_of(validator.model, tiles[i : i + _BATCH]) for i in range(0, len(tiles), _BATCH)]
        return torch.cat(parts)

    return FeatureSpace(f"validator ({validator.architecture}) on 224 px, penultimate layer", embed)


def compare(
    real: Tiles,
    sources: Sequence[str],
    detailer: Detailer,
    contexts: TextContext,
    validator: Validator,
    seed: int,
    progress: Progress | None = None,
) -> Compared:
    """Make the other three of real tiles (N, 224, 224, 3) from the datasets `sources` (N). The text is the
    prompt of what the validator sees in the thumbnail, and tile i has the detail of seed `seed + i`.

    Raises:
        DataError: there are too few tiles.
    """
    if len(real) < LEAST_TILES:
        raise DataError(
            f"There are {len(real)} held-out tiles of {TILE_EDGE} px, and {LEAST_TILES} are needed; "
            "check the folder of detail tiles."
        )
    thumbnails = np.stack([to_native(tile) for tile in real])
    named = validator.probabilities(thumbnails).argmax(1).numpy()
    detailed, rebuilt = [], []
    for i, (thumbnail, tissue) in enumerate(zip(thumbnails, named.tolist(), strict=True)):
        if progress is not None:
            progress(i, len(real), "Adding detail to thumbnails of real tiles")
        detailed.append(detailer.render(thumbnail, contexts[tissue : tissue + 1], seed + i)[0])
        with torch.inference_mode():
            made = detailer.pipeline.autoencoder(to_model_range(real[i : i + 1]))[0]
        rebuilt.append(from_model_range(made)[0])
    lanczos = np.stack([upscale(thumbnail, TILE_EDGE) for thumbnail in thumbnails])
    return Compared(real, sources, np.stack(detailed), lanczos, np.stack(rebuilt), named)


def on_layouts(
    layouts: Tiles,
    detailer: Detailer,
    contexts: TextContext,
    validator: Validator,
    seed: int,
    progress: Progress | None = None,
) -> OnLayouts:
    """Detail for layout tiles (N, 28, 28, 3), each with the prompt of the tissue that the validator names."""
    before = validator.probabilities(layouts).argmax(1).numpy()
    kept, made, errors = [], [], []
    started = time.monotonic()
    for i, (layout, tissue) in enumerate(zip(layouts, before.tolist(), strict=True)):
        if progress is not None:
            progress(i, len(layouts), "Adding detail to layout tiles")
        try:
            picture, error = detailer.render(layout, contexts[tissue : tissue + 1], seed + i)
        except ProjectionError:
            continue
        kept.append(i)
        made.append(picture)
        errors.append(error)
    seconds = (time.monotonic() - started) / max(1, len(layouts))
    detailed = np.stack(made) if made else np.empty((0, TILE_EDGE, TILE_EDGE, 3), dtype=np.uint8)
    native = np.stack([to_native(tile) for tile in made]) if made else layouts[:0]
    after = validator.probabilities(native).argmax(1).numpy()
    return OnLayouts(
        layouts[kept],
        detailed,
        before[kept],
        after,
        np.array(errors, dtype=np.float64),
        len(layouts) - len(kept),
        seconds,
    )


def gradients(tiles: Tiles, seed: int = 0) -> npt.NDArray[np.float64]:
    """Gradient magnitudes in grey levels a px of RGB tiles (N, H, W, 3), at most 200,000 of them, drawn."""
    rows, columns = np.gradient(tiles.mean(axis=3, dtype=np.float64), axis=(1, 2))
    values = np.hypot(rows, columns).ravel()
    if len(values) > GRADIENT_SAMPLES:
        values = np.random.default_rng(seed).choice(values, GRADIENT_SAMPLES, replace=False)
    return np.asarray(values, dtype=np.float64)


def _distances(real: npt.NDArray[np.float32], features: npt.NDArray[np.float32], seed: int) -> Distances:
    return Distances(fid=frechet_distance(real, features), kid=kernel_distance(real, features, seed))


def _space(sets: Compared, space: FeatureSpace, seed: int, progress: Progress | None) -> DetailSpace:
    real, detailed, lanczos, rebuilt = (
        space(tiles, progress) for tiles in (sets.real, sets.detailed, sets.lanczos, sets.autoencoder)
    )
    return DetailSpace(
        space=space.name,
        detailed=_distances(real, detailed, seed),
        lanczos=_distances(real, lanczos, seed),
        autoencoder=_distances(real, rebuilt, seed),
        real_vs_real=_distances(real[::2], real[1::2], seed),
    )


def nuclei_by_tissue(sets: Compared, progress: Progress | None = None) -> dict[str, NucleiFigures]:
    """Mean count of nuclei a tile, of all tiles of each tissue that the validator names."""
    counts = np.empty((len(sets.real), 3))
    for i in range(len(counts)):
        if progress is not None:
            progress(i, len(counts), "Counting nuclei")
        counts[i] = [nuclei.count(tiles[i]) for tiles in (sets.real, sets.detailed, sets.lanczos)]

    def mean(mine: npt.NDArray[np.bool_]) -> dict[str, float]:
        return {"n": int(mine.sum())} | dict(
            zip(("real", "detailed", "lanczos"), counts[mine].mean(0).tolist(), strict=True)
        )

    result, sources = {}, np.array(sets.sources)
    for index, code in enumerate(CODES):
        mine = sets.named == index
        if mine.any():
            of_source = {name: mine & (sources == name) for name in sorted(set(sources[mine].tolist()))}
            result[code] = NucleiFigures.model_validate(
                mean(mine) | {"sources": {name: mean(part) for name, part in of_source.items()}}
            )
    return result


def measure_detail(
    sets: Compared,
    layouts: OnLayouts,
    layouts_of: str,
    validator: Validator,
    seed: int,
    model: str,
    data: str,
    progress: Progress | None = None,
) -> DetailReport:
    """Every figure of the report. `layouts_of` says where the layout tiles come from, `data` is the hash of
    the detail tiles.
    """
    started = time.monotonic()
    imagenet = imagenet_space()
    spaces = [validator_space(validator), *([] if imagenet is None else [imagenet])]
    found = [_space(sets, space, seed, progress) for space in spaces]
    if progress is not None:
        progress(0, 1, "Spectra and gradients")
    made = {"detailed": sets.detailed, "lanczos": sets.lanczos, "autoencoder": sets.autoencoder}
    spectrum, gradient = radial_spectrum(sets.real), gradients(sets.real, seed)
    real, rebuilt = (
        torch.from_numpy(tiles).permute(0, 3, 1, 2).float() for tiles in (sets.real, sets.autoencoder)
    )
    psnr = peak_signal_noise_ratio(rebuilt, real, data_range=255.0)
    similarity = [
        structural_similarity_index_measure(a, b, data_range=255.0)
        for a, b in zip(rebuilt.split(_BATCH), real.split(_BATCH), strict=True)
    ]
    weights = torch.tensor([len(part) for part in real.split(_BATCH)], dtype=torch.float32)
    return DetailReport(
        what="detail",
        n=len(sets.real),
        seed=seed,
        model=model,
        data=data,
        spaces=found,
        spectrum={
            name: float((np.abs(radial_spectrum(tiles) - spectrum) / spectrum).mean())
            for name, tiles in made.items()
        },
        gradients={
            name: float(wasserstein_distance(gradient, gradients(tiles, seed)))
            for name, tiles in made.items()
        },
        gradient_of_real=float(gradient.mean()),
        nuclei=nuclei_by_tissue(sets, progress),
        psnr=float(psnr),
        ssim=float((torch.stack([torch.as_tensor(s) for s in similarity]) * weights).sum() / weights.sum()),
        layouts=len(layouts.layouts) + layouts.failed,
        layouts_of=layouts_of,
        failed=layouts.failed,
        class_unchanged=_share(layouts.before == layouts.after, layouts.failed),
        rmse_mean=float(layouts.errors.mean()) if len(layouts.errors) else None,
        rmse_max=float(layouts.errors.max()) if len(layouts.errors) else None,
        seconds_per_tile=round(layouts.seconds_per_tile, 3),
        seconds=round(time.monotonic() - started, 2),
    )


def _share(unchanged: npt.NDArray[np.bool_], failed: int) -> float:
    """Share of all layout tiles; those without a picture count as changed."""
    return float(unchanged.sum() / max(1, len(unchanged) + failed))


def write_detail_sheets(sets: Compared, layouts: OnLayouts, folder: Path) -> list[Path]:
    """Sheets to look at, one a tissue: `real-CODE.png` with rows of thumbnail enlarged, its detail, and the
    real tile it comes from; `layout-CODE.png` with layout tiles enlarged beside their detail.

    They hold real tiles: not for publication with the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, code in enumerate(CODES):
        mine = np.flatnonzero(sets.named == index)[:SHEET_ROWS].tolist()
        triples = [tile for i in mine for tile in (sets.lanczos[i], sets.detailed[i], sets.real[i])]
        if triples:
            paths.append(_sheet(folder / f"real-{code}.png", triples, ("enlarged", "detailed", "real")))
        mine = np.flatnonzero(layouts.before == index)[:SHEET_ROWS].tolist()
        pairs = [tile for i in mine for tile in (upscale(layouts.layouts[i], TILE_EDGE), layouts.detailed[i])]
        if pairs:
            paths.append(_sheet(folder / f"layout-{code}.png", pairs, ("enlarged", "detailed")))
    return paths


def _sheet(path: Path, tiles: Sequence[Picture], names: Sequence[str]) -> Path:
    captions = list(names) * (len(tiles) // len(names))
    Image.fromarray(contact_sheet(tiles, captions, len(names))).save(path)
    return path
