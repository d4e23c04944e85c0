"""Standard output and error in every state that a shell can leave them in."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fitted import environment, transferapp
from transferapp.cli import streams

POSIX = pytest.mark.skipif(os.name != "posix", reason="descriptors and signals of POSIX")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text, 224×224, Grüße, 犬", "plain text, 224×224, Grüße, 犬"),
        ("two\nlines\r\n", r"two\nlines\r\n"),
        ("\x1b[2Jgone\x07", r"\x1b[2Jgone\x07"),
        ("not\x00a\x7fname\x9b", r"not\x00a\x7fname\x9b"),
        ("gpj.\N{RIGHT-TO-LEFT OVERRIDE}exe", r"gpj.\u202eexe"),
        ("line\N{LINE SEPARATOR}break", r"line\u2028break"),
        (b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), r"caf\udce9.jpg"),
        ("family \N{MAN}\N{ZERO WIDTH JOINER}\N{GIRL}", "family \N{MAN}\N{ZERO WIDTH JOINER}\N{GIRL}"),
    ],
)
def test_what_a_terminal_would_obey_is_spelled_out(text: str, expected: str) -> None:
    assert streams.printable(text) == expected


def test_an_ascii_stream_spells_out_what_it_cannot_say() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors=streams.SPELLED_OUT)
    stream.write("▶ 0.94 ± 0.02 → 224×224 … é 犬")
    stream.flush()
    assert raw.getvalue() == rb"> 0.94 +/- 0.02 -> 224x224 ... \xe9 \u72ac"


def test_the_handler_is_for_writing_only() -> None:
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", streams.SPELLED_OUT)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("name", ["Grüße", "犬", b"caf\xe9".decode("utf-8", "surrogateescape"), "a\x1b\n"])
def test_json_is_json_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str, name: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
    streams.print_json({"name": name}, indent=None)
    assert json.loads(raw.getvalue().decode(encoding)) == {"name": name}
    assert raw.getvalue().count(b"\n") == 1


def test_json_says_no_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        streams.print_json({"score": float("nan")})


class _Reader(io.RawIOBase):
    """A pipe's end that is read until it is closed."""

    def __init__(self) -> None:
        self.read_so_far = b""
        self.left = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.left:
            raise BrokenPipeError(32, "Broken pipe")
        self.read_so_far += bytes(data)
        return len(data)


def test_progress_goes_on_in_silence_when_its_reader_leaves() -> None:
    reader = _Reader()
    stream = streams.ProgressStream(io.BufferedWriter(reader, 16), encoding="utf-8", line_buffering=True)
    stream.write("first\n")
    reader.left = True
    for _ in range(3):
        assert stream.write("and many more words than its buffer holds\n") == 42
        stream.flush()
    assert reader.read_so_far == b"first\n"


@pytest.fixture
def unread() -> Iterator[int]:
    """The writing end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@POSIX
@pytest.mark.parametrize("words", [("--help",), ("backbones",), ("backbones", "--json"), ("fit", "--help")])
def test_a_reader_who_leaves_early_is_no_error(unread: int, words: tuple[str, ...]) -> None:
    done = transferapp(*words, stdout=unread)
    assert (done.returncode, done.stderr) == (0, "")


@POSIX
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_nor_is_it_one_in_the_middle_of_predictions(
    tiny: Path, colors: Path, unread: int, more: tuple[str, ...]
) -> None:
    done = transferapp("predict", tiny, colors / "red" / "0.png", "--views", "1", *more, stdout=unread)
    assert (done.returncode, done.stderr) == (0, "")


@POSIX
def test_work_goes_on_when_nobody_reads_its_progress(tiny: Path, colors: Path, unread: int) -> None:
    done = transferapp("evaluate", tiny, "--data", colors, "--views", "1", "--json", stderr=unread)
    assert done.returncode == 0
    assert json.loads(done.stdout)["accuracy"] == 1


def _closing(*descriptors: int) -> Callable[[], None]:
    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return close


@POSIX
@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
def test_streams_that_are_closed(tiny: Path, colors: Path, closed: tuple[int, ...]) -> None:
    words = ("evaluate", tiny, "--data", colors, "--views", "1")
    done = transferapp(*words, preexec_fn=_closing(*closed))
    assert done.returncode == 0, done
    assert "Traceback" not in done.stderr
    assert ("accuracy" in done.stdout) == (1 not in closed)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [("backbones",), ("backbones", "--json"), ("--version",)])
def test_a_full_disk_under_the_output(words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = transferapp(*words, stdout=full)
    assert done.returncode == 5
    assert done.stderr.splitlines() == [
        "Error: Could not use the output: No space left on device. Free some space there."
    ]


NARROW = [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]


@pytest.mark.parametrize("narrow", NARROW)
def test_tables_and_help_in_a_narrow_encoding(tiny: Path, colors: Path, narrow: dict[str, str]) -> None:
    env = environment(**narrow)
    listed = transferapp("backbones", env=env)
    assert listed.returncode == 0, listed.stderr
    assert "224x224" in listed.stdout or "224×224" in listed.stdout or "224\udcd7224" in listed.stdout
    done = transferapp("predict", tiny, colors / "blue" / "0.png", "--views", "1", env=env)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_card_in_ascii_is_ascii(tiny: Path, colors: Path) -> None:
    done = transferapp("evaluate", tiny, "--data", colors, "--views", "1", env=environment(PYTHONIOENCODING="ascii"))
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert done.stderr.isascii()


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no text")
def test_file_names_that_are_no_text(tiny: Path, colors: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \x1b[31m\n.png"))
    odd.write_bytes((colors / "red" / "0.png").read_bytes())
    shown = transferapp("predict", tiny, odd, "--views", "1")
    assert shown.returncode == 0, shown.stderr
    assert r"caf\udce9 \x1b[31m\n.png" in shown.stdout
    assert "\x1b" not in shown.stdout
    data = transferapp("predict", tiny, odd, "--views", "1", "--json")
    (line,) = data.stdout.splitlines()
    assert json.loads(line)["file"] == str(odd)
    missing = transferapp("predict", tiny, tmp_path / "no\x1b[2J\nfile.png")
    assert missing.returncode == 3
    assert len(missing.stderr.splitlines()) == 1
    assert r"no\x1b[2J\nfile.png" in missing.stderr
