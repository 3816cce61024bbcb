"""Puts trained models together as the weights folder that ships, and measures what it holds.

    python -m pathsynth.training.release weights --validator RUN --base RUN --adapter default=RUN

copies the models of finished training runs, each with the configuration, the data hash and the result that
its run wrote down; then measures the validator on val and test and the generator on first-shot tiles, draws
the sheet of verified tiles, and generates the model card from those reports. Models that are not named stay
as they are.
"""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from PIL import Image

from pathsynth.attributes import caption, phrases
from pathsynth.data import load_split
from pathsynth.errors import PathSynthError, TrainingError
from pathsynth.generator import SETTINGS_FILE, Sampling, SketchSampling, load_sampling
from pathsynth.images import contact_sheet, upscale
from pathsynth.layout import ALL_TIMES, DEFAULT_GUIDANCE, DEFAULT_STEPS, LORA_FILE
from pathsynth.modelcard import write_model_card
from pathsynth.records import Comparison, Report
from pathsynth.tissues import CODES, TISSUES
from pathsynth.training import RUN_FILE
from pathsynth.weights import MANIFEST, Weights, read_manifest, write_manifest

SPLITS: tuple[Literal["val", "test"], ...] = ("val", "test")
SHEET_FILE = "reports/tiles.png"
SHEET_COLUMNS = 4
SHEET_EDGE = 112
SHEET_ATTEMPTS = 200
WORDINGS_PER_TISSUE = 400
TEXTURE_SEED = 800_000
STAGES = {"detail": "diffusion", "detail-adversarial": "adversarial", "detail-decoder": "decoder"}
_OF_SKETCHES = ("stochastic", "clear", "held")
Say = Callable[[str], None]


def read_run(run: Path) -> dict[str, Any]:
    """What a finished training run wrote down about itself.

    Raises:
        TrainingError: the folder holds no finished run.
    """
    try:
        record: dict[str, Any] = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{run} holds no finished training run (no readable {RUN_FILE}).") from error
    return record


def add_model(weights: Path, name: str, run: Path, folder: str) -> None:
    """Copy `folder` of a finished run to `weights/name` and note in the manifest how it was trained."""
    record = read_run(run)
    shutil.rmtree(weights / name, ignore_errors=True)
    shutil.copytree(run / folder, weights / name)
    forget_where_from(weights / name)
    write_manifest(weights, {name: record})


def forget_where_from(model: Path) -> None:
    """Take the folder that a model was loaded from out of its configurations, where diffusers writes it."""
    for path in model.rglob("*.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def add_detail(weights: Path, run: Path) -> None:
    """Copy the detail pipeline of a finished run, and note how its parts were trained.

    The run is one of the diffusion, or of a stage after it.

    Raises:
        TrainingError: the run, or one that it goes back to, is not finished or not there.
    """
    runs = run.absolute().parent
    record = stage = read_run(run)
    stages = {}
    while "pipeline" in stage["config"]:
        stage = read_run(runs / Path(stage["config"]["pipeline"]).parent)
        stages[STAGES[stage["config"]["kind"]]] = stage
    stages["autoencoder"] = read_run(runs / Path(stage["config"]["autoencoder"]).parent)
    add_model(weights, "detail", run, "detail")
    write_manifest(weights, {"detail": record | stages})


def add_adapter(weights: Path, name: str, run: Path, sampling: Sampling) -> None:
    """Copy the LoRA adapter of a finished run, with the sampling settings it is used with. Of a correction of
    texture the manifest names the tissues.
    """
    record = read_run(run)
    target = weights / "lora" / name
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / "lora" / LORA_FILE, target / LORA_FILE)
    (target / SETTINGS_FILE).write_text(sampling.model_dump_json() + "\n", encoding="utf-8")
    plain = sampling.model_copy(update={"texture": {}, "variety": {}})
    noted: dict[str, Any] = {"sampling": plain.model_dump(mode="json")}
    if sampling.texture:
        noted["texture"] = {"of": list(sampling.texture)}
    write_manifest(weights, {f"lora/{name}": record | noted})


