"""The one training loop, written as a generator: it yields its state after each step.

Logging, progress bars, checkpoints and early stopping live with the caller (`run`), so a test can take three
steps and stop. Everything goes through `accelerate`, so the same loop serves one CPU, one GPU or `accelerate
launch`.
"""

import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from pathsynth.errors import TrainingError

CHECKPOINT_FILE = "checkpoint.pt"
EVALUATED_SHARE = 0.05


class OptimConfig(BaseModel):
    """How to optimise: AdamW with linear warm-up and cosine decay, and an exponential moving average (EMA)
    of the weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    rival_rate: float = Field(
        default=1.0, gt=0, description="Learning rate of a rival, in that of the model, where there is one."
    )
    final_learning_rate_fraction: float = Field(default=0.01, ge=0, le=1)
    warmup_steps: int = Field(default=200, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, gt=0, lt=1)
    gradient_clip: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of optimisation step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        floor = self.final_learning_rate_fraction
        return self.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


class TrainingData(Protocol):
    """What a task trains on, as far as the record of a run names it."""

    @property
    def sha256(self) -> str:
        """Hash of all that is trained on."""


class Task(Protocol):
    """What one model brings to the loop."""

    model: nn.Module

    @property
    def train(self) -> TrainingData:
        """What is trained on."""

    def batch(self, size: int, generator: torch.Generator) -> Any:
        """A training batch drawn with `generator`, on the CPU."""

    def loss(self, model: nn.Module, batch: Any, generator: torch.Generator) -> torch.Tensor:
        """Mean loss of a batch (scalar)."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Figures on held-out data (never test) for the log."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the averaged model as it ships."""


@runtime_checkable
class AdversarialTask(Protocol):
    """A task whose model is also trained against a second network, which has an optimiser of its own.

    After each step of the model the rival takes one on the same batch, at a learning rate of its own.
    """

    rival: nn.Module

    def rival_loss(self, rival: nn.Module, batch: Any) -> torch.Tensor:
        """Mean loss of the rival (scalar) on the batch of the last call of `loss`."""


@dataclass
class TrainState:
    """Where a run stands. `loss` is the loss of the last step; `gflops` counts forward and backward
    multiply-adds x 2.
    """

    step: int = 0
    loss: float = math.nan
    learning_rate: float = 0.0
    images_per_second: float = 0.0
    gflops: float = 0.0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively; without it autocast is a hundred times slower
    than float32.
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _cpu_flag("avx512_bf16") or _cpu_flag("amx_bf16")


def _cpu_flag(name: str) -> bool:
    try:
        return name in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def precision_of(config: OptimConfig) -> Literal["no", "bf16"]:
    """The mixed precision that `accelerate` should use for this configuration on this machine."""
    if config.precision == "auto":
        return "bf16" if has_fast_bfloat16() else "no"
    return "bf16" if config.precision == "bfloat16" else "no"


class Run:
    """A task with its optimiser, average and random state; can be saved to one file and restored from it."""

    def __init__(self, task: Task, config: OptimConfig) -> None:
        self.task = task
        self.config = config
        self.accelerator = Accelerator(mixed_precision=precision_of(config))
        self.generator = torch.Generator().manual_seed(config.seed + self.accelerator.process_index)
        trainable = [p for p in task.model.parameters() if p.requires_grad]
        fused = self.accelerator.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(
            trainable,
            config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=fused,
        )
        self.model, self.optimizer = self.accelerator.prepare(task.model, optimizer)
        self.rivalry: _Rivalry | None = None
        if isinstance(task, AdversarialTask):
            self.rivalry = _Rivalry(task, config, self.accelerator, fused=fused)
        bare = self.accelerator.unwrap_model(self.model)
        self.average = AveragedModel(
            bare, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True
        )
        averaged = dict(self.average.module.named_parameters())
        for name, weight in bare.named_parameters():
            if not weight.requires_grad:  # what never changes needs no second copy
                averaged[name].data = weight.data
        if config.compile:
            self.model.compile()
        self.state = TrainState()

    @property
    def averaged(self) -> nn.Module:
        """The averaged model, in evaluation mode."""
        return self.average.module.eval()

    def steps(self) -> Iterator[TrainState]:
        """Take optimisation steps until the configured number is reached, yielding the state after each."""
        config, state = self.config, self.state
        flops_per_image = 0.0
        while state.step < config.steps:
            started = time.perf_counter()
            rate = config.learning_rate_at(state.step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.model.train()
            batch = self.task.batch(config.batch_size, self.generator)
            if not flops_per_image:
                flops_per_image = self._count_flops(batch) / config.batch_size
                started = time.perf_counter()
            with self.accelerator.autocast():
                loss = self.task.loss(self.model, batch, self.generator)
            state.loss = float(loss.detach())
            if not math.isfinite(state.loss):
                raise TrainingError(
                    f"The loss became {state.loss} at step {state.step + 1}; lower the learning rate, and go "
                    "on from the last checkpoint with --resume or start again."
                )
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            # A short warm-up of the average itself, or it would remember the random start for 1 / (1 -
            # decay) steps.
            decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
            self.average.multi_avg_fn = get_ema_multi_avg_fn(decay)
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))
            if self.rivalry is not None:
                self.rivalry.step(batch, rate * config.rival_rate)
            elapsed = time.perf_counter() - started
            state.step += 1
            state.learning_rate = rate
            rate_now = config.batch_size * self.accelerator.num_processes / elapsed
            state.images_per_second = (
                rate_now if state.step < 3 else 0.95 * state.images_per_second + 0.05 * rate_now
            )
            state.gflops = state.images_per_second * flops_per_image / 1e9
            state.seconds += elapsed
            yield state

    def _count_flops(self, batch: Any) -> float:
        """Floating-point operations of one forward and backward pass, counted once before the first step."""
        probe = torch.Generator().manual_seed(0)
        buffers = list(self.model.buffers())
        if self.rivalry is not None:
            buffers += self.rivalry.model.buffers()
        kept = [buffer.clone() for buffer in buffers]
        with FlopCounterMode(display=False) as counter, self.accelerator.autocast():
            self.task.loss(self.model, batch, probe).backward()
            if self.rivalry is not None:
                self.rivalry.loss(batch).backward()
        self.optimizer.zero_grad(set_to_none=True)
        if self.rivalry is not None:
            self.rivalry.optimizer.zero_grad(set_to_none=True)
        for buffer, value in zip(buffers, kept, strict=True):  # such as means of batches
            buffer.copy_(value)
        return float(counter.get_total_flops())

    def save(self, path: Path) -> None:
        """Write everything a resumed run needs to one file, atomically.

        Raises:
            TrainingError: the file cannot be written; an older one is left as it was.
        """
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            torch.save(
                {
                    "config": self.config.model_dump(),
                    "state": asdict(self.state),
                    "model": _changing_state(self.accelerator.unwrap_model(self.model)),
                    "average": _changing_state(self.average),
                    "optimizer": self.optimizer.state_dict(),
                    "generator": self.generator.get_state(),
                    "rival": None if self.rivalry is None else self.rivalry.state(),
                },
                partial,
            )
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError when the disk is full
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            raise TrainingError(
                f"{path} cannot be written ({reason}); free some space, or give another --out."
            ) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def restore(self, path: Path) -> None:
        """Go on from a file that `save` wrote.

        Raises:
            TrainingError: the file is missing, damaged, or belongs to another model.
        """
        if not path.is_file():
            raise TrainingError(f"There is nothing to resume at {path}; start without --resume.")
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            _restore_state(self.accelerator.unwrap_model(self.model), saved["model"])
            _restore_state(self.average, saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if self.rivalry is not None:
                self.rivalry.restore(saved["rival"])
            self.state = TrainState(**saved["state"])
            if self.accelerator.is_main_process:
                self.generator.set_state(saved["generator"])
            else:  # the saved one is the main process's; the others must not draw the same batches
                apart = self.accelerator.process_index + self.accelerator.num_processes * self.state.step
                self.generator.manual_seed(self.config.seed + apart)
        except (
            OSError,
            RuntimeError,
            KeyError,
            ValueError,
            TypeError,
            EOFError,
            pickle.UnpicklingError,
        ) as error:
            raise TrainingError(
                f"{path} cannot be resumed (damaged, or from another configuration); "
                "use the configuration it was started with, or start without --resume."
            ) from error


class _Rivalry:
    """The second network of an adversarial task, with its optimiser."""

    def __init__(
        self, task: AdversarialTask, config: OptimConfig, accelerator: Accelerator, *, fused: bool
    ) -> None:
        self._task = task
        self._config = config
        self._accelerator = accelerator
        optimizer = torch.optim.AdamW(
            task.rival.parameters(),
            config.learning_rate,
            betas=(0.0, config.beta2),  # momentum lets two networks that chase one another circle
            weight_decay=config.weight_decay,
            fused=fused,
        )
        self.model, self.optimizer = accelerator.prepare(task.rival, optimizer)

    def loss(self, batch: Any) -> torch.Tensor:
        """Mean loss of the rival (scalar)."""
        return self._task.rival_loss(self.model, batch)

    def step(self, batch: Any, rate: float) -> None:
        """One optimisation step at the learning rate `rate`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)  # what the model's own step left there
        with self._accelerator.autocast():
            loss = self.loss(batch)
        self._accelerator.backward(loss)
        self._accelerator.clip_grad_norm_(self.model.parameters(), self._config.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        model = self._accelerator.unwrap_model(self.model)
        return {"model": model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what `state` gave. What this rival has beyond that, after all of it, starts fresh; what
        it does not load, at the end of that, is left out.
        """
        model = self._accelerator.unwrap_model(self.model)
        if unexpected := model.load_state_dict(saved["model"], strict=False).unexpected_keys:
            raise KeyError(*unexpected)
        names = [name for name, _ in model.named_parameters()]
        known = [name for name in names if name in saved["model"]]
        if known != names[: len(known)]:
            raise KeyError("a part of the rival that is not its last")
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {i: each for i, each in saved["optimizer"]["state"].items() if i < len(known)}
        self.optimizer.load_state_dict(optimizer)


def averaged_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The averaged weights of a checkpoint, as the model itself names them, and where its run stood: the
    fields of `TrainState`.

    Raises:
        TrainingError: the file is missing or damaged.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        prefix = "module."
        weights = {
            name.removeprefix(prefix): tensor
            for name, tensor in saved["average"].items()
            if name.startswith(prefix)
        }
        return weights, saved["state"]
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path} holds no checkpoint; name the folder of a training run.") from error


def _changing_state(module: nn.Module) -> dict[str, Any]:
    """The state of a module without its frozen weights, which whoever resumes has already."""
    frozen = {name for name, weight in module.named_parameters() if not weight.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def _restore_state(module: nn.Module, state: dict[str, Any]) -> None:
    """Load what `_changing_state` gave. Raises KeyError when it is the state of another module."""
    if absent := _changing_state(module).keys() - state.keys():
        raise KeyError(*absent)
    if module.load_state_dict(state, strict=False).unexpected_keys:
        raise KeyError("unexpected")


def run(
    task: Task,
    config: OptimConfig,
    out: Path,
    *,
    resume: bool = False,
    max_minutes: float | None = None,
    evaluate_every_minutes: float = 5.0,
    checkpoint_every_minutes: float = 5.0,
    report: Callable[[TrainState], None] = lambda state: None,
) -> TrainState:
    """Train until the steps or the minutes are spent; checkpoint, evaluate and write the averaged model to
    `out`. What evaluates slowly is evaluated less often, so that it takes a twentieth of the time at most.

    A keyboard interrupt saves the checkpoint before it goes on to the caller, so nothing is lost. When the
    loss is no longer a number, the last checkpoint is left as it is.

    Raises:
        TrainingError: `out` holds a run already and `resume` is false, or there is nothing to resume, or a
            file cannot be written, or the loss is no longer a number.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"The folder {out} cannot be made ({error.strerror or error}); give another --out."
        ) from error
    checkpoint = out / CHECKPOINT_FILE
    if checkpoint.exists() and not resume:
        raise TrainingError(f"{checkpoint} exists already; give --resume to go on with it, or another --out.")
    runner = Run(task, config)
    if resume:
        runner.restore(checkpoint)
    main = runner.accelerator.is_main_process
    started = saved = evaluated = time.monotonic()
    pause = evaluate_every_minutes * 60
    try:
        for state in runner.steps():
            now = time.monotonic()
            if main and now - evaluated > pause:
                state.metrics = task.evaluate(runner.averaged)
                evaluated = time.monotonic()
                pause = max(pause, (evaluated - now) / EVALUATED_SHARE)
            if main:
                report(state)
            if main and now - saved > checkpoint_every_minutes * 60:
                runner.save(checkpoint)
                saved = time.monotonic()
            if max_minutes is not None:
                if now - started > max_minutes * 60:
                    runner.accelerator.set_trigger()
                if runner.accelerator.check_trigger():  # all processes stop after the same step
                    break
    finally:
        if main and runner.state.step and math.isfinite(runner.state.loss):
            runner.save(checkpoint)
    if main:
        runner.state.metrics = task.evaluate(runner.averaged)
        task.save(runner.averaged, out)
        report(runner.state)
    return runner.state
