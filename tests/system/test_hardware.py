"""Hardware: detection from fake device lists, the precision, and the sentence on the card."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from transferapp.backbones.engine import resolve_precision
from transferapp.system import backend as backend_module
from transferapp.system.backend import Device, accelerator_devices, bfloat16_pays
from transferapp.system.hardware import Hardware, detect, hardware_of
from transferapp.system.threads import cpu_cores


@pytest.fixture
def signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for a graphics card's device; it does not exist yet."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(backend_module, "_ACCELERATOR_FILES", (str(tmp_path / "nvidia0"),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "nvidia0"


def fake_tensorflow_cards(monkeypatch: pytest.MonkeyPatch, *facts: dict[str, Any]) -> None:
    """Make TensorFlow and Keras see these cards."""
    import keras
    import tensorflow as tf

    cards = [f"/physical_device:GPU:{index}" for index in range(len(facts))]
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: [f"gpu:{i}" for i in range(len(facts))])
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: cards)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda card: facts[cards.index(card)])


# --------------------------------------------------------------------------------------------------------------- detection


def test_a_machine_without_accelerators_is_known_without_importing_keras(
    signs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)  # importing it would now fail
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    found = detect()
    assert found == Hardware(cores=cpu_cores())
    assert (found.kind, found.num_devices, found.name, found.dtype_policy) == ("cpu", 1, "", "float32")


def test_cards_are_named_as_tensorflow_names_them(signs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signs.touch()
    fake_tensorflow_cards(
        monkeypatch,
        {"device_name": "NVIDIA A100-SXM4-40GB", "compute_capability": (8, 0)},
        {"device_name": "Tesla P100", "compute_capability": (6, 0)},
        {},  # TensorFlow knows nothing of cards that are not NVIDIA's
    )
    assert accelerator_devices() == (
        Device("gpu:0", "NVIDIA A100-SXM4-40GB", (8, 0)),
        Device("gpu:1", "Tesla P100", (6, 0)),
        Device("gpu:2", "GPU", None),
    )


@pytest.mark.parametrize(
    ("told", "capability"), [("9.0", (9, 0)), ("12.1", (12, 1)), ("gfx90a", None), (None, None), ("9", None)]
)
def test_devices_are_named_as_jax_names_them(
    signs: Path, monkeypatch: pytest.MonkeyPatch, told: str | None, capability: tuple[int, int] | None
) -> None:
    import keras

    signs.touch()
    card = SimpleNamespace(platform="gpu", id=0, device_kind="NVIDIA H100", compute_capability=told)
    chip = SimpleNamespace(platform="tpu", id=1, device_kind="TPU v4")
    monkeypatch.setattr(backend_module, "keras_backend", lambda: "jax")
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["gpu:0", "tpu:1"])
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(devices=lambda: [card, chip]))
    assert accelerator_devices() == (Device("gpu:0", "NVIDIA H100", capability), Device("tpu:1", "TPU v4"))


def test_what_is_detected_follows_from_the_cards(signs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signs.touch()
    fake_tensorflow_cards(monkeypatch, *2 * [{"device_name": "NVIDIA A100", "compute_capability": (8, 0)}])
    found = detect()
    assert (found.kind, found.num_devices, found.device) == ("gpu", 2, "gpu:0")
    assert found.name == "NVIDIA A100"
    assert found.dtype_policy == "mixed_float16"
    assert not found.idle


def test_a_card_that_keras_cannot_use_is_said_to_lie_idle(signs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    signs.touch()
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["cpu:0"])
    found = detect()
    assert found.kind == "cpu"
    assert found.idle
    assert "Keras cannot use its accelerator" in found.sentence
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not detect().idle, "hidden on purpose"


def test_two_logical_cpus_are_one_device(signs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    signs.touch()
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["cpu:0", "cpu:1"])
    assert (detect().device, detect().num_devices) == ("cpu:0", 1)


def test_of_several_kinds_the_first_counts() -> None:
    found = hardware_of(
        [Device("tpu:0", "TPU v4"), Device("tpu:1", "TPU v4"), Device("gpu:0", "NVIDIA T4", (7, 5))], cores=8
    )
    assert (found.kind, found.device, found.num_devices, found.dtype_policy) == ("tpu", "tpu:0", 2, "mixed_bfloat16")


# --------------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("capabilities", "policy"),
    [
        ([(6, 1)], "float32"),
        ([(7, 0)], "mixed_float16"),
        ([(9, 0)], "mixed_float16"),
        ([(12, 0)], "mixed_float16"),
        ([(9, 0), (6, 0)], "mixed_float16"),  # the first trains
        ([(6, 0), (9, 0)], "float32"),
        ([None], "float32"),
    ],
)
def test_mixed_precision_is_for_cards_that_have_tensor_cores(
    capabilities: list[tuple[int, int] | None], policy: str
) -> None:
    devices = [Device(f"gpu:{index}", "card", capability) for index, capability in enumerate(capabilities)]
    assert hardware_of(devices, cores=4).dtype_policy == policy


def be_processor(monkeypatch: pytest.MonkeyPatch, vendor: str, flags: set[str]) -> None:
    """Have Linux say so."""
    monkeypatch.setattr(backend_module, "_cpu_facts", lambda: (vendor, flags))


@pytest.fixture
def cpu(signs: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A processor with instructions for bfloat16, under Linux, with TensorFlow for Keras; no accelerator."""
    monkeypatch.setattr(backend_module.platform, "machine", lambda: "x86_64")
    be_processor(monkeypatch, "AuthenticAMD", {"avx2", "avx512_vnni", "avx512_bf16"})
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    return monkeypatch