def trained_sampling(run: Path, sketch: SketchSampling | None = None) -> Sampling | None:
    """The sampling that the adapter of a finished run was trained for, with the correction of texture that it
    was trained through, or that its configuration names. `sketch` says how to make sketches, where it starts
    from those, and was not trained from drawn ones.

    Raises:
        TrainingError: the run is not finished, or starts from sketches and `sketch` is not given, or the
            other way round.
        WeightsError: the correction is not where the run had it.
    """
    config = read_run(run)["config"]
    if (adversarial := config.get("adversarial")) is not None:
        corrected = adversarial.get("texture")
        texture = {} if corrected is None else load_sampling(run.absolute().parent / corrected).texture
        if sketch is None and adversarial.get("sketches") is not None:
            sketch = SketchSampling(steps=int(adversarial["sketch_steps"]))
        if (adversarial.get("sketch") is None) != (sketch is None):
            raise TrainingError(
                f"{run} was trained to start from {'noise' if sketch else 'sketches'}; "
                f"{'leave out' if sketch else 'give'} --sketch-steps."
            )
        if sketch is not None:
            trained_with = {each: bool(adversarial.get(f"sketch_{each}")) for each in _OF_SKETCHES}
            sketch = sketch.model_copy(update=trained_with)
        return Sampling(
            steps=int(adversarial["steps"]), guidance=1.0, stochastic=True, texture=texture, sketch=sketch
        )
    return None if config.get("sampling") is None else Sampling.model_validate(config["sampling"])


def add_contexts(weights: Path) -> None:
    """Encode the nine domain prompts, so that the common case never loads the text encoder."""
    from pathsynth.generator import CONTEXTS_FILE, save_contexts
    from pathsynth.text import PUBLISHED_SHA256, TextEncoder

    save_contexts(weights / CONTEXTS_FILE, TextEncoder())
    write_manifest(weights, {"contexts": {"encoder": "all-MiniLM-L6-v2", "sha256": PUBLISHED_SHA256}})


def add_wordings(weights: Path) -> None:
    """Write the attributes of some training tiles of each tissue as captions, for requests that name the
    tissue alone.

    Raises:
        DataError: PathMNIST is not there.
    """
    from pathsynth.generator import WORDINGS_FILE, save_wordings

    train, random = load_split("train"), np.random.default_rng(0)
    wordings = {}
    for tissue in TISSUES:
        drawn = random.permutation(np.flatnonzero(train.labels == tissue.index))[:WORDINGS_PER_TISSUE]
        wordings[tissue.code] = [caption(words) for words in phrases(train.images[drawn])]
    save_wordings(weights / WORDINGS_FILE, wordings)
    write_manifest(weights, {"wordings": {"per_tissue": WORDINGS_PER_TISSUE, "train": train.sha256}})


def add_near_copies(weights: Path) -> None:
    """Index the training tiles for the near-copy guard. Takes minutes.

    Raises:
        DataError: PathMNIST is not there.
    """
    from pathsynth.nearcopy import COMPONENTS, INDEX_FILE, QUANTILE, NearCopyIndex

    train, val = load_split("train"), load_split("val")
    NearCopyIndex.build(train, val).save(weights / INDEX_FILE)
    how = {"components": COMPONENTS, "quantile": QUANTILE, "train": train.sha256, "val": val.sha256}
    write_manifest(weights, {"near-copies": how})


def add_texture(
    weights: Path,
    per_tissue: int,
    strengths: Mapping[str, float],
    varied: Collection[str],
    numbers: Mapping[str, int],
    say: Say,
) -> None:
    """Correct the texture by how `per_tissue` first tiles of each tissue differ from those of PathMNIST
    train, wholly or by the share in `strengths`, by the code of a tissue, where 0 leaves it as it is; for the
    tissues whose codes are in `varied`, by how it differs from tile to tile as well. `numbers` has how many
    tiles where that is not `per_tissue`, by the code: few dirty tiles make most of the power of background,
    which takes more of them to know. The wordings that a request may draw have their turn one after the
    other.

    Raises:
        DataError: PathMNIST is not there.
    """
    from pathsynth.generator import WORDINGS_FILE, Generator, load_wordings
    from pathsynth.text import TextEncoder
    from pathsynth.texture import Variety, vary
    from pathsynth.training.texture import fit_texture, fit_variety
    from pathsynth.validator import from_model_range, to_model_range

    known = Weights(weights)
    wordings = load_wordings(known.path(WORDINGS_FILE)) if known.has("wordings") else {}
    generator, encoder, train = Generator.load(known), TextEncoder(), load_split("train")
    texture: dict[str, list[list[list[float]]]] = {}
    variety: dict[str, Variety] = {}
    for tissue in TISSUES:
        strength = strengths.get(tissue.code, 1.0)
        if not strength and tissue.code not in varied:
            continue
        say(f"Fitting the texture: {tissue.label}")
        made, asked = [], wordings.get(tissue.code, [tissue.label])
        for i in range(numbers.get(tissue.code, per_tissue)):
            seed = TEXTURE_SEED + tissue.index * per_tissue + i
            context = generator.context_of(tissue, asked[i % len(asked)], lambda: encoder, seed)
            made.append(generator.propose(context, [seed])[0])  # as no tissue is named, uncorrected
        tiles, real = np.stack(made), train.images[train.labels == tissue.index]
        if tissue.code in varied:
            variety[tissue.code] = fit_variety(tiles, real)
            tiles = from_model_range(vary(to_model_range(tiles), variety[tissue.code]))
        if not strength:
            continue
        fitted = fit_texture(tiles, real, strength)
        if fitted is None:
            say(f"{tissue.label}: more than a gain can mend; no matrices")
        else:
            texture[tissue.code] = fitted
    adapter = known.path("lora/default")
    sampling = load_sampling(adapter).model_copy(update={"texture": texture, "variety": variety})
    (adapter / SETTINGS_FILE).write_text(sampling.model_dump_json() + "\n", encoding="utf-8")
    record = read_manifest(weights).components["lora/default"]
    how = {
        "tiles_per_tissue": per_tissue,
        "tiles": dict(numbers),
        "seed": TEXTURE_SEED,
        "train": train.sha256,
        "of": list(texture),
        "strengths": dict(strengths),
        "varied": list(variety),
    }
    write_manifest(weights, {"lora/default": record | {"texture": how}})


