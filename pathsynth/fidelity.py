"""Does a tile follow its description beyond the tissue? Attributes asked for in words, then measured.

The wordings come from real tiles of the same tissue, so what is asked for is possible. Correlations are taken
within each tissue: that lymphocytes are darker than fat is no merit of the description.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from pathsynth.attributes import ATTRIBUTES, caption, measure, phrases
from pathsynth.data import Split
from pathsynth.errors import RequestError
from pathsynth.progress import Progress
from pathsynth.records import MAX_SEED, Fidelity
from pathsynth.tissues import TISSUES, Tissue

Tiles = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
ProposeDescribed = Callable[[Tissue, str, Sequence[int]], Tiles]
LEAST_PER_TISSUE = 5
LEAST_WORDINGS = 2


def bins(tiles: Tiles) -> dict[str, Labels]:
    """Which wording, counted from 0, each attribute of each tile (N, H, W, 3) has: name to (N,)."""
    values = measure(tiles)
    return {a.name: np.searchsorted(a.edges, values[a.name], side="right") for a in ATTRIBUTES}


def within_tissues(
    asked: npt.NDArray[np.generic], measured: npt.NDArray[np.generic], labels: Labels
) -> float | None:
    """Spearman correlation of two arrays (N,) within each tissue, averaged over the tissues.

    A tissue of which only one wording was asked says nothing and is left out; None when that is so for all. A
    constant measurement is no correlation: 0.
    """
    found = []
    for label in np.unique(labels):
        mine = labels == label
        if len(np.unique(asked[mine])) < LEAST_WORDINGS:
            continue
        constant = len(np.unique(measured[mine])) < LEAST_WORDINGS
        found.append(0.0 if constant else float(spearmanr(asked[mine], measured[mine]).statistic))
    return float(np.mean(found)) if found else None


def fidelity(
    propose: ProposeDescribed,
    real: Split,
    per_class: int,
    seed: int,
    model: str,
    progress: Progress | None = None,
) -> Fidelity:
    """Ask for the wordings of `per_class` real tiles of each tissue, one tile each, and measure the answers.

    Raises:
        RequestError: fewer than 5 tiles for each tissue, or the real tiles have all one wording.
    """
    if per_class < LEAST_PER_TISSUE:
        raise RequestError(
            f"Correlations need at least {LEAST_PER_TISSUE} tiles for each tissue, not {per_class}."
        )
    random = np.random.default_rng(seed)
    models, answers, labels = [], [], []
    total = per_class * len(TISSUES)
    for tissue in TISSUES:
        chosen = random.permutation(np.flatnonzero(real.labels == tissue.index))[:per_class]
        wordings = phrases(real.images[chosen])
        for i, (index, words) in enumerate(zip(chosen, wordings, strict=True)):
            done = tissue.index * per_class + i
            if progress is not None:
                progress(done, total, f"Attributes: {tissue.label}")
            answers.append(propose(tissue, caption(words), [(seed + done) % (MAX_SEED + 1)])[0])
            models.append(real.images[index])
            labels.append(tissue.index)
    asked_of, made, tissues = np.stack(models), np.stack(answers), np.array(labels, dtype=np.int64)
    asked, of_made, of_real = bins(asked_of), measure(made), measure(asked_of)
    spearman, ceiling = {}, {}
    for attribute in ATTRIBUTES:
        name = attribute.name
        correlation = within_tissues(asked[name], of_made[name], tissues)
        best = within_tissues(asked[name], of_real[name], tissues)
        if correlation is not None and best is not None:
            spearman[name], ceiling[name] = correlation, best
    if not spearman:
        raise RequestError("The real tiles have all one wording; correlations need more of them.")
    return Fidelity(
        split=real.name,
        n=len(made),
        seed=seed,
        model=model,
        mean=float(np.mean(list(spearman.values()))),
        spearman=spearman,
        ceiling=ceiling,
    )
