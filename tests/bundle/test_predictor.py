"""The predictor: averaged crops, repeatable results, and errors for invalid output."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from tests.helpers.scenes import scene
from tests.helpers.tiny_bundle import GAIN, SIZE, color_network, make_tiny_bundle
from transferapp.backbones.engine import read_network, save_converted
from transferapp.bundle import predictor as predict_module
from transferapp.bundle.format import MANIFEST, NOVELTY, Bundle, read_bundle, write_manifest, writing
from transferapp.bundle.novelty import Novelty
from transferapp.bundle.predictor import ModelOutputError, Predictor
from transferapp.errors import BundleError, ImageError, UsageError
from transferapp.images import ImageLimits
from transferapp.images.views import Geometry

ROOT = Path(__file__).parents[2]
CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def predictor(bundle_path: Path) -> Predictor:
    return Predictor.load(bundle_path, streams=2)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """512 wide, 384 high, and no two crops of it alike."""
    return scene((512, 384))


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def colors(name: str) -> bytes:
    return png(Image.new("RGB", (300, 260), name))


def deep(*colors: int) -> bytes:
    """A 16-bit PNG of one gray sample a column."""
    stream = io.BytesIO()
    Image.fromarray(np.tile(np.array(colors, np.uint16), (64, 64 // len(colors)))).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("bits", "sample", "expected"), [(None, 2048, 8), (16, 2048, 8), (12, 2048, 128), (10, 2048, 255)]
)
def test_16_bit_images_are_read_at_the_depth_of_the_training_images(
    tmp_path: Path, bits: int | None, sample: int, expected: int
) -> None:
    predictor = Predictor.load(make_tiny_bundle(tmp_path / "deep", sample_bits=bits))
    assert (predictor.crops(predictor.decode(deep(sample)), 10) == expected).all()
    assert ("clipped_16_bit" in predictor.predict(deep(sample)).notes) == (bits == 10)


def test_another_depth_is_another_version(tmp_path: Path) -> None:
    versions = {read_bundle(make_tiny_bundle(tmp_path / "deep", sample_bits=bits)).version for bits in (None, 12, 16)}
    assert len(versions) == 3


def by_hand(image: Image.Image, short_sides: tuple[int, ...], corners: bool) -> np.ndarray:
    """What the color network must say, from crops cut without the program's own geometry."""
    width, height = image.size
    scores = []
    for short_side in short_sides:
        side = min(width, height) * 224 / short_side
        right, bottom = width - side, height - side
        places = [(right / 2, bottom / 2)]
        if corners:
            places += [(0, 0), (right, 0), (0, bottom), (right, bottom)]
        for left, top in places:
            box = (left, top, left + side, top + side)
            crop = np.asarray(image.resize(SIZE, Image.Resampling.BICUBIC, box=box), dtype=float)
            for view in (crop, crop[:, ::-1]) if corners else (crop,):
                scores.append(softmax(view.mean(axis=(0, 1)) * GAIN / 255))
    return np.mean(scores, axis=0)


@pytest.mark.parametrize(
    ("views", "short_sides"), [(1, (256,)), (10, (256,)), (50, (224, 256, 384, 480, 640))], ids=["1", "10", "50"]
)
def test_views_are_cut_and_averaged_as_by_hand(
    predictor: Predictor, image: Image.Image, views: int, short_sides: tuple[int, ...]
) -> None:
    expected = by_hand(image, short_sides, corners=views > 1)
    answer = predictor.predict(png(image), views=views)
    scores = {score.label: score.score for score in answer.scores}
    np.testing.assert_allclose([scores[name] for name in CLASSES], expected, atol=1e-4)
    assert answer.views == views


def test_the_geometry_of_the_bundle_decides_what_the_network_sees(tmp_path: Path) -> None:
    image = Image.new("RGB", (800, 200), "lime")
    for left in (0, 600):
        image.paste("red", (left, 0, left + 200, 200))
    expected: dict[Geometry, tuple[float, float]] = {
        "crop": (0, 255),  # (red, green) of the mean pixel
        "resize": (127.5, 127.5),
        "pad": ((127.5 + 3 * 127) / 4, (127.5 + 3 * 127) / 4),
    }
    for geometry, (red, green) in expected.items():
        predictor = Predictor.load(make_tiny_bundle(tmp_path / geometry, geometry=geometry))
        blue = 127 * 3 / 4 if geometry == "pad" else 0
        scores = {score.label: score.score for score in predictor.predict(png(image), views=1).scores}
        wanted = softmax(np.array([red, green, blue]) * GAIN / 255)
        assert [scores[name] for name in CLASSES] == pytest.approx(wanted, abs=2e-3)


