"""Settings of a fit: defaults, checks, and YAML files."""

from __future__ import annotations

import dataclasses
import datetime
import math
from pathlib import Path
from typing import Any

import pytest

from transferapp.config import COMMON, GROUPS, FitConfig, make_config, parse_duration, read_config_file
from transferapp.errors import UsageError
from transferapp.images.augment import LECTURE_AUGMENTATION, ColorJitter
from transferapp.training.head_spec import HeadSpec


def test_data_alone_is_enough_and_the_defaults_pass_their_own_checks() -> None:
    config = make_config({"data": "images"})
    assert config == FitConfig(data="images")
    assert make_config(config.to_json()) == config  # what a bundle keeps can be given again


def test_every_setting_is_described_and_belongs_to_a_group() -> None:
    for spec in dataclasses.fields(FitConfig):
        assert spec.metadata["help"], spec.name
        assert spec.metadata["group"] in GROUPS
        choices = spec.metadata["choices"]
        assert not choices or spec.default in choices, spec.name
    assert {spec.name for spec in dataclasses.fields(FitConfig)} >= set(COMMON)


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_config({"data": "images"}).seed = 1  # type: ignore[misc]


def test_missing_data_is_asked_for_by_its_flag() -> None:
    for values in ({}, {"data": ""}):
        with pytest.raises(UsageError, match="--data"):
            make_config(values)


def test_an_unknown_setting_is_named_and_the_known_ones_listed() -> None:
    with pytest.raises(UsageError, match=r"Unknown setting 'learning_rat'. Expected one of data, label_fixes,"):
        make_config({"data": "images", "learning_rat": 1})


CHOICES = {spec.name: spec.metadata["choices"] for spec in dataclasses.fields(FitConfig) if spec.metadata["choices"]}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_one_of_those_listed(name: str) -> None:
    for choice in CHOICES[name]:
        assert getattr(make_config({"data": "images", name: choice}), name) == choice
    with pytest.raises(UsageError) as caught:
        make_config({"data": "images", name: "huge"})
    assert caught.value.what == f"Unknown {name} 'huge'"
    assert caught.value.expected == f"one of {', '.join(CHOICES[name])}"


@pytest.mark.parametrize("spec", dataclasses.fields(FitConfig), ids=lambda spec: spec.name)
def test_a_value_of_the_wrong_type_names_the_setting(spec: dataclasses.Field[Any]) -> None:
    kind = type(spec.default)
    for value in (None, [1], {"a": 1}, datetime.date(2026, 1, 1), b"bytes", *(() if kind is bool else (True,))):
        with pytest.raises(
            UsageError, match=rf"^{spec.name} is of the wrong type\. Expected {kind.__name__}, got "
        ) as caught:
            make_config({"data": "images", spec.name: value})
        assert caught.value.got == repr(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("val_fraction", -0.1),
        ("val_fraction", 1),
        ("val_fraction", float("nan")),
        ("val_fraction", float("inf")),
        ("val_fraction", 10**400),
        ("test_fraction", 1.0),
        ("test_fraction", -1),
        ("test_fraction", "0.2"),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", 1.5),
        ("seed", "1"),
        ("train_views", "many"),
        ("train_views", "-1"),
        ("train_views", "65"),
        ("train_views", 65),
        ("train_views", ""),
        ("train_views", "²"),  # a digit, but no number
        ("train_views", "٣"),
        ("train_views", "9" * 5000),
    ],
)
def test_a_value_out_of_range_names_the_setting(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} is (out of range|of the wrong type)") as caught:
        make_config({"data": "images", name: value})
    assert caught.value.expected


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("val_fraction", 0, 0.0),
        ("test_fraction", 0.999, 0.999),
        ("seed", 0, 0),
        ("seed", 2**32 - 1, 2**32 - 1),
        ("train_views", 0, "0"),
        ("train_views", "64", "64"),
        ("train_views", 8, "8"),
        ("out", 2024, "2024"),  # YAML reads a folder of digits as a number
    ],
)
def test_values_at_the_ends_of_their_range_pass(name: str, value: Any, kept: Any) -> None:
    config = make_config({"data": "images", name: value})
    assert getattr(config, name) == kept
    assert type(getattr(config, name)) is type(kept)


