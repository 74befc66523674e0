"""Banks with random weights in the released layout, and the paper's formulas evaluated plainly in float64."""

import json
import math
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import save_file

# A few layers of FLUX's naming with in != out, one block of each kind and a second of the double kind.
LAYERS = {
    "transformer_blocks.0.attn.to_q": (24, 24),
    "transformer_blocks.0.attn.to_k": (24, 24),
    "transformer_blocks.0.attn.to_v": (24, 24),
    "transformer_blocks.0.ff.net.0.proj": (24, 40),
    "transformer_blocks.10.ff.net.2": (40, 24),
    "transformer_blocks.2.norm1.linear": (24, 48),
    "single_transformer_blocks.0.attn.to_q": (24, 24),
    "single_transformer_blocks.0.attn.to_k": (24, 24),
    "single_transformer_blocks.0.attn.to_v": (24, 24),
    "single_transformer_blocks.0.proj_mlp": (24, 40),
    "single_transformer_blocks.0.proj_out": (64, 24),
}


@dataclass
class Spec:
    """Everything random about a bank; ``tensors()`` is the released layout."""

    num_loras: int = 6
    rank: int = 3
    key_dim: int = 16
    query_dim: int = 36
    projection: bool = True
    bias: bool = False
    dtype: torch.dtype = torch.float32
    layers: dict = field(default_factory=lambda: dict(LAYERS))
    seed: int = 0

    def tensors(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed)

        def random(*shape, scale=1.0):
            return (torch.randn(*shape, generator=generator) * scale).to(self.dtype)

        tensors = {}
        for name, (features_in, features_out) in self.layers.items():
            prefix = f"transformer.{name}."
            tensors[prefix + "lora_A"] = random(self.num_loras, features_in, self.rank)
            tensors[prefix + "lora_B"] = random(self.num_loras, self.rank, features_out)
            tensors[prefix + "lora_keys"] = random(self.num_loras, self.key_dim)
            if self.projection:
                tensors[prefix + "att_lora_to_q.weight"] = random(
                    self.key_dim, self.query_dim, scale=2 * self.query_dim**-0.5
                )
            if self.bias:
                tensors[prefix + "lora_up_bias"] = random(self.num_loras, features_out)
        return tensors


def reference_coefficients(tensors, name, query, heads=1, softmax=True, mixing="mean"):
    """c of one layer, line by line as the paper writes it, one head and one basis element at a time, in float64."""
    keys = tensors[f"transformer.{name}.lora_keys"].double()
    to_q = tensors.get(f"transformer.{name}.att_lora_to_q.weight")
    u = query.double() if to_q is None else to_q.double() @ query.double()
    width = keys.shape[1] // heads
    per_head = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = [float(key[part] @ u[part]) / math.sqrt(width) for key in keys]
        if softmax:
            top = max(logits)
            total = sum(math.exp(x - top) for x in logits)
            per_head.append([math.exp(x - top) / total for x in logits])
        else:
            per_head.append([math.tanh(x) for x in logits])
    sums = [sum(column) for column in zip(*per_head)]
    if mixing == "mean":
        return torch.tensor([x / heads for x in sums], dtype=torch.float64)
    low = 0.0 if softmax else -1.0
    return torch.tensor([min(1.0, max(low, x)) for x in sums], dtype=torch.float64)


def reference_delta(tensors, name, c, scale=1.0):
    """``scale * sum_n c[n] * (A[n] @ B[n]).T`` in float64."""
    a, b = tensors[f"transformer.{name}.lora_A"].double(), tensors[f"transformer.{name}.lora_B"].double()
    return scale * sum(float(c[n]) * (a[n] @ b[n]).T for n in range(len(a)))


def relative_error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def released_yaml(**network_kwargs) -> str:
    """The config.yaml that lies beside a released checkpoint, with its keys."""
    import yaml

    network = {"type": "lorweb", "linear": 3, "linear_alpha": 3, "network_kwargs": {"external_query": True}}
    for name in ("linear", "linear_alpha"):
        network[name] = network_kwargs.pop(name, network[name])
    network["network_kwargs"] |= network_kwargs
    process = {"network": network, "model": {"name_or_path": "some/base"}}
    return yaml.safe_dump({"job": "extension", "config": {"name": "bank", "process": [process]}})


@pytest.fixture
def make_bank(tmp_path):
    """Write a bank in the released layout; ``yaml_kwargs`` go into its config file, other keywords into its header."""

    def make(spec=None, name="bank.safetensors", metadata=None, yaml_kwargs=None, change=None, **header):
        spec = spec or Spec()
        if header:
            metadata = {**(metadata or {}), "lorweb_config": json.dumps(header)}
        tensors = spec.tensors()
        if change is not None:
            change(tensors)
        path = tmp_path / name
        save_file(tensors, path, metadata=metadata)
        if yaml_kwargs is not None:
            path.with_suffix(".yaml").write_text(released_yaml(linear=spec.rank, **yaml_kwargs), encoding="utf-8")
        return path, tensors

    return make