def test_probabilities_are_averaged_and_not_pixels(predictor: Predictor, image: Image.Image) -> None:
    ten, one = (predictor.predict(png(image), views=views).scores for views in (10, 1))
    assert abs(ten[0].score - one[0].score) > 1e-3
    assert sum(score.score for score in ten) == pytest.approx(1, abs=1e-5)


def test_a_file_and_its_bytes_get_the_same_answer(predictor: Predictor, image: Image.Image, tmp_path: Path) -> None:
    for form, options in {"JPEG": {"quality": 90}, "PNG": {}}.items():
        path = tmp_path / f"image.{form.lower()}"
        image.save(path, form, **options)
        for views in (1, 10, 50):
            from_file, from_bytes = (predictor.predict(s, views=views) for s in (path, path.read_bytes()))
            assert from_file.scores == from_bytes.scores
            assert (from_file.format, from_file.size) == (from_bytes.format, from_bytes.size) == (form, (512, 384))


def test_colors_are_told_apart_best_first(predictor: Predictor) -> None:
    for name in CLASSES:
        answer = predictor.predict(colors({"green": "lime"}.get(name, name)))
        assert answer.label == name
        assert answer.views == 10
        assert [s.score for s in answer.scores] == sorted((s.score for s in answer.scores), reverse=True)
        assert set(answer.seconds) == {"decode", "crop", "network"}


@pytest.mark.parametrize(("top_k", "count"), [(None, 3), (1, 1), (2, 2), (3, 3), (1000, 3)])
def test_top_k_is_how_many_are_returned_at_most(predictor: Predictor, top_k: int | None, count: int) -> None:
    answer = predictor.predict(colors("red"), top_k=top_k, views=1)
    assert len(answer.scores) == count
    assert answer.label == "red"


def test_equal_scores_come_in_the_order_of_the_classes(predictor: Predictor) -> None:
    answer = predictor.predict(colors("gray"), views=1)
    assert [score.label for score in answer.scores] == list(CLASSES)


@pytest.mark.parametrize("options", [{"views": 0}, {"views": 5}, {"views": -1}, {"top_k": 0}, {"top_k": -1}])
def test_numbers_out_of_range_are_a_usage_error(predictor: Predictor, options: dict[str, int]) -> None:
    with pytest.raises(UsageError) as caught:
        predictor.predict(colors("red"), **options)
    assert caught.value.exit_code == 2
    assert caught.value.code in options


@pytest.mark.parametrize(
    ("data", "code"), [(b"", "empty_file"), (b"no image", "unsupported_format"), (colors("red")[:200], "truncated")]
)
def test_a_image_that_is_none_is_refused(predictor: Predictor, data: bytes, code: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(data)
    for source in (data, tmp_path / "bad.jpg"):
        with pytest.raises(ImageError) as caught:
            predictor.predict(source)
        assert caught.value.code == code
    with pytest.raises(ImageError, match=r"missing\.jpg"):
        predictor.predict(tmp_path / "missing.jpg")


def test_limits_are_those_of_the_predictor(bundle_path: Path, predictor: Predictor) -> None:
    strict = Predictor.load(bundle_path, limits=ImageLimits(max_pixels=300 * 259))
    with pytest.raises(ImageError) as caught:
        strict.predict(colors("red"))
    assert caught.value.code == "too_many_pixels"
    assert predictor.predict(colors("red")).label == "red"


def test_an_image_that_a_fit_reads_is_classified(predictor: Predictor) -> None:
    large = io.BytesIO()
    Image.new("1", (6000, 5000)).save(large, "PNG")
    assert predictor.predict(large.getvalue(), views=1).size == (6000, 5000)
    huge = io.BytesIO()
    Image.new("1", (10_100, 10_000)).save(huge, "PNG")
    with pytest.raises(ImageError, match=r"at most 100,000,000.*Make the image smaller"):
        predictor.predict(huge.getvalue())


def test_threads_give_the_answers_that_one_gives(predictor: Predictor, image: Image.Image) -> None:
    images = [png(image.rotate(angle)) for angle in range(0, 360, 30)]
    alone = [predictor.predict(data).scores for data in images]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda data: predictor.predict(data).scores, images)) == alone


