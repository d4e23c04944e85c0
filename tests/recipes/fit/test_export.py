"""Export: from a classifier to the network that is served, with the same probabilities or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from tests.helpers.networks import TINY_SIZE, noise_pixels, tiny_network, write_images
from tests.helpers.pool_watch import PoolWatch
from transferapp.backbones.engine import KerasEngine, OpenVINOEngine, convert, has_bfloat16, save_converted
from transferapp.backbones.feature_store import FeatureStore
from transferapp.backbones.stages import Stage, Tap, cut, find_stages, pooled_taps
from transferapp.backbones.trunk import Trunk
from transferapp.data.dataset import Dataset, Record
from transferapp.errors import TrainingError
from transferapp.evaluation.parity import compare
from transferapp.images.views import center_view, render, render_batch, ten_crops
from transferapp.recipes.fit.candidate import Classifier
from transferapp.recipes.fit.export import (
    PARITY_IMAGES,
    Exported,
    build_network,
    composed,
    export,
    export_early,
    predict_test,
    run_exported,
    score_crops,
    served_precision,
)
from transferapp.system.progress import Silent
from transferapp.system.storage import sha256_file
from transferapp.training.head_spec import Head
from transferapp.training.heads import attach_head
from transferapp.training.mixture import combine
from transferapp.training.probe import LinearProbe

HAS_BF16 = has_bfloat16()
CLASSES = ("cat", "dog", "eel")


def solved_probe(backbone: Any, stage: Stage, scale: float = 1.0, pixels: np.ndarray | None = None) -> LinearProbe:
    """A probe with random weights, standardized for these images (noise if none are given) as a real one would be."""
    rng = np.random.default_rng(3)
    features = pooled(backbone, stage, noise_pixels(40, seed=5) if pixels is None else pixels)
    channels = features.shape[1]
    return LinearProbe(
        mean=features.mean(axis=0),
        std=features.std(axis=0) + np.float32(1e-4),
        kernel=(scale * rng.normal(0, 1 / np.sqrt(channels), (channels, len(CLASSES)))).astype(np.float32),
        bias=rng.normal(0, 0.1, len(CLASSES)).astype(np.float32),
        l2=0.01,
        iterations=7,
    )


def pooled(backbone: Any, stage: Stage, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(cut(backbone, stage)[0](pixels.astype(np.float32), training=False)).mean(axis=(1, 2))


@pytest.fixture(scope="module")
def backbone() -> Any:
    return tiny_network(num_logits=5)


def classifier_of(probe: LinearProbe, stage: str, temperature: float = 1.0) -> Classifier:
    return Classifier((Tap(stage),), Head.of(probe), temperature, stage)


def classifier_at(backbone: Any, index: int, temperature: float = 1.0, scale: float = 1.0) -> Classifier:
    """Return a linear classifier with random weights on a stage."""
    stage = find_stages(backbone)[index]
    return classifier_of(solved_probe(backbone, stage, scale), stage.name, temperature)


def network_of(backbone: Any, classifier: Classifier, name: str = "my dogs") -> Any:
    return build_network(classifier, backbone, find_stages(backbone), name)


def network_at(backbone: Any, index: int, temperature: float = 1.0, scale: float = 1.0) -> Any:
    return network_of(backbone, classifier_at(backbone, index, temperature, scale))


def probed(backbone: Any) -> Any:
    """Return a probed backbone as far as `export` looks at it."""
    trunk = SimpleNamespace(image_size=TINY_SIZE, stages=find_stages(backbone), network=None)
    return SimpleNamespace(spec=SimpleNamespace(name="tiny"), trunk=trunk, geometry="crop")


# ------------------------------------------------------------------------------------------------------------ the network


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
def test_the_network_gives_the_probabilities_of_the_probe_from_pixels(
    backbone: Any, index: int, temperature: float
) -> None:
    stage = find_stages(backbone)[index]
    probe = solved_probe(backbone, stage)
    network = network_of(backbone, classifier_of(probe, stage.name, temperature))
    pixels = noise_pixels(6)
    expected = softmax(probe.logits(pooled(backbone, stage, pixels)) / temperature, axis=1)
    probabilities = np.asarray(network(pixels.astype(np.float32)))
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert len(set(expected.argmax(axis=1))) > 1, "the images differ"


def test_a_head_worked_out_by_hand() -> None:
    start = keras.Input((2, 2, 3))
    model = keras.Model(start, keras.layers.Conv2D(1, 1, kernel_initializer="ones", use_bias=False, name="sum")(start))
    stage = Stage("sum", 0, (2, 2, 1), True)
    probe = LinearProbe(
        mean=np.array([3.0], "f4"),
        std=np.array([2.0], "f4"),
        kernel=np.array([[1.0, -1.0]], "f4"),
        bias=np.array([0.5, 0.0], "f4"),
        l2=0.0,
        iterations=0,
    )
    network = attach_head(model, [stage], [Tap("sum")], Head.of(probe), temperature=2.0, name="hand")
    # Pixels of 3 sum to 9; (9 - 3) / 2 = 3; logits 3.5 and -3; halved 1.75 and -1.5.
    probabilities = np.asarray(network(np.full((1, 2, 2, 3), 3, np.float32)))[0]
    assert probabilities[0] == pytest.approx(1 / (1 + np.exp(-3.25)), abs=1e-6)


MIXED = (Tap("top", deviation=True), Tap("join1", deviation=True), Tap("top"))
"""Taps whose order is not that of the stages."""


def mixture_on(backbone: Any, temperature: float = 1.0) -> tuple[Classifier, np.ndarray, np.ndarray]:
    """Return a mixture of taps with random weights, noise images, and its probabilities worked out from the trunk's rows."""
    stages = find_stages(backbone)
    trunk = Trunk("tiny", "key", TINY_SIZE, KerasEngine(pooled_taps(backbone, stages)), stages, 5)
    rng = np.random.default_rng(7)
    probes = []
    for tap in MIXED:
        features = trunk.features(trunk.rows(noise_pixels(40, seed=5)), [tap])
        kernel = rng.normal(0, 1 / np.sqrt(features.shape[1]), (features.shape[1], len(CLASSES))).astype(np.float32)
        bias = rng.normal(0, 0.1, len(CLASSES)).astype(np.float32)
        probes.append(LinearProbe(features.mean(0), features.std(0) + np.float32(1e-4), kernel, bias, 0.01, 7))
    weights = (0.6, 0.3, 0.4)
    pixels = noise_pixels(6)
    means = [trunk.row_slices[2], trunk.row_slices[0], trunk.row_slices[2]]
    deviations = [trunk.deviation_slices[2], trunk.deviation_slices[0], None]
    rows, logits = trunk.rows(pixels), np.zeros((6, len(CLASSES)))
    for probe, weight, mean, deviation in zip(probes, weights, means, deviations, strict=True):
        features = rows[:, mean] if deviation is None else np.concatenate([rows[:, mean], rows[:, deviation]], axis=1)
        logits += weight * ((features - probe.mean) / probe.std @ probe.kernel + probe.bias)
    head = Head.of(combine(probes, weights))
    return Classifier(MIXED, head, temperature, "join1"), pixels, softmax(logits / temperature, axis=1)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_the_network_of_a_mixture_gives_the_probabilities_of_the_weighted_sum(
    backbone: Any, temperature: float
) -> None:
    classifier, pixels, expected = mixture_on(backbone, temperature)
    network = network_of(backbone, classifier)
    np.testing.assert_allclose(np.asarray(network(pixels.astype(np.float32))), expected, atol=1e-5)
    assert len(set(expected.argmax(axis=1))) > 1, "the images differ"
    np.testing.assert_allclose(OpenVINOEngine(convert(network), precision="f32")(pixels), expected, atol=1e-4)


