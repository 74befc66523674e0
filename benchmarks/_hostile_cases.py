"""Damaged and hostile files and texts, each from a seed, and what becomes of each."""

from __future__ import annotations

import json
import logging
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from lorweb_core import BankError, BasisBank, MixingCoefficients
from lorweb_core.card import CardError, EditCard, load_card
from lorweb_core.cardpicture import load_picture
from lorweb_core.info import describe
from lorweb_core.patterns import parse_block_scales, parse_overrides

LONGEST_MESSAGE = 2048
LAYERS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.10.ff.net.2", "single_transformer_blocks.3.proj_out")
EXTREMES = (float("nan"), float("inf"), 3e38, -3e38, 1e30, 65504.0, 1e10, 1e-39, 0.0)
DIGITS = "9" * 4301
DEEP = "[" * 100_000
ALIASES = "\n".join(["a0: &a0 [x]", *(f"a{i + 1}: &a{i + 1} [{', '.join(9 * [f'*a{i}'])}]" for i in range(9))])
MERGES = "\n".join(
    ["m0: &m0 {a: 1}", *(f"m{i + 1}: &m{i + 1} {{<<: [{', '.join(9 * [f'*m{i}'])}]}}" for i in range(9))]
)
VALUES = (
    None, True, -1, 0, 1, 2, 3, 4, 1e308, -1e-300, 10**400, float("nan"), "", "x" * 100_000, "9", [], {}, [[[[]]]],
    "caa'", "ca'-ca", "cat-aa'b", "mean", "sum", "none", "linear", "\ud800", {"a": [1] * 5000}, 2**70,
)  # fmt: skip
SCALARS = (
    "2020-13-45", "2001-02-30 25:61:61", DIGITS, "0x" + "f" * 5000, "1:" * 3000 + "1", "!!int ''", "!!timestamp x",
    "!!bool maybe", "!!binary '*'", "!!python/object/apply:os.system [true]", "!!float .", "*a9", "*nowhere", "&a [*a]",
    "[" * 3000, "{" * 3000, "'", "~", "[4]", "{a: 1}", "4.0", "yes", ".nan", "\t", "? [a]", "<<: 3", "\ufeff", "\x00",
)  # fmt: skip
NAMES = (
    "", ".", "x" * 5000, "transformer_blocks." + DIGITS + ".to_q", "transformer_blocks.\u0663.to_q", "a\nb\x1b[2J",
    "..", "single_transformer_blocks.0." + "y" * 150, "transformer_blocks.0.attn.to_q",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What became of a case: "loaded" and "refused" are right; "other exception", "long message", "unnamed" and "NaN"
    are not.
    """

    outcome: str
    detail: str = ""


def judge(attempt: Callable[[], str], errors: tuple[type, ...], name: str) -> Verdict:
    """Run an attempt, which says "loaded" or "NaN", or is refused with one of the error types, naming the file."""
    try:
        return Verdict(attempt())
    except Exception as error:  # whatever it is, it is what we look for
        text = str(error)
        if type(error) not in errors:
            return Verdict("other exception", f"{type(error).__name__}: {text[:200]}")
    if len(text.encode(errors="replace")) >= LONGEST_MESSAGE:
        return Verdict("long message", text[:200])
    return Verdict("refused", text) if name in text else Verdict("unnamed", text[:200])


def check_bank(seed: int, folder: Path) -> Verdict:
    """Load a damaged bank; if it loads, make an edit of it and save that."""
    path = folder / "bank.safetensors"
    path.write_bytes(damaged_bank(random.Random(seed)))
    return judge(lambda: _use(BasisBank.load(path), seed, folder), (BankError,), str(path))


def check_yaml(seed: int, folder: Path) -> Verdict:
    """Load a sound bank beside a damaged YAML."""
    path = folder / "released.safetensors"
    if not path.is_file():
        path.write_bytes(to_bytes(_sound(0, False)))
    path.with_suffix(".yaml").write_bytes(damaged_yaml(random.Random(seed)))
    return judge(lambda: _use(BasisBank.load(path), seed, folder), (BankError,), str(path))


def check_coefficients(seed: int, folder: Path) -> Verdict:
    """Read damaged JSON of coefficients, change them and compose them with their bank."""
    text = damaged_json(random.Random(seed))
    return judge(lambda: _compose(MixingCoefficients.from_json(text)), (ValueError, BankError), "")


def check_table(seed: int, folder: Path) -> Verdict:
    """Read damaged block scales and overrides, and apply them."""
    rng = random.Random(seed)
    scales, overrides = damaged_table(rng, "{} = {}"), damaged_table(rng, "{} 1 = {}")

    def attempt() -> str:
        c = MixingCoefficients(torch.full((len(LAYERS), 4), 0.25), LAYERS)
        return _compose(c.scale_blocks(parse_block_scales(scales)).override(parse_overrides(overrides)))

    return judge(attempt, (ValueError, BankError), "")


def check_manifest(seed: int, folder: Path) -> Verdict:
    """Read a damaged manifest of pairs, all of it."""
    from training.data import DataError, Manifest

    path = folder / "pairs.jsonl"
    path.write_bytes(damaged_manifest(random.Random(seed)))

    def attempt() -> str:
        manifest = Manifest.load(path)
        return "loaded" if len(list(manifest)) and manifest.digest else "NaN"

    return judge(attempt, (DataError,), str(path))


def check_card(seed: int, folder: Path) -> Verdict:
    """Read a damaged edit card with its picture, and compose what is in it with a bank, which may refuse it."""
    from ._hostile_cards import damaged_card

    path = folder / "card.png"
    path.write_bytes(damaged_card(random.Random(seed)))

    def attempt() -> str:
        card = load_card(path)
        text, finite = card.to_json(), card.coefficients.values.isfinite().all()
        same = EditCard.from_json(text).to_json() == text and load_picture(path, card).size > 0
        return "loaded" if finite and same and _fits(card.coefficients) != "NaN" else "NaN"

    return judge(attempt, (CardError,), str(path))


CHECKS: dict[str, Callable[[int, Path], Verdict]] = {
    "bank": check_bank,
    "yaml": check_yaml,
    "coefficients": check_coefficients,
    "table": check_table,
    "manifest": check_manifest,
    "card": check_card,
}


def _use(bank: BasisBank, seed: int, folder: Path) -> str:
    describe(bank)
    query = torch.randn(2, bank.config.query_dim, generator=torch.Generator().manual_seed(seed))
    c = bank.mix(query).mean()
    lora = bank.compose(c)
    finite = c.values.isfinite().all() and all(_product(lora, name).isfinite().all() for name in lora.names)
    if finite and seed % 10 == 0:
        finite = _saves_finite(lora, folder / "lora.safetensors")
    return "loaded" if finite else "NaN"


def _product(lora, name: str) -> Tensor:
    down, up = lora.factors(name)
    bias = lora.bias(name)
    return up @ down if bias is None else (up @ down) + bias[:, None]


def _saves_finite(lora, path: Path) -> bool:
    path.unlink(missing_ok=True)
    try:
        lora.save(path, dtype=torch.float16)
    except ValueError:  # of biases, or of what half precision does not hold
        return True
    return all(tensor.isfinite().all() for tensor in load_file(path).values())


def _compose(c: MixingCoefficients) -> str:
    for changed in (c, c.temperature(0.05), c.temperature(9.0), c.top_k(1)):
        if not (changed.values.isfinite().all() and changed.entropy().isfinite().all()):
            return "NaN"
    lora = _bank().compose(c)
    return "loaded" if all(_product(lora, name).isfinite().all() for name in lora.names) else "NaN"


def _fits(c: MixingCoefficients) -> str:
    try:
        return _compose(c)
    except ValueError:
        return "refused"


@lru_cache
def _bank() -> BasisBank:
    import tempfile

    path = Path(tempfile.mkdtemp()) / "sound.safetensors"
    path.write_bytes(to_bytes(_sound(0, False)))
    logging.disable(logging.WARNING)
    return BasisBank.load(path)


@lru_cache
def _sound(seed: int, projection: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dtype = (torch.float32, torch.float16, torch.bfloat16)[seed % 3]
    shapes = {"lora_A": (4, 8, 2), "lora_B": (4, 2, 8), "lora_keys": (4, 8)}
    shapes |= {"att_lora_to_q.weight": (8, 12)} if projection else {}
    shapes |= {("lora_up_bias", "lora_B_bias")[seed % 2]: (4, 8)} if seed > 3 else {}
    return {
        f"transformer.{layer}.{name}": torch.randn(shape, generator=generator).to(dtype)
        for layer in LAYERS
        for name, shape in shapes.items()
    }


def damaged_bank(rng: random.Random) -> bytes:
    """The bytes of a small bank that something happened to."""
    tensors = dict(_sound(rng.randrange(6), rng.random() < 0.7))
    metadata = _settings(rng) if rng.random() < 0.4 else None
    kind = rng.randrange(4)
    if kind == 0:
        for _ in range(rng.randint(1, 3)):
            _damage_tensors(tensors, rng)
    data = to_bytes(tensors, metadata)
    if kind == 1:
        return damage_bytes(data, rng)
    return _damage_header(data, rng) if kind == 2 else data


def _settings(rng: random.Random) -> dict[str, str]:
    names = ("num_loras", "rank", "key_dim", "query_dim", "heads", "softmax", "mixing", "query_mode", "encoder",
             "base_model", "alpha", "projection", "colour")  # fmt: skip
    settings = {name: rng.choice(VALUES) for name in rng.sample(names, rng.randint(0, 2))}
    text = json.dumps(settings)
    if rng.random() < 0.2:
        text = rng.choice((DEEP, f'{{"alpha": {DIGITS}}}', text[:-1], "null", '"x"', f'{{"rank": {DEEP}', "[]"))
    return {"lorweb_config": text, "canvas": rng.choice(("512", DIGITS, "-1", "0", "\u0663"))}


def _damage_tensors(tensors: dict[str, Tensor], rng: random.Random) -> None:
    name = rng.choice([name for name, tensor in tensors.items() if tensor.numel()])
    tensor = tensors[name].clone()
    kind = rng.randrange(7)
    if kind == 0:
        tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice(EXTREMES)
    elif kind == 1:
        tensor = (tensor.double() * 10.0 ** rng.randint(-45, 38)).clamp(-3e38, 3e38).float()
    elif kind == 2:
        del tensors[name]
        return
    elif kind == 3:
        shape = list(tensor.shape)
        shape[rng.randrange(len(shape))] = rng.choice((0, 1, 3, 5, 300))
        tensor = torch.ones(shape)
    elif kind == 4:
        tensor = tensor.to(rng.choice((torch.int8, torch.float64, torch.bool, torch.float8_e4m3fn, torch.float16)))
    elif kind == 5:
        tensor = tensor.reshape(rng.choice(((-1,), (1, -1), (1,) * 30 + (-1,), tensor.shape[::-1])))
    else:
        for part in ("lora_A", "lora_B", "lora_keys", "att_lora_to_q.weight"):
            if (twin := tensors.get(f"transformer.{LAYERS[0]}.{part}")) is not None:
                tensors[f"transformer.{rng.choice(NAMES)}.{part}"] = twin.clone()
        return
    tensors[name] = tensor.contiguous()


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes with some flipped, inserted or lost, cut off, or with another length of a header."""
    damaged, kind = bytearray(data), rng.randrange(5)
    if kind == 0:
        for _ in range(rng.randint(1, 64)):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del damaged[rng.randrange(len(damaged)) :]
    elif kind == 2:
        at = rng.randrange(len(damaged))
        damaged[at:at] = rng.randbytes(rng.randint(1, 64))
    elif kind == 3:
        at = rng.randrange(len(damaged))
        damaged[at : at + rng.randint(1, 256)] = b""
    else:
        damaged[:8] = struct.pack("<Q", rng.choice((0, 1, 2**63, 2**32, len(data), rng.randrange(2**16))))
    return bytes(damaged)


def _damage_header(data: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry, kind = header[name], rng.randrange(6)
    if kind == 0:
        header[rng.choice(NAMES) + rng.choice(("", ".lora_A", ".lora_up_bias"))] = header.pop(name)
    elif kind == 1:
        entry["dtype"] = rng.choice(("F64", "F8_E4M3", "I64", "BOOL", "BF16", "F16", "U8", "x" * 9999, None, 3))
    elif kind == 2:
        entry["shape"] = rng.choice(([], [0], [2**63], [2**40, 2**40], [-1], [1] * 9999, DIGITS, None, [4, 16]))
    elif kind == 3:
        entry["data_offsets"] = rng.choice(([0, 0], [0, 2**62], [8, 4], [-8, 0], [], None, [0, len(body) + 1]))
    elif kind == 4:
        header["__metadata__"] = rng.choice(
            ({"a": 1}, [], {"lorweb_config": "{}" * 9}, {"x" * 9999: "y" * 99_999}, None)
        )
    text = json.dumps(header)
    if kind == 5:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(("{", "}", '"', "[", DEEP, "9" * 400, "\\ud800", "\x00", ",")) + text[at + 1 :]
    raw = text.encode(errors="surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + body


def damaged_yaml(rng: random.Random) -> bytes:
    """A released bank's configuration that something happened to."""
    sound = {
        "loras_num": "4", "lora_keys_dim": "8", "lora_heads": "2", "lora_softmax": "true", "external_query": "true",
        "mixing_coeffs_type": "mean", "query_mode": "ca'-ca", "external_query_model": "a/b",
        "query_projection_type": "none",
    }  # fmt: skip
    for name in rng.sample(list(sound), rng.randint(0, 2)):
        sound[name] = rng.choice(SCALARS)
    before = rng.choice(("", "", "", ALIASES, MERGES, f"a9: &a9 {rng.choice(SCALARS)}", "- 1", "%YAML 9.9", "---\n---"))
    kwargs = "".join(f"        {name}: {value}\n" for name, value in sound.items())
    text = f"{before}\nconfig:\n  name: x\n  process:\n  - network:\n      linear: 2\n      network_kwargs:\n{kwargs}"
    raw = text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig")), errors="surrogatepass")
    return damage_bytes(raw, rng) if rng.random() < 0.3 else raw


def damaged_json(rng: random.Random) -> str:
    """Saved coefficients that something happened to."""
    document = {"format": "lorweb-coefficients", "version": 1, "softmax": True}
    document["layers"] = {layer: [0.25] * 4 for layer in LAYERS}
    rows, name = document["layers"], rng.choice(LAYERS)
    kind = rng.randrange(6)
    if kind == 0:
        document[rng.choice(list(document))] = rng.choice(VALUES)
    elif kind == 1:
        rows[rng.choice(NAMES)] = rows.pop(name)
    elif kind == 2:
        rows[name] = rng.choice(VALUES)
    else:
        rows[name][rng.randrange(4)] = rng.choice((*VALUES, *EXTREMES, 1e39))
    text = json.dumps(document)
    if kind == 5:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(("", DEEP, DIGITS, "{", '"', "NaN", "\ud800", "1e999", "\x00")) + text[at + 1 :]
    return text


def damaged_table(rng: random.Random, line: str) -> str:
    """Lines of ``line``, a format of a pattern and a number, with odd ones of both."""
    patterns = (*LAYERS, *NAMES, "*", "transformer_blocks.{0-30000000}", "{9-0}", "{0-9}" * 40, "[", "[z-a]", "*?" * 90,
                "x" * 9999, f"{{0-{DIGITS}}}", "single_*", "transformer_blocks.{0-4}")  # fmt: skip
    numbers = ("1", "0.5", "-2", "1e39", "1e30", "nan", "inf", DIGITS, "x" * 9999, "", "0x1", "1_0", "\u0663")
    lines = [line.format("transformer_blocks.{0-4}", "0.5")]
    lines += [
        line.format(rng.choice(patterns), rng.choice(("0.5", rng.choice(numbers)))) for _ in range(rng.randrange(2))
    ]
    text = "\n".join(lines)
    return text * 20_000 if len(text) < 60 and rng.random() < 0.3 else text


def damaged_manifest(rng: random.Random) -> bytes:
    """A manifest of pairs of which one line is odd."""
    sound = {"task": "t", "before": "a.jpg", "after": "b.jpg", "prompt": "p", "size": [8, 8], "hashes": ["x", "y"]}
    odd = dict(sound)
    odd[rng.choice((*odd, "halves", "row"))] = rng.choice((*VALUES, [0, 0], [10**400, 1], ["x"], [DIGITS, None]))
    text = json.dumps(odd)
    if rng.random() < 0.4:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(("", DEEP, DIGITS, "{", '"', "NaN", "\ud800", "\\ud800", "\x00")) + text[at + 1 :]
    lines = [json.dumps(sound), text, json.dumps(sound)]
    raw = "\n".join(lines).encode(errors="surrogatepass")
    return damage_bytes(raw, rng) if rng.random() < 0.3 else raw
