"""``python -m lorweb_core info FILE`` checks a bank and says what it is; ``edits FOLDER`` lists and ranks edit cards.

``python lorweb_core info FILE`` is the same. Windows' embedded Python needs that: it looks for modules in its own
folders only, not in the one that it is started from.
"""

import argparse
import json
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lorweb_core", description="Tools for LoRWeB banks and edits.")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="check a bank file and print what it holds")
    info.add_argument("file", help="a .safetensors bank; its YAML is read from beside it")
    info.add_argument("--json", action="store_true", help="print JSON for machines")
    info.set_defaults(run=_info)
    edits = commands.add_parser("edits", help="list the edit cards of a folder, or rank them by likeness")
    edits.add_argument("folder", help="cards (.png) or coefficients (.json), in folders below it too")
    edits.add_argument("--like", metavar="CARD", help="rank the others by the cosine of their coefficients with it")
    edits.add_argument("--top", metavar="K", type=int, default=10, help="of how many the ranking is; 10 by default")
    edits.add_argument("--sheet", metavar="PNG", help="draw what --like finds as a contact sheet, in a new file")
    edits.set_defaults(run=_edits)
    options = parser.parse_args(arguments)
    if options.command == "edits" and options.sheet and not options.like:
        parser.error("--sheet draws what --like finds; name a card with --like")
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        _say(f"error: {' '.join(str(error).split())}", sys.stderr)
        return 1
    return 0


def _info(options: argparse.Namespace) -> None:
    from .bank import BasisBank
    from .info import describe, summary

    bank = BasisBank.load(options.file)
    _say(json.dumps(summary(bank), indent=2) if options.json else describe(bank), sys.stdout)


def _edits(options: argparse.Namespace) -> None:
    from .card import load_card
    from .cardpicture import contact_sheet, save_picture
    from .gallery import Gallery, nearest

    gallery = Gallery.of_folder(options.folder)
    if options.like:
        edit = load_card(options.like).coefficients
        gallery = gallery.like(edit)
        matches = nearest(edit, gallery.cards, options.top)
        lines = [f"{match.cosine:6.3f}  {match.path}: {match.card.describe()}" for match in matches]
    else:
        lines = [f"{path}: {card.describe()}" for path, card in gallery.cards.items()]
    _say("\n".join(lines) or f"{options.folder}: no edits there", sys.stdout)
    for reason in gallery.refused.values():
        _say(f"left out: {' '.join(reason.split())}", sys.stderr)
    if options.sheet:
        save_picture(contact_sheet(matches), options.sheet)


def _say(text: str, stream) -> None:
    """Print names from strangers' files on any console: Windows' cp1252 has few letters."""
    encoding = getattr(stream, "encoding", None) or "ascii"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


if __name__ == "__main__":
    if not __package__:  # started by its path: its modules are those of the package, and not at the top
        here = Path(__file__).resolve().parent
        sys.path[:] = [str(here.parent), *(entry for entry in sys.path if Path(entry).resolve() != here)]
        __package__ = here.name
    sys.exit(main())
