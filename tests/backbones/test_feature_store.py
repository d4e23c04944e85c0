"""The feature store: correct rows, each computed once, also after kills and with several processes.

The network here is arithmetic on pixels, so that every row can be worked out again and no backbone need be loaded.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from tests.helpers.networks import write_images
from transferapp.backbones import feature_store as features
from transferapp.backbones.engine import BATCH_SIZE
from transferapp.backbones.feature_store import (
    CENTER,
    TEN_CROPS,
    WITHOUT_COLOR,
    FeatureStore,
    RandomViews,
    center_pixels,
    random_view_name,
    trim_cache,
    view_pixels,
)
from transferapp.backbones.stages import Stage
from transferapp.backbones.trunk import Trunk
from transferapp.data.dataset import Record
from transferapp.errors import DataError, UsageError
from transferapp.images import decode_image
from transferapp.images.augment import Augmentation, PCAColor
from transferapp.images.views import (
    GEOMETRIES,
    SHORT_SIDE,
    TRAINING_SHORT_SIDES,
    Geometry,
    center_view,
    render,
    render_batch,
    short_side_to_decode,
    ten_crops,
)
from transferapp.system.storage import sha256_file

ROOT = Path(__file__).parents[2]
SIZE = (24, 32)
ROW_SIZE = 6


class Means:
    """Mean colors of the upper and of the lower half, as float32 of shape (n, 6); counts the views it has seen."""

    name, precision = "numpy", "f32"

    def __init__(self, seconds: float = 0.0, log: Path | None = None) -> None:
        self.views = 0
        self._seconds, self._log = seconds, log
        self._lock = threading.Lock()

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        time.sleep(self._seconds)
        with self._lock:
            self.views += len(batch)
            if self._log is not None:
                with self._log.open("a") as stream:
                    stream.write(f"{len(batch)}\n")
        half = batch.shape[1] // 2
        return np.concatenate([batch[:, :half].mean(axis=(1, 2)), batch[:, half:].mean(axis=(1, 2))], axis=1).astype(
            "f4"
        )


def make_trunk(engine: Any, key: str = "key") -> Trunk:
    stages = (Stage("low", 0, (2, 2, 1), False), Stage("top", 1, (1, 1, 2), True))  # three means and three deviations
    return Trunk("means", key, SIZE, engine, stages, 0)


def make_store(engine: Any = None, key: str = "key", workers: int = 2) -> FeatureStore:
    return FeatureStore(make_trunk(engine or Means(), key), workers=workers)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRANSFERAPP_CACHE_LIMIT", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return write_images(tmp_path / "images", 20)


def directly(records: list[Record], view_names: list[str]) -> np.ndarray:
    """The same rows, one view at a time and without a store."""
    engine = Means()
    rows = []
    for record in records:
        for view in view_names:
            image = Image.open(record.path).convert("RGB")
            rows.append(engine(view_pixels(image, view, record.sha256, SIZE)[None])[0])
    return np.array(rows).reshape(len(records), len(view_names), ROW_SIZE)


VIEWS = [CENTER, random_view_name(0, 7), random_view_name(1, 7)]


# ------------------------------------------------------------------------------------------------------------------- rows


def test_rows_are_those_of_each_view_of_each_image_in_order(records: list[Record]) -> None:
    rows = make_store().collect(records, VIEWS)
    assert rows.shape == (20, 3, ROW_SIZE)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, directly(records, VIEWS), rtol=1e-6)


def test_rows_come_in_the_order_asked_for_whatever_the_order_on_disk(records: list[Record]) -> None:
    store = make_store()
    store.collect(records, VIEWS)
    mixed = [records[i] for i in np.random.default_rng(0).permutation(20)]
    views = VIEWS[::-1]
    np.testing.assert_allclose(store.collect(mixed, views), directly(mixed, views), rtol=1e-6)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_changes_nothing(records: list[Record], workers: int) -> None:
    np.testing.assert_array_equal(
        make_store(key="one", workers=1).collect(records, VIEWS),
        make_store(key=f"many{workers}", workers=workers).collect(records, VIEWS),
    )


def test_no_images_and_no_views_give_no_rows(records: list[Record]) -> None:
    store = make_store()
    assert store.collect([], VIEWS).shape == (0, 3, ROW_SIZE)
    assert store.collect(records, []).shape == (20, 0, ROW_SIZE)
    store.collect(records, VIEWS)
    assert store.collect([], VIEWS).shape == (0, 3, ROW_SIZE)


def test_rows_that_lie_together_are_mapped_and_not_copied(records: list[Record], cache: Path) -> None:
    store = make_store()
    rows = store.collect(records, [CENTER])
    assert rows.base is not None
    assert not rows.flags.writeable, "the file behind it is the cache"
    part = store.collect(records[5:11], [CENTER])
    assert not part.flags.writeable
    np.testing.assert_array_equal(part, rows[5:11])
    scattered = store.collect(records[::2], [CENTER])
    assert scattered.flags.writeable, "a copy"
    np.testing.assert_array_equal(scattered, rows[::2])


def test_mapped_rows_outlive_growth_and_removal_of_the_store(records: list[Record]) -> None:
    store = make_store()
    rows = store.collect(records[:10], [CENTER])
    kept = np.array(rows)
    store.collect(records, VIEWS)
    np.testing.assert_array_equal(rows, kept)
    trim_cache(0)
    np.testing.assert_array_equal(rows, kept)


# ------------------------------------------------------------------------------------------------------------ what is done


def test_only_what_is_missing_is_computed(records: list[Record]) -> None:
    engine = Means()
    store = make_store(engine)
    store.collect(records[:12], [CENTER])
    assert engine.views == 12
    store.collect(records, [CENTER])
    assert engine.views == 20
    store.collect(records, VIEWS)
    assert engine.views == 60
    store.collect(records[::-1], VIEWS[1:])
    assert engine.views == 60


def test_another_run_finds_what_this_one_has_computed(records: list[Record]) -> None:
    first = make_store().collect(records, VIEWS)
    engine = Means()
    np.testing.assert_array_equal(make_store(engine).collect(records, VIEWS), first)
    assert engine.views == 0


def test_another_trunk_finds_nothing(records: list[Record]) -> None:
    make_store(key="one").collect(records, [CENTER])
    engine = Means()
    make_store(engine, key="other").collect(records, [CENTER])
    assert engine.views == 20


def test_images_of_the_same_content_are_computed_once(records: list[Record], tmp_path: Path) -> None:
    twin = tmp_path / "twin.png"
    twin.write_bytes(records[3].path.read_bytes())
    with_twin = [*records, dataclasses.replace(records[3], location=str(twin), name="twin.png", label=1)]
    engine = Means()
    rows = make_store(engine).collect(with_twin, VIEWS)
    assert engine.views == 60
    np.testing.assert_array_equal(rows[20], rows[3])


def test_a_view_that_is_asked_for_twice_is_computed_once(records: list[Record]) -> None:
    engine = Means()
    store = make_store(engine)
    rows = store.collect(records, [CENTER, VIEWS[1], CENTER])
    assert engine.views == 40
    np.testing.assert_array_equal(rows[:, 0], rows[:, 2])
    store.collect(records, VIEWS)
    np.testing.assert_allclose(store.collect(records, VIEWS), directly(records, VIEWS), rtol=1e-6)


def test_batches_hold_about_as_many_views_as_the_engine_likes(records: list[Record], tmp_path: Path) -> None:
    log = tmp_path / "batches"
    make_store(Means(log=log)).collect(records, VIEWS)
    sizes = [int(line) for line in log.read_text().split()]
    assert sum(sizes) == 60
    assert max(sizes) < BATCH_SIZE + len(VIEWS)


# -------------------------------------------------------------------------------------------------------------------- views


def test_the_center_view_is_the_ten_crops_center(records: list[Record]) -> None:
    image = Image.open(records[0].path).convert("RGB")
    expected = render(image, center_view(image.size, SIZE), SIZE)
    np.testing.assert_array_equal(view_pixels(image, CENTER, "any", SIZE), expected)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_ten_crops_are_those_that_are_served(records: list[Record], geometry: Geometry) -> None:
    image = Image.open(records[0].path).convert("RGB")
    expected = render_batch(image, ten_crops(image.size, SIZE, geometry=geometry), SIZE)
    random_views = RandomViews(geometry=geometry)
    found = [view_pixels(image, name, "any", SIZE, random_views) for name in TEN_CROPS]
    np.testing.assert_array_equal(found, expected)
    assert TEN_CROPS.count(CENTER) == 1
    rows = FeatureStore(make_trunk(Means()), random_views=random_views).collect(records[:1], TEN_CROPS)
    np.testing.assert_array_equal(rows[0], Means()(expected))


def test_random_views_depend_on_content_number_and_seed_alone(records: list[Record]) -> None:
    image = Image.open(records[0].path).convert("RGB")

    def pixels(index: int, seed: int, content: str) -> bytes:
        return view_pixels(image, random_view_name(index, seed), content, SIZE).tobytes()

    assert pixels(0, 0, "a") == pixels(0, 0, "a")
    variants = {pixels(index, seed, content) for index in (0, 1) for seed in (0, 1) for content in ("a", "b")}
    assert len(variants) == 8


def test_random_views_are_the_same_under_other_names_and_in_other_company(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = [random_view_name(index, 3) for index in range(4)]
    expected = make_store().collect(records, views)
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(tmp_path / "elsewhere"))
    moved = []
    for index, record in enumerate(records[10:15]):
        path = tmp_path / f"renamed{index}.png"
        path.write_bytes(record.path.read_bytes())
        moved.append(dataclasses.replace(record, location=str(path), name=path.name, label=0))
    np.testing.assert_array_equal(make_store().collect(moved[::-1], views), expected[10:15][::-1])


def test_a_views_pixels_do_not_depend_on_what_else_is_asked_for(tmp_path: Path) -> None:
    # Large enough for the decoder to read the JPEG at a smaller size for one kind of view and not for the other.
    path = tmp_path / "large.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((900, 700)).save(path, quality=90)
    record = Record(str(path), path.name, 0, "train", sha256_file(path))
    alone = [make_store(key=view).collect([record], [view])[0, 0] for view in VIEWS]
    together = make_store(key="together").collect([record], VIEWS)[0]
    np.testing.assert_array_equal(together, alone)
    for view, row, side in ((CENTER, alone[0], SHORT_SIDE), (VIEWS[1], alone[1], TRAINING_SHORT_SIDES[1])):
        image = decode_image(path, min_short_side=short_side_to_decode(side, SIZE)).image
        np.testing.assert_array_equal(row, Means()(view_pixels(image, view, record.sha256, SIZE)[None])[0])


def test_rows_of_one_depth_are_not_those_of_another(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.arange(0, 4096, dtype=np.uint16).reshape(64, 64)).save(path)
    record = Record(str(path), path.name, 0, "train", sha256_file(path))
    deep = [dataclasses.replace(record, sample_bits=bits) for bits in (16, 12)]
    store = make_store()
    rows = [store.collect([each], VIEWS)[0] for each in deep]
    assert (rows[1] > 10 * rows[0]).all()
    for each, row in zip(deep, rows, strict=True):
        np.testing.assert_array_equal(make_store().collect([each], VIEWS)[0], row)


# ----------------------------------------------------------------------------------------------- where rows lie, and as what


def test_rows_can_be_found_on_disk_instead_of_read(records: list[Record]) -> None:
    store = make_store()
    store.collect(records[7:], [CENTER])  # so that they do not lie in order
    rows, positions = store.locate(records, VIEWS)
    assert positions.shape == (20, 3)
    assert positions.dtype == np.int64
    assert not rows.flags.writeable
    assert len(rows) == 60
    np.testing.assert_array_equal(rows[positions], store.collect(records, VIEWS))
    nothing, nowhere = store.locate([], VIEWS)
    assert (nothing.shape[1], nowhere.shape) == (ROW_SIZE, (0, 3))


def test_large_rows_are_kept_in_half_precision_in_a_folder_of_ones_choice(
    records: list[Record], tmp_path: Path
) -> None:
    def half() -> FeatureStore:
        return FeatureStore(make_trunk(Means()), dtype="float16", folder=tmp_path / "run" / "activations")

    rows = half().collect(records, VIEWS)
    assert rows.dtype == np.float16
    np.testing.assert_array_equal(rows, directly(records, VIEWS).astype(np.float16))
    assert {path.name for path in (tmp_path / "run" / "activations").iterdir()} == {"rows.float16", "keys.bin"}
    assert (tmp_path / "run" / "activations" / "rows.float16").stat().st_size == 2 * ROW_SIZE * 60
    trim_cache(0)
    np.testing.assert_array_equal(half().collect(records, VIEWS), rows)


# ------------------------------------------------------------------------------------------------------------------- chance


def pixels_under(random_views: RandomViews, record: Record, view: str) -> np.ndarray:
    return view_pixels(Image.open(record.path).convert("RGB"), view, record.sha256, SIZE, random_views)


def test_views_drawn_from_something_else_are_other_views(records: list[Record]) -> None:
    pca = PCAColor(np.eye(3), np.array([2.0, 0.5, 0.1]), np.zeros(3))
    other_pca = PCAColor(np.eye(3), np.array([1.0, 0.5, 0.1]), np.zeros(3))
    distributions = {
        "plain": WITHOUT_COLOR,
        "middle": RandomViews(dataclasses.replace(WITHOUT_COLOR.augmentation, random_crop=False)),
        "color": RandomViews(Augmentation(), pca),
        "other color": RandomViews(Augmentation(), other_pca),
    }
    assert len({random_views.digest for random_views in distributions.values()}) == 4
    assert RandomViews(Augmentation(), pca).digest == distributions["color"].digest
    rows = {}
    for name, random_views in distributions.items():
        engine = Means()
        store = FeatureStore(make_trunk(engine), random_views=random_views)
        rows[name] = store.collect(records, VIEWS)
        assert engine.views == (60 if name == "plain" else 40), "the center view is not random"
        expected = [
            [Means()(pixels_under(random_views, record, view)[None])[0] for view in VIEWS] for record in records[:3]
        ]
        np.testing.assert_array_equal(rows[name][:3], expected)
    for name in distributions:
        np.testing.assert_array_equal(rows[name][:, 0], rows["plain"][:, 0])
    assert len({rows[name][:, 1:].tobytes() for name in distributions}) == 4


@pytest.mark.parametrize("geometry", ["resize", "pad"])
def test_views_in_another_geometry_are_other_views(records: list[Record], geometry: Geometry) -> None:
    cropped, engine = FeatureStore(make_trunk(Means())).collect(records, VIEWS), Means()
    seen = dataclasses.replace(WITHOUT_COLOR, geometry=geometry)
    rows = FeatureStore(make_trunk(engine), random_views=seen).collect(records, VIEWS)
    assert engine.views == 60, "nothing of the center crops is reused"
    assert not np.array_equal(rows[:, 0], cropped[:, 0])
    expected = [[Means()(pixels_under(seen, record, view)[None])[0] for view in VIEWS] for record in records[:3]]
    np.testing.assert_array_equal(rows[:3], expected)
    image = Image.open(records[0].path).convert("RGB")
    pixels = render(image, center_view(image.size, SIZE, geometry), SIZE)
    np.testing.assert_array_equal(pixels_under(seen, records[0], CENTER), pixels)
    np.testing.assert_array_equal(center_pixels(records[0], SIZE, geometry), pixels)
    again = Means()
    np.testing.assert_array_equal(FeatureStore(make_trunk(again)).collect(records, VIEWS), cropped)
    assert again.views == 0, "the center crops are still there"


# ----------------------------------------------------------------------------------------------------------------- progress


def test_progress_counts_views_from_those_already_there_to_all(records: list[Record]) -> None:
    store = make_store()
    store.collect(records[:5], VIEWS)
    told: list[int] = []
    store.collect(records, VIEWS, told.append)
    assert told[0] == 15
    assert told[-1] == 60
    assert told == sorted(told)
    assert len(told) > 3, "told along the way"
    again: list[int] = []
    store.collect(records, VIEWS, again.append)
    assert again == [60]


def test_progress_counts_copies_of_an_image_too(records: list[Record]) -> None:
    told: list[int] = []
    make_store().collect([*records, *records], [CENTER], told.append)
    assert told[-1] == 40


# ------------------------------------------------------------------------------------------------------- faults and kills


_opened: Counter[str] = Counter()
sys.addaudithook(lambda event, arguments: _opened.update([str(arguments[0])]) if event == "open" else None)


def test_each_file_is_read_once(records: list[Record]) -> None:
    _opened.clear()
    make_store().collect(records, VIEWS)
    assert [_opened[str(record.path)] for record in records] == [1] * len(records)


@pytest.mark.parametrize("change", ["gone", "other content"])
def test_an_image_that_changed_since_the_audit_is_named_and_not_remembered(records: list[Record], change: str) -> None:
    path, original = records[15].path, records[15].path.read_bytes()
    path.unlink() if change == "gone" else path.write_bytes(records[2].path.read_bytes())
    store = make_store()
    with pytest.raises(DataError, match=rf"{path}.* (no longer be read|has changed)"):
        store.collect(records, [CENTER])
    path.write_bytes(original)
    np.testing.assert_allclose(store.collect(records, [CENTER]), directly(records, [CENTER]), rtol=1e-6)


def test_an_engine_that_fails_leaves_what_was_done_and_no_lock(records: list[Record]) -> None:
    class Failing(Means):
        def __call__(self, batch: np.ndarray) -> np.ndarray:
            if self.views >= 8:
                raise RuntimeError("out of order")
            return super().__call__(batch)

    with pytest.raises(RuntimeError, match="out of order"):
        make_store(Failing(), workers=1).collect(records, [CENTER])
    engine = Means()
    rows = make_store(engine).collect(records, [CENTER])
    assert engine.views == 12
    np.testing.assert_allclose(rows, directly(records, [CENTER]), rtol=1e-6)


def test_waiting_for_another_process_gives_a_note(
    records: list[Record], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_PATIENCE", 0.01)
    other = FileLock(cache / "features" / ".means-key.lock")
    told: list[str] = []

    def release(text: str) -> None:
        told.append(text)
        other.release()

    store = FeatureStore(make_trunk(Means()), note=release)
    store.collect(records, [CENTER])
    assert not told
    with other:
        np.testing.assert_allclose(store.collect(records, [CENTER]), directly(records, [CENTER]), rtol=1e-6)
    assert told == ["Another process is using the features of means; waiting until it is done"]


def test_threads_of_one_process_wait_for_each_other_without_a_note(
    records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_PATIENCE", 0.0)
    told: list[str] = []

    class Slow(Means):
        def __call__(self, batch: np.ndarray) -> np.ndarray:
            time.sleep(0.05)
            return super().__call__(batch)

    stores = [FeatureStore(make_trunk(Slow()), note=told.append) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda store: np.array(store.collect(records, [CENTER])), stores))
    for rows in found:
        np.testing.assert_allclose(rows, directly(records, [CENTER]), rtol=1e-6)
    assert told == []


def store_files(cache: Path) -> tuple[Path, Path]:
    folder = cache / "features" / "means-key"
    return folder / "rows.float32", folder / "keys.bin"


@pytest.mark.parametrize(
    ("rows_left", "keys_left"),
    [
        (4 * ROW_SIZE * 20, 16 * 12),  # rows without keys
        (4 * ROW_SIZE * 12 + 10, 16 * 12),  # and half a row
        (4 * ROW_SIZE * 12, 16 * 12 + 7),  # half a key
        (4 * ROW_SIZE * 12, 16 * 20),  # keys without rows, as a power cut may leave
        (4 * ROW_SIZE * 12 + 3, 16 * 20 + 1),
        (0, 16 * 20),
        (4 * ROW_SIZE * 20, 0),
    ],
)
@pytest.mark.parametrize("asked", [12, 20], ids=["nothing is missing", "something is missing"])
def test_files_cut_anywhere_are_read_as_far_as_they_are_whole(
    records: list[Record], cache: Path, rows_left: int, keys_left: int, asked: int
) -> None:
    expected = np.array(make_store(workers=1).collect(records, [CENTER]))
    rows_file, keys_file = store_files(cache)
    for path, length in ((rows_file, rows_left), (keys_file, keys_left)):
        path.write_bytes(path.read_bytes()[:length])
    whole = min(rows_left // (4 * ROW_SIZE), keys_left // 16)
    engine = Means()
    np.testing.assert_array_equal(make_store(engine).collect(records[:asked], [CENTER]), expected[:asked])
    assert engine.views == max(0, asked - whole)
    np.testing.assert_array_equal(make_store().collect(records, [CENTER]), expected)


def test_a_store_that_has_lost_a_file_starts_again(records: list[Record], cache: Path) -> None:
    expected = np.array(make_store().collect(records, [CENTER]))
    for file in store_files(cache):
        file.unlink()
        np.testing.assert_array_equal(make_store().collect(records, [CENTER]), expected)


SCRIPT = """
import sys
from pathlib import Path
from tests.helpers.networks import write_images
from tests.backbones.test_feature_store import Means, VIEWS, make_store
folder, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
records = write_images(folder, 20)
print("ready", flush=True)
sys.stdin.readline()
make_store(Means(seconds, log)).collect(records, VIEWS)
"""


def start(folder: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that collects the same rows once it is told to go."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(log), str(seconds)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_after_kill_9_the_next_run_goes_on_and_ends_with_the_same_rows(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(tmp_path / "a", tmp_path / "log", 0.3)
    go(process)
    keys_file = store_files(cache)[1]
    deadline = time.monotonic() + 60
    while not (keys_file.exists() and keys_file.stat().st_size >= 16 * 9) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    done = keys_file.stat().st_size // 16
    assert 9 <= done < 60, "killed in the middle"
    records = write_images(tmp_path / "a", 20)
    engine = Means()
    resumed = np.array(make_store(engine).collect(records, VIEWS))
    assert engine.views == 60 - done, "nothing that was done is done again"
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(tmp_path / "undisturbed"))
    np.testing.assert_array_equal(resumed, make_store().collect(records, VIEWS))


def test_two_processes_at_once_compute_each_row_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(tmp_path / name, log, 0.01) for name in ("a", "b")]  # the same contents in two folders
    for process in processes:
        go(process)
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert sum(int(line) for line in log.read_text().split()) == 60
    records = write_images(tmp_path / "a", 20)
    engine = Means()
    np.testing.assert_allclose(make_store(engine).collect(records, VIEWS), directly(records, VIEWS), rtol=1e-6)
    assert engine.views == 0


# ------------------------------------------------------------------------------------------------------------------- cache


def fill(records: list[Record], key: str, age: float) -> Path:
    """A store of 480 bytes of rows and 320 of keys, last used `age` seconds ago."""
    make_store(key=key).collect(records, [CENTER])
    folder = Path(os.environ["TRANSFERAPP_CACHE"]) / "features" / f"means-{key}"
    then = time.time() - age
    os.utime(folder, (then, then))
    return folder


STORE_BYTES = 20 * (4 * ROW_SIZE + 16)


def test_the_stores_unused_for_longest_go_first_and_only_as_many_as_must(records: list[Record]) -> None:
    oldest, middle, newest = (fill(records, key, age) for key, age in (("x", 300), ("y", 200), ("z", 100)))
    trim_cache(3 * STORE_BYTES)
    assert oldest.exists()
    trim_cache(2 * STORE_BYTES)
    assert [folder.exists() for folder in (oldest, middle, newest)] == [False, True, True]
    trim_cache(2 * STORE_BYTES - 1)
    assert [folder.exists() for folder in (oldest, middle, newest)] == [False, False, True]


def test_using_a_store_counts_as_use(records: list[Record]) -> None:
    old, young = fill(records, "old", 300), fill(records, "young", 200)
    make_store(key="old").collect(records, [CENTER])  # nothing is computed, and yet
    trim_cache(STORE_BYTES)
    assert old.exists()
    assert not young.exists()


def test_a_store_that_is_being_filled_is_not_deleted(records: list[Record]) -> None:
    fill(records[:5], "other", 10)
    trimmed = threading.Event()

    class Trimming(Means):
        def __call__(self, batch: np.ndarray) -> np.ndarray:
            trim_cache(0)  # as another process would
            trimmed.set()
            return super().__call__(batch)

    rows = make_store(Trimming(), key="filled").collect(records, VIEWS)
    assert trimmed.is_set()
    np.testing.assert_allclose(rows, directly(records, VIEWS), rtol=1e-6)
    folders = sorted(p.name for p in (Path(os.environ["TRANSFERAPP_CACHE"]) / "features").iterdir() if p.is_dir())
    assert folders == ["means-filled"]


def test_a_store_may_be_used_again_after_it_was_deleted(records: list[Record]) -> None:
    store = make_store()
    first = np.array(store.collect(records, [CENTER]))
    trim_cache(0)
    np.testing.assert_array_equal(store.collect(records, [CENTER]), first)


def test_the_limit_may_be_set_from_outside(records: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(records, "x", 10)
    trim_cache()
    assert folder.exists(), "the default is gigabytes"
    monkeypatch.setenv("TRANSFERAPP_CACHE_LIMIT", "100")
    trim_cache()
    assert not folder.exists()


@pytest.mark.parametrize("limit", ["lots", "-1", "4e9", "1 GB"])
def test_a_limit_that_is_no_number_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setenv("TRANSFERAPP_CACHE_LIMIT", limit)
    with pytest.raises(UsageError, match="TRANSFERAPP_CACHE_LIMIT"):
        trim_cache()


def test_trimming_where_nothing_was_ever_kept_is_no_error() -> None:
    trim_cache(0)