def test_weights_are_of_a_backbone_that_must_be_named() -> None:
    with pytest.raises(UsageError, match="--weights needs a --backbone"):
        make_config({"data": "images", "weights": "w.h5"})
    assert make_config({"data": "images", "weights": "w.h5", "backbone": "resnet50"}).weights == "w.h5"


@pytest.mark.parametrize(
    ("data", "out", "path"),
    [
        ("images/dogs", "", "models/dogs"),
        ("images/dogs/", "", "models/dogs"),
        ("My Photos (2)!", "", "models/My_Photos_2"),
        ("/", "", "models/model"),
        ("...", "", "models/model"),
        ("собаки", "", "models/собаки"),
        ("images/dogs.zip", "", "models/dogs"),
        ("dogs.tar.gz", "", "models/dogs"),
        ("study/Labels.CSV", "", "models/study"),
        ("v1.2", "", "models/v1.2"),
        ("tfds:dogs/small:3.0.1", "", "models/dogs_small_3.0.1"),
        ("images/dogs", "elsewhere/d", "elsewhere/d"),
    ],
)
def test_the_bundle_is_named_after_the_data_unless_told_otherwise(data: str, out: str, path: str) -> None:
    assert make_config({"data": data, "out": out}).bundle_path == Path(path)


def test_data_given_as_here_is_named_after_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cats").mkdir()
    monkeypatch.chdir(tmp_path / "cats")
    assert make_config({"data": "."}).bundle_path == Path("models/cats")


# ---------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("2h", 7200),
        ("1.5h", 5400),
        ("0.5 m", 30),
        (" 10m ", 600),
        ("45", 45),
        ("0", 0),
        ("none", math.inf),
    ],
)
def test_a_duration_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert make_config({"data": "images", "budget": text}).budget_seconds == seconds


def test_the_budget_is_left_to_the_policy_by_default() -> None:
    assert make_config({"data": "images"}).budget == "auto"
    assert make_config({"data": "images"}).budget_seconds is None
    assert make_config({"data": "images", "budget": "0"}).budget_seconds == 0


@pytest.mark.parametrize("text", ["", "ten minutes", "-5m", "10 min", "1h30m", "m", "1e3", "inf", "nan", "٣m", "1:30"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"budget is not a duration\. Expected such as 90s, 10m, 2h, none, or auto"):
        make_config({"data": "images", "budget": text})


@pytest.mark.parametrize(
    ("given", "rate"), [("1e-3", 1e-3), (5e-4, 5e-4), (1, 1.0), ("0.1", 0.1), ("10", 10.0), (" 2e-5", 2e-5)]
)
def test_a_learning_rate_may_be_a_number_however_it_is_written(given: Any, rate: float) -> None:
    assert make_config({"data": "images", "learning_rate": given}).head_learning_rate == rate


@pytest.mark.parametrize("given", ["fast", "", "0", "-1e-3", "11", "nan", "inf", "1e-3x", "Find"])
def test_a_learning_rate_out_of_range_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match=r"learning_rate is out of range\. Expected auto, find, or a number"):
        make_config({"data": "images", "learning_rate": given})


@pytest.mark.parametrize("given", ["auto", "find"])
def test_without_a_number_the_rate_is_three_times_the_usual_one_of_the_optimizer(given: str) -> None:
    rates = {"adam": 3e-3, "adamw": 3e-3, "sgd": 3e-2, "momentum": 3e-2}
    for optimizer, rate in rates.items():
        config = make_config({"data": "images", "learning_rate": given, "optimizer": optimizer})
        assert config.head_learning_rate == pytest.approx(rate)


@pytest.mark.parametrize(
    ("optimizer", "rate"), [("adam", 1.5e-3), ("rmsprop", 1.5e-2), ("adagrad", 1.5e-2), ("momentum", 7.5e-3)]
)
def test_the_rate_falls_with_the_batch(optimizer: str, rate: float) -> None:
    config = make_config({"data": "images", "optimizer": optimizer, "batch_size": 16})
    assert config.head_learning_rate == pytest.approx(rate)
    fixed = make_config({"data": "images", "optimizer": optimizer, "batch_size": 16, "learning_rate": 0.1})
    assert fixed.head_learning_rate == 0.1


@pytest.mark.parametrize(
    ("optimizer", "asked", "decay"), [("adam", 0.0, 0.0), ("adamw", 0.0, 0.004), ("adamw", 0.1, 0.1), ("sgd", 0.1, 0.1)]
)
def test_adamw_decays_though_nobody_asks_for_it(optimizer: str, asked: float, decay: float) -> None:
    assert make_config({"data": "images", "optimizer": optimizer, "weight_decay": asked}).decay == decay


