"""What mixing coefficients know: analogies of one edit lie together, and blends lie between two edits."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lorweb_core import BasisBank, MixingCoefficients
from lorweb_core.gallery import centred_cosines
from training.data import AnalogyDataset, collate
from training.data.layouts import CANVAS
from training.encoders.encoding import Encoding, live_encoding
from training.evaluate import Evaluation
from training.judge.intervals import mean, share
from training.pictures.recipe import Recipe, Task, edit_of, tasks

from ._starter_setting import SETS, SHIPPED, Setting, family_of

BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)
_BATCH = 32


def retrieval(setting: Setting) -> None:
    """How often the nearest analogy of another task shows the same edit, or one of the same family."""
    encoding, bank, rows, facts = live_encoding(setting.config(), torch.device("cpu")), setting.bank(SHIPPED), [], {}
    for name in SETS[:2]:
        names, vectors = embed(encoding, bank, setting.dataset(name), setting.analogies)
        for what, embedded in vectors.items():
            for label, of in (("edit", edit_of), ("family", family_of)):
                hits, chance = nearest_neighbours(embedded, names, of)
                rows.append((name, what, f"same {label}", len(hits), f"{share(hits):.1%}", f"{chance:.1%}"))
        facts[name] = names
    header = ("set", "vectors", "neighbour", "analogies", "share", "chance")
    setting.report("retrieval", "Nearest neighbours, of other tasks", header, rows, facts)


@torch.no_grad()
def embed(
    encoding: Encoding, bank: BasisBank, dataset: AnalogyDataset, count: int
) -> tuple[list[str], dict[str, Tensor]]:
    """Tasks of the first analogies of a set, and their mixing coefficients [n, L*N] and queries [n, q]."""
    names, queries = [], []
    for start in tqdm(range(0, count, _BATCH), desc="encoding", unit="batch"):
        columns = collate([dataset[number] for number in range(start, min(start + _BATCH, count))])
        names += columns["task"]
        queries.append(encoding.query(columns))
    query = torch.cat(queries)
    return names, {"coefficients": bank.mix(query).values.flatten(1), "query": query}


def nearest_neighbours(
    vectors: Tensor, names: Sequence[str], label_of: Callable[[str], str]
) -> tuple[list[bool], float]:
    """Whether the nearest analogy of another task bears the same label, of every analogy for which there is one.

    Args:
        vectors: [n, e]; near is what has a large cosine after the mean is taken off.
        names: the task of each.

    Returns:
        The outcomes, and the share of true ones that neighbours drawn by chance would give.
    """
    labels = [label_of(name) for name in names]
    other, same = (torch.tensor([[p != q for q in column] for p in column]) for column in (names, labels))
    alike = other & ~same
    nearest = centred_cosines(vectors, vectors).masked_fill(~other, -torch.inf).argmax(1)
    possible = alike.any(1)
    hits = alike.gather(1, nearest[:, None])[possible, 0]
    return hits.tolist(), (alike.sum(1) / other.sum(1))[possible].mean().item()


@dataclass(frozen=True)
class Walk:
    """Mean squared errors along the blends of two edits of one image: to the answers at both ends, and to both
    true b's."""

    tasks: tuple[str, str]
    to_first: list[float]
    to_second: list[float]
    to_first_truth: list[float]
    to_second_truth: list[float]


def interpolation(setting: Setting) -> None:
    """Blend the coefficients of two analogies; the canvas shows the first example throughout."""
    drawn = [task for task in tasks(Recipe.load(setting.recipe(SETS[0]))) if task.edit.apply]
    evaluation, rng = setting.evaluation(), np.random.default_rng(0)
    walks = [
        walk(evaluation, *two_tasks(rng, drawn), number)
        for number in tqdm(range(setting.fewer), desc="interpolation", unit="pair")
    ]
    columns = ("to_first", "to_second", "to_first_truth", "to_second_truth")
    rows = [
        (blend, *(f"{mean([getattr(walked, column)[step] for walked in walks]):.4f}" for column in columns))
        for step, blend in enumerate(BLENDS)
    ]
    header = ("t", "MSE to answer 0", "to answer 1", "to true b' of edit 0", "to true b' of edit 1")
    facts = list(map(asdict, walks))
    setting.report("interpolation", f"Blending two edits: {len(walks)} pairs", header, rows, facts)
    monotone = [("rises", "answer 0", [rising(walked.to_first) for walked in walks])]
    monotone += [("falls", "answer 1", [rising(walked.to_second[::-1]) for walked in walks])]
    monotone += [("both", "", [rising(walked.to_first) and rising(walked.to_second[::-1]) for walked in walks])]
    rows = [(what, end, f"{share(outcomes):.1%}") for what, end, outcomes in monotone]
    setting.report("monotony", "Monotone at every step of t", ("distance", "to", "share of pairs"), rows, None)


def two_tasks(rng: np.random.Generator, drawn: Sequence[Task]) -> tuple[Task, Task]:
    """Two tasks of different edits.

    Raises:
        ValueError: when there is only one edit.
    """
    first = drawn[rng.integers(len(drawn))]
    others = [task for task in drawn if task.edit.name != first.edit.name]
    if not others:
        raise ValueError("interpolation needs two edits of photographs in the recipe")
    return first, others[rng.integers(len(others))]


def walk(evaluation: Evaluation, first: Task, second: Task, seed: int) -> Walk:
    """Answer one b with the blends of two edits."""
    (contestant,) = evaluation.contestants
    # Pairs are numbered by the seed, beyond those that became files.
    b = first.pair(3 * seed + 1000)[0]
    truths = [torch.from_numpy(task.edit.apply(b, task.parameters)) for task in (first, second)]
    items = [example_item(*task.pair(3 * seed + 1001 + place), b) for place, task in enumerate((first, second))]
    ends = [contestant.bank.mix(evaluation.encoding.query(collate([item]))[0]) for item in items]
    told, answers = evaluation.tell(items[0], ""), []
    for blend in BLENDS:
        contestant.wear(MixingCoefficients.blend(ends, (1 - blend, blend)))
        answers.append(evaluation.sample(told, seed))
    distances = ([F.mse_loss(answer, goal).item() for answer in answers] for goal in (answers[0], answers[-1], *truths))
    return Walk((first.name, second.name), *distances)


def example_item(a: np.ndarray, a_prime: np.ndarray, b: np.ndarray) -> dict[str, Tensor]:
    """Images [h, w, 3] in 0..1 as the encoding takes an analogy."""
    images = {"a": a, "a_prime": a_prime, "b": b}
    tensors = {name: torch.from_numpy(np.asarray(image, dtype=np.float32)) for name, image in images.items()}
    return CANVAS.arrange(tensors["a"], tensors["a_prime"], tensors["b"], None)


def rising(values: Sequence[float]) -> bool:
    """Whether every value is above the one before."""
    return all(before < after for before, after in pairwise(values))