def test_the_same_image_gets_the_same_bits_from_another_predictor(bundle_path: Path, image: Image.Image) -> None:
    one, other = (Predictor.load(bundle_path, streams=streams).predict(png(image)).scores for streams in (1, 3))
    assert one == other


def test_pieces_of_a_batch_are_joined_in_order(predictor: Predictor, image: Image.Image) -> None:
    crops = predictor.crops(predictor.decode(png(image), 50), 50)
    assert crops.shape == (50, *SIZE, 3)
    whole = predictor.probabilities(crops)
    assert whole.shape == (50, 3)
    for index in (0, 9, 10, 37, 49):
        np.testing.assert_array_equal(whole[index], predictor.probabilities(crops[index : index + 1])[0])


# Networks that must not serve


def test_scores_that_are_no_numbers_are_an_error_and_not_an_answer(tmp_path: Path) -> None:
    broken = Predictor.load(make_tiny_bundle(tmp_path / "broken", broken=True))
    with pytest.raises(ModelOutputError, match="broken gave scores that are not numbers") as caught:
        broken.predict(colors("red"))
    assert caught.value.code == "model_output_invalid"


def write_with(path: Path, num_outputs: int, size: tuple[int, int]) -> Path:
    """A bundle that says three classes and 224 pixels, with another network inside."""
    with writing(path) as staging:
        save_converted(color_network(num_outputs, size=size), staging / "model.xml")
        write_manifest(staging, {"name": "odd", "class_names": list(CLASSES), "input": {"image_size": list(SIZE)}})
    return path


def test_a_network_that_does_not_fit_its_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"Expected 3 scores, got an output of shape \(1, 5\)"):
        Predictor.load(write_with(tmp_path / "five", 5, SIZE))
    with pytest.raises(BundleError, match="does not take 224×224 images"):
        Predictor.load(write_with(tmp_path / "small", 3, (64, 64)))


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_a_damaged_network_is_found_before_it_is_loaded(tmp_path: Path, name: str) -> None:
    path = make_tiny_bundle(tmp_path / "tiny")
    (path / name).write_bytes((path / name).read_bytes() + b" ")
    with pytest.raises(BundleError) as caught:
        Predictor.load(path)
    assert caught.value.code == "checksum_mismatch"


def test_a_network_that_openvino_cannot_read_is_a_bundle_error(tmp_path: Path) -> None:
    with writing(tmp_path / "odd") as staging:
        (staging / "model.xml").write_text("<net></net>")
        (staging / "model.bin").write_bytes(b"")
        write_manifest(staging, {"name": "odd", "class_names": ["a", "b"], "input": {"image_size": [224, 224]}})
    with pytest.raises(BundleError, match="OpenVINO could not load"):
        Predictor.load(tmp_path / "odd")


def test_a_bundle_replaced_while_it_is_loaded_is_never_half_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tiny_bundle(tmp_path / "tiny", ("red", "green"))
    read, times = predict_module.read_bundle, []

    def replaced_after_reading(where: Path) -> Bundle:
        bundle = read(where)
        times.append(where)
        if len(times) == 1:
            make_tiny_bundle(path, CLASSES)
        return bundle

    monkeypatch.setattr(predict_module, "read_bundle", replaced_after_reading)
    predictor = Predictor.load(path)
    assert predictor.class_names == CLASSES
    assert predictor.predict(colors("blue")).label == "blue"


def test_a_bundle_that_says_nothing_of_views_averages_ten(tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path / "tiny")
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["input"]["default_views"], manifest["precision"]
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert Predictor(read_bundle(path)).predict(colors("red")).views == 10