def measure(weights: Path, per_class: int, say: Say) -> None:
    """Write the reports that ship: validator on val and test, generator unfiltered, the loop where there is a
    judge.
    """
    from pathsynth.studio import Studio

    studio = Studio(weights)
    judge = studio.weights.has("judge")

    def progress(done: int, total: int, message: str) -> None:
        say(message)

    for split in SPLITS:
        save_report(weights, f"validator-{split}", studio.evaluate_validator(split, progress))
    generator = studio.evaluate_generator(per_class, 0, progress, judge=judge)
    save_report(weights, "generator", generator)
    if judge:
        for split in SPLITS:
            save_report(weights, f"judge-{split}", studio.evaluate_judge(split, progress))
        save_report(weights, "loop", studio.evaluate_loop(per_class, 0, progress))


def save_report(weights: Path, name: str, report: Report | Comparison) -> None:
    """Write one report into the weights folder, as the model card and `Studio.committed_report` read it."""
    path = weights / "reports" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(report.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")


def draw_sheet(weights: Path, say: Say) -> None:
    """Four verified tiles of each tissue, the first that the loop keeps from seed 0 on, with their detail
    where the weights have it, at half size; a blank says that it kept fewer in 200 attempts.
    """
    from pathsynth.studio import GenerationRequest, Studio

    tiles, captions = [], []
    with TemporaryDirectory() as home:
        studio = Studio(weights, Path(home))
        for tissue in TISSUES:
            say(f"Sheet: {tissue.label}")
            request = GenerationRequest.checked(
                description=tissue.label, count=SHEET_COLUMNS, max_attempts=SHEET_ATTEMPTS
            )
            made = studio.generate(request)
            for record in made.tiles:
                tiles.append(upscale(studio.store.get(record.image_id).pixels(), SHEET_EDGE))
                captions.append(f"{tissue.code} {record.confidence:.0%}")
            for _ in range(len(made.tiles), SHEET_COLUMNS):
                tiles.append(np.full((SHEET_EDGE, SHEET_EDGE, 3), 255, dtype=np.uint8))
                captions.append(f"{tissue.code} not verified")
    sheet = contact_sheet(tiles, captions, 3 * SHEET_COLUMNS)
    path = weights / SHEET_FILE
    path.parent.mkdir(exist_ok=True)
    # 64 colours do for its few stains, and take less than a third of the bytes.
    Image.fromarray(np.asarray(sheet)).quantize(64).save(path, optimize=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pathsynth.training.release", description=__doc__)
    parser.add_argument("weights", type=Path, help="the weights folder to write")
    parser.add_argument("--validator", type=Path, help="finished run of `pathsynth train validator`")
    parser.add_argument(
        "--outliers", type=Path, help="finished run of `pathsynth train validator --config outliers.toml`"
    )
    parser.add_argument("--judge", type=Path, help="finished run of `pathsynth train judge`")
    parser.add_argument("--base", type=Path, help="finished run of `pathsynth train base`")
    parser.add_argument("--sketch", type=Path, help="finished run of `pathsynth train base` on sketches")
    parser.add_argument(
        "--sketch-steps",
        type=_count,
        help="with an adapter that starts from sketches: denoising steps for one; by default those of its "
        "training, where that drew any",
    )
    parser.add_argument("--sketch-guidance", type=_scale, default=1.0, help="the guidance scale of sketches")
    parser.add_argument(
        "--turned",
        action="store_true",
        help="let the adapter's tiles be turned and mirrored by their seeds",
    )
    parser.add_argument("--detail", type=Path, help="finished run of `pathsynth train detail`")
    parser.add_argument("--adapter", help="NAME=finished run of `pathsynth train lora`; `default` is used")
    parser.add_argument(
        "--steps",
        type=_count,
        default=DEFAULT_STEPS,
        help="denoising steps of an adapter whose configuration does not say how to sample with it",
    )
    parser.add_argument("--guidance", type=_scale, default=DEFAULT_GUIDANCE, help="its guidance scale")
    parser.add_argument(
        "--guidance-interval",
        type=_time,
        nargs=2,
        default=ALL_TIMES,
        metavar=("FROM", "TO"),
        help="times between which it is guided; 1 is pure noise",
    )
    parser.add_argument("--per-class", type=_count, default=50, help="tiles per tissue in the reports")
    parser.add_argument(
        "--near-copies", action="store_true", help="index PathMNIST train for the near-copy guard"
    )
    parser.add_argument(
        "--wordings",
        action="store_true",
        help="let requests that only name a tissue draw attributes of PathMNIST train",
    )
    parser.add_argument(
        "--texture",
        type=_count,
        metavar="N",
        help="correct the texture by how N tiles of each tissue differ from those of PathMNIST train",
    )
    parser.add_argument(
        "--texture-tiles",
        type=_number,
        action="append",
        default=[],
        metavar="CODE=N",
        help="with --texture: fit that tissue on N tiles",
    )
    parser.add_argument(
        "--texture-strength",
        type=_strength,
        action="append",
        default=[],
        metavar="CODE=SHARE",
        help="make that share (0: none) of the correction of a tissue, which fine texture is recognised by",
    )
    parser.add_argument(
        "--texture-variety",
        choices=CODES,
        action="append",
        default=[],
        metavar="CODE",
        help="with --texture: also let the texture of that tissue differ from tile to tile as in real ones",
    )
    parser.add_argument("--only-copy", action="store_true", help="copy the models and measure nothing")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    """A whole number of one or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _scale(text: str) -> float:
    """A number of zero or more."""
    if (value := _between(text, math.inf)) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")
    return value


def _time(text: str) -> float:
    """A time of denoising, 1 being pure noise."""
    if (value := _between(text, 1)) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return value


def _between(text: str, highest: float) -> float | None:
    """A finite number from 0 to `highest`; None for any other text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= highest else None


def _number(text: str) -> tuple[str, int]:
    """The code of a tissue and a number of tiles, written `CODE=N`."""
    code, _, number = text.partition("=")
    if code not in CODES or not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no CODE=N, as BACK=1000; codes are {', '.join(CODES)}")
    return code, int(number)


def _strength(text: str) -> tuple[str, float]:
    """The code of a tissue and a share from 0 to 1, written `CODE=SHARE`."""
    code, _, share = text.partition("=")
    if code not in CODES or (value := _between(share, 1)) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no CODE=SHARE, as STR=0.7; codes are {', '.join(CODES)}"
        )
    return code, value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    asked = _parse(arguments)

    def say(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    weights: Path = asked.weights
    weights.mkdir(parents=True, exist_ok=True)
    try:
        for name in ("validator", "outliers", "judge"):
            if run := getattr(asked, name):
                add_model(weights, name, run, name)
        if asked.base:
            add_model(weights, "layout", asked.base, "layout")
        if asked.sketch:
            add_model(weights, "sketch", asked.sketch, "layout")
        if asked.detail:
            add_detail(weights, asked.detail)
        if asked.adapter:
            name, _, run = asked.adapter.partition("=")
            low, high = asked.guidance_interval
            chosen = Sampling(steps=asked.steps, guidance=asked.guidance, guidance_interval=(low, high))
            sketch = None
            if asked.sketch_steps:
                sketch = SketchSampling(steps=asked.sketch_steps, guidance=asked.sketch_guidance)
            sampling = trained_sampling(Path(run), sketch) or chosen
            add_adapter(weights, name, Path(run), sampling.model_copy(update={"turned": asked.turned}))
        add_contexts(weights)
        if asked.wordings:
            add_wordings(weights)
        if asked.texture:
            strengths, numbers = dict(asked.texture_strength), dict(asked.texture_tiles)
            add_texture(weights, asked.texture, strengths, asked.texture_variety, numbers, say)
        if asked.near_copies:
            say("Indexing the training tiles")
            add_near_copies(weights)
        if asked.only_copy:
            return 0
        measure(weights, asked.per_class, say)
        write_manifest(weights, {})
        draw_sheet(weights, say)
        write_manifest(weights, {})
        write_model_card(weights)
    except PathSynthError as error:
        say(f"release: {error}")
        return 1
    say(f"{weights / MANIFEST}: model {Weights(weights).model}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
