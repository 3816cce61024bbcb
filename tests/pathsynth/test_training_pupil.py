"""A pupil that learns the tissues from made tiles alone."""

import numpy as np
import pytest
import torch

from pathsynth.data import Split
from pathsynth.tissues import TISSUES
from pathsynth.training.pupil import FreshLessons, LargePupil, Lessons, Pupil
from pathsynth.validator import Architecture, to_model_range

LABELS = torch.arange(len(TISSUES)).repeat_interleave(6)


def coloured(labels: torch.Tensor, turn: int = 0) -> torch.Tensor:
    """Noisy tiles (N, 3, 28, 28) in [-1, 1], each tissue (N,) in the colour of the one `turn` further."""
    which = (labels + turn) % len(TISSUES)
    colours = torch.stack([which % 3, which // 3, torch.ones_like(which)], dim=1) * 0.7 - 0.7
    noise = torch.randn(len(labels), 3, 28, 28, generator=torch.Generator().manual_seed(turn))
    return (colours.view(-1, 3, 1, 1) + 0.1 * noise).clamp(-1, 1)


def split_of(tiles: torch.Tensor, labels: torch.Tensor) -> Split:
    images = tiles.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return Split("train", images, labels.numpy().astype(np.int64))


def lessons(real: torch.Tensor, made: torch.Tensor, steps: int) -> Lessons:
    """Those of a pupil that took `steps` on made tiles."""
    torch.manual_seed(0)
    pupil = Pupil(8)
    found = Lessons(pupil, split_of(real, LABELS), seed=0)
    found.remember(made, LABELS)
    optimizer = torch.optim.Adam(pupil.parameters(), 5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        found.loss().backward()
        optimizer.step()
    return found


def test_a_pupil_learns_what_is_made_and_is_asked_of_real_tiles() -> None:
    made = coloured(LABELS)
    taught = lessons(made, made, steps=120)
    alike, other = (split_of(coloured(LABELS, turn), LABELS) for turn in (0, 1))
    assert np.mean(taught.taught(alike, 6)) > 0.9
    assert np.mean(taught.taught(other, 6)) < 0.2  # it takes tissues for those whose colour they have


def test_tiles_are_drawn_from_what_was_made_to_where_the_pupil_places_real_ones() -> None:
    real, made = coloured(LABELS, turn=1), coloured(LABELS)
    taught = lessons(real, made, steps=120)
    as_made = taught.distance(made, LABELS)
    as_real = taught.distance(to_model_range(split_of(real, LABELS).images), LABELS)
    assert float(as_real) < 0 < float(as_made)


def test_the_distance_has_a_gradient_that_stops_before_the_pupil() -> None:
    taught = lessons(coloured(LABELS, turn=1), coloured(LABELS), steps=3)
    tiles = coloured(LABELS).requires_grad_()
    taught._pupil.zero_grad()
    taught.distance(tiles, LABELS).backward()
    assert tiles.grad is not None
    assert bool(tiles.grad.flatten(1).abs().sum(1).gt(0).all())
    assert all(weight.grad is None and weight.requires_grad for weight in taught._pupil.parameters())


def test_a_pupil_waits_for_tiles_of_every_tissue_and_is_listened_to_when_it_knows_something() -> None:
    pupil = Pupil(8)
    waiting = Lessons(pupil, split_of(coloured(LABELS), LABELS), seed=0)
    known = TISSUES[-1].index > LABELS
    waiting.remember(coloured(LABELS)[known], LABELS[known])
    assert not waiting.ready
    waiting.remember(coloured(LABELS)[~known], LABELS[~known])
    assert waiting.ready
    assert not waiting.counts
    pupil.steps.fill_(100)
    assert waiting.counts


def test_of_each_tissue_the_latest_tiles_are_kept() -> None:
    found = Lessons(Pupil(8), split_of(coloured(LABELS), LABELS), seed=0)
    labels = torch.zeros(150, dtype=torch.int64)
    for value in (0.0, 0.5):
        found.remember(torch.full((150, 3, 28, 28), value), labels)
    assert len(found._made[0]) == 200
    assert float(found._made[0].mean()) == pytest.approx(0.375)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh pupils learn from few and small batches."""
    for name, value in {"_FRESH_LESSONS": 60, "_LESSON": 18, "_FRESH_LEAST": 3, "_FRESH_AFTER": 4}.items():
        monkeypatch.setattr(f"pathsynth.training.pupil.{name}", value)


def fresh(real: torch.Tensor, made: torch.Tensor) -> FreshLessons:
    """With a pupil that learnt from made tiles."""
    found = FreshLessons(2, split_of(real, LABELS), seed=0)
    found.remember(made, LABELS)
    found.go_on()
    return found


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("mixed", [False, True])
def test_a_fresh_pupil_learns_what_is_made_and_is_asked_of_real_tiles(mixed: bool) -> None:
    made = coloured(LABELS)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        taught = fresh(made, made)
    alike, other = (split_of(coloured(LABELS, turn), LABELS) for turn in (0, 1))
    assert np.mean(taught.taught(alike, 6)) > 0.9
    assert np.mean(taught.taught(other, 6)) < 0.2


@pytest.mark.usefixtures("quick")
def test_tiles_are_drawn_to_where_fresh_pupils_place_real_ones_by_a_gradient_of_their_own() -> None:
    real, made = coloured(LABELS, turn=1), coloured(LABELS)
    taught = fresh(real, made)
    tiles = made.clone().requires_grad_()
    as_made = taught.distance(tiles, LABELS)
    assert float(taught.distance(real, LABELS)) < 0 < float(as_made.detach())
    as_made.backward()
    assert tiles.grad is not None
    assert bool(tiles.grad.flatten(1).abs().sum(1).gt(0).all())
    assert all(weight.grad is None for weight in taught._pupils[0].parameters())


@pytest.mark.usefixtures("quick")
def test_fresh_pupils_follow_each_other_and_the_latest_remain() -> None:
    found = FreshLessons(2, split_of(coloured(LABELS), LABELS), seed=0)
    known = TISSUES[-1].index > LABELS
    found.remember(coloured(LABELS)[known], LABELS[known])
    found.go_on()
    assert not found.counts
    assert found.taught(split_of(coloured(LABELS), LABELS), 6) == []
    found.remember(coloured(LABELS)[~known], LABELS[~known])
    seen = []
    for _ in range(9):
        found.go_on()
        seen.append(found._pupils)
    assert [len(each) for each in seen] == [1, 1, 1, 1, 2, 2, 2, 2, 2]
    first, second, third = seen[0][0], seen[4][1], seen[8][1]
    assert seen[8] == [second, third]
    assert seen[4] == [first, second]
    weights = zip(first.parameters(), second.parameters(), strict=True)
    assert not all(torch.equal(*pair) for pair in weights)


@pytest.mark.usefixtures("quick")
def test_fresh_pupils_take_turns_in_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathsynth.training.pupil._FRESH_LESSONS", 3)
    real = split_of(coloured(LABELS, turn=1), LABELS)
    found = FreshLessons(3, real, seed=0, architectures=("resnet18", "small"))
    found.remember(coloured(LABELS), LABELS)
    for _ in range(9):
        found.go_on()
    assert [type(each) for each in found._pupils] == [LargePupil, Pupil, LargePupil]
    assert not any(module.training for module in found._pupils[0].modules())
    tiles = coloured(LABELS).requires_grad_()
    found.distance(tiles, LABELS).backward()
    assert tiles.grad is not None
    assert bool(tiles.grad.flatten(1).abs().sum(1).gt(0).all())
    assert all(weight.grad is None for pupil in found._pupils for weight in pupil.parameters())


@pytest.mark.parametrize(
    ("architecture", "widths"), [("resnet18", (128, 512)), ("regnet_y_400mf", (104, 440))]
)
def test_a_large_pupil_sees_means_of_its_layers(architecture: Architecture, widths: tuple[int, int]) -> None:
    pupil = LargePupil(architecture).eval()
    tiles = coloured(LABELS)[:4]
    kinds = pupil.kinds(tiles)
    assert [tuple(kind.shape) for kind in kinds] == [(4, widths[0]), (4, widths[1]), (4, len(TISSUES))]
    torch.testing.assert_close(pupil(tiles), kinds[-1])


def test_what_fresh_pupils_learn_from_is_not_what_is_compared() -> None:
    found = FreshLessons(1, split_of(coloured(LABELS), LABELS), seed=0)
    for value in range(500):
        found.remember(torch.full((1, 3, 28, 28), value / 500), torch.zeros(1, dtype=torch.int64))
    learnt, shown = ({float(tile[0, 0, 0]) for tile in pile[0]} for pile in (found._learnt, found._shown))
    assert len(learnt) == len(shown) == 200
    assert not learnt & shown
    assert max(learnt | shown) == pytest.approx(499 / 500)
