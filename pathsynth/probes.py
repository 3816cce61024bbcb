"""Networks trained only to measure with: what generated tiles teach a classifier, and whether a network can
tell them from real ones.

Classification accuracy score after Ravuri and Vinyals, *Classification Accuracy Score for Conditional
Generative Models*, 2019; the real-or-generated test is a classifier two-sample test after Lopez-Paz and
Oquab, 2017.
"""

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import recall_score
from torch import nn
from torch.nn import functional as F

from pathsynth.data import Split
from pathsynth.errors import RequestError
from pathsynth.progress import Progress
from pathsynth.realism import Sets
from pathsynth.records import RealOrGenerated, Transfer
from pathsynth.tissues import CODES, TISSUES
from pathsynth.training.augment import dihedral
from pathsynth.training.engine import OptimConfig, Run
from pathsynth.training.validator import ValidatorConfig, ValidatorTask, plain_logits
from pathsynth.validator import Architecture, to_model_range

Tiles = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

TRANSFER_STEPS = 1500
TRANSFER_TRAININGS = 3
DETECTOR_STEPS = 600
BATCH = 64


def transfer(
    generated: Tiles,
    asked: Labels,
    train: Split,
    test: Split,
    architecture: Architecture,
    seed: int,
    model: str,
    progress: Progress | None = None,
    steps: int = TRANSFER_STEPS,
    trainings: int = TRANSFER_TRAININGS,
) -> Transfer:
    """Train a classifier on the generated tiles alone, another in the same way on as many tiles of `train` of
    the same tissues, and measure both on `test`; so with each of `trainings` seeds, from `seed` on, and take
    the means, since the accuracy after one training varies by a point or two.

    Raises:
        RequestError: `train` has fewer tiles of a tissue than were generated.
    """
    synthetic = Split(train.name, generated, asked)
    seeds = list(range(seed, seed + trainings))
    accuracies: list[list[float]] = []
    recalls: list[list[npt.NDArray[np.float64]]] = []
    for nth, own_seed in enumerate(seeds, 1):
        sets = {"generated": synthetic, "real": _same_tissues(train, asked, own_seed)}
        named = []
        for what, tiles in sets.items():
            message = f"Training {nth} of {trainings} on {len(tiles):,} {what} tiles"
            named.append(_trained_and_asked(tiles, test, architecture, steps, own_seed, message, progress))
        accuracies.append([float((names == test.labels).mean()) for names in named])
        recalls.append(
            [
                recall_score(test.labels, names, labels=range(len(TISSUES)), average=None, zero_division=0)
                for names in named
            ]
        )
    of_synthetic, of_real = np.mean(accuracies, axis=0).tolist()
    recall_synthetic, recall_real = np.mean(recalls, axis=0).tolist()
    return Transfer(
        split=test.name,
        n=len(test),
        seed=seed,
        model=model,
        architecture=architecture,
        trained_on=len(generated),
        steps=steps,
        seeds=seeds,
        synthetic=of_synthetic,
        synthetic_by_seed=[each for each, _ in accuracies],
        real=of_real,
        real_by_seed=[each for _, each in accuracies],
        ratio=of_synthetic / of_real if of_real else 0.0,
        recall_synthetic=dict(zip(CODES, recall_synthetic, strict=True)),
        recall_real=dict(zip(CODES, recall_real, strict=True)),
    )


def _same_tissues(train: Split, asked: Labels, seed: int) -> Split:
    """As many tiles of each tissue from `train` as were asked for."""
    random = np.random.default_rng(seed)
    chosen = []
    for tissue in TISSUES:
        wanted = int((asked == tissue.index).sum())
        known = np.flatnonzero(train.labels == tissue.index)
        if wanted > len(known):
            raise RequestError(
                f"There are {len(known)} real tiles of {tissue.label} to compare {wanted} generated ones "
                "with; ask for fewer."
            )
        chosen.append(random.permutation(known)[:wanted])
    at = np.concatenate(chosen)
    return Split(train.name, train.images[at], train.labels[at])


def _trained_and_asked(
    tiles: Split,
    test: Split,
    architecture: Architecture,
    steps: int,
    seed: int,
    what: str,
    progress: Progress | None,
) -> Labels:
    """What a classifier trained on `tiles` names those of `test`, with the same settings for every set."""
    optim = OptimConfig(
        steps=steps,
        batch_size=BATCH,
        learning_rate=2e-3,
        warmup_steps=min(100, steps // 5),
        weight_decay=0.05,
        ema_decay=0.99,
        seed=seed,
    )
    config = ValidatorConfig(kind="judge", architecture=architecture, optim=optim)
    with torch.random.fork_rng(devices=[]):
        run = Run(ValidatorTask(config, tiles, tiles), optim)
        for state in run.steps():
            if progress is not None:
                progress(state.step, steps, what)
        return plain_logits(run.averaged, test.images).argmax(1).numpy()


def real_or_generated(
    sets: Sets,
    split: str,
    seed: int,
    model: str,
    progress: Progress | None = None,
    steps: int = DETECTOR_STEPS,
) -> RealOrGenerated:
    """Whether a small fresh network can tell generated from real tiles that it has not seen, and whether it
    can tell two real sets apart, which it should not.
    """
    accuracy = detected(sets.generated, sets.real, sets.labels, seed, steps, progress)
    control = detected(sets.other, sets.real, sets.labels, seed, steps, progress)
    return RealOrGenerated.model_validate(
        {
            "split": split,
            "n": 2 * len(sets),
            "seed": seed,
            "model": model,
            "accuracy": accuracy,
            "real_vs_real": control,
        }
    )


def detector() -> nn.Module:
    """A small convolutional network from tiles (N, 3, 28, 28) in [-1, 1] to one logit (N, 1)."""
    layers: list[nn.Module] = []
    width = 3
    for wider, stride in ((32, 1), (48, 2), (64, 1), (96, 2), (128, 1)):
        layers += [
            nn.Conv2d(width, wider, 3, stride, 1, bias=False),
            nn.BatchNorm2d(wider),
            nn.ReLU(inplace=True),
        ]
        width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1))


def detected(
    first: Tiles, second: Tiles, labels: Labels, seed: int, steps: int, progress: Progress | None = None
) -> float:
    """Accuracy in telling `first` from `second` tiles, both (N, 28, 28, 3) of tissues `labels` (N,).

    Of each tissue every other tile of either set trains the network; it is measured on the others.
    """
    order = np.argsort(labels, kind="stable")
    images = np.concatenate([first[order], second[order]])
    truth = torch.repeat_interleave(torch.tensor([1.0, 0.0]), len(labels))
    held_out = np.tile(np.arange(len(labels)) % 2 == 1, 2)
    seen, seen_truth = to_model_range(images[~held_out]), truth[torch.from_numpy(~held_out)]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = detector().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        if progress is not None:
            progress(step, steps, "Real or generated")
        chosen = torch.randint(len(seen), (BATCH,), generator=generator)
        logits = network(dihedral(seen[chosen], generator))[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, seen_truth[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.inference_mode():
        unseen = to_model_range(images[held_out]).split(256)
        said = torch.cat([network(part)[:, 0] for part in unseen]) > 0
    return float((said == truth[torch.from_numpy(held_out)].bool()).float().mean())
