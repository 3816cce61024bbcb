"""Calibration of a classifier: vector scaling, and how much of what it says is the fit itself.

Method: Guo et al., *On Calibration of Modern Neural Networks*, 2017. Each logit has a factor and an offset of
its own, where temperature scaling has one factor for all; so the named class can change.
"""

from typing import Final

import torch
from sklearn.model_selection import KFold
from torch.nn import functional as F

FOLDS: Final = 10


def vector_scaling(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (C,) and offsets (C,) that minimise the negative log-likelihood of labels (N,) given
    `factors * logits + offsets` with logits (N, C).

    A standard normal prior on the offsets and on the logarithms of the factors keeps both finite where the
    logits leave no label in doubt; it weighs as little as one tile or two.
    """
    logs = torch.zeros(logits.shape[1], requires_grad=True)
    offsets = torch.zeros(logits.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([logs, offsets], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        prior = (logs.square().sum() + offsets.square().sum()) / 2
        loss = F.cross_entropy(logs.exp() * logits + offsets, labels) + prior / len(labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return logs.detach().exp(), offsets.detach()


def cross_fitted(logits: torch.Tensor, labels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Logits (N, C), each scaled by factors and offsets that were fitted on the other tenths of the tiles.

    What is said of these is not flattered by the fit. Logits that vector scaling has been through already
    give the same, but for the prior, since two scalings are one.
    """
    scaled = torch.empty_like(logits)
    for others, held_out in KFold(FOLDS, shuffle=True, random_state=seed).split(logits):
        factors, offsets = vector_scaling(logits[others], labels[others])
        scaled[held_out] = factors * logits[held_out] + offsets
    return scaled
