"""Files: whole or not there, never replaced where they must not be, and noticed when somebody writes into them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorweb_core import BankError, BasisBank
from lorweb_core.__main__ import main
from lorweb_core.atomic import replacing
from lorweb_core.checkpoint import save_atomically

from .conftest import Spec

LAYER = "transformer_blocks.0.attn.to_q"
ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX")


@pytest.fixture
def loaded(make_bank):
    path, tensors = make_bank()
    bank = BasisBank.load(path)
    return path, tensors, bank, bank.mix(torch.randn(36))


def write_into(path):
    """As ``cp`` does: the same file with other content."""
    with open(path, "r+b") as file:
        file.truncate(100)


@posix
def test_a_bank_that_is_cut_off_is_noticed_before_its_pages_are_read(loaded):
    """To read them would end the process with SIGBUS."""
    path, _, bank, c = loaded
    lora = bank.compose(c)
    write_into(path)
    actions = [
        lambda: bank.compose(c), lambda: bank.mix(torch.randn(36)), lambda: lora.factors(LAYER),
        lambda: lora.truncate(2), lambda: lora.save(path.with_name("x")), lambda: bank.save(path.with_name("y")),
    ]  # fmt: skip
    for action in actions:
        with pytest.raises(BankError, match=r"has changed since .* load it again.* copy that beside it .* rename"):
            action()
    assert os.listdir(path.parent) == [path.name]


@posix
def test_a_bank_that_is_overwritten_with_its_own_size_is_noticed(loaded):
    path, _, bank, c = loaded
    os.utime(path, ns=(0, 0))
    with pytest.raises(BankError, match="has changed"):
        bank.compose(c)


@posix
def test_a_bank_that_is_replaced_is_still_whole(loaded):
    """Another file under its name leaves the loaded one alone: its edits are those it would have made."""
    path, _, bank, c = loaded
    delta = bank.delta(LAYER, c)
    os.replace(path.parent / save_other(path.parent), path)
    assert torch.equal(bank.delta(LAYER, c), delta)
    with pytest.raises(BankError, match=r"has changed since"):
        bank.save(path.with_name("saved.safetensors"))


def save_other(folder):
    save_file(Spec(seed=1).tensors(), folder / "other.safetensors")
    return "other.safetensors"


@posix
@pytest.mark.parametrize("moment", [0, 5, 10])
def test_a_bank_that_is_replaced_while_it_is_read_is_no_mixture(make_bank, moment):
    path, _ = make_bank()
    seen = []

    def replace(done, total):
        if len(seen) == moment:
            os.replace(path.parent / save_other(path.parent), path)
        seen.append(done)

    with pytest.raises(BankError, match="has changed"):
        BasisBank.load(path, progress=replace)


@posix
def test_without_mapping_a_bank_is_in_memory(make_bank):
    path, _ = make_bank(alpha=3)
    mapped = BasisBank.load(path)
    query = torch.randn(36)
    expected = mapped.delta(LAYER, mapped.mix(query))
    del mapped
    bank = BasisBank.load(path, mmap=False)
    if Path("/proc/self/maps").exists():
        assert str(path) not in Path("/proc/self/maps").read_text()
    write_into(path)
    assert torch.equal(bank.delta(LAYER, bank.mix(query)), expected)


@posix
def test_without_mapping_where_safetensors_can_only_map(make_bank, monkeypatch):
    """Versions before 0.8: the tensors are copied out of the mapping."""
    from lorweb_core import tensorfile

    opener = tensorfile.safe_open
    monkeypatch.setattr(tensorfile, "safe_open", lambda path, framework, device: opener(path, framework, device))
    path, tensors = make_bank()
    bank = BasisBank.load(path, mmap=False)
    write_into(path)
    assert torch.equal(bank.layers[LAYER].A, tensors[f"transformer.{LAYER}.lora_A"])


def test_a_file_is_never_replaced_where_it_must_not_be(loaded, tmp_path):
    _, _, bank, c = loaded
    path = tmp_path / "lora.safetensors"
    path.write_text("dear")
    with pytest.raises(FileExistsError, match=r"lora\.safetensors: there is a file of this name already"):
        bank.compose(c).save(path, replace=False)
    assert path.read_text() == "dear" and sorted(os.listdir(tmp_path)) == ["bank.safetensors", "lora.safetensors"]
    bank.compose(c).save(tmp_path / "new.safetensors", replace=False)
    bank.compose(c).save(path)
    assert load_file(path).keys() == load_file(tmp_path / "new.safetensors").keys()


def test_a_drive_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    for content, there in (("first", False), ("second", True)):
        try:
            with replacing(tmp_path / "x", replace=False) as temporary:
                temporary.write_text(content)
        except FileExistsError:
            assert there
    assert (tmp_path / "x").read_text() == "first" and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("length", [120, 255])
def test_names_as_long_as_the_drive_takes(tmp_path, length):
    name = "n" * (length - 12) + ".safetensors"
    save_atomically({"x": torch.ones(2)}, tmp_path / name, {})
    assert os.listdir(tmp_path) == [name]


# By its path: to import the package would load torch twice.
KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, "lorweb_core")
import atomic
with atomic.replacing(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(bytes(1000))
    temporary.with_name(".tmpAbCdEf").write_bytes(bytes(1000))  # libraries have temporary files of their own
    print(flush=True)
    sys.stdin.read()
"""


