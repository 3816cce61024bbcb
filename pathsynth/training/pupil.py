"""A pupil: a small network that learns the tissues from made tiles alone, and shows which real ones it would
not know by them.

What classifiers learn from generated tiles carries over to real ones as far as these lie where it expects
them. So tiles of a tissue are drawn to where the pupil places real ones of it: where it takes real mucosa for
mucus, what is made of mucosa has to go there too, and be named right, from which the pupil learns on. After
Zhao and Bilen, *Dataset Condensation with Distribution Matching*, 2023, with a network that is trained
meanwhile in place of random ones, and with the energy distance of whole distributions in place of means.
"""

import torch
from torch import nn
from torch.nn import functional as F

from pathsynth.data import Split
from pathsynth.tissues import TISSUES
from pathsynth.training.augment import dihedral, vary_stain
from pathsynth.training.perceptual import mean_distance
from pathsynth.validator import to_model_range

_KEPT_PER_TISSUE = 200
_LEAST_PER_TISSUE = 4
_COMPARED_PER_TISSUE = 96
_COMPARED_AGAIN_AFTER = 20
_LISTENED_TO_FROM = 100
_STAIN_STRENGTH = 0.2
_OTHER_STAIN = 0.35
_LESSON = 64
_LEAST_DEVIATION = 1e-3


class Pupil(nn.Module):
    """From tiles (N, 3, 28, 28) in [-1, 1] to logits (N, 9). `steps` counts how often it was trained."""

    steps: torch.Tensor

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers = ((3, 1, 1), (1, 2, 2), (2, 3, 1), (3, 4, 2), (4, 4, 1))
        stages: list[nn.Module] = []
        for i, (inputs, outputs, stride) in enumerate(layers):
            convolution = nn.Conv2d(
                inputs * (width if i else 1), outputs * width, 3, stride, padding=1, bias=False
            )
            stages.append(nn.Sequential(convolution, nn.GroupNorm(8, outputs * width), nn.ReLU()))
        self.middle = nn.Sequential(*stages[:3])
        self.late = nn.Sequential(*stages[3:])
        self.named = nn.Linear(4 * width, len(TISSUES))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.kinds(tiles)[-1]

    def kinds(self, tiles: torch.Tensor) -> list[torch.Tensor]:
        """What it sees in tiles, each (N, F): mean features in the middle and at the end, and the logits."""
        middle = self.middle(tiles)
        late = self.late(middle).mean((2, 3))
        return [middle.mean((2, 3)), late, self.named(late)]


