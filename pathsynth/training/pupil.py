"""A pupil: a small network that learns the tissues from made tiles alone, and shows which real ones it would
not know by them.

What classifiers learn from generated tiles carries over to real ones as far as these lie where it expects
them. So tiles of a tissue are drawn to where the pupil places real ones of it: where it takes real mucosa for
mucus, what is made of mucosa has to go there too, and be named right, from which the pupil learns on. After
Zhao and Bilen, *Dataset Condensation with Distribution Matching*, 2023, with a network that is trained
meanwhile in place of random ones, and with the energy distance of whole distributions in place of means.

A pupil that learns on has seen more tiles than any classifier is trained on, and what one adapter after
another makes of a tissue: it comes to know real mucosa that a fresh network, with 200 tiles of each tissue,
does not. So there may be fresh ones in its place, each trained to the end on few tiles, and of other
architectures, since what tiles teach a large network they need not teach a small one.
"""

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.models.feature_extraction import create_feature_extractor

from pathsynth.data import Split
from pathsynth.tissues import TISSUES
from pathsynth.training.augment import dihedral, vary_stain
from pathsynth.training.perceptual import mean_distance
from pathsynth.validator import Architecture, build_classifier, to_model_range

PupilArchitecture = Literal["small", Architecture]

# The layers that stand for the middle and the end of a network, and its logits.
_SEEN: Final[dict[Architecture, tuple[str, str, str]]] = {
    "resnet18": ("layer2", "flatten", "fc"),
    "regnet_y_400mf": ("trunk_output.block2", "flatten", "fc"),
}
_KEPT_PER_TISSUE = 200
_LEAST_PER_TISSUE = 4
_COMPARED_PER_TISSUE = 96
_COMPARED_AGAIN_AFTER = 20
_LISTENED_TO_FROM = 100
_STAIN_STRENGTH = 0.2
_OTHER_STAIN = 0.35
_LESSON = 64
_FRESH_AFTER = 200
_FRESH_LESSONS = 400
_FRESH_RATE = 2e-3
_FRESH_DECAY = 0.05
_FRESH_LEAST = 24
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


class LargePupil(nn.Module):
    """A network of `build_classifier` as a pupil, from tiles (N, 3, 28, 28) in [-1, 1] to logits (N, 9)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self._layers = create_feature_extractor(build_classifier(architecture), list(_SEEN[architecture]))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.kinds(tiles)[-1]

    def kinds(self, tiles: torch.Tensor) -> list[torch.Tensor]:
        """As of a `Pupil`."""
        middle, late, named = self._layers(tiles).values()
        return [middle.mean((2, 3)), late, named]


_AnyPupil = Pupil | LargePupil


class _Lessons:
    """What pupils are shown: made tiles, real ones of `train`, both as other laboratories may stain them."""

    def __init__(self, train: Split, seed: int) -> None:
        self._train = train
        self._at = [torch.nonzero(torch.from_numpy(train.labels == t.index))[:, 0] for t in TISSUES]
        self._generator = torch.Generator().manual_seed(seed)

    def _none(self) -> list[torch.Tensor]:
        """No tiles (0, 3, 28, 28) of each tissue."""
        return [torch.empty(0, 3, *self._train.images.shape[1:3]) for _ in TISSUES]

    def _loss(self, pupil: _AnyPupil, made: list[torch.Tensor]) -> torch.Tensor:
        """Cross-entropy (scalar) of a pupil on made tiles, of each tissue as many."""
        labels = torch.randint(len(TISSUES), (_LESSON,), generator=self._generator)
        tiles = torch.stack([self._any_of(made[label], 1)[0] for label in labels.tolist()])
        device = _device_of(pupil)
        named = pupil(self._stained(tiles.to(device), _STAIN_STRENGTH))
        return F.cross_entropy(named.float(), labels.to(device), label_smoothing=0.05)

    def _apart(
        self, pupil: _AnyPupil, compared: list[list["_Compared"]], tiles: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Mean over made tiles (N, 3, 28, 28) in [-1, 1] of tissues (N,) of the energy distance from real
        ones in what a pupil sees (scalar).
        """
        kinds = pupil.kinds(self._stained(tiles, _OTHER_STAIN))
        total = tiles.new_zeros(())
        for row, label in enumerate(labels.tolist()):
            for kind, known in zip(kinds, compared[label], strict=True):
                total = total + known(kind[row])
        return total / (len(labels) * len(kinds))

    def _compare(self, pupil: _AnyPupil, tissue: int, made: torch.Tensor) -> list["_Compared"]:
        """Real tiles of a tissue and some of the made ones (N, 3, 28, 28) in [-1, 1], as a pupil sees
        them.
        """
        chosen = self._any_of(self._at[tissue], _COMPARED_PER_TISSUE).numpy()
        real = to_model_range(self._train.images[chosen])
        device = _device_of(pupil)
        with torch.no_grad():
            shown = [
                self._stained(each.to(device), _OTHER_STAIN)
                for each in (real, self._any_of(made, _COMPARED_PER_TISSUE))
            ]
            seen = [pupil.kinds(each) for each in shown]
        return [_Compared(*kind) for kind in zip(*seen, strict=True)]

    def _stained(self, tiles: torch.Tensor, strength: float) -> torch.Tensor:
        """Tiles (N, 3, 28, 28) in [-1, 1] under a symmetry and in a stain of their own."""
        with torch.autocast(tiles.device.type, enabled=False):
            varied = vary_stain(dihedral(tiles.float(), self._generator), self._generator, strength)
        return varied.contiguous(memory_format=torch.channels_last)

    def _any_of(self, some: torch.Tensor, count: int) -> torch.Tensor:
        return some[torch.randint(len(some), (count,), generator=self._generator)]


