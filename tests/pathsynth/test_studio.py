"""The studio with real code and weights of toy size: what it answers, and that bad input loses nothing.

The toy validator sees adenocarcinoma epithelium in every tile.
"""

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pathsynth import evaluate
from pathsynth.errors import ImageError, PathSynthError, RequestError, StoreError, WeightsError
from pathsynth.generator import WORDINGS_FILE, save_wordings
from pathsynth.images import encode_png
from pathsynth.records import MAX_COUNT, MAX_DESCRIPTION, MAX_SEED, AttemptRecord, TileRecord
from pathsynth.store import ImageStore
from pathsynth.studio import GenerationRequest, Studio
from pathsynth.tissues import CODES
from pathsynth.weights import write_manifest
from tests import tiny

PARTS = (
    "layout/unet/diffusion_pytorch_model.safetensors",
    "layout/unet/config.json",
    "lora/default/pytorch_lora_weights.safetensors",
    "lora/default/settings.json",
    "contexts.safetensors",
    "validator/model.safetensors",
    "validator/config.json",
)


def request(**fields: Any) -> GenerationRequest:
    """A request for tiles that the toy validator verifies."""
    return GenerationRequest.checked(**({"description": "carcinoma", "tissue": "TUM"} | fields))


def sentence(caught: pytest.ExceptionInfo[Exception]) -> str:
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text) < 500
    return text


@pytest.fixture(scope="module")
def loaded(tiny_weights: Path) -> Studio:
    """A studio whose models are loaded once; its store is replaced for each test."""
    return Studio(tiny_weights)


@pytest.fixture
def studio(loaded: Studio, tmp_path: Path) -> Studio:
    loaded._store = ImageStore(tmp_path / "home")
    return loaded


@pytest.fixture
def kept(studio: Studio) -> Iterator[TileRecord]:
    """A tile stored before, which must still be there and whole afterwards."""
    (tile,) = studio.generate(request(seed=1000)).tiles
    yield tile
    assert studio.store.get(tile.image_id).record == tile


