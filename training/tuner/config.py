"""Configuration of the tuner: what the bank is, and which layers get a basis."""

from collections.abc import Callable
from dataclasses import dataclass

from peft import PeftConfig

from lorweb_core import BankConfig

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
    target_modules: str | list[str] = ""
    exclude_modules: str | list[str] | None = None
    inference_mode: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bank is None:
            raise ValueError(
                "LoRWeBConfig needs bank=BankConfig(...): the number of basis LoRAs, their rank and the widths"
            )
        if not self.target_modules:
            raise ValueError("LoRWeBConfig needs target_modules: which layers get a basis, such as a family's targets")
