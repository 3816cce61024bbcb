"""Real tiles for the detail model: read, brought to PathMNIST's scale and stain, split, cropped.

A folder holds them, with a `manifest.csv` of the columns file, dataset, width, height, mode (RGB or L);
`configs/hires.toml` says of each dataset what it needs. Tiles are brought to 0.5 um a pixel by a
factor for each dataset, and their stain to that of PathMNIST: Macenko et al., *A method for normalizing
histology slides for quantitative analysis*, 2009, which its tiles were normalised with too. Grey tiles are
coloured with the colour that tiles of the other datasets have at the same luminance; only their luminance is
to be learnt from.

    python -m pathsynth.training.hires FOLDER

prints how large nuclei are in each dataset of a folder, which is how the factors were found.
"""

import csv
import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from scipy.sparse.csgraph import connected_components

from pathsynth.errors import DataError, ImageError
from pathsynth.images import Picture, read_image
from pathsynth.nuclei import diameters
from pathsynth.progress import Progress
from pathsynth.training import read_config
from pathsynth.training.augment import dihedral, vary_stain
from pathsynth.validator import to_model_range

HIRES_VARIABLE: Final = "PATHSYNTH_HIRES"
MANIFEST: Final = "manifest.csv"
HIRES_CONFIG: Final = Path(__file__).parent / "configs" / "hires.toml"

LUMINANCE: Final = (0.299, 0.587, 0.114)
_TISSUE_DENSITY: Final = 0.15  # optical density in every channel, below which a pixel is glass
_LEAST_TISSUE: Final = 500  # pixels
_POOLED_TILES: Final = 60
_POOLED_STEP: Final = 7
_GREY_LEVELS: Final = 256
_MEASURED_TILES: Final = 40
FloatArray = npt.NDArray[np.float64]
_DENSITIES: Final = -np.log(np.maximum(np.arange(_GREY_LEVELS), 1) / 255)
Vector = tuple[float, float, float]


class Stain(BaseModel):
    """Optical density (natural logarithm) of pure haematoxylin and eosin, as unit vectors over RGB, and the
    99th percentile of their concentrations.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    haematoxylin: Vector
    eosin: Vector
    maximum: tuple[float, float]


class Source(BaseModel):
    """One dataset of the folder.

    `edge` is that of its tiles in px as they are stored, `scale` what their pixels are multiplied by to be
    0.5 um. Tiles more alike than `same_above` are one group: all of it is held out, or nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    edge: int = Field(gt=0)
    scale: float = Field(gt=0)
    share: float = Field(ge=0, description="How often tiles of this dataset are drawn, relative to others.")
    stain: Literal["dataset", "tile"] = "dataset"
    same_above: float = Field(default=1.0, gt=0, le=1, description="Overlap of colour histograms, 0 to 1.")

    @property
    def scaled_edge(self) -> int:
        """Edge in px at 0.5 um a pixel."""
        return round(self.edge * self.scale)


