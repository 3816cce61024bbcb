"""A transformer in place of the U-Net, for comparing the two."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, PixArtTransformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import AttnProcessor

from pathsynth.layout import TILE_SIZE
from pathsynth.text import CONTEXT_WIDTH


class PatchTransformer(ModelMixin, ConfigMixin):
    """The transformer of PixArt-alpha (Chen et al., 2023) on patches of pixels, called as a U-Net is.

    The time reaches every layer through its norms, the text by cross-attention to its token states alone.
    """

    @register_to_config
    def __init__(
        self,
        num_layers: int,
        num_attention_heads: int,
        attention_head_dim: int,
        patch_size: int,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.transformer = PixArtTransformer2DModel(
            sample_size=TILE_SIZE,
            in_channels=in_channels,
            out_channels=in_channels,
            patch_size=patch_size,
            num_layers=num_layers,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            cross_attention_dim=CONTEXT_WIDTH,
        )

    def set_attn_processor(self, processor: AttnProcessor) -> None:
        """Choose how attention is computed, as a U-Net's method of this name does."""
        self.transformer.set_attn_processor(processor)

    def forward(
        self,
        noisy: torch.Tensor,
        time: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        class_labels: torch.Tensor,
        return_dict: bool = False,
    ) -> Any:
        """Velocity (N, 3, 28, 28), as only item of a tuple, of noisy tiles at times (N,) in [0, 1000]. The
        mean text, `class_labels`, has no place in it.
        """
        return self.transformer(
            noisy,
            encoder_hidden_states=encoder_hidden_states,
            timestep=time,
            encoder_attention_mask=encoder_attention_mask,
            return_dict=return_dict,
        )
