"""What a detail autoencoder is compared by beside pixels: features of a network trained on ImageNet, and a
rival that tells its tiles from real ones patch by patch.

Zhang et al., *The Unreasonable Effectiveness of Deep Features*, 2018; Isola et al., *Image-to-Image
Translation with Conditional Adversarial Networks*, 2017; hinge loss after Lim and Ye, 2017; spectral
normalisation after Miyato et al., 2018.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

_LEAST_PAIRS = 8
_LEAST_DEVIATION = 1e-3
_LEAST_POWER = 1e-6  # keeps the logarithm of a flat tile finite; noise of one grey level has about 1


class FeatureDistance(nn.Module):
    """Mean squared distance between features of two batches of tiles (N, 3, S, S) in [-1, 1] after each of
    the given stages, every feature vector scaled to unit length. The stages are frozen.
    """

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FeatureDistance":
        """Stays as it is: statistics of batches are those it was trained with."""
        return super().train(False)

    def forward(self, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Distance (scalar), averaged over stages, places and tiles."""
        total = made.new_zeros(())
        with torch.no_grad():
            wanted = self._features(real)
        for mine, other in zip(self._features(made), wanted, strict=True):
            difference = F.normalize(mine.float(), dim=1) - F.normalize(other.float(), dim=1)
            total = total + difference.square().sum(1).mean()
        return total / len(self.stages)

    def _features(self, tiles: torch.Tensor) -> list[torch.Tensor]:
        return staged(self.stages, tiles)


def staged(stages: Iterable[nn.Module], tiles: torch.Tensor) -> list[torch.Tensor]:
    """What comes out of each stage of a network."""
    features = []
    for stage in stages:
        tiles = stage(tiles)
        features.append(tiles)
    return features


