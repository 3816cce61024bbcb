"""Adapters that take few steps: the second stage of a LoRA adapter, against a rival.

A flow-matching adapter needs many steps and guidance, and guidance costs diversity. Here the network learns
to go from each of a few times straight to a tile that a rival cannot tell from a real one with the same text,
after Sauer et al., *Adversarial Diffusion Distillation*, 2024, and Xu et al., *UFOGen*, 2024, without a
teacher: real tiles are noised to one of the times, and what the network makes of them has to look real and,
the more of the tile is left in the noise, be that tile. When sampling, each tile is noised again for the next
step, so every step starts from what it was trained on.

Against a loss of variety a batch is held against real tiles of its tissues by the energy distance, which is
zero for equal distributions alone: each tile is drawn to the real ones and pushed from those made lately
(Székely and Rizzo, *Energy statistics*, 2013; as a loss Bellemare et al., *The Cramer Distance as a Solution
to Biased Wasserstein Gradients*, 2017).
The rival may also look at features of the validator, as in Sauer et al., *Projected GANs*, 2021: those of a
tissue have to be spread as in real tiles of it. And its own verdict may count, after Odena et al.,
*Conditional Image Synthesis with Auxiliary Classifier GANs*, 2017. What the validator then says of the tiles
is no independent evidence; that is what the judge is for, which has no part in this. Where tiles go through
a correction of texture (`pathsynth.texture`) when they are used, all of this is of corrected tiles. A network
that makes sketches may be trained so too; they are judged as large as tiles that start from them see them.
The rivals themselves are in `pathsynth.training.rivals`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from pathsynth.data import Split
from pathsynth.errors import TrainingError
from pathsynth.generator import load_pipeline, load_sampling
from pathsynth.layout import (
    TIME_SCALE,
    LayoutPipeline,
    edge_of,
    enlarged,
    pooled_text,
    predict_velocity,
    sketched,
    without_sketch,
)
from pathsynth.realism import neighbourhoods
from pathsynth.text import TextContext, TextEncoder
from pathsynth.texture import TextureCorrection
from pathsynth.tissues import TISSUES
from pathsynth.training.few_steps import FewSteps, Make
from pathsynth.training.layout import BaseTask, FlowBatch, FlowTask, LoraTask
from pathsynth.training.layout_config import AdversarialConfig, BaseConfig, LoraConfig
from pathsynth.training.perceptual import Contest, Shown, SpectrumDistance, mean_distance, tile_power
from pathsynth.training.pupil import FreshLessons, Lessons, Pupil
from pathsynth.training.rivals import EvenColours, KeenRival, TileRival, shifted
from pathsynth.training.sketches import SketchDrawer
from pathsynth.training.wording import asked_by, attributes_of, directions_of, distance_from_wording
from pathsynth.validator import Validator, features_of, from_model_range, to_model_range

_FORGOTTEN = 0.03
_FORGOTTEN_OF_STEPS = 0.01
_EVALUATED_PER_TISSUE = 16
_KNOWN_PER_TISSUE = 256
_MADE_PER_TISSUE = 32
_MADE_OF_STEPS = 96
_LEAST_MADE = 4
_LEAST_DEVIATION = 1e-3
_SURE = 0.1
_KNOWN_COLOURS = 2048
_USUAL = (0.005, 0.995)
_ASKED_PER_TISSUE = 200


@dataclass(frozen=True)
class TissueBatch(FlowBatch):
    """As a FlowBatch, with the tissues (N,) of the tiles."""

    labels: torch.Tensor


class TissueSpread:
    """Energy distance between what is made of a tissue and real tiles of it, in several kinds of features.

    `known` has for each tissue its kinds of features of real tiles, each (M, F). What was made lately is kept
    for each of `steps` denoising steps, so a batch needs not many tiles of one tissue; of many steps fewer of
    each, as one has its turn less often, and what a network made long ago is not what it makes.
    """

    def __init__(self, known: Sequence[Sequence[torch.Tensor]], steps: int) -> None:
        self._scales = [
            [kind.std(0).clamp_min(_LEAST_DEVIATION) * kind.shape[1] ** 0.5 for kind in kinds]
            for kinds in known
        ]
        self._known = [
            [kind / scale for kind, scale in zip(kinds, scales, strict=True)]
            for kinds, scales in zip(known, self._scales, strict=True)
        ]
        self._made: list[list[list[tuple[torch.Tensor, ...]]]] = [[[] for _ in known] for _ in range(steps)]
        self._most = max(2 * _LEAST_MADE, min(_MADE_PER_TISSUE, _MADE_OF_STEPS // steps))

    def __call__(
        self, features: Sequence[torch.Tensor], steps: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Mean over tiles, with kinds of features (N, F), of the distance from real ones of their tissues
        (N,) less that from those made lately in the same steps (N,), averaged over kinds (scalar).
        """
        total = features[0].new_zeros(())
        for row, (step, label) in enumerate(zip(steps.tolist(), labels.tolist(), strict=True)):
            lately = self._made[step][label]
            own = [
                kind[row] / s.to(kind.device) for kind, s in zip(features, self._scales[label], strict=True)
            ]
            for i, (mine, known) in enumerate(zip(own, self._known[label], strict=True)):
                apart = mean_distance(mine, known)
                if len(lately) >= _LEAST_MADE:
                    apart = apart - mean_distance(mine, torch.stack([each[i] for each in lately]))
                total = total + apart
            lately.append(tuple(each.detach().cpu() for each in own))
            del lately[: -self._most]
        return total / (len(labels) * len(features))


