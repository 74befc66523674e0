"""A new analogy ready: its coefficients, Apply and the patching of all weights, a moved slider to the first step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from harness.inprocess import load_comfyui

from .._measure import timed
from .report import attempt, report
from .setting import Setting, queries

Make = Callable[[float], object]  # strength -> patched model


def run(setting: Setting) -> None:
    """Report all of it."""
    load_comfyui()
    with torch.inference_mode():
        bank = setting.bank()
        lora = composed(bank)
        with attempt("coefficients"):
            measure_mix(bank, measure_bandwidth(setting))
        with attempt("patching, bf16"):
            measure_patching(setting, "bf16", bank, lora)
        with attempt("moved slider"):
            model = setting.flux(offload=torch.device("cpu"))
            measure_slider(setting, makers(model, bank, lora))
            measure_slider_at_run_time(setting, model, bank)
            del model
        with attempt("patching, fp8"):
            measure_patching(setting, "fp8", bank, lora)


def measure_bandwidth(setting: Setting) -> float:
    """Bytes per second that the device's memory moves, read and written ones both counted."""
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    source = torch.empty(int(setting.gib * 2**30), dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    seconds = statistics.median(timed(lambda: target.copy_(source)) for _ in range(5))
    bandwidth = 2 * source.numel() / seconds
    report("bandwidth of the card's memory", bandwidth / 1e9, "GB/s")
    on_host = torch.empty(source.shape, dtype=torch.uint8).fill_(1)
    seconds = statistics.median(timed(lambda: source.copy_(on_host)) for _ in range(3))
    report("copy from main memory, not pinned", source.numel() / seconds / 1e9, "GB/s")
    return bandwidth


def measure_mix(bank, bandwidth: float) -> None:
    """Coefficients of all layers, where the node computes them and on the card, against one reading of the matrix."""
    import comfy.model_management

    from lorweb_core.mixing import mixing_coefficients

    shape = (len(bank.layers), bank.config.heads, bank.config.num_loras)
    device = comfy.model_management.get_torch_device()
    folded = torch.randn(math.prod(shape), bank.config.query_dim, device=device)  # in place of the bank's own
    (query,) = queries(bank, 1)
    z = query.to(device)

    def on_the_card() -> None:
        logits = (z @ folded.mT).unflatten(-1, shape)
        mixing_coefficients(logits, bank.config.softmax, bank.config.mixing).cpu()

    def milliseconds(call: Callable[[], object]) -> float:
        return 1000 * statistics.median([timed(call) for _ in range(25)][5:])

    once = 1000 * folded.numel() * folded.element_size() / bandwidth
    what = f"coefficients of {len(bank.layers)} layers"
    report(f"{what}, as the node computes them", milliseconds(lambda: bank.mix(query)), "ms")
    report(f"{what}, on the card", milliseconds(on_the_card), "ms", 2 * once)
    report("one reading of the folded matrix at the card's bandwidth", once, "ms")


def composed(bank) -> dict[str, torch.Tensor]:
    """The LoRA of equal rank, half precision and diffusers' names, as the stock loader holds what Save LoRA writes."""
    import comfy.model_management

    from lorweb_core.checkpoint import PREFIX
    from lorweb_core.mixing import composed_factors

    device = comfy.model_management.get_torch_device()
    lora = bank.compose(bank.mix(queries(bank, 1)[0]))
    tensors = {}
    for name, layer in bank.layers.items():
        a, b, c = (t.to(device, torch.float32) for t in (layer.A, layer.B, lora.layer_coefficients(name)))
        for kind, factor in zip("AB", composed_factors(a, b, c, bank.config.scale)):
            tensors[f"{PREFIX}{name}.lora_{kind}.weight"] = factor.half().contiguous().cpu()
    return tensors


def makers(model, bank, lora: dict[str, torch.Tensor]) -> dict[str, Make]:
    """How a graph patches the model with a strength: through Apply, and through the stock LoRA loader."""
    import comfy.sd
    from lorweb_pack.nodes.apply import Apply

    coefficients = bank.mix(queries(bank, 1)[0])
    return {
        "Apply": lambda strength: Apply.execute(model, bank, coefficients, strength).args[0],
        "stock LoRA loader": lambda strength: comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0],
    }


def measure_patching(setting: Setting, dtype: str, bank, lora: dict[str, torch.Tensor]) -> None:
    """From graph to patched weights, which lie on the card; taking the patches out again is not counted."""
    candidates = makers(setting.flux(dtype), bank, lora)
    seconds = {name: [] for name in candidates}
    for _ in range(setting.rounds + 1):
        for name, make in candidates.items():
            seconds[name].append((timed(lambda make=make: make(1.0)), patch_time(make(1.0))))
    medians = {name: [statistics.median(column) for column in zip(*rows[1:])] for name, rows in seconds.items()}
    for name, (node, patching) in medians.items():
        report(f"{dtype}, {name}: the node", node, "s")
        report(f"{dtype}, {name}: patching all weights", patching, "s")
    ours, stock = (sum(medians[name]) for name in candidates)
    report(f"{dtype}, Apply / stock LoRA loader: node and patching", ours / stock, "", 0.5)
    for name, make in candidates.items():
        report_kernels(f"{dtype}, {name}: patching", make(1.0))


def patch_time(model) -> float:
    """Seconds until the patches are in the weights; takes them out again."""
    seconds = timed(lambda: model.patch_model(device_to=model.load_device))
    model.unpatch_model(device_to=model.load_device)
    return seconds


def report_kernels(title: str, model, most: int = 6) -> None:
    """Where the time of patching goes: the kernels and copies that take most of it."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as profiled:
        patch_time(model)
    events = profiled.key_averages()
    if torch.cuda.is_available():
        events = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        times = {event.key: (event.self_device_time_total, event.count) for event in events}
    else:
        times = {event.key: (event.self_cpu_time_total, event.count) for event in events}
    for key, (microseconds, count) in sorted(times.items(), key=lambda item: -item[1][0])[:most]:
        report(f"{title}: {count} x {key[:90]}", microseconds / 1e6, "s")


def measure_slider(setting: Setting, candidates: dict[str, Make]) -> None:
    """From a moved strength to the end of the first sampling step, the weights patched anew; ComfyUI's own loading."""
    sampler = setting.sampler()
    sampler(next(iter(candidates.values()))(1.0), 1)
    seconds = {name: [] for name in candidates}
    for strength in (0.8, 0.6):
        for name, make in candidates.items():
            edited = make(strength)
            seconds[name].append(timed(lambda edited=edited: sampler(edited, 1)))
    for name, values in seconds.items():
        report(f"bf16, {name}: moved slider to the end of the first step", min(values), "s")
    report("bf16, nothing moved, to the end of the first step", timed(lambda: sampler(edited, 1)), "s")
    ours, stock = (min(values) for values in seconds.values())
    report("bf16, Apply / stock LoRA loader: moved slider", ours / stock)


def measure_slider_at_run_time(setting: Setting, model, bank) -> None:
    """The same for an edit at run time, which patches nothing."""
    from lorweb_pack.nodes.apply import Apply

    sampler, coefficients, seconds = setting.sampler(), bank.mix(queries(bank, 1)[0]), []
    for strength in (1.0, 0.8, 0.6):
        edited = Apply.execute(model, bank, coefficients, strength, mode="runtime").args[0]
        seconds.append(timed(lambda edited=edited: sampler(edited, 1)))
    report("bf16, Apply at run time: moved slider to the end of the first step", min(seconds[1:]), "s")