def test_the_network_of_a_mixture_survives_being_saved_and_is_not_for_training(backbone: Any, tmp_path: Path) -> None:
    classifier, pixels, expected = mixture_on(backbone)
    network = network_of(backbone, classifier)
    assert not network.trainable_variables
    network.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(np.asarray(again(pixels.astype(np.float32))), expected, atol=1e-5)


def test_the_network_of_early_taps_ends_at_the_last_of_them(backbone: Any) -> None:
    classifier = mixture_on(backbone)[0]
    taps = (Tap("join1", deviation=True),)
    width = 2 * 8
    head = Head(
        classifier.head.spec,
        np.zeros(width, "f4"),
        np.ones(width, "f4"),
        len(CLASSES),
        (np.ones((width, len(CLASSES)), "f4"), np.zeros(len(CLASSES), "f4")),
    )
    network = network_of(backbone, Classifier(taps, head, 1.0, "join1"))
    assert not {"conv2", "top", "logits"} & {layer.name for layer in network.layers}


def test_the_network_has_nothing_of_what_lies_above_the_cut(backbone: Any) -> None:
    names = [layer.name for layer in network_at(backbone, 0).layers]
    assert "join1" in names
    assert not {"conv2", "top", "logits"} & set(names)


def test_the_network_survives_being_saved_and_is_not_for_training(backbone: Any, tmp_path: Path) -> None:
    network = network_at(backbone, 2, temperature=0.7)
    assert not network.trainable_variables
    network.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    pixels = noise_pixels(4).astype(np.float32)
    np.testing.assert_allclose(np.asarray(again(pixels)), np.asarray(network(pixels)), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("dogs", "dogs"), ("my dogs", "my_dogs"), ("a/b.c", "a_b_c"), ("Möwen", "M_wen"), ("", "classifier")],
)
def test_any_folder_name_gives_a_name_for_the_network(backbone: Any, name: str, expected: str) -> None:
    network = network_of(backbone, classifier_at(backbone, 0), name)
    assert network.name == expected
    convert(network)


