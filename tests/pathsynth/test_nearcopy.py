"""The near-copy guard on tiles whose answer is known."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pathsynth.data import Split
from pathsynth.nearcopy import NearCopyIndex
from pathsynth.tissues import TISSUES


@pytest.fixture(scope="module")
def train() -> Split:
    return _random_split("train", 270, seed=0)


@pytest.fixture(scope="module")
def index(train: Split) -> NearCopyIndex:
    return NearCopyIndex.build(train, _random_split("val", 180, seed=1))


def _random_split(name: str, count: int, seed: int) -> Split:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    images = coarse.repeat(7, axis=1).repeat(7, axis=2)
    assert name in ("train", "val")
    return Split("train" if name == "train" else "val", images, np.arange(count, dtype=np.int64) % 9)


def test_looking_up_needs_no_scikit_learn() -> None:
    """It would take 0.9 s of the time to the first tile."""
    code = "import sys, pathsynth.nearcopy; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("symmetry", range(8))
def test_a_training_tile_is_a_near_copy_however_it_is_turned_or_flipped(
    index: NearCopyIndex, train: Split, symmetry: int
) -> None:
    tile = np.rot90(train.images[4], symmetry % 4)
    tile = tile[:, ::-1] if symmetry >= 4 else tile
    assert index.is_near_copy(tile, TISSUES[4])


def test_a_slightly_noisy_training_tile_is_a_near_copy(index: NearCopyIndex, train: Split) -> None:
    noise = np.random.default_rng(2).integers(-4, 5, train.images[7].shape)
    tile = np.clip(train.images[7].astype(np.int64) + noise, 0, 255).astype(np.uint8)
    assert index.is_near_copy(tile, TISSUES[7])


def test_unseen_tiles_are_hardly_ever_near_copies(index: NearCopyIndex) -> None:
    unseen = _random_split("val", 200, seed=3)
    caught = [
        index.is_near_copy(tile, TISSUES[label])
        for tile, label in zip(unseen.images, unseen.labels, strict=True)
    ]
    assert sum(caught) <= 20


def test_the_index_answers_the_same_after_it_was_written_and_read(
    index: NearCopyIndex, train: Split, tmp_path: Path
) -> None:
    index.save(tmp_path / "index.safetensors")
    read = NearCopyIndex.load(tmp_path / "index.safetensors")
    tiles = _random_split("val", 20, seed=4).images
    assert index.distances(tiles).allclose(read.distances(tiles), rtol=1e-3, atol=1)
    assert read.limits.equal(index.limits)


def test_what_is_written_is_no_pixels(index: NearCopyIndex, train: Split, tmp_path: Path) -> None:
    index.save(tmp_path / "index.safetensors")
    written = (tmp_path / "index.safetensors").read_bytes()
    assert all(tile.tobytes() not in written for tile in train.images[:50])
    assert index.codes.shape == (len(train), 32)
