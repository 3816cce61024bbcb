"""The detector of what is no tile: what it learns from, its file, and its part in the validator's score."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pathsynth.data import Split
from pathsynth.errors import TrainingError, WeightsError
from pathsynth.outliers import OutlierDetector, OutlierNetwork, load_validator
from pathsynth.training import start
from pathsynth.training.engine import OptimConfig, run
from pathsynth.training.outliers import (
    OutlierConfig,
    OutlierTask,
    dead_leaves,
    mix_patches,
    noise,
    other_colours,
    outliers_of,
    shuffle_patches,
    stripes,
)
from pathsynth.validator import to_model_range
from pathsynth.weights import Weights, write_manifest
from tests import tiny

OPTIM = OptimConfig(
    steps=40, batch_size=24, learning_rate=5e-3, warmup_steps=0, ema_decay=0.8, precision="float32"
)


def tissue(name: str, count: int, first: int = 0) -> Split:
    images = np.stack([tiny.tissue_like(first + i) for i in range(count)])
    return Split("train" if name == "train" else "val", images, np.arange(count) % 9)


@pytest.fixture
def tiles() -> torch.Tensor:
    return to_model_range(tissue("train", 12).images)


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def detector() -> OutlierDetector:
    torch.manual_seed(0)
    return OutlierDetector(OutlierNetwork(), -1.0, 0.5)


def test_shuffled_tiles_hold_the_same_pixels_elsewhere(tiles: torch.Tensor, random: torch.Generator) -> None:
    for _ in range(6):
        moved = shuffle_patches(tiles, random)
        assert torch.equal(moved.flatten(2).sort(2).values, tiles.flatten(2).sort(2).values)
        assert (moved - tiles).abs().mean((1, 2, 3)).median() > 0.05


def test_mixed_tiles_have_each_pixel_from_that_place_of_one_of_them(
    tiles: torch.Tensor, random: torch.Generator
) -> None:
    mixed = mix_patches(tiles, random)
    own = (mixed == tiles).all(1)
    assert 0.3 < own.float().mean() < 0.8
    known = (mixed[:, None] == tiles[None]).all(2).any(1)
    assert known.all()


def test_other_colours_leave_every_shape(tiles: torch.Tensor, random: torch.Generator) -> None:
    changed = other_colours(tiles.repeat(4, 1, 1, 1), random)
    grey = (changed.amax(1) - changed.amin(1)).flatten(1).amax(1) < 1e-6
    inverted = torch.isclose(changed, -tiles.repeat(4, 1, 1, 1), atol=1e-6).flatten(1).all(1)
    assert all(5 <= int(kind.sum()) <= 30 for kind in (grey, inverted, ~grey & ~inverted))
    assert (changed - tiles.repeat(4, 1, 1, 1)).abs().mean((1, 2, 3)).min() > 0.05


@pytest.mark.parametrize("draw", [noise, dead_leaves, stripes])
def test_what_is_drawn_is_of_the_size_and_range_of_tiles_and_no_two_alike(
    draw: Callable[[int, torch.Generator], torch.Tensor], random: torch.Generator
) -> None:
    drawn = draw(20, random)
    assert drawn.shape == (20, 3, 28, 28)
    assert drawn.abs().max() <= 1
    assert drawn.flatten(1).std(1).min() > 0.01
    assert torch.cdist(drawn.flatten(1), drawn.flatten(1)).add(torch.eye(20) * 99).min() > 1
    assert torch.equal(draw(20, torch.Generator().manual_seed(0)), drawn)


def test_what_a_change_leaves_as_it_was_is_no_outlier(random: torch.Generator) -> None:
    plain = torch.full((60, 3, 28, 28), 0.9)
    others = outliers_of(plain, random)
    assert len(others) < 40  # shuffled and mixed ones are the same as before, and left out
    assert (others - 0.9).abs().mean((1, 2, 3)).min() > 0.05
    assert len(outliers_of(torch.zeros(0, 3, 28, 28), random)) == 0


def test_a_saved_detector_says_the_same_and_of_turned_tiles_too(tmp_path: Path) -> None:
    images = tissue("val", 6).images
    before = detector()
    before.save(tmp_path)
    after = OutlierDetector.load(tmp_path)
    assert (after.median, after.limit) == (-1.0, 0.5)
    assert torch.allclose(after.scores(images), before.scores(images), rtol=5e-3)
    turned = np.ascontiguousarray(np.rot90(images, axes=(1, 2)))
    assert torch.allclose(after.scores(turned), after.scores(images), rtol=1e-4)


def test_a_score_is_one_at_the_limit_and_finite_anywhere() -> None:
    found = detector()
    logits = [0.5, -1.0, 1e9]
    found.model = Answers(logits)
    assert found.scores(tissue("val", 3).images).tolist() == pytest.approx(
        [1, np.exp(-1), np.exp(20)], rel=1e-5
    )


class Answers(torch.nn.Module):
    """Says the same of any tiles."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)[:, None]

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.logits


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
def test_a_damaged_detector_is_refused(tmp_path: Path, damage: str) -> None:
    detector().save(tmp_path)
    (tmp_path / damage).write_text("{}", encoding="utf-8")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        OutlierDetector.load(tmp_path)


def test_the_validator_trusts_no_tile_that_the_detector_does_not(tiny_weights: Path, tmp_path: Path) -> None:
    images = tissue("val", 5).images
    alone = load_validator(Weights(tiny_weights))
    folder = tmp_path / "weights"
    folder.mkdir()
    alone.save(folder / "validator")
    detector().save(folder / "outliers")
    write_manifest(folder, {"validator": {}, "outliers": {}})
    both = load_validator(Weights(folder))
    expected = torch.maximum(
        alone.ood_scores(images), OutlierDetector.load(folder / "outliers").scores(images)
    )
    assert torch.allclose(both.ood_scores(images), expected, rtol=1e-3)
    assert [p.ood_score for p in both.predict(images)] == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-3)
    assert torch.equal(both.probabilities(images), alone.probabilities(images))


def test_training_tells_tiles_from_what_is_none_and_trusts_val(tmp_path: Path) -> None:
    config = OutlierConfig(kind="outliers", optim=OPTIM)
    task = OutlierTask(config, tissue("train", 60), tissue("val", 40, first=1000))
    state = run(task, OPTIM, tmp_path)
    assert state.metrics["val_auroc"] > 0.8
    found = OutlierDetector.load(tmp_path / "outliers")
    scores = found.scores(task.val.images)
    assert (scores >= 1).sum() <= 1
    assert scores.median() == pytest.approx(np.exp(-1), abs=0.05)
    shown = np.random.default_rng(0).integers(0, 256, (20, 28, 28, 3)).astype(np.uint8)
    assert found.scores(shown).median() > scores.median()


def test_it_is_trained_as_a_part_of_the_validator_and_of_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {"train": tissue("train", 30), "val": tissue("val", 20, first=50)}
    monkeypatch.setattr("pathsynth.training.outliers.load_split", lambda name: splits[name])
    config = tmp_path / "config.toml"
    config.write_text(
        'kind = "outliers"\n[optim]\nsteps = 2\nbatch_size = 12\nlearning_rate = 0.01\n', encoding="utf-8"
    )
    start("validator", config, tmp_path / "run", False, None, lambda *_: None)
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["config"]["kind"] == "outliers"
    assert 0 <= record["result"]["val_auroc"] <= 1
    assert (tmp_path / "run" / "outliers" / "model.safetensors").is_file()
    with pytest.raises(TrainingError, match="is for `outliers`, not for `judge`"):
        start("judge", config, tmp_path / "other", False, None, lambda *_: None)
