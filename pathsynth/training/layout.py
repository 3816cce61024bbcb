"""Training of the layout model: the base on measured attributes, and LoRA adapters on the tissues.

Both minimise the same flow-matching loss (Lipman et al., *Flow Matching for Generative Modeling*, 2023) with
times drawn from a logit-normal (Esser et al., *Scaling Rectified Flow Transformers*, 2024); they differ in
what is trainable and in the text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import compute_loss_weighting_for_sd3
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from pathsynth.attributes import phrases
from pathsynth.data import Split, load_split
from pathsynth.errors import TrainingError
from pathsynth.generator import load_pipeline
from pathsynth.layout import (
    LORA_FILE,
    TIME_SCALE,
    LayoutPipeline,
    fold_size,
    new_pipeline,
    predict_velocity,
    sketched,
)
from pathsynth.text import TextContext, TextEncoder
from pathsynth.tissues import TISSUES
from pathsynth.training.augment import dihedral
from pathsynth.training.captions import CaptionEncoder
from pathsynth.training.layout_config import BaseConfig, FlowConfig, LoraConfig, PromptStyle
from pathsynth.validator import to_model_range
from pathsynth.weights import loading


@dataclass(frozen=True)
class FlowBatch:
    """Clean tiles (N, 3, 28, 28) in [-1, 1] with their captions and the context of these."""

    tiles: torch.Tensor
    texts: list[str]
    context: TextContext


class FlowTask:
    """What base and adapters share: batches of augmented tiles, the flow-matching loss, a fixed validation
    draw.
    """

    def __init__(
        self,
        pipeline: LayoutPipeline,
        flow: FlowConfig,
        train: Split,
        val: Split,
        encoder: TextEncoder,
        prompt_style: PromptStyle | None = None,
        tissue_weights: Mapping[str, float] | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.model: nn.Module = pipeline.unet
        # Plain products: the backward pass of torch's fused attention is slow on the CPU (forward and
        # backward of 32 tiles: 0.96 s with it, 0.75 s without).
        pipeline.unet.set_attn_processor(AttnProcessor())
        self.flow, self._prompt_style = flow, prompt_style
        self.train = train
        self.val = val
        self.captions = CaptionEncoder(encoder)
        self._fold = fold_size(pipeline.unet)
        of_tissue = [(tissue_weights or {}).get(tissue.code, 1.0) for tissue in TISSUES]
        self._cumulative = np.cumsum(np.take(of_tissue, train.labels))

    def describe(
        self, tiles: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], generator: torch.Generator
    ) -> list[str]:
        """One caption per tile, before text is dropped."""
        if self._prompt_style is not None:
            return self.flow.prompts(tiles, labels, self._prompt_style, generator)
        return [self.flow.attributes_of(words, generator) for words in phrases(tiles)]

    def batch(self, size: int, generator: torch.Generator) -> FlowBatch:
        """Tiles under a random symmetry of the square, with their captions; attributes are measured after
        the symmetry.
        """
        return self._batch_of(self.train, self.draw(size, generator), generator)

    def draw(self, size: int, generator: torch.Generator) -> npt.NDArray[np.int64]:
        """Indices (size,) of the training tiles of a batch, tissues as often as their weights say."""
        at = torch.rand(size, generator=generator, dtype=torch.float64).numpy() * self._cumulative[-1]
        chosen: npt.NDArray[np.int64] = np.searchsorted(self._cumulative, at, side="right")
        return chosen

    def _batch_of(self, split: Split, chosen: npt.NDArray[np.int64], generator: torch.Generator) -> FlowBatch:
        turned = dihedral(torch.from_numpy(split.images[chosen]).permute(0, 3, 1, 2), generator)
        tiles = np.ascontiguousarray(turned.permute(0, 2, 3, 1).numpy())
        texts = self.flow.dropped(self.describe(tiles, split.labels[chosen], generator), generator)
        return FlowBatch(to_model_range(tiles), texts, self.captions(texts))

    def loss(self, model: nn.Module, batch: FlowBatch, generator: torch.Generator) -> torch.Tensor:
        """Mean squared error of the predicted velocity, noise minus data, in standardised units."""
        device = next(model.parameters()).device
        data = self.pipeline.standardise(batch.tiles)
        noise = torch.randn(data.shape, generator=generator)
        time = self.flow.times(len(data), generator)
        level = time.view(-1, 1, 1, 1)
        noisy = ((1 - level) * data + level * noise).contiguous(memory_format=torch.channels_last)
        context = TextContext(batch.context.states.to(device), batch.context.mask.to(device))
        velocity = predict_velocity(
            model, self._fold, noisy.to(device), (time * TIME_SCALE).to(device), context
        )
        errors = (velocity.float() - (noise - data).to(device)).square()
        weights = compute_loss_weighting_for_sd3(self.flow.weighting, level.to(device))
        return torch.mean(weights * errors)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss on 1,024 val tiles with fixed times, noise, symmetries and captions."""
        generator = torch.Generator().manual_seed(1)
        losses = []
        with torch.inference_mode():
            for start in range(0, min(1024, len(self.val)), 128):
                chosen = np.arange(start, min(start + 128, len(self.val)))
                batch = self._batch_of(self.val, chosen, generator)
                losses.append(float(self.loss(model, batch, generator)))
        return {"val_loss": sum(losses) / len(losses)}


