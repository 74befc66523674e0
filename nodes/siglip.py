"""Load SigLIP 2: the image encoder of banks that were trained with it, as a CLIP_VISION.

ComfyUI's own loader knows the larger SigLIP models only, and gives their un-pooled tokens; banks use the pooled output.
"""

import comfy.clip_vision
import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor, nn

from .sockets import CATEGORY

# Heads and width of the published vision towers: base, large, so400m and giant. No weight's shape tells the heads.
HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}
UNEVEN = {378: 384}  # side that the patches cover -> image size, where it is no multiple of the patch
PREFIX = "vision_model."


class SiglipVision(comfy.clip_vision.ClipVisionModel):
    """A CLIP_VISION whose image embedding is SigLIP's pooled output.

    Args:
        weights: a SigLIP checkpoint in transformers' names; its text tower is ignored.
        name: file name, for errors.

    Raises:
        ValueError: when the checkpoint is no SigLIP vision tower, or lacks weights.
    """

    def __init__(self, weights: dict[str, Tensor], name: str):
        self.model = _PooledSiglip(weights, name)
        self.image_size = self.model.image_size
        self.image_mean = self.image_std = [0.5, 0.5, 0.5]
        self.return_all_hidden_states = False
        self.load_device = comfy.model_management.text_encoder_device()
        offload_device = comfy.model_management.text_encoder_offload_device()
        self.dtype = torch.float32
        self.model.eval().to(offload_device, self.dtype)
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.model, load_device=self.load_device, offload_device=offload_device
        )


class _PooledSiglip(nn.Module):
    """transformers' SigLIP vision tower behind the forward signature of ComfyUI's vision models."""

    def __init__(self, weights: dict[str, Tensor], name: str):
        from transformers import SiglipVisionConfig, SiglipVisionModel

        super().__init__()
        vision = {k.removeprefix(PREFIX): w for k, w in weights.items() if k.startswith(PREFIX)}
        if not {"head.probe", "embeddings.position_embedding.weight"} <= vision.keys():
            raise ValueError(
                f"{name} is not a SigLIP checkpoint with its pooling head: {PREFIX}head.probe is missing; put the"
                " model.safetensors of google/siglip2-base-patch16-224 into models/clip_vision"
            )
        width, _, patch, _ = vision["embeddings.patch_embedding.weight"].shape
        if width not in HEADS:
            raise ValueError(
                f"{name} is a SigLIP of width {width}, of which it is not known how many heads it has; those of"
                f" {', '.join(map(str, HEADS))} can be loaded"
            )
        covered = round(vision["embeddings.position_embedding.weight"].shape[0] ** 0.5) * patch
        self.image_size = UNEVEN.get(covered, covered)
        self.tower = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=width,
                intermediate_size=vision["encoder.layers.0.mlp.fc1.weight"].shape[0],
                num_hidden_layers=1 + max(int(k.split(".")[2]) for k in vision if k.startswith("encoder.layers.")),
                num_attention_heads=HEADS[width],
                image_size=self.image_size,
                patch_size=patch,
            )
        )
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


class LoadSiglip(io.ComfyNode):
    """Load a SigLIP 2 vision tower as CLIP_VISION."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRWeBLoadSigLIP",
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
