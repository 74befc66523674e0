"""Load SigLIP 2: the image encoder of banks that were trained with it, as a CLIP_VISION.

ComfyUI's own loader knows the larger SigLIP models only, and gives their un-pooled tokens; banks use the pooled output.
"""

import re

import comfy.clip_vision
import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor, nn

from ..lorweb_core.canvas import resize
from .image_encoder import SIGLIP_MEAN, normalise
from .sockets import CATEGORY, schema

# Heads and width of the published vision towers: base, large, so400m and giant. No weight's shape tells the heads.
HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}
UNEVEN = {378: 384}  # side that the patches cover -> image size, where it is no multiple of the patch
PREFIX = "vision_model."
PATCHES, POSITIONS = "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"
FC1 = "encoder.layers.0.mlp.fc1.weight"
LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
# What newer ComfyUI streams weights with; the older has the plain one only.
ModelPatcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


class SiglipVision:
    """A CLIP_VISION whose image embedding is SigLIP's pooled output.

    It has what nodes use of ComfyUI's own CLIP_VISION objects, and none of their insides.

    Args:
        weights: a SigLIP checkpoint in transformers' names; its text tower is ignored.
        name: file name, for errors.

    Raises:
        ValueError: when the checkpoint is no SigLIP vision tower, or lacks weights.
    """

    model_type = "siglip_vision_model"
    naf = None

    def __init__(self, weights: dict[str, Tensor], name: str):
        self.model = _PooledSiglip(weights, name)
        self.config = self.model.config
        self.image_size = self.config["image_size"]
        self.image_mean = self.image_std = SIGLIP_MEAN
        self.load_device = comfy.model_management.text_encoder_device()
        offload_device = comfy.model_management.text_encoder_offload_device()
        self.dtype = torch.float32
        self.model.eval().to(offload_device, self.dtype)
        self.patcher = ModelPatcher(self.model, load_device=self.load_device, offload_device=offload_device)

    def encode_image(self, image: Tensor, crop: bool = True) -> comfy.clip_vision.Output:
        """What ComfyUI's encoders give for images [B, H, W, 3]; SigLIP squeezes and never crops.

        Args:
            crop: ComfyUI's nodes say it to every encoder.
        """
        comfy.model_management.load_model_gpu(self.patcher)
        squares = resize(image.to(self.load_device), self.image_size, self.image_size)
        pixels = normalise(squares, self.image_mean, self.image_std)
        last, penultimate, pooled, projected = self.model(pixels, intermediate_output=-2)
        device = comfy.model_management.intermediate_device()
        output = comfy.clip_vision.Output()
        output.last_hidden_state = last.to(device)
        output.penultimate_hidden_states = penultimate.to(device)
        output.image_embeds = pooled.to(device)
        output.image_sizes = [pixels.shape[1:]] * len(pixels)
        output.mm_projected = projected
        return output


class _PooledSiglip(nn.Module):
    """transformers' SigLIP vision tower behind the forward signature of ComfyUI's vision models."""

    def __init__(self, weights: dict[str, Tensor], name: str):
        from transformers import SiglipVisionConfig, SiglipVisionModel

        super().__init__()
        vision = {k.removeprefix(PREFIX): w for k, w in weights.items() if k.startswith(PREFIX)}
        self.config = read_config(vision, name)
        self.tower = SiglipVisionModel(SiglipVisionConfig(**self.config))
        # Versions of transformers differ in whether the tower's own names carry the prefix.
        prefix = PREFIX if any(key.startswith(PREFIX) for key in self.tower.state_dict()) else ""
        result = self.tower.load_state_dict({prefix + k: w for k, w in vision.items()}, strict=False)
        if result.missing_keys:
            raise ValueError(
                f"{name} lacks {len(result.missing_keys)} weights, such as {result.missing_keys[0]}; get it again"
            )

    def forward(self, pixel_values: Tensor, intermediate_output: int | str | None = None):
        """(last hidden state, the hidden state or "all" [B, layers, T, width], pooled output, None)."""
        out = self.tower(pixel_values=pixel_values, output_hidden_states=True)
        states = torch.stack(out.hidden_states[1:], dim=1)
        intermediate = states if intermediate_output == "all" else states[:, intermediate_output or -1]
        return out.last_hidden_state, intermediate, out.pooler_output, None


def read_config(vision: dict[str, Tensor], name: str) -> dict[str, int]:
    """The sizes of a SigLIP vision tower, told from its weights (in transformers' names, without the prefix).

    Raises:
        ValueError: when they are none, or of a size of which the number of heads is not known.
    """
    if not {"head.probe", PATCHES, POSITIONS, FC1} <= vision.keys() or vision[PATCHES].dim() != 4:
        raise ValueError(
            f"{name} is not a SigLIP checkpoint with its pooling head (such as {PREFIX}head.probe); put the"
            " model.safetensors of google/siglip2-base-patch16-224 into models/clip_vision"
        )
    width, _, patch, _ = vision[PATCHES].shape
    if width not in HEADS:
        raise ValueError(
            f"{name} is a SigLIP of width {width}, of which it is not known how many heads it has; those of"
            f" {', '.join(map(str, HEADS))} can be loaded"
        )
    layers = {int(match[1]) for match in map(LAYER.match, vision) if match}
    if max(layers) != len(layers) - 1:
        raise ValueError(f"{name} has {len(layers)} layers, but one is numbered {max(layers)}; get it again")
    covered = round(vision[POSITIONS].shape[0] ** 0.5) * patch
    return {
        "hidden_size": width,
        "intermediate_size": vision[FC1].shape[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": HEADS[width],
        "image_size": UNEVEN.get(covered, covered),
        "patch_size": patch,
    }


class LoadSiglip(io.ComfyNode):
    """Load a SigLIP 2 vision tower as CLIP_VISION."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBLoadSigLIP",
            search_aliases=["siglip2", "vision encoder"],
            display_name="Load SigLIP 2 Vision (LoRWeB)",
            category=CATEGORY,
            description="Loads SigLIP 2 as the image encoder, for banks that were trained with it. For all other"
            " banks use ComfyUI's Load CLIP Vision.",
            inputs=[
                io.Combo.Input(
                    "clip_name",
                    options=folder_paths.get_filename_list("clip_vision"),
                    tooltip="The model.safetensors of google/siglip2-base-patch16-224, under any name, in"
                    " models/clip_vision.",
                )
            ],
            outputs=[io.ClipVision.Output(display_name="clip_vision", tooltip="The encoder, for Encode Analogy.")],
        )

    @classmethod
    def execute(cls, clip_name: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("clip_vision", clip_name)
        return io.NodeOutput(SiglipVision(comfy.utils.load_torch_file(path, safe_load=True), clip_name))


NODES = [LoadSiglip]