def test_making_a_studio_loads_and_writes_nothing(tmp_path: Path) -> None:
    Studio(tmp_path / "no weights", tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


def test_verified_tiles_are_stored_with_their_records(studio: Studio) -> None:
    result = studio.generate(request(count=2, seed=5))
    assert result.verified
    assert (result.attempts, result.rejected) == (2, [])
    assert result.message == "2 tiles of colorectal adenocarcinoma epithelium verified in 2 attempts."
    assert [tile.seed for tile in result.tiles] == [5, 6]
    assert result.model == studio.weights.model
    for tile in result.tiles:
        stored = studio.store.get(tile.image_id)
        assert stored.record == tile
        assert stored.pixels().shape == (28, 28, 3)
        assert tile.confidence == pytest.approx(0.99, abs=2e-3)
        assert (tile.verified, tile.size, tile.model) == (True, 28, result.model)


def test_the_same_request_gives_the_same_tiles_and_another_seed_others(studio: Studio) -> None:
    first, again, other = (
        [tile.image_id for tile in studio.generate(request(count=2, seed=seed)).tiles] for seed in (1, 1, 3)
    )
    assert first == again
    assert set(first).isdisjoint(other)


def test_a_tile_does_not_depend_on_how_many_are_asked_for(studio: Studio) -> None:
    three = studio.generate(request(count=3, seed=1)).tiles
    (one,) = studio.generate(request(count=1, seed=2)).tiles
    assert one == three[1]


def test_what_the_validator_does_not_agree_with_is_not_delivered(studio: Studio) -> None:
    heard: list[tuple[AttemptRecord, int]] = []
    result = studio.generate(
        request(description="fat cells", tissue=None, max_attempts=3),
        on_attempt=lambda attempt, number: heard.append((attempt, number)),
    )
    assert (result.tissue, result.verified, result.tiles, result.attempts) == ("ADI", False, [], 3)
    assert [attempt.predicted for attempt in result.rejected] == ["TUM"] * 3
    assert {attempt.rejected_for for attempt in result.rejected} == {"other tissue"}
    assert "No tile of adipose was verified" in result.message
    assert "before the attempts ran out" in result.message
    assert heard == [(attempt, 0) for attempt in result.rejected]
    assert studio.store.ids() == ()


def test_a_tissue_alone_draws_its_attributes_by_the_seed_of_each_tile(
    studio: Studio, tiny_weights: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "with wordings"
    shutil.copytree(tiny_weights, folder)
    words = ("dark stain, violet", "pale stain, many nuclei")
    save_wordings(folder / WORDINGS_FILE, dict.fromkeys(CODES, words))
    write_manifest(folder, {"wordings": {}})
    drawing = Studio(folder, tmp_path / "other home")

    def made(by: Studio, description: str) -> list[str]:
        result = by.generate(request(description=description, count=6))
        return [by.store.get(tile.image_id).pixels().tobytes().hex() for tile in result.tiles]

    drawn, plain = made(drawing, "carcinoma"), made(studio, "carcinoma")
    described = [made(studio, text) for text in words]
    possible = [[each[i] for each in described] for i in range(6)]
    found = [among.index(tile) for tile, among in zip(drawn, possible, strict=True)]
    assert set(found) == {0, 1}
    assert drawn != plain
    assert made(drawing, words[0]) == described[0]


def test_a_confidence_out_of_reach_is_said(studio: Studio) -> None:
    result = studio.generate(request(min_confidence=1.0, max_attempts=2))
    assert {attempt.rejected_for for attempt in result.rejected} == {"low confidence"}
    assert "a lower confidence than 1" in result.message


def test_spent_time_is_said(studio: Studio) -> None:
    result = studio.generate(request(time_budget=1e-9))
    assert (result.verified, result.attempts) == (False, 0)
    assert "before the time budget ran out" in result.message


def test_a_free_description_finds_its_tissue_and_prints_nothing(
    studio: Studio, capfd: pytest.CaptureFixture[str]
) -> None:
    result = studio.generate(request(description="crowded irregular malignant glands", tissue=None))
    assert (result.tissue, result.verified) == ("TUM", True)
    assert capfd.readouterr() == ("", "")


def test_a_classification_does_not_wait_for_a_generation_to_end(studio: Studio) -> None:
    begun, gate = threading.Event(), threading.Event()

    def between_steps() -> None:
        begun.set()
        assert gate.wait(30)

    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(studio.generate, request(seed=70), check_cancelled=between_steps)
        assert begun.wait(30)
        answer = studio.classify(encode_png(np.full((28, 28, 3), 128, np.uint8)), "grey.png")
        assert not made.done()
        gate.set()
        assert made.result(30).verified
    assert answer.top[0].tissue == answer.tissue == "TUM"


def test_the_budget_ends_a_proposal_between_two_steps_and_the_request_goes_on(studio: Studio) -> None:
    never, steps = threading.Event(), 0

    def slow_step() -> None:
        nonlocal steps
        steps += 1
        never.wait(0.03)

    part = studio.generate(request(count=2, seed=80, time_budget=0.02), check_cancelled=slow_step)
    assert (part.attempts, part.can_continue, steps) == (0, True, 1)
    whole = studio.generate(request(count=2, seed=80))
    assert (whole.request_id, whole.verified) == (part.request_id, True)
    assert [tile.seed for tile in whole.tiles] == [80, 81]


# Bad input: one clear sentence, and nothing is lost.


@pytest.mark.parametrize("code", ["XXX", "", "tumour"])
def test_an_unknown_tissue_is_answered_with_the_nine(studio: Studio, kept: TileRecord, code: str) -> None:
    with pytest.raises(RequestError, match="no tissue with the code") as caught:
        studio.generate(request(tissue=code))
    assert all(each in sentence(caught) for each in CODES)
    assert studio.store.ids() == (kept.image_id,)


@pytest.mark.parametrize("description", ["necrosis or mucus", "a cat sitting on a sofa"])
def test_an_unclear_description_is_asked_back(studio: Studio, kept: TileRecord, description: str) -> None:
    with pytest.raises(RequestError, match="`tissue`") as caught:
        studio.generate(request(description=description, tissue=None))
    sentence(caught)
    assert studio.store.ids() == (kept.image_id,)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"description": ""}, "description is empty"),
        ({"description": "  \n\t"}, "description is empty"),
        ({"description": "x" * 10_000}, f"`description` .*{MAX_DESCRIPTION}"),
        ({"count": 0}, "`count`"),
        ({"count": 1000}, f"`count` .*{MAX_COUNT}"),
        ({"seed": -1}, "`seed`"),
        ({"seed": 2**63}, f"`seed` .*{MAX_SEED}"),
        ({"seed": 10**30}, "`seed`"),
        ({"size": 512}, "`size`"),
        ({"min_confidence": 1.5}, "`min_confidence`"),
        ({"min_confidence": float("nan")}, "`min_confidence`"),
        ({"max_attempts": 0}, "`max_attempts`"),
        ({"max_attempts": 10**9}, "`max_attempts`"),
        ({"time_budget": 0}, "`time_budget`"),
        ({"colour": "blue"}, "`colour`"),
    ],
)
def test_a_value_out_of_bounds_is_named_by_its_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=named) as caught:
        request(**fields)
    assert len(sentence(caught)) < 200


