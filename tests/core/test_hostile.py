"""A short run of ``python -m benchmarks.hostile``: damaged files and texts are refused in plain words, or sound."""

import logging
import sys

import pytest

from benchmarks import hostile
from benchmarks._hostile_cases import CHECKS, Verdict, judge
from lorweb_core import BankError


@pytest.mark.parametrize(
    ("kind", "cases"), [("bank", 300), ("yaml", 150), ("coefficients", 300), ("table", 200), ("card", 300)]
)
def test_damaged_files(kind, cases, tmp_path):
    logging.disable(logging.WARNING)
    try:
        verdicts = {seed: CHECKS[kind](seed, tmp_path) for seed in range(cases)}
    finally:
        logging.disable(logging.NOTSET)
    assert {seed: v for seed, v in verdicts.items() if v.outcome not in hostile.RIGHT} == {}
    assert {v.outcome for v in verdicts.values()} == set(hostile.RIGHT), "both must occur, or the cases are too harsh"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (BankError("bank.safetensors: bad"), "refused"),
        (BankError("bad"), "unnamed"),
        (BankError("bank.safetensors: " + 2048 * "x"), "long message"),
        (KeyError("x"), "other exception"),
    ],
)
def test_verdicts(error, outcome):
    def attempt():
        raise error

    assert judge(attempt, (BankError,), "bank.safetensors").outcome == outcome
    assert judge(lambda: "NaN", (BankError,), "bank.safetensors") == Verdict("NaN")


@pytest.mark.skipif(sys.platform != "linux", reason="a worker that was not forked knows no check of a test")
def test_a_worker_that_dies_or_hangs_is_replaced(monkeypatch):
    def check(seed, folder):
        import os
        import time

        if seed == 1:
            os.kill(os.getpid(), 9)
        if seed == 2:
            time.sleep(60)
        return Verdict("loaded")

    monkeypatch.setitem(CHECKS, "bank", check)
    monkeypatch.setattr(hostile, "SECONDS", 5)
    outcomes = [verdict.outcome for _, verdict in hostile.judge_all("bank", range(4))]
    assert outcomes == ["loaded", "crash", "hang", "loaded"]