class SpectrumDistance(nn.Module):
    """Mean absolute difference, over frequencies, between the logarithms of the mean power that two batches
    of tiles (N, 3, S, S) in [-1, 1] have there.

    Power is that of `tile_power`, as `pathsynth.realism.radial_spectrum` has it. Networks that learn from
    pixels make high frequencies too weak: Jiang et al., *Focal Frequency Loss*, 2021.
    """

    def forward(self, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Distance (scalar)."""
        return (tile_power(made).mean(0).log() - tile_power(real).mean(0).log()).abs().mean()


def tile_power(tiles: torch.Tensor) -> torch.Tensor:
    """Power (N, S/2) of the grey of each tile (N, 3, S, S) in [-1, 1] at 1 to S/2 cycles a tile, under a Hann
    window; never zero.
    """
    size = tiles.shape[-1]
    with torch.autocast(tiles.device.type, enabled=False):
        grey = tiles.float().mean(1)
        line = torch.hann_window(size, periodic=False, device=tiles.device)
        windowed = (grey - grey.mean((1, 2), keepdim=True)) * line * line[:, None]
        power = torch.view_as_real(torch.fft.fft2(windowed)).square().sum(-1).flatten(1)
        frequency = torch.fft.fftfreq(size, 1 / size, device=tiles.device)
        ring = torch.hypot(frequency[:, None], frequency).round().long().flatten()
        sums = torch.zeros(len(tiles), int(ring.max()) + 1, device=tiles.device).index_add(1, ring, power)
        mean: torch.Tensor = sums / ring.bincount()
    return mean[:, 1 : size // 2 + 1] + _LEAST_POWER


class PatchRival(nn.Module):
    """Says of each patch of about 46 px of tiles (N, 3, S, S) how real it looks: logits (N, 1, S / 8, S / 8).

    `steps` counts how often it was trained, so that a resumed run knows.
    """

    steps: torch.Tensor

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        layers.append(spectral_norm(nn.Conv2d(widths[-1], widths[-1], 3, padding=1)))
        layers += [nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], 1, 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(tiles)
        return logits


@dataclass(frozen=True)
class Shown:
    """What a rival sees: pictures (N, C, S, S), and features of them where another network looks too."""

    pictures: torch.Tensor
    features: list[torch.Tensor]

    def detached(self) -> "Shown":
        """The same, from which no gradient goes back."""
        return Shown(self.pictures.detach(), [each.detach() for each in self.features])


def opinion(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """How real a rival finds what it saw (scalar): the mean over its heads of their mean logits."""
    return torch.stack([each.float().mean() for each in logits]).mean()


def hinges(real: Sequence[torch.Tensor], made: Sequence[torch.Tensor]) -> torch.Tensor:
    """`hinge`, averaged over the heads of a rival."""
    return torch.stack([hinge(*head) for head in zip(real, made, strict=True)]).mean()


def hinge(real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """What a rival with these logits of real and of made patches has to lose."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + made.float()).mean())


class Contest:
    """A model against a rival that counts from its step `starts` on.

    Beside pictures and features a rival may be told more (text, tissues), the same of real and of made ones.
    """

    def __init__(self, rival: nn.Module, starts: int) -> None:
        self._rival, self._starts = rival, starts
        self._last: tuple[Shown, Shown, tuple[torch.Tensor, ...]] | None = None

    @property
    def made(self) -> Shown | None:
        """What was made last."""
        return None if self._last is None else self._last[1]

    def opinion(self, made: Shown, *told: torch.Tensor) -> torch.Tensor:
        """How real the rival finds what was made (scalar), 0 before it counts; no gradient reaches its
        weights.
        """
        if int(self._rival.get_buffer("steps")) < self._starts:
            return made.pictures.new_zeros(())
        self._rival.requires_grad_(False)
        logits = self._rival(made.pictures, *told, made.features)
        self._rival.requires_grad_(True)
        return opinion(logits)

    def keep(self, real: Shown, made: Shown, *told: torch.Tensor) -> None:
        """Remember what the rival is to learn from; no gradient goes back from there."""
        self._last = (real, made.detached(), told)

    def rival_loss(self, rival: nn.Module) -> torch.Tensor:
        """Hinge loss of the rival, as the engine has it, on what was kept."""
        if self._last is None:
            raise RuntimeError("the rival looks at what the model made, and that has made nothing yet")
        real, made, told = self._last
        self._rival.get_buffer("steps").add_(1)
        # One after the other: deviation is within one kind of picture.
        return hinges(rival(real.pictures, *told, real.features), rival(made.pictures, *told, made.features))


class TextureRival(nn.Module):
    """Says how real tiles look: logits of a `PatchRival`, and of every place of each kind of features of
    another network. `seen_by_other` has the channels of the features.

    `steps` counts how often it was trained, so that a resumed run knows.
    """

    steps: torch.Tensor

    def __init__(self, width: int = 32, seen_by_other: Sequence[int] = ()) -> None:
        super().__init__()
        self.patches = PatchRival(width)
        self.other = nn.ModuleList(
            nn.Sequential(
                spectral_norm(nn.Conv2d(channels, 4 * width, 1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(4 * width, 4 * width, 3, padding=1)),
                nn.LeakyReLU(0.2),
                nn.Conv2d(4 * width, 1, 1),
            )
            for channels in seen_by_other
        )
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, tiles: torch.Tensor, features: Sequence[torch.Tensor] = ()) -> list[torch.Tensor]:
        others = [layer(each) for layer, each in zip(self.other, features, strict=True)]
        return [self.patches(tiles), *others]


class PairedSpread:
    """Energy distance between features of what was made and of the real tiles that it was made from the
    thumbnails of (Székely and Rizzo, *Energy statistics*, 2013).

    Each vector is drawn to the real ones of the last `kept` pairs and pushed from what was made of them. As
    both have the same content, what sets them apart is how it is drawn.
    """

    def __init__(self, kept: int = 96) -> None:
        self._kept = kept
        self._real: list[torch.Tensor] = []
        self._made: list[torch.Tensor] = []

    def __call__(self, made: Sequence[torch.Tensor], real: Sequence[torch.Tensor]) -> torch.Tensor:
        """Distance (scalar) of kinds of features, each (N, F), averaged over kinds; 0 before there are eight
        pairs to compare with.
        """
        total = made[0].new_zeros(())
        if self._real and len(self._real[0]) >= _LEAST_PAIRS:
            for mine, known, lately in zip(made, self._real, self._made, strict=True):
                scale = known.std(0).clamp_min(_LEAST_DEVIATION) * known.shape[1] ** 0.5
                to_real, to_made = (_distances(mine / scale, each / scale).mean() for each in (known, lately))
                total = total + to_real - to_made
        self._real = self._with(self._real, real)
        self._made = self._with(self._made, made)
        return total / len(made)

    def _with(self, before: list[torch.Tensor], new: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        old = before or [each[:0].detach() for each in new]
        return [torch.cat([a, b.detach()])[-self._kept :] for a, b in zip(old, new, strict=True)]


def _distances(some: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Distances (N, M) of vectors (N, F) from others (M, F), with a gradient at zero."""
    return (some[:, None] - others).square().sum(2).add(1e-8).sqrt()


def mean_distance(one: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Mean distance (scalar) of a vector (F,) from others (M, F), with a gradient at zero."""
    return _distances(one[None], others.to(one.device)).mean()


def pooled(features: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Mean and standard deviation over places (N, 2 C) of each kind of features (N, C, h, w)."""
    return [torch.cat([each.mean((2, 3)), each.var((2, 3)).add(1e-8).sqrt()], dim=1) for each in features]


def imagenet_head() -> nn.Module | None:
    """From the last of the other `imagenet_stages` to the last features of EfficientNet-Lite2, at 1/32 of the
    resolution; None when the package with its weights is not installed.

    Raises:
        WeightsError: the packaged weights are not the published ones.
    """
    from pathsynth.realism import other_imagenet_network

    network = other_imagenet_network()
    if network is None:
        return None
    blocks = list(network._blocks)
    last = max(i for i, block in enumerate(blocks) if _stride(block) == 2)
    return nn.Sequential(*blocks[last:], network._conv_head, network._bn1, network._swish)


def imagenet_stages(other: bool = False) -> list[nn.Module] | None:
    """Four stages of EfficientNet-Lite0, or with `other` of Lite2, at 1/2, 1/4, 1/8 and 1/16 of the
    resolution; None when the package with its weights is not installed.

    Raises:
        WeightsError: the packaged weights are not the published ones.
    """
    from pathsynth.realism import imagenet_network, other_imagenet_network

    network = other_imagenet_network() if other else imagenet_network()
    if network is None:
        return None
    blocks = list(network._blocks)
    cuts = [0, *(i for i, block in enumerate(blocks) if i and _stride(block) == 2), len(blocks)]
    stem = nn.Sequential(_Scale(), network._conv_stem, network._bn0, network._swish, *blocks[: cuts[1]])
    middle = [nn.Sequential(*blocks[cuts[i] : cuts[i + 1]]) for i in range(1, 4)]
    return [stem, *middle]


def _stride(block: nn.Module) -> int:
    convolution = block.get_submodule("_depthwise_conv")
    assert isinstance(convolution, nn.Conv2d)
    return convolution.stride[0]


class _Scale(nn.Module):
    """From [-1, 1] to what EfficientNet-Lite was trained on: (grey level - 127) / 128."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return tiles.mul(127.5 / 128).add(0.5 / 128)