def test_a_processor_with_bfloat16_tunes_its_1x1_convolutions_in_it(cpu: pytest.MonkeyPatch) -> None:
    assert detect().pointwise == detect("bf16").pointwise == "bfloat16"
    assert detect().dtype_policy == "float32"
    assert detect("f32").pointwise == "convolution"


@pytest.mark.parametrize(
    ("flags", "onednn", "pointwise"),
    [
        ({"avx2", "avx512_vnni"}, "", "convolution"),
        ({"avx2", "avx_vnni"}, "", "convolution"),
        ({"avx2", "avx512f"}, "", "product"),  # TensorFlow does without oneDNN there
        ({"avx2"}, "", "product"),
        ({"avx2"}, "1", "convolution"),
        ({"avx2"}, "True", "convolution"),
        ({"avx2"}, "2", "product"),  # no word that TensorFlow knows
        ({"avx512_vnni"}, "2", "convolution"),
        ({"avx512_vnni", "amx_bf16"}, "", "bfloat16"),
        ({"avx512_vnni", "amx_bf16"}, "0", "product"),
        ({"avx512_vnni", "avx512_bf16"}, "", "convolution"),  # Intel's do no more a cycle than those of float32
        (set(), "", "product"),
    ],
)
def test_other_processors_compute_as_suits_tensorflow(
    cpu: pytest.MonkeyPatch, flags: set[str], onednn: str, pointwise: str
) -> None:
    be_processor(cpu, "GenuineIntel", flags)
    if onednn:
        cpu.setenv("TF_ENABLE_ONEDNN_OPTS", onednn)
    assert detect().pointwise == pointwise
    assert "bfloat16" in detect().sentence or pointwise != "bfloat16"


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_computes_convolutions(cpu: pytest.MonkeyPatch, backend: str) -> None:
    cpu.setenv("KERAS_BACKEND", backend)
    assert detect().pointwise == "convolution"


def test_so_do_systems_on_which_nothing_was_measured(cpu: pytest.MonkeyPatch) -> None:
    cpu.setattr(backend_module.platform, "machine", lambda: "aarch64")
    assert detect().pointwise == "convolution"


def test_and_accelerators(cpu: pytest.MonkeyPatch, signs: Path) -> None:
    signs.touch()
    fake_tensorflow_cards(cpu, {"device_name": "NVIDIA T4", "compute_capability": (7, 5)})
    assert (detect().kind, detect().pointwise) == ("gpu", "convolution")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells")
