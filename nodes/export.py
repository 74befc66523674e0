"""Save LoRA: one analogy as a plain LoRA file."""

import logging
import os

import folder_paths
import torch
from comfy_api.latest import io, ui

from ..lorweb_core import BasisBank, MixingCoefficients
from ..lorweb_core.export import FORMATS, names_of
from .folders import new_output
from .progress import no_bar, progress_bar
from .sockets import CATEGORY, Basis, Coefficients, schema
from .values import check_values

logger = logging.getLogger(__name__)

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class SaveLoRA(io.ComfyNode):
    """Write the composed LoRA into ComfyUI's output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBSaveLoRA",
            search_aliases=["export lora", "extract lora"],
            display_name="Save LoRA (LoRWeB)",
            category=CATEGORY,
            description="Saves the edit as an ordinary LoRA file. Files in output/loras appear in the stock LoRA"
            " loader.",
            inputs=[
                Basis.Input("basis", tooltip="The bank that the coefficients were made with."),
                Coefficients.Input("coefficients", tooltip="The edit to save."),
                io.String.Input(
                    "filename_prefix",
                    default="loras/lorweb",
                    tooltip="Folder and name below ComfyUI's output folder; a number is added. Keep loras/ so that"
                    " the stock LoRA loader finds the file.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default="diffusers",
                    tooltip="diffusers: names that diffusers and ComfyUI read, those of FLUX.2 in ComfyUI 0.11 and"
                    " newer. comfyui: ComfyUI's own names, for an older one, other interfaces and its bypass LoRA"
                    " loader; a larger file where it fuses layers, as FLUX does.",
                ),
                io.Int.Input(
                    "max_rank",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="0 saves the exact LoRA of rank N x r. Another number truncates it to that rank by SVD"
                    " and reports the error.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="float16",
                    tooltip="Precision of the file. The factors are balanced first, so that float16 loses next to"
                    " nothing.",
                ),
            ],
            outputs=[io.String.Output(display_name="lora_name", tooltip="The file's name for the stock LoRA loader.")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        basis: BasisBank,
        coefficients: MixingCoefficients,
        filename_prefix: str,
        format: str,
        max_rank: int,
        dtype: str,
    ) -> io.NodeOutput:
        check_values(cls, format=format, max_rank=max_rank, dtype=dtype)
        lora = basis.compose(coefficients, no_bar)
        rank = basis.config.num_loras * basis.config.rank
        truncated = 0 < max_rank < rank
        report = f"exact, rank {rank}"
        progress = progress_bar(phases=2 if truncated else 1)
        if truncated:
            lora = lora.truncate(max_rank, progress)
            errors = lora.errors.values()
            report = (
                f"rank {max_rank}, relative error {sum(errors) / len(errors):.2%} on average, {max(errors):.2%} at most"
            )
        path, name, listed = output_path(filename_prefix)
        notes = {"lorweb_bank": basis.path.name, "lorweb_rank": report}
        lora.save(path, format, DTYPES[dtype], notes, progress, replace=False)
        report += f"\n{names_of(lora.names, format)}"
        if not listed:
            report += "\nComfyUI's LoRA loader does not list it: that looks in output/loras, so begin with loras/"
            logger.warning("%s: %s", path, report)
        return io.NodeOutput(name, ui=ui.PreviewText(f"{path}\n{report}"))


def output_path(prefix: str) -> tuple[str, str, bool]:
    """Where a LoRA goes: a new file below the output folder, never one that is there.

    Args:
        prefix: folder and beginning of the name; a folder alone gets a name, nothing at all the default.

    Returns:
        (full path, name for the stock LoRA loader, whether that loader lists it).
    """
    root = folder_paths.get_output_directory()
    path = new_output(prefix, "loras", ".safetensors")
    loras = os.path.abspath(os.path.join(root, "loras"))
    listed = os.path.commonpath([os.path.abspath(path), loras]) == loras
    return path, os.path.relpath(path, loras if listed else root), listed


NODES = [SaveLoRA]