# ----------------------------------------------------------------------------------------------------------------- parity


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return write_images(tmp_path_factory.mktemp("images"), 40, seed=5)


def center_pixels(image: Image.Image) -> np.ndarray:
    return render(image, center_view(image.size, TINY_SIZE), TINY_SIZE)


def dataset_of(*parts: tuple[str, list[Record]]) -> Dataset:
    records = [Record(r.location, r.name, r.label, split, r.sha256) for split, rs in parts for r in rs]  # type: ignore[arg-type]
    return Dataset("here", CLASSES, tuple(records))


def exported_at(backbone: Any, index: int, data: Dataset, precision: str = "f32") -> Exported:
    return export(classifier_at(backbone, index), probed(backbone), backbone, "my dogs", data, precision)


def test_the_exported_network_is_the_keras_model(backbone: Any, records: list[Record]) -> None:
    exported = exported_at(backbone, 1, dataset_of(("val", records)))
    assert exported.precision == "f32"
    assert list(exported.parity) == ["f32"]
    figures = exported.parity["f32"]
    assert (figures.precision, figures.num_images, figures.agreement) == ("f32", PARITY_IMAGES, 1.0)
    assert figures.max_difference < 1e-5
    assert figures.acceptable
    pixels = noise_pixels(4)
    np.testing.assert_allclose(
        OpenVINOEngine(exported.converted, precision="f32")(pixels),
        np.asarray(exported.network(pixels.astype(np.float32))),
        atol=1e-5,
    )


