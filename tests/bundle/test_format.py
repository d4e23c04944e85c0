"""Bundles on disk: atomic writing and verified reading."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.bundle_killing import FILES, verify, write
from transferapp.bundle import format as bundle_module
from transferapp.bundle.format import (
    FORMAT,
    MANIFEST,
    SCHEMA_VERSION,
    check_target,
    only_writer,
    read_bundle,
    write_manifest,
    writing,
)
from transferapp.errors import BundleError, DataError, ResourceError, UsageError
from transferapp.images.augment import fit_pca_color

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A bundle of generation 1."""
    write(tmp_path / "models" / "dogs", 1)
    return tmp_path / "models" / "dogs"


@pytest.fixture(params=["exchange", "two steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How folders change places: in one step where the system can, otherwise in two."""
    if request.param == "two steps":
        monkeypatch.setattr(bundle_module, "_exchange", lambda first, second: False)
    return str(request.param)


def beside(target: Path) -> list[str]:
    """What lies next to a bundle, hidden or not, except for the writer's lock."""
    usual = {target.name, f".{target.name}.lock"}
    return sorted(path.name for path in target.parent.iterdir() if path.name not in usual)


def alter(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a bundle in place."""
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


# Writing and reading


def test_what_is_written_is_read(made: Path) -> None:
    bundle = read_bundle(made)
    assert (bundle.name, bundle.class_names, bundle.image_size) == ("dogs", ("a", "b"), (224, 224))
    assert bundle.manifest["format"] == FORMAT
    assert bundle.manifest["schema_version"] == SCHEMA_VERSION
    assert sorted(bundle.manifest["files"]) == sorted(FILES)
    for name in FILES:
        assert bundle.file(name) == made / name
        assert bundle.manifest["files"][name]["bytes"] == (made / name).stat().st_size
    assert beside(made) == []


def test_color_components_are_read_back_as_they_were_measured(made: Path) -> None:
    assert read_bundle(made).color is None, "it was trained without"
    pca = fit_pca_color(np.random.default_rng(0).integers(0, 256, (50, 3)).astype(np.uint8))
    alter(made, lambda manifest: manifest.update(color=json.loads(json.dumps(pca.to_json()))))
    color = read_bundle(made).color
    assert color is not None
    for name in ("eigenvectors", "eigenvalues", "mean"):
        np.testing.assert_array_equal(getattr(color, name), getattr(pca, name))


@pytest.mark.parametrize("damaged", ["red", [1, 2], {"eigenvalues": [1, 2]}])
def test_damaged_color_components_are_an_error_of_the_bundle(made: Path, damaged: Any) -> None:
    alter(made, lambda manifest: manifest.update(color=damaged))
    with pytest.raises(BundleError, match="color components"):
        read_bundle(made).color  # noqa: B018 - it is read when it is asked for


def test_the_version_names_the_content_and_not_the_place(made: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", 1)
    write(tmp_path / "other weights", 2)
    version = read_bundle(made).version
    assert len(version) == 12
    assert read_bundle(tmp_path / "elsewhere").version == version
    assert read_bundle(tmp_path / "other weights").version != version
    alter(made, lambda manifest: manifest.update(class_names=["b", "a"]))
    assert read_bundle(made).version != version


def test_names_in_any_alphabet_and_names_that_are_no_unicode_survive(tmp_path: Path) -> None:
    path = tmp_path / "🐕 [modèle] *"
    with writing(path) as staging:
        for name in FILES:
            (staging / name).write_bytes(b"x")
        write_manifest(
            staging,
            {
                "name": path.name,
                "class_names": ["猫", os.fsdecode(b"caf\xe9"), 'a "b"\n'],
                "input": {"image_size": [224, 224]},
            },
        )
    assert read_bundle(path).name == path.name
    assert read_bundle(path).class_names == ("猫", os.fsdecode(b"caf\xe9"), 'a "b"\n')


@pytest.mark.parametrize("name", ["x" * 241, "ü" * 121])
def test_a_name_without_room_for_the_staging_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="at most 240 bytes"):
        check_target(tmp_path / name)


@pytest.mark.skipif(sys.platform == "win32", reason="names of files are shorter there")
def test_the_longest_name_has_room(tmp_path: Path, way: str) -> None:
    path = tmp_path / ("x" * 240)
    for seed in (1, 2):
        check_target(path)
        write(path, seed)
    assert verify(path) == 2


def test_a_link_to_itself_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BundleError, match="leads to itself"):
        check_target(tmp_path / "loop")


def test_a_new_bundle_takes_the_place_of_the_old_one(made: Path, way: str) -> None:
    write(made, 2)
    assert verify(made) == 2
    assert beside(made) == []


def test_a_file_of_the_old_bundle_does_not_live_on_in_the_new_one(made: Path, way: str) -> None:
    (made / "left over.txt").write_text("old")
    write(made, 2)
    assert sorted(path.name for path in made.iterdir()) == sorted([*FILES, MANIFEST])


def test_an_empty_folder_is_a_welcome_place(tmp_path: Path, way: str) -> None:
    (tmp_path / "dogs").mkdir()
    write(tmp_path / "dogs", 1)
    assert verify(tmp_path / "dogs") == 1
    assert beside(tmp_path / "dogs") == []


def test_a_link_is_followed_and_stays_a_link(made: Path, way: str) -> None:
    link = made.parent / "current"
    link.symlink_to("dogs")
    write(link, 2)
    assert link.is_symlink()
    assert verify(made) == 2
    assert beside(made) == ["current"]


def test_others_may_read_what_the_user_lets_them(tmp_path: Path, way: str) -> None:
    before = os.umask(0o022)
    try:
        write(tmp_path / "dogs", 1)
        write(tmp_path / "dogs", 2)
        os.umask(0o077)
        write(tmp_path / "secret", 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "dogs").stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "dogs").iterdir()} == {0o644}
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o700


class Stop(BaseException):
    """What ends a process without asking: Ctrl-C, an exit."""


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), Stop()])
def test_what_fails_half_way_leaves_the_old_bundle_and_no_litter(made: Path, error: BaseException) -> None:
    def fail(staging: Path) -> None:
        (staging / "model.xml").write_bytes(b"half")
        raise error

    with pytest.raises(type(error)), writing(made) as staging:
        fail(staging)
    assert verify(made) == 1
    assert beside(made) == []


def test_a_second_writer_is_refused_and_leaves_the_first_alone(made: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(made)
    with only_writer(made), writing(made) as staging:  # a fit takes the lock twice
        (staging / "model.xml").write_bytes(b"half")
        for target in (made, link):
            with ThreadPoolExecutor(1) as pool, pytest.raises(DataError, match="is writing to") as caught:
                pool.submit(write, target, 2).result()
            assert caught.value.exit_code == 3
        assert (staging / "model.xml").read_bytes() == b"half"
        write_manifest(staging, {"generation": 3})
    assert json.loads((made / MANIFEST).read_bytes())["generation"] == 3
    write(made, 4)
    assert verify(made) == 4


def test_a_block_that_forgets_the_manifest_replaces_nothing(made: Path) -> None:
    with pytest.raises(AssertionError, match="write_manifest"), writing(made) as staging:
        (staging / "model.xml").write_bytes(b"new")
    assert verify(made) == 1
    assert beside(made) == []


def test_numbers_that_json_cannot_hold_are_refused_and_the_old_bundle_stays(made: Path) -> None:
    with pytest.raises(ValueError, match="JSON"), writing(made) as staging:
        write_manifest(staging, {"loss": float("nan")})
    assert verify(made) == 1


def test_a_full_disk_is_a_resource_error_and_the_old_bundle_stays(made: Path) -> None:
    with pytest.raises(ResourceError, match="No space left on device") as caught, writing(made):
        Path("/dev/full").write_bytes(b"x")
    assert caught.value.exit_code == 5
    assert verify(made) == 1
    assert beside(made) == []


# What is not replaced


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    for name, content in {"thesis.txt": "years", MANIFEST: '{"name": "web app", "files": []}', "sub/x": "y"}.items():
        folder = tmp_path / name.replace("/", "-")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content)
        with pytest.raises(BundleError, match="is not a bundle, so it is left alone") as caught:
            write(folder, 1)
        assert caught.value.exit_code == 4
        assert (folder / name).read_text() == content
        assert [path for path in folder.rglob("*") if path.is_file()] == [folder / name]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "dogs").write_text("a list of dogs")
    with pytest.raises(BundleError):
        check_target(tmp_path / "dogs")
    assert (tmp_path / "dogs").read_text() == "a list of dogs"


def test_a_bundle_with_a_damaged_manifest_may_be_replaced(made: Path) -> None:
    (made / MANIFEST).write_text("{ cut off")
    write(made, 2)
    assert verify(made) == 2


# Killed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process that it forks")
@pytest.mark.parametrize("how", ["exchange", "two-steps"])
@pytest.mark.parametrize(
    "mode",
    [("steps",), ("random", "8", "1"), pytest.param(("random", "200", "2"), marks=pytest.mark.slow)],
    ids=["each step", "8 moments", "200 moments"],
)
def test_a_kill_leaves_the_old_bundle_or_the_new_one(tmp_path: Path, how: str, mode: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "tests.helpers.bundle_killing", str(tmp_path), how, *mode]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    deaths = [json.loads(line) for line in run.stdout.splitlines()]
    if mode[0] == "steps":
        assert len(deaths) > 20
        assert [death["code"] for death in deaths] == [9] * (len(deaths) - 1) + [0]
        assert {death["left"] - death["before"] for death in deaths} == {0, 1}
    else:
        assert len(deaths) == int(mode[1])
        assert all(death["code"] == -9 for death in deaths)
        assert all(death["left"] >= death["before"] for death in deaths)
    assert all(death["after"] == death["left"] + 1 for death in deaths)
    assert all(death["litter"] == [] for death in deaths)


def test_a_bundle_cut_off_between_two_renames_is_put_back_by_whoever_comes_first(made: Path) -> None:
    for comes in (read_bundle, check_target):
        made.rename(made.parent / ".dogs.old-0badcafe")
        comes(made)
        assert verify(made) == 1
        assert beside(made) == []


def test_a_retired_folder_without_a_manifest_is_not_put_back(made: Path) -> None:
    (made / MANIFEST).unlink()
    made.rename(made.parent / ".dogs.old-0badcafe")
    with pytest.raises(BundleError, match="No bundle was found at"):
        read_bundle(made)


def test_a_reader_that_puts_the_old_one_back_too_early_does_not_stop_the_writer(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "_exchange", lambda first, second: False)
    rename, met = Path.rename, []

    def meddled(self: Path, target: Path) -> Path:
        result = rename(self, target)
        if ".old-" in Path(target).name and not met:
            met.append(read_bundle(made).manifest["generation"])
        return result

    monkeypatch.setattr(Path, "rename", meddled)
    write(made, 2)
    assert met == [1]
    assert verify(made) == 2
    assert beside(made) == []


def test_a_second_rename_that_fails_puts_the_old_one_back(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "_exchange", lambda first, second: False)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".part-" in self.name:
            raise OSError("the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ResourceError, match="the disk is gone"):
        write(made, 2)
    assert (made / MANIFEST).is_file()
    assert verify(made) == 1
    assert beside(made) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux which file was flushed")
def test_everything_is_flushed_to_the_disk_before_it_takes_its_place(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    fsync, swap = os.fsync, bundle_module.put_in_place

    def noted(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def swapped(staging: Path, target: Path) -> None:
        assert sorted(flushed) == sorted([staging, *staging.iterdir()])
        flushed.clear()
        swap(staging, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(bundle_module, "put_in_place", swapped)
    write(made, 2)
    assert flushed == [made.parent]


def test_leftovers_of_another_bundle_are_not_swept(made: Path) -> None:
    others = [".dog.part-12345678", ".dogs.part-x.part-12345678", ".dogs2.old-12345678", "dogs.part-12345678"]
    for name in [*others, ".dogs.part-12345678", ".dogs.old-12345678"]:
        (made.parent / name).mkdir()
    write(made, 2)
    assert beside(made) == sorted(others)


# What is not believed


def test_a_changed_byte_is_found(made: Path) -> None:
    data = bytearray((made / "model.bin").read_bytes())
    data[1000] ^= 1
    (made / "model.bin").write_bytes(data)
    with pytest.raises(BundleError, match="checksum") as caught:
        read_bundle(made).file("model.bin")
    assert caught.value.code == "checksum_mismatch"
    assert read_bundle(made).file("model.xml").is_file()


def test_a_missing_file_is_told_by_name(made: Path) -> None:
    (made / "model.bin").unlink()
    for name in ("model.bin", "never.txt"):
        with pytest.raises(BundleError, match=f"has no {name}"):
            read_bundle(made).file(name)


@pytest.mark.parametrize(
    "text", ["", "{ cut off", "[]", '"bundle"', "null", "\x00\x01", "[" * 100_000, '{"format": "other"}', "{}"]
)
def test_a_manifest_that_is_none_is_told_of(made: Path, text: str) -> None:
    (made / MANIFEST).write_text(text)
    with pytest.raises(BundleError) as caught:
        read_bundle(made)
    assert caught.value.exit_code == 4
    assert MANIFEST in str(caught.value)


def test_a_manifest_that_is_no_text_is_told_of(made: Path) -> None:
    (made / MANIFEST).write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(BundleError, match="cannot be read"):
        read_bundle(made)


@pytest.mark.parametrize("version", [2, 0, -1, "1", None, 1.5, [1]])
def test_another_schema_version_is_refused_with_the_way_out(made: Path, version: object) -> None:
    alter(made, lambda manifest: manifest.update(schema_version=version))
    with pytest.raises(BundleError, match=r"schema version .*Install the transferapp that wrote it"):
        read_bundle(made)


@pytest.mark.parametrize(
    "name", ["../secret", "..", "/etc/passwd", "sub/model.xml", "./model.xml", ""], ids=lambda name: name or "empty"
)
def test_files_outside_the_folder_are_never_named(made: Path, name: str) -> None:
    alter(made, lambda manifest: manifest["files"].update({name: {"sha256": "00"}}))
    with pytest.raises(BundleError, match="names files outside its own folder") as caught:
        read_bundle(made)
    assert caught.value.code == "unsafe_bundle"


@pytest.mark.parametrize(
    "changes",
    [
        {"class_names": None},
        {"class_names": ["only"]},
        {"class_names": ["a", "a"]},
        {"class_names": ["a", 3]},
        {"class_names": "ab"},
        {"name": 7},
        {"files": None},
        {"files": {}},
        {"files": {"model.xml": {"sha256": "00"}}},
        {"files": {"model.xml": "00", "model.bin": "00"}},
        {"input": None},
        {"input": {}},
        {"input": {"image_size": [224]}},
        {"input": {"image_size": ["224", "224"]}},
        {"input": {"image_size": [10**9, 224]}},
        {"input": {"image_size": [224, 224], "default_views": 7}},
        {"input": {"image_size": [224, 224], "default_views": "10"}},
        {"input": {"image_size": [224, 224], "sample_bits": 11}},
        {"input": {"image_size": [224, 224], "sample_bits": "12"}},
        {"input": {"image_size": [224, 224], "geometry": "stretch"}},
        {"input": {"image_size": [224, 224], "geometry": None}},
        {"precision": "bf16"},
        {"precision": {"served": "int4"}},
    ],
    ids=str,
)
def test_a_manifest_with_a_field_that_makes_no_sense_is_incomplete(made: Path, changes: dict[str, Any]) -> None:
    alter(made, lambda manifest: manifest.update(changes))
    with pytest.raises(BundleError, match="is incomplete"):
        read_bundle(made)


def test_fields_that_are_not_known_yet_do_no_harm(made: Path) -> None:
    alter(made, lambda manifest: manifest.update(color_of_the_sky="blue"))
    assert verify(made) == 1


def test_a_place_with_no_bundle_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"No bundle was found at .*nowhere"):
        read_bundle(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="No bundle was found at"):
        read_bundle(tmp_path / "file")
    with pytest.raises(BundleError, match=f"is not a bundle: it has no {MANIFEST}"):
        read_bundle(tmp_path)


def test_reading_a_bundle_loads_no_network_and_no_framework(made: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from transferapp.bundle.format import read_bundle
read_bundle(Path({str(made)!r})).file("model.xml")
assert not {{"tensorflow", "keras", "openvino"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# What a stranger may have made


def test_bytes_are_read_and_verified_as_one(made: Path) -> None:
    bundle = read_bundle(made)
    for name in FILES:
        assert bundle.read(name) == (made / name).read_bytes()
    (made / FILES[0]).write_bytes(b"altered")
    with pytest.raises(BundleError, match="checksum differs") as refused:
        bundle.read(FILES[0])
    assert refused.value.code == "checksum_mismatch"
    with pytest.raises(BundleError, match="has no other"):
        bundle.read("other")


def test_a_link_out_of_the_folder_is_judged_by_its_checksum(made: Path, tmp_path: Path) -> None:
    bundle = read_bundle(made)
    (tmp_path / "secret").write_bytes(b"not for everyone")
    (made / FILES[0]).unlink()
    (made / FILES[0]).symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match="checksum differs"):
        bundle.read(FILES[0])


@pytest.mark.parametrize("kind", ["zip", "tar", "pickle"])
def test_an_archive_is_no_bundle_and_nothing_of_it_is_unpacked(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"model.{kind}"
    marker = tmp_path / "written"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../written", "x")
            archive.writestr(MANIFEST, "{}")
    elif kind == "tar":
        with tarfile.open(path, "w:gz") as archive:
            entry = tarfile.TarInfo("link")
            entry.type, entry.linkname = tarfile.SYMTYPE, "/"
            archive.addfile(entry)
            archive.addfile(tarfile.TarInfo("../written"), io.BytesIO())
    else:

        class Evil:
            def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
                return Path.touch, (marker,)

        path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BundleError, match="No bundle was found"):
        read_bundle(path)
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_manifest_that_is_a_pipe_or_a_bomb_is_refused_at_once(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(BundleError, match="too large"):
        read_bundle(made)
    (made / MANIFEST).unlink()
    os.mkfifo(made / MANIFEST)
    with pytest.raises(BundleError, match=r"no bundle\.json"):
        read_bundle(made)


def test_a_bundle_of_other_data_stays_unless_its_place_was_named(made: Path, tmp_path: Path) -> None:
    manifest = json.loads((made / MANIFEST).read_text())
    (made / MANIFEST).write_text(json.dumps({**manifest, "data": {"origin": str(tmp_path / "A" / "dogs")}}))
    check_target(made)
    check_target(made, str(tmp_path / "B" / ".." / "A" / "dogs"))
    with pytest.raises(DataError, match="holds the bundle of other data") as caught:
        check_target(made, str(tmp_path / "B" / "dogs"))
    assert caught.value.exit_code == 3
    assert caught.value.hint is not None
    assert "--out" in caught.value.hint
