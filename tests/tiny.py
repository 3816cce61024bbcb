"""Real models of toy size with random weights, so that tests run the real code in a moment."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import nn

from pathsynth.data import Split, SplitName
from pathsynth.detail import DetailAutoencoder, DetailPipeline
from pathsynth.generator import CONTEXTS_FILE, Generator, save_contexts
from pathsynth.layout import LORA_FILE, LayoutPipeline, new_pipeline
from pathsynth.text import CONTEXT_LENGTH, CONTEXT_WIDTH, TextContext, TextEncoder
from pathsynth.tissues import TISSUES, by_code
from pathsynth.validator import Validator, build_classifier
from pathsynth.weights import write_manifest

ALWAYS = by_code("TUM")  # what the toy validator sees in every tile
STEPS = 3


def unet_config(fold: int = 1) -> dict[str, Any]:
    """Arguments of a network of about 100,000 parameters that sees patches of `fold` px."""
    channels = 3 * fold**2
    return {
        "sample_size": 28 // fold,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": CONTEXT_WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": CONTEXT_WIDTH,
    }


def pipeline(fold: int = 1, seed: int = 0) -> LayoutPipeline:
    """An untrained pipeline of toy size."""
    torch.manual_seed(seed)
    made = new_pipeline(UNet2DConditionModel(**unet_config(fold)), (0.4, 0.1, 0.3), (0.5, 0.5, 0.5))
    made.unet.eval()
    return made


SKETCH_EDGE = 7


def sketch_unet_config() -> dict[str, Any]:
    """Arguments of a network of toy size for sketches."""
    return unet_config() | {
        "sample_size": SKETCH_EDGE,
        "block_out_channels": (8,),
        "down_block_types": ("DownBlock2D",),
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ("UpBlock2D",),
    }


def sketcher(seed: int = 0) -> LayoutPipeline:
    """An untrained pipeline of toy size for sketches."""
    torch.manual_seed(seed)
    made = new_pipeline(UNet2DConditionModel(**sketch_unet_config()), (0.4, 0.1, 0.3), (0.4, 0.4, 0.4))
    made.unet.eval()
    return made


DETAIL_CHANNELS = 2
AUTOENCODER_CHANNELS = (16, 16, 16)


def detail_unet_config() -> dict[str, Any]:
    """Arguments of a detail network of toy size."""
    return unet_config() | {"in_channels": 3 + DETAIL_CHANNELS, "out_channels": DETAIL_CHANNELS}


def autoencoder(seed: int = 0) -> DetailAutoencoder:
    """An untrained autoencoder of toy size."""
    torch.manual_seed(seed)
    made: DetailAutoencoder = DetailAutoencoder(DETAIL_CHANNELS, AUTOENCODER_CHANNELS, (1, 1, 1)).eval()
    return made


def detail_pipeline(seed: int = 0) -> DetailPipeline:
    """An untrained detail pipeline of toy size that takes `STEPS` denoising steps."""
    made_before = autoencoder(seed)
    unet = UNet2DConditionModel(**detail_unet_config()).eval()
    statistics = [0.1] * DETAIL_CHANNELS, [0.7] * DETAIL_CHANNELS
    scheduler = FlowMatchEulerDiscreteScheduler()
    return DetailPipeline(unet, made_before, scheduler, *statistics, steps=STEPS, guidance=1.0)


def tissue_like(seed: int, edge: int = 28) -> npt.NDArray[np.uint8]:
    """A picture (edge, edge, 3) of purple ground with dark nuclei and glass-white holes."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:edge, :edge] / edge
    picture = np.array([190.0, 130.0, 180.0]) + random.normal(0, 6, (edge, edge, 3))
    for colour, count, least, most in (((255, 255, 255), 3, 0.05, 0.2), ((80, 40, 110), 25, 0.02, 0.05)):
        for _ in range(count):
            row, column, radius = *random.random(2), random.uniform(least, most)
            picture[np.hypot(rows - row, columns - column) < radius] = colour
    return picture.round().clip(0, 255).astype(np.uint8)


def contexts(count: int, seed: int = 0) -> TextContext:
    """Random contexts of 5 tokens each."""
    states = torch.randn(count, CONTEXT_LENGTH, CONTEXT_WIDTH, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(count, CONTEXT_LENGTH, dtype=torch.bool)
    mask[:, :5] = True
    return TextContext(states * mask.unsqueeze(2), mask)


def generator() -> Generator:
    """A generator of toy size that takes `STEPS` denoising steps."""
    return Generator(pipeline(), contexts(len(TISSUES) + 1), STEPS, 2.0)


def add_adapter(made: LayoutPipeline, seed: int = 1) -> None:
    """Give the network of a pipeline an adapter that changes what it makes."""
    torch.manual_seed(seed)
    made.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]))
    for name, weight in made.unet.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.5)


def validator(confidence: float = 0.99) -> Validator:
    """A network of the real shape that sees `ALWAYS` in every tile, with a confidence between 0 and 1."""
    torch.manual_seed(0)
    model = build_classifier("resnet18")
    head = model.get_submodule("fc")
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.bias[ALWAYS.index] = float(np.log(confidence * 8 / (1 - confidence)))
    return Validator(model, "resnet18", 1.0, torch.zeros(9, 512), torch.eye(512), 1e6)


def add_detail(folder: Path) -> None:
    """Give a weights folder a detail model."""
    detail_pipeline().save_pretrained(folder / "detail")
    write_manifest(folder, {"detail": {}})


def write_weights(folder: Path, encoder: TextEncoder) -> None:
    """A whole weights folder of toy size, without a detail model."""
    made = pipeline()
    made.save_pretrained(folder / "layout")
    add_adapter(made)
    made.unet.save_lora_adapter(folder / "lora" / "default", weight_name=LORA_FILE)
    settings = {"steps": STEPS, "guidance": 2.0, "guidance_interval": [0.1, 0.9]}
    (folder / "lora" / "default" / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    save_contexts(folder / CONTEXTS_FILE, encoder)
    validator().save(folder / "validator")
    write_manifest(folder, {name: {} for name in ("layout", "lora/default", "contexts", "validator")})


def split(name: SplitName, count: int, seed: int = 0) -> Split:
    """Tiles whose colour says their tissue; every tissue in turn."""
    random = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % len(TISSUES)
    colours = np.random.default_rng(9).integers(60, 200, (len(TISSUES), 1, 1, 3))
    noise = random.integers(-40, 40, (count, 28, 28, 3))
    return Split(name, (colours[labels] + noise).astype(np.uint8), labels)
