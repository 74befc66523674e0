"""One training at a time in a run's folder."""

import os
import re
import socket

import pytest

from training.run.locking import locked


def test_a_second_training_is_refused_and_told_of_the_first(tmp_path):
    run = tmp_path / "run"
    first = f"process {os.getpid()} on {socket.gethostname()} (since 20"
    with locked(run):
        with pytest.raises(ValueError, match=re.escape(f"{run}: {first}")), locked(run):
            pass
        with locked(run, is_main=False):  # a process of the first
            pass
        with locked(tmp_path / "other"):
            pass
    with locked(run):
        pass
    assert [path.name for path in run.iterdir()] in ([], [".lock"])


def test_a_lock_outlives_no_failure(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        (tmp_path / ".lock.json").write_text("[")
        with pytest.raises(ValueError, match="another process trains in this folder"), locked(tmp_path):
            pass
