"""The starter: a small model and bank that this pack's own scripts trained and that come with it."""

import json
from pathlib import Path

import comfy.clip_vision
import comfy.latent_formats
import comfy.sd
import comfy.utils
import numpy as np
import torch
from comfy.cli_args import args
from comfy_api.latest import io
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from ..lorweb_core import BasisBank
from ..lorweb_core.packing import PACKED, unpack
from .counted import CountedBank
from .narrow_flux import load_narrow_flux
from .progress import progress_bar
from .sockets import CATEGORY, Basis, image_of, schema

FOLDER = Path(__file__).resolve().parent.parent / "starter"
EXAMPLES = FOLDER / "examples"
FLUX = comfy.latent_formats.Flux()


class LoadStarter(io.ComfyNode):
    """Everything that an edit by example needs, in one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBLoadStarter",
            search_aliases=["edit by example", "demo model"],
            display_name="Load LoRWeB Starter",
            category=CATEGORY,
            description="Loads the small model that comes with this pack: it edits pictures of 128 x 128 pixels by"
            " example within seconds on a CPU. It shows how everything works; for real pictures use"
            " FLUX.1-Kontext-dev and a bank for it. Set Canvas to a long_side of 256.",
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A FLUX of seventeen million parameters."),
                io.Vae.Output(display_name="vae", tooltip="Its autoencoder."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="The image encoder of its bank."),
                Basis.Output(display_name="basis", tooltip="Its basis bank."),
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="The empty prompt: the example alone says what to do."
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        bank = BasisBank.load(_file("bank.safetensors"), progress_bar(phases=2), mmap=not args.disable_mmap)
        return io.NodeOutput(_model(), _vae(), _clip_vision(), CountedBank(bank), _prompt())


class StarterExample(io.ComfyNode):
    """An analogy to try the starter on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBStarterExample",
            search_aliases=["edit by example", "demo images"],
            display_name="Starter Example (LoRWeB)",
            category=CATEGORY,
            description="An example pair a, a', a picture b that the starter has never seen, and what b' should be."
            " Load Image nodes in its place edit your own pictures.",
            inputs=[io.Combo.Input("example", options=example_names(), tooltip="Which analogy.")],
            outputs=[
                io.Image.Output(display_name="image_a", tooltip="a: before the edit."),
                io.Image.Output(display_name="image_a_prime", tooltip="a': after the edit."),
                io.Image.Output(display_name="image_b", tooltip="b: the picture to edit."),
                io.Image.Output(display_name="image_b_prime", tooltip="The true b', to compare with."),
            ],
        )

    @classmethod
    def execute(cls, example: str) -> io.NodeOutput:
        names = ("a", "a_prime", "b", "b_prime")
        return io.NodeOutput(*(image_of(_pixels(_file(f"examples/{example}/{name}.png"))) for name in names))


def example_names() -> list[str]:
    """The analogies that come with the starter."""
    return sorted(folder.name for folder in EXAMPLES.iterdir()) if EXAMPLES.is_dir() else []


def _file(name: str) -> str:
    """Path of a file of the starter.

    Raises:
        FileNotFoundError: saying what to do.
    """
    path = FOLDER / name
    if not path.is_file():
        raise FileNotFoundError(f"{name} is missing from the starter; install the pack again (it belongs at {path})")
    return str(path)


def _pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def _model():
    packed = f"base/transformer/{PACKED}"  # as `python -m training.starter export` writes it
    name = packed if (FOLDER / packed).is_file() else "base/transformer/diffusion_pytorch_model.safetensors"
    weights = unpack(comfy.utils.load_torch_file(_file(name)), torch.float16)
    # ComfyUI takes a FLUX without guidance for FLUX.1-schnell, whose schedule has no shift.
    with open(_file("base/scheduler/scheduler_config.json"), encoding="utf-8") as file:
        shift = json.load(file)["shift"]
    return load_narrow_flux(weights, name, shift=shift)


def _vae() -> comfy.sd.VAE:
    weights = comfy.utils.load_torch_file(_file("base/vae/diffusion_pytorch_model.safetensors"))
    return comfy.sd.VAE(sd=taesd_weights(weights))


def taesd_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' AutoencoderTiny under the names of TAESD, which ComfyUI loads."""
    renamed = {}
    for name, tensor in weights.items():
        half, _, number, rest = name.split(".", 3)
        # TAESD's decoder counts the clamp of its input as its first layer.
        renamed[f"taesd_{half}.{int(number) + (half == 'decoder')}.{rest}"] = tensor
    # They undo ComfyUI's scaling of FLUX latents: the starter was trained on this autoencoder's own.
    return renamed | {"vae_scale": torch.tensor(FLUX.scale_factor), "vae_shift": torch.tensor(FLUX.shift_factor)}


def _clip_vision() -> comfy.clip_vision.ClipVisionModel:
    encoder = comfy.clip_vision.ClipVisionModel(_file("encoder/config.json"))
    encoder.load_sd(comfy.utils.load_torch_file(_file("encoder/model.safetensors")))
    return encoder


def _prompt() -> list:
    """The empty prompt as ComfyUI's conditioning."""
    with safe_open(_file("base/prompts.safetensors"), framework="pt") as file:
        row = json.loads(file.metadata()["prompts"]).index("")
        tokens, pooled = (file.get_tensor(name)[row : row + 1].to(torch.float32) for name in ("tokens", "pooled"))
    return [[tokens, {"pooled_output": pooled}]]


NODES = [LoadStarter, StarterExample]