@posix
def test_what_a_killed_writer_left_goes_with_the_next_file_and_what_a_living_one_writes_stays(tmp_path):
    living, killed = (
        subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / name)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in ("living", "killed")
    )
    for writer in (living, killed):
        writer.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(os.listdir(tmp_path)) == 2
    with replacing(tmp_path / "next") as temporary:
        temporary.write_text("x")
    assert len(os.listdir(tmp_path)) == 2
    living.communicate()
    assert sorted(os.listdir(tmp_path)) == ["living", "next"]


def test_temporary_files_of_version_0_1_go_when_they_are_old(tmp_path):
    old, young, foreign = (tmp_path / f".{name}.{'0af1' * 8}.tmp" for name in ("old", "young", "x"))
    foreign = tmp_path / ".keep.tmp"
    for file in (old, young, foreign):
        file.touch()
    os.utime(old, (time.time() - 100_000,) * 2)
    os.utime(foreign, (0, 0))
    with replacing(tmp_path / "next") as temporary:
        temporary.write_text("x")
    assert sorted(os.listdir(tmp_path)) == sorted([young.name, foreign.name, "next"])


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OSError, match=r"there is no folder .*nowhere; make it first"):
        save_atomically({"x": torch.ones(2)}, tmp_path / "nowhere" / "x.safetensors", {})


def test_a_full_disk_says_what_it_takes(tmp_path, monkeypatch):
    from lorweb_core import checkpoint

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(
        OSError, match=r"x\.safetensors: could not be written .*No space left.* it takes 4,000 bytes, and"
    ):
        save_atomically({"x": torch.ones(1000)}, tmp_path / "x.safetensors", {})
    assert os.listdir(tmp_path) == []


@posix
def test_names_that_lead_nowhere(tmp_path, capsys):
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "gone.safetensors")
    (tmp_path / "sub").mkdir()
    save_file(Spec().tensors(), tmp_path / "sub" / "bank.safetensors")
    for name, words in {
        "link.safetensors": "this is a link to .*gone.safetensors, which is not there",
        "sub\\bank.safetensors": "folders in a name are separated by /",
        "sub": "this is a folder",
        "": "this is a folder",
        "n" * 5000: "there is no such file",
        "a\0b": "there is no such file",
    }.items():
        with pytest.raises(BankError, match=words):
            BasisBank.load(tmp_path / name)


@pytest.mark.parametrize("command", [["-I", "-P", "lorweb_core/__main__.py"], ["-I", "lorweb_core"]])
def test_info_starts_by_every_way(command):
    """Windows' embedded Python looks into its own folders only, as -I does."""
    done = subprocess.run([sys.executable, *command, "info", "starter/bank.safetensors"], cwd=ROOT, capture_output=True)
    assert b"N = 16 LoRAs of rank 4" in done.stdout, done.stderr


def test_info_prints_on_any_console(tmp_path, monkeypatch):
    import io

    path = tmp_path / "b\u00e4nk.safetensors"
    save_file(Spec().tensors(), path, {"note": "\u4e2d\u6587 " + "x" * 10_000})
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="\n")
    monkeypatch.setattr(sys, "stdout", console)
    assert main(["info", str(path)]) == 0
    console.flush()
    printed = console.buffer.getvalue()
    assert b"note: \\u4e2d\\u6587 xxx" in printed and len(printed) < 2000
