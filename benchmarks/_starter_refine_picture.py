"""The picture of refining in the README: edits that were never trained, drawn by a seed; failures stay in."""

import random
from dataclasses import replace

from training.data import AnalogyDataset
from training.data.layouts import CANVAS
from training.device import pick_device
from training.refine import TunedModel
from training.run.tracking import labelled_grid

from ._starter_refine import GUESS, LOGITS, MOST, ONE, PAIRS, arms, example_pairs
from ._starter_setting import SETS, SHIPPED, Setting

_ROWS, _SEED, _CELL = 6, 0, 128
_COLUMNS = {GUESS: "b': the guess", ONE: "refined, 1 pair", LOGITS: f"refined, {PAIRS} pairs"}


def refine_picture(setting: Setting) -> None:
    """Write ``results/refined.jpg``: a, a', b, the guess, refined, and the true b'."""
    setting = replace(setting, overrides=(*setting.overrides, "objective.canvas_weight=0"))
    model, dataset = TunedModel(setting.config(), setting.bank(SHIPPED), pick_device()), setting.dataset(SETS[1])
    drawn = random.Random(_SEED).sample(range(MOST), _ROWS)
    path = setting.run / "results" / "refined.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    labelled_grid([_row(model, dataset, number) for number in drawn], _CELL).save(path, quality=88)


def _row(model: TunedModel, dataset: AnalogyDataset, number: int) -> dict:
    item, pairs = dataset[number], example_pairs(dataset, number)
    b, truth = item["b"], CANVAS.answer(item["target"])
    makers, answers = arms(model, pairs, b, truth), {}
    for arm, label in _COLUMNS.items():
        made = makers[arm]()
        values = getattr(made, "coefficients", made).values
        answers[label] = model.answer(values, pairs[0], b, number)
    return {"a": pairs[0].before, "a'": pairs[0].after, "b": b, **answers, "the true b'": truth}
