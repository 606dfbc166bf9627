"""Near copies are found, parts that look alike are told apart, and no set is chained into a few groups."""

import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cdo_ad.data.copies import Grouping
from cdo_ad.data.copies import group_copies as group_files
from cdo_ad.data.copies import groups as module
from cdo_ad.data.copies.groups import largest_group
from cdo_ad.errors import ImageError

SIDE = 160


def group_copies(images, advance=lambda: None):
    """Of arrays, which are written to files first."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [image if isinstance(image, Path) else Path(folder) / f"{i:04d}.png" for i, image in enumerate(images)]
        for path, image in zip(paths, images, strict=True):
            if not isinstance(image, Path):
                Image.fromarray(image).save(path)
        return group_files(paths, advance)


def texture(seed, side=SIDE):
    r = np.random.default_rng(seed)
    grain = ndimage.gaussian_filter(r.standard_normal((side, side)), 1.5)
    return (128 + 400 * grain / grain.std() / 12).clip(0, 255).astype(np.uint8)


def part(seed, turned=True, side=SIDE):
    """A bar with a head and notches on a plain ground, the same for all but for its grain and marks."""
    r = np.random.default_rng(seed)
    angle = r.uniform(0, 2 * np.pi) if turned else 0.1
    y, x = np.mgrid[:side, :side] - side / 2
    y, x = y - r.uniform(-4, 4), x - r.uniform(-4, 4)
    u, v = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    bar = (np.abs(u) < 55) & (np.abs(v) < 11 + 3 * np.cos(u / 2.2))
    head = (np.abs(u + 55) < 8) & (np.abs(v) < 24)
    grain = ndimage.gaussian_filter(r.standard_normal((side, side)), 1.0)
    image = np.where(
        bar | head, 110 + 25 * np.cos(v / 5) + 30 * grain / grain.std(), 200 + 2 * r.standard_normal(x.shape)
    )
    for _ in range(5):
        image -= 60 * np.exp(-((u - r.uniform(-50, 50)) ** 2 + (v - r.uniform(-8, 8)) ** 2) / 8) * bar
    return ndimage.gaussian_filter(image, 0.7).clip(0, 255).astype(np.uint8)


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(io.BytesIO(file.getvalue())))


def gained(image, gain):
    return (image * float(gain)).clip(0, 255).astype(np.uint8)


def rotated(image, degrees):
    fill = int(np.median(image))
    return np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BICUBIC, fillcolor=fill))


def cropped(image):
    side = len(image)
    cut = Image.fromarray(image[2 : side - 1, 1 : side - 2])
    return np.asarray(cut.resize((side, side), Image.Resampling.BICUBIC))


COPIES = {
    "darker": lambda a: gained(a, 0.6),
    "brighter": lambda a: gained(a, 1.2),
    "jpeg": lambda a: jpeg(a, 60),
    "shifted": lambda a: np.roll(a, (3, -2), (0, 1)),
    "a little rotated": lambda a: rotated(a, 1.7),
    "turned": np.rot90,
    "upside down": lambda a: np.rot90(a, 2),
    "mirrored": lambda a: a[:, ::-1],
    "at another angle": lambda a: rotated(a, 40),
    "cropped": cropped,
    "all": lambda a: jpeg(gained(rotated(np.roll(a, 2, 0), -1.0), 0.8), 75),
}


@pytest.mark.parametrize("draw", [texture, part], ids=["texture", "part"])
@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_in_the_group_of_its_original(draw, kind):
    images = [draw(k) for k in range(16)]
    found = group_copies([*images, np.ascontiguousarray(COPIES[kind](images[5]))])
    assert found.groups[16] == found.groups[5]
    assert found.sizes.max() <= 3


@pytest.mark.parametrize("turned", [True, False], ids=["at any rotation", "lying alike"])
def test_parts_that_look_alike_are_no_copies(turned):
    found = group_copies([part(k, turned) for k in range(40)])
    assert len(found.sizes) >= 38
    assert found.sizes.max() <= 2


def test_textures_of_one_kind_are_no_copies():
    found = group_copies([texture(k) for k in range(40)])
    assert found.sizes.max() == 1
    assert found.sentence == "no near copies among 40 images"


def test_exposures_of_each_part_form_its_group():
    images = [gained(part(k, turned=False), gain) for k in range(12) for gain in (0.5, 0.7, 1.0, 1.15)]
    found = group_copies(images)
    assert found.groups.tolist() == np.repeat(np.arange(12), 4).tolist()
    assert (
        "48 of 48 images have near copies (the same part again); they form 12 groups, the largest of 4"
        in found.sentence
    )


def test_a_fixed_background_makes_no_copies():
    ground = texture(99).astype(float)
    images = []
    for k in range(24):
        image = ground.copy()
        image[50:110, 50:110] = texture(k)[:60, :60]
        images.append(image.astype(np.uint8))
    assert group_copies(images).sizes.max() == 1


def test_no_group_exceeds_the_cap():
    images = [rotated(part(0), 7 * k) for k in range(20)] + [part(k) for k in range(1, 21)]
    assert group_copies(images).sizes.max() <= largest_group(40) == 8


def test_equal_images_are_copies_even_without_structure():
    flat = np.full((50, 60), 120, np.uint8)
    found = group_copies([flat, texture(1), flat.copy(), np.full((50, 60), 90, np.uint8), texture(2)])
    assert found.groups.tolist() == [0, 1, 0, 2, 3]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_are_groups_of_their_own(count):
    found = group_copies([texture(k) for k in range(count)])
    assert found.groups.tolist() == list(range(count))
    assert "no near copies" in found.sentence


@pytest.mark.parametrize("count", [2, 3, 5, 9, 17])
def test_few_images_work(count):
    images = [texture(k) for k in range(count)]
    assert group_copies(images).groups.tolist() == list(range(count))
    again = group_copies([*images, gained(images[0], 0.8)])
    assert again.groups[count] == again.groups[0]


def test_files_and_arrays_in_gray_colour_and_16_bits_give_the_same(tmp_path):
    images = [texture(k, 120) for k in range(10)] + [np.rot90(texture(3, 120)).copy()]
    paths = []
    for k, image in enumerate(images):
        paths.append(tmp_path / f"{k}.png")
        if k == 2:
            Image.fromarray(image.astype(np.uint16) * 257).save(paths[-1])
        else:
            Image.fromarray(image if k % 2 else np.stack([image] * 3, axis=2)).save(paths[-1])
    colour = [np.stack([image] * 3, axis=2) for image in images]
    expected = [*range(10), 3]
    assert group_copies(paths).groups.tolist() == expected
    assert group_copies(images).groups.tolist() == expected
    assert group_copies(colour).groups.tolist() == expected


def test_sizes_may_differ():
    images = [texture(k, 120 + 3 * (k % 9)) for k in range(20)]
    images += [images[4][2:-3, 1:-4], texture(50, 700)[:40, :700], texture(51, 9)]
    found = group_copies([np.ascontiguousarray(a) for a in images])
    assert found.groups[20] == found.groups[4]
    assert found.sizes.max() == 2


def test_the_result_is_the_same_each_time_and_pairs_are_reported():
    images = [part(k // 2) if k % 2 == 0 else gained(part(k // 2), 0.7) for k in range(30)]
    first, again = group_copies(images), group_copies(images)
    assert first.groups.tolist() == again.groups.tolist()
    assert first.copies == again.copies
    assert {(i, j) for i, j, _ in first.copies} >= {(2 * k, 2 * k + 1) for k in range(15)}
    assert all(0 < value <= 1 for _, _, value in first.copies)


def test_progress_is_told_for_each_image():
    told = []
    group_copies([texture(k) for k in range(5)], lambda: told.append(1))
    assert len(told) == 5


def test_a_file_that_is_no_image_raises(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("no image")
    with pytest.raises(ImageError):
        group_copies([path, path])


def test_nothing_warns_on_flat_and_black_images():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = group_copies([np.full((40, 40), v, np.uint8) for v in (0, 3, 90, 255)] * 3)
    assert sorted(found.sizes) == [3, 3, 3, 3]


def test_joining_needs_witnesses():
    """A chain of pairs is not a group: pairs across must be copies too."""
    chain = [(k, k + 1, 0.9) for k in range(9)]
    asked = {(i, j): v for i, j, v in chain}
    numbers, refused = module.join_pairs(
        10, chain, lambda i, j: asked.get((min(i, j), max(i, j)), 0.0), 10, np.random.default_rng(0)
    )
    assert np.bincount(numbers).max() == 2
    assert refused == 4


def test_copies_that_stay_apart_are_told():
    grouping = Grouping(np.array([0, 0, 1]), ((0, 1, 0.9), (1, 2, 0.8)), refused=1)
    assert grouping.sentence.endswith("some copies could not be kept together")
