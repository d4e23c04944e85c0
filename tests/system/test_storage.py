"""Storage: atomic writes under every failure, and errors of the disk with hints."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from transferapp.errors import ResourceError
from transferapp.system.storage import disk_errors, sha256_file, sync_directory, write_bytes

ROOT = Path(__file__).resolve().parents[2]


def full_disk(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ----------------------------------------------------------------------------------------------------------- whole files


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_bytes(path, b"first")
    assert path.read_bytes() == b"first"
    write_bytes(path, b"")
    assert path.read_bytes() == b""
    assert os.listdir(tmp_path) == ["facts.json"]


def test_a_written_file_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_bytes(tmp_path / "model.bin", b"weights")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.bin").stat().st_mode) == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_litter(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "facts.json"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, step, full_disk) if step == "fsync" else monkeypatch.setattr(Path, step, full_disk)
    with pytest.raises(ResourceError, match=r"Could not write .*facts\.json: No space left on device"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["facts.json"]


def test_an_interruption_passes_through_and_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "facts.json", b"new")
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_a_matter_of_resources(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="No such file or directory"):
        write_bytes(tmp_path / "nowhere" / "facts.json", b"new")


def test_the_bytes_reach_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        steps.append("flush folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "flush file")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_bytes(tmp_path / "facts.json", b"new")
    assert steps == ["flush file", "rename", "flush folder"]


WRITER = """
import sys
from pathlib import Path
from transferapp.system.storage import write_bytes
path = Path(sys.argv[1])
print("ready", flush=True)
while True:
    for letter in b"abc":
        write_bytes(path, bytes([letter]) * 3_000_000)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_kill_at_any_moment_leaves_one_whole_file(tmp_path: Path) -> None:
    path, chance = tmp_path / "weights.bin", random.Random(3)
    write_bytes(path, b"old" * 1_000_000)
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0, 0.04))
            writer.kill()
        assert writer.returncode == -signal.SIGKILL
        data = path.read_bytes()
        assert len(data) == 3_000_000
        assert data in (b"old" * 1_000_000, data[:1] * 3_000_000)


def test_flushing_a_folder_that_is_gone_is_no_error(tmp_path: Path) -> None:
    sync_directory(tmp_path / "gone")


# -------------------------------------------------------------------------------------------------------------- checksums


def test_a_checksum_is_that_of_the_standard_and_of_all_bytes(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"abc")  # the example of FIPS 180
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    long = random.Random(1).randbytes((1 << 20) + 7)
    path.write_bytes(long)
    assert sha256_file(path) == hashlib.sha256(long).hexdigest()


# ------------------------------------------------------------------------------------------------------------- complaints


def test_a_full_disk_is_reported_with_what_is_free_and_what_to_do(tmp_path: Path) -> None:
    target = tmp_path / "not" / "yet" / "there"
    with pytest.raises(ResourceError) as caught, disk_errors(target):
        full_disk()
    assert caught.value.what.startswith(f"Could not write {target}: No space left on device, ")
    assert caught.value.what.endswith(" MB free there")
    assert caught.value.hint is not None
    assert "Free some space or choose another place" in caught.value.hint
    assert caught.value.exit_code == 5
    assert isinstance(caught.value.__cause__, OSError)


def test_an_error_without_a_text_of_the_system_is_reported_by_its_own(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="the tape is torn"), disk_errors(tmp_path):
        raise OSError("the tape is torn")


def test_what_is_no_error_of_the_disk_passes_through(tmp_path: Path) -> None:
    with pytest.raises(KeyError), disk_errors(tmp_path):
        raise KeyError("bug")
