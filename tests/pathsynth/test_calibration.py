"""Vector scaling: what it minimises, what it undoes, and what it says of tiles it was not fitted on."""

import pytest
import torch
from torch.nn import functional as F

from pathsynth.calibration import cross_fitted, vector_scaling


def answers(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, 9) that say the probability of each label (n,) as it is drawn."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, 9, generator=random)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=random)[:, 0]


def test_vector_scaling_undoes_factors_and_offsets() -> None:
    logits, labels = answers(20_000)
    factors, offsets = torch.linspace(0.5, 2, 9), torch.linspace(-1, 1, 9)
    found, shifts = vector_scaling((logits - offsets) / factors, labels)
    assert torch.allclose(found / found.mean(), factors / factors.mean(), atol=0.06)
    assert torch.allclose(shifts - shifts.mean(), offsets, atol=0.1)


def test_nothing_near_the_scaling_found_is_likelier() -> None:
    logits, labels = answers(500)
    factors, offsets = vector_scaling(3 * logits + 1, labels)

    def posterior(factors: torch.Tensor, offsets: torch.Tensor) -> float:
        prior = (factors.log().square().sum() + offsets.square().sum()) / 2
        return float(F.cross_entropy(factors * (3 * logits + 1) + offsets, labels) + prior / 500)

    best = posterior(factors, offsets)
    for tissue in range(9):
        step = 0.1 * F.one_hot(torch.tensor(tissue), 9)
        for sign in (-1, 1):
            assert posterior(factors * (1 + sign * step), offsets) > best
            assert posterior(factors, offsets + sign * step) > best


def test_logits_without_doubt_and_tissues_without_tiles_keep_it_finite() -> None:
    labels = torch.arange(40) % 5
    factors, offsets = vector_scaling(10.0 * F.one_hot(labels, 9), labels)
    assert factors.isfinite().all()
    assert offsets.isfinite().all()
    assert factors.max() < 10


def test_what_was_not_fitted_on_is_less_likely_than_what_was() -> None:
    random = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(90, 9, generator=random), torch.randint(9, (90,), generator=random)
    factors, offsets = vector_scaling(logits, labels)
    fitted = float(F.cross_entropy(factors * logits + offsets, labels))
    held_out = float(F.cross_entropy(cross_fitted(logits, labels), labels))
    assert held_out > fitted + 0.02


def test_scaled_logits_are_cross_fitted_as_the_same() -> None:
    logits, labels = answers(2_000)
    factors, offsets = torch.linspace(0.8, 1.2, 9), torch.linspace(-0.3, 0.3, 9)
    plain = F.cross_entropy(cross_fitted(logits, labels), labels)
    scaled = F.cross_entropy(cross_fitted(factors * logits + offsets, labels), labels)
    assert float(scaled) == pytest.approx(float(plain), abs=1e-3)
