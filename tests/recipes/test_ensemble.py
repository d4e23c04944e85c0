"""Several bundles as one: the average of their probabilities, served like any bundle."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.fitted import transferapp
from tests.helpers.networks import noise_pixels
from transferapp.backbones.engine import convert, save_converted
from transferapp.bundle.format import only_writer, read_bundle, write_manifest, writing
from transferapp.bundle.predictor import Predictor
from transferapp.errors import BundleError, DataError, UsageError
from transferapp.recipes.ensemble import average_network, ensemble

CLASSES = ("ant", "bee", "wasp")


def network(seed: int, size: tuple[int, int], classes: int) -> Any:
    """Looks at the colors of the four quarters of an image."""
    import keras

    start = keras.Input((*size, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(start)
    x = keras.layers.AveragePooling2D((size[0] // 2, size[1] // 2))(x)
    head = keras.layers.Dense(classes, activation="softmax", name="head")
    model = keras.Model(start, head(keras.layers.Flatten()(x)), name="classifier")
    rng = np.random.default_rng(seed)
    head.set_weights([rng.normal(0, 1.5, w.shape).astype(np.float32) for w in head.get_weights()])
    return model


def write_bundle(
    path: Path,
    seed: int,
    *,
    size: int = 32,
    classes: tuple[str, ...] = CLASSES,
    split: dict[str, str] | None = None,
    sample_bits: int | None = None,
    geometry: str = "crop",
) -> Path:
    """A bundle with all that an ensemble reads; `split` maps images to what they were used for."""
    model = network(seed, (size, size), len(classes))
    with writing(path) as staging:
        model.save(staging / "model.keras")
        save_converted(convert(model), staging / "model.xml")
        if split is not None:
            rows = "".join(f"{sha},{part},ant,{sha}.png\n" for sha, part in split.items())
            (staging / "split.csv").write_text(f"sha256,split,class_name,name\n{rows}")
        write_manifest(
            staging,
            {
                "name": path.name,
                "class_names": list(classes),
                "input": {
                    "image_size": [size, size],
                    "default_views": 10,
                    "short_side": round(size * 256 / 224),
                    "sample_bits": sample_bits,
                    "geometry": geometry,
                },
                "precision": {"served": "f32"},
            },
        )
    return path


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("members")
    return [
        write_bundle(root / "first", 1, split={"a": "train", "b": "val", "c": "test", "d": "test"}),
        write_bundle(root / "second", 2, split={"a": "test", "b": "train", "c": "val", "e": "train"}),
        write_bundle(root / "small", 3, size=16),
    ]


def scores_of(path: Path, pixels: np.ndarray) -> np.ndarray:
    bundle = read_bundle(path)
    return Predictor(bundle).probabilities(pixels)


def test_it_is_the_average_of_its_members(members: list[Path], tmp_path: Path) -> None:
    result = ensemble(members[:2], tmp_path / "both", precision="f32")
    pixels = noise_pixels(6)
    parts = [scores_of(path, pixels) for path in members[:2]]
    assert np.abs(parts[0] - parts[1]).max() > 0.1
    np.testing.assert_allclose(scores_of(tmp_path / "both", pixels), np.mean(parts, axis=0), atol=1e-5)
    assert result.path == tmp_path / "both"
    manifest = read_bundle(tmp_path / "both").manifest
    assert manifest["class_names"] == list(CLASSES)
    assert [member["name"] for member in manifest["members"]] == ["first", "second"]
    assert manifest["members"][0]["version"] == read_bundle(members[0]).version
    assert manifest["parity"]["f32"]["agreement"] == 1.0
    assert manifest["precision"]["served"] == "f32"


def test_it_takes_the_largest_input_and_scales_down_for_the_rest(members: list[Path], tmp_path: Path) -> None:
    import keras

    ensemble([members[2], members[0]], tmp_path / "mixed", precision="f32")
    assert read_bundle(tmp_path / "mixed").image_size == (32, 32)
    pixels = noise_pixels(6)
    small = np.asarray(keras.ops.image.resize(pixels.astype(np.float32), (16, 16), interpolation="bilinear"))
    parts = [np.asarray(network(3, (16, 16), 3)(small)), scores_of(members[0], pixels)]
    np.testing.assert_allclose(scores_of(tmp_path / "mixed", pixels), np.mean(parts, axis=0), atol=1e-4)


def test_an_ensemble_can_be_a_member(members: list[Path], tmp_path: Path) -> None:
    ensemble(members[:2], tmp_path / "both", precision="f32")
    model = average_network([read_bundle(p) for p in (tmp_path / "both", members[0])], (32, 32))
    pixels = noise_pixels(3)
    first, second = (scores_of(path, pixels) for path in members[:2])
    np.testing.assert_allclose(np.asarray(model(pixels.astype(np.float32))), 0.75 * first + 0.25 * second, atol=1e-5)


def test_it_is_served_like_any_bundle(members: list[Path], tmp_path: Path) -> None:
    ensemble(members[:2], tmp_path / "both", precision="f32")
    Image.fromarray(noise_pixels(1, (60, 80))[0]).save(tmp_path / "image.png")
    for views in (1, 10):
        asked = [Predictor.load(path).predict(tmp_path / "image.png", views=views) for path in members[:2]]
        said = [{score.label: score.score for score in prediction.scores} for prediction in asked]
        together = Predictor.load(tmp_path / "both").predict(tmp_path / "image.png", views=views)
        assert {score.label: score.score for score in together.scores} == pytest.approx(
            {name: (said[0][name] + said[1][name]) / 2 for name in CLASSES}, abs=1e-5
        )


def test_what_any_member_was_trained_on_counts_as_seen(members: list[Path], tmp_path: Path) -> None:
    ensemble(members, tmp_path / "all", precision="f32")  # the third has no table
    with (tmp_path / "all" / "split.csv").open(newline="") as stream:
        merged = {row["sha256"]: row["split"] for row in csv.DictReader(stream)}
    assert merged == {"a": "train", "b": "train", "c": "val", "d": "test", "e": "train"}


def test_members_see_images_in_one_geometry(members: list[Path], tmp_path: Path) -> None:
    whole = [write_bundle(tmp_path / f"whole-{seed}", seed, geometry="resize") for seed in (4, 5)]
    with pytest.raises(BundleError) as raised:
        ensemble([members[0], whole[0]], tmp_path / "both")
    assert raised.value.code == "inputs_differ"
    assert "--geometry crop" in str(raised.value)
    assert not (tmp_path / "both").exists()
    ensemble(whole, tmp_path / "both", precision="f32")
    assert read_bundle(tmp_path / "both").geometry == "resize"


@pytest.mark.parametrize("classes", [("ant", "bee"), ("ant", "bee", "fly")])
def test_other_classes_are_refused(members: list[Path], tmp_path: Path, classes: tuple[str, ...]) -> None:
    other = write_bundle(tmp_path / "other", 4, classes=classes)
    with pytest.raises(BundleError, match="do not know the same classes") as caught:
        ensemble([members[0], other], tmp_path / "out")
    assert caught.value.code == "classes_differ"
    assert (caught.value.expected, caught.value.got) == (", ".join(CLASSES), ", ".join(classes))
    assert not (tmp_path / "out").exists()


def test_members_agree_on_the_depth_of_16_bit_images(members: list[Path], tmp_path: Path) -> None:
    twelve, fourteen = (write_bundle(tmp_path / str(bits), 4, sample_bits=bits) for bits in (12, 14))
    ensemble([members[0], twelve], tmp_path / "one", precision="f32")
    assert read_bundle(tmp_path / "one").sample_bits == 12, "the other has seen no such images"
    with pytest.raises(BundleError, match="different depths") as caught:
        ensemble([twelve, fourteen], tmp_path / "out")
    assert caught.value.code == "inputs_differ"


def test_one_is_no_ensemble_and_a_member_is_not_overwritten(members: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least two bundles"):
        ensemble(members[:1], tmp_path / "out")
    with pytest.raises(UsageError, match="is one of the members"):
        ensemble(members, members[1] / ".." / "second")


def test_a_folder_that_is_no_bundle_is_left_alone(members: list[Path], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="is not a bundle, so it is left alone"):
        ensemble(members[:2], tmp_path)
    with pytest.raises(BundleError, match="No bundle was found at"):
        ensemble([members[0], tmp_path / "nowhere"], tmp_path / "out")


def test_it_does_not_write_where_a_fit_is_writing(members: list[Path], tmp_path: Path) -> None:
    target = write_bundle(tmp_path / "fitted", 6)
    with only_writer(target), writing(target) as staging:
        network(7, (32, 32), 3).save(staging / "model.keras")
        with ThreadPoolExecutor(1) as pool, pytest.raises(DataError, match="is writing to"):
            pool.submit(ensemble, members[:2], target, precision="f32").result()
        assert (staging / "model.keras").is_file(), "the staging folder of the fit is still there"
        save_converted(convert(network(7, (32, 32), 3)), staging / "model.xml")
        write_manifest(staging, {"name": "fitted", "class_names": list(CLASSES), "input": {"image_size": [32, 32]}})


def test_a_damaged_member_is_refused(members: list[Path], tmp_path: Path) -> None:
    damaged = write_bundle(tmp_path / "damaged", 5)
    with (damaged / "model.keras").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match="checksum differs"):
        ensemble([members[0], damaged], tmp_path / "out")


@pytest.mark.slow
def test_the_command_makes_one_and_says_so(members: list[Path], tmp_path: Path) -> None:
    done = transferapp("ensemble", *members[:2], "--out", tmp_path / "both")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'both'}: the average of first, second" in done.stdout
    assert read_bundle(tmp_path / "both").name == "both"
    alone = transferapp("ensemble", members[0], "--out", tmp_path / "alone")
    assert alone.returncode == 2
    assert "at least two bundles" in alone.stderr


def test_classes_in_another_order_are_reordered(members: list[Path], tmp_path: Path) -> None:
    model = write_bundle(tmp_path / "turned", 2, classes=CLASSES[::-1])
    result = ensemble([members[0], model], tmp_path / "both", precision="f32")
    pixels = noise_pixels(4)
    expected = (scores_of(members[0], pixels) + scores_of(model, pixels)[:, ::-1]) / 2
    assert result.manifest["class_names"] == list(CLASSES)
    np.testing.assert_allclose(scores_of(tmp_path / "both", pixels), expected, atol=1e-5)
