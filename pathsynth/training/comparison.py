"""LoRA configurations beside each other: an adapter is trained with each, and its first tiles, none
discarded, are named by the validator and the judge.

    python -m pathsynth.training.comparison RUNS [CONFIG ...]

trains those that have no finished run in the folder RUNS, measures all of them and the adapter that ships on
tiles of the same seeds, and writes a report of each, a plot and the model card into the weights folder.
Without configurations these are the files of `configs/lora-comparison`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pathsynth.errors import PathSynthError, TrainingError
from pathsynth.evaluate import first_tiles, report_on_tiles
from pathsynth.generator import (
    CONTEXTS_FILE,
    WORDINGS_FILE,
    Generator,
    Sampling,
    load_contexts,
    load_sampling,
    load_wordings,
)
from pathsynth.layout import LORA_FILE
from pathsynth.modelcard import read_reports, write_model_card
from pathsynth.plots import write_adapter_plot
from pathsynth.progress import Progress
from pathsynth.records import AdapterSettings, FullReport
from pathsynth.text import TextContext, TextEncoder
from pathsynth.tissues import TISSUES, Tissue
from pathsynth.training import RUN_FILE, read_config, start
from pathsynth.training.layout_config import LoraConfig
from pathsynth.training.release import read_run, save_report
from pathsynth.validator import Validator
from pathsynth.weights import Weights, write_manifest

CONFIGS: Final = Path(__file__).parent / "configs" / "lora-comparison"
SHIPPED: Final = "default, which ships"
PLOT_FILE: Final = "reports/lora-comparison.png"
PER_CLASS: Final = 10
SEED: Final = 70_000


@dataclass(frozen=True)
class Adapter:
    """A trained adapter: the folder of its weights, what its run wrote down, and how it is sampled."""

    name: str
    folder: Path
    record: dict[str, Any]
    sampling: Sampling

    @property
    def settings(self) -> AdapterSettings:
        """What the card says of it; configuration as it was trained with."""
        config, result = self.record["config"], self.record["result"]
        low, high = self.sampling.guidance_interval
        return AdapterSettings(
            name=self.name,
            bytes=(self.folder / LORA_FILE).stat().st_size,
            settings={
                "rank": config["rank"],
                "target modules": config["target_modules"],
                "learning rate": config["optim"]["learning_rate"],
                "steps": config["optim"]["steps"],
                "batch": config["optim"]["batch_size"],
                "prompts": config["prompt_style"],
                "loss": "flow matching" if config.get("adversarial") is None else "against a rival",
                "guidance": f"{self.sampling.guidance:g}, times {low:g} to {high:g}",
                "denoising steps": self.sampling.steps,
                "training seconds": round(result["seconds"]),
            },
        )


def configurations() -> list[Path]:
    """Those that ship, by name: one that others only sample differently comes before them."""
    return sorted(CONFIGS.glob("*.toml"), key=lambda path: path.stem)


def trained(configs: Sequence[Path], runs: Path, progress: Progress) -> list[Adapter]:
    """The adapters of configurations, each of which names its sampling; those without a finished run in
    `runs` are trained. Configurations that differ in sampling alone share the run of the first.

    Raises:
        TrainingError: a configuration does not fit or names no sampling.
        DataError: PathMNIST is not there.
    """
    known: list[tuple[LoraConfig, Path]] = []
    adapters = []
    for path in configs:
        config = read_config(path, LoraConfig)
        if config.sampling is None:
            raise TrainingError(f"{path} does not say how to sample; add [sampling] with steps and guidance.")
        training = config.model_copy(update={"sampling": None})
        run = next((folder for other, folder in known if other == training), runs / path.stem)
        known.append((training, run))
        if not (run / RUN_FILE).is_file():
            start("lora", path, run, (run / "checkpoint.pt").is_file(), None, progress)
        adapters.append(Adapter(path.stem, run / "lora", read_run(run), config.sampling))
    return adapters


def shipped(weights: Weights) -> Adapter:
    """The adapter that ships, sampled as it is when it is used: with the correction of texture."""
    folder = weights.path("lora/default")
    return Adapter(SHIPPED, folder, weights.manifest.components["lora/default"], load_sampling(folder))


class Bench:
    """What every adapter is measured with: `per_class` tiles of each tissue, with seeds from `seed` on."""

    def __init__(self, weights: Weights, encoder: TextEncoder, per_class: int, seed: int) -> None:
        self._weights, self._encoder = weights, encoder
        self._per_class, self._seed = per_class, seed
        self._validator = Validator.load(weights.path("validator"))
        self._judge = Validator.load(weights.path("judge"))

    def measure(self, adapter: Adapter, progress: Progress) -> FullReport:
        """The report of an adapter, asked in the style of prompts that it was trained with."""
        style = adapter.record["config"]["prompt_style"]
        wordings = None
        if style == "domain+attributes" and self._weights.has("wordings"):
            wordings = load_wordings(self._weights.path(WORDINGS_FILE))
        contexts = load_contexts(self._weights.path(CONTEXTS_FILE))
        if style == "label":
            contexts = self._encoder.encode([*(tissue.label for tissue in TISSUES), ""])
        generator = Generator.adapted(
            self._weights.path("layout"),
            adapter.folder,
            adapter.sampling,
            contexts,
            wordings,
            None if adapter.sampling.sketch is None else self._weights.path("sketch"),
        )

        def propose(tissue: Tissue, seeds: Sequence[int]) -> Any:
            context: TextContext = generator.context_of(tissue, tissue.label, lambda: self._encoder, seeds[0])
            return generator.propose(context, seeds, tissue=tissue)

        started = time.monotonic()
        made = first_tiles(propose, self._per_class, self._seed, self._weights.model, progress)
        seconds = round(time.monotonic() - started, 2)
        report = report_on_tiles(made, self._validator, self._judge, progress)
        return FullReport.model_validate(
            report.model_dump() | {"seconds": seconds, "adapter": adapter.settings}
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pathsynth.training.comparison", description=__doc__)
    parser.add_argument("runs", type=Path, help="the folder that holds a run of each configuration")
    parser.add_argument("configs", type=Path, nargs="*", help="configurations; default: those that ship")
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="tiles of each tissue")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the first tile")
    asked = parser.parse_args(arguments)

    def say(done: int, total: int, message: str) -> None:
        print(f"\r{message}: {done} of {total}", end="", file=sys.stderr, flush=True)

    try:
        adapters = trained(asked.configs or configurations(), asked.runs, say)
        weights = Weights()
        bench = Bench(weights, TextEncoder(), asked.per_class, asked.seed)
        for adapter in [*adapters, shipped(weights)]:
            report = bench.measure(adapter, say)
            stem = "default" if adapter.name == SHIPPED else adapter.name
            save_report(weights.folder, f"lora-{stem}", report)
            print(f"\n{adapter.name}: F1 {report.macro_f1:.3f}, by the judge {report.macro_f1_judge:.3f}")
        reports, _ = read_reports(weights.folder)
        compared = [report for report in reports.values() if report.adapter is not None]
        write_adapter_plot(compared, weights.folder / PLOT_FILE)
        write_manifest(weights.folder, {})
        write_model_card(weights.folder)
    except PathSynthError as error:
        print(f"\ncomparison: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
