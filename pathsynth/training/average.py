"""The mean of the weights of several runs of one classifier that go back to the same weights: it has what
each of them learnt, and costs what one does. After Wortsman et al., *Model soups*, 2022.

    python -m pathsynth.training.average OUT CONFIG=RUN CONFIG=RUN ...

reads the averaged weights of the last checkpoint in each folder RUN, which CONFIG has trained, calibrates
their mean on val, and writes it to OUT as a finished training run.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pathsynth.data import Split, load_split
from pathsynth.errors import PathSynthError, TrainingError
from pathsynth.training import RUN_FILE, read_config
from pathsynth.training.engine import CHECKPOINT_FILE, averaged_weights
from pathsynth.training.validator import ValidatorConfig, ValidatorTask


def average_runs(
    out: Path, runs: Sequence[tuple[Path, Path]], train: Split | None = None, val: Split | None = None
) -> dict[str, Any]:
    """Average `runs`, pairs of configuration and folder, into the finished run `out`; returns what it is on
    val with one view.

    `train` and `val` are by default PathMNIST's; the mean is calibrated with them.

    Raises:
        TrainingError: a configuration does not fit, a folder holds no checkpoint of it, or the runs are of
            different networks.
        DataError: PathMNIST is not there.
    """
    configs = [read_config(config, ValidatorConfig) for config, _ in runs]
    if len({(config.kind, config.architecture, config.half) for config in configs}) > 1:
        raise TrainingError(
            "Only runs of the same network on the same tiles can be averaged; name such runs."
        )
    states = [averaged_weights(folder / CHECKPOINT_FILE) for _, folder in runs]
    task = ValidatorTask(configs[0].model_copy(update={"initial": None, "focus": 0.0}), train, val)
    try:
        task.model.load_state_dict(_mean([weights for weights, _ in states]))
    except RuntimeError as error:
        raise TrainingError(
            f"The checkpoints are not of a {configs[0].architecture}; name those of these configurations."
        ) from error
    figures = task.evaluate(task.model.eval())
    task.save(task.model, out)
    record = {
        "config": configs[0].model_dump(mode="json"),
        "data": task.train.sha256,
        "result": {"seconds": sum(state["seconds"] for _, state in states), **figures},
        "averaged": [
            {
                "config": config.model_dump(mode="json"),
                "result": {key: state[key] for key in ("step", "seconds", "loss")},
            }
            for config, (_, state) in zip(configs, states, strict=True)
        ],
    }
    (out / RUN_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return figures


def _mean(states: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of each tensor; of counters, which are integers, the first."""
    try:
        return {
            name: torch.stack([state[name].float() for state in states]).mean(0)
            if first.is_floating_point()
            else first
            for name, first in states[0].items()
        }
    except (KeyError, RuntimeError) as error:
        raise TrainingError("The checkpoints are of different networks; name runs of one.") from error


def _pair(argument: str) -> tuple[Path, Path]:
    config, equals, run = argument.partition("=")
    if not (config and equals and run):
        raise argparse.ArgumentTypeError(f"{argument} is not CONFIG=RUN; give both, with `=` between.")
    return Path(config).expanduser(), Path(run).expanduser()  # no shell expands ~ after =


def main(argv: list[str] | None = None) -> int:
    """Average runs; returns the exit code, 1 with a sentence on stderr when something is missing."""
    parser = argparse.ArgumentParser(prog="python -m pathsynth.training.average", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the mean, as a finished run")
    parser.add_argument("runs", type=_pair, nargs="+", metavar="CONFIG=RUN", help="what to average")
    arguments = parser.parse_args(argv)
    try:
        load_split("train"), load_split("val")  # a wrong folder is said before the minutes of work
        print(
            "Averaging and calibrating; this names val from eight sides, which takes minutes.",
            file=sys.stderr,
        )
        for name, value in average_runs(arguments.out, arguments.runs).items():
            print(f"{name}: {value}")
    except PathSynthError as error:
        print(f"average: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
