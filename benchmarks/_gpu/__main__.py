"""Run parts in this process: ``python -m benchmarks._gpu [--dry] --folder FOLDER PART...``."""

import argparse
import importlib
import logging
from pathlib import Path

from .report import report_machine
from .setting import Setting
from .words import PART


def main() -> None:
    """Run the parts named, in that order."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("parts", nargs="+")
    chosen = parser.parse_args()
    setting = Setting.toy(chosen.folder) if chosen.dry else Setting(chosen.folder)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # ComfyUI says how much of a model it loads
    report_machine()
    for part in chosen.parts:
        print(f"{PART} {part}", flush=True)
        importlib.import_module(f"{__package__}.{part}").run(setting)


if __name__ == "__main__":
    main()