class AlignedUnet(nn.Module):
    """A U-Net that also says what it expects a classifier to see: `seen` (N, F, h, w) holds, after each
    forward pass, a projection of its middle features.
    """

    def __init__(self, unet: UNet2DConditionModel, width: int, features: int) -> None:
        super().__init__()
        self.unet = unet
        channels = int(unet.config.block_out_channels[-1])
        self.projection = nn.Sequential(
            nn.Conv2d(channels, width, 1), nn.SiLU(), nn.Conv2d(width, width, 1), nn.SiLU(),
            nn.Conv2d(width, features, 1),
        )  # fmt: skip
        self.seen = torch.empty(0)

    def forward(self, *args: Any, **options: Any) -> Any:
        """As the U-Net's."""
        middle: list[torch.Tensor] = []
        hook = self.unet.mid_block.register_forward_hook(lambda module, inputs, output: middle.append(output))
        try:
            result = self.unet(*args, **options)
        finally:
            hook.remove()
        self.seen = self.projection(middle[0])
        return result


class BaseTask(FlowTask):
    """The base: every weight trainable, captions of measured attributes only.

    With `alignment`, `classifier` is the network whose features the middle of the U-Net learns to predict; it
    stays as it is, and neither it nor the projection is part of what is saved.
    """

    def __init__(
        self,
        config: BaseConfig,
        train: Split | None = None,
        val: Split | None = None,
        encoder: TextEncoder | None = None,
        classifier: nn.Module | None = None,
    ) -> None:
        torch.manual_seed(config.optim.seed)
        train = train or load_split("train")
        val = val or load_split("val")
        self._edge = config.edge
        sample = sketched(to_model_range(train.images[:: max(1, len(train) // 4096)]), self._edge)
        # One common deviation: channels keep their ratio, so colour is not stretched.
        mean, std = sample.mean(dim=(0, 2, 3)).tolist(), [float(sample.std())] * 3
        pipeline = new_pipeline(config.network(), mean, std)
        if config.initial is not None:
            start_from(pipeline, load_pipeline(config.initial))
        encoder = encoder or TextEncoder()
        super().__init__(
            pipeline, config.flow, train, val, encoder, config.prompt_style, config.tissue_weights
        )
        self.alignment = config.alignment
        if self.alignment is not None:
            if classifier is None:
                raise TrainingError("`alignment` needs a classifier; train the validator first.")
            self.classifier = create_feature_extractor(
                classifier.eval().requires_grad_(False), self.alignment.layers
            )
            features = sum(seen.shape[1] for seen in self.classifier(sample[:2]).values())
            self.model = AlignedUnet(pipeline.unet, self.alignment.width, features)

    def loss(self, model: nn.Module, batch: FlowBatch, generator: torch.Generator) -> torch.Tensor:
        """The flow-matching loss, and with `alignment` the distance to the classifier's features."""
        if batch.tiles.shape[-1] != self._edge:
            batch = replace(batch, tiles=sketched(batch.tiles, self._edge))
        flow = super().loss(model, batch, generator)
        if self.alignment is None or not model.training:
            return flow
        device = next(model.parameters()).device
        with torch.no_grad():
            targets = self.classifier(batch.tiles.to(device))
        [seen] = [module.seen for module in model.modules() if isinstance(module, AlignedUnet)]
        parts = seen.split([target.shape[1] for target in targets.values()], 1)
        distances = []
        for target, part in zip(targets.values(), parts, strict=True):
            pooled = F.adaptive_avg_pool2d(part, target.shape[2:])
            distances.append(1 - F.cosine_similarity(pooled.float(), target.float(), dim=1).mean())
        return flow + self.alignment.weight * torch.stack(distances).mean()

    def save(self, model: nn.Module, folder: Path) -> None:
        """The averaged pipeline in half precision, as diffusers writes it."""
        unet = model.unet if isinstance(model, AlignedUnet) else model
        self.pipeline.unet.load_state_dict(unet.state_dict())
        self.pipeline.to(dtype=torch.float16)
        self.pipeline.save_pretrained(folder / "layout")
        self.pipeline.to(dtype=torch.float32)


def start_from(pipeline: LayoutPipeline, trained: LayoutPipeline) -> None:
    """Take over the weights of a trained pipeline whose network is the same but for a class embedding.

    Raises:
        TrainingError: the networks differ in more than that.
    """
    unet = pipeline.unet
    own = unet.state_dict()
    stored = trained.unet.state_dict()
    absent = own.keys() - stored.keys()
    if (
        any(not name.startswith("class_embedding.") for name in absent)
        or stored.keys() - own.keys()
        or any(own[name].shape != weight.shape for name, weight in stored.items())
    ):
        raise TrainingError("The network of `initial` is not the one of the configuration; correct `unet`.")
    unet.load_state_dict(stored, strict=False)
    if absent:
        nn.init.zeros_(unet.class_embedding.linear_2.weight)
        nn.init.zeros_(unet.class_embedding.linear_2.bias)


def load_adapter(unet: UNet2DConditionModel, folder: Path) -> None:
    """Take over the weights of a saved adapter into the one that the network has.

    Raises:
        WeightsError: the folder holds none, or it cannot be read.
        TrainingError: it is of another shape.
    """
    with loading(folder):
        stored = {name: weight.float() for name, weight in load_file(folder / LORA_FILE).items()}
    own = get_peft_model_state_dict(unet, adapter_name="default")
    if {name: weight.shape for name, weight in own.items()} != {n: w.shape for n, w in stored.items()}:
        raise TrainingError(
            "The adapter of `initial` is not of the shape of the configuration; "
            "correct `rank` or `target_modules`."
        )
    set_peft_model_state_dict(unet, stored, adapter_name="default")


def use_summed_weights(network: nn.Module) -> None:
    """Let every LoRA layer add its product to the weight it adapts, and run one layer instead of three.

    Mathematically the same without dropout, and faster for tiles this small, where a second path for the
    activations costs more than a sum of weights.
    """
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            layer.forward = MethodType(_forward_summed, layer)


def _forward_summed(layer: Any, inputs: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    base = layer.get_base_layer()
    [adapter] = layer.active_adapters
    summed = {"weight": base.weight + layer.get_delta_weight(adapter)}
    result: torch.Tensor = functional_call(base, summed, (inputs, *args), options, strict=False)
    return result


class LoraTask(FlowTask):
    """An adapter: the base is frozen, captions name the tissue in the configured style."""

    def __init__(
        self,
        config: LoraConfig,
        pipeline: LayoutPipeline,
        train: Split | None = None,
        val: Split | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        torch.manual_seed(config.optim.seed)
        pipeline.unet.requires_grad_(False)
        pipeline.unet.add_adapter(
            PeftLoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                target_modules=config.target_modules,
                init_lora_weights="gaussian",
            )
        )
        if config.initial is not None:
            load_adapter(pipeline.unet, config.initial)
        use_summed_weights(pipeline.unet)
        super().__init__(
            pipeline,
            config.flow,
            train or load_split("train"),
            val or load_split("val"),
            encoder or TextEncoder(),
            config.prompt_style,
            config.tissue_weights,
        )

    def save(self, model: nn.Module, folder: Path) -> None:
        """The averaged adapter alone, in half precision, as `load_lora_adapter` reads it."""
        self.pipeline.unet.load_state_dict(model.state_dict())
        self.pipeline.to(dtype=torch.float16)
        self.pipeline.unet.save_lora_adapter(folder / "lora", weight_name=LORA_FILE)
        self.pipeline.to(dtype=torch.float32)