def test_linux_tells_what_the_processor_can_do() -> None:
    if backend_module.platform.machine() != "x86_64":
        pytest.skip("of x86 alone")
    vendor, flags = backend_module._cpu_facts()
    assert vendor
    assert {"fpu", "sse2"} <= flags


@pytest.mark.parametrize(
    ("vendor", "flags", "pays"),
    [
        ("AuthenticAMD", {"avx512_bf16"}, True),
        ("GenuineIntel", {"avx512_bf16"}, False),
        ("GenuineIntel", {"avx512_bf16", "amx_bf16"}, True),
        ("AuthenticAMD", {"avx2"}, False),
        ("", set(), False),
    ],
)
def test_half_precision_is_chosen_where_it_is_faster(
    cpu: pytest.MonkeyPatch, vendor: str, flags: set[str], pays: bool
) -> None:
    be_processor(cpu, vendor, flags)
    assert bfloat16_pays() == pays
    assert resolve_precision("auto") in (("bf16", "f32") if pays else ("f32",)), "OpenVINO has a word in it too"
    cpu.setattr(backend_module.platform, "machine", lambda: "aarch64")
    assert bfloat16_pays(), "OpenVINO alone can tell there"


@pytest.mark.parametrize(
    ("written", "backend"),
    [
        (None, "tensorflow"),
        ('{"backend": "jax"}', "jax"),
        ("{}", "tensorflow"),
        ("not JSON", "tensorflow"),
        ("[]", "tensorflow"),
    ],
)
def test_the_backend_is_known_from_keras_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str | None, backend: str
) -> None:
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    if written is not None:
        (tmp_path / "keras.json").write_text(written)
    assert backend_module.configured_backend() == backend
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert backend_module.configured_backend() == "torch"


def test_what_is_told_without_keras_is_what_keras_says() -> None:
    assert backend_module.configured_backend() == backend_module.keras_backend()


# ---------------------------------------------------------------------------------------------------------------- the card


@pytest.mark.parametrize(
    ("hardware", "sentence"),
    [
        (Hardware(cores=2), "2 CPU cores, no GPU: training computes in float32"),
        (Hardware(cores=1), "1 CPU core, no GPU: training computes in float32"),
        (
            hardware_of([], cores=2, pointwise="bfloat16"),
            "2 CPU cores, no GPU: training computes in float32, the 1 x 1 convolutions of what is fine-tuned in bfloat16",
        ),
        (
            hardware_of([Device("gpu:0", "NVIDIA H100", (9, 0))], cores=16),
            "1 GPU (NVIDIA H100): training computes in mixed_float16, with its weights kept in float32",
        ),
        (
            hardware_of([Device(f"gpu:{i}", "NVIDIA A100", (8, 0)) for i in range(4)], cores=16),
            "1 of 4 GPUs (NVIDIA A100): training computes in mixed_float16, with its weights kept in float32; "
            "KERAS_BACKEND=jax uses all of them",
        ),
        (
            hardware_of([Device(f"gpu:{i}", "NVIDIA A100", (8, 0)) for i in range(4)], cores=16, divides=True),
            "4 GPUs (NVIDIA A100): each computes a part of every batch, and training computes in mixed_float16, with its "
            "weights kept in float32",
        ),
        (
            hardware_of([Device("gpu:0", "GeForce GTX 1080", (6, 1))], cores=16),
            "1 GPU (GeForce GTX 1080): training computes in float32, for half precision would not be faster there",
        ),
    ],
)
def test_the_card_names_what_there_is_and_what_is_made_of_it(hardware: Hardware, sentence: str) -> None:
    assert hardware.sentence == sentence


def test_the_manifest_holds_everything_as_plain_json() -> None:
    import json

    hardware = hardware_of([Device("gpu:0", "NVIDIA H100", (9, 0))], cores=16)
    document = hardware.to_json()
    assert json.loads(json.dumps(document)) == document
    assert document == {
        "kind": "gpu",
        "device": "gpu:0",
        "name": "NVIDIA H100",
        "num_devices": 1,
        "divided": False,
        "cores": 16,
        "dtype_policy": "mixed_float16",
        "idle": False,
        "pointwise": "convolution",
        "sentence": hardware.sentence,
    }