class HiresConfig(BaseModel):
    """What each dataset needs, and what is held out of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["hires"]
    held_out: float = Field(gt=0, lt=1, description="Share of each dataset that is never trained on.")
    stain: Stain
    sources: dict[str, Source]


def default_folder() -> Path:
    """The folder that `PATHSYNTH_HIRES` names.

    Raises:
        DataError: it names none.
    """
    from_environment = os.environ.get(HIRES_VARIABLE)
    if not from_environment:
        raise DataError(
            f"The detail model learns from tiles of 128 px and more; set {HIRES_VARIABLE} to a folder that "
            f"has them and a {MANIFEST}."
        )
    return Path(from_environment).expanduser()


@dataclass(frozen=True)
class Entry:
    """One line of the manifest."""

    file: str
    dataset: str
    is_grey: bool


def read_manifest(folder: Path) -> list[Entry]:
    """The tiles of a folder, in the order of its manifest.

    Raises:
        DataError: there is no manifest, or it lacks a column.
    """
    path = folder / MANIFEST
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [Entry(row["file"], row["dataset"], row["mode"] == "L") for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise DataError(
            f"{path} is missing or lacks one of the columns file, dataset and mode; point {HIRES_VARIABLE} "
            "to a folder that has it."
        ) from error


# Which tiles are held out


def histogram(tile: Picture) -> FloatArray:
    """Square roots of the shares of 1,000 colours in an RGB tile (H, W, 3), on a grid of 128 px: (1000,).

    The dot product of two is their Bhattacharyya overlap; turning and flipping change nothing.
    """
    small = np.asarray(Image.fromarray(tile).resize((128, 128), Image.Resampling.BOX), dtype=np.int64)
    bins = (small // 26).reshape(-1, 3) @ np.array([100, 10, 1])
    counts = np.bincount(bins, minlength=1000).astype(np.float64)
    roots: FloatArray = np.sqrt(counts / counts.sum())
    return roots


def groups_of(histograms: FloatArray, same_above: float) -> npt.NDArray[np.int64]:
    """Number (N,) of the group of each tile: tiles linked by overlaps above `same_above` share one."""
    if same_above >= 1:
        return np.arange(len(histograms), dtype=np.int64)
    _, labels = connected_components(histograms @ histograms.T > same_above, directed=False)
    return np.asarray(labels, dtype=np.int64)


def held_out(names: Sequence[str], groups: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.bool_]:
    """Which tiles are held out: whole groups, in the order of the SHA-256 of their first name, as long as
    they fit into `share` of all. The order of the names has no influence on the order of the groups.
    """
    first: dict[int, str] = {}
    for name, group in zip(names, groups.tolist(), strict=True):
        first[group] = min(first.get(group, name), name)
    room, out = int(share * len(names)), np.zeros(len(names), dtype=bool)
    for group in sorted(first, key=lambda each: hashlib.sha256(first[each].encode("utf-8")).hexdigest()):
        mine = groups == group
        if int(mine.sum()) <= room:
            out |= mine
            room -= int(mine.sum())
    return out


# Stain


def densities(pixels: npt.NDArray[np.uint8]) -> FloatArray:
    """Optical densities, natural logarithm, of RGB pixels (..., 3); black counts as 1."""
    values: FloatArray = _DENSITIES[pixels]
    return values


def measure_stain(pixels: npt.NDArray[np.uint8]) -> Stain | None:
    """Stain vectors and strengths of RGB pixels (N, 3) after Macenko; None when hardly any shows tissue."""
    density = densities(pixels)
    tissue = density[(density > _TISSUE_DENSITY).all(axis=1)]
    if len(tissue) < _LEAST_TISSUE:
        return None
    _, vectors = np.linalg.eigh(np.cov(tissue.T))
    plane = vectors[:, [2, 1]]
    plane[:, 0] *= np.sign(plane[:, 0].sum()) or 1.0
    onto = tissue @ plane
    angles = np.percentile(np.arctan2(onto[:, 1], onto[:, 0]), (1, 99))
    ends = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane.T
    ends = ends[np.argsort(-ends[:, 0])]  # haematoxylin takes away more red than eosin
    amounts = _concentrations(density, ends)
    high = np.percentile(amounts, 99, axis=0)
    if not (ends > -0.1).all() or (high < 0.05).any():
        return None
    haematoxylin, eosin = (tuple(row) for row in ends.tolist())
    return Stain(haematoxylin=haematoxylin, eosin=eosin, maximum=tuple(high.tolist()))


def _concentrations(density: FloatArray, vectors: FloatArray) -> FloatArray:
    """Amounts (..., 2) of two stains (2, 3) that come nearest to optical densities (..., 3)."""
    amounts: FloatArray = density @ np.linalg.pinv(vectors)
    return amounts


def restain(tile: Picture, found: Stain, wanted: Stain) -> Picture:
    """An RGB tile (H, W, 3) with the stains that were found in it changed to those wanted."""
    old = np.array([found.haematoxylin, found.eosin])
    new = np.array([wanted.haematoxylin, wanted.eosin])
    strength = np.array(wanted.maximum) / np.array(found.maximum)
    amounts = _concentrations(densities(tile), old).clip(0) * strength
    restained: Picture = (255 * np.exp(-(amounts @ new))).round().clip(0, 255).astype(np.uint8)
    return restained


def luminance(tiles: npt.NDArray[np.uint8]) -> FloatArray:
    """Luminance, 0 to 255, of RGB pixels (..., 3)."""
    values: FloatArray = tiles @ np.array(LUMINANCE)
    return values


def colours_by_luminance(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The mean colour of RGB pixels (N, 3) at each of 256 luminances, as (256, 3) of that luminance."""
    level = luminance(pixels)
    edges = np.linspace(0, _GREY_LEVELS, 33)
    place = np.digitize(level, edges) - 1
    seen = np.bincount(place, minlength=32)[:32] >= 20
    levels = [0.0, *(level[place == i].mean() for i in np.flatnonzero(seen)), 255.0]
    means = [
        (0.0,) * 3,
        *(tuple(pixels[place == i].mean(axis=0)) for i in np.flatnonzero(seen)),
        (255.0,) * 3,
    ]
    wanted = np.arange(_GREY_LEVELS, dtype=np.float64)
    table = np.stack([np.interp(wanted, levels, [mean[c] for mean in means]) for c in range(3)], axis=1)
    table += (wanted - luminance_of(table))[:, np.newaxis]
    return table.round().clip(0, 255).astype(np.uint8)


