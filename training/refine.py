"""Fit an edit to its example pairs: ``python -m training.refine --bank bank.safetensors --base path --pairs folder``.

The folder holds pictures before and after one edit, in any layout that ``training.prepare`` takes. No weight changes:
the mixing coefficients that the bank's encoder guesses are moved so that the flow loss on the pairs falls
(``lorweb_core/refine.py``).
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lorweb_core import BasisBank, CanvasGeometry, MixingCoefficients
from lorweb_core.atomic import replacing
from lorweb_core.card import EditCard
from lorweb_core.cardpicture import card_picture, save_card
from lorweb_core.refine import Refined, Settings, refine_pairs
from lorweb_core.tasks import Pair, Task

from .bases import Conditioning, Told, family_of, joined, moved
from .bases.loading import load_transformer
from .config import Config, load_config
from .data import collate, geometry_of, load_quadrant
from .data.errors import DataError
from .data.images import ImageRef, inspect_file
from .data.manifest import parts_of
from .data.sources import BadItem, reader_of
from .data.validate import check_all
from .device import pick_device
from .encoders.encoding import Encoding, live_encoding
from .run.objective import draw_noise, flow_loss
from .run.start import put_loras
from .tuner import LoRWeBConfig, LoRWeBModel

logger = logging.getLogger(__name__)

_REMEMBERED = 256  # latents of tasks


class TunedModel:
    """A base with a bank on it, as ``lorweb_core.refine`` asks for.

    Args:
        config: of the base, the canvas and the objective.
        prompt: that the model is told.
    """

    def __init__(self, config: Config, bank: BasisBank, device: torch.device, prompt: str = ""):
        self.config, self.bank, self.device, self.prompt = config, bank, device, prompt
        self.encoding: Encoding = live_encoding(config, device, [prompt])
        self.tuner = LoRWeBModel(
            load_transformer(config.base, device), LoRWeBConfig(bank=bank.config, target_modules=list(bank.layers))
        )
        put_loras(self.tuner, bank)
        self.tuner.requires_grad_(False)
        self.sample = self.encoding.family.sampler(config.base.path, self.tuner, self.encoding.coder)
        self._order = [list(bank.layers).index(name) for name in self.tuner.tuner_layers]
        self._seen = lru_cache(_REMEMBERED)(self._see)  # tensors are the same key while they are one object

    @torch.no_grad()
    def query(self, example: Pair, picture: Tensor) -> Tensor:
        """The analogy query [1, q] of an example pair and a picture to edit, on the CPU."""
        item = {"a": example.before, "a_prime": example.after, "b": picture}
        return self.encoding.query(collate([item])).float().cpu()

    def guess(self, example: Pair, picture: Tensor) -> MixingCoefficients:
        """What the bank makes of that query."""
        return self.bank.mix(self.query(example, picture)[0])

    def losses(self, values: Tensor, tasks: Sequence[Task], seed: int) -> Tensor:
        """Flow losses of b': see ``lorweb_core.tasks.Model``."""
        seen = [self._seen(*task.example, *task.answer) for task in tasks]
        target = torch.cat([one.target for one in seen])
        generators = [torch.Generator().manual_seed(_seed(seed, place)) for place in range(len(tasks))]
        objective = self.config.objective
        draw = draw_noise(tuple(target.shape[1:]), generators, objective)
        draw.noise, draw.t = draw.noise.to(target), draw.t.to(self.device)
        self._set(values)
        return flow_loss(self.tuner, target, draw, self._condition(seen), objective).loss

    def _condition(self, seen: "Sequence[_Seen]") -> Conditioning:
        encoding, guided = self.encoding, self.tuner.model.config.guidance_embeds
        guidance = torch.full((len(seen),), self.config.objective.guidance, device=self.device) if guided else None
        references = tuple(torch.cat(batch) for batch in zip(*(one.references for one in seen)))
        text = moved(joined([one.text for one in seen]), self.device, references[0].dtype)
        return Conditioning(encoding.family, encoding.layout, references, text, guidance=guidance)

    @torch.no_grad()
    def answer(self, values: Tensor, example: Pair, picture: Tensor, seed: int = 0) -> Tensor:
        """b' [h, w, 3] by the sampler of the validation."""
        self._set(values)
        encoding, validation = self.encoding, self.config.validation
        columns = collate([encoding.layout.arrange(*example, picture, None)])
        references = [encoding.coder.encode(images) for images in encoding.layout.references(columns)]
        condition = encoding.tell(columns, references, [self.prompt], sampled=True)
        made = self.sample(condition, validation.steps, validation.guidance, seed)
        return encoding.layout.answer(made).clamp(0, 1)

    def _set(self, values: Tensor) -> None:
        self.tuner.set_coefficients(values.to(self.device)[self._order][None])

    @torch.no_grad()
    def _see(self, a: Tensor, a_prime: Tensor, b: Tensor, b_prime: Tensor) -> "_Seen":
        encoding = self.encoding
        columns = collate([encoding.layout.arrange(a, a_prime, b, b_prime)])
        references = tuple(encoding.coder.encode(images) for images in encoding.layout.references(columns))
        (text,) = encoding.prompts([self.prompt], columns)
        return _Seen(references, encoding.coder.encode(columns["target"]), text)


class _Seen(NamedTuple):
    """A task as the model meets it: latents of its references and of its target, and the text of its prompt."""

    references: tuple[Tensor, ...]
    target: Tensor
    text: Told


