"""Detailed tiles from the loop to the store, the command line and the report, with models of toy size."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from pathsynth import cli, detail_quality, evaluate_commands, terminal
from pathsynth.detail import ProjectionError, resizing_error
from pathsynth.detail_quality import compare, gradients, measure_detail, on_layouts, write_detail_sheets
from pathsynth.detailer import Detailer, same_attributes
from pathsynth.errors import DataError, RequestError, WeightsError
from pathsynth.images import to_native
from pathsynth.modelcard import write_model_card
from pathsynth.nuclei import count, diameters
from pathsynth.realism import FeatureSpace
from pathsynth.records import DetailReport, Distances
from pathsynth.store import ImageStore
from pathsynth.studio import GenerationRequest, Studio
from pathsynth.text import TextContext, TextEncoder
from pathsynth.tissues import by_code
from pathsynth.verify import Detailed, LoopRequest, Prediction, verified_tiles
from pathsynth.weights import write_manifest
from tests import tiny


@pytest.fixture(scope="module")
def weights(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of toy size with a detail model; the tiles of the untrained layout network are noise, so their
    contrast is lowered until pictures resize to them."""
    folder = tmp_path_factory.mktemp("detailed") / "weights"
    shutil.copytree(tiny_weights, folder)
    index = folder / "layout" / "model_index.json"
    index.write_text(index.read_text(encoding="utf-8").replace("0.5,", "0.05,").replace("0.5\n", "0.05\n"))
    tiny.add_detail(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(weights: Path) -> Studio:
    return Studio(weights)


@pytest.fixture
def studio(loaded: Studio, tmp_path: Path) -> Studio:
    loaded._store = ImageStore(tmp_path / "home")
    return loaded


def request(seed: int = 0, size: int = 224, count: int = 1) -> GenerationRequest:
    return GenerationRequest.checked(
        description="carcinoma", tissue="TUM", seed=seed, size=size, count=count, max_attempts=3
    )


def test_a_verified_tile_is_detailed_and_both_are_kept(studio: Studio) -> None:
    (tile,) = studio.generate(request()).tiles
    assert (tile.detailed, tile.size, tile.variation, tile.verified) == (True, 224, 0, True)
    assert tile.layout_id is not None
    layout = studio.store.get(tile.layout_id)
    assert (layout.record.detailed, layout.record.size, layout.record.seed) == (False, 28, tile.seed)
    stored = studio.store.get(tile.image_id)
    assert stored.record == tile
    assert resizing_error(stored.pixels(), layout.pixels()) <= 1.0


def test_28_px_are_not_detailed(studio: Studio) -> None:
    (tile,) = studio.generate(request(size=28)).tiles
    assert (tile.detailed, tile.size, tile.layout_id) == (False, 28, None)
    assert studio.store.ids() == (tile.image_id,)


def test_without_a_detail_model_everything_is_as_before(tiny_weights: Path, tmp_path: Path) -> None:
    plain = Studio(tiny_weights, tmp_path)
    (tile,) = plain.generate(request()).tiles
    assert (tile.detailed, tile.size) == (False, 28)
    with pytest.raises(RequestError, match="no detail model"):
        plain.variations(tile.image_id, 1)
    with pytest.raises(WeightsError, match="train detail"):
        plain.evaluate_detail(4, 1, 0)


def test_the_same_request_gives_the_same_bytes(studio: Studio, tmp_path: Path) -> None:
    (first,) = studio.generate(request(seed=3)).tiles
    content = studio.store.get(first.image_id).path.read_bytes()
    studio._store = ImageStore(tmp_path / "other")
    two = studio.generate(request(seed=2, count=2)).tiles
    assert two[1].image_id == first.image_id
    assert studio.store.get(first.image_id).path.read_bytes() == content


def test_the_text_of_a_tile_is_encoded_once_for_layout_and_detail(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    encode = TextEncoder.encode

    def counted(encoder: TextEncoder, texts: Sequence[str]) -> TextContext:
        asked.append(list(texts))
        return encode(encoder, texts)

    monkeypatch.setattr(TextEncoder, "encode", counted)
    wanted = request(seed=3).model_copy(update={"description": "carcinoma, very dark stain"})
    result = studio.generate(wanted)
    assert result.tiles
    assert len(asked) == len(result.tiles) + len(result.rejected)


def test_variations_share_the_layout_and_differ(studio: Studio) -> None:
    (tile,) = studio.generate(request()).tiles
    made = studio.variations(tile.image_id, 2)
    assert [each.variation for each in made] == [1, 2]
    assert {each.layout_id for each in made} == {tile.layout_id}
    assert {each.tissue for each in made} == {"TUM"}
    assert len({tile.image_id, *(each.image_id for each in made)}) == 3
    assert tile.layout_id is not None
    assert studio.variations(tile.layout_id, 1) == made[:1]


def test_steps_of_the_detail_can_be_cancelled(studio: Studio) -> None:
    steps = 0

    def cancel() -> None:
        nonlocal steps
        steps += 1
        if steps == tiny.STEPS + 2:  # in the middle of the detail of the first tile
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        studio.generate(request(), check_cancelled=cancel)
    assert studio.store.ids() == ()


def prediction(code: str, confidence: float = 0.95) -> Prediction:
    return Prediction(code, confidence, {code: confidence}, 0.5)


@pytest.mark.parametrize(
    "after", [None, prediction("STR"), prediction("TUM", 0.5)], ids=["no picture", "other", "unsure"]
)
def test_a_tile_that_detail_spoils_is_no_verified_tile(after: Prediction | None) -> None:
    tile = np.zeros((1, 28, 28, 3), dtype=np.uint8)

    def add_detail(layout: npt.NDArray[np.uint8], seed: int) -> Detailed | None:
        if seed == 1:
            return Detailed(layout, prediction("TUM"), 0.1)
        return None if after is None else Detailed(layout, after, 0.1)

    loop = LoopRequest(by_code("TUM"), 1, 0, 0.9, 5)
    attempts = list(
        verified_tiles(loop, lambda seeds: tile, lambda tiles: [prediction("TUM")], add_detail=add_detail)
    )
    assert [attempt.rejected_for for attempt in attempts] == ["lost by detail", None]
    assert attempts[0].detailed is None
    assert attempts[1].detailed is not None


def test_detail_is_not_added_to_what_is_discarded() -> None:
    def never(layout: npt.NDArray[np.uint8], seed: int) -> Detailed | None:
        raise AssertionError

    tile = np.zeros((1, 28, 28, 3), dtype=np.uint8)
    loop = LoopRequest(by_code("TUM"), 1, 0, 0.9, 2)
    attempts = list(
        verified_tiles(loop, lambda seeds: tile, lambda tiles: [prediction("STR")], add_detail=never)
    )
    assert [attempt.rejected_for for attempt in attempts] == ["other tissue"] * 2


def test_attributes_of_another_tile_are_noticed() -> None:
    tile = tiny.tissue_like(0)
    assert same_attributes(tile, tile)
    assert same_attributes(tile, (tile.astype(int) + (tile < 255)).astype(np.uint8))
    assert not same_attributes(tile, (tile * 0.7).astype(np.uint8))


def test_a_layout_without_a_picture_is_not_rendered(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathsynth import detailer as module

    def impossible(*_: object) -> None:
        raise ProjectionError("No picture.")

    monkeypatch.setattr(module, "project", impossible)
    detailer = Detailer(tiny.detail_pipeline(), tiny.contexts(1))
    assert detailer.checked(tiny.tissue_like(0), tiny.contexts(1), 0, lambda tiles: []) is None


def test_the_command_makes_variations(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tile,) = studio.generate(request()).tiles
    monkeypatch.setattr(terminal, "open_studio", lambda: studio)
    assert cli.main(["variations", tile.image_id, "-n", "1", "--out", str(tmp_path / "out")]) == 0
    assert "1 of 1 variations verified" in capsys.readouterr().out
    (copy,) = (tmp_path / "out").iterdir()
    with Image.open(copy) as image:
        assert image.size == (224, 224)
    assert cli.main(["variations", "0" * 16]) == 1
    assert "no stored image" in capsys.readouterr().err


# Evaluation


def detailer() -> Detailer:
    return Detailer(tiny.detail_pipeline(), tiny.contexts(1))


def small_space(_: object = None) -> FeatureSpace:
    def embed(tiles: npt.NDArray[np.uint8]) -> torch.Tensor:
        values = torch.from_numpy(tiles).float()
        return torch.stack([values.mean((1, 2, 3)), values.std((1, 2, 3)), values[:, ::2].mean((1, 2, 3))], 1)

    return FeatureSpace("three figures", embed)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DetailReport:
    """A report on drawn tiles, with sheets in `tmp_path / "sheets"`."""
    monkeypatch.setattr(detail_quality, "imagenet_space", lambda: None)
    monkeypatch.setattr(detail_quality, "validator_space", small_space)
    real = np.stack([tiny.tissue_like(seed, 224) for seed in range(6)])
    sets = compare(real, ["one"] * 2 + ["other"] * 4, detailer(), tiny.contexts(10), tiny.validator(), 0)
    board = (np.indices((28, 28)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., np.newaxis].repeat(3, axis=2)
    layouts = np.stack([*(to_native(tile) for tile in real[:2]), board])
    found = on_layouts(layouts, detailer(), tiny.contexts(10), tiny.validator(), 0)
    write_detail_sheets(sets, found, tmp_path / "sheets")
    return measure_detail(sets, found, "drawings", tiny.validator(), 0, "abc", "def")


def test_the_report_tells_detail_from_enlargement(measured: DetailReport, tmp_path: Path) -> None:
    assert (measured.n, measured.layouts, measured.failed) == (6, 3, 1)
    assert measured.class_unchanged == pytest.approx(2 / 3)
    assert measured.rmse_max is not None
    assert 0 <= measured.rmse_max <= 1
    assert measured.spectrum.keys() == measured.gradients.keys() == {"detailed", "lanczos", "autoencoder"}
    assert measured.spectrum["lanczos"] > 0.5  # an enlargement has no fine detail
    assert measured.gradients["lanczos"] > 1
    assert set(measured.nuclei) == {"TUM"}
    assert measured.nuclei["TUM"].n == 6
    assert {name: one.n for name, one in measured.nuclei["TUM"].sources.items()} == {"one": 2, "other": 4}
    parts = measured.nuclei["TUM"].sources.values()
    assert measured.nuclei["TUM"].detailed == pytest.approx(sum(p.n * p.detailed for p in parts) / 6)
    assert measured.nuclei["TUM"].real > measured.nuclei["TUM"].lanczos
    assert isinstance(measured.spaces[0].detailed, Distances)
    assert 5 < measured.psnr < 40
    assert 0 < measured.ssim < 1
    names = sorted(path.name for path in (tmp_path / "sheets").iterdir())
    assert names == ["layout-TUM.png", "real-TUM.png"]


def test_the_report_is_told_in_the_card_and_in_the_terminal(
    measured: DetailReport, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(weights, folder)
    (folder / "reports").mkdir()
    (folder / "reports" / "detail.json").write_text(measured.model_dump_json(), encoding="utf-8")
    write_manifest(folder, {})
    card = write_model_card(folder).read_text(encoding="utf-8")
    assert "Detail against held-out real tiles" in card
    assert "drawings" in card
    assert "measure again" in card
    assert "no count of cells means anything" in card
    (folder / "reports" / "detail.json").write_text('{"what": "detail"}', encoding="utf-8")
    write_manifest(folder, {})
    with pytest.raises(WeightsError, match="not a report"):
        write_model_card(folder)
    evaluate_commands._print_detail_report(measured)
    assert "66.67%" in capsys.readouterr().out


def test_too_few_real_tiles_are_refused() -> None:
    real = np.zeros((2, 224, 224, 3), np.uint8)
    with pytest.raises(DataError, match="held-out tiles"):
        compare(real, ["one"] * 2, detailer(), tiny.contexts(10), tiny.validator(), 0)


# Nuclei


def discs(number: int, radius: float) -> npt.NDArray[np.uint8]:
    """A pink tile (112, 112, 3) with soft dark discs on a grid."""
    rows, columns = np.mgrid[:112, :112]
    amount = np.zeros((112, 112))
    for i in range(number):
        row, column = 14 + 28 * (i // 4), 14 + 28 * (i % 4)
        amount = np.maximum(amount, np.clip(radius + 0.5 - np.hypot(rows - row, columns - column), 0, 1))
    pink, dark = np.array([220.0, 150.0, 190.0]), np.array([70.0, 40.0, 110.0])
    picture: npt.NDArray[np.uint8] = (pink + amount[..., np.newaxis] * (dark - pink)).round().astype(np.uint8)
    return picture


@pytest.mark.parametrize("number", [0, 5, 16])
def test_nuclei_are_counted(number: int) -> None:
    assert count(discs(number, 5)) == number


def test_nuclei_are_measured() -> None:
    assert np.median(diameters(discs(16, 5))) == pytest.approx(10, abs=1.2)
    assert np.median(diameters(discs(16, 8))) == pytest.approx(16, abs=1.2)


def test_gradients_grow_with_detail() -> None:
    sharp = discs(16, 5)[np.newaxis]
    blurred = ((sharp.astype(int) + np.roll(sharp, 3, 1) + np.roll(sharp, 3, 2)) // 3).astype(np.uint8)
    assert np.quantile(gradients(sharp), 0.99) > np.quantile(gradients(blurred), 0.99)