def test_the_second_output_is_what_the_head_reads(backbone: Any, records: list[Record]) -> None:
    data = dataset_of(("val", records))
    exported, stage = exported_at(backbone, 1, data), find_stages(backbone)[1]
    assert exported.num_features == stage.shape[2]
    probabilities, features = run_exported(exported, data.records, TINY_SIZE, "crop", lambda done: None)
    pixels = np.stack([center_pixels(Image.open(record.path)) for record in records])
    np.testing.assert_allclose(features, pooled(backbone, stage, pixels), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(probabilities, np.asarray(exported.network(pixels.astype(np.float32))), atol=1e-4)
    nothing = run_exported(exported, (), TINY_SIZE, "crop", lambda done: None)
    assert [output.shape for output in nothing] == [(0, len(CLASSES)), (0, stage.shape[2])]


def test_exporting_leaves_the_backbone_unchanged(backbone: Any, records: list[Record]) -> None:
    pretrained = backbone.get_weights()
    exported_at(backbone, 2, dataset_of(("val", records)))
    for ours, before in zip(backbone.get_weights(), pretrained, strict=True):
        np.testing.assert_array_equal(ours, before)


def compared(network: Any, other: Any, precision: str = "f32", pixels: np.ndarray | None = None) -> tuple[Any, str]:
    """Return the agreement of a Keras model with another one that was converted, and the precision to serve in."""
    given = noise_pixels(PARITY_IMAGES) if pixels is None else pixels
    said = "The exported network differs from the trained one"
    return served_precision(network, convert(other), given, precision, differs=said, report="the backbone")


@pytest.mark.parametrize("wrong", ["other weights", "other scaling", "mirrored classes"])
def test_a_wrong_network_is_refused(backbone: Any, wrong: str) -> None:
    network = network_at(backbone, 1)
    if wrong == "other weights":
        exported = network_at(tiny_network(), 1, scale=1.3)
    elif wrong == "other scaling":
        exported = keras.Model(start := keras.Input((*TINY_SIZE, 3)), network(start / 255.0))
    else:
        exported = keras.Model(start := keras.Input((*TINY_SIZE, 3)), network(start)[:, ::-1])
    with pytest.raises(TrainingError, match=r"differs from the trained one by .* in a probability"):
        compared(network, exported)


def test_a_network_whose_outputs_are_nan_is_refused(backbone: Any) -> None:
    network = network_at(backbone, 1)
    start = keras.Input((*TINY_SIZE, 3))
    broken = keras.Model(start, network(start) / 0.0 * 0.0)
    with pytest.raises(TrainingError):
        compared(network, broken)


def near_twins(count: int) -> np.ndarray:
    """Return images that differ by next to nothing: uint8, shape (count, *TINY_SIZE, 3)."""
    twins = noise_pixels(1).repeat(count, axis=0) + np.random.default_rng(0).integers(0, 3, (count, *TINY_SIZE, 3))
    return twins.astype(np.uint8)


@pytest.mark.skipif(not HAS_BF16, reason="the CPU has no bf16")
def test_bf16_is_served_where_it_agrees_and_not_where_it_does_not(backbone: Any, records: list[Record]) -> None:
    exported = exported_at(backbone, 2, dataset_of(("val", records)), "bf16")
    parity, served = exported.parity, exported.precision
    assert list(parity) == ["f32", "bf16"]
    assert parity["bf16"].acceptable
    assert parity["bf16"].max_difference > parity["f32"].max_difference
    assert served == "bf16"

    # A head that has learned to tell near twins apart hangs on digits that bf16 does not have.
    pixels = near_twins(32)
    stage = find_stages(backbone)[2]
    network = network_of(backbone, classifier_of(solved_probe(backbone, stage, pixels=pixels), stage.name))
    parity, served = compared(network, network, "bf16", pixels[:PARITY_IMAGES])
    assert parity["f32"].acceptable
    assert not parity["bf16"].acceptable
    assert served == "f32"


def cached(backbone: Any, folder: Path, precision: str) -> Any:
    """Return a probed backbone whose taps are saved in both forms, as those of an embedded backbone are."""
    stages = find_stages(backbone)
    taps = pooled_taps(backbone, stages)
    network, saved = folder / "taps.xml", folder / "taps.keras"
    save_converted(convert(taps), network)
    taps.save(saved)
    trunk = Trunk("tiny", "key", TINY_SIZE, OpenVINOEngine(network, precision=precision), stages, 5, network, saved)
    store = FeatureStore(trunk, folder=folder / f"features-{precision}")
    return SimpleNamespace(spec=SimpleNamespace(name="tiny"), trunk=trunk, store=store, geometry="crop")


@pytest.mark.skipif(not HAS_BF16, reason="the CPU has no bf16")
def test_without_keras_bf16_is_compared_anew_for_each_classifier(
    backbone: Any, records: list[Record], tmp_path: Path
) -> None:
    data, on_tiny = dataset_of(("val", records)), cached(backbone, tmp_path, "bf16")
    first = classifier_at(backbone, 2, temperature=5.0)
    early = export_early(first, on_tiny, "first", data, "bf16")
    assert early is not None
    assert (early.parity, early.archive) == ({}, None), "Keras was not compared with yet"
    whole = export(first, on_tiny, backbone, "first", data, "bf16")

    second = classifier_at(backbone, 2)
    early = export_early(second, on_tiny, "second", data, "bf16")
    assert early is not None
    assert early.archive is not None
    assert list(early.parity) == ["f32", "bf16"]
    assert early.parity["f32"] == whole.parity["f32"]
    pixels = np.stack([center_pixels(Image.open(r.path)) for r in data.drawn(PARITY_IMAGES).records])
    exact, rounded = (OpenVINOEngine(early.converted, precision=p)(pixels) for p in ("f32", "bf16"))
    expected = compare(exact, rounded, "bf16")
    assert early.parity["bf16"].to_json() == {
        name: value if isinstance(value, str) else pytest.approx(value, abs=1e-5)
        for name, value in expected.to_json().items()
    }
    assert early.parity["bf16"].max_difference > 2 * whole.parity["bf16"].max_difference

    # Near twins, as above. The features are in f32, so that the composed network agrees with them.
    on_tiny = cached(backbone, tmp_path, "f32")
    folder = tmp_path / "twins"
    folder.mkdir()
    pixels, twins = near_twins(PARITY_IMAGES), []
    for index, each in enumerate(pixels):
        path = folder / f"{index}.png"
        Image.fromarray(each).resize((256, 256), Image.Resampling.NEAREST).save(path)
        twins.append(Record(str(path), path.name, index % 2, "train", sha256_file(path)))
    seen = np.stack([center_pixels(Image.open(record.path)) for record in twins])
    stage = find_stages(backbone)[2]
    third = classifier_of(solved_probe(backbone, stage, pixels=seen), stage.name)
    early = export_early(third, on_tiny, "third", dataset_of(("val", twins)), "bf16")
    assert early is not None
    assert not early.parity["bf16"].acceptable
    assert early.precision == "f32"
    assert early.archive is not None


def test_ten_crops_are_scored_from_cached_features_as_from_pixels(
    backbone: Any, records: list[Record], tmp_path: Path
) -> None:
    on_tiny, classifier = cached(backbone, tmp_path, "f32"), classifier_at(backbone, 1)
    scores = score_crops(classifier, on_tiny)
    found = scores(records, 10)
    assert found.shape == (len(records), 10, 3)
    images = [Image.open(record.path) for record in records]
    crops = [render_batch(image, ten_crops(image.size, TINY_SIZE), TINY_SIZE) for image in images]
    exported = OpenVINOEngine(composed(classifier, on_tiny), precision="f32")
    np.testing.assert_allclose(found, [exported(each) for each in crops], atol=1e-5)
    np.testing.assert_array_equal(score_crops(classifier, cached(backbone, tmp_path, "f32"))(records, 10), found)
    fifty = scores(records[:2], 50)
    np.testing.assert_allclose(fifty[:, 10:20], found[:2], atol=1e-5)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"stage": 2}', '{"stage": 2, "parity": []}', '{"stage": "2", "parity": FIGURES}', "FIGURES"],
)
@pytest.mark.parametrize("value", ["0.0", "null", "0.5", '"0"'])
def test_a_damaged_record_of_the_comparison_with_keras_counts_as_none(
    backbone: Any, records: list[Record], tmp_path: Path, text: str, value: str
) -> None:
    on_tiny = cached(backbone, tmp_path, "f32")
    figures = (
        f'{{"precision": "f32", "num_images": 9, "max_difference": {value}, "mean_difference": 0, "agreement": 1}}'
    )
    record = tmp_path / "compared.json"

    def archive() -> bytes | None:
        early = export_early(classifier_at(backbone, 1), on_tiny, "tiny", dataset_of(("val", records)), "f32")
        assert early is not None
        return early.archive

    record.write_text(text.replace("FIGURES", figures))
    assert archive() is None
    record.write_text(json.dumps({"stage": 2, "parity": json.loads(figures)}))
    assert (archive() is None) == (value != "0.0")


