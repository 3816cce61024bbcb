"""What is noised for a few steps, and sampling with them."""

import pytest
import torch

from pathsynth.layout import enlarged, sketched
from pathsynth.training.few_steps import FewSteps, noised

DATA = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)


def to_hundred(noisy: torch.Tensor, time: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return torch.full_like(noisy, 100.0)


def test_later_steps_start_from_data_or_from_what_was_made_before() -> None:
    steps, generator = FewSteps(4, 0.25, 0.5), torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(40):
        given = steps.noise(DATA, to_hundred, generator)
        assert given.time.tolist() == pytest.approx([1 - 0.25 * step for step in given.step.tolist()])
        from_model = given.noisy.mean((1, 2, 3)) > 15  # a quarter of 100 and noise, or at most 3 and noise
        assert from_model.tolist() == given.own.tolist()
        assert (given.left > 0).tolist() == (~given.own & (given.step > 0)).tolist()
        assert given.sampled.tolist() == (given.own | (given.step == 0)).tolist()
        seen |= set(zip(given.step.tolist(), given.own.tolist(), strict=True))
    assert seen == {(0, False), *((step, own) for step in (1, 2, 3) for own in (False, True))}


def test_the_step_before_is_asked_at_its_own_time() -> None:
    asked: list[float] = []

    def make(noisy: torch.Tensor, time: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        asked.extend(time.tolist())
        assert len(noisy) == int(where.sum())
        return noisy

    given = FewSteps(2, 0.5, 1.0).noise(DATA, make, torch.Generator().manual_seed(3))
    assert asked == [1.0] * int((given.step == 1).sum())
    assert given.own.tolist() == (given.step == 1).tolist()


def test_sampling_starts_from_noise_alone_and_ends_with_what_is_made() -> None:
    times: list[float] = []

    def make(noisy: torch.Tensor, time: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        times.append(float(time[0]))
        if len(times) == 1:
            assert torch.equal(noisy, torch.randn(DATA.shape, generator=torch.Generator().manual_seed(5)))
        return torch.full_like(noisy, float(len(times)))

    made = FewSteps(4, 0.4, 0.5).sample(DATA, make, torch.Generator().manual_seed(5))
    assert times == [1.0, 0.75, 0.5, 0.25]
    assert (made == 4).all()


def test_one_step_is_all_noise() -> None:
    given = FewSteps(1, 0.4, 1.0).noise(DATA, to_hundred, torch.Generator().manual_seed(0))
    assert given.time.tolist() == [1.0] * 4
    assert not given.own.any()
    assert given.left.tolist() == [0.0] * 4


def test_noise_of_time_zero_is_none() -> None:
    assert torch.equal(noised(DATA, torch.zeros(4), torch.ones_like(DATA)), DATA)


def test_sampling_may_end_early_and_only_its_last_step_has_gradients() -> None:
    weight = torch.ones((), requires_grad=True)
    graded: list[bool] = []

    def make(noisy: torch.Tensor, time: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        graded.append((weight * noisy).requires_grad)
        return weight * torch.full_like(noisy, float(len(graded)))

    steps = FewSteps(4, 0.4, 0.5)
    made = steps.sample(DATA, make, torch.Generator().manual_seed(5), steps=3)
    assert graded == [False, False, True]
    assert (made == 3).all()
    assert torch.autograd.grad(made.mean(), weight)[0] == 3
    with torch.no_grad():
        steps.sample(DATA, make, torch.Generator().manual_seed(5))
    assert graded[3:] == [False] * 4


def test_half_the_times_all_steps_are_taken_and_else_any_number_below() -> None:
    random = torch.Generator().manual_seed(0)
    counts = torch.tensor([FewSteps(4, 0.4, 0.5).up_to(random) for _ in range(600)]).bincount(minlength=5)
    assert counts[0] == 0
    assert counts[1:4].tolist() == pytest.approx([100] * 3, abs=30)
    assert counts[4] == pytest.approx(300, abs=40)
    assert {FewSteps(1, 0.4, 0.5).up_to(random) for _ in range(5)} == {1}


def test_with_sketches_the_first_step_starts_from_one() -> None:
    data = torch.full((64, 3, 8, 8), 4.0)
    steps, random = FewSteps(4, 0.5, 0.0, True), torch.Generator().manual_seed(0)
    given = steps.noise(data, to_hundred, random, data / 2)
    assert given.time.tolist() == pytest.approx([0.75 - 0.25 * step for step in given.step.tolist()])
    known = torch.where(given.step == 0, 2.0, 4.0) * (1 - given.time)
    assert given.noisy.mean((1, 2, 3)).tolist() == pytest.approx(known.tolist(), abs=0.3)
    assert given.step.bincount().tolist() == pytest.approx([32, 16, 16], abs=12)


def test_the_noise_beside_a_sketch_may_be_changed_and_that_of_later_steps_is_not() -> None:
    data = torch.full((64, 3, 8, 8), 4.0)
    seen: list[torch.Tensor] = []

    def make(noisy: torch.Tensor, time: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        seen.append(noisy)
        return noisy

    steps, random = FewSteps(4, 0.5, 1.0, True, torch.zeros_like), torch.Generator().manual_seed(0)
    given = steps.noise(data, make, random, data / 2)
    first = given.step == 0
    assert torch.equal(given.noisy[first], torch.full((int(first.sum()), 3, 8, 8), 0.25 * 2))
    assert given.noisy[~first].std() > 0.3
    assert torch.equal(seen[0], torch.full_like(seen[0], 0.25 * 2))
    assert seen[1].std() > 0.3
    seen.clear()
    steps.sample(data, make, random, shown=data / 2)
    assert [each.std() > 0.3 for each in seen] == [False, True, True]


def test_every_step_is_shown_a_sketch_that_is_held() -> None:
    random = torch.Generator().manual_seed(0)
    data, held = (torch.randn(64, 3, edge, edge, generator=random) for edge in (8, 4))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def make(noisy: torch.Tensor, time: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        seen.append((sketched(noisy, 4), (1 - time).view(-1, 1, 1, 1) * held[where]))
        return torch.full_like(noisy, 9.0)

    steps = FewSteps(4, 0.3, 0.5, True)
    given = steps.noise(data, make, random, enlarged(held, 8), held)
    steps.sample(data, make, random, shown=enlarged(held, 8), held=held)
    assert len(seen) == 2 + 3
    for shown, wanted in seen:
        assert torch.allclose(shown, wanted, atol=1e-5)
    real = ~given.sampled
    assert 0 < real.sum() < (given.step > 0).sum()
    wanted = torch.where(real.view(-1, 1, 1, 1), sketched(data, 4), held)
    wanted = (1 - given.time).view(-1, 1, 1, 1) * wanted
    assert torch.allclose(sketched(given.noisy, 4), wanted, atol=1e-5)
    assert (given.noisy - enlarged(wanted, 8)).std() > 0.2


def test_later_steps_start_from_what_all_steps_before_make() -> None:
    asked: list[tuple[float, list[int], list[float]]] = []

    def make(noisy: torch.Tensor, time: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        asked.append((float(time[0]), torch.nonzero(where)[:, 0].tolist(), noisy.mean((1, 2, 3)).tolist()))
        return torch.full_like(noisy, 100 * len(asked))

    data = torch.full((64, 3, 8, 8), 4.0)
    steps, random = FewSteps(4, 0.2, 1.0, True), torch.Generator().manual_seed(0)
    given = steps.noise(data, make, random, data / 2)
    (at_first, later, from_sketches), (at_second, last, from_first) = asked
    assert (at_first, at_second) == (0.75, 0.5)
    assert later == torch.nonzero(given.step > 0)[:, 0].tolist()
    assert last == torch.nonzero(given.step > 1)[:, 0].tolist()
    assert from_sketches == pytest.approx([0.25 * 2] * len(later), abs=0.3)
    assert from_first == pytest.approx([0.5 * 100] * len(last), abs=0.3)
    started = torch.tensor([0.25 * 2, 0.5 * 100, 0.75 * 200])[given.step]
    assert given.noisy.mean((1, 2, 3)).tolist() == pytest.approx(started.tolist(), abs=0.3)
    assert given.sampled.all()


def test_sampling_starts_from_a_sketch() -> None:
    times: list[float] = []

    def make(noisy: torch.Tensor, time: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        if not times:
            assert noisy.mean() == pytest.approx(0.25 * 0.5 * 400, rel=0.05)
        times.append(float(time[0]))
        return noisy

    data = torch.full((4, 3, 8, 8), 400.0)
    FewSteps(4, 0.4, 0.5, True).sample(data, make, torch.Generator().manual_seed(5), shown=data / 2)
    assert times == [0.75, 0.5, 0.25]
