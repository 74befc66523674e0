"""The tests marked ``gpu`` that need nothing but ComfyUI: core and nodes."""

from __future__ import annotations

import sys

import pytest

from harness.comfyui import ROOT

from .report import report
from .setting import Setting

TIERS = ("core", "nodes")


class _Results:
    """A pytest plugin that reports every test as it ends."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            tell(report)


def tell(outcome: pytest.TestReport) -> None:
    """Report one test's outcome, on a line of its own after pytest's dots."""
    print()
    report(outcome.nodeid.rpartition("/")[2], outcome.outcome, f"in {outcome.duration:.1f} s")


def run(setting: Setting) -> None:
    """Run them with pytest in this process.

    Raises:
        RuntimeError: when a test failed.
    """
    files = [path for tier in TIERS for path in sorted((ROOT / "tests" / tier).glob("test_*gpu.py"))]
    dry = ["--gpu-tests-anywhere", "-k", "core or bf16"] if setting.dry else []
    status = pytest.main(["-m", "gpu", "-q", "-s", "-p", "no:cacheprovider", *dry, *map(str, files)], [_Results()])
    sys.stdout.flush()
    if status:
        raise RuntimeError(f"pytest ended with exit status {int(status)}")
