"""Groups and held-out images: how many, which, and that nothing but the seed and the names decides; fingerprints."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdo_ad.data import read_dataset
from cdo_ad.data.split import by_name, content_digest, fingerprint, group_images, hold_out
from cdo_ad.errors import DataError, ImageError
from cdo_ad.types import Sample
from fakes import make_image, make_mvtec, write


@pytest.mark.parametrize(("n", "expected"), [
    (2, 1), (3, 1), (10, 5), (39, 19), (40, 20), (100, 20), (200, 20), (209, 21), (420, 42), (1000, 100),
])  # fmt: skip
def test_a_tenth_is_held_out_but_twenty_where_there_are_twice_as_many(n: int, expected: int) -> None:
    assert int(hold_out(np.arange(n), 0.1, seed=0).sum()) == expected


def test_never_more_than_half_is_held_out() -> None:
    assert int(hold_out(np.arange(100), 0.9, seed=0).sum()) == 50


def test_the_draw_is_frozen() -> None:
    """These images, on every machine and with every numpy: a changed draw would change calibrated thresholds."""
    assert np.flatnonzero(hold_out(np.arange(50), 0.1, seed=3)).tolist()[:12] == [
        0,
        1,
        4,
        7,
        9,
        10,
        16,
        19,
        20,
        22,
        23,
        28,
    ]
    assert not np.array_equal(hold_out(np.arange(50), 0.1, seed=3), hold_out(np.arange(50), 0.1, seed=4))


@given(st.lists(st.integers(1, 6), min_size=2, max_size=60), st.integers(0, 2**31))
def test_groups_are_held_out_whole(sizes: list[int], seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    groups = groups[np.random.default_rng(seed).permutation(len(groups))]
    aside = hold_out(groups, 0.1, seed)
    assert not set(groups[aside].tolist()) & set(groups[~aside].tolist())
    assert aside.sum() <= len(groups) // 2
    if max(sizes) == 1:
        assert aside.any()


def test_samples_are_ordered_by_their_names_wherever_they_lie() -> None:
    samples = [Sample(Path("/data", folder, f"{i}.png"), "train") for folder in ("b", "a") for i in range(3)]
    shuffled = random.Random(1).sample(samples, len(samples))
    assert [str(s.path) for s in by_name(shuffled)] == [
        "/data/a/0.png", "/data/a/1.png", "/data/a/2.png", "/data/b/0.png", "/data/b/1.png", "/data/b/2.png",
    ]  # fmt: skip
    assert by_name([]) == []


def test_copies_of_a_part_are_one_group_and_each_image_is_told_of(tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="the extra `check` is not installed")
    rng = np.random.default_rng(5)
    paths = []
    for i in range(8):  # eight parts, the last two under two exposures
        part = 60 + 120 * rng.random((96, 96))
        for k, gain in enumerate((1.0, 0.6) if i >= 6 else (1.0,)):
            paths.append(write(tmp_path / f"{i}_{k}.png", (part * gain).astype(np.uint8)))
    done: list[int] = []
    groups, sentence = group_images(paths, advance=lambda: done.append(1))
    assert groups.tolist() == [0, 1, 2, 3, 4, 5, 6, 6, 7, 7] and len(done) == 10
    assert sentence.startswith("4 of 10 images have near copies")
    paths[3].write_bytes(paths[3].read_bytes()[:50])
    with pytest.raises(ImageError, match=r"3_0\.png"):
        group_images(paths)


def test_a_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"one")
    (tmp_path / "c").write_bytes(b"two")
    a, b, c = (content_digest(tmp_path / name) for name in "abc")
    assert a == b != c and a.startswith("3 ")
    with pytest.raises(DataError, match="cannot be read"):
        content_digest(tmp_path / "gone")


def test_fingerprint_follows_the_data_and_not_the_place(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path / "a")
    first = fingerprint(read_dataset(root), root)
    assert len(first) == 64
    shutil.copytree(root, tmp_path / "b")
    copy = read_dataset(tmp_path / "b")
    assert fingerprint(copy[::-1], tmp_path / "b") == first
    assert fingerprint(copy[:-1], tmp_path / "b") != first
    mask = next(sample.mask_path for sample in copy if sample.mask_path is not None)
    mask.write_bytes(mask.read_bytes() + b"\0")
    changed_mask = fingerprint(copy, tmp_path / "b")
    assert changed_mask != first
    write(copy[0].path, make_image(99)[0])
    assert fingerprint(copy, tmp_path / "b") not in (first, changed_mask)
    copy[0].path.unlink()
    with pytest.raises(DataError, match=r"000\.png: cannot be read"):
        fingerprint(copy, tmp_path / "b")
