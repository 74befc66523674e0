"""The models that banks are made for: the only room that names their classes.

To add a family, write a file beside ``klein.py`` and name it here.
"""

from ..config import Config
from ..hub import locate
from .family import Coder, Conditioning, Family, Sampler, Told, joined, moved
from .klein import Klein
from .kontext import Kontext
from .qwen_edit import QwenEdit

KONTEXT, KLEIN, QWEN_EDIT = Kontext(), Klein(), QwenEdit()
FAMILIES: tuple[Family, ...] = (KONTEXT, KLEIN, QWEN_EDIT)


def family_of(base: str) -> Family:
    """The family of a diffusers folder or hub id, told from its transformer's configuration.

    Raises:
        ValueError: when there is none, or it is of a family that is not known here.
    """
    try:
        settings = KONTEXT.transformer.load_config(**locate(base, "base.path"), subfolder="transformer")
    except OSError as error:
        raise ValueError(f"base.path: {base} holds no transformer of a diffusers pipeline ({error})") from error
    found, known = settings.get("_class_name"), {family.transformer.__name__: family for family in FAMILIES}
    if found not in known:
        names = ", ".join(f"{family.name} ({name})" for name, family in known.items())
        raise ValueError(f"base.path: the transformer of {base} is a {found}; expected one of {names}")
    return known[found]


def targets_of(config: Config) -> str:
    """Which layers of the base get a basis: a regular expression of whole module paths."""
    return config.bank.targets or family_of(config.base.path).targets


__all__ = [
    "FAMILIES",
    "KLEIN",
    "KONTEXT",
    "QWEN_EDIT",
    "Coder",
    "Conditioning",
    "Family",
    "Sampler",
    "Told",
    "family_of",
    "joined",
    "moved",
    "targets_of",
]