class Lessons:
    """The latest made tiles of each tissue, which a pupil learns from, and how far from where it places
    real ones of `train` it places what is made.
    """

    def __init__(self, pupil: Pupil, train: Split, seed: int) -> None:
        self._pupil = pupil
        self._train = train
        self._at = [torch.nonzero(torch.from_numpy(train.labels == t.index))[:, 0] for t in TISSUES]
        self._made = [torch.empty(0, 3, *train.images.shape[1:3]) for _ in TISSUES]
        self._generator = torch.Generator().manual_seed(seed)
        self._compared: list[list[_Compared]] = []
        self._compared_at = -_COMPARED_AGAIN_AFTER

    def remember(self, tiles: torch.Tensor, labels: torch.Tensor) -> None:
        """Keep tiles (N, 3, 28, 28) in [-1, 1] of tissues (N,), and of each tissue the latest."""
        tiles, labels = tiles.detach().cpu(), labels.cpu()
        for tissue in labels.unique().tolist():
            kept = torch.cat([self._made[tissue], tiles[labels == tissue]])
            self._made[tissue] = kept[-_KEPT_PER_TISSUE:]

    @property
    def ready(self) -> bool:
        """Whether there are made tiles of every tissue to learn from."""
        return min(len(each) for each in self._made) >= _LEAST_PER_TISSUE

    @property
    def counts(self) -> bool:
        """Whether the pupil has learnt enough to be listened to, and from tiles that are still there."""
        return self.ready and int(self._pupil.steps) >= _LISTENED_TO_FROM

    def loss(self) -> torch.Tensor:
        """Cross-entropy (scalar) of the pupil on made tiles, of each tissue as many."""
        labels = torch.randint(len(TISSUES), (_LESSON,), generator=self._generator)
        tiles = torch.stack([self._any_of(self._made[label], 1)[0] for label in labels.tolist()])
        device = self._pupil.named.weight.device
        self._pupil.steps.add_(1)
        named = self._pupil(self._stained(tiles.to(device), _STAIN_STRENGTH))
        return F.cross_entropy(named.float(), labels.to(device), label_smoothing=0.05)

    def distance(self, tiles: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over made tiles (N, 3, 28, 28) in [-1, 1] of tissues (N,) of the energy distance from real
        ones in what the pupil sees, both as other laboratories may stain them (scalar); no gradient reaches
        the pupil.
        """
        if int(self._pupil.steps) - self._compared_at >= _COMPARED_AGAIN_AFTER:
            self._compared = [self._compare(tissue.index) for tissue in TISSUES]
            self._compared_at = int(self._pupil.steps)
        self._pupil.requires_grad_(False)
        kinds = self._pupil.kinds(self._stained(tiles, _OTHER_STAIN))
        self._pupil.requires_grad_(True)
        total = tiles.new_zeros(())
        for row, label in enumerate(labels.tolist()):
            for kind, compared in zip(kinds, self._compared[label], strict=True):
                total = total + compared(kind[row])
        return total / (len(labels) * len(kinds))

    def taught(self, split: Split, per_tissue: int) -> list[float]:
        """The share of the first real tiles of each tissue that the pupil names right."""
        device, shares = self._pupil.named.weight.device, []
        for tissue in TISSUES:
            tiles = to_model_range(split.images[split.labels == tissue.index][:per_tissue])
            with torch.no_grad():
                named = self._pupil(tiles.to(device)).argmax(1)
            shares.append(float((named == tissue.index).float().mean()))
        return shares

    def _compare(self, tissue: int) -> list["_Compared"]:
        chosen = self._any_of(self._at[tissue], _COMPARED_PER_TISSUE).numpy()
        real = to_model_range(self._train.images[chosen])
        made = self._any_of(self._made[tissue], _COMPARED_PER_TISSUE)
        device = self._pupil.named.weight.device
        with torch.no_grad():
            shown = [self._stained(each.to(device), _OTHER_STAIN) for each in (real, made)]
            seen = [self._pupil.kinds(each) for each in shown]
        return [_Compared(*kind) for kind in zip(*seen, strict=True)]

    def _stained(self, tiles: torch.Tensor, strength: float) -> torch.Tensor:
        """Tiles (N, 3, 28, 28) in [-1, 1] under a symmetry and in a stain of their own."""
        with torch.autocast(tiles.device.type, enabled=False):
            varied = vary_stain(dihedral(tiles.float(), self._generator), self._generator, strength)
        return varied.contiguous(memory_format=torch.channels_last)

    def _any_of(self, some: torch.Tensor, count: int) -> torch.Tensor:
        return some[torch.randint(len(some), (count,), generator=self._generator)]


class _Compared:
    """Real and made features, both (M, F), in the deviation of the real ones."""

    def __init__(self, real: torch.Tensor, made: torch.Tensor) -> None:
        self._scale = real.float().std(0).clamp_min(_LEAST_DEVIATION) * real.shape[1] ** 0.5
        self._real, self._made = real.float() / self._scale, made.float() / self._scale

    def __call__(self, one: torch.Tensor) -> torch.Tensor:
        """Mean distance (scalar) of features (F,) from the real ones, less that from the made ones."""
        mine = one.float() / self._scale
        return mean_distance(mine, self._real) - mean_distance(mine, self._made)