class Lessons(_Lessons):
    """The latest made tiles of each tissue, which one pupil goes on learning from, and how far from where it
    places real ones of `train` it places what is made.
    """

    def __init__(self, pupil: Pupil, train: Split, seed: int) -> None:
        super().__init__(train, seed)
        self._pupil = pupil
        self._made = self._none()
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
        self._pupil.steps.add_(1)
        return self._loss(self._pupil, self._made)

    def distance(self, tiles: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over made tiles (N, 3, 28, 28) in [-1, 1] of tissues (N,) of the energy distance from real
        ones in what the pupil sees (scalar); no gradient reaches the pupil.
        """
        if int(self._pupil.steps) - self._compared_at >= _COMPARED_AGAIN_AFTER:
            made = enumerate(self._made)
            self._compared = [self._compare(self._pupil, tissue, each) for tissue, each in made]
            self._compared_at = int(self._pupil.steps)
        self._pupil.requires_grad_(False)
        apart = self._apart(self._pupil, self._compared, tiles, labels)
        self._pupil.requires_grad_(True)
        return apart

    def taught(self, split: Split, per_tissue: int) -> list[float]:
        """The share of the first real tiles of each tissue that the pupil names right."""
        return _known(self._pupil, split, per_tissue)


class FreshLessons(_Lessons):
    """The latest made tiles of each tissue, one half to learn from and the other to compare; the latest
    `count` pupils, of which a new one is trained from scratch every 200 steps, with 400 batches of what is
    there to learn from; and how far from where they place real tiles of `train` they place what is made.
    Their architectures are taken in turn.

    Tiles that a pupil has learnt from are not compared, since it is surer of those. Pupils are not kept with
    a run: one that is resumed begins anew when there are tiles enough.
    """

    def __init__(
        self, count: int, train: Split, seed: int, architectures: Sequence[PupilArchitecture] = ("small",)
    ) -> None:
        super().__init__(train, seed)
        self._count = count
        self._architectures = architectures
        self._begun = 0
        self._learnt, self._shown = self._none(), self._none()
        self._pupils: list[_AnyPupil] = []
        self._compared: list[list[list[_Compared]]] = []
        self._steps = 0
        self._device = torch.device("cpu")

    def remember(self, tiles: torch.Tensor, labels: torch.Tensor) -> None:
        """Keep tiles (N, 3, 28, 28) in [-1, 1] of tissues (N,), and of each tissue the latest; one of two to
        learn from.
        """
        self._device = tiles.device
        tiles, labels = tiles.detach().cpu(), labels.cpu()
        for tile, tissue in zip(tiles, labels.tolist(), strict=True):
            to_learn = len(self._learnt[tissue]) <= len(self._shown[tissue])
            if len(self._learnt[tissue]) == _KEPT_PER_TISSUE:
                to_learn = bool(torch.rand((), generator=self._generator) < 0.5)
            pile = self._learnt if to_learn else self._shown
            pile[tissue] = torch.cat([pile[tissue], tile[None]])[-_KEPT_PER_TISSUE:]

    @property
    def counts(self) -> bool:
        """Whether there is a pupil."""
        return bool(self._pupils)

    def go_on(self) -> None:
        """Count a step, and train a pupil when it is time for one."""
        piles = [*self._learnt, *self._shown]
        another = self._steps % _FRESH_AFTER == 0
        if another and min(len(each) for each in piles) < _FRESH_LEAST:
            return
        if another:
            self._pupils = [*self._pupils, self._trained()][-self._count :]
        if another or self._steps % _COMPARED_AGAIN_AFTER == 0:
            self._compared = [
                [self._compare(pupil, tissue, made) for tissue, made in enumerate(self._shown)]
                for pupil in self._pupils
            ]
        self._steps += 1

    def distance(self, tiles: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over pupils and made tiles (N, 3, 28, 28) in [-1, 1] of tissues (N,) of the energy distance
        from real ones in what they see (scalar).
        """
        each = zip(self._pupils, self._compared, strict=True)
        return torch.stack([self._apart(*pupil, tiles, labels) for pupil in each]).mean()

    def taught(self, split: Split, per_tissue: int) -> list[float]:
        """The share of the first real tiles of each tissue that the latest pupil names right; of none where
        there is no pupil yet.
        """
        return _known(self._pupils[-1], split, per_tissue) if self._pupils else []

    def _trained(self) -> _AnyPupil:
        """A pupil that has learnt, in full precision: autocast would go on with the weights that it cast at
        first.
        """
        seed = int(torch.randint(2**31, (), generator=self._generator))
        architecture = self._architectures[self._begun % len(self._architectures)]
        self._begun += 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pupil: _AnyPupil = Pupil() if architecture == "small" else LargePupil(architecture)
        pupil = pupil.to(self._device).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(pupil.parameters(), _FRESH_RATE, weight_decay=_FRESH_DECAY)
        rate = OneCycleLR(optimizer, _FRESH_RATE, total_steps=_FRESH_LESSONS, pct_start=0.1)
        with torch.autocast(self._device.type, enabled=False):
            for _ in range(_FRESH_LESSONS):
                optimizer.zero_grad()
                self._loss(pupil, self._learnt).backward()
                optimizer.step()
                rate.step()
        optimizer.zero_grad()
        return pupil.eval().requires_grad_(False)


def _device_of(pupil: _AnyPupil) -> torch.device:
    return next(pupil.parameters()).device


def _known(pupil: _AnyPupil, split: Split, per_tissue: int) -> list[float]:
    """The share of the first tiles of each tissue that a pupil names right."""
    device, shares = _device_of(pupil), []
    for tissue in TISSUES:
        tiles = to_model_range(split.images[split.labels == tissue.index][:per_tissue])
        with torch.no_grad():
            named = pupil(tiles.to(device)).argmax(1)
        shares.append(float((named == tissue.index).float().mean()))
    return shares


class _Compared:
    """Real and made features, both (M, F), in the deviation of the real ones."""

    def __init__(self, real: torch.Tensor, made: torch.Tensor) -> None:
        self._scale = real.float().std(0).clamp_min(_LEAST_DEVIATION) * real.shape[1] ** 0.5
        self._real, self._made = real.float() / self._scale, made.float() / self._scale

    def __call__(self, one: torch.Tensor) -> torch.Tensor:
        """Mean distance (scalar) of features (F,) from the real ones, less that from the made ones."""
        mine = one.float() / self._scale
        return mean_distance(mine, self._real) - mean_distance(mine, self._made)
