"""Views: boxes by hand, properties of boxes of every size, and pixels against a plain resampler."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.scenes import scene
from transferapp.images.views import (
    GEOMETRIES,
    MULTI_SCALE_SHORT_SIDES,
    PADDING,
    TRAINING_SHORT_SIDES,
    VIEW_COUNTS,
    Geometry,
    View,
    center_view,
    multi_scale_crops,
    render,
    render_batch,
    short_side_to_decode,
    ten_crops,
    training_view,
    views_for,
)

INPUT = (224, 224)
sides = st.integers(1, 4000)
sizes = st.tuples(sides, sides)
seeds = st.integers(0, 2**32)
thorough = settings(max_examples=150, derandomize=True, database=None, deadline=None)


def boxes(views: Iterable[View]) -> list[tuple[float, ...]]:
    return [tuple(round(side, 6) for side in view.box) for view in views]


# -------------------------------------------------------------------------------------------------------- worked by hand


def test_ten_crops_of_a_image_that_needs_no_scaling() -> None:
    # 512 x 256: the shorter side is 256 already, so every crop is 224 pixels of the image itself.
    corners_and_center = [
        (0, 0, 224, 224),
        (288, 0, 512, 224),
        (0, 32, 224, 256),
        (288, 32, 512, 256),
        (144, 16, 368, 240),
    ]
    views = ten_crops((512, 256), INPUT)
    assert boxes(views) == corners_and_center * 2
    assert [view.mirror for view in views] == [False] * 5 + [True] * 5


def test_ten_crops_of_a_portrait_twice_as_large() -> None:
    # 600 x 1024 to a shorter side of 256 is a factor of 600 / 256; a crop of 224 covers 525 pixels.
    views = ten_crops((600, 1024), INPUT)
    assert boxes(views[:5]) == [
        (0, 0, 525, 525),
        (75, 0, 600, 525),
        (0, 499, 525, 1024),
        (75, 499, 600, 1024),
        (37.5, 249.5, 562.5, 774.5),
    ]


def test_an_input_that_is_not_square_keeps_the_margin_where_it_is_tight() -> None:
    # An input 448 wide and 224 high: of 1000 x 500 the largest such box is all of it; 224 / 256 of that is 875 x 437.5.
    assert boxes([center_view((1000, 500), (224, 448))]) == [(62.5, 31.25, 937.5, 468.75)]
    # Of 1000 x 1000 the width is tight: 875 wide again, and half as high.
    assert boxes([center_view((1000, 1000), (224, 448))]) == [(62.5, 281.25, 937.5, 718.75)]


def test_fifty_views_are_ten_at_each_of_five_scales() -> None:
    views = multi_scale_crops((640, 640), INPUT)
    assert len(views) == 50
    widths = [round(view.box[2] - view.box[0], 6) for view in views[::10]]
    # 640 * 224 / scale
    assert MULTI_SCALE_SHORT_SIDES == (224, 256, 384, 480, 640)
    assert widths == [640, 560, round(640 * 224 / 384, 6), round(640 * 224 / 480, 6), 224]
    assert views[10:20] == ten_crops((640, 640), INPUT)
    assert set(boxes(views[:10])) == {(0, 0, 640, 640)}  # at the crop's own size there is only one place


def test_the_center_view_is_the_fifth_of_the_ten() -> None:
    assert center_view((700, 333), INPUT) == ten_crops((700, 333), INPUT)[4]


@pytest.mark.parametrize("count", VIEW_COUNTS)
def test_views_for_gives_as_many_as_asked(count: int) -> None:
    assert len(views_for(count, (320, 240), INPUT)) == count


@pytest.mark.parametrize("count", [0, 2, 5, 100, -1])
def test_views_for_lists_the_counts_there_are(count: int) -> None:
    with pytest.raises(ValueError, match="1, 10, 50"):
        views_for(count, (320, 240), INPUT)


@pytest.mark.parametrize(("size", "image_size"), [((0, 10), INPUT), ((10, -1), INPUT), ((10, 10), (0, 224))])
def test_a_side_below_one_is_refused(size: tuple[int, int], image_size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        center_view(size, image_size)


def test_a_scale_below_the_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        ten_crops((320, 240), INPUT, 223)


# ------------------------------------------------------------------------------------------------------- whole images


def test_resized_crops_have_the_aspect_of_the_image() -> None:
    views = ten_crops((512, 256), INPUT, geometry="resize")
    corners = [(0, 0, 448, 224), (64, 0, 512, 224), (0, 32, 448, 256), (64, 32, 512, 256)]  # 224 / 256 of each side
    assert boxes(views) == [*corners, (0, 0, 512, 256)] * 2
    assert [view.mirror for view in views] == [False] * 5 + [True] * 5


def test_padded_crops_hold_all_of_the_shorter_side() -> None:
    views = ten_crops((512, 256), INPUT, geometry="pad")
    corners = [(0, 0, 448, 448), (64, 0, 512, 448), (0, -192, 448, 256), (64, -192, 512, 256)]
    assert boxes(views) == [*corners, (0, -128, 512, 384)] * 2


def test_an_input_that_is_not_square_is_filled_by_padding_in_one_direction_alone() -> None:
    # An input 448 wide and 224 high: an image of its aspect needs no gray, a square one has it at both sides.
    assert boxes([center_view((1000, 500), (224, 448), "pad")]) == [(0, 0, 1000, 500)]
    assert boxes([center_view((1000, 1000), (224, 448), "pad")]) == [(-500, 0, 1500, 1000)]
    assert boxes([center_view((1000, 1000), (224, 448), "resize")]) == [(0, 0, 1000, 1000)]


@pytest.mark.parametrize("geometry", ["resize", "pad"])
def test_larger_scales_show_as_much_less_of_a_whole_image(geometry: Geometry) -> None:
    widths = [round(view.box[2] - view.box[0], 6) for view in multi_scale_crops((640, 640), INPUT, geometry)[4::10]]
    # The centers: all up to a scale of 256, then 640 * 256 / scale.
    assert widths == [640, 640, round(640 * 256 / 384, 6), round(640 * 256 / 480, 6), 256]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_center_view_is_the_fifth_of_the_ten_in_every_geometry(geometry: Geometry) -> None:
    assert center_view((700, 333), INPUT, geometry) == views_for(10, (700, 333), INPUT, geometry)[4]
    assert views_for(1, (700, 333), INPUT, geometry) == [center_view((700, 333), INPUT, geometry)]


@pytest.mark.parametrize("geometry", ["resize", "pad"])
@pytest.mark.parametrize("size", [(640, 160), (160, 640), (300, 300)])
def test_a_training_view_at_the_smallest_scale_shows_the_whole_image(size: tuple[int, int], geometry: Geometry) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        view = training_view(rng, size, INPUT, short_sides=(256, 256), flip=False, geometry=geometry)
        left, top, right, bottom = view.box
        assert left <= 1e-9
        assert top <= 1e-9
        assert right >= size[0] - 1e-9
        assert bottom >= size[1] - 1e-9


# ------------------------------------------------------------------------------------------------------ for every size


def check_box(view: View, size: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Inside the image, not empty, and of the aspect of the input."""
    left, top, right, bottom = view.box
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    assert (right - left) * image_size[0] == pytest.approx((bottom - top) * image_size[1], rel=1e-6)


