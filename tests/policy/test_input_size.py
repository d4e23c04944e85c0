"""Input size for small and ordinary images."""

from __future__ import annotations

import pytest

from transferapp.policy.size import choose_input_size

USUAL = (224, 224)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(32, 32)], (128, 128)),
        ([(95, 96)], (128, 128)),
        ([(96, 96)], USUAL),
        ([(40, 231)], USUAL),  # it is the area that counts: 9240 pixels
        ([(40, 230)], (128, 128)),  # 9200
        ([(32, 32), (32, 32), (4000, 3000)], (128, 128)),  # the median
        ([(32, 32), (4000, 3000), (4000, 3000)], USUAL),
        ([], USUAL),
    ],
)
def test_tiny_images_are_not_blown_up(sizes: list[tuple[int, int]], expected: tuple[int, int]) -> None:
    found = choose_input_size(sizes, USUAL)
    assert found.image_size == expected
    assert found.reason.topic == "input"
    assert (found.reason.values["height"], found.reason.values["width"]) == expected


def test_the_reason_carries_the_size_of_the_images() -> None:
    assert choose_input_size([(16, 64)], USUAL).reason.values["median_side"] == 32


def test_a_backbone_that_is_smaller_by_itself_keeps_its_size() -> None:
    assert choose_input_size([(32, 32)], (96, 96)).image_size == (96, 96)
    assert choose_input_size([(32, 32)], (128, 128)).image_size == (128, 128)


def test_a_person_may_insist() -> None:
    found = choose_input_size([(32, 32)], USUAL, override=160)
    assert found.image_size == (160, 160)
    assert "--image-size" in found.reason.text
