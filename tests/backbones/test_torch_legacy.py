"""Weight files written opcode by opcode: valid, truncated, inconsistent and malicious ones."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from transferapp.backbones.efficientnet_lite import read_state_dict
from transferapp.backbones.registry import backbone_spec, weights_path
from transferapp.errors import WeightsError

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
PROTOCOL = pickle.dumps(1001, 2)
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2}}, 2)


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


EMPTY_DICT = name_of("collections", "OrderedDict") + b")R"


def tensor(
    key: str,
    elements: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *,
    offset: int = 0,
    kind: str = "FloatStorage",
    persistent: str = "storage",
    view: bytes = b"N",
) -> bytes:
    """The opcodes of one tensor on the storage `key`."""
    storage = tuple_of(text(persistent), name_of("torch", kind), text(key), text("cpu"), integer(elements), view) + b"Q"
    arguments = tuple_of(
        storage, integer(offset), tuple_of(*map(integer, shape)), tuple_of(*map(integer, strides)), b"\x89", EMPTY_DICT
    )
    return name_of("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def state_of(tensors: dict[str, bytes]) -> bytes:
    items = b"".join(text(name) + opcodes for name, opcodes in tensors.items())
    return b"\x80\x02" + EMPTY_DICT + b"(" + items + b"u."


def legacy_file(
    path: Path, tensors: dict[str, bytes], storages: dict[str, np.ndarray], lengths: dict[str, int] | None = None
) -> Path:
    """Write the five pickles and the storages; `lengths` lies about how many elements a storage has."""
    data = MAGIC + PROTOCOL + SYSTEM + state_of(tensors) + pickle.dumps(list(storages), 2)
    for key, array in storages.items():
        data += struct.pack("<q", (lengths or {}).get(key, array.size)) + array.tobytes()
    path.write_bytes(data)
    return path


SIX = np.arange(6, dtype="<f4")


def test_values_shapes_types_and_order_are_those_of_the_file(tmp_path: Path) -> None:
    file = legacy_file(
        tmp_path / "w.pth",
        {
            "z.weight": tensor("0", 6, (2, 3), (3, 1)),
            "a.count": tensor("1", 1, (), (), kind="LongStorage"),
        },
        {"0": SIX, "1": np.array([7], "<i8")},
    )
    state = read_state_dict(file)
    assert list(state) == ["z.weight", "a.count"]
    assert state["z.weight"].dtype == np.float32
    np.testing.assert_array_equal(state["z.weight"], [[0, 1, 2], [3, 4, 5]])
    assert state["a.count"].dtype == np.int64
    assert state["a.count"].shape == ()
    assert state["a.count"] == 7


def test_strides_are_followed_when_storage_order_is_not_the_shapes(tmp_path: Path) -> None:
    file = legacy_file(tmp_path / "w.pth", {"t": tensor("0", 6, (3, 2), (1, 3))}, {"0": SIX})
    array = read_state_dict(file)["t"]
    np.testing.assert_array_equal(array, [[0, 3], [1, 4], [2, 5]])
    assert array.flags.c_contiguous


def test_tensors_may_share_a_storage_at_offsets(tmp_path: Path) -> None:
    file = legacy_file(
        tmp_path / "w.pth",
        {"head": tensor("0", 6, (2,), (1,)), "tail": tensor("0", 6, (2, 2), (2, 1), offset=2)},
        {"0": SIX},
    )
    state = read_state_dict(file)
    np.testing.assert_array_equal(state["head"], [0, 1])
    np.testing.assert_array_equal(state["tail"], [[2, 3], [4, 5]])


def test_storages_follow_the_list_of_keys_not_the_tensors(tmp_path: Path) -> None:
    file = legacy_file(
        tmp_path / "w.pth",
        {"first": tensor("b", 1, (1,), (1,)), "second": tensor("a", 2, (2,), (1,))},
        {"a": np.array([5, 6], "<f4"), "b": np.array([9], "<f4")},
    )
    state = read_state_dict(file)
    np.testing.assert_array_equal(state["first"], [9])
    np.testing.assert_array_equal(state["second"], [5, 6])


def test_an_empty_tensor_is_read_as_one(tmp_path: Path) -> None:
    file = legacy_file(tmp_path / "w.pth", {"none": tensor("0", 0, (0, 3), (3, 1))}, {"0": SIX[:0]})
    assert read_state_dict(file)["none"].shape == (0, 3)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = legacy_file(tmp_path / "w.pth", {"t": tensor("0", 6, (2, 3), (3, 1))}, {"0": SIX}).read_bytes()
    cut = tmp_path / "cut.pth"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"cut\.pth"):
            read_state_dict(cut)


@pytest.mark.parametrize(
    "opcodes",
    [
        tensor("0", 6, (2, 3), (3, 1), offset=1),
        tensor("0", 6, (7,), (1,)),
        tensor("0", 6, (2,), (6,)),
        tensor("0", 6, (2,), (1,), offset=-1),
        tensor("0", 6, (2,), (-1,), offset=3),
        tensor("0", 6, (-2,), (1,)),
        tensor("0", 6, (2, 3), (1,)),
    ],
    ids=["offset", "too long", "stride", "negative offset", "negative stride", "negative shape", "ranks differ"],
)
def test_a_tensor_that_reaches_outside_its_storage_is_refused(tmp_path: Path, opcodes: bytes) -> None:
    with pytest.raises(WeightsError):
        read_state_dict(legacy_file(tmp_path / "w.pth", {"t": opcodes}, {"0": SIX}))


def test_a_small_file_cannot_fill_the_memory_with_repeated_elements(tmp_path: Path) -> None:
    bomb = tensor("0", 6, (1 << 20, 1 << 20), (0, 0))  # 4 TB of the same number
    with pytest.raises(WeightsError, match="more elements than its storage"):
        read_state_dict(legacy_file(tmp_path / "w.pth", {"t": bomb}, {"0": SIX}))


@pytest.mark.parametrize("elements", [-1, 7, 1 << 40, (1 << 63) - 1])
def test_a_storage_that_lies_about_its_length_is_refused(tmp_path: Path, elements: int) -> None:
    file = legacy_file(tmp_path / "w.pth", {"t": tensor("0", 6, (6,), (1,))}, {"0": SIX}, lengths={"0": elements})
    with pytest.raises(WeightsError, match="ends inside a tensor"):
        read_state_dict(file)


@pytest.mark.parametrize(
    "opcodes",
    [
        tensor("0", 6, (6,), (1,), kind="HalfStorage"),
        tensor("0", 6, (6,), (1,), persistent="module"),
        tensor("0", 6, (6,), (1,), view=tuple_of(text("0"), integer(0), integer(6))),
        integer(5),
        text("not a tensor"),
    ],
    ids=["half precision", "not a storage", "view of a storage", "number", "text"],
)
def test_anything_but_plain_tensors_is_refused(tmp_path: Path, opcodes: bytes) -> None:
    with pytest.raises(WeightsError):
        read_state_dict(legacy_file(tmp_path / "w.pth", {"t": opcodes}, {"0": SIX}))


def shell(command: str) -> bytes:
    return name_of("os", "system") + tuple_of(text(command)) + b"R"


ATTACKS: dict[str, Callable[[str], bytes]] = {
    "os.system": shell,
    "posix.system": lambda command: name_of("posix", "system") + tuple_of(text(command)) + b"R",
    "subprocess.getoutput": lambda command: name_of("subprocess", "getoutput") + tuple_of(text(command)) + b"R",
    "builtins.exec": lambda command: (
        name_of("builtins", "exec") + tuple_of(text(f"import os; os.system({command!r})")) + b"R"
    ),
    "inst": lambda command: b"(" + text(command) + b"ios\nsystem\n",
    "obj": lambda command: b"(" + name_of("os", "system") + text(command) + b"o",
    "stack_global": lambda command: text("os") + text("system") + b"\x93" + tuple_of(text(command)) + b"R",
    "dotted": lambda command: text("collections") + text("abc.sys") + b"\x93" + tuple_of(text(command)) + b"R",
    "torch.load": lambda command: name_of("torch", "load") + tuple_of(text(command)) + b"R",
    "numpy": lambda command: name_of("numpy", "load") + tuple_of(text(command)) + b"R",
}


@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize("attack", ATTACKS)
def test_code_in_any_of_the_five_pickles_is_refused_and_not_run(tmp_path: Path, attack: str, position: int) -> None:
    marker = tmp_path / "executed"
    pickles = [MAGIC, PROTOCOL, SYSTEM, state_of({}), pickle.dumps([], 2)]
    pickles[position] = b"\x80\x04" + ATTACKS[attack](f"touch '{marker}'") + b"."
    file = tmp_path / "evil.pth"
    file.write_bytes(b"".join(pickles))
    with pytest.raises(WeightsError, match="not allowed in a weight file"):
        read_state_dict(file)
    assert not marker.exists()


def test_the_attacks_would_work_on_an_ordinary_unpickler(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    pickle.loads(b"\x80\x04" + shell(f"touch '{marker}'") + b".")
    assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"<html></html>", b"PK\x03\x04" + bytes(60), bytes(100), pickle.dumps({"a": 1}), b"\x80\x02K\x01."],
    ids=["empty", "text", "html", "zip", "zeros", "other pickle", "wrong magic"],
)
def test_what_is_no_weight_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.pth is not a readable"):
        read_state_dict(file)


def test_a_file_that_is_not_there_or_is_a_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(WeightsError, match=f"Could not read {path}"):
            read_state_dict(path)


@pytest.mark.parametrize(("name", "blocks"), [("efficientnet_lite0", 16), ("efficientnet_lite2", 21)])
def test_the_embedded_packages_hold_the_whole_network(name: str, blocks: int) -> None:
    path = weights_path(backbone_spec(name))
    assert path is not None
    state = read_state_dict(path)
    assert state["_fc.weight"].shape == (1000, 1280)
    assert state["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert len({key.split(".")[1] for key in state if key.startswith("_blocks.")}) == blocks
    assert all(np.isfinite(array).all() for array in state.values())
    assert all((array >= 0).all() for key, array in state.items() if key.endswith("running_var"))
