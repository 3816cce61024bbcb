"""Training of every model: one step loop (`engine`), one module per model, configurations as TOML files in
`configs`.
"""

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pathsynth.errors import TrainingError
from pathsynth.progress import Progress

RUN_FILE = "run.json"
Config = TypeVar("Config", bound=BaseModel)


class _Kind(BaseModel):
    """What every configuration says first."""

    kind: str


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
    kind: str,
    config: Path,
    out: Path,
    resume: bool,
    max_minutes: float | None,
    report: Progress,
    base: str | None = None,
) -> dict[str, Any]:
    """Train one model and say how it went: steps, loss, throughput and the figures on val.

    With `base`, the folder or hub id of a Stable Diffusion checkpoint, an adapter is trained on that.

    Raises:
        TrainingError: the configuration does not fit, or there is nothing to resume.
        WeightsError: there is no such checkpoint, or it cannot be used.
        DataError: PathMNIST, or the folder of detail tiles, is not there.
    """
    if base is not None and kind != "lora":
        raise TrainingError(f"A {kind} has no base; give --base with lora only.")
    meant = kind if base is None else "lora-stable-diffusion"
    found = read_config(config, _Kind).kind
    if meant == "detail" and found in (
        "detail-autoencoder",
        "detail-decoder",
        "detail-adversarial",
    ):  # stages of one model
        meant = found
    if (meant, found) == ("validator", "outliers"):  # which it looks at a tile with, too
        meant = found
    if meant == "lora" and found == "lora-stable-diffusion":
        raise TrainingError(f"{config} is for a Stable Diffusion checkpoint; give that with --base.")
    if found != meant:
        raise TrainingError(f"{config} is for `{found}`, not for `{meant}`; give the matching file.")
    from accelerate import PartialState

    from pathsynth.training.adversarial import AdversarialBaseTask, AdversarialLoraTask, seen_from
    from pathsynth.training.detail import AutoencoderConfig, AutoencoderTask, DetailConfig, DetailTask
    from pathsynth.training.detail_adversarial import AdversarialDetailConfig, AdversarialDetailTask
    from pathsynth.training.detail_decoder import DecoderConfig, DecoderTask
    from pathsynth.training.engine import Task, TrainState, precision_of, run
    from pathsynth.training.hires import HiresTiles
    from pathsynth.training.layout import BaseTask, LoraTask
    from pathsynth.training.layout_config import BaseConfig, LoraConfig
    from pathsynth.training.outliers import OutlierConfig, OutlierTask
    from pathsynth.training.stable_diffusion import StableDiffusionConfig, StableDiffusionTask
    from pathsynth.training.validator import ValidatorConfig, ValidatorTask

    task: Task
    settings: (
        ValidatorConfig
        | OutlierConfig
        | BaseConfig
        | LoraConfig
        | StableDiffusionConfig
        | AutoencoderConfig
        | DetailConfig
        | AdversarialDetailConfig
        | DecoderConfig
    )
    if base is not None:
        import torch

        from pathsynth.stable_diffusion import load_pipeline as load_checkpoint

        settings = read_config(config, StableDiffusionConfig)
        frozen = torch.bfloat16 if precision_of(settings.optim) == "bf16" else torch.float32
        task = StableDiffusionTask(settings, load_checkpoint(base).to(frozen), base)
    elif meant == "outliers":
        settings = read_config(config, OutlierConfig)
        task = OutlierTask(settings)
    elif kind in ("validator", "judge"):
        settings = read_config(config, ValidatorConfig)
        initial = settings.initial and out.absolute().parent / settings.initial
        task = ValidatorTask(settings.model_copy(update={"initial": initial}), progress=report)
    elif kind == "base":
        settings = read_config(config, BaseConfig)
        initial = settings.initial and out.absolute().parent / settings.initial
        adversarial = settings.adversarial and seen_from(out.absolute().parent, settings.adversarial)
        from_there = settings.model_copy(update={"initial": initial, "adversarial": adversarial})
        validator = None
        if settings.alignment is not None or adversarial is not None:
            from pathsynth.validator import Validator
            from pathsynth.weights import Weights

            validator = Validator.load(Weights().path("validator"))
        if validator is not None and adversarial is not None:
            task = AdversarialBaseTask(from_there, validator)
        else:
            task = BaseTask(from_there, classifier=None if validator is None else validator.model)
    elif kind == "lora":
        from pathsynth.generator import load_pipeline
        from pathsynth.validator import Validator
        from pathsynth.weights import Weights

        settings = read_config(config, LoraConfig)
        initial = settings.initial and out.absolute().parent / settings.initial
        adversarial = settings.adversarial and seen_from(out.absolute().parent, settings.adversarial)
        lora = settings.model_copy(update={"initial": initial, "adversarial": adversarial})
        pipeline = load_pipeline(settings.base or Weights().path("layout"))
        if adversarial is None:
            task = LoraTask(lora, pipeline)
        else:
            task = AdversarialLoraTask(lora, pipeline, Validator.load(Weights().path("validator")))
    elif meant == "detail-autoencoder":
        settings = read_config(config, AutoencoderConfig)
        task = AutoencoderTask(settings, HiresTiles(progress=report))
    elif meant == "detail":
        from pathsynth.detail import load_autoencoder
        from pathsynth.validator import Validator
        from pathsynth.weights import Weights

        settings = read_config(config, DetailConfig)
        autoencoder = load_autoencoder(out.absolute().parent / settings.autoencoder)
        validator = Validator.load(Weights().path("validator"))
        task = DetailTask(settings, autoencoder, HiresTiles(progress=report), validator=validator)
    elif meant in ("detail-adversarial", "detail-decoder"):
        from pathsynth.detail import load_detail_pipeline
        from pathsynth.validator import Validator
        from pathsynth.weights import Weights

        validator = Validator.load(Weights().path("validator"))
        if meant == "detail-adversarial":
            settings = read_config(config, AdversarialDetailConfig)
            pipeline = load_detail_pipeline(out.absolute().parent / settings.pipeline)
            task = AdversarialDetailTask(settings, pipeline, validator, HiresTiles(progress=report))
        else:
            settings = read_config(config, DecoderConfig)
            pipeline = load_detail_pipeline(out.absolute().parent / settings.pipeline)
            task = DecoderTask(settings, pipeline, validator, HiresTiles(progress=report))
    else:
        raise TrainingError(f"There is no trainer for {kind}; choose validator, judge, base, lora or detail.")

    def show(state: TrainState) -> None:
        speed = f"loss {state.loss:.3f}, {state.images_per_second:.0f} img/s, {state.gflops:.0f} GFLOP/s"
        report(state.step, settings.optim.steps, speed)

    state = run(task, settings.optim, out, resume=resume, max_minutes=max_minutes, report=show)
    summary = {
        "step": state.step,
        "steps": settings.optim.steps,
        "loss": state.loss,
        "images_per_second": state.images_per_second,
        "gflops": state.gflops,
        "seconds": state.seconds,
        **state.metrics,
    }
    if PartialState().is_main_process:
        record = {"config": settings.model_dump(mode="json"), "data": task.train.sha256, "result": summary}
        (out / RUN_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return {"out": str(out)} | summary
