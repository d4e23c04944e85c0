"""Archives: every kind, damaged ones and hostile ones."""

from __future__ import annotations

import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.helpers.folders import paint, tree
from transferapp.data import archive
from transferapp.data.archive import is_archive, unpack
from transferapp.data.sources import open_source
from transferapp.errors import DataError, ResourceError
from transferapp.system import cache as system_cache
from transferapp.system.progress import Silent

TAR_KINDS = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def everything_below(folder: Path, leave_out: Path) -> dict[str, bytes | str | None]:
    """Return the paths in a folder at any depth, with the content of files and the targets of links."""
    found: dict[str, bytes | str | None] = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[str(path)] = str(path.readlink())
        elif leave_out not in (path, *path.parents):
            found[str(path)] = path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, five folders deep.

    Whatever a test does, nothing half-unpacked stays in it, no link is made, and nothing above it changes.
    """
    top = tmp_path_factory.mktemp("top")
    folder = top / "1" / "2" / "3" / "4" / "cache"
    folder.mkdir(parents=True)
    (top / "1" / "secret").write_text("not yours")
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(folder))
    before = everything_below(top, folder / "sources")
    yield folder / "sources"
    assert everything_below(top, folder / "sources") == before
    assert not list((folder / "sources").glob("*.part"))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return tree(tmp_path / "pets", {"cats": 2, "dogs": 2})


def zipped(to: Path, entries: dict[str, bytes], **options: int) -> Path:
    with zipfile.ZipFile(to, "w", **options) as packed:
        for name, content in entries.items():
            packed.writestr(name, content)
    return to


def tarred(to: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(to, mode) as packed:
        for info, content in members:
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return to


def member(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


def names(path: Path) -> list[str]:
    """Return the files of an unpacked archive."""
    folder = unpack(path, Silent()).folder
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def refused(path: Path, said: str) -> None:
    """Check that an archive is refused and leaves nothing, in the cache or anywhere above it."""
    sources = Path(os.environ["TRANSFERAPP_CACHE"]) / "sources"
    sources.mkdir(exist_ok=True)
    top = sources.parents[5]
    before = everything_below(top, sources)
    with pytest.raises(DataError, match=said) as caught:
        unpack(path, Silent())
    assert everything_below(top, sources) == before
    assert not [child for child in sources.iterdir() if child.suffix != ".lock"]
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


IMAGES = ["cats/000.png", "cats/001.png", "dogs/000.png", "dogs/001.png"]


# Whole archives


@pytest.mark.parametrize("suffix", TAR_KINDS)
def test_every_kind_of_tar_is_unpacked(tmp_path: Path, pets: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with tarfile.open(path, TAR_KINDS[suffix]) as packed:
        packed.add(pets, "pets")
    assert names(path) == IMAGES
    assert (unpack(path, Silent()).folder / "cats/000.png").read_bytes() == (pets / "cats/000.png").read_bytes()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_kind_of_zip_is_unpacked(tmp_path: Path, pets: Path, method: int) -> None:
    entries = {f"pets/{name}": (pets / name).read_bytes() for name in IMAGES}
    assert names(zipped(tmp_path / "a.zip", entries, compression=method)) == IMAGES


def test_an_archive_is_known_by_its_content_whatever_its_name(tmp_path: Path, pets: Path) -> None:
    zipped(tmp_path / "download", {"a/b.png": b"x"})
    with tarfile.open(tmp_path / "blob.bin", "w") as packed:
        packed.add(pets, "pets")
    assert is_archive(str(tmp_path / "download"))
    assert is_archive(str(tmp_path / "blob.bin"))
    assert not is_archive(str(pets / "cats" / "000.png"))
    with tarfile.open(tmp_path / "really_a_tar.zip", "w:gz") as packed:
        packed.add(pets, "pets")
    assert names(tmp_path / "really_a_tar.zip") == IMAGES


def test_folders_that_stand_alone_are_stepped_into_but_not_a_lone_class(tmp_path: Path) -> None:
    wrapped = zipped(tmp_path / "a.zip", {"x/y/cats/1.png": b"1", "x/y/dogs/2.png": b"2", "__MACOSX/x/._y": b""})
    assert names(wrapped) == ["cats/1.png", "dogs/2.png"]
    assert names(zipped(tmp_path / "b.zip", {"x/cats/1.png": b"1"})) == ["cats/1.png"]
    assert names(zipped(tmp_path / "c.zip", {"x/labels.csv": b"1", "x/1.png": b""})) == ["1.png", "labels.csv"]


def test_litter_is_not_unpacked(tmp_path: Path) -> None:
    entries = dict.fromkeys(["a/1.png", "b/2.png", "a/.DS_Store", "__MACOSX/a/._1.png", "Thumbs.db"], b"x")
    assert names(zipped(tmp_path / "a.zip", entries)) == ["a/1.png", "b/2.png"]
    members = [(member(name), content) for name, content in entries.items()]
    assert names(tarred(tmp_path / "a.tar", *members)) == ["a/1.png", "b/2.png"]


def test_names_survive_alphabets_emoji_and_old_zip_programs(tmp_path: Path) -> None:
    wanted = ["Größe 12/ä.png", "🐕 my dog/猫.png"]
    assert names(zipped(tmp_path / "a.zip", dict.fromkeys(wanted, b"x"))) == wanted
    data = bytearray(zipped(tmp_path / "b.zip", dict.fromkeys(wanted, b"x")).read_bytes())
    for at in range(len(data) - 10):  # UTF-8 names, and no flag that says so
        offset = {b"PK\3\4": 6, b"PK\1\2": 8}.get(bytes(data[at : at + 4]))
        if offset is not None:
            data[at + offset + 1] &= ~8
    (tmp_path / "b.zip").write_bytes(data)
    assert not any(entry.flag_bits & 0x800 for entry in zipfile.ZipFile(tmp_path / "b.zip").infolist())
    assert names(tmp_path / "b.zip") == wanted
    assert names(tarred(tmp_path / "a.tar", *((member(name), b"x") for name in wanted))) == wanted


def zipped_in(to: Path, encoding: str, folders: tuple[str, ...]) -> Path:
    """Return a zip whose names are not marked as UTF-8, as older programs write them."""
    names = [f"{folder}/{i}.png".encode(encoding) for folder in folders for i in range(2)]
    stand_ins = [str(index).ljust(len(name), "x") for index, name in enumerate(names)]
    data = zipped(to, dict.fromkeys(stand_ins, b"")).read_bytes()
    for stand_in, name in zip(stand_ins, names, strict=True):
        data = data.replace(stand_in.encode(), name)
    to.write_bytes(data)
    return to


@pytest.mark.parametrize(
    ("encoding", "folders", "said"),
    [
        ("gbk", ("异常", "正常"), "GBK"),
        ("shift_jis", ("りんご", "ソバ"), "Shift-JIS"),  # the second begins with a byte pair that ends in a backslash
        ("cp866", ("кошка", "собака"), "code page 866"),
        ("cp437", ("Käse", "Müsli"), "code page 437"),
    ],
)
def test_names_of_a_zip_are_guessed_and_the_guess_is_named(
    tmp_path: Path, encoding: str, folders: tuple[str, ...], said: str
) -> None:
    path = zipped_in(tmp_path / "old.zip", encoding, folders)
    for _ in range(2):  # the second time from the cache
        progress = Mock(wraps=Silent())
        folder = unpack(path, progress).folder
        assert {child.name for child in folder.iterdir()} == set(folders)
        assert said in progress.note.call_args.args[0]
    named = unpack(path, progress := Mock(wraps=Silent()), encoding)
    assert {child.name for child in named.folder.iterdir()} == set(folders)
    assert not progress.note.called
    with pytest.raises(DataError, match="not valid in ascii"):
        unpack(path, Silent(), "ascii")


def test_backslashes_in_a_zip_part_folders(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"cats/1.png": b"1", "dogs/2.png": b"2"})
    path.write_bytes(path.read_bytes().replace(b"cats/1", b"cats\\1"))
    assert names(path) == ["cats/1.png", "dogs/2.png"]


def test_what_comes_twice_is_there_once_as_it_came_last(tmp_path: Path) -> None:
    path = tarred(
        tmp_path / "a.tar", (member("a/1.png"), b"old"), (member("b/2.png"), b""), (member("a/1.png"), b"new")
    )
    assert names(path) == ["a/1.png", "b/2.png"]
    assert (unpack(path, Silent()).folder / "a" / "1.png").read_bytes() == b"new"


def test_links_to_files_of_the_archive_become_copies(tmp_path: Path) -> None:
    path = tarred(
        tmp_path / "a.tar",
        (member("b/early.png", tarfile.SYMTYPE, "soft.png"), b""),
        (member("a/1.png"), b"x"),
        (member("b/soft.png", tarfile.SYMTYPE, "../a/1.png"), b""),
        (member("b/hard.png", tarfile.LNKTYPE, "a/1.png"), b""),
    )
    assert names(path) == ["a/1.png", "b/early.png", "b/hard.png", "b/soft.png"]
    assert {file.read_bytes() for file in unpack(path, Silent()).folder.rglob("*.png")} == {b"x"}
    assert not [file for file in unpack(path, Silent()).folder.rglob("*") if file.is_symlink()]


def test_links_to_folders_and_to_nothing_are_left_out_and_listed(tmp_path: Path) -> None:
    path = tarred(
        tmp_path / "a.tar",
        (member("a/1.png"), b"x"),
        (member("b/2.png"), b"y"),
        (member("b/again", tarfile.SYMTYPE, "../a"), b""),
        (member("b/gone.png", tarfile.SYMTYPE, "nowhere.png"), b""),
        (member("b/loop.png", tarfile.SYMTYPE, "loop.png"), b""),
    )
    assert names(path) == ["a/1.png", "b/2.png"]
    listed = [(item.name, item.code) for item in unpack(path, Silent()).ignored]
    assert listed == [("b/again", "link"), ("b/gone.png", "link"), ("b/loop.png", "link")]


# The cache


def test_a_second_time_nothing_is_unpacked_whatever_the_archive_is_called(
    tmp_path: Path, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(tmp_path / "a.zip", {name: (pets / name).read_bytes() for name in IMAGES})
    first = unpack(path, Silent())
    monkeypatch.setattr(archive, "_read", None)
    assert unpack(path.rename(tmp_path / "b.zip"), Silent()) == first


@pytest.mark.parametrize("harm", ["delete", "cut", "add", "note"])
def test_a_cache_that_someone_has_been_at_is_made_anew(tmp_path: Path, pets: Path, cache: Path, harm: str) -> None:
    path = zipped(tmp_path / "a.zip", {name: (pets / name).read_bytes() for name in IMAGES})
    folder = unpack(path, Silent()).folder
    if harm == "delete":
        (folder / "cats" / "000.png").unlink()
    elif harm == "cut":
        (folder / "cats" / "000.png").write_bytes(b"")
    elif harm == "add":
        (folder / "cats" / "new.png").write_bytes(b"x")
    else:
        next(cache.glob("*.json")).write_text("{")
    assert names(path) == IMAGES
    assert (folder / "cats" / "000.png").read_bytes() == (pets / "cats" / "000.png").read_bytes()


def test_what_nobody_used_for_long_is_deleted_when_something_else_comes(tmp_path: Path, cache: Path) -> None:
    old = unpack(zipped(tmp_path / "old.zip", {"a/1": b"1", "b/2": b"2"}), Silent()).folder
    recent = unpack(zipped(tmp_path / "recent.zip", {"a/1": b"3", "b/2": b"4"}), Silent()).folder
    long_ago = time.time() - (system_cache.UNUSED_DAYS + 1) * 86_400
    os.utime(cache / f"{old.name}.json", (long_ago, long_ago))
    (cache / "killed.part" / "half").mkdir(parents=True)
    unpack(zipped(tmp_path / "new.zip", {"a/1": b"5", "b/2": b"6"}), Silent())
    assert not old.exists()
    assert recent.exists()
    assert sorted(path.suffix for path in cache.iterdir() if not path.name.startswith(".")) == [
        "",
        "",
        ".json",
        ".json",
    ]


KILLED = """
import sys, time
from pathlib import Path
from transferapp.data import archive
from transferapp.system.progress import Silent
real, grown = archive._Unpacking._grow, 0
def grow(self, size):
    global grown
    grown += 1
    if grown == 20:
        print("in the middle", flush=True)
        time.sleep(600)
    real(self, size)