def seen_by_export(backbone: Any, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The pixels that parity is judged on."""
    seen: list[np.ndarray] = []
    run = OpenVINOEngine.__call__

    def spy(engine: OpenVINOEngine, batch: np.ndarray) -> np.ndarray:
        seen.append(batch)
        return run(engine, batch)

    monkeypatch.setattr(OpenVINOEngine, "__call__", spy)
    exported_at(backbone, 1, data)
    return seen[0]


@pytest.mark.parametrize(
    ("splits", "expected"),
    [(("train", "val", "test"), "val"), (("train", "test"), "test"), (("train",), "train")],
)
def test_it_is_judged_on_images_kept_from_training_where_there_are_any(
    backbone: Any, records: list[Record], monkeypatch: pytest.MonkeyPatch, splits: tuple[str, ...], expected: str
) -> None:
    parts = {split: records[3 * i : 3 * i + 3] for i, split in enumerate(splits)}
    pixels = seen_by_export(backbone, dataset_of(*parts.items()), monkeypatch)
    np.testing.assert_array_equal(pixels, [center_pixels(Image.open(record.path)) for record in parts[expected]])


def test_of_many_images_a_few_are_drawn_by_content(
    backbone: Any, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = seen_by_export(backbone, dataset_of(("val", records)), monkeypatch)
    assert len(pixels) == PARITY_IMAGES < len(records)
    drawn = sorted(records, key=lambda record: record.sha256)[:PARITY_IMAGES]
    np.testing.assert_array_equal(pixels, [center_pixels(Image.open(record.path)) for record in drawn])


def test_few_images_are_in_hand_while_an_export_is_measured(
    backbone: Any, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = exported_at(backbone, 1, dataset_of(("test", records)))
    tuned = Classifier(
        (Tap("top"),), classifier_at(backbone, 1).head, 1.5, "join1", tails=((),)
    )  # a frozen one needs no export
    monkeypatch.setattr("transferapp.recipes.fit.export.cpu_cores", lambda: 1)
    monkeypatch.setattr("transferapp.recipes.fit.export.BATCH_SIZE", 1)
    watch = PoolWatch(monkeypatch)
    data = dataset_of(("test", records))
    probabilities = predict_test(tuned, probed(backbone), exported, data, Silent())
    assert len(probabilities) == len(records)
    assert 0 < watch.most <= 4
