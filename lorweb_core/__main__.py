"""``python -m lorweb_core info FILE``: check a bank and say what it is.

``python lorweb_core info FILE`` is the same. Windows' embedded Python needs that: it looks for modules in its own
folders only, not in the one that it is started from.
"""

import argparse
import json
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    from .bank import BasisBank
    from .config import BankError
    from .info import describe, summary

    parser = argparse.ArgumentParser(prog="python -m lorweb_core", description="Tools for LoRWeB basis banks.")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="check a bank file and print what it holds")
    info.add_argument("file", help="a .safetensors bank; its YAML is read from beside it")
    info.add_argument("--json", action="store_true", help="print JSON for machines")
    options = parser.parse_args(arguments)
    try:
        bank = BasisBank.load(options.file)
    except BankError as error:
        _say(f"error: {' '.join(str(error).split())}", sys.stderr)
        return 1
    _say(json.dumps(summary(bank), indent=2) if options.json else describe(bank), sys.stdout)
    return 0


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
