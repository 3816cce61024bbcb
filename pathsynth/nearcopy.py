"""The near-copy guard: is a generated tile nearer to a training tile than an unseen real tile ever is?

Distances are taken between principal components of the pixels, so the index that ships holds a short
projection of every training tile, not the tile. They are compared with how near the real tiles of val lie
to train, tissue by tissue, since two plain backgrounds resemble each other without being copies. A tile has
no up or down: all eight symmetries are looked up. After the memorisation test of Carlini et al.,
*Extracting Training Data from Diffusion Models*, 2023, with the threshold calibrated on held-out real data.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from pathsynth.data import Split
from pathsynth.tissues import TISSUES, Tissue
from pathsynth.weights import loading

INDEX_FILE = "near-copies.safetensors"
COMPONENTS = 32
QUANTILE = 0.01
_CODE_LIMIT = 32_767
_FIT_ON = 20_000
_CHUNK = 64


@dataclass(frozen=True)
class NearCopyIndex:
    """Projections of the training tiles and a distance limit for each tissue.

    `mean` (2352,) and `components` (K, 2352) project uint8 pixels; `scale` is the width of one step of the
    signed 16-bit `codes` (N, K); `limits` (9,) is in units of grey levels of the projection.
    """

    mean: torch.Tensor
    components: torch.Tensor
    scale: float
    codes: torch.Tensor
    limits: torch.Tensor

    @classmethod
    def build(cls, train: Split, val: Split) -> "NearCopyIndex":
        """Project all of `train`; the limit of a tissue is the 1 % quantile of its val-to-train distances."""
        from sklearn.decomposition import PCA  # not at the top: 0.9 s of the time to the first tile

        chosen = np.linspace(0, len(train) - 1, min(_FIT_ON, len(train)), dtype=np.int64)
        pca = PCA(COMPONENTS, svd_solver="randomized", random_state=0).fit(_flat(train.images[chosen]))
        mean, components = (
            torch.from_numpy(np.ascontiguousarray(a, dtype=np.float16)).float()
            for a in (pca.mean_, pca.components_)
        )
        projected = (torch.from_numpy(_flat(train.images)) - mean) @ components.T
        scale = float(projected.abs().max()) / _CODE_LIMIT
        codes = (projected / scale).round().clamp(-_CODE_LIMIT, _CODE_LIMIT).to(torch.int16)
        open_index = cls(mean, components, scale, codes, torch.zeros(len(TISSUES)))
        distances, labels = open_index.distances(val.images), torch.from_numpy(val.labels)
        limits = torch.stack([distances[labels == tissue.index].quantile(QUANTILE) for tissue in TISSUES])
        return cls(mean, components, scale, codes, limits)

    @classmethod
    def load(cls, path: Path) -> "NearCopyIndex":
        """Read a file written by `save`.

        Raises:
            WeightsError: the file is missing or holds something else.
        """
        with loading(path):
            tensors = load_file(path)
            return cls(
                tensors["mean"].float(),
                tensors["components"].float(),
                float(tensors["scale"]),
                tensors["codes"],
                tensors["limits"],
            )

    def save(self, path: Path) -> None:
        """Write the index, projections in 16 bits."""
        save_file(
            {
                "mean": self.mean.half(),
                "components": self.components.half(),
                "scale": torch.tensor(self.scale),
                "codes": self.codes,
                "limits": self.limits,
            },
            path,
        )

    def distances(self, tiles: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Distance (N,) of each uint8 RGB tile (N, 28, 28, 3), however turned or flipped, to the nearest
        training tile.
        """
        known = self.codes.float() * self.scale
        norms = known.square().sum(1)
        nearest = torch.full((len(tiles),), torch.inf)
        for symmetry in range(8):
            turned = np.rot90(tiles, symmetry % 4, axes=(1, 2))
            turned = turned[:, :, ::-1] if symmetry >= 4 else turned
            projected = (torch.from_numpy(_flat(turned)) - self.mean) @ self.components.T
            for start in range(0, len(tiles), _CHUNK):
                part = projected[start : start + _CHUNK]
                squared = norms - 2 * (part @ known.T) + part.square().sum(1, keepdim=True)
                found = squared.min(1).values.clamp_min(0).sqrt()
                nearest[start : start + _CHUNK] = torch.minimum(nearest[start : start + _CHUNK], found)
        return nearest

    def is_near_copy(self, tile: npt.NDArray[np.uint8], tissue: Tissue) -> bool:
        """Whether a tile (28, 28, 3) of `tissue` lies nearer to train than 99 % of its real tiles in val."""
        return bool(self.distances(tile[np.newaxis])[0] < self.limits[tissue.index])


def _flat(tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(tiles).reshape(len(tiles), -1).astype(np.float32)