def luminance_of(colours: FloatArray) -> FloatArray:
    """Luminance of floating-point colours (N, 3)."""
    values: FloatArray = colours @ np.array(LUMINANCE)
    return values


# The tiles


def spread_evenly(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most `most` of the numbers below `count`, spread evenly over them."""
    return np.linspace(0, count - 1, min(count, most), dtype=np.int64)


@dataclass(frozen=True)
class Crops:
    """Where crops are drawn from: tiles uint8 (H, W, 3) by dataset, and how often each dataset is drawn."""

    tiles: dict[str, list[Picture]]
    shares: dict[str, float]

    def fitting(self, edge: int) -> "Crops":
        """Only the datasets whose tiles are at least `edge` px."""
        fit = {name for name, tiles in self.tiles.items() if min(min(t.shape[:2]) for t in tiles) >= edge}
        return Crops({n: t for n, t in self.tiles.items() if n in fit}, self.shares)

    @property
    def sources(self) -> list[str]:
        """The dataset of every tile, in the order of `centres`."""
        return [name for name in sorted(self.tiles) for _ in self.tiles[name]]

    def __len__(self) -> int:
        return sum(len(tiles) for tiles in self.tiles.values())

    def draw(self, size: int, edge: int, stain_strength: float, generator: torch.Generator) -> torch.Tensor:
        """`size` crops under a random symmetry of the square and with varied stain: float (size, 3, edge,
        edge) in [-1, 1]. Only tiles of at least `edge` px may be there.
        """
        names = sorted(self.tiles)
        shares = torch.tensor([self.shares[name] for name in names])
        drawn = torch.multinomial(shares, size, replacement=True, generator=generator).tolist()
        crops = np.empty((size, edge, edge, 3), dtype=np.uint8)
        for i, source in enumerate(drawn):
            tiles = self.tiles[names[source]]
            tile = tiles[int(torch.randint(len(tiles), (), generator=generator))]
            top, left = (
                int(torch.randint(length - edge + 1, (), generator=generator)) for length in tile.shape[:2]
            )
            crops[i] = tile[top : top + edge, left : left + edge]
        turned = dihedral(to_model_range(crops), generator)
        varied = vary_stain(turned, generator, stain_strength)
        return varied.contiguous(memory_format=torch.channels_last)

    def centres(self, edge: int, most: int | None = None) -> Picture:
        """The central crop of every tile, or of `most` tiles spread evenly: uint8 (N, edge, edge, 3)."""
        everything = [tile for name in sorted(self.tiles) for tile in self.tiles[name]]
        if most is not None:
            everything = [everything[i] for i in spread_evenly(len(everything), most)]
        crops = []
        for tile in everything:
            top, left = ((length - edge) // 2 for length in tile.shape[:2])
            crops.append(tile[top : top + edge, left : left + edge])
        return np.stack(crops) if crops else np.empty((0, edge, edge, 3), dtype=np.uint8)


class HiresTiles:
    """All tiles of a folder at PathMNIST's scale and stain: `colour` and `grey` to train on, `held_colour`
    and `held_grey` not. Grey tiles are coloured. Reading 9,000 tiles takes one to two minutes and 2 GB.

    Raises:
        DataError: the folder, its manifest or a tile cannot be read, or a dataset is not configured.
    """

    def __init__(
        self,
        folder: Path | None = None,
        config: HiresConfig | None = None,
        *,
        only_held_out: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.folder = folder or default_folder()
        self.config = config or read_config(HIRES_CONFIG, HiresConfig)
        self._progress = progress
        entries = read_manifest(self.folder)
        unknown = {entry.dataset for entry in entries} - self.config.sources.keys()
        if unknown or not entries:
            raise DataError(
                f"{self.folder / MANIFEST} lists no tiles, or of a dataset that the configuration does not "
                f"know: {', '.join(sorted(unknown)) or 'none'}; correct one of the two."
            )
        self.held_out_files: list[str] = []
        train: dict[str, list[Picture]] = {}
        held: dict[str, list[Picture]] = {}
        grey = {entry.dataset for entry in entries if entry.is_grey}
        for name in sorted({entry.dataset for entry in entries}, key=lambda each: (each in grey, each)):
            mine = [entry.file for entry in entries if entry.dataset == name]
            source = self.config.sources[name]
            tiles = [self._read(file, source, i, len(mine)) for i, file in enumerate(mine)]
            histograms = (
                np.stack([histogram(tile) for tile in tiles])
                if source.same_above < 1
                else np.empty((len(tiles), 0))
            )
            out = held_out(mine, groups_of(histograms, source.same_above), self.config.held_out)
            self.held_out_files += [file for file, is_out in zip(mine, out, strict=True) if is_out]
            is_grey = name in grey
            # The colours of held-out tiles: the same whether or not those to train on are kept.
            tiles = self._coloured(tiles, held) if is_grey else self._stained(tiles, source)
            held[name] = [tile for tile, is_out in zip(tiles, out, strict=True) if is_out]
            if not only_held_out:
                train[name] = [tile for tile, is_out in zip(tiles, out, strict=True) if not is_out]
        shares = {name: source.share for name, source in self.config.sources.items()}
        self.colour, self.grey = (
            Crops({n: t for n, t in train.items() if t and shares[n] and (n in grey) == is_grey}, shares)
            for is_grey in (False, True)
        )
        self.held_colour, self.held_grey = (
            Crops({n: t for n, t in held.items() if t and (n in grey) == is_grey}, shares)
            for is_grey in (False, True)
        )

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over the manifest, the bytes of every file in its order, and the configuration."""
        digest = hashlib.sha256((self.folder / MANIFEST).read_bytes())
        for entry in read_manifest(self.folder):
            digest.update((self.folder / entry.file).read_bytes())
        digest.update(self.config.model_dump_json().encode("utf-8"))
        return digest.hexdigest()

    def _read(self, file: str, source: Source, done: int, total: int) -> Picture:
        if self._progress is not None:
            self._progress(done, total, f"Reading {file}")
        try:
            tile = read_image(self.folder / file)
        except ImageError as error:
            raise DataError(f"A detail tile cannot be read: {error}") from error
        edge = source.scaled_edge
        if tile.shape[:2] == (edge, edge):
            return tile
        return np.array(Image.fromarray(tile).resize((edge, edge), Image.Resampling.LANCZOS))

    def _stained(self, tiles: list[Picture], source: Source) -> list[Picture]:
        common = measure_stain(_pooled(tiles))
        result = []
        for tile in tiles:
            own = measure_stain(tile.reshape(-1, 3)) if source.stain == "tile" else None
            found = own or common
            result.append(tile if found is None else restain(tile, found, self.config.stain))
        return result

    def _coloured(self, tiles: list[Picture], coloured: dict[str, list[Picture]]) -> list[Picture]:
        """Grey tiles in the colours of the others, after the median optical density of their tissue was made
        the same.
        """
        pixels = _pooled([tile for name in sorted(coloured) for tile in coloured[name]])
        table = colours_by_luminance(pixels)
        wanted = _median_density(luminance(pixels))
        factor = wanted / _median_density(_pooled(tiles)[:, 0].astype(np.float64))
        levels = (255 * np.exp(-_DENSITIES * factor)).round().clip(0, 255).astype(np.int64)
        whole = table[levels]
        return [whole[tile[..., 0]] for tile in tiles]


def _median_density(level: FloatArray) -> float:
    """Median optical density of the tissue among pixels of these luminances (N,), 0 to 255."""
    density = -np.log(np.maximum(level, 1) / 255)
    tissue = density[density > _TISSUE_DENSITY]
    return float(np.median(tissue)) if len(tissue) else _TISSUE_DENSITY


def _pooled(tiles: Sequence[Picture]) -> npt.NDArray[np.uint8]:
    """Some pixels (N, 3) of tiles spread evenly over all of them."""
    chosen = spread_evenly(len(tiles), _POOLED_TILES)
    return np.concatenate([tiles[i].reshape(-1, 3)[::_POOLED_STEP] for i in chosen])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the size of round nuclei in each dataset of a folder, in px as stored, and in every other folder
    below it, so that tiles of known scale can lie beside.
    """
    (name,) = sys.argv[1:] if arguments is None else arguments
    folder = Path(name)
    by_dataset: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/*")):
        by_dataset.setdefault(path.parent.name, []).append(path)
    for dataset, paths in by_dataset.items():
        chosen = spread_evenly(len(paths), _MEASURED_TILES)
        sizes = np.concatenate([diameters(read_image(paths[i])) for i in chosen])
        low, median, high = np.quantile(sizes, (0.25, 0.5, 0.75)) if len(sizes) else (np.nan,) * 3
        print(
            f"{dataset}: {len(sizes)} nuclei in {len(chosen)} tiles, "
            f"diameter {median:.2f} px ({low:.2f} to {high:.2f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