def _seed(seed: int, place: int) -> int:
    """One number of a signed seed and a place below a million."""
    return (2 * abs(seed) + (seed < 0)) * 2**20 + place


def refine_edit(
    model: TunedModel, pairs: Sequence[Pair], settings: Settings, pictures: Sequence[Tensor] = (), on_record=None
) -> Refined:
    """Refine the edit that pairs show.

    Args:
        pictures: others [h, w, 3], of which a single pair has examples made up.
    """
    targets = list(pictures) or [pair.before for pair in pairs]
    guesses = [model.guess(pair, target) for pair in pairs for target in targets]
    return refine_pairs(MixingCoefficients.blend(guesses), model, pairs, settings, pictures, on_record)


def read_pairs(folder: Path, geometry: CanvasGeometry, fit: str) -> list[Pair]:
    """The pairs of a folder that shows one edit, as they stand in the quadrants.

    Raises:
        DataError: naming the file that cannot be used; when there are no pairs, or pairs of more than one task.
    """
    _, read = reader_of(folder)
    pairs, tasks = [], set()
    for found in check_all(read(folder), workers=1):
        if isinstance(found, BadItem):
            raise DataError(f"{found.file}: {found.reason}")
        candidate = found.candidate
        tasks.add(candidate.task)
        files = zip((candidate.before, candidate.after), found.hashes, parts_of(candidate.halves, candidate.row))
        pairs.append(Pair(*(load_quadrant(ImageRef(*file), geometry, fit) for file in files)))
    if len(tasks) != 1:
        names = f", such as {', '.join(sorted(tasks)[:3])}" if tasks else ""
        raise DataError(f"{folder}: holds pairs of {len(tasks)} tasks{names}; name the folder of one edit")
    return pairs


def settings_of(bank: BasisBank, base: str, encoder: str | None, path: str | Path, overrides: Sequence[str]) -> Config:
    """The configuration that a bank is refined with: a file of training's, and what the bank itself says.

    Only b' counts: the rest of a canvas is there already.

    Raises:
        ValueError: as ``load_config``.
    """
    own = [f"base.path={base}", f"bank.encoder={encoder or bank.config.encoder}"]
    own += [f'bank.query_mode="{bank.config.query_mode}"', f"bank.layout={bank.config.layout}"]
    own += [f"data.canvas={bank.canvas}", "objective.canvas_weight=0"]
    return load_config(Path(path), [*own, "run=.", "data.manifest=.", *overrides])


def main(arguments: list[str] | None = None) -> int:
    """Command line entry."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    try:
        _run(options)
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.refine", description=__doc__.splitlines()[0])
    parser.add_argument("--bank", type=Path, required=True, help="the bank whose coefficients are fitted")
    parser.add_argument("--base", required=True, help="diffusers folder or hub id of the base that it is for")
    parser.add_argument("--pairs", type=Path, required=True, help="folder of before/after pictures of one edit")
    parser.add_argument("--out", type=Path, required=True, help="the edit: a card (.png), or JSON")
    parser.add_argument("--name", help="of the edit; default: the folder's")
    parser.add_argument("--encoder", help="folder or hub id of the image encoder; default: the one the bank names")
    parser.add_argument("--picture", type=Path, action="append", default=[], help="a picture to edit; may be repeated")
    parser.add_argument("--prompt", default="", help="what the model is told beside the pictures")
    parser.add_argument("--config", help="a training configuration: base, objective, validation; default: the base's")
    for name, of in (("steps", "at most"), ("draws", "tasks a step"), ("tie", "weight of the distance from the guess")):
        default = getattr(Settings(), name)
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{of}; default: {default}")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of --config")
    return parser


def _run(options: argparse.Namespace) -> None:
    settings = Settings(steps=options.steps, draws=options.draws, tie=options.tie, seed=options.seed)
    bank = BasisBank.load(options.bank)
    recipe = options.config or family_of(options.base).recipe
    config = settings_of(bank, options.base, options.encoder, recipe, options.overrides)
    geometry = geometry_of(config.layout, config.data.canvas)
    pairs = read_pairs(options.pairs, geometry, config.data.fit)
    files = [ImageRef(path, inspect_file(path).hash) for path in options.picture]
    pictures = [load_quadrant(file, geometry, config.data.fit) for file in files]
    model = TunedModel(config, bank, pick_device(), options.prompt)
    refined = refine_edit(model, pairs, settings, pictures, on_record=_log)
    name = options.name or options.pairs.resolve().name
    write_edit(options.out, card_of(bank, refined.coefficients, name, options.prompt), pairs[0])
    logger.info("%s; wrote %s", refined.report(), options.out)


def card_of(bank: BasisBank, coefficients: MixingCoefficients, name: str, prompt: str) -> EditCard:
    """An edit of a bank as a card."""
    of = bank.config
    return EditCard(coefficients, name, of.query_mode, of.encoder, of.base_model, layout=of.layout, prompt=prompt)


def write_edit(path: Path, card: EditCard, example: Pair) -> None:
    """Write a card with its example, or its text alone where the name does not end in .png.

    Raises:
        FileExistsError: when there is a file of that name.
    """
    if path.suffix.lower() == ".png":
        before, after = (image.mul(255).round().byte().numpy() for image in example)
        save_card(card, path, card_picture(card, before, after))
        return
    with replacing(path, replace=False) as temporary:
        temporary.write_text(card.to_json(), encoding="utf-8")


def _log(record) -> None:
    logger.info("step %d: loss %.5f, held out %.5f", *record)


if __name__ == "__main__":
    sys.exit(main())
