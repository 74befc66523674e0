"""Edits on a GGUF base, by the GGUF loader that people use, where LORWEB_GGUF names its folder.

It is no part of this repository. It needs the package gguf: ``LORWEB_GGUF=path/to/ComfyUI-GGUF python -m pytest
tests/nodes/test_gguf.py``.
"""

import importlib.util
import os
import sys
from pathlib import Path

import comfy.model_detection
import comfy.sd
import comfy.utils
import numpy as np
import pytest
import torch
from lorweb_pack.lorweb_core import BasisBank
from lorweb_pack.lorweb_core.tasks import Pair, Task
from lorweb_pack.nodes.apply import PATCH, RUNTIME, Apply
from lorweb_pack.nodes.fitting import FittedModel
from lorweb_pack.nodes.layouts import LAYOUTS
from lorweb_pack.nodes.narrow_flux import _load

from harness.small_flux_pack.loader import load_small_flux
from harness.small_models import SMALL_BANK, SMALL_FLUX, SMALL_VAE

from .dense import add_by_hand, relative, sample
from .test_refine import loss_and_gradient, random_prompt, slope

LOADER = os.environ.get("LORWEB_GGUF")
pytestmark = pytest.mark.skipif(not LOADER, reason="LORWEB_GGUF names no folder of a GGUF loader")
if LOADER:
    gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def loader():
    """The loader as a package, as ComfyUI imports it."""
    file = Path(LOADER, "__init__.py")
    spec = importlib.util.spec_from_file_location("gguf_pack", file, submodule_search_locations=[LOADER])
    sys.modules["gguf_pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["gguf_pack"])
    return sys.modules["gguf_pack"]


def q4_k(weight: np.ndarray) -> np.ndarray:
    """Q4_K blocks of 256 weights [out, in], with scales of four of their six bits: [out, in / 256 * 144] bytes."""
    x = weight.reshape(-1, 8, 32)
    low = np.maximum(-x.min(-1), 0)
    spread = x.max(-1) + low
    d, d_low = ((v.max(-1, keepdims=True) / 15).astype(np.float16) for v in (spread / 15, low))
    scales, lows = ((v / s).round().clip(0, 15).astype(np.uint8) for v, s in ((spread / 15, d), (low, d_low)))
    levels = (x + (d_low * lows)[..., None]) / np.maximum(d * scales, 1e-8)[..., None]
    levels = levels.round().clip(0, 15).astype(np.uint8).reshape(-1, 4, 2, 32)
    packed = [scales[:, :4], lows[:, :4], scales[:, 4:] | lows[:, 4:] << 4, (levels[:, :, 0] | levels[:, :, 1] << 4)]
    parts = [d.view(np.uint8), d_low.view(np.uint8), *(part.reshape(len(x), -1) for part in packed)]
    return np.concatenate(parts, axis=1).reshape(len(weight), -1)


@pytest.fixture(scope="module")
def quantised(loader, small_models, tmp_path_factory):
    """A small FLUX in Q4_K as the loader gives it, and the weights that it stands for."""
    kind, path = gguf.GGMLQuantizationType.Q4_K, tmp_path_factory.mktemp("gguf") / "flux.gguf"
    writer, meant = gguf.GGUFWriter(path, "flux"), {}
    for name, tensor in comfy.utils.load_torch_file(str(small_models / "diffusion_models" / SMALL_FLUX)).items():
        weight = tensor.float().numpy()
        if "_blocks." in name and weight.ndim == 2:
            packed = q4_k(weight)
            meant[name] = torch.from_numpy(gguf.dequantize(packed, kind))
            assert relative(meant[name], tensor.float()) < 0.2
            writer.add_tensor(name, packed, raw_dtype=kind)
        else:
            meant[name] = tensor.float()
            writer.add_tensor(name, weight)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    weights = loader.nodes.gguf_sd_loader(str(path))
    weights = weights[0] if isinstance(weights, tuple) else weights
    config = comfy.model_detection.model_config_from_unet(weights, "")
    config.unet_config["num_heads"] = config.unet_config["hidden_size"] // sum(config.unet_config["axes_dim"])
    config.custom_operations = loader.nodes.GGMLOps()
    # As its advanced loader offers; by default weights are taken out in half precision.
    config.custom_operations.Linear.dequant_dtype = "target"
    return loader.nodes.GGUFModelPatcher.clone(_load(config, weights, torch.float32)), meant


@pytest.mark.parametrize("mode", [PATCH, RUNTIME])
def test_q4_k_takes_the_edit(quantised, small_models, mode):
    model, meant = quantised
    bank = BasisBank.load(small_models / "lorweb" / SMALL_BANK)
    edit = bank.mix(torch.randn(2304, generator=torch.Generator().manual_seed(0)))
    dense = load_small_flux(small_models / "diffusion_models" / SMALL_FLUX, torch.float32)
    dense.model.diffusion_model.load_state_dict(meant)
    base = sample(dense)
    meant = {name: tensor.clone() for name, tensor in meant.items()}
    add_by_hand(meant, bank, edit, 1.0, 256)
    dense.model.diffusion_model.load_state_dict(meant)
    with torch.inference_mode():
        before = sample(model)
        edited = sample(Apply.execute(model, bank, edit, 1.0, mode).args[0])
        error = relative(edited, sample(dense))
        assert relative(before, base) < 1e-5 and error < 1e-5
        assert torch.equal(sample(model), before)


def test_q4_k_is_differentiated(quantised, small_models):
    """As Refine Edit does it; told by the slope of the loss."""
    model, _ = quantised
    bank = BasisBank.load(small_models / "lorweb" / SMALL_BANK)
    with torch.inference_mode():
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(small_models / "vae" / SMALL_VAE)))
        fitted = FittedModel(model, bank, random_prompt(model), vae, LAYOUTS["canvas"])
        edit = bank.mix(torch.randn(2304, generator=torch.Generator().manual_seed(0)))
        a, b = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(0))
        task = Task(Pair(a, 0.5 * a), Pair(b, 0.5 * b))
        _, gradient = loss_and_gradient(fitted, edit.values, task)
        direction = gradient / gradient.norm()
        assert relative(slope(fitted, edit.values, task, direction), gradient.norm()[None]) < 1e-2