def _without_pupil(rival: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take the pupil out of the state of a rival: one that has none may go on from one that had."""
    for name in [name for name in state if name.startswith(f"{prefix}pupil.")]:
        del state[name]


def seen_from(folder: Path, config: AdversarialConfig) -> AdversarialConfig:
    """The configuration with the folders that it names seen from another."""
    named = {"texture": config.texture, "sketches": config.sketches}
    return config.model_copy(update={name: each and folder / each for name, each in named.items()})


class AgainstRival(FlowTask):
    """A task whose network learns few steps against a rival. Sketches are judged as enlarged as tiles that
    start from them see them.
    """

    rival: nn.Module

    def set_against(self, config: AdversarialConfig, validator: Validator, seed: int) -> None:
        """Build the rival, and what else the configuration gives a weight. `validator` measures for the log,
        and lends the rival the features of the configured layers.
        """
        self.adversarial = config
        self._validator, self._edge = validator, edge_of(self.pipeline.unet)
        self._features: nn.Module | None = None
        widths: list[int] = []
        validator.model.requires_grad_(False)
        if layers := self.adversarial.features:
            self._features = create_feature_extractor(validator.model, layers).eval()
            with torch.no_grad():
                widths = [seen.shape[1] for seen in self._features(torch.zeros(1, 3, 28, 28)).values()]
        self._colours: EvenColours | None = None
        rival: TileRival
        if self.adversarial.keen:
            some = self.train.images[:: max(1, len(self.train) // _KNOWN_COLOURS)]
            self._colours = EvenColours(self._shown(self._wanted_of(to_model_range(some))), config.faint)
            rival = KeenRival(self._colours, self.adversarial.rival_width, widths)
        else:
            rival = TileRival(self.adversarial.rival_width, widths)
        self._lessons: Lessons | FreshLessons | None = None
        if not self.adversarial.pupil or self.adversarial.fresh_pupils:
            rival.register_load_state_dict_pre_hook(_without_pupil)  # type: ignore[no-untyped-call]
        if self.adversarial.pupil and self.adversarial.fresh_pupils:
            self._lessons = FreshLessons(
                self.adversarial.fresh_pupils,
                self.train,
                seed,
                self.adversarial.fresh_architectures,
            )
        elif self.adversarial.pupil:
            # Part of the rival, which is what learns beside the model, and the last, so that a run may go on
            # with one.
            rival.pupil = Pupil()
            self._lessons = Lessons(rival.pupil, self.train, seed)
        self.rival = rival.to(memory_format=torch.channels_last)
        self._spectrum = SpectrumDistance()
        how = self.adversarial
        self._steps = FewSteps(
            how.steps,
            how.first_step,
            how.on_policy,
            how.sketch is not None,
            partial(without_sketch, edge=how.sketch) if how.sketch and how.sketch_clear else None,
        )
        self._drawer: SketchDrawer | None = None
        if how.sketches is not None:
            self._drawer = SketchDrawer(
                load_pipeline(how.sketches),
                how.sketch_steps,
                self.captions([""]),
                stochastic=how.sketch_stochastic,
            )
            if self._drawer.edge != how.sketch:
                raise TrainingError(
                    f"{how.sketches} draws sketches of {self._drawer.edge} px; let `sketch` be as much, or "
                    "name another folder in `sketches`."
                )
        steps = len(self._steps.times)
        self._usual = torch.stack([self._usual_colours(tissue.index) for tissue in TISSUES])
        self._wanted = torch.stack([self._power_of(tissue.index) for tissue in TISSUES])
        self._power = self._wanted.repeat(steps, 1, 1)
        self._forgotten = max(_FORGOTTEN, _FORGOTTEN_OF_STEPS * steps)
        self._spread: TissueSpread | None = None
        if self.adversarial.spread:
            self._spread = TissueSpread([self._known(t.index) for t in TISSUES], steps)
        self._prompts = self.captions([tissue.prompt for tissue in TISSUES])
        self._texture: TextureCorrection | None = None
        if how.texture is not None:
            known = load_sampling(how.texture)
            if not known.texture and not known.variety:
                raise TrainingError(
                    f"The adapter in {how.texture} has no correction of texture; give the folder of one that "
                    "has, or leave `texture` out."
                )
            self._texture = TextureCorrection(
                [known.texture.get(tissue.code) for tissue in TISSUES],
                [known.variety.get(tissue.code) for tissue in TISSUES],
                self.train.images.shape[1],
            )
        self._contest = Contest(self.rival, how.rival_from)

    def _textured(self, tiles: torch.Tensor, tissues: torch.Tensor) -> torch.Tensor:
        """Tiles (N, 3, 28, 28) in [-1, 1] of tissues (N,), their texture corrected where so configured."""
        return tiles if self._texture is None else self._texture.to(tiles.device)(tiles, tissues)

    def _as_used(self, made: torch.Tensor, tissues: torch.Tensor) -> torch.Tensor:
        """Standardised tiles (N, 3, 28, 28) of tissues (N,) as they are after the correction, where there is
        one, and for a keen rival with the 256 levels in which tiles are stored. What clipping and rounding
        take off is taken off here too, but stops no gradient.
        """
        if self._texture is not None:
            tiles = self.pipeline.restore(made)
            plain = self.pipeline.standardise(tiles)
            clipped = made + (plain - made).detach()
            made = clipped + self.pipeline.standardise(self._textured(tiles, tissues)) - plain
        if self._colours is not None:
            stored = to_model_range(from_model_range(self.pipeline.restore(made)))
            made = made + (self.pipeline.standardise(stored).to(made.device) - made).detach()
        return made

    def _off_colour(self, made: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean of how far the mean colours of standardised tiles or sketches (N, 3, s, s) of tissues (N,) are
        beyond those that all but the outermost hundredth of real ones have (scalar).
        """
        colours = made.mean((2, 3))
        low, high = self._usual.to(made.device)[labels].unbind(1)
        return (F.relu(colours - high) + F.relu(low - colours)).mean()

    def _shown(self, sketches: torch.Tensor) -> torch.Tensor:
        """What standardised sketches (N, 3, s, s) show, as large as tiles; those as they are."""
        size = self.train.images.shape[1]
        return sketches if sketches.shape[-1] == size else enlarged(sketches, size)

    def _wanted_of(self, tiles: torch.Tensor) -> torch.Tensor:
        """What the network is to make of tiles (N, 3, 28, 28) in [-1, 1], standardised: them, or where it
        makes sketches, (N, 3, s, s) of those.
        """
        whole = tiles.shape[-1] == self._edge
        return self.pipeline.standardise(tiles if whole else sketched(tiles, self._edge))

    def _starts(
        self, data: torch.Tensor, context: TextContext, generator: torch.Generator
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Standardised sketches (N, 3, s, s) from which to sample, where that starts from any, and which (N,)
        of them are drawn for their texts: the others are those of standardised tiles (N, 3, 28, 28).
        """
        how, drawn = self.adversarial, torch.zeros(len(data), dtype=torch.bool, device=data.device)
        if how.sketch is None:
            return None, drawn
        sketches = sketched(data, how.sketch)
        if self._drawer is not None:
            chance = torch.rand(len(data), generator=generator)
            drawn = (chance < how.sketches_drawn).to(data.device)
            if drawn.any():
                asked = TextContext(context.states[drawn], context.mask[drawn])
                made = self._drawer(asked, generator).to(data.device)
                sketches[drawn] = self.pipeline.standardise(made)
        return sketches, drawn

    def _some_wanted(self, tissue: int) -> torch.Tensor:
        """What the network is to make of about 1,000 training tiles of a tissue, or all that there are."""
        chosen = np.flatnonzero(self.train.labels == tissue)
        chosen = chosen[:: max(1, len(chosen) // 1000)]
        return self._wanted_of(to_model_range(self.train.images[chosen]))

    def _power_of(self, tissue: int) -> torch.Tensor:
        """Mean power (P,) of training tiles of a tissue."""
        return self._power_in(self.pipeline.restore(self._shown(self._some_wanted(tissue)))).mean(0)

    def _usual_colours(self, tissue: int) -> torch.Tensor:
        """Between which mean colours (2, 3) nearly all training tiles of a tissue are."""
        return self._some_wanted(tissue).mean((2, 3)).quantile(torch.tensor(_USUAL), dim=0)

    def _power_in(self, tiles: torch.Tensor) -> torch.Tensor:
        """Power (N, P) of tiles (N, 3, 28, 28) in [-1, 1] at each frequency: of their grey, and with a keen
        rival of each of their principal colours too.
        """
        power = [tile_power(tiles)]
        if self._colours is not None:
            seen = self._colours.to(tiles.device)(self.pipeline.standardise(tiles))
            power += [tile_power(seen[:, i : i + 1]) for i in range(tiles.shape[1])]
        return torch.cat(power, dim=1)

    def _known(self, tissue: int) -> list[torch.Tensor]:
        """Kinds of features of training tiles of a tissue, moved as those that are made."""
        chosen = np.flatnonzero(self.train.labels == tissue)
        chosen = chosen[:: max(1, len(chosen) // _KNOWN_PER_TISSUE)][:_KNOWN_PER_TISSUE]
        data = self._shown(self._wanted_of(to_model_range(self.train.images[chosen])))
        with torch.no_grad():
            return self._kinds(data, self._show(data, torch.Generator().manual_seed(tissue)))

    def _kinds(self, made: torch.Tensor, shown: Shown) -> list[torch.Tensor]:
        """What variety is measured by, each (N, F): power, attributes, directions where configured, and mean
        features where there are.
        """
        tiles = self.pipeline.restore(made)
        scales = self.adversarial.spread_scales
        return [
            self._power_in(tiles).log(),
            attributes_of(tiles)[0],
            *([directions_of(tiles, scales)] if scales else []),
            *(each.mean((2, 3)) for each in shown.features),
        ]

    def _batch_of(
        self, split: Split, chosen: npt.NDArray[np.int64], generator: torch.Generator
    ) -> TissueBatch:
        batch = super()._batch_of(split, chosen, generator)
        labels = torch.from_numpy(split.labels[chosen])
        return TissueBatch(batch.tiles, batch.texts, batch.context, labels)

    def _out_of_tune(self, made: torch.Tensor, step: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What grows with the power of standardised tiles (N, 3, 28, 28) where tiles of their tissue (N,) had
        too much of it lately in the same step (N,), and shrinks with it where they had too little (scalar).

        The mean over a tissue is moved, not each tile to it, so tiles stay as different as they are.
        """
        power = self._power_in(self.pipeline.restore(made))
        with torch.no_grad():
            for power_of_tile, s, label in zip(power, step.tolist(), labels.tolist(), strict=True):
                self._power[s, label].lerp_(power_of_tile.cpu(), self._forgotten)
            excess = (self._power.log() - self._wanted.log()).clamp(-1, 1)[step.cpu(), labels.cpu()]
        return (excess.to(power.device) * power.log()).mean()

    def _show(self, tiles: torch.Tensor, generator: torch.Generator) -> Shown:
        """Standardised tiles (N, 3, 28, 28) as the rival sees them."""
        moved = shifted(tiles, generator)
        if self._features is None:
            return Shown(moved, [])
        return Shown(moved, list(self._features.to(tiles.device)(self.pipeline.restore(moved)).values()))

    def _unsure(self, tiles: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the validator on standardised tiles (N, 3, 28, 28) of tissues (N,), beyond
        what it is where the validator gives the tissue about nine tenths (scalar): a tile that is recognised
        is not drawn on to the most typical one.
        """
        named = self._validator.model.to(tiles.device)(self.pipeline.restore(tiles))
        return F.relu(F.cross_entropy(named, labels, reduction="none") - _SURE).mean()

    def _maker(self, model: nn.Module, context: TextContext) -> Make:
        """What the network sees in noisy tiles with contexts (N): standardised tiles."""

        def make(noisy: torch.Tensor, time: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
            text = TextContext(context.states[where], context.mask[where])
            velocity = predict_velocity(model, self._fold, noisy, time * TIME_SCALE, text)
            made: torch.Tensor = noisy - time.view(-1, 1, 1, 1) * velocity.float()
            return made

        return make

    def loss(self, model: nn.Module, batch: FlowBatch, generator: torch.Generator) -> torch.Tensor:
        """What the rival says of the tiles that are made, their distance from those that were noised, and
        what else the configuration gives a weight.
        """
        if not isinstance(batch, TissueBatch):
            raise TypeError("an adversarial batch knows its tissues")
        config = self.adversarial
        device = next(model.parameters()).device
        data = self._wanted_of(batch.tiles).to(device)
        context = TextContext(batch.context.states.to(device), batch.context.mask.to(device))
        make = self._maker(model, context)
        sketches, drawn = self._starts(data, context, generator)
        shown_before = None if sketches is None else self._shown(sketches)
        held = sketches if config.sketch_held else None
        given = self._steps.noise(data, make, generator, shown_before, held)
        # What starts from a drawn sketch has no tile that it should be.
        astray = drawn & given.sampled
        labels = batch.labels.to(device)
        made = make(given.noisy, given.time, torch.ones_like(given.own))
        off_colour = self._off_colour(made, labels) if config.colours else None
        made, data = self._as_used(self._shown(made), labels), self._shown(data)
        text = pooled_text(context)
        squared = (made - data).square().mean((1, 2, 3))
        total = config.reconstruction * (torch.where(astray, 0.0, given.left) * squared).mean()
        if off_colour is not None:
            total = total + config.colours * off_colour
        if config.sketch and sketches is not None and config.sketch_kept:
            wanted = torch.where(astray.view(-1, 1, 1, 1), sketches, sketched(data, config.sketch))
            kept = sketched(made, config.sketch) - wanted
            apart = kept.abs() if config.faint else kept.square()
            total = total + config.sketch_kept * apart.mean()
        if config.attributes:
            wording = distance_from_wording(self.pipeline.restore(made), asked_by(batch.texts))
            total = total + config.attributes * wording
        # What is made of a real tile with little noise is like that, and would hide what sampling makes.
        counted = given.sampled if config.on_policy else torch.ones_like(given.own)
        rows = counted.cpu()
        if config.spectrum and rows.any():
            total = total + config.spectrum * self._out_of_tune(
                made[counted], given.step[rows], labels[counted]
            )
        if self._lessons is not None:
            used = self.pipeline.restore(made)
            if isinstance(self._lessons, FreshLessons):
                self._lessons.go_on()
            if self._lessons.counts and rows.any():
                total = total + config.pupil * self._lessons.distance(used[counted], labels[counted])
            self._lessons.remember(used[counted], labels[counted])
        shown = self._show(made, generator)
        if config.recognition:
            total = total + config.recognition * self._unsure(shown.pictures, labels)
        if self._spread is not None and rows.any():
            kinds = [kind[counted] for kind in self._kinds(made, shown)]
            total = total + config.spread * self._spread(kinds, given.step[rows], batch.labels[rows])
        total = total - config.weight * self._contest.opinion(shown, text, labels)
        with torch.no_grad():
            self._contest.keep(self._show(data, generator), shown, text, labels)
        return total

    def rival_loss(self, rival: nn.Module, batch: FlowBatch) -> torch.Tensor:
        """Hinge loss of the rival on the tiles that `loss` has just made and on the real ones. With a pupil
        also what that has to learn from tiles made lately.
        """
        loss = self._contest.rival_loss(rival)
        if isinstance(self._lessons, Lessons) and self._lessons.ready:
            loss = loss + self._lessons.loss()
        return loss

    def sample(
        self, model: nn.Module, context: TextContext, like: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """One tile (N, 3, 28, 28) in [-1, 1] for each text, or sketch (N, 3, s, s), in the steps that are
        trained; where they start from sketches, from such as are drawn, or else from those of standardised
        tiles `like` (N, 3, 28, 28).
        """
        sketches, how = None, self.adversarial
        if self._drawer is not None:
            sketches = self.pipeline.standardise(self._drawer(context, generator).to(like.device))
        elif how.sketch:
            sketches = sketched(like, how.sketch)
        shown = None if sketches is None else self._shown(sketches)
        held = sketches if how.sketch_held else None
        make = self._maker(model, context)
        made = self._steps.sample(like, make, generator, shown=shown, held=held)
        return self.pipeline.restore(made)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Of 16 first tiles of each tissue: the share that the validator recognises, coverage and density
        among as many of val in its features, and the distance of spectra; with a pupil also the share of val
        that it knows.
        """
        generator, random = torch.Generator().manual_seed(1), np.random.default_rng(1)
        tiles: list[npt.NDArray[np.uint8]] = []
        real: list[npt.NDArray[np.uint8]] = []
        with torch.inference_mode():
            for tissue in TISSUES:
                shown = random.permutation(np.flatnonzero(self.val.labels == tissue.index))
                like = self._wanted_of(to_model_range(self.val.images[shown[:_EVALUATED_PER_TISSUE]]))
                real.append(from_model_range(self.pipeline.restore(self._shown(like))))
                context = self._prompts[tissue.index : tissue.index + 1].repeat(len(like))
                made = self._shown(self.sample(model, context, like, generator))
                labels = torch.full((len(made),), tissue.index, device=made.device)
                tiles.append(from_model_range(self._textured(made, labels)))
        shown_tiles, known = np.concatenate(tiles), np.concatenate(real)
        named = self._validator.probabilities(shown_tiles).argmax(1).numpy()
        asked = np.repeat(np.arange(len(TISSUES)), [len(each) for each in tiles])
        near = neighbourhoods(
            features_of(self._validator.model, known).numpy(),
            features_of(self._validator.model, shown_tiles).numpy(),
        )
        figures = {
            "recognised": float((named == asked).mean()),
            "coverage": near["coverage"],
            "density": near["density"],
            "spectrum": float(self._spectrum(to_model_range(shown_tiles), to_model_range(known))),
        } | {f"recognised_{t.code}": float((named[asked == t.index] == t.index).mean()) for t in TISSUES}
        if self._lessons is not None:
            shares = self._lessons.taught(self.val, _ASKED_PER_TISSUE)
            figures |= {f"taught_{TISSUES[i].code}": share for i, share in enumerate(shares)}
        return figures


class AdversarialLoraTask(AgainstRival, LoraTask):
    """An adapter against a rival."""

    def __init__(
        self,
        config: LoraConfig,
        pipeline: LayoutPipeline,
        validator: Validator,
        train: Split | None = None,
        val: Split | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        super().__init__(config, pipeline, train, val, encoder)
        self.set_against(config.adversarial or AdversarialConfig(), validator, config.optim.seed)


class AdversarialBaseTask(AgainstRival, BaseTask):
    """A base, as one of sketches, against a rival: every weight is trainable."""

    def __init__(
        self,
        config: BaseConfig,
        validator: Validator,
        train: Split | None = None,
        val: Split | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        super().__init__(config, train, val, encoder)
        self.set_against(config.adversarial or AdversarialConfig(), validator, config.optim.seed)
