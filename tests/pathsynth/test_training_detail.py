"""Training of the detail model, in a few steps of networks of toy size on drawn pictures."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn

from pathsynth.detail import (
    DetailPipeline,
    load_autoencoder,
    load_detail_pipeline,
    predict_detail_velocity,
)
from pathsynth.errors import DataError, TrainingError
from pathsynth.images import to_native
from pathsynth.realism import radial_spectrum
from pathsynth.text import TextEncoder
from pathsynth.tissues import TISSUES
from pathsynth.training import detail_decoder, hires
from pathsynth.training.detail import (
    AutoencoderConfig,
    AutoencoderTask,
    CropConfig,
    DetailConfig,
    DetailTask,
    draw,
    seen_as,
)
from pathsynth.training.detail_adversarial import (
    AdversarialDetailConfig,
    AdversarialDetailTask,
    DiffusionFeatures,
)
from pathsynth.training.detail_decoder import DecoderConfig, DecoderTask
from pathsynth.training.engine import AdversarialTask, OptimConfig, Run, run
from pathsynth.training.hires import HiresConfig, HiresTiles, Source, Stain, restain
from pathsynth.training.perceptual import FeatureDistance, PairedSpread, PatchRival, SpectrumDistance, hinge
from pathsynth.validator import to_model_range
from tests import tiny

OPTIM = OptimConfig(
    steps=4, batch_size=2, learning_rate=5e-3, warmup_steps=0, ema_decay=0.5, precision="float32"
)
STAIN = Stain(haematoxylin=(0.51, 0.75, 0.41), eosin=(0.21, 0.87, 0.44), maximum=(1.9, 1.1))
CONFIG = HiresConfig(
    kind="hires",
    held_out=0.25,
    stain=STAIN,
    sources={
        "slide": Source(edge=64, scale=1.0, share=1.0),
        "small": Source(edge=40, scale=0.8, share=1.0, same_above=0.9, stain="tile"),
        "grey": Source(edge=28, scale=8 / 7, share=1.0),
    },
)
CROPS = CropConfig(edge=64, grey_edge=32, grey_share=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn tiles: 12 of a slide, 4 in two turned copies each, and 8 in grey."""
    made = tmp_path_factory.mktemp("hires")
    rows = []

    def save(dataset: str, name: str, picture: npt.NDArray[np.uint8], mode: str) -> None:
        (made / dataset).mkdir(exist_ok=True)
        image = Image.fromarray(picture).convert(mode)
        image.save(made / dataset / name)
        rows.append((f"{dataset}/{name}", dataset, image.width, image.height, mode))

    for i in range(12):
        save("slide", f"{i:02}.png", tiny.tissue_like(i, 64), "RGB")
    for i in range(4):
        tile = (tiny.tissue_like(100 + i, 40) * np.array([1, 1 - 0.2 * i, 1 - 0.1 * i])).astype(np.uint8)
        save("small", f"{i}-turned.png", np.ascontiguousarray(np.rot90(tile)), "RGB")
        save("small", f"{i}.png", tile, "RGB")
    for i in range(8):
        save("grey", f"{i}.png", tiny.tissue_like(200 + i, 28), "L")
    with (made / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file", "dataset", "width", "height", "mode"), *rows])
    return made


@pytest.fixture(scope="module")
def tiles(folder: Path) -> HiresTiles:
    return HiresTiles(folder, CONFIG)


# The tiles


def test_tiles_are_scaled_and_parted(tiles: HiresTiles) -> None:
    assert {name: len(found) for name, found in tiles.colour.tiles.items()} == {"slide": 9, "small": 6}
    assert {name: len(found) for name, found in tiles.held_colour.tiles.items()} == {"slide": 3, "small": 2}
    assert (len(tiles.grey), len(tiles.held_grey)) == (6, 2)
    assert {tile.shape for tile in tiles.colour.tiles["small"]} == {(32, 32, 3)}
    assert {tile.shape for tile in tiles.grey.tiles["grey"]} == {(32, 32, 3)}


def test_turned_copies_are_held_out_together(tiles: HiresTiles) -> None:
    names = [Path(file).stem for file in tiles.held_out_files if file.startswith("small/")]
    assert len({name.removesuffix("-turned") for name in names}) == 1
    assert len(names) == 2


def test_what_is_held_out_does_not_depend_on_the_order() -> None:
    names, groups = [f"t{i}" for i in range(40)], np.arange(40) // 2
    out = hires.held_out(names, groups, 0.2)
    again = hires.held_out(names[::-1], groups[::-1], 0.2)
    assert out.sum() == 8
    assert (out == again[::-1]).all()
    assert all(out[i] == out[i + 1] for i in range(0, 40, 2))


def test_a_group_larger_than_the_share_is_never_held_out() -> None:
    groups = np.array([0] * 30 + [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    out = hires.held_out([f"t{i}" for i in range(40)], groups, 0.1)
    assert out.sum() == 4
    assert not out[:30].any()


def test_reading_only_what_is_held_out_gives_the_same_tiles(folder: Path, tiles: HiresTiles) -> None:
    alone = HiresTiles(folder, CONFIG, only_held_out=True)
    assert len(alone.colour) == len(alone.grey) == 0
    assert alone.held_out_files == tiles.held_out_files
    assert alone.sha256 == tiles.sha256
    for kept in ("held_colour", "held_grey"):
        one, other = getattr(alone, kept).tiles, getattr(tiles, kept).tiles
        assert all(np.array_equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True))


def test_grey_tiles_have_colours_of_their_luminance(tiles: HiresTiles) -> None:
    tile = tiles.grey.tiles["grey"][0].astype(int)
    dark = tile[hires.luminance(tile.astype(np.uint8)) < 150]
    assert len(dark)
    assert (dark[:, 1] < dark[:, 0]).mean() > 0.9  # purple, not grey
    assert (dark[:, 1] < dark[:, 2]).mean() > 0.9


def test_restaining_moves_a_tile_to_the_wanted_stain() -> None:
    random = np.random.default_rng(0)
    other = Stain(haematoxylin=(0.65, 0.70, 0.29), eosin=(0.07, 0.99, 0.11), maximum=(1.2, 0.8))
    amounts = random.random((64, 64, 2)) * np.array(other.maximum)
    amounts[random.random((64, 64)) < 0.3] *= np.array([0.02, 1.0])
    density = amounts @ np.array([other.haematoxylin, other.eosin])
    tile = (255 * np.exp(-density)).astype(np.uint8)
    found = hires.measure_stain(tile.reshape(-1, 3))
    assert found is not None
    moved = hires.measure_stain(restain(tile, found, STAIN).reshape(-1, 3))
    assert moved is not None
    assert np.allclose(moved.haematoxylin, STAIN.haematoxylin, atol=0.06)
    assert np.allclose(moved.maximum, STAIN.maximum, rtol=0.1)
    assert not np.allclose(found.haematoxylin, STAIN.haematoxylin, atol=0.06)


def test_glass_has_no_stain_and_restaining_to_itself_changes_little() -> None:
    assert hires.measure_stain(np.full((5000, 3), 250, dtype=np.uint8)) is None
    amounts = np.random.default_rng(0).random((64, 64, 2)) * np.array(STAIN.maximum)
    density = amounts @ np.array([STAIN.haematoxylin, STAIN.eosin])
    tile = (255 * np.exp(-density)).round().astype(np.uint8)
    assert np.abs(restain(tile, STAIN, STAIN).astype(int) - tile).max() <= 3


def test_crops_are_drawn_repeatably_and_fit(tiles: HiresTiles) -> None:
    batches = [draw(tiles, CROPS, 4, torch.Generator().manual_seed(seed)) for seed in range(8)]
    assert {batch.is_grey for batch in batches} == {True, False}
    for batch in batches:
        edge = 32 if batch.is_grey else 64
        assert batch.tiles.shape == (4, 3, edge, edge)
        assert -1 <= batch.tiles.min() < batch.tiles.max() <= 1
    again = draw(tiles, CROPS, 4, torch.Generator().manual_seed(0))
    assert torch.equal(again.tiles, batches[0].tiles)


def test_crops_larger_than_every_tile_are_refused(tiles: HiresTiles) -> None:
    with pytest.raises(TrainingError, match=r"`crops\.edge`"):
        draw(tiles, CropConfig(edge=128, grey_share=0), 2, torch.Generator())


def test_a_folder_must_be_named_and_have_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(hires.HIRES_VARIABLE, raising=False)
    with pytest.raises(DataError, match="PATHSYNTH_HIRES"):
        HiresTiles()
    monkeypatch.setenv(hires.HIRES_VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match=r"manifest\.csv"):
        HiresTiles()
    (tmp_path / "manifest.csv").write_text("file,dataset,mode\na.png,unheard,RGB\n", encoding="utf-8")
    with pytest.raises(DataError, match="unheard"):
        HiresTiles()
    (tmp_path / "manifest.csv").write_text("file,dataset,mode\na.png,slide,RGB\n", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        HiresTiles(config=CONFIG)


# The autoencoder


def features() -> FeatureDistance:
    torch.manual_seed(5)
    return FeatureDistance([nn.Conv2d(3, 4, 3, stride=2), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3))])


def autoencoder_task(tiles: HiresTiles, **fields: Any) -> AutoencoderTask:
    shape: dict[str, Any] = {
        "detail_channels": tiny.DETAIL_CHANNELS,
        "channels": tiny.AUTOENCODER_CHANNELS,
        "blocks": (1, 1, 1),
    }
    defaults: dict[str, Any] = {"optim": OPTIM, "crops": CROPS, "perceptual": 0.0, "rival_width": 4}
    config = AutoencoderConfig(kind="detail-autoencoder", **(shape | defaults | fields))
    task = AutoencoderTask(config, tiles)
    task._features = features()
    return task


def test_steps_on_one_batch_lower_the_loss(tiles: HiresTiles) -> None:
    task = autoencoder_task(tiles, optim=OPTIM.model_copy(update={"steps": 40}), penalty=0.0)
    batch = draw(tiles, CROPS.model_copy(update={"grey_share": 0.0}), 2, torch.Generator().manual_seed(0))
    task.batch = lambda size, generator: batch  # type: ignore[method-assign]
    losses = [state.loss for state in Run(task, task.config.optim).steps()]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


def checkpoint(folder: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    return saved


def test_a_resumed_run_with_a_rival_ends_as_an_uninterrupted_one(tiles: HiresTiles, tmp_path: Path) -> None:
    def task() -> AutoencoderTask:
        return autoencoder_task(tiles, rival=0.1, rival_from=1)

    run(task(), OPTIM, tmp_path / "whole")
    run(task(), OPTIM, tmp_path / "parts", max_minutes=0)
    assert checkpoint(tmp_path / "parts")["state"]["step"] == 1
    run(task(), OPTIM, tmp_path / "parts", resume=True)
    whole, parts = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    for part in ("model", "average"):
        assert all(torch.equal(value, parts[part][name]) for name, value in whole[part].items()), part
    rival = whole["rival"]["model"]
    assert int(rival["steps"]) == 4
    assert all(torch.equal(value, parts["rival"]["model"][name]) for name, value in rival.items())


def test_the_rival_learns_by_its_own_optimiser_and_the_model_from_it(tiles: HiresTiles) -> None:
    task = autoencoder_task(tiles, rival=0.1)
    assert isinstance(task, AdversarialTask)
    before = {name: weight.clone() for name, weight in task.rival.named_parameters()}
    runner = Run(task, OPTIM)
    for _ in runner.steps():
        pass
    after = {name: weight for name, weight in task.rival.named_parameters() if weight.dim() == 4}
    assert after
    assert not any(torch.equal(weight, before[name]) for name, weight in after.items())
    assert all(weight.requires_grad and weight.grad is None for weight in task.rival.parameters())
    generator = torch.Generator().manual_seed(3)
    batch = task.batch(2, generator)
    state = generator.get_state()
    with_rival = task.loss(task.model, batch, generator)
    task.config = task.config.model_copy(update={"rival": 0.0})
    assert with_rival != task.loss(task.model, batch, generator.set_state(state))


def test_counting_operations_leaves_the_rival_as_it_was(tiles: HiresTiles) -> None:
    task = autoencoder_task(tiles, rival=0.1)
    runner = Run(task, OPTIM)
    before = {name: value.clone() for name, value in task.rival.state_dict().items()}
    assert runner._count_flops(task.batch(2, torch.Generator().manual_seed(0))) > 0
    after = task.rival.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(weight.grad is None for weight in task.rival.parameters())


def test_of_grey_tiles_the_luminance_alone_counts() -> None:
    one = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([0.587, -0.299, 0.0]).view(1, 3, 1, 1)  # another colour of the same luminance
    assert torch.allclose(seen_as(one, True), seen_as(one + 0.1 * shift, True), atol=1e-6)
    assert torch.equal(seen_as(one, False), one)


def test_feature_distances_are_zero_for_the_same_and_their_network_stays() -> None:
    distance = features().train()
    one = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert distance(one, one).item() == 0
    moved = distance(one, one.detach().flip(3))
    moved.backward()
    assert moved.item() > 0
    assert one.grad is not None
    assert not distance.training
    assert not any(weight.requires_grad for weight in distance.parameters())


def test_spectra_are_compared_as_the_report_has_them() -> None:
    random = np.random.default_rng(0)
    one, other = random.integers(60, 190, (2, 4, 64, 64, 3), dtype=np.uint8)
    other = (other // 2 + 40).astype(np.uint8)
    wanted = np.abs(np.log(radial_spectrum(one)) - np.log(radial_spectrum(other))).mean()
    distance = SpectrumDistance()
    assert float(distance(to_model_range(one), to_model_range(other))) == pytest.approx(wanted, rel=1e-3)
    flat = torch.zeros(1, 3, 32, 32, requires_grad=True)
    distance(flat, torch.zeros(1, 3, 32, 32)).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_the_hinge_is_low_when_patches_are_told_apart() -> None:
    rival = PatchRival(4)
    assert rival(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 8, 8)
    ones = torch.ones(2, 1, 8, 8)
    assert hinge(2 * ones, -2 * ones) == 0
    assert hinge(-ones, ones) == 2


def test_a_finished_autoencoder_run_says_what_was_held_out(tiles: HiresTiles, tmp_path: Path) -> None:
    state = run(autoencoder_task(tiles), OPTIM, tmp_path)
    assert {"val_error", "val_psnr", "val_perceptual"} == state.metrics.keys()
    assert (tmp_path / "held-out.txt").read_text(encoding="utf-8").split() == tiles.held_out_files
    assert load_autoencoder(tmp_path / "autoencoder").config.detail_channels == tiny.DETAIL_CHANNELS


# The diffusion


def detail_task(tiles: HiresTiles, encoder: TextEncoder, **fields: Any) -> DetailTask:
    defaults: dict[str, Any] = {"optim": OPTIM, "crops": CROPS, "unet": tiny.detail_unet_config()}
    config = DetailConfig(kind="detail", autoencoder=Path("unused"), **(defaults | fields))
    return DetailTask(config, tiny.autoencoder(), tiles, encoder, tiny.validator())


def test_the_autoencoder_stays_frozen_while_the_network_learns(
    tiles: HiresTiles, encoder: TextEncoder, tmp_path: Path
) -> None:
    task = detail_task(tiles, encoder, steps=3)
    frozen = {name: weight.clone() for name, weight in task.pipeline.autoencoder.state_dict().items()}
    network = {name: weight.clone() for name, weight in task.model.state_dict().items()}
    state = run(task, OPTIM, tmp_path)
    assert np.isfinite(state.metrics["val_loss"])
    after = task.pipeline.autoencoder.state_dict()
    assert all(torch.allclose(weight, after[name], atol=1e-3) for name, weight in frozen.items())
    assert any(not torch.equal(weight, task.model.state_dict()[name]) for name, weight in network.items())
    pipeline = load_detail_pipeline(tmp_path / "detail")
    assert pipeline.config.steps == 3
    saved = pipeline.autoencoder.state_dict()
    assert all(torch.equal(weight.half().float(), saved[name]) for name, weight in frozen.items())


def test_detail_channels_are_standardised_by_the_training_tiles(
    tiles: HiresTiles, encoder: TextEncoder
) -> None:
    task = detail_task(tiles, encoder)
    crops = task.train.colour.fitting(64).draw(8, 64, 0.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        detail = task.pipeline.standardise(task.pipeline.autoencoder.encode(crops))
    assert detail.mean((0, 2, 3)).abs().max() < 0.5
    assert detail.std((0, 2, 3)) == pytest.approx(1, abs=0.4)


def test_steps_on_one_batch_lower_the_loss_of_the_diffusion(tiles: HiresTiles, encoder: TextEncoder) -> None:
    task = detail_task(tiles, encoder, optim=OPTIM.model_copy(update={"steps": 40}))
    batch = task.batch(2, torch.Generator().manual_seed(0))
    task.batch = lambda size, generator: batch  # type: ignore[method-assign]
    losses = [state.loss for state in Run(task, task.config.optim).steps()]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])


def test_a_resumed_diffusion_ends_as_an_uninterrupted_one(
    tiles: HiresTiles, encoder: TextEncoder, tmp_path: Path
) -> None:
    run(detail_task(tiles, encoder), OPTIM, tmp_path / "whole")
    run(detail_task(tiles, encoder), OPTIM, tmp_path / "parts", max_minutes=0)
    run(detail_task(tiles, encoder), OPTIM, tmp_path / "parts", resume=True)
    whole, parts = checkpoint(tmp_path / "whole")["model"], checkpoint(tmp_path / "parts")["model"]
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_captions_are_attributes_and_prompts_of_what_the_validator_sees(
    tiles: HiresTiles, encoder: TextEncoder
) -> None:
    thumbnails = np.stack([to_native(tiny.tissue_like(seed, 224)) for seed in range(40)])
    prompt = TISSUES[tiny.ALWAYS.index].prompt
    generator = torch.Generator().manual_seed(0)
    texts = detail_task(tiles, encoder, prompts=0.5).describe(thumbnails, generator)
    named = [text for text in texts if text.startswith(prompt)]
    assert 8 < len(named) < 32
    assert 0 < sum(text == prompt for text in named) < len(named)
    never = detail_task(tiles, encoder, prompts=0.0).describe(thumbnails, generator)
    assert not any(prompt in text for text in never)
    assert any("nuclei" in text for text in never)


def test_a_network_of_other_channels_is_refused(tiles: HiresTiles, encoder: TextEncoder) -> None:
    with pytest.raises(TrainingError, match=r"`unet\.in_channels` must be 5"):
        detail_task(tiles, encoder, unet=tiny.unet_config())


# The decoder, once more


def decoder_task(
    tiles: HiresTiles, encoder: TextEncoder, pipeline: DetailPipeline | None = None, **fields: Any
) -> DecoderTask:
    defaults: dict[str, Any] = {"optim": OPTIM, "crops": CROPS, "perceptual": 0.0, "rival_width": 4}
    config = DecoderConfig(kind="detail-decoder", pipeline=Path("unused"), **(defaults | fields))
    task = DecoderTask(config, pipeline or tiny.detail_pipeline(), tiny.validator(), tiles, encoder)
    task._features = features()
    return task


def test_only_the_decoder_learns_from_what_is_sampled(
    tiles: HiresTiles, encoder: TextEncoder, tmp_path: Path
) -> None:
    task = decoder_task(tiles, encoder)
    before = {
        part: {name: weight.clone() for name, weight in module.state_dict().items()}
        for part, module in task.pipeline.components.items()
        if isinstance(module, nn.Module)
    }
    state = run(task, OPTIM, tmp_path)
    assert {"val_error", "val_psnr", "val_spectrum", "val_spectrum_sampled"} == state.metrics.keys()
    pipeline = load_detail_pipeline(tmp_path / "detail")
    for part, weights in before.items():
        after = getattr(pipeline, part).state_dict()
        same = {name for name, weight in weights.items() if torch.equal(weight.half().float(), after[name])}
        changed = {name for name in weights.keys() - same if weights[name].dim() == 4}
        assert all(name.startswith("decoder.") for name in weights.keys() - same)
        assert bool(changed) == (part == "autoencoder")
    assert (tmp_path / "held-out.txt").read_text(encoding="utf-8").split() == tiles.held_out_files


def test_the_decoder_sees_encoded_and_sampled_detail(tiles: HiresTiles, encoder: TextEncoder) -> None:
    task = decoder_task(tiles, encoder, detail_noise=0.0)
    seen: list[torch.Tensor] = []
    task.model.register_forward_pre_hook(lambda module, given: seen.append(given[1].detach()))
    batch = task.batch(4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        encoded = task.pipeline.autoencoder.encode(batch.tiles)
    task.loss(task.model, batch, torch.Generator().manual_seed(1))
    assert torch.allclose(seen[0][:2], encoded[:2], atol=1e-5)
    assert (seen[0][2:] - encoded[2:]).abs().max() > 0.1


def test_the_diffusion_may_learn_through_the_decoder(
    tiles: HiresTiles, encoder: TextEncoder, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="detail-adversarial"):
        decoder_task(tiles, encoder, diffusion=True)
    pipeline = tiny.detail_pipeline()
    pipeline.sample_stochastically()
    before = {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}
    task = decoder_task(tiles, encoder, pipeline=pipeline, diffusion=True, steps=2)
    state = run(task, OPTIM, tmp_path)
    assert "val_spectrum_sampled" in state.metrics
    saved = load_detail_pipeline(tmp_path / "detail")
    assert saved.config.steps == 2
    after = saved.unet.state_dict()
    average = task.pipeline.unet.state_dict()
    learnt = {name for name in before if not torch.equal(before[name], average[name])}
    assert {name.partition(".")[0] for name in learnt} >= {"conv_in", "conv_out", "mid_block"}
    assert all(torch.equal(average[name].half().float(), after[name]) for name in before)
    assert all(weight.grad is None for weight in task.pipeline.autoencoder.encoder.parameters())


def test_the_rival_may_see_features_which_stay_as_they_are(
    tiles: HiresTiles, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [nn.Conv2d(3, 5, 3, 2, padding=1), nn.Conv2d(5, 7, 3, 2, padding=1)]
    asked: list[bool] = []

    def packaged(other: bool = False) -> list[nn.Module]:
        asked.append(other)
        return list(stages)

    monkeypatch.setattr(detail_decoder, "imagenet_stages", packaged)
    task = decoder_task(tiles, encoder, rival_features=True, spectrum=0.0, encoded=0.01)
    assert asked == [True]
    before = [weight.clone() for stage in stages for weight in stage.parameters()]
    for weight in [*task.rival.get_submodule("patches.layers").children()][-1].parameters():
        nn.init.zeros_(weight)  # only what looks at features is left to say anything
    for _ in Run(task, OPTIM).steps():
        pass
    after = [weight for stage in stages for weight in stage.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    heads = task.rival.get_submodule("other")
    assert any(weight.abs().sum() > 0 for weight in heads.parameters())
    batch = task.batch(4, torch.Generator().manual_seed(0))
    assert len(batch.context) == 3  # one tile at least is encoded, however small the share
    task.loss(task.model, batch, torch.Generator().manual_seed(0)).backward()
    gradients = [weight.grad for weight in task.model.parameters() if weight.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


def test_sampled_detail_may_be_held_to_the_spread_of_real_features(
    tiles: HiresTiles, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [nn.Conv2d(3, 5, 3, 2, padding=1), nn.Conv2d(5, 7, 3, 2, padding=1)]
    head = nn.Conv2d(7, 11, 3, 2, padding=1)
    monkeypatch.setattr(detail_decoder, "imagenet_stages", lambda other=False: list(stages))
    monkeypatch.setattr(detail_decoder, "imagenet_head", lambda: head)
    losses = []
    for weight in (0.0, 1.0):
        task = decoder_task(tiles, encoder, rival_features=True, rival_from=99, spread=weight)
        for i in range(10):
            batch = task.batch(2, torch.Generator().manual_seed(i))
            loss = task.loss(task.model, batch, torch.Generator().manual_seed(i))
        losses.append(loss)
    assert losses[0].item() != losses[1].item()
    assert [each.shape for each in task._spread._made] == [(10, 10), (10, 14), (10, 11)]
    losses[1].backward()
    assert all(weight.grad is None for weight in head.parameters())
    with pytest.raises(ValidationError, match="rival_features = true"):
        decoder_task(tiles, encoder, spread=1.0)


def test_paired_spread_draws_to_real_features_and_is_nothing_where_there_is_nothing_to_tell() -> None:
    random = torch.Generator().manual_seed(0)
    shifted, same = PairedSpread(), PairedSpread()
    offset = torch.tensor([2.0, 0.0, 0.0])
    pairs = [torch.randn(2, 4, 3, generator=random) for _ in range(60)]
    assert float(shifted([pairs[0][0] + offset], [pairs[0][0]])) == 0  # nothing to compare with yet
    apart = [float(shifted([real + offset], [real])) for real, _ in pairs]
    alike = [float(same([made], [real])) for real, made in pairs]
    assert np.mean(apart[10:]) > 0.3
    assert abs(np.mean(alike[10:])) < 0.1
    made = offset.repeat(4, 1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(shifted([made], [torch.zeros(4, 3)]), made)
    assert (gradient[:, 0] > 0).all()  # a step against it leads back to the real ones
    assert len(shifted._real[0]) == 96


def test_features_that_are_not_installed_are_one_sentence(
    tiles: HiresTiles, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detail_decoder, "imagenet_stages", lambda other=False: None)
    with pytest.raises(TrainingError, match="rival_features = false"):
        decoder_task(tiles, encoder, rival_features=True)


def test_a_resumed_decoder_ends_as_an_uninterrupted_one(
    tiles: HiresTiles, encoder: TextEncoder, tmp_path: Path
) -> None:
    run(decoder_task(tiles, encoder, rival_from=1), OPTIM, tmp_path / "whole")
    run(decoder_task(tiles, encoder, rival_from=1), OPTIM, tmp_path / "parts", max_minutes=0)
    run(decoder_task(tiles, encoder, rival_from=1), OPTIM, tmp_path / "parts", resume=True)
    whole, parts = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())


def test_a_batch_without_a_half_is_refused(tiles: HiresTiles, encoder: TextEncoder) -> None:
    with pytest.raises(TrainingError, match=r"`optim\.batch_size`"):
        decoder_task(tiles, encoder, optim=OPTIM.model_copy(update={"batch_size": 1}))


# The diffusion against a rival


def rival_task(tiles: HiresTiles, encoder: TextEncoder, **fields: Any) -> AdversarialDetailTask:
    defaults: dict[str, Any] = {"optim": OPTIM, "crops": CropConfig(edge=64), "rival_width": 4}
    config = AdversarialDetailConfig(
        kind="detail-adversarial", pipeline=Path("unused"), **(defaults | fields)
    )
    return AdversarialDetailTask(config, tiny.detail_pipeline(), tiny.validator(), tiles, encoder)


def test_only_the_diffusion_learns_against_the_rival(
    tiles: HiresTiles, encoder: TextEncoder, tmp_path: Path
) -> None:
    task = rival_task(tiles, encoder)
    assert isinstance(task, AdversarialTask)
    frozen = [*task._features.parameters(), *task.pipeline.autoencoder.parameters()]
    before = [weight.clone() for weight in frozen]
    first = {name: weight.clone() for name, weight in task.pipeline.unet.state_dict().items()}
    state = run(task, OPTIM, tmp_path)
    assert {"val_spectrum", "val_deviation"} == state.metrics.keys()
    # The autoencoder was saved in half precision.
    assert all(torch.equal(a.half(), b.half()) for a, b in zip(before, frozen, strict=True))
    pipeline = load_detail_pipeline(tmp_path / "detail")
    after = pipeline.unet.state_dict()
    assert any(not torch.equal(weight.half().float(), after[name]) for name, weight in first.items())
    assert pipeline.scheduler.config.stochastic_sampling
    assert (pipeline.config.steps, pipeline.config.guidance) == (4, 1.0)
    assert (tmp_path / "held-out.txt").read_text(encoding="utf-8").split() == tiles.held_out_files


def test_a_tile_of_fresh_noise_depends_on_its_own_generator_alone(
    tiles: HiresTiles, encoder: TextEncoder, tmp_path: Path
) -> None:
    pipeline = rival_task(tiles, encoder).pipeline
    thumbnails, context = torch.zeros(2, 3, 8, 8), tiny.contexts(2)

    def make(chosen: slice, seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipeline(thumbnails[chosen], context[chosen], tiny.contexts(1), generators)

    both, again = make(slice(2), [1, 2]), make(slice(2), [1, 2])
    alone, other = make(slice(1, 2), [2]), make(slice(1, 2), [3])
    assert torch.equal(both, again)
    assert torch.allclose(both[1:], alone, atol=1e-4)
    assert not torch.allclose(alone, other, atol=1e-2)


def test_features_are_those_of_the_diffusion(tiles: HiresTiles, encoder: TextEncoder) -> None:
    task = rival_task(tiles, encoder)
    unet, features = task.pipeline.unet, DiffusionFeatures(task.pipeline)
    context, time = tiny.contexts(2), torch.tensor([100.0, 300.0])
    noisy, thumbnails = torch.randn(2, 2, 8, 8), torch.randn(2, 3, 8, 8)
    middle: list[torch.Tensor] = []
    unet.mid_block.register_forward_hook(lambda module, given, made: middle.append(made))
    with torch.no_grad():
        predict_detail_velocity(unet, noisy, thumbnails, time, context)
        seen = features(noisy, thumbnails, time, context)
    assert torch.allclose(seen[-1], middle[0], atol=1e-5)
    assert [each.shape[1] for each in seen] == features.widths


def test_the_rival_tells_made_detail_from_real(tiles: HiresTiles, encoder: TextEncoder) -> None:
    task = rival_task(tiles, encoder, rival_from=9999)
    optimizer = torch.optim.Adam(task.rival.parameters(), 2e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(40):
        batch = task.batch(6, generator)
        with torch.no_grad():
            task.loss(task.model, batch, generator)
        loss = task.rival_loss(task.rival, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_all_stages_are_trained_by_one_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_weights: Path
) -> None:
    from pathsynth import training
    from pathsynth.training import release
    from pathsynth.weights import Weights

    monkeypatch.setenv(hires.HIRES_VARIABLE, str(folder))
    monkeypatch.setenv("PATHSYNTH_WEIGHTS", str(tiny_weights))
    monkeypatch.setattr(hires, "HIRES_CONFIG", tmp_path / "hires.toml")
    sources = "".join(
        f"[sources.{name}]\n"
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in s.model_dump().items())
        for name, s in CONFIG.sources.items()
    )
    stain = f"haematoxylin = {list(STAIN.haematoxylin)}\neosin = {list(STAIN.eosin)}\nmaximum = [1.9, 1.1]\n"
    (tmp_path / "hires.toml").write_text(
        f'kind = "hires"\nheld_out = 0.25\n[stain]\n{stain}{sources}', encoding="utf-8"
    )
    optim = '[optim]\nsteps = 1\nbatch_size = 2\nlearning_rate = 0.001\nprecision = "float32"\n'
    crops = "[crops]\nedge = 64\ngrey_edge = 32\n"
    first = tmp_path / "first.toml"
    first.write_text(
        'kind = "detail-autoencoder"\nperceptual = 0.0\nrival_width = 4\n'
        f"detail_channels = 2\nchannels = [16, 16, 16]\nblocks = [1, 1, 1]\n{optim}{crops}",
        encoding="utf-8",
    )
    second = tmp_path / "second.toml"
    unet = "".join(f"{name} = {json.dumps(value)}\n" for name, value in tiny.detail_unet_config().items())
    second.write_text(
        f'kind = "detail"\nautoencoder = "one/autoencoder"\nsteps = 2\n{optim}{crops}[unet]\n{unet}',
        encoding="utf-8",
    )
    third = tmp_path / "third.toml"
    third.write_text(
        'kind = "detail-decoder"\npipeline = "two/detail"\nperceptual = 0.0\nrival_width = 4\n'
        f"{optim}{crops}",
        encoding="utf-8",
    )
    fourth = tmp_path / "fourth.toml"
    fourth.write_text(
        f'kind = "detail-adversarial"\npipeline = "three/detail"\nrival_width = 4\n{optim}'
        "[crops]\nedge = 64\n",
        encoding="utf-8",
    )
    for config, name in ((first, "one"), (second, "two"), (third, "three"), (fourth, "four")):
        training.start("detail", config, tmp_path / name, False, None, lambda *_: None)
    target = tmp_path / "weights"
    assert release.main([str(target), "--detail", str(tmp_path / "two"), "--only-copy"]) == 0
    component = Weights(target).manifest.components["detail"]
    assert component["config"]["kind"] == "detail"
    assert component["autoencoder"]["config"]["kind"] == "detail-autoencoder"
    assert load_detail_pipeline(target / "detail").config.steps == 2
    assert release.main([str(target), "--detail", str(tmp_path / "three"), "--only-copy"]) == 0
    component = Weights(target).manifest.components["detail"]
    assert component["config"]["kind"] == "detail-decoder"
    assert component["diffusion"]["config"]["kind"] == "detail"
    assert component["autoencoder"]["config"]["kind"] == "detail-autoencoder"
    assert release.main([str(target), "--detail", str(tmp_path / "four"), "--only-copy"]) == 0
    component = Weights(target).manifest.components["detail"]
    assert component["config"]["kind"] == "detail-adversarial"
    assert [component[stage]["config"]["kind"] for stage in ("decoder", "diffusion", "autoencoder")] == [
        "detail-decoder",
        "detail",
        "detail-autoencoder",
    ]
    (tmp_path / "one" / "run.json").unlink()
    assert release.main([str(target), "--detail", str(tmp_path / "two"), "--only-copy"]) == 1