archive._Unpacking._grow = grow
archive.unpack(Path(sys.argv[1]), Silent())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_a_kill_while_unpacking_leaves_nothing_that_is_used(tmp_path: Path, cache: Path) -> None:
    entries = {f"{name}/{i:03}.png": os.urandom(2000) for name in ("a", "b") for i in range(100)}
    path = zipped(tmp_path / "a.zip", entries)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.kill()
    process.wait()
    process.stdout.close()
    assert [child.suffix for child in cache.iterdir() if child.is_dir()] == [".part"]
    assert len(names(path)) == 200


def test_an_interruption_tidies_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    path = zipped(tmp_path / "a.zip", {"a/1": b"1", "b/2": b"2"})
    with monkeypatch.context() as patch:
        patch.setattr(archive._Unpacking, "_grow", stop)
        with pytest.raises(KeyboardInterrupt):
            unpack(path, Silent())
    assert names(path) == ["a/1", "b/2"]


def test_a_disk_that_cannot_hold_it_is_a_matter_of_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "a.zip", {"a/1": bytes(5000)})
    usage = archive.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: usage._replace(free=4999))
    with pytest.raises(ResourceError, match="Free some space"):
        unpack(path, Silent())


# Hostile archives


OUT = ["../out.png", "a/../../out.png", "/tmp/out.png", "..", "C:/out.png", "a\\..\\..\\out.png", "C:\\out.png"]