@pytest.mark.parametrize("seed", [0, MAX_SEED])
def test_the_bounds_of_the_seed_are_inside(studio: Studio, seed: int) -> None:
    assert studio.generate(request(seed=seed)).tiles[0].seed == seed


def test_a_description_as_long_as_allowed_is_read(studio: Studio) -> None:
    assert studio.generate(request(description=("dark nuclei " * 100)[:MAX_DESCRIPTION])).verified


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("damage", "words"), [(flip, "is damaged"), (Path.unlink, "lack")])
def test_weights_with_a_damaged_or_missing_file_make_nothing(
    tiny_weights: Path, tmp_path: Path, part: str, damage: Callable[[Path], None], words: str
) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(tiny_weights, folder)
    damage(folder / part)
    broken = Studio(folder, tmp_path / "home")
    tile = np.full((28, 28, 3), 128, dtype=np.uint8)
    for call in (lambda: broken.generate(request()), lambda: broken.classify(encode_png(tile), "tile.png")):
        with pytest.raises(WeightsError, match=words) as caught:
            call()
        assert part in sentence(caught)
    assert not (tmp_path / "home").exists()


def test_absent_weights_are_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="PATHSYNTH_WEIGHTS") as caught:
        Studio(tmp_path / "none", tmp_path / "home").generate(request())
    sentence(caught)