@thorough
@given(sizes, st.tuples(st.integers(1, 700), st.integers(1, 700)))
def test_every_fixed_view_lies_inside_the_image_in_the_aspect_of_the_input(
    size: tuple[int, int], image_size: tuple[int, int]
) -> None:
    for view in multi_scale_crops(size, image_size):
        check_box(view, size, image_size)


@thorough
@given(sizes, st.tuples(st.integers(1, 700), st.integers(1, 700)), seeds)
def test_every_training_view_lies_inside_the_image_in_the_aspect_of_the_input(
    size: tuple[int, int], image_size: tuple[int, int], seed: int
) -> None:
    check_box(training_view(np.random.default_rng(seed), size, image_size), size, image_size)


@thorough
@given(sizes)
def test_corners_touch_the_edges_and_the_center_is_in_the_middle(size: tuple[int, int]) -> None:
    top_left, top_right, bottom_left, bottom_right, center = (view.box for view in ten_crops(size, INPUT)[:5])
    assert top_left[:2] == (0, 0)
    assert (top_right[2], top_right[1]) == (size[0], 0)
    assert (bottom_left[0], bottom_left[3]) == (0, size[1])
    assert bottom_right[2:] == size
    assert center[0] + center[2] == pytest.approx(size[0])
    assert center[1] + center[3] == pytest.approx(size[1])


