"""Self-supervised image networks from timm (DINO, DINOv2, any with feature maps) as maps of patch features.

The published code reads the attention keys of DINO ViT-B/8, blocks 5, 7, 9 and 11, with the patch stride forced from
8 to 4; `BackboneConfig` says the same for any vision transformer, and block outputs instead of keys.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from gwm_model.config import BackboneConfig
from gwm_model.errors import first_line
from gwm_model.tensor_files import read_tensor_file

CNN_MULTIPLE_PX = 32
"""The deepest map of a convolutional network has a cell for as many pixels."""
PICKLED = "holds pickled objects other than tensors, which are never loaded"


class Backbone(nn.Module):
    """Normalised RGB images -> feature maps, from shallow to deep."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        self.channels: list[int]
        self.network: Any
        self.is_transformer = "vit_" in config.name or "deit" in config.name or "eva" in config.name
        self.network = create_network(config, self.is_transformer)
        normalization = timm.get_pretrained_cfg(config.name)
        mean, std = (normalization.mean, normalization.std) if normalization else ((0.5,) * 3, (0.5,) * 3)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        if self.is_transformer:
            self.prepare_transformer()
            self.channels = [self.network.embed_dim] * len(config.blocks)
        else:
            self.channels = list(self.network.feature_info.channels())
        self.multiple_px = int(self.patch_px) if self.is_transformer else CNN_MULTIPLE_PX
        if config.frozen:
            self.requires_grad_(False)

    def prepare_transformer(self) -> None:
        """Sets the patch stride and drops the blocks after the last one used."""
        embed, blocks = self.network.patch_embed, self.network.blocks
        if not all(0 <= block < len(blocks) for block in self.config.blocks):
            raise ValueError(
                f"{self.config.name} has blocks 0 to {len(blocks) - 1}; blocks={list(self.config.blocks)} do not fit."
            )
        self.patch_px = embed.patch_size[0]
        self.stride_px = self.config.patch_stride_px or self.patch_px
        embed.proj.stride = (self.stride_px, self.stride_px)
        self.network.blocks = blocks[: max(self.config.blocks) + 1]

    def train(self, mode: bool = True) -> "Backbone":
        """A frozen backbone stays in evaluation mode."""
        return super().train(mode and not self.config.frozen)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Feature maps [B, C, h, w] of the configured blocks; RGB in [0, 1], sides a multiple of the patch."""
        images = (images - self.mean) / self.std
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            return self.transformer_features(images) if self.is_transformer else list(self.network(images))

    def transformer_features(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Block outputs after the final norm, or the keys of the blocks' attention, as maps [B, C, h, w]."""
        grid = [(side - self.patch_px) // self.stride_px + 1 for side in images.shape[2:]]
        if self.config.features == "keys":
            tokens = self.keys(images)
        else:
            tokens = self.network.forward_intermediates(
                images, indices=list(self.config.blocks), norm=True, output_fmt="NLC", intermediates_only=True
            )
        return [block.mT.reshape(block.shape[0], -1, *grid) for block in tokens]

    def keys(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Attention keys [B, N, C] of the configured blocks, heads concatenated, without class and register tokens."""
        captured: dict[int, Tensor] = {}
        hooks = [
            self.network.blocks[block].attn.qkv.register_forward_hook(
                lambda _module, _inputs, output, block=block: captured.__setitem__(block, output)
            )
            for block in self.config.blocks
        ]
        try:
            self.network.forward_features(images)
        finally:
            for hook in hooks:
                hook.remove()
        width, prefix = self.network.embed_dim, self.network.num_prefix_tokens
        return [captured[block][:, prefix:, width : 2 * width] for block in self.config.blocks]


def create_network(config: BackboneConfig, is_transformer: bool) -> Any:
    """The timm network with its weights. ValueError for an unknown name, and weights that do not fit or are missing."""
    shape: dict[str, Any] = {"features_only": True, "out_indices": config.blocks}
    if is_transformer:
        shape = {"num_classes": 0, "dynamic_img_size": True}
    try:
        network = timm.create_model(config.name, pretrained=config.weights == "pretrained", **shape)
    except OSError as error:
        raise ValueError(
            f"The weights of {config.name} are not in the cache of the Hugging Face hub, and it cannot be reached "
            f"({first_line(error.__cause__ or error)}): give a file as weights, or fill the cache (HF_HOME)."
        ) from error
    except RuntimeError as error:
        sentence = f"timm has no backbone {config.name}: {first_line(error)}"
        if isinstance(error.__cause__, UnpicklingError):
            sentence = f"The checkpoint of {config.name} {PICKLED}."
        raise ValueError(sentence) from error
    if config.weights not in ("pretrained", "none"):
        load_weights(network, config, is_transformer)
    return network


def load_weights(network: Any, config: BackboneConfig, is_transformer: bool) -> None:
    """Loads a checkpoint in the naming of timm or of the DINO releases; no parameter may be missing in it."""
    path = local_weights(config.weights)
    try:
        state = read_tensor_file(path)
        for wrapper in ("model", "state_dict", "teacher"):
            state = state.get(wrapper, state)
        state = checkpoint_filter_fn(state, network) if is_transformer else state
        missing = network.load_state_dict(state, strict=False).missing_keys
    except UnpicklingError as error:
        raise ValueError(f"{config.weights} is no checkpoint, or {PICKLED}.") from error
    except (RuntimeError, SafetensorError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{config.weights} does not fit the backbone {config.name}: {first_line(error)}"
        ) from error
    if missing:
        raise ValueError(f"{config.weights} does not fit the backbone {config.name}: it has no {missing[0]}.")


def local_weights(weights: str) -> Path:
    """The checkpoint as a local file; an http(s) URL is downloaded once into torch's hub folder."""
    if weights.startswith(("http://", "https://")):
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights).name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights, str(path))
        return path
    if not Path(weights).is_file():
        raise ValueError(f"No such weights file: {weights}")
    return Path(weights)


def load_backbone(config: BackboneConfig) -> Backbone:
    """The backbone in evaluation mode; weights as configured."""
    return Backbone(config).eval()
