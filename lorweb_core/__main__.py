"""``python -m lorweb_core info FILE``: check a bank and say what it is."""

import argparse
import json
import sys

from .bank import BasisBank
from .config import BankError
from .info import describe, summary


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lorweb_core", description="Tools for LoRWeB basis banks.")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="check a bank file and print what it holds")
    info.add_argument("file", help="a .safetensors bank; its YAML is read from beside it")
    info.add_argument("--json", action="store_true", help="print JSON for machines")
    options = parser.parse_args(arguments)
    try:
        bank = BasisBank.load(options.file)
    except BankError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(json.dumps(summary(bank), indent=2) if options.json else describe(bank))
    return 0


if __name__ == "__main__":
    sys.exit(main())