@pytest.fixture(params=["below a file", "below /proc", "without permission"])
def unwritable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A home that cannot be written; the permission bits of the last kind do not bind the superuser."""
    if request.param == "below a file":
        (tmp_path / "file").touch()
        yield tmp_path / "file" / "home"
    elif request.param == "below /proc":
        if not Path("/proc/self").is_dir():
            pytest.skip("this system has no /proc")
        yield Path("/proc/pathsynth")
    else:
        if os.name != "posix" or os.geteuid() == 0:
            pytest.skip("permission bits do not bind the superuser")
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
        yield folder
        folder.chmod(0o700)


def test_a_home_that_cannot_be_written_is_said(
    studio: Studio, unwritable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATHSYNTH_HOME", str(unwritable))
    studio._store = ImageStore()
    with pytest.raises(StoreError, match="PATHSYNTH_HOME") as caught:
        studio.generate(request())
    assert str(unwritable) in sentence(caught)


def test_a_disk_that_fills_up_keeps_every_tile_stored_before(
    studio: Studio, kept: TileRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, delivered = os.fsync, 0

    def full_after_two(descriptor: int) -> None:
        if delivered == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    def count(attempt: AttemptRecord, number: int) -> None:
        nonlocal delivered
        delivered = number

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_after_two)
        with pytest.raises(StoreError, match="is full; free some space") as caught:
            studio.generate(request(count=4, seed=1), on_attempt=count)
    sentence(caught)
    assert len(studio.store.ids()) == 3
    assert not list(studio.store.root.rglob("*.partial"))
    result = studio.generate(request(count=4, seed=1))
    assert result.verified
    assert len(studio.store.ids()) == 5


def test_an_interrupt_in_the_middle_of_a_tile_keeps_those_before_it(studio: Studio, kept: TileRecord) -> None:
    steps = 0

    def interrupt() -> None:
        nonlocal steps
        steps += 1
        if steps == 2 * tiny.STEPS + 2:  # in the middle of the third tile
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        studio.generate(request(count=9, seed=1), check_cancelled=interrupt)
    assert len(studio.store.ids()) == 3
    again = studio.generate(request(count=2, seed=1))  # the models are free again
    assert {tile.image_id for tile in again.tiles} | {kept.image_id} == set(studio.store.ids())


def test_an_error_of_a_listener_keeps_the_tiles_so_far(studio: Studio, kept: TileRecord) -> None:
    def stop(attempt: AttemptRecord, number: int) -> None:
        if number == 2:
            raise PathSynthError("That is enough.")

    with pytest.raises(PathSynthError, match="enough"):
        studio.generate(request(count=5, seed=1), on_attempt=stop)
    assert len(studio.store.ids()) == 3


# Classification and evaluation


def test_a_tile_of_ours_is_recognised_whatever_its_file_is_called(
    studio: Studio, kept: TileRecord, tmp_path: Path
) -> None:
    copy = tmp_path / "some name.png"
    copy.write_bytes(studio.store.get(kept.image_id).path.read_bytes())
    answer = studio.classify(copy, copy.name)
    assert (answer.image, answer.image_id, answer.tissue) == ("some name.png", kept.image_id, "TUM")
    assert answer.confidence == kept.confidence
    assert answer.verdict == "This looks like colorectal adenocarcinoma epithelium (99%)."


def test_an_image_of_someone_else_has_no_identity(studio: Studio) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    answer = studio.classify(encode_png(picture), "other.png")
    assert answer.image_id is None
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-4)


def test_an_image_that_cannot_be_classified_is_said(studio: Studio) -> None:
    with pytest.raises(ImageError, match="28 px") as caught:
        studio.classify(encode_png(np.zeros((20, 40, 3), np.uint8)), "small.png")
    sentence(caught)
    with pytest.raises(ImageError) as caught:
        studio.classify(b"no image", "none.png")
    sentence(caught)


def test_first_tiles_are_measured_unfiltered(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BOOTSTRAP_SAMPLES", 20)
    report = studio.evaluate_generator(per_class=1, seed=3)
    assert report.n == 9
    assert report.accuracy == pytest.approx(1 / 9)
    assert [row[CODES.index("TUM")] for row in report.confusion] == [1] * 9
    assert report.per_class["TUM"].recall == 1
    assert report.model == studio.model
    assert studio.store.ids() == ()


def test_the_loop_needs_a_judge(studio: Studio) -> None:
    with pytest.raises(WeightsError, match="hold no judge") as caught:
        studio.evaluate_loop(per_class=1, seed=0)
    sentence(caught)


@pytest.mark.parametrize("name", ["generator", "../validator/config"])
def test_a_report_that_is_not_there_is_said(studio: Studio, name: str) -> None:
    with pytest.raises(WeightsError, match="no readable report") as caught:
        studio.committed_report(name)
    sentence(caught)