def test_what_begins_at_random_has_one_rate_and_single_precision() -> None:
    assert (make_config({"data": "images"}).ratio, make_config({"data": "images"}).training_precision) == (
        0.1,
        "auto",
    )
    scratch = make_config({"data": "images", "scratch": True})
    assert (scratch.ratio, scratch.training_precision) == (1.0, "f32")


def test_few_images_are_tuned_on_in_small_batches_and_heads_trained_in_usual_ones() -> None:
    config = make_config({"data": "images"})
    tuning = config.tuning(1_280)
    assert (tuning.batch_size, tuning.epochs, tuning.head_learning_rate) == (16, 8, pytest.approx(1.5e-3))
    assert (config.tuning(20_000).batch_size, config.head_batch_size) == (64, 64)
    chosen = make_config({"data": "images", "batch_size": 32, "epochs": 2}).tuning(1_280)
    assert (chosen.batch_size, chosen.epochs, chosen.head_batch_size) == (32, 2, 32)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 31),
        ("image_size", 1025),
        ("image_size", -224),
        ("epochs", -1),
        ("batch_size", 3),
        ("batch_size", 4097),
        ("backbone_ratio", 0.11),
        ("backbone_ratio", -0.1),
        ("layer_decay", 0.0),
        ("layer_decay", 1.01),
        ("cycles", 0),
        ("average", 1.0),
        ("average", float("nan")),
        ("weight_decay", -1e-4),
        ("contrast", 1.5),
        ("pca_std", -0.1),
        ("scale_min", 100),
        ("scale_max", 255),
        ("hidden", "256;128"),
        ("hidden", "256,-1"),
        ("hidden", "0"),
        ("hidden", ",".join(["9"] * 21)),
        ("hidden", "٣"),
        ("dropout", 0.96),
        ("dropconnect", -0.1),
        ("l1", -1.0),
        ("l2", "0"),
        ("l2", "little"),
        ("l2", "nan"),
        ("stochastic_depth", 1.0),
        ("label_smoothing", 1.0),
        ("mixup", -0.2),
        ("cutmix", float("inf")),
    ],
)
def test_a_setting_of_training_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        make_config({"data": "images", name: value})
    assert caught.value.expected


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_size", 0), ("image_size", 32), ("image_size", 1024), ("average", 0), ("backbone_ratio", 0.1)],
)
def test_a_setting_of_training_at_the_end_of_its_range_passes(name: str, value: Any) -> None:
    assert getattr(make_config({"data": "images", name: value}), name) == value


def test_the_classifier_has_the_form_that_is_asked_for() -> None:
    assert make_config({"data": "images"}).head_spec == HeadSpec()
    settings = {"hidden": "256, 128", "activation": "tanh", "dropout": 0.5, "l1": 0.1, "l2": "1e-2", "pooling": "max"}
    config = make_config({"data": "images", **settings})
    assert config.head_spec == HeadSpec("max", (256, 128), "tanh", "glorot", dropout=0.5, l1=0.1, l2=0.01)
    assert make_config({"data": "images", "hidden": 64}).head_spec.hidden == (64,)  # YAML reads it as a number
    assert make_config({"data": "images", "hidden": "none"}).head_spec.linear


@pytest.mark.parametrize(
    ("activation", "initializer"),
    [("relu", "he"), ("elu", "he"), ("maxout", "he"), ("tanh", "glorot"), ("sigmoid", "glorot")],
)
def test_initial_weights_suit_the_activation_unless_told_otherwise(activation: str, initializer: str) -> None:
    settings = {"data": "images", "hidden": "8", "activation": activation}
    assert make_config(settings).head_spec.initializer == initializer
    other = "he" if initializer == "glorot" else "glorot"
    assert make_config({**settings, "initializer": other}).head_spec.initializer == other


def test_what_cannot_be_solved_for_is_described() -> None:
    assert make_config({"data": "images", "l2": "0.1"}).trained_head == ""
    described = make_config({"data": "images", "hidden": "16", "mixup": 0.2}).trained_head
    assert described == "16 relu units, mixup 0.2"
    assert make_config({"data": "images", "label_smoothing": 0.1}).trained_head == "linear, label smoothing 0.1"


