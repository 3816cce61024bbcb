"""Training of every model: one step loop (`engine`), one module per model, configurations as TOML files in
`configs`.
"""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pathsynth.errors import TrainingError

Report = Callable[[int, int, str], None]
Config = TypeVar("Config", bound=BaseModel)


def read_config(path: Path, shape: type[Config]) -> Config:
    """A training configuration from a TOML file.

    Raises:
        TrainingError: the file cannot be read or does not fit; says where.
    """
    try:
        return shape.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"{path} cannot be read as TOML ({error}); correct it.") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise TrainingError(
            f"{path} is not a valid configuration: `{name}` {first['msg'].lower()}."
        ) from error


def start(
    kind: str, config: Path, out: Path, resume: bool, max_minutes: float | None, report: Report
) -> dict[str, Any]:
    """Train one model and say how it went: steps, loss, throughput and the figures on val.

    Raises:
        TrainingError: the configuration does not fit, or there is nothing to resume.
        DataError: PathMNIST is not there.
    """
    from pathsynth.training.engine import Task, TrainState, run
    from pathsynth.training.layout import BaseConfig, BaseTask, LoraConfig, LoraTask
    from pathsynth.training.validator import ValidatorConfig, ValidatorTask

    task: Task
    settings: ValidatorConfig | BaseConfig | LoraConfig
    if kind in ("validator", "judge"):
        settings = read_config(config, ValidatorConfig)
        task = ValidatorTask(settings)
    elif kind == "base":
        settings = read_config(config, BaseConfig)
        task = BaseTask(settings)
    elif kind == "lora":
        from pathsynth.generator import load_pipeline
        from pathsynth.weights import Weights

        settings = read_config(config, LoraConfig)
        task = LoraTask(settings, load_pipeline(settings.base or Weights().path("layout")))
    else:
        raise TrainingError(f"There is no trainer for {kind} yet; choose validator, judge, base or lora.")
    if settings.kind != kind:
        raise TrainingError(f"{config} configures a {settings.kind}, not a {kind}; give the matching file.")

    def show(state: TrainState) -> None:
        speed = f"loss {state.loss:.3f}, {state.images_per_second:.0f} img/s, {state.gflops:.0f} GFLOP/s"
        report(state.step, settings.optim.steps, speed)

    state = run(task, settings.optim, out, resume=resume, max_minutes=max_minutes, report=show)
    return {
        "out": str(out),
        "step": state.step,
        "steps": settings.optim.steps,
        "loss": state.loss,
        "images_per_second": state.images_per_second,
        "gflops": state.gflops,
        "seconds": state.seconds,
        **state.metrics,
    }
