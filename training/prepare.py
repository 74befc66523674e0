"""``python -m training.prepare SOURCE --out manifest.jsonl``: check pairs of images and list them for training.

Nothing is copied or converted: the manifest names the files. Bad items are listed first, and left out.
Exit status: 0 when something usable is written, 1 when not, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .data.errors import DataError
from .data.estimate import estimate, survey
from .data.sources import FORMATS, BadItem, Found, reader_of
from .data.writer import Summary, UnusableSource, bad_items_path, check_ours, write_manifest

SHOWN = 100
_BY_CAPTION = "--task-from-caption"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    out = Path(options.out)
    sys.stdout.reconfigure(errors="backslashreplace")  # file names hold what a console may not be able to show
    try:
        layout, summary = _prepare(options, Path(options.source), out)
        _show_bad_items(out)
    except (DataError, OSError) as error:
        if isinstance(error, UnusableSource):
            _show_bad_items(out)
        print(f"error: {error}", file=sys.stderr)
        return 1
    _show_summary(summary, out)
    if not options.task_from_caption:
        _warn_of_captions(layout, summary)
    return 0


def _parser() -> argparse.ArgumentParser:
    layouts = "\n".join(f"  {name:15} {module.LAYOUT}" for name, module in FORMATS.items())
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare",
        description="Check pairs of images before | after an edit and write the manifest that training reads.",
        epilog=f"formats (a task is one edit, shown by all of its pairs):\n{layouts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="folder with the images, a JSONL file of pairs, or a recipe to draw")
    parser.add_argument("--out", required=True, help="the manifest to write, a .jsonl file")
    parser.add_argument("--format", choices=["auto", *FORMATS], default="auto", help="layout of the source")
    parser.add_argument(_BY_CAPTION, action="store_true", help="pairs of one caption are a task, wherever they lie")
    parser.add_argument("--workers", type=_positive, default=os.cpu_count() or 1, help="threads that decode")
    parser.add_argument("--quick", action="store_true", help="read headers only; truncated images stay unnoticed")
    parser.add_argument("--strict", action="store_true", help="write nothing when anything is bad")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _prepare(options: argparse.Namespace, source: Path, out: Path) -> tuple[str, Summary]:
    _check_out(source, out)
    name, read = reader_of(source, options.format)
    out.parent.mkdir(parents=True, exist_ok=True)

    def items() -> Iterator[Found]:
        return map(_named_by_caption, read(source)) if options.task_from_caption else read(source)

    counted = survey(items())
    print(f"{source}: layout {name}")
    print(estimate(counted, out, options.workers, options.quick).describe(), flush=True)
    return name, write_manifest(items(), out, options.workers, options.quick, options.strict, total=counted.items)


def _check_out(source: Path, out: Path) -> None:
    if out.is_dir():
        raise DataError(f"{out}: is a folder; --out names the manifest file to write, such as {out / 'manifest.jsonl'}")
    if source.resolve() == out.resolve():
        raise DataError(f"{out}: is the source itself; give the manifest another name with --out")
    check_ours(out, {"task", "before", "after", "hashes"}, "manifest")


def _named_by_caption(item: Found) -> Found:
    return item if isinstance(item, BadItem) or not item.prompt else replace(item, task=item.prompt)


def _show_bad_items(out: Path) -> None:
    listing = bad_items_path(out)
    if not listing.is_file():
        return
    count = 0
    with open(listing, encoding="utf-8") as file:
        for count, line in enumerate(file, start=1):
            if count <= SHOWN:
                item = json.loads(line)
                print(f"bad: {item['file']}: {item['reason']}")
    if count > SHOWN:
        print(f"bad: ... and {count - SHOWN:,} more")
    print(f"{count:,} bad items, all listed in {listing}")


def _show_summary(summary: Summary, out: Path) -> None:
    print(f"{out}: {summary.pairs:,} pairs in {summary.tasks:,} tasks, {summary.bad:,} bad items left out")


def _warn_of_captions(layout: str, summary: Summary) -> None:
    """Where a folder is a task only because nothing else was known, many captions say that it is many edits.

    Relation252K's and a JSONL file's tasks are meant, unless there is one alone.
    """
    suspects = summary.captions if "folder" in layout or "control" in layout or summary.tasks == 1 else {}
    many = {task: count for task, count in suspects.items() if count > 1}
    if not many:
        return
    task = max(many, key=many.get)
    print(
        f"warning: {len(many):,} of {summary.tasks:,} tasks have several captions, such as {task!r} with"
        f" {many[task]:,}. A task is one edit: an analogy shows it by one pair and asks for it on another."
        f" If every caption is an edit of its own, run this again with {_BY_CAPTION}"
    )


if __name__ == "__main__":
    sys.exit(main())
