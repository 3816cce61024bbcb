"""What is measured of the models a studio has: its methods load them and PathMNIST, and leave the figures to
`pathsynth.evaluate` and `pathsynth.detail_quality`.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from pathsynth.errors import WeightsError
from pathsynth.images import to_native
from pathsynth.models import Models, made
from pathsynth.progress import CheckCancelled, Progress, between_steps, deadline_after
from pathsynth.records import DetailReport, FullReport, Measured, Report
from pathsynth.tissues import TISSUES, Tissue
from pathsynth.weights import TILE_PARTS

if TYPE_CHECKING:
    from pathsynth.evaluate import FirstTiles


class Evaluations(Models):
    """Models that can be evaluated, and the reports that ship with them."""

    def evaluate_validator(
        self,
        split: Literal["val", "test"],
        progress: Progress | None = None,
        time_budget: float | None = None,
    ) -> Report:
        """The validator on all of a split, or on as many of its tiles, drawn at random, as are done when
        `time_budget` (seconds) is spent.

        Raises:
            DataError: PathMNIST is not there.
            OutOfTimeError: the time was spent before the first batch was done.
        """
        started = time.monotonic()
        with self._loading:
            from pathsynth.data import load_split
            from pathsynth.evaluate import evaluate_validator

            tiles, validator = load_split(split), self._validator
        return evaluate_validator(
            validator, tiles, self.model, progress, deadline=deadline_after(started, time_budget)
        )

    def study_validator(self, split: Literal["val", "test"], progress: Progress | None = None) -> FullReport:
        """As `evaluate_validator`, with baselines, stress and out-of-distribution figures; takes minutes.

        Raises:
            DataError: PathMNIST is not there.
        """
        from pathsynth.data import load_split
        from pathsynth.evaluate import evaluate_validator

        tiles, train = load_split(split), load_split("train")
        with self._loading:
            return evaluate_validator(self._validator, tiles, self.model, progress, train=train)

    def evaluate_judge(self, split: Literal["val", "test"], progress: Progress | None = None) -> FullReport:
        """As `evaluate_validator`, of the judge: how far what it says of generated tiles can be trusted.

        Raises:
            DataError: PathMNIST is not there.
            WeightsError: these weights hold no judge.
        """
        from pathsynth.data import load_split
        from pathsynth.evaluate import evaluate_validator

        return evaluate_validator(self._judge, load_split(split), self.model, progress, what="judge")

    def first_tiles(
        self,
        per_class: int,
        seed: int,
        progress: Progress | None = None,
        check_cancelled: CheckCancelled | None = None,
    ) -> "FirstTiles":
        """The first `per_class` tiles of every tissue, none discarded, for `study_generator`."""
        from pathsynth.evaluate import first_tiles

        with self._generating:
            return first_tiles(self._propose_first(check_cancelled), per_class, seed, self.model, progress)

    def evaluate_tiles(
        self, tiles: "FirstTiles", judge: bool = False, progress: Progress | None = None
    ) -> Report:
        """As `evaluate_generator`, of tiles made before."""
        from pathsynth.evaluate import report_on_tiles

        judging = self._judge if judge else None
        with self._loading:
            return report_on_tiles(tiles, self._validator, judging, progress)

    def kept_tiles(self, path: Path, per_class: int, seed: int) -> "FirstTiles":
        """As `first_tiles`, from a file that these weights wrote, or others that make the same tiles.

        Raises:
            RequestError: there are no such tiles in it.
        """
        from pathsynth.evaluate import FirstTiles

        def same(model: str) -> bool:
            return self.weights.manifest.measured(model, TILE_PARTS)

        return FirstTiles.load(path, per_class, seed, self.model, same)

    def study_generator(
        self, tiles: "FirstTiles", progress: Progress | None = None, earlier: FullReport | None = None
    ) -> FullReport:
        """As `evaluate_tiles`, with everything that compares the tiles with real ones, which takes an hour or
        more. The judge is asked where the weights have one. What `earlier` has of as many tiles from the same
        seed stays where nothing that it is about has changed since.

        Raises:
            DataError: PathMNIST is not there.
            RequestError: there are too few tiles.
        """
        from pathsynth.data import load_split
        from pathsynth.evaluate import RealTiles, further_generator_figures, report_on_tiles

        real = RealTiles(load_split("train"), load_split("val"), load_split("test"))
        judge = self._judge if self.weights.has("judge") else None

        def described(tissue: Tissue, description: str, seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
            context_of = partial(self._context, self._generator, tissue, description)
            tiles = made(self._generator, tissue, context_of, seeds)
            return np.stack([to_native(tile) for tile in tiles])

        with self._loading:
            report = report_on_tiles(tiles, self._validator, judge, progress)
            return further_generator_figures(
                report,
                tiles,
                real,
                self._validator,
                judge,
                described,
                progress,
                {} if earlier is None else self._still_true(earlier, report),
            )

    def _still_true(self, earlier: FullReport, report: Report) -> dict[str, object]:
        """The further figures of an earlier report on first tiles that hold for these tiles and weights."""
        if (earlier.what, earlier.n, earlier.seed) != (report.what, report.n, report.seed):
            return {}
        parts = (*TILE_PARTS, "judge" if self.weights.has("judge") else "validator")
        kept: dict[str, object] = {}
        for name in FullReport.model_fields.keys() - Report.model_fields.keys():
            value = getattr(earlier, name)
            figures = value if isinstance(value, list) else [value]
            if all(
                isinstance(each, Measured) and self.weights.manifest.measured(each.model, parts)
                for each in figures
            ):
                kept[name] = value
        return kept

    def evaluate_generator(
        self,
        per_class: int,
        seed: int,
        progress: Progress | None = None,
        judge: bool = False,
        check_cancelled: CheckCancelled | None = None,
        time_budget: float | None = None,
    ) -> Report:
        """Unfiltered first-shot tiles of every tissue, named by the validator, with `judge` by the judge
        too; as many of them as are made when `time_budget` (seconds) is spent.

        Raises:
            OutOfTimeError: the time was spent before every tissue had a tile.
        """
        deadline = deadline_after(time.monotonic(), time_budget)
        with self._generating:
            propose = self._propose_first(between_steps(check_cancelled, deadline))
            with self._loading:
                from pathsynth.evaluate import evaluate_generator

                validator, judging = self._validator, self._judge if judge else None
            return evaluate_generator(propose, validator, judging, per_class, seed, self.model, progress)

    def evaluate_loop(
        self,
        per_class: int,
        seed: int,
        progress: Progress | None = None,
        check_cancelled: CheckCancelled | None = None,
    ) -> Report:
        """What the loop accepted at its default confidence, scored by the judge: a filter that scores itself
        says nothing.
        """
        from pathsynth.evaluate import evaluate_loop

        judge = self._judge
        with self._generating:
            propose = self._propose_first(check_cancelled)
            return evaluate_loop(
                propose, self._validator, judge, per_class, seed, self.model, progress, self._is_near_copy
            )

    def _propose_first(
        self, on_step: Callable[[], None] | None
    ) -> Callable[[Tissue, Sequence[int]], npt.NDArray[np.uint8]]:
        """Proposals for a tissue by its label alone, as every evaluation asks for them."""
        with self._loading:
            generator = self._generator

        def propose(tissue: Tissue, seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
            context_of = partial(self._context, generator, tissue, tissue.label)
            return made(generator, tissue, context_of, seeds, on_step)

        return propose

    def evaluate_detail(
        self,
        most: int,
        per_class: int,
        seed: int,
        tiles: "FirstTiles | None" = None,
        sheets: Path | None = None,
        progress: Progress | None = None,
    ) -> DetailReport:
        """The detail model against at most `most` held-out real tiles of 224 px, and on layout tiles: `tiles`
        made before, else `per_class` tiles of each tissue of PathMNIST val. `sheets` is a folder for pictures
        to look at, which hold real tiles.

        Raises:
            WeightsError: these weights have no detail model.
            DataError: the folder of detail tiles, or PathMNIST, is not there.
        """
        from pathsynth.detail import TILE_EDGE
        from pathsynth.detail_quality import compare, measure_detail, on_layouts, write_detail_sheets
        from pathsynth.generator import CONTEXTS_FILE, load_contexts
        from pathsynth.training.hires import HiresTiles, spread_evenly

        detailer = self._detailer
        if detailer is None:
            raise WeightsError("These weights hold no detail model; train one with `pathsynth train detail`.")
        held = HiresTiles(only_held_out=True, progress=progress)
        wanted = held.held_colour.fitting(TILE_EDGE)
        real = wanted.centres(TILE_EDGE, most)
        sources = [wanted.sources[i] for i in spread_evenly(len(wanted), most)]
        images, origin = _layouts(per_class, seed) if tiles is None else (tiles.images, "generator")
        with self._generating:
            with self._loading:
                validator, contexts = self._validator, load_contexts(self.weights.path(CONTEXTS_FILE))
            sets = compare(real, sources, detailer, contexts, validator, seed, progress)
            layouts = on_layouts(images, detailer, contexts, validator, seed, progress)
            if sheets is not None:
                write_detail_sheets(sets, layouts, sheets)
            return measure_detail(sets, layouts, origin, validator, seed, self.model, held.sha256, progress)

    def committed_report(self, name: str) -> Report:
        """A report that ships with the weights: validator-val, validator-test or generator."""
        path = self.weights.path(f"reports/{name}.json")
        try:
            report = FullReport.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise WeightsError(f"These weights carry no readable report named {name}.") from error
        return report.model_copy(update={"source": "committed report"})

    def committed_plots(self, name: str) -> list[str]:
        """File names of the pictures (PNG) that ship with a committed report."""
        folder = self.weights_folder / "reports"
        plots = sorted(path.name for path in folder.glob(f"*-{name}.png"))
        return plots + [path.name for path in folder.glob("tiles.png") if name == "generator"]


def _layouts(per_class: int, seed: int) -> tuple[npt.NDArray[np.uint8], str]:
    """`per_class` tiles of each tissue of PathMNIST val, drawn with `seed`, and where they come from."""
    from pathsynth.data import load_split

    val, random = load_split("val"), np.random.default_rng(seed)
    chosen = [random.permutation(np.flatnonzero(val.labels == t.index))[:per_class] for t in TISSUES]
    return val.images[np.concatenate(chosen)], "PathMNIST val"