@pytest.mark.parametrize("name", OUT)
def test_a_zip_that_would_write_outside_is_refused(tmp_path: Path, name: str) -> None:
    refused(zipped(tmp_path / "a.zip", {"ok/1.png": b"x", name: b"x"}), "would be written outside")


@pytest.mark.parametrize("name", [name for name in OUT if "\\" not in name])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_tar_that_would_write_outside_is_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    path = tarred(tmp_path / "a.tar", (member("ok/1.png"), b"x"), (member(name, kind, "ok/1.png"), b""))
    refused(path, "would be written outside")


@pytest.mark.parametrize("to", ["../../secret", "/etc", "../..", "x/../../../y", "../a/../../z"])
def test_a_link_that_leads_out_is_refused(tmp_path: Path, to: str) -> None:
    refused(tarred(tmp_path / "a.tar", (member("a/link", tarfile.SYMTYPE, to), b"")), "link that leads out")
    info = zipfile.ZipInfo("a/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(info, to)
    refused(tmp_path / "a.zip", "link that leads out")


CHAINS = {
    "up and up": [("a/b/up", ".."), ("a/b/top", "up/.."), ("out", "a/b/top/../x")],
    "through the root": [("q", "."), ("p1", "q/.."), ("p2", "p1/.."), ("p3", "p2/.."), ("p3/bin/tool", "payload")],
    "to a secret": [("q", "."), ("p1", "q/.."), ("p2", "p1/.."), ("a/1.png", "../p2/../secret")],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_chain_of_links_leads_nowhere(tmp_path: Path, kind: str, chain: list[tuple[str, str]]) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        links = [(member(name, tarfile.SYMTYPE, to), b"") for name, to in chain]
        tarred(path, (member("ok/0.png"), b""), (member("ok/a/0.png"), b""), *links)
    else:
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("ok/0.png", b"")
            packed.writestr("ok/a/0.png", b"")
            for name, to in chain:
                info = zipfile.ZipInfo(name)
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                packed.writestr(info, to)
    unpacked = unpack(path, Silent())  # the fixture looks at what is above the cache
    assert sorted(item.name for item in unpacked.ignored) == sorted(name for name, _ in chain)
    assert names(path) == ["0.png", "a/0.png"]


def test_files_behind_a_chain_of_links_stay_inside(tmp_path: Path) -> None:
    chain = [(member(name, tarfile.SYMTYPE, to), b"") for name, to in CHAINS["through the root"][:4]]
    path = tarred(tmp_path / "a.tar", *chain, (member("p3/bin/tool"), b"x"), (member("ok/1.png"), b""))
    assert names(path) == ["ok/1.png", "p3/bin/tool"]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    path = tarred(
        tmp_path / "a.tar",
        (member("a/inner", tarfile.SYMTYPE, "../b"), b""),
        (member("b/1.png"), b"1"),
        (member("a/inner/2.png"), b"2"),
    )
    folder = unpack(path, Silent()).folder
    assert not (folder / "b" / "2.png").exists()
    assert (folder / "a" / "inner" / "2.png").read_bytes() == b"2"


def test_a_bomb_in_the_place_of_a_link_is_not_unpacked(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("b/1.png", b"x")
        packed.writestr(info, b"y" * 90_000_000)
    tracemalloc.start()
    try:
        unpacked = unpack(tmp_path / "a.zip", Silent())
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert [item.code for item in unpacked.ignored] == ["link"]


def test_hard_links_between_litter_are_left_out_like_litter(tmp_path: Path) -> None:
    path = tarred(
        tmp_path / "a.tar",
        (member("a/._1.png"), b"x"),
        (member("a/._2.png", tarfile.LNKTYPE, "a/._1.png"), b""),
        (member("a/1.png"), b"1"),
        (member("b/2.png"), b"2"),
    )
    assert names(path) == ["a/1.png", "b/2.png"]


@pytest.mark.parametrize("to", ["b/gone.png", "../../etc/passwd", "/etc/passwd"])
def test_a_hard_link_to_what_is_not_in_it_is_refused(tmp_path: Path, to: str) -> None:
    path = tarred(tmp_path / "a.tar", (member("a/1.png", tarfile.LNKTYPE, to), b""))
    refused(path, "what is not in it|written outside")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_pipes_are_refused(tmp_path: Path, kind: bytes) -> None:
    refused(tarred(tmp_path / "a.tar", (member("a/dev", kind), b"")), "neither a file nor a folder: a/dev")


def test_a_device_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a/dev")
    info.external_attr = (stat.S_IFCHR | 0o600) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(info, b"")
    refused(tmp_path / "a.zip", "neither a file nor a folder")


@pytest.mark.parametrize("suffix", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(archive, "RATIO_COUNTS_FROM", 1_000_000)
    path = tmp_path / f"a.{suffix}"
    content = bytes(10_000_000)
    if suffix == "zip":
        zipped(path, {"a/1.png": content}, compression=zipfile.ZIP_DEFLATED)
    else:
        tarred(path, (member("a/1.png"), content), mode=TAR_KINDS[suffix])
    refused(path, "unpacks to more than (images|images) could have been packed from")


def test_a_zip_that_lies_about_sizes_is_stopped(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"a/1.png": bytes(100_000)}, compression=zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    path.write_bytes(data.replace((100_000).to_bytes(4, "little"), (50).to_bytes(4, "little")))
    refused(path, "cut short or damaged")


def test_links_to_one_large_file_count_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 50_000)
    links = [(member(f"a/{i}", tarfile.LNKTYPE, "a/big"), b"") for i in range(100)]
    refused(tarred(tmp_path / "a.tar", (member("a/big"), os.urandom(1000)), *links), "unpacks to more")


def test_a_sparse_file_of_absurd_size_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "RATIO_COUNTS_FROM", 1_000_000)
    info = member("a/1.png")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(10**12), "GNU.sparse.realsize": str(10**12)}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as packed:
        info.size = 1
        packed.addfile(info, io.BytesIO(b"x"))
    refused(tmp_path / "a.tar", "unpacks to more|cut short or damaged")


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILES", 10)
    entries = {f"a/{i}.png": b"" for i in range(11)}
    refused(zipped(tmp_path / "a.zip", entries), "more than 10 files")
    refused(tarred(tmp_path / "a.tar", *((member(name), b"") for name in entries)), "more than 10 files")


def test_a_header_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    info = member("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 1 << 40
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    refused(tmp_path / "a.tar", "absurd size")


def test_names_too_long_and_files_that_are_folders_are_refused(tmp_path: Path) -> None:
    refused(zipped(tmp_path / "a.zip", {f"a/{300 * 'x'}.png": b""}), "name of more than 255 bytes")
    refused(zipped(tmp_path / "b.zip", {"a": b"1", "a/b": b"2"}), "a file and a folder of one name")
    refused(zipped(tmp_path / "c.zip", {"a/b": b"2", "a": b"1"}), "a file and a folder of one name")


def test_names_that_the_disk_cannot_tell_apart_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = open

    def careless(path: str, mode: str = "r") -> object:
        if mode == "xb" and path.endswith("A.png") and (Path(path).parent / "a.png").exists():
            raise FileExistsError
        return real(path, mode)

    monkeypatch.setattr(archive, "open", careless, raising=False)
    path = zipped(tmp_path / "a.zip", {"x/a.png": b"1", "x/A.png": b"2", "y/b.png": b"3"})
    unpacked = unpack(path, Silent())
    assert [(item.name, item.code) for item in unpacked.ignored] == [("x/A.png", "case_clash")]
    assert (unpacked.folder / "x" / "a.png").read_bytes() == b"1"


# Damaged archives


def test_an_encrypted_zip_says_so(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"a/1.png": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    data[data.index(b"PK\3\4") + 6] |= 1
    path.write_bytes(data)
    refused(path, "is encrypted")


def test_a_compression_that_is_not_read_says_so(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"a/1.png": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 10] = 9
    data[data.index(b"PK\3\4") + 8] = 9
    path.write_bytes(data)
    refused(path, "damaged.*compression")


@pytest.mark.parametrize("suffix", ["zip", *TAR_KINDS])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.9])
def test_a_cut_archive_is_refused_wherever_it_is_cut(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    entries = {f"{name}/{i}.png": os.urandom(3000) for name in ("a", "b") for i in range(20)}
    if suffix == "zip":
        zipped(path, entries)
    else:
        tarred(path, *((member(name), content) for name, content in entries.items()), mode=TAR_KINDS[suffix])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(path, "cut short or damaged")


def test_a_tar_cut_between_two_files_is_noticed(tmp_path: Path) -> None:
    path = tarred(tmp_path / "a.tar", (member("a/1.png"), bytes(512)), (member("b/2.png"), bytes(512)))
    path.write_bytes(path.read_bytes()[:1024])
    refused(path, "ends without an end mark")


def test_a_tar_with_a_broken_header_in_the_middle_is_noticed(tmp_path: Path) -> None:
    path = tarred(tmp_path / "a.tar", (member("a/1.png"), bytes(512)), (member("b/2.png"), bytes(512)))
    data = bytearray(path.read_bytes())
    data[1024 + 150] ^= 0xFF
    path.write_bytes(data)
    refused(path, "ends without an end mark")


@pytest.mark.parametrize("make", [zlib.compress, lambda data: b"\x1f\x8b" + data, lambda data: data, lambda _: b""])
@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar"])
def test_what_is_no_archive_is_refused(tmp_path: Path, make: Callable[[bytes], bytes], name: str) -> None:
    (tmp_path / name).write_bytes(make(b"<html>not what you think</html>" * 50))
    refused(tmp_path / name, "no zip or tar archive at all")


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"a/1.png": os.urandom(5000)})
    data = bytearray(path.read_bytes())
    data[2500] ^= 1
    path.write_bytes(data)
    refused(path, "cut short or damaged")
    path = tarred(tmp_path / "a.tgz", (member("a/1.png"), os.urandom(5000)), mode="w:gz")
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # the checksum
    path.write_bytes(data)
    refused(path, "cut short or damaged")


@pytest.mark.parametrize(
    ("magic", "said"), [(b"7z\xbc\xaf\x27\x1c", "7-Zip"), (b"Rar!\x1a\x07", "RAR"), (b"\x28\xb5\x2f\xfd", "Zstandard")]
)
def test_archives_of_other_kinds_are_called_by_name(tmp_path: Path, magic: bytes, said: str) -> None:
    (tmp_path / "a.bin").write_bytes(magic + bytes(100))
    with pytest.raises(DataError, match=f"Expected a zip or tar archive, got.*{said}"):
        open_source(str(tmp_path / "a.bin"))


def test_a_folder_that_is_called_like_an_archive_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.zip").mkdir()
    paint(tmp_path / "a.zip" / "cats" / "1.png")
    paint(tmp_path / "a.zip" / "dogs" / "1.png", 1)
    assert open_source(str(tmp_path / "a.zip")).class_names == ("cats", "dogs")