@thorough
@given(sizes)
def test_each_of_the_ten_has_its_mirrored_twin(size: tuple[int, int]) -> None:
    views = ten_crops(size, INPUT)
    assert [View(view.box, not view.mirror) for view in views[:5]] == views[5:]


@thorough
@given(sizes, st.integers(2, 6))
def test_boxes_grow_with_the_image(size: tuple[int, int], factor: int) -> None:
    larger = ten_crops((size[0] * factor, size[1] * factor), INPUT)
    for view, grown in zip(ten_crops(size, INPUT), larger, strict=True):
        assert grown.box == pytest.approx([side * factor for side in view.box])


@thorough
@given(
    st.sampled_from([256, TRAINING_SHORT_SIDES[1], MULTI_SCALE_SHORT_SIDES[-1]]),
    st.tuples(st.integers(32, 400), st.integers(32, 400)),
    st.tuples(st.integers(0, 300), st.integers(0, 300)),
)
def test_a_image_decoded_as_large_as_advised_is_never_enlarged(
    scale: int, image_size: tuple[int, int], more: tuple[int, int]
) -> None:
    short = short_side_to_decode(scale, image_size)
    for view in ten_crops((short + more[0], short + more[1]), image_size, scale):
        left, top, right, bottom = view.box
        assert right - left >= image_size[1] - 1e-6
        assert bottom - top >= image_size[0] - 1e-6


def test_the_advised_side_is_the_scale_itself_for_the_reference_crop() -> None:
    assert short_side_to_decode(256, (224, 224)) == 256
    assert short_side_to_decode(256, (260, 260)) == 298  # 256 * 260 / 224 = 297.1


@thorough
@given(sizes, st.tuples(st.integers(1, 700), st.integers(1, 700)), seeds)
def test_views_of_whole_images_leave_no_part_of_the_box_to_chance(
    size: tuple[int, int], image_size: tuple[int, int], seed: int
) -> None:
    for geometry in ("resize", "pad"):
        drawn = training_view(np.random.default_rng(seed), size, image_size, geometry=geometry)
        for view in [drawn, *multi_scale_crops(size, image_size, geometry)]:
            left, top, right, bottom = view.box
            if geometry == "resize":
                assert 0 <= left < right <= size[0]
                assert 0 <= top < bottom <= size[1]
                assert (right - left) * size[1] == pytest.approx((bottom - top) * size[0], rel=1e-6)
                continue
            assert (right - left) * image_size[0] == pytest.approx((bottom - top) * image_size[1], rel=1e-6)
            for low, high, side in ((left, right, size[0]), (top, bottom, size[1])):
                # Inside the image, or around all of it: gray never takes the place of a part of the image.
                slack = 1e-9 * max(*size, high - low)
                assert (low >= -slack and high <= side + slack) or (low <= slack and high >= side - slack)


# ------------------------------------------------------------------------------------------------------------- at random