def test_batch_normalization_needs_something_to_normalize() -> None:
    with pytest.raises(UsageError, match="--hidden 256"):
        make_config({"data": "images", "head_batch_norm": True})


def test_settings_of_the_views_are_what_they_are_drawn_from() -> None:
    values = {"flip": False, "random_crop": False, "scale_min": 224, "scale_max": 300, "contrast": 0, "pca_std": 0}
    drawn = make_config({"data": "images", **values}).augmentation_for(tiny=False)
    assert (drawn.flip, drawn.random_crop, drawn.short_sides) == (False, False, (224, 300))
    assert drawn.color == ColorJitter(0.0, 0.2, 0.0)
    assert make_config({"data": "images"}).augmentation_for(tiny=False) == LECTURE_AUGMENTATION
    assert make_config({"data": "images"}).augmentation_for(tiny=True).short_sides == (224, 320)
    assert make_config({"data": "images", "scale_max": 256}).augmentation_for(tiny=True).short_sides == (224, 256)


def test_a_start_from_scratch_tunes_everything() -> None:
    assert make_config({"data": "images", "scratch": True}).tune == "all"
    assert make_config({"data": "images", "scratch": True, "tune": "all"}).scratch
    for tune in ("none", "last"):
        with pytest.raises(UsageError, match=f"--scratch and --tune {tune} do not go together"):
            make_config({"data": "images", "scratch": True, "tune": tune})


# ------------------------------------------------------------------------------------------------------------------ YAML


def yaml_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "fit.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_holds_the_same_settings(tmp_path: Path) -> None:
    text = "# a comment\ndata: images\nval_fraction: 0.1\nseed: 3\ntrain_views: 8\nsize: small\n"
    config = make_config(read_config_file(yaml_file(tmp_path, text)))
    assert config == FitConfig(data="images", val_fraction=0.1, seed=3, train_views="8", size="small")


@pytest.mark.parametrize("text", ["", "- data\n- out\n", "images", "1: 2\n", "null"])
def test_a_file_that_is_no_mapping_is_refused_with_an_example(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"fit\.yaml is not a mapping .* `backbone: auto`"):
        read_config_file(yaml_file(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("data: images\nout: [1, 2\nseed: 1\n", "line 3: "),
        ("data: *nothing\n", "line 1: found undefined alias"),
        ("data: !!python/object/apply:os.system ['true']\n", "line 1: could not determine a constructor"),
        ("seed: 2026-13-45\n", "month must be in 1..12"),
        (b"data: \xff\xfe\n", "can't decode byte 0xff"),
        ("data: a\0b\n", "unacceptable character"),
        ("[" * 500, "recursion"),
    ],
)
def test_a_file_that_is_no_yaml_is_refused_in_one_line_that_says_where(
    tmp_path: Path, text: str | bytes, complaint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read_config_file(yaml_file(tmp_path, text))
    assert caught.value.what.startswith(f"{tmp_path / 'fit.yaml'} is not valid YAML (")
    assert complaint in caught.value.what
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.yaml cannot be read \(No such file or directory\)"):
        read_config_file(tmp_path / "gone.yaml")
    with pytest.raises(UsageError, match=r"cannot be read \(Is a directory\)"):
        read_config_file(tmp_path)


def test_a_value_that_would_be_endless_in_print_is_shown_in_short(tmp_path: Path) -> None:
    lines = ["x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 12)]  # 10 to the power of 12 numbers
    values = read_config_file(yaml_file(tmp_path, "\n".join(lines)))
    with pytest.raises(UsageError, match=r"^out is of the wrong type") as caught:
        make_config({"data": "images", "out": values["x11"]})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("pets", "pets"),
        ("pets/labels.csv", "pets"),
        ("pets/train", "pets"),
        ("pets/data/images/train", "pets"),
        ("pets/train/metadata.jsonl", "pets"),
        ("pets/_classes.csv", "pets"),
        ("birds.tar.gz", "birds"),
        ("/data", "data"),
        ("tfds:oxford_flowers102", "oxford_flowers102"),
    ],
)
def test_a_bundle_is_named_after_what_the_data_are(data: str, name: str) -> None:
    assert make_config({"data": data}).bundle_path == Path("models") / name


def test_random_weights_need_time_to_train() -> None:
    with pytest.raises(UsageError, match="--scratch and --budget 0 do not go together"):
        make_config({"data": "images", "scratch": True, "budget": "0"})
