"""The label doctor, and the audit on its own, with a network that costs nothing."""

from __future__ import annotations

import csv
import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.numeric_trunk import numeric_trunk, paint_hues
from tests.helpers.tiny_bundle import make_tiny_bundle
from transferapp.backbones.loader import BackboneLoader
from transferapp.backbones.registry import DEFAULT_BACKBONE
from transferapp.backbones.stages import Stage
from transferapp.config import make_config
from transferapp.data.dataset import Dataset, Record
from transferapp.data.label_fixes import FIX_COLUMNS
from transferapp.errors import BundleError, DataError
from transferapp.recipes.audit import audit
from transferapp.recipes.features import Featurized, featurize
from transferapp.recipes.label_doctor import LISTED_SHARE, Diagnosis, diagnose, judge_labels
from transferapp.system.progress import Silent


@pytest.fixture(autouse=True)
def _numeric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(BackboneLoader, "_build_trunk", lambda loader, spec: numeric_trunk(spec.name))


def hues(root: Path, wrong: int = 0, per_class: int = 30) -> tuple[Path, set[str]]:
    """Red, green and blue images, some of which lie in the folder of another hue; and which."""
    paint_hues(root, {"red": per_class, "green": per_class, "blue": per_class}, noise=25)
    names = set()
    for number in range(wrong):
        source, target = (("red", "green"), ("green", "blue"), ("blue", "red"))[number % 3]
        shutil.move(root / source / f"{number:03}.png", root / target / f"wrong {number}.png")
        names.add(f"{target}/wrong {number}.png")
    return root, names


def test_labels_that_are_wrong_are_suspected_and_come_first(tmp_path: Path) -> None:
    data, wrong = hues(tmp_path / "hues", wrong=5)
    diagnosis = diagnose(str(data))
    rows = diagnosis.rows()
    assert {row["path"] for row in rows[:5]} == wrong
    assert all(row["suspected"] for row in rows[:5])
    truth = {"green": "red", "blue": "green", "red": "blue"}
    assert all(row["suggested_label"] == truth[row["given_label"]] for row in rows[:5])
    assert len(rows) == max(diagnosis.num_suspected, round(LISTED_SHARE * 90))


def test_the_list_goes_back_in_and_mends_the_labels(tmp_path: Path) -> None:
    data, wrong = hues(tmp_path / "hues", wrong=4)
    table = list(csv.DictReader(io.StringIO(diagnose(str(data)).to_csv())))
    assert tuple(table[0]) == FIX_COLUMNS
    assert all(row["fix"] == "" for row in table)
    for row in table:
        if row["path"] in wrong:
            row["fix"] = row["suggested_label"]
    with (tmp_path / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, FIX_COLUMNS)
        writer.writeheader()
        writer.writerows(table)
    again = diagnose(str(data), label_fixes=str(tmp_path / "labels.csv"))
    assert not wrong & {row["path"] for row in again.rows() if row["suspected"]}
    given = {record.name: again.dataset.class_names[record.label] for record in again.dataset.records}
    assert given["green/wrong 0.png"] == "red"


def test_a_wrong_label_is_found_however_often_the_image_was_copied(tmp_path: Path) -> None:
    data, (name,) = hues(tmp_path / "hues", wrong=1)
    for copy in range(6):
        shutil.copy(data / name, data / "green" / f"wrong 0 copy {copy}.png")
    rows = diagnose(str(data)).rows()
    assert sum(row["path"].startswith("green/wrong 0") for row in rows[:8]) == 7


def seen_by(counts: tuple[int, ...], flipped: int, seed: int) -> tuple[Featurized, np.ndarray]:
    """Features of points around one center a class with some labels wrong, and which those are."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(counts)), counts)
    rows = rng.normal(size=(len(truth), 12)).astype(np.float32)
    rows[np.arange(len(truth)), truth] += 2.5
    labels = truth.copy()
    wrong = rng.choice(len(truth), flipped, replace=False)
    labels[wrong] = (labels[wrong] + 1) % len(counts)
    records = [Record(f"{i}", f"{i}", int(k), sha256=f"{i}") for i, k in enumerate(labels)]
    data = Dataset("points", tuple("abcdef"[: len(counts)]), tuple(records))
    trunk = dataclasses.replace(numeric_trunk("numeric"), stages=(Stage("top", 0, (1, 1, 12), True),), num_logits=0)
    return Featurized(data, data, trunk, rows), wrong


@pytest.mark.parametrize("seed", range(3))
def test_most_of_five_percent_wrong_labels_are_in_the_first_tenth(seed: int) -> None:
    seen, wrong = seen_by((100, 100, 60, 40), flipped=15, seed=seed)
    diagnosis = judge_labels(seen, None, seed, Silent())
    assert isinstance(diagnosis, Diagnosis)
    first = set(diagnosis.errors.order[:30].tolist())
    assert len(first & set(wrong.tolist())) >= 0.7 * len(wrong)


def test_a_class_of_copies_alone_cannot_be_judged(tmp_path: Path) -> None:
    data, _ = hues(tmp_path / "hues")
    for number in range(3):
        (data / "odd").mkdir(exist_ok=True)
        shutil.copy(data / "red" / "000.png", data / "odd" / f"{number}.png")
    with pytest.raises(DataError, match="nothing but copies of one image"):
        diagnose(str(data))


def test_a_bundle_gives_backbone_and_cut_or_says_that_it_cannot(tmp_path: Path) -> None:
    data, _ = hues(tmp_path / "hues")
    with pytest.raises(BundleError):
        diagnose(str(data), tmp_path / "none")
    bundle = make_tiny_bundle(tmp_path / "tiny")
    with pytest.raises(DataError, match="does not say what its features are from"):
        diagnose(str(data), bundle)


# The audit on its own


def test_the_audit_compares_the_features_of_images(tmp_path: Path) -> None:
    data, _ = hues(tmp_path / "hues", per_class=5)
    found = audit(str(data))
    assert found.findings.similar is not None
    assert found.findings.num_similar > 0, "this network hardly tells images of one hue apart"
    assert found.refusal is None


def test_what_a_fit_would_refuse_is_shown_and_the_reason_kept(tmp_path: Path) -> None:
    data, _ = hues(tmp_path / "hues", per_class=5)
    for number in range(4):
        (data / "red" / f"bad {number}.png").write_bytes(b"no image")
    found = audit(str(data))
    assert found.findings.num_ignored == 4
    assert "4 of 19 images" in str(found.to_json()["refusal"])


def test_a_set_without_a_usable_image_needs_no_network(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "x.jpg").write_bytes(b"")
    config = make_config({"data": str(tmp_path / "data"), "backbone": DEFAULT_BACKBONE})
    assert featurize(config, Silent(), refuse=False).trunk is None
    assert audit(str(tmp_path / "data")).refusal is not None
