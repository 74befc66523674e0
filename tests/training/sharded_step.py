"""Run by test_sharding on every process: one step of a tuner that FSDP2 shards equals the step of a whole one."""

import training  # noqa: F401  # isort: skip  (makes diffusers importable, so it comes first)

import torch
import torch.distributed as dist
from diffusers import FluxTransformer2DModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lorweb_core import BankConfig
from training.tuner import LoRWeBConfig, LoRWeBModel


def make_tuner() -> LoRWeBModel:
    """The same small tuner on every process."""
    torch.manual_seed(0)
    base = FluxTransformer2DModel(
        num_attention_heads=1, num_layers=1, num_single_layers=1, joint_attention_dim=32, pooled_projection_dim=16
    )
    bank = BankConfig(num_loras=2, rank=2, key_dim=4, query_dim=6, query_mode="caa'b")
    tuner = LoRWeBModel(base, LoRWeBConfig(bank=bank))
    for layer in tuner.tuner_layers.values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    return tuner


def step(tuner: LoRWeBModel) -> dict[str, torch.Tensor]:
    """Adapter state after one step on a fixed batch."""
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "hidden_states": (2, 8, 64), "encoder_hidden_states": (2, 3, 32), "pooled_projections": (2, 16),
        "timestep": (2,), "img_ids": (8, 3), "txt_ids": (3, 3), "query": (2, 6),
    }  # fmt: skip
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    optimizer = torch.optim.SGD([p for p in tuner.parameters() if p.requires_grad], lr=1000.0)
    tuner(**inputs, return_dict=False)[0].square().mean().backward()
    optimizer.step()
    return tuner.adapter_state_dict()


def main() -> None:
    """Compare the two."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole, sharded = make_tuner(), make_tuner()
    before = whole.adapter_state_dict()
    before = {name: value.clone() for name, value in before.items()}
    for block in (*sharded.model.transformer_blocks, *sharded.model.single_transformer_blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert isinstance(sharded.mixer.keys, DTensor)
    expected, found = step(whole), step(sharded)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    assert max((expected[name] - before[name]).abs().max() for name in before) > 1e-2
    assert sharded.bank_tensors(found).keys() == sharded.tuner_layers.keys()
    dist.destroy_process_group()


main()
