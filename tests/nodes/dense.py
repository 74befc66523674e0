"""The slow, obvious way to apply a bank: dense deltas added by hand to the fused weights of a FLUX."""

import re
import zlib

import comfy.sample
import torch

# The scale of a weight in scaled fp8; newer ComfyUI names it after the weight.
SCALE = re.compile(r"\.(scale_weight|weight_scale)$")
# Where diffusers' layers lie in FLUX's own modules: (module, which share of its outputs).
DOUBLE = {
    "norm1.linear": ("img_mod.lin", None),
    "norm1_context.linear": ("txt_mod.lin", None),
    "attn.to_q": ("img_attn.qkv", 0),
    "attn.to_k": ("img_attn.qkv", 1),
    "attn.to_v": ("img_attn.qkv", 2),
    "attn.add_q_proj": ("txt_attn.qkv", 0),
    "attn.add_k_proj": ("txt_attn.qkv", 1),
    "attn.add_v_proj": ("txt_attn.qkv", 2),
    "attn.to_out.0": ("img_attn.proj", None),
    "attn.to_add_out": ("txt_attn.proj", None),
    "ff.net.0.proj": ("img_mlp.0", None),
    "ff.net.2": ("img_mlp.2", None),
    "ff_context.net.0.proj": ("txt_mlp.0", None),
    "ff_context.net.2": ("txt_mlp.2", None),
}
SINGLE = {
    "norm.linear": ("modulation.lin", None),
    "attn.to_q": ("linear1", 0),
    "attn.to_k": ("linear1", 1),
    "attn.to_v": ("linear1", 2),
    "proj_mlp": ("linear1", 3),
    "proj_out": ("linear2", None),
}


def locate(layer: str, hidden: int) -> tuple[str, slice]:
    """(module in ComfyUI's FLUX, its rows) of a diffusers layer; q, k, v are ``hidden`` rows each, the rest is MLP."""
    kind, number, part = layer.split(".", 2)
    table, blocks = (SINGLE, "single_blocks") if kind.startswith("single") else (DOUBLE, "double_blocks")
    module, share = table[part]
    rows = slice(None) if share is None else slice(share * hidden, (share + 1) * hidden if share < 3 else None)
    return f"{blocks}.{number}.{module}", rows


def add_by_hand(weights: dict[str, torch.Tensor], bank, coefficients, strength: float, hidden: int) -> None:
    """Add every dense delta (and bias delta) in place; weights are those of the diffusion model, float32."""
    lora = bank.compose(coefficients)
    for name in bank.layers:
        module, rows = locate(name, hidden)
        weight = weights[f"{module}.weight"][rows]
        weight += strength * bank.delta(name, coefficients).to(weight.device)
        if lora.bias(name) is not None:
            bias = weights[f"{module}.bias"][rows]
            bias += strength * lora.bias(name).to(bias.device)


def float_weights(model) -> dict[str, torch.Tensor]:
    """A float32 copy of all weights of a ModelPatcher's diffusion model."""
    return dequantised(model.model.diffusion_model.state_dict())


def dequantised(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A float32 copy of weights, those of scaled fp8 times their scale."""
    scales = {SCALE.sub(".weight", name): tensor for name, tensor in weights.items() if SCALE.search(name)}
    return {name: tensor.float() * scales.get(name, torch.ones(())) for name, tensor in weights.items()}


def raw_weights(model) -> dict[str, torch.Tensor]:
    """A bit-exact copy of the weights."""
    return {name: tensor.clone() for name, tensor in model.model.diffusion_model.state_dict().items()}


def checksums(model) -> dict[str, int]:
    """A checksum of the bits of every weight, for models too large to copy."""
    tensors = model.model.diffusion_model.state_dict()
    return {n: zlib.crc32(t.reshape(-1).view(torch.uint8).numpy()) for n, t in tensors.items()}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error in the Frobenius norm."""
    return float((found - expected).norm() / expected.norm())


def edit_strengths(
    weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], bank, coefficients, hidden: int
):
    """How much of each layer's delta is in the weights, by projection: 1 is all of it, whatever noise rounding adds."""
    strengths = {}
    for name in bank.layers:
        module, rows = locate(name, hidden)
        delta = bank.delta(name, coefficients).to(weights[f"{module}.weight"].device)
        rest = weights[f"{module}.weight"][rows].float() - expected[f"{module}.weight"][rows]
        strengths[name] = 1 + float((rest * delta).sum() / delta.square().sum())
    return strengths


class patched:
    """``with patched(model) as weights``: the model's weights while ComfyUI has the patches loaded."""

    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.model.patch_model(device_to=self.model.load_device)
        return self.model.model.diffusion_model

    def __exit__(self, *_):
        self.model.unpatch_model(device_to=self.model.offload_device)


def forward(diffusion_model, size: int = 16, seed: int = 0, device: str | torch.device = "cpu") -> torch.Tensor:
    """One step of the diffusion model on a random latent canvas with a reference latent, as Kontext runs it."""
    generator = torch.Generator().manual_seed(seed)
    params = diffusion_model.params

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    dtype = diffusion_model.img_in.weight.dtype
    dtype = dtype if dtype in (torch.float32, torch.bfloat16, torch.float16) else torch.float32
    inputs = [random(1, 16, size, size), random(1, 8, params.context_in_dim), random(1, params.vec_in_dim)]
    x, context, y, reference = (tensor.to(device, dtype) for tensor in [*inputs, random(1, 16, size, size)])
    timestep, guidance = torch.tensor([0.7], device=device), torch.tensor([2.5], device=device)
    with torch.inference_mode():
        return diffusion_model(x, timestep, context=context, y=y, guidance=guidance, ref_latents=[reference]).float()


def sample(model):
    """Two steps of ComfyUI's own sampler on a random latent."""
    generator, params = torch.Generator().manual_seed(0), model.model.diffusion_model.params
    latent, noise = (torch.randn(1, 16, 16, 16, generator=generator) for _ in range(2))
    context = torch.randn(1, 8, params.context_in_dim, generator=generator)
    pooled = torch.randn(1, params.vec_in_dim, generator=generator)
    told = [[context, {"pooled_output": pooled}]]
    return comfy.sample.sample(model, noise, 2, 1.0, "euler", "simple", told, told, latent, seed=0)
