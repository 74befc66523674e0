"""Load Basis: a bank file from ``models/lorweb``."""

import os
from pathlib import Path

from comfy.cli_args import args
from comfy_api.latest import io, ui

from ..lorweb_core import BasisBank
from ..lorweb_core.info import describe
from ..lorweb_core.released import shared_yamls
from .counted import CountedBank
from .folders import basis_names, basis_path
from .progress import progress_bar
from .sockets import CATEGORY, Basis, schema


class LoadBasis(io.ComfyNode):
    """Load a basis bank, checked and memory-mapped."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBLoadBasis",
            search_aliases=["basis bank", "lora basis", "visual analogy"],
            display_name="Load Basis (LoRWeB)",
            category=CATEGORY,
            description="Loads a basis bank from models/lorweb: N small LoRAs for every layer, from which an analogy"
            " mixes one. The whole file is checked; its tensors stay on the CPU until the model is patched. The"
            " released bank was trained with instructions: name the edit in the prompt.",
            inputs=[
                io.Combo.Input(
                    "basis_name",
                    options=basis_names(),
                    tooltip="A bank file (.safetensors) in models/lorweb. A released bank's config.yaml belongs"
                    " beside it, named like the bank.",
                )
            ],
            outputs=[
                Basis.Output(display_name="basis", tooltip="The bank, for Encode Analogy, Apply and Save LoRA."),
                io.String.Output(
                    display_name="info", tooltip="What the bank is: layers, N, rank, query, encoder, base, layout."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, basis_name: str) -> bool:
        """Leave a missing file to ``execute``, which says where it belongs.

        Of errors found here the page shows no word as long as any other output of the graph can run.
        """
        return True

    @classmethod
    def fingerprint_inputs(cls, basis_name: str | None) -> str:
        if basis_name is None:  # it comes through a link, and ComfyUI sees for itself when that changes
            return ""
        bank = Path(basis_path(basis_name))
        yamls = [path for path in (bank.with_suffix(".yaml"), *shared_yamls(bank)) if path.is_file()]
        files = {str(path): os.stat(path) for path in (bank, *yamls)}
        return "; ".join(f"{path} {status.st_mtime_ns} {status.st_size}" for path, status in files.items())

    @classmethod
    def execute(cls, basis_name: str) -> io.NodeOutput:
        bank = BasisBank.load(basis_path(basis_name), progress_bar(phases=2), mmap=not args.disable_mmap)
        text = describe(bank)
        return io.NodeOutput(CountedBank(bank), text, ui=ui.PreviewText(text))


NODES = [LoadBasis]
