"""Choices of the base beside each other: a network is trained from scratch with each for the same time, and
compared with val by its loss and by how real its tiles are.

    python -m pathsynth.training.ablation RUNS [CONFIG ...]

trains those that have no finished run in the folder RUNS, measures all of them, and writes a report and the
model card into the weights folder. Without configurations these are the files of `configs/base-ablation`,
each of which changes one thing of `reference.toml`. Rows of other configurations that the report has already
stay as they are, so a choice can be added without training the others again; on another processor with
`--minutes` in which the reference sees as many tiles, and a `--remark` that says so.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from pathsynth.attributes import caption, phrases
from pathsynth.data import Split, load_split
from pathsynth.errors import PathSynthError
from pathsynth.generator import load_pipeline
from pathsynth.layout import LayoutPipeline
from pathsynth.modelcard import write_model_card
from pathsynth.progress import Progress
from pathsynth.realism import classifier_space, imagenet_space, neighbourhoods, radial_spectrum
from pathsynth.records import Comparison
from pathsynth.text import TextEncoder
from pathsynth.tissues import TISSUES
from pathsynth.training import RUN_FILE, read_config, start
from pathsynth.training.layout import FlowTask
from pathsynth.training.layout_config import BaseConfig, FlowConfig
from pathsynth.training.release import read_run, save_report
from pathsynth.validator import Validator, from_model_range
from pathsynth.weights import Weights, write_manifest

CONFIGS: Final = Path(__file__).parent / "configs" / "base-ablation"
REPORT: Final = "base-ablation"
MINUTES: Final = 20.0
PER_CLASS: Final = 20
DENOISING_STEPS: Final = 20
SEED: Final = 90_000
_BATCH: Final = 20


def configurations() -> list[Path]:
    """Those that ship: the reference, then the others by name."""
    return sorted(CONFIGS.glob("*.toml"), key=lambda path: (path.stem != "reference", path.stem))


def trained(configs: Sequence[Path], runs: Path, minutes: float, progress: Progress) -> None:
    """Train every configuration without a finished run in `runs` for `minutes`.

    Raises:
        TrainingError: a configuration does not fit.
        DataError: PathMNIST is not there.
    """
    for path in configs:
        read_config(path, BaseConfig)  # all of them, before hours are spent on the first
    for path in configs:
        run = runs / path.stem
        if not (run / RUN_FILE).is_file():
            start("base", path, run, (run / "checkpoint.pt").is_file(), minutes, progress)


class Bench:
    """What every base is measured with: `per_class` tiles of val of each tissue, whose measured attributes
    are asked for, in the features of the judge and, where it is installed, of an ImageNet network.
    """

    def __init__(self, weights: Weights, encoder: TextEncoder, per_class: int) -> None:
        self._encoder = encoder
        self._val = load_split("val")
        self._wanted = _some_of_each(self._val, per_class)
        judge = classifier_space(Validator.load(weights.path("judge")), "judge")
        self._spaces = [judge, *([other] if (other := imagenet_space()) is not None else [])]
        self._real = [space(self._wanted.images) for space in self._spaces]

    @property
    def columns(self) -> list[str]:
        """Names of what `measure` gives."""
        of_spaces = [
            f"{figure} ({space.name.partition(',')[0].partition(' ')[0]})"
            for space in self._spaces
            for figure in ("coverage", "density")
        ]
        return ["loss on val", *of_spaces, "mean relative difference of the spectrum"]

    def measure(self, pipeline: LayoutPipeline, progress: Progress) -> list[float]:
        """Loss on val with the times of the reference; coverage and density in each space, and how far the
        power spectrum is from that of the tiles of val, of as many tiles made without guidance.
        """
        task = FlowTask(pipeline, FlowConfig(), self._val, self._val, self._encoder)
        figures = [task.evaluate(pipeline.unet.eval())["val_loss"]]
        made = self._tiles(task, progress)
        for space, real in zip(self._spaces, self._real, strict=True):
            near = neighbourhoods(real, space(made))
            figures += [near["coverage"], near["density"]]
        spectrum = radial_spectrum(made) / radial_spectrum(self._wanted.images)
        return [*figures, float(np.abs(spectrum - 1).mean())]

    def _tiles(self, task: FlowTask, progress: Progress) -> npt.NDArray[np.uint8]:
        """One tile (N, 28, 28, 3) for each one wanted, with its captions."""
        texts = [caption(words) for words in phrases(self._wanted.images)]
        empty, made = task.captions([""]), []
        for first in range(0, len(texts), _BATCH):
            progress(first, len(texts), "Tiles of the base")
            asked = texts[first : first + _BATCH]
            seeds = [torch.Generator().manual_seed(SEED + first + i) for i in range(len(asked))]
            tiles = task.pipeline(
                task.captions(asked), empty, seeds, num_inference_steps=DENOISING_STEPS, guidance_scale=1.0
            )
            made.append(from_model_range(tiles))
        return np.concatenate(made)


def _some_of_each(split: Split, per_class: int) -> Split:
    """`per_class` tiles of each tissue, spread over the split."""
    chosen = []
    for tissue in TISSUES:
        own = np.flatnonzero(split.labels == tissue.index)
        chosen.append(own[np.linspace(0, len(own) - 1, min(per_class, len(own)), dtype=np.int64)])
    where = np.concatenate(chosen)
    return Split(split.name, split.images[where], split.labels[where])


def row(name: str, record: dict[str, Any], pipeline: LayoutPipeline, figures: list[float]) -> list[Any]:
    """A row of the table: what was changed, what the run cost, what came of it."""
    result = record["result"]
    parameters = sum(weight.numel() for weight in pipeline.unet.parameters()) / 1e6
    steps, batch = result["step"], record["config"]["optim"]["batch_size"]
    cost = [round(parameters, 1), round(result["seconds"]), steps * batch, round(result["gflops"])]
    return [name, *cost, *(round(figure, 4) for figure in figures)]


def with_earlier(table: Comparison, report: Path, remark: str = "") -> Comparison:
    """The table with those rows of the report as it was that are of other configurations, where it was
    measured in the same way; in the order of `configurations`, others last. Its note ends with the remarks,
    earlier ones first.
    """
    rows, note = [*table.rows], table.note
    try:
        earlier = Comparison.model_validate_json(report.read_bytes())
    except (OSError, ValueError):  # there is none that could be read
        earlier = table
    if earlier.columns == table.columns and earlier.note.startswith(table.note):
        measured = {row[0] for row in rows}
        if kept := [row for row in earlier.rows if row[0] not in measured]:
            order = {path.stem: place for place, path in enumerate(configurations())}
            rows = sorted(rows + kept, key=lambda row: order.get(str(row[0]), len(order)))
            note = earlier.note
    if remark and remark not in note:
        note += f" {remark}"
    return table.model_copy(update={"rows": rows, "note": note})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pathsynth.training.ablation", description=__doc__)
    parser.add_argument("runs", type=Path, help="the folder that holds a run of each configuration")
    parser.add_argument("configs", type=Path, nargs="*", help="configurations; default: those that ship")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="training time of each")
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="tiles of each tissue")
    parser.add_argument("--remark", default="", help="a sentence for the note, as of another processor")
    parser.add_argument("--train-only", action="store_true", help="leave measuring to a later call")
    asked = parser.parse_args(arguments)

    def say(done: int, total: int, message: str) -> None:
        print(f"\r{message}: {done} of {total}", end="", file=sys.stderr, flush=True)

    configs = asked.configs or configurations()
    try:
        trained(configs, asked.runs, asked.minutes, say)
        if asked.train_only:
            return 0
        weights = Weights()
        bench, rows = Bench(weights, TextEncoder(), asked.per_class), []
        for path in configs:
            pipeline = load_pipeline(asked.runs / path.stem / "layout")
            record = read_run(asked.runs / path.stem)
            rows.append(row(path.stem, record, pipeline, bench.measure(pipeline, say)))
            print(f"\n{rows[-1]}")
        cost = ["configuration", "parameters (million)", "seconds", "training tiles", "GFLOP/s"]
        note = (
            "Each network was trained from scratch for the time of its row. Loss on 1,024 tiles of val, all "
            "at the times of the reference; the other figures are of "
            f"{asked.per_class * len(TISSUES)} tiles, made in {DENOISING_STEPS} steps without guidance, "
            "against the tiles of val whose measured attributes were asked for. Differences of a few "
            "hundredths in coverage and density may be chance, and an order after minutes need not be that "
            "after hours."
        )
        table = Comparison(
            what="comparison",
            title="Choices of the base at equal training time",
            note=note,
            columns=[*cost, *bench.columns],
            rows=rows,
        )
        before = weights.folder / "reports" / f"{REPORT}.json"
        save_report(weights.folder, REPORT, with_earlier(table, before, asked.remark))
        write_manifest(weights.folder, {})
        write_model_card(weights.folder)
    except PathSynthError as error:
        print(f"\nablation: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
