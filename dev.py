#!/usr/bin/env python3
"""The commands of this repository: demo, test, lint, bench. Needs Python 3.11 or newer and nothing else.

The first command makes ``.venv`` beside this file and installs what the project needs; later ones start at once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

if sys.version_info < (3, 11):  # noqa: UP036  (whatever Python is at hand runs this file)
    sys.exit("Python 3.11 or newer is needed; run this file with one, such as: python3.12 dev.py")

import tomllib

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "installed.sha256"
NO_TESTS_COLLECTED = 5
LONGEST_FIRST = "training", "browser", "nodes", "core"  # folders of tests
# torch and torchvision are pinned below; ComfyUI works without torchaudio but for its audio nodes.
NOT_FROM_COMFYUI = {"torch", "torchvision", "torchaudio"}


def say(text: str) -> None:
    """Tell the user what is going on."""
    print(text, flush=True)


def run_python(*arguments: str | os.PathLike) -> int:
    """Run the environment's Python in the repository and return its exit status."""
    environment = {**os.environ, "PYTHONUTF8": "1"}
    return subprocess.run([PYTHON, *arguments], cwd=ROOT, env=environment).returncode


def run_prefixed(name: str, *arguments: str | os.PathLike) -> int:
    """Run the environment's Python with a name before every line of its output.

    One thread a process: tests compute little, and what runs beside them needs the other core.
    """
    environment = {**os.environ, "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [PYTHON, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", errors="replace",
    ) as process:  # fmt: skip
        for line in process.stdout:
            say(f"{name}: {line.rstrip()}")
    return process.returncode


def must_run(*arguments: str | os.PathLike) -> None:
    """Run the environment's Python; end this command when it fails."""
    status = run_python(*arguments)
    if status:
        sys.exit(status)


def pip_install(*arguments: str | os.PathLike) -> None:
    must_run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments)


def prepare_environment() -> None:
    """Make ``.venv`` and install everything, unless exactly this was installed already."""
    if not PYTHON.exists():
        make_environment()
    say("Preparing ComfyUI ...")
    comfyui = comfyui_requirements()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["dependency-groups"]
    others = sorted({*comfyui, *(r for extra in project["project"]["optional-dependencies"].values() for r in extra)})
    wanted = hashlib.sha256("\n".join([*groups["torch"], *groups["torchvision"], *others]).encode()).hexdigest()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    install(groups["torch"], groups["torchvision"], others)
    STAMP.write_text(wanted)


def make_environment() -> None:
    say(f"Making a virtual environment in {VENV} ...")
    STAMP.unlink(missing_ok=True)
    try:
        venv.create(VENV, with_pip=True)
    except subprocess.CalledProcessError:
        shutil.rmtree(VENV)
        sys.exit("This Python cannot make environments that have pip; on Debian and Ubuntu: apt install python3-venv")


def install(torch: list[str], torchvision: list[str], others: list[str]) -> None:
    """torch first and pinned, so that no other requirement brings another build of it."""
    say("Installing PyTorch into .venv (once; takes some minutes) ...")
    pip_install(*torch)
    pip_install("--no-deps", *torchvision)
    say("Installing what ComfyUI, the training and the tests need into .venv (once; takes some minutes) ...")
    with tempfile.TemporaryDirectory() as folder:
        constraints, wanted = Path(folder, "constraints.txt"), Path(folder, "wanted.txt")
        constraints.write_text("\n".join([*torch, *torchvision]))
        wanted.write_text("\n".join(others))
        pip_install("-c", constraints, "-r", wanted)


def comfyui_requirements() -> list[str]:
    """ComfyUI's own requirements, without torch and its relatives."""
    fetched = subprocess.run([PYTHON, "-m", "harness.fetch"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if fetched.returncode:
        sys.exit(fetched.returncode)
    text = Path(fetched.stdout.strip(), "requirements.txt").read_text(encoding="utf-8")
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and re.split(r"[^\w.-]", line)[0].lower() not in NOT_FROM_COMFYUI]


def demo(arguments: list[str]) -> int:
    """Edit pictures by example in a real ComfyUI."""
    return run_python("-m", "harness.demo", *arguments)


def lint(arguments: list[str]) -> int:
    """Check style and formatting."""
    return run_python("-m", "ruff", "check", *arguments) or run_python("-m", "ruff", "format", "--check", *arguments)


def test(arguments: list[str]) -> int:
    """Run pytest: with arguments once, without them each tier in a process of its own, two at a time."""
    if arguments:
        return run_python("-m", "pytest", *arguments)
    # Those that take longest first: the others fit beside them.
    tiers = sorted({path.parent for path in (ROOT / "tests").glob("*/test_*.py")}, key=_place)
    with ThreadPoolExecutor(2) as threads:
        results = dict(zip((tier.name for tier in tiers), threads.map(run_tier, tiers)))
    say("\nAll tiers:")
    for name, (_, words) in results.items():
        say(f"  {name}: {words}")
    return 0 if results and not any(status for status, _ in results.values()) else 1


def _place(tier: Path) -> int:
    return LONGEST_FIRST.index(tier.name) if tier.name in LONGEST_FIRST else len(LONGEST_FIRST)


def run_tier(tier: Path) -> tuple[int, str]:
    """pytest's exit status for the tests of a folder, and what came of them in words."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        status = run_prefixed(tier.name, "-m", "pytest", tier, f"--junit-xml={report}")
        counts = ElementTree.parse(report).find("testsuite").attrib if report.is_file() else {}
    return status, describe(status, int(counts.get("tests", 0)), int(counts.get("skipped", 0)))


def describe(pytest_status: int, tests: int, skipped: int) -> str:
    """pytest's exit status in words."""
    if pytest_status == 0:
        return f"passed ({tests - skipped}, {skipped} skipped)" if skipped < tests else "SKIPPED, every test of it"
    words = {1: "FAILED", NO_TESTS_COLLECTED: "FAILED (no tests collected)"}
    return words.get(pytest_status, f"FAILED (pytest ended with exit status {pytest_status})")


def bench(arguments: list[str]) -> int:
    """Run the named benchmark, or all of them."""
    there = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))
    name, *rest = arguments or [None]
    if name is not None and name not in there:
        say(f"There is no benchmark {name!r}; there are: {', '.join(there) or 'none'}")
        return 2
    statuses = []
    for benchmark in there if name is None else [name]:
        say(f"\nBenchmark {benchmark} ...")
        statuses.append(run_python("-m", f"benchmarks.{benchmark}", *rest))
    return max(statuses, key=abs, default=0)


COMMANDS = {command.__name__: command for command in (demo, test, lint, bench)}


def main() -> int:
    summary = "\n".join(f"  {name:6} {command.__doc__}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"commands:\n{summary}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to the command")
    chosen = parser.parse_args()
    prepare_environment()
    return COMMANDS[chosen.command](chosen.arguments)


if __name__ == "__main__":
    sys.exit(main())
