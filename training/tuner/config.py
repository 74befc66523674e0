"""Configuration of the tuner: what the bank is, and which layers get a basis."""

from collections.abc import Callable
from dataclasses import dataclass

from peft import PeftConfig

from lorweb_core import BankConfig

# Every linear inside the double- and single-stream blocks of FLUX, modulations included: 494 in FLUX.1.
FLUX_TARGETS = (
    r"transformer_blocks\.\d+\.(norm1(_context)?\.linear|attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
    r"|ff(_context)?\.net\.(0\.proj|2))"
    r"|single_transformer_blocks\.\d+\.(norm\.linear|proj_mlp|proj_out|attn\.to_[qkv])"
)

# Name -> rank -> the bound of A's uniform initialisation, times sqrt(in): an ordinary LoRA's, whatever N is, or that of
# the released code, where Kaiming's fan of a three-dimensional A comes out as in * rank.
INITS: dict[str, Callable[[int], float]] = {"linear": lambda rank: 1.0, "released": lambda rank: rank**-0.5}


@dataclass
class LoRWeBConfig(PeftConfig):
    """Configuration of ``LoRWeBModel``.

    Attributes:
        bank: shape and mixing settings, the very object that is written into the bank file.
        init: a key of ``INITS``.
        target_modules: a regular expression that the whole module path has to match, or path endings.
        exclude_modules: the same, for modules to leave out.
    """

    bank: BankConfig | None = None
    init: str = "linear"
    target_modules: str | list[str] = FLUX_TARGETS
    exclude_modules: str | list[str] | None = None
    inference_mode: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bank is None:
            raise ValueError(
                "LoRWeBConfig needs bank=BankConfig(...): the number of basis LoRAs, their rank and the widths"
            )
