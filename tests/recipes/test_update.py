"""Update: the same bundle as a fit on all images, and what is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.fitted import BACKBONE, draw_folders, drawing, transferapp, workplace
from tests.helpers.tiny_bundle import make_tiny_bundle
from transferapp.backbones.engine import OpenVINOEngine
from transferapp.backbones.loader import BackboneLoader
from transferapp.bundle.format import MANIFEST, read_bundle
from transferapp.bundle.predictor import Predictor
from transferapp.config import make_config
from transferapp.errors import BundleError, DataError
from transferapp.recipes.export import split_by_content
from transferapp.recipes.fit.fit import fit
from transferapp.recipes.update import update
from transferapp.system.progress import Silent


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(workplace() / "cache"))


def rows_of(bundle: Path) -> list[dict[str, str]]:
    with (bundle / "split.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@dataclasses.dataclass(frozen=True)
class Updated:
    """A bundle before and after an update by the command.

    Attributes:
        old, more: Folders of images; `more` has a class that `old` has not.
        before, after: The bundles.
        outcome: What the command printed as JSON.
    """

    old: Path
    more: Path
    before: Path
    after: Path
    outcome: dict[str, Any]


@pytest.fixture(scope="module")
def updated(tmp_path_factory: pytest.TempPathFactory) -> Updated:
    root = tmp_path_factory.mktemp("update")
    old, more = draw_folders(root / "old", seed=5), draw_folders(root / "more", per_class=3, seed=6)
    (old / "rings").rename(root / "rings")
    for file in (root / "rings").iterdir():
        shutil.copy(file, more / "rings" / file.name)
    before, after = root / "before" / "drawings", root / "after" / "drawings"
    done = transferapp("fit", "--data", old, "--out", before, "--backbone", BACKBONE)
    assert done.returncode == 0, done.stderr
    shutil.copytree(before, after)
    done = transferapp("update", after, "--data", more, "--json")
    assert done.returncode == 0, done.stderr
    return Updated(old, more, before, after, json.loads(done.stdout))


@pytest.mark.slow
def test_the_old_images_keep_their_split_and_the_new_ones_are_counted(updated: Updated) -> None:
    before, after = rows_of(updated.before), rows_of(updated.after)
    kept = {row["sha256"]: row["split"] for row in before}
    assert {row["sha256"]: row["split"] for row in after if row["sha256"] in kept} == kept
    new = Counter((row["class_name"], row["split"]) for row in after if row["sha256"] not in kept)
    assert updated.outcome["new_images"] == {
        name: {split: count for (label, split), count in new.items() if label == name}
        for name in sorted({n for n, _ in new})
    }
    assert updated.outcome["new_classes"] == ["rings"]
    assert read_bundle(updated.after).class_names == ("dots", "rings", "stripes")
    assert {split for label, split in new if label == "rings"} == {"train", "val", "test"}


@pytest.mark.slow
def test_the_answers_that_changed_are_those_of_the_two_bundles(updated: Updated) -> None:
    before, after = rows_of(updated.before), {row["sha256"]: row for row in rows_of(updated.after)}
    held_out = [row for row in before if row["split"] == "test"]
    old, new = Predictor.load(updated.before), Predictor.load(updated.after)
    assert updated.outcome["num_compared"] == len(held_out) > 0
    changed = []
    for row in held_out:
        labels = [bundle.predict(updated.old / row["name"], views=1).label for bundle in (old, new)]
        assert [row["prediction"], after[row["sha256"]]["prediction"]] == labels
        if labels[0] != labels[1]:
            changed.append(
                {"name": row["name"], "class_name": row["class_name"], "before": labels[0], "after": labels[1]}
            )
    assert updated.outcome["changed"] == changed
    right = [
        np.mean([row["prediction"] == row["class_name"] for row in rows])
        for rows in (held_out, [after[row["sha256"]] for row in held_out])
    ]
    assert updated.outcome["accuracy"] == pytest.approx(right)


@pytest.mark.slow
def test_it_is_the_bundle_of_a_fit_on_all_images_with_the_same_split(updated: Updated, tmp_path: Path) -> None:
    """The fit reads all images from one table, which gives each the split that the update gave it."""
    root = updated.old.parent
    with (root / "all.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["path", "label", "split"])
        for row in rows_of(updated.after):
            inside = row["name"] if Path(row["name"]).is_absolute() else updated.old / row["name"]
            table.writerow([inside, row["class_name"], row["split"]])
    config = make_config({"data": str(root / "all.csv"), "out": str(tmp_path / "fresh"), "backbone": BACKBONE})
    fresh = fit(config).path
    import keras

    weights = [
        keras.saving.load_model(path / "model.keras", compile=False).get_weights() for path in (fresh, updated.after)
    ]
    assert len(weights[0]) == len(weights[1])
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    manifests = [read_bundle(path).manifest for path in (fresh, updated.after)]
    for key in ("head", "cut", "views_reason", "class_weights", "metrics", "class_names"):
        assert manifests[0].get(key) == manifests[1].get(key), key
    assert manifests[0]["data"]["counts"] == manifests[1]["data"]["counts"]
    predictors = [Predictor.load(path) for path in (fresh, updated.after)]
    image = updated.more / "rings" / "rings-00.png"
    scores = [{score.label: score.score for score in predictor.predict(image).scores} for predictor in predictors]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


@pytest.mark.slow
def test_an_updated_bundle_can_be_updated_again(updated: Updated, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(updated.after, bundle)
    sources = read_bundle(bundle).manifest["data"]["sources"]
    assert [source["data"] for source in sources] == [str(updated.old), str(updated.more)]
    with pytest.raises(DataError) as caught:
        update(bundle)
    assert caught.value.code == "nothing_new"
    new = updated.more / "dots" / "later.png"
    drawing("dots", 123_456).save(new)
    try:
        result = update(bundle)
    finally:
        new.unlink()
    assert {name: sum(splits.values()) for name, splits in result.new_images.items()} == {"dots": 1}
    assert (result.new_classes, result.path) == ((), bundle)
    assert len(rows_of(bundle)) == len(rows_of(updated.after)) + 1
    with pytest.raises(DataError) as caught:
        update(bundle, str(updated.old))
    assert caught.value.code == "earlier_images_missing"
    assert len(rows_of(bundle)) == len(rows_of(updated.after)) + 1


@pytest.mark.slow
def test_keras_is_not_needed_once_the_backbone_was_compared_with_it(
    updated: Updated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, more = tmp_path / "drawings", tmp_path / "more"
    shutil.copytree(updated.after, bundle)
    (more / "dots").mkdir(parents=True)
    for number in range(4):
        drawing("dots", 77_777 + number).save(more / "dots" / f"new-{number}.png")
    with monkeypatch.context() as patch:
        patch.delattr(BackboneLoader, "model")
        manifest = update(bundle, str(more)).manifest
    assert manifest["parity_before"]
    assert manifest["parity"][manifest["precision"]["served"]]["num_images"] > 0
    import keras

    model = keras.saving.load_model(bundle / "model.keras", compile=False)
    pixels = np.random.default_rng(0).integers(0, 256, (4, *read_bundle(bundle).image_size, 3), np.uint8)
    served = OpenVINOEngine(bundle / "model.xml", precision="f32")(pixels)
    np.testing.assert_allclose(model.predict(pixels.astype(np.float32), verbose=0), served, atol=1e-4)


@pytest.mark.slow
def test_the_images_of_all_sources_are_found_again_for_an_export(updated: Updated) -> None:
    rows = rows_of(updated.after)
    for found, split in zip(
        split_by_content(read_bundle(updated.after), None, None, Silent()), ("test", "train"), strict=True
    ):
        assert {record.sha256 for record in found.records} == {row["sha256"] for row in rows if row["split"] == split}


@pytest.mark.slow
def test_images_that_are_gone_leave_the_bundle_as_it_is(updated: Updated, tmp_path: Path) -> None:
    moved = updated.old.with_name("moved")
    updated.old.rename(moved)
    try:
        done = transferapp("update", updated.before, "--data", updated.more)
    finally:
        moved.rename(updated.old)
    assert done.returncode == 3
    assert done.stderr.count(str(updated.old)) == 1
    assert read_bundle(updated.before).class_names == ("dots", "stripes")


def test_bundles_that_no_fit_has_made_are_refused(tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path / "tiny")
    with pytest.raises(DataError, match="does not say which images"):
        update(path, "anything")
    manifest = json.loads((path / MANIFEST).read_text())
    for field in ("members", "search"):
        (path / MANIFEST).write_text(json.dumps({**manifest, field: [{"name": "x"}]}))
        with pytest.raises(BundleError, match="cannot be updated"):
            update(path, "anything")
    done = transferapp("update", path, "--path-column", "file")
    assert done.returncode == 2
