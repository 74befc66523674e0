"""Small random models in the formats that ComfyUI's own loaders read, with a fixed seed.

``python -m harness.small_models FOLDER`` writes them all; a file that was drawn from the same recipe is kept.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .fetch import cache_folder

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

SMALL_FLUX = "lorweb_small_flux.safetensors"
SMALL_VAE = "lorweb_small_vae.safetensors"
RANDOM_VIT_L = "lorweb_random_vit_l.safetensors"
RANDOM_CLIP_L = "lorweb_random_clip_l.safetensors"
SMALL_BANK = "lorweb_small_bank.safetensors"
SMALL_HIDDEN, SMALL_DOUBLE, SMALL_SINGLE = 256, 2, 2
HEAD_WIDTH = 128
CONTEXT = 768  # so that CLIP-L alone drives the small FLUX

_STAMP_KEY = "drawn_from"


class Spec(NamedTuple):
    """How a tensor is drawn: normal with this standard deviation around this mean."""

    shape: tuple[int, ...]
    std: float
    mean: float = 0.0


Specs = dict[str, Spec]


def small_models(folder: str | os.PathLike | None = None) -> Path:
    """Write every small model.

    Args:
        folder: the models folder to fill (diffusion_models/, vae/, ...); a cache folder when None.

    Returns:
        The models folder.
    """
    models = Path(folder) if folder is not None else cache_folder() / "small_models"
    small_flux(models / "diffusion_models" / SMALL_FLUX)
    small_vae(models / "vae" / SMALL_VAE)
    random_vit_l(models / "clip_vision" / RANDOM_VIT_L)
    random_clip_l(models / "text_encoders" / RANDOM_CLIP_L)
    layers = flux_layers(SMALL_HIDDEN, SMALL_DOUBLE, SMALL_SINGLE)
    random_bank(models / "lorweb" / SMALL_BANK, layers, num_loras=8, rank=4, key_dim=32, query_dim=2304)
    return models


def small_flux(path: str | os.PathLike, dtype: torch.dtype = torch.bfloat16, seed: int = 1) -> Path:
    """The FLUX.1-Kontext-dev architecture, two heads wide; two double and two single blocks."""
    return _write_random(path, flux_specs(SMALL_HIDDEN, SMALL_DOUBLE, SMALL_SINGLE), dtype, seed)


def wide_flux(path: str | os.PathLike | None = None, seed: int = 2) -> Path:
    """FLUX at its real width (hidden 3072) with one double and one single block, bfloat16, about 1 GB."""
    path = path or cache_folder() / "wide_flux.safetensors"
    return _write_random(path, flux_specs(3072, 1, 1), torch.bfloat16, seed)


def random_vit_l(path: str | os.PathLike, seed: int = 3) -> Path:
    """CLIP ViT-L/14's vision tower at full size (303 million parameters), float16, transformers' names."""
    return _write_random(path, _vision_specs(width=1024, depth=24, projection=768), torch.float16, seed)


def random_clip_l(path: str | os.PathLike, seed: int = 4) -> Path:
    """CLIP-L's text tower at full size (123 million parameters), float16, transformers' names."""
    return _write_random(path, _text_specs(width=768, depth=12), torch.float16, seed)


def small_vae(path: str | os.PathLike, seed: int = 5) -> Path:
    """An autoencoder in TAESD's layout with FLUX's 16 latent channels, scaled so that nothing saturates."""
    path, stamp = Path(path), _stamp("balanced autoencoder, version 1", seed)
    if not _is_current(path, stamp):
        torch.manual_seed(seed)
        _save({k: v.contiguous() for k, v in _balanced_autoencoder().items()}, path, stamp)
    return path


def random_bank(
    path: str | os.PathLike,
    layers: Mapping[str, tuple[int, int]],
    num_loras: int = 32,
    rank: int = 4,
    key_dim: int = 128,
    query_dim: int = 2304,
    dtype: torch.dtype = torch.float16,
    seed: int = 6,
    query_mode: str = "cat-aa'b",
    device: str = "cpu",
) -> Path:
    """A bank whose B is not zero, in the released layout.

    Args:
        layers: module path -> (in, out), as ``flux_layers`` gives them.
        query_mode: written into the header.
        device: that draws the numbers; each draws others.
    """
    from lorweb_core.checkpoint import write_bank
    from lorweb_core.config import BankConfig

    specs = bank_specs(layers, num_loras, rank, key_dim, query_dim)
    path, stamp = Path(path), _stamp(specs, dtype, seed, query_mode, device)
    if _is_current(path, stamp):
        return path
    config = BankConfig(num_loras, rank, key_dim, query_dim, query_mode=query_mode)
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {
        layer: {name: _draw(spec, dtype, generator) for name, spec in named.items()} for layer, named in specs.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("writing %s", path)
    write_bank(path, tensors, config, {_STAMP_KEY: stamp})
    return path


def bank_specs(
    layers: Mapping[str, tuple[int, int]], num_loras: int, rank: int, key_dim: int, query_dim: int
) -> dict[str, Specs]:
    """Shapes of a bank: layer -> tensor name -> spec. Logits of a random encoder spread over about one unit."""
    return {
        name: {
            "lora_A": Spec((num_loras, features_in, rank), features_in**-0.5),
            "lora_B": Spec((num_loras, rank, features_out), 0.2 * rank**-0.5),
            "lora_keys": Spec((num_loras, key_dim), 1.0),
            "att_lora_to_q.weight": Spec((key_dim, query_dim), 2 * query_dim**-0.5),
        }
        for name, (features_in, features_out) in layers.items()
    }


def flux_layers(hidden: int, double: int, single: int, mlp_ratio: int = 4) -> dict[str, tuple[int, int]]:
    """Every linear inside FLUX's blocks: diffusers module path -> (in, out)."""
    mlp = hidden * mlp_ratio
    square = (hidden, hidden)
    of_double = {"norm1.linear": (hidden, 6 * hidden), "norm1_context.linear": (hidden, 6 * hidden)}
    of_double |= {f"attn.{name}": square for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj")}
    of_double |= {f"attn.{name}": square for name in ("add_v_proj", "to_out.0", "to_add_out")}
    for ff in ("ff", "ff_context"):
        of_double |= {f"{ff}.net.0.proj": (hidden, mlp), f"{ff}.net.2": (mlp, hidden)}
    of_single = {f"attn.{name}": square for name in ("to_q", "to_k", "to_v")}
    of_single |= {"norm.linear": (hidden, 3 * hidden)}
    of_single |= {"proj_mlp": (hidden, mlp), "proj_out": (hidden + mlp, hidden)}
    layers = {f"transformer_blocks.{i}.{name}": size for i in range(double) for name, size in of_double.items()}
    layers |= {f"single_transformer_blocks.{i}.{name}": size for i in range(single) for name, size in of_single.items()}
    return layers


def photographs() -> dict[str, np.ndarray]:
    """Photographs from scikit-image's own package, uint8 [H, W, 3]; nothing is downloaded."""
    from skimage import data

    names = ("astronaut", "chelsea", "coffee", "rocket")
    return {name: getattr(data, name)() for name in names}


def flux_specs(hidden: int, double: int, single: int, channels: int = 64) -> Specs:
    """FLUX.1-Kontext-dev (guidance embedding included) in the names of its original checkpoint."""
    specs = _linear("img_in", channels, hidden) | _linear("txt_in", CONTEXT, hidden)
    for name, width in (("time_in", 256), ("vector_in", CONTEXT), ("guidance_in", 256)):
        specs |= _linear(f"{name}.in_layer", width, hidden) | _linear(f"{name}.out_layer", hidden, hidden)
    for block in range(double):
        for stream in ("img", "txt"):
            specs |= _double_stream_specs(f"double_blocks.{block}.{stream}", hidden)
    for block in range(single):
        specs |= _single_block_specs(f"single_blocks.{block}", hidden)
    specs |= _linear("final_layer.adaLN_modulation.1", hidden, 2 * hidden, gain=0.3)
    return specs | _linear("final_layer.linear", hidden, channels)


def _double_stream_specs(prefix: str, hidden: int) -> Specs:
    return {
        **_linear(f"{prefix}_mod.lin", hidden, 6 * hidden, gain=0.5),
        **_linear(f"{prefix}_attn.qkv", hidden, 3 * hidden),
        **_linear(f"{prefix}_attn.proj", hidden, hidden),
        **_linear(f"{prefix}_mlp.0", hidden, 4 * hidden),
        **_linear(f"{prefix}_mlp.2", 4 * hidden, hidden),
        **_qk_norm(f"{prefix}_attn.norm"),
    }


def _single_block_specs(prefix: str, hidden: int) -> Specs:
    return {
        **_linear(f"{prefix}.modulation.lin", hidden, 3 * hidden, gain=0.5),
        **_linear(f"{prefix}.linear1", hidden, 7 * hidden),
        **_linear(f"{prefix}.linear2", 5 * hidden, hidden),
        **_qk_norm(f"{prefix}.norm"),
    }


def _qk_norm(prefix: str) -> Specs:
    return {f"{prefix}.{name}.scale": Spec((HEAD_WIDTH,), 0.05, 1.0) for name in ("query_norm", "key_norm")}


def _linear(name: str, features_in: int, features_out: int, gain: float = 1.0) -> Specs:
    """Weights that keep unit variance, and a small bias."""
    std = gain * features_in**-0.5
    return {f"{name}.weight": Spec((features_out, features_in), std), f"{name}.bias": Spec((features_out,), 0.02)}


def _norm(name: str, width: int) -> Specs:
    return {f"{name}.weight": Spec((width,), 0.05, 1.0), f"{name}.bias": Spec((width,), 0.02)}


def _clip_layers(prefix: str, width: int, depth: int) -> Specs:
    """Attention sharper than at a usual initialisation: the output then depends on the content."""
    specs: Specs = {}
    for i in range(depth):
        layer = f"{prefix}.encoder.layers.{i}"
        for name, gain in (("q_proj", 1.5), ("k_proj", 1.5), ("v_proj", 1.0), ("out_proj", 1.0)):
            specs |= _linear(f"{layer}.self_attn.{name}", width, width, gain)
        specs |= _linear(f"{layer}.mlp.fc1", width, 4 * width)
        specs |= _linear(f"{layer}.mlp.fc2", 4 * width, width, gain=0.5)
        specs |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
    return specs


def _vision_specs(width: int, depth: int, projection: int, patch: int = 14, image: int = 224) -> Specs:
    tokens = (image // patch) ** 2 + 1
    prefix = "vision_model.embeddings"
    return {
        f"{prefix}.class_embedding": Spec((width,), 0.3),
        f"{prefix}.patch_embedding.weight": Spec((width, 3, patch, patch), (3 * patch * patch) ** -0.5),
        f"{prefix}.position_embedding.weight": Spec((tokens, width), 0.3),
        **_norm("vision_model.pre_layrnorm", width),
        **_clip_layers("vision_model", width, depth),
        **_norm("vision_model.post_layernorm", width),
        "visual_projection.weight": Spec((projection, width), width**-0.5),
    }


def _text_specs(width: int, depth: int, vocabulary: int = 49408, positions: int = 77) -> Specs:
    return {
        "text_model.embeddings.token_embedding.weight": Spec((vocabulary, width), 1.0),
        "text_model.embeddings.position_embedding.weight": Spec((positions, width), 0.3),
        **_clip_layers("text_model", width, depth),
        **_norm("text_model.final_layer_norm", width),
        "text_projection.weight": Spec((width, width), width**-0.5),
    }


class _Residual(nn.Module):
    """TAESD's block. The branch starts small, so that a stack of blocks keeps the scale of its input."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))
        with torch.no_grad():
            self.conv[-1].weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


def _conv(features_in: int, features_out: int, **options) -> nn.Conv2d:
    conv = nn.Conv2d(features_in, features_out, 3, padding=1, **options)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / (9 * features_in)))
    if conv.bias is not None:
        nn.init.normal_(conv.bias, std=0.02)
    return conv


def _balanced_autoencoder(width: int = 64, latent: int = 16) -> dict[str, Tensor]:
    """Random weights; the last layers are scaled on noise to unit latents and to pixels around mid grey."""
    encoder = [_conv(3, width), _Residual(width)]
    for _ in range(3):
        encoder += [_conv(width, width, stride=2, bias=False), *(_Residual(width) for _ in range(3))]
    decoder = [nn.Identity(), _conv(latent, width), nn.ReLU()]  # index 0 is a clamp without weights
    for _ in range(3):
        decoder += [*(_Residual(width) for _ in range(3)), nn.Upsample(scale_factor=2)]
        decoder += [_conv(width, width, bias=False)]
    encode = nn.Sequential(*encoder, _conv(width, latent))
    decode = nn.Sequential(*decoder, _Residual(width), _conv(width, 3))
    with torch.no_grad():
        pixels = nn.functional.interpolate(torch.rand(4, 3, 16, 16), scale_factor=8, mode="bilinear")
        _rescale_last(encode, pixels, mean=0.0, std=1.0)
        _rescale_last(decode, torch.tanh(encode(pixels) / 3) * 3, mean=0.5, std=0.15)
    tensors = {f"taesd_encoder.{k}": v for k, v in encode.state_dict().items()}
    tensors |= {f"taesd_decoder.{k}": v for k, v in decode.state_dict().items()}
    # The scale and shift of FLUX's latent format: the model then sees the unit latents of the encoder.
    return tensors | {"vae_scale": torch.tensor(0.3611), "vae_shift": torch.tensor(0.1159)}


def _rescale_last(network: nn.Sequential, sample: Tensor, mean: float, std: float) -> None:
    """Give every output channel this mean and standard deviation on the sample."""
    out = network(sample)
    factor = std / out.std(dim=(0, 2, 3))
    last = network[-1]
    last.weight.mul_(factor[:, None, None, None])
    last.bias.copy_((last.bias - out.mean(dim=(0, 2, 3))) * factor + mean)


def _draw(spec: Spec, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Drawn in the final dtype: no float32 copy of a large model."""
    drawn = torch.empty(spec.shape, dtype=dtype, device=generator.device)
    return drawn.normal_(spec.mean, spec.std, generator=generator).cpu()


def _write_random(path: str | os.PathLike, specs: Specs, dtype: torch.dtype, seed: int) -> Path:
    path, stamp = Path(path), _stamp(specs, dtype, seed)
    if not _is_current(path, stamp):
        generator = torch.Generator().manual_seed(seed)
        _save({name: _draw(spec, dtype, generator) for name, spec in specs.items()}, path, stamp)
    return path


def _stamp(*origin: object) -> str:
    """What a file was drawn from, so that a changed recipe writes it anew."""
    return hashlib.sha256(repr(origin).encode()).hexdigest()


def _is_current(path: Path, stamp: str) -> bool:
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(_STAMP_KEY) == stamp
    except SafetensorError:
        return False


def _save(tensors: Mapping[str, Tensor], path: Path, stamp: str) -> None:
    from lorweb_core.checkpoint import save_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("writing %s", path)
    save_atomically(tensors, path, {"format": "pt", _STAMP_KEY: stamp})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.stdout.write(f"{small_models(sys.argv[1] if len(sys.argv) > 1 else None)}\n")