def test_predicting_imports_no_tensorflow(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(colors("red"))
    code = f"""
import sys
from pathlib import Path
from transferapp.bundle.predictor import Predictor
print(Predictor.load({str(bundle_path)!r}).predict(Path({str(tmp_path / "red.png")!r})).label)
assert not {{"tensorflow", "keras", "scipy"}} & set(sys.modules), "too much was imported"
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "red\n"


# What a stranger may have made


def test_nothing_but_the_network_is_read_of_a_bundle(tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path / "tiny", CLASSES)
    manifest = json.loads((path / MANIFEST).read_text())
    for name in ("model.keras", "evil.py", "evil.pkl", "report.html"):
        os.mkfifo(path / name)  # whoever opened it would wait for ever
        manifest["files"][name] = {"sha256": "0" * 64, "bytes": 0}
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert Predictor.load(path).predict(colors("red")).label == "red"


def test_a_network_that_names_other_files_reads_none_of_them(tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path / "tiny", CLASSES)
    (tmp_path / "secret").write_text("not for everyone")
    network = (path / "model.xml").read_text()
    start = network.index("<net")
    entity = f'<!DOCTYPE net [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]>'
    spoilt = network[:start] + entity + network[start:].replace('name="tiny"', 'name="&x;"', 1)
    assert spoilt != network
    model = read_network(spoilt.encode(), (path / "model.bin").read_bytes(), "x")
    assert "not for everyone" not in str(model)
    assert model.get_friendly_name() == "&x;"  # as it stands there


def test_files_may_be_overwritten_while_they_serve(tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path / "tiny", CLASSES)
    predictor = Predictor.load(path)
    expected = predictor.predict(colors("red")).scores
    (path / "model.bin").write_bytes(b"")  # in place: a mapped file would end the process here
    (path / "model.xml").write_bytes(b"")
    assert predictor.predict(colors("red")).scores == expected


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(make_tiny_bundle(tmp_path_factory.mktemp("models") / "calibrated", calibrated=True))


def test_a_bundle_without_calibration_says_nothing_of_novelty(predictor: Predictor) -> None:
    prediction = predictor.predict(colors("red"))
    assert (prediction.novelty, prediction.known, prediction.prediction_set) == (None, None, None)


def test_familiar_and_foreign_images_are_told_apart(calibrated: Predictor) -> None:
    familiar, foreign = calibrated.predict(colors("red")), calibrated.predict(colors("white"))
    assert (familiar.label, familiar.known) == ("red", True)
    assert familiar.novelty == pytest.approx(0, abs=0.051)
    assert (foreign.novelty, foreign.known) == (0.95, False)
    assert foreign.label == "red", "the most probable class stays"


@pytest.mark.parametrize("views", [1, 10, 50])
def test_novelty_is_told_from_the_center_crop(calibrated: Predictor, views: int) -> None:
    image = Image.new("RGB", (512, 512), "white")
    side = round(512 * 224 / 256)
    image.paste("red", ((512 - side) // 2 - 1, (512 - side) // 2 - 1, (512 + side) // 2 + 1, (512 + side) // 2 + 1))
    prediction = calibrated.predict(png(image), views=views)
    assert prediction.known
    assert prediction.novelty == pytest.approx(0, abs=0.051)


def test_a_prediction_set_holds_the_classes_up_to_the_coverage(calibrated: Predictor) -> None:
    assert calibrated.predict(colors("red"), top_k=1).prediction_set == ("red",)
    # A third each: of the first class nothing is above, of the third two thirds.
    assert calibrated.predict(colors("white"), top_k=1).prediction_set == ("red", "green", "blue")
    assert (calibrated.bundle.coverage, calibrated.bundle.set_threshold) == (0.9, 0.75)


def test_a_novelty_score_that_the_network_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path / "models" / "tiny", calibrated=True)
    wrong = Novelty(np.eye(4, dtype=np.float16), np.linspace(0, 1, 19, dtype=np.float32))
    with writing(tmp_path / "models" / "other") as staging:
        for name in ("model.xml", "model.bin"):
            (staging / name).write_bytes((path / name).read_bytes())
        (staging / NOVELTY).write_bytes(wrong.to_bytes())
        write_manifest(staging, dict(read_bundle(path).manifest))
    with pytest.raises(BundleError) as raised:
        Predictor.load(tmp_path / "models" / "other")
    assert (raised.value.expected, raised.value.got) == ("a second output of 4 features", "one of shape (1, 3)")


def test_calibration_is_part_of_the_version(tmp_path: Path) -> None:
    plain = read_bundle(make_tiny_bundle(tmp_path / "plain"))
    other = read_bundle(make_tiny_bundle(tmp_path / "calibrated", calibrated=True))
    assert plain.version != other.version
    sets = {"coverage": 0.9, "threshold": 0.5}
    assert Bundle(other.path, {**other.manifest, "prediction_sets": sets}).version != other.version