class Drawn:
    """Fake generator with simple numbers."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = numbers

    def random(self, count: int) -> npt.NDArray[np.float64]:
        assert count == len(self.numbers)
        return np.array(self.numbers)


@pytest.mark.parametrize(
    ("numbers", "box", "mirror"),
    [
        # scale 256: a box of 560 in 640 x 640, and 80 pixels of room
        ((0.0, 0.0, 1.0, 0.49), (0, 80, 560, 640), True),
        ((0.0, 0.5, 0.25, 0.5), (40, 20, 600, 580), False),
        # scale 448, six sevenths of the way to 480: a box of 320, and 320 pixels of room
        ((6 / 7, 0.5, 0.0, 0.99), (160, 0, 480, 320), False),
    ],
)
def test_a_training_view_worked_by_hand(numbers: tuple[float, ...], box: tuple[float, ...], mirror: bool) -> None:
    view = training_view(Drawn(*numbers), (640, 640), INPUT)  # type: ignore[arg-type]
    assert view.box == pytest.approx(box)
    assert view.mirror is mirror


def test_the_same_seed_gives_the_same_views_and_another_seed_others() -> None:
    def draw(seed: int) -> list[View]:
        rng = np.random.default_rng(seed)
        return [training_view(rng, (500, 375), INPUT) for _ in range(20)]

    assert draw(7) == draw(7)
    assert not set(draw(7)) & set(draw(8))


@thorough
@given(sizes, seeds)
def test_a_training_view_draws_as_many_numbers_whatever_the_size(size: tuple[int, int], seed: int) -> None:
    rng, plain = np.random.default_rng(seed), np.random.default_rng(seed)
    training_view(rng, size, INPUT)
    plain.random(4)
    assert rng.random() == plain.random()


def test_training_views_spread_evenly_over_scales_places_and_mirrors() -> None:
    rng = np.random.default_rng(0)
    views = [training_view(rng, (1000, 800), INPUT) for _ in range(4000)]
    widths = np.array([view.box[2] - view.box[0] for view in views])
    scales = 800 * 224 / widths
    least, most = TRAINING_SHORT_SIDES
    assert (least, most) == (256, 480)
    assert (scales >= least - 1e-6).all()
    assert (scales <= most + 1e-6).all()
    places = np.array([(view.box[0], view.box[1]) for view in views]) / (np.array([1000, 800]) - widths[:, None])
    for drawn in ((scales - least) / (most - least), places[:, 0], places[:, 1]):
        shares = np.histogram(drawn, 4, (0, 1))[0] / len(drawn)
        assert np.abs(shares - 0.25).max() < 0.03  # four standard errors
    assert abs(np.mean([view.mirror for view in views]) - 0.5) < 0.03


# ---------------------------------------------------------------------------------------------------------------- pixels


def noise(size: tuple[int, int], seed: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def weights(start: float, stop: float, out: int, available: int) -> npt.NDArray[np.float64]:
    """(out, available) weights of an antialiased bicubic resampling (Keys, a = -1/2) of an interval."""
    step = (stop - start) / out
    centers = start + (np.arange(out) + 0.5) * step
    x = np.abs(np.arange(available) + 0.5 - centers[:, None]) / max(step, 1)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    kernel = np.where(x < 1, near, np.where(x < 2, far, 0))
    return kernel / kernel.sum(1, keepdims=True)


def resampled(image: Image.Image, view: View, image_size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """The view by two matrix products, in floating point throughout."""
    left, top, right, bottom = view.box
    down, across = weights(top, bottom, image_size[0], image.height), weights(left, right, image_size[1], image.width)
    pixels = np.einsum("oh,pw,hwc->opc", down, across, np.asarray(image, float), optimize=True)
    return pixels[:, ::-1] if view.mirror else pixels


@pytest.mark.parametrize("image_size", [(32, 32), (40, 24)])
@pytest.mark.parametrize("size", [(150, 97), (41, 64), (30, 20)])
def test_a_view_agrees_with_a_resampler_written_out(size: tuple[int, int], image_size: tuple[int, int]) -> None:
    # Contrast low enough that no overshoot is clipped; Pillow rounds after each of its two passes, by half a level at most.
    image = noise(size).point(lambda level: 80 + level // 3)
    for view in multi_scale_crops(size, image_size)[::7]:
        assert np.abs(render(image, view, image_size) - resampled(image, view, image_size)).max() <= 1.2


def test_a_crop_at_its_own_size_is_the_pixels_themselves() -> None:
    image = noise((512, 256))
    for view in ten_crops(image.size, INPUT):
        left, top, right, bottom = map(int, view.box)
        expected = np.asarray(image)[top:bottom, left:right]
        assert np.array_equal(render(image, view, INPUT), expected[:, ::-1] if view.mirror else expected)


def test_away_from_its_border_a_view_is_what_crop_and_resize_give() -> None:
    image, view = scene((640, 512)), View((64, 32, 512, 480))  # half the size
    separately = np.asarray(image.crop((64, 32, 512, 480)).resize((224, 224), Image.Resampling.BICUBIC), int)
    assert np.abs(render(image, view, INPUT) - separately)[4:-4, 4:-4].max() <= 1


def test_a_mirrored_view_is_the_mirror_image() -> None:
    image = noise((90, 70))
    view = center_view(image.size, (32, 32))
    mirrored = render(image, View(view.box, mirror=True), (32, 32))
    assert np.array_equal(mirrored, render(image, view, (32, 32))[:, ::-1])


def test_a_batch_is_its_views_one_by_one_in_any_order() -> None:
    image = noise((90, 70))
    views = multi_scale_crops(image.size, (16, 20))
    shuffled = [views[i] for i in np.random.default_rng(1).permutation(len(views))]
    batch = render_batch(image, shuffled, (16, 20))
    assert batch.shape == (50, 16, 20, 3)
    assert batch.dtype == np.uint8
    assert batch.flags.c_contiguous
    for pixels, view in zip(batch, shuffled, strict=True):
        assert np.array_equal(pixels, render(image, view, (16, 20)))


def test_no_views_are_an_empty_batch() -> None:
    assert render_batch(noise((90, 70)), [], (16, 20)).shape == (0, 16, 20, 3)


@pytest.mark.parametrize("size", [(16, 320), (320, 16), (16, 16)])
def test_the_smallest_and_longest_images_can_be_rendered(size: tuple[int, int]) -> None:
    assert render_batch(noise(size), views_for(50, size, INPUT), INPUT).shape == (50, *INPUT, 3)


def test_a_resized_view_is_the_image_resized() -> None:
    image = noise((150, 40))
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(render(image, center_view(image.size, (32, 32), "resize"), (32, 32)), expected)


def test_a_padded_view_is_the_image_on_gray() -> None:
    image = noise((256, 64))
    pixels = render(image, center_view(image.size, (32, 32), "pad"), (32, 32))
    assert np.array_equal(pixels[12:20], np.asarray(image.resize((32, 8), Image.Resampling.BICUBIC)))
    assert (pixels[:12] == PADDING).all()
    assert (pixels[20:] == PADDING).all()
    tall = image.transpose(Image.Transpose.ROTATE_90)
    turned = render(tall, center_view(tall.size, (32, 32), "pad"), (32, 32))
    assert np.array_equal(turned, np.rot90(pixels))


def test_a_square_image_needs_no_padding() -> None:
    image = noise((75, 75))
    for resized, padded in zip(*(ten_crops(image.size, (32, 32), geometry=g) for g in ("resize", "pad")), strict=True):
        assert np.array_equal(render(image, padded, (32, 32)), render(image, resized, (32, 32)))


@pytest.mark.parametrize("geometry", ["resize", "pad"])
@pytest.mark.parametrize("size", [(16, 320), (320, 16), (16, 16), (1, 20), (20, 1)])
def test_whole_images_of_any_length_can_be_rendered(size: tuple[int, int], geometry: Geometry) -> None:
    white = Image.new("RGB", size, "white")
    batch = render_batch(white, views_for(50, size, (8, 8), geometry), (8, 8))
    assert batch.shape == (50, 8, 8, 3)
    assert (batch.max(axis=(1, 2, 3)) == 255).all(), "some of the image is in every view"
    assert geometry == "pad" or batch.min() == 255


def test_only_rgb_is_rendered() -> None:
    with pytest.raises(ValueError, match="got mode L"):
        render(noise((40, 40)).convert("L"), View((0, 0, 32, 32)), (32, 32))


def test_a_box_that_reaches_out_of_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"[Bb]ox"):
        render(noise((40, 40)), View((0, 0, 41, 41)), (32, 32))
