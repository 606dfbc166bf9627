"""The split: how many, which, and that nothing but the seed and the names decides."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from cdo_ad.data.near_copies import hash_images, near_groups
from PIL import Image

from cdo_ad.data import fingerprint, hold_out, read_dataset, split_by_part, split_good
from cdo_ad.errors import ConfigError, DataError, ImageError
from cdo_ad.types import Sample
from fakes import make_image, make_mvtec, make_mvtec3d, write


def good(n: int, root: str = "/data") -> list[Sample]:
    return [Sample(Path(root, f"{i:04d}.png"), "train") for i in range(n)]


@pytest.mark.parametrize(("n", "expected"), [
    (2, 1), (3, 1), (10, 5), (39, 19), (40, 20), (100, 20), (200, 20), (209, 21), (420, 42), (1000, 100),
])  # fmt: skip
def test_how_many(n: int, expected: int) -> None:
    fit, calibration = hold_out(good(n))
    assert (len(fit), len(calibration)) == (n - expected, expected)
    assert sorted(fit + calibration, key=lambda s: s.path) == good(n)


@pytest.mark.parametrize(("share", "minimum", "expected"), [(0.5, 0, 5), (0.0, 0, 0), (0.99, 0, 9), (0.0, 3, 3)])
def test_share_and_minimum(share: float, minimum: int, expected: int) -> None:
    assert len(hold_out(good(10), share, minimum)[1]) == expected


def test_the_draw_is_frozen() -> None:
    """These images, on every machine and with every numpy: a changed draw would change calibrated thresholds."""
    names = [sample.path.stem for sample in hold_out(good(12), share=0.25, minimum=0, seed=3)[1]]
    assert names == ["0000", "0004", "0009"]


def test_only_names_and_seed_decide() -> None:
    samples = good(100)
    expected = [sample.path.name for sample in hold_out(samples)[1]]
    shuffled = random.Random(1).sample(samples, 100)
    assert [sample.path.name for sample in hold_out(shuffled)[1]] == expected
    assert [sample.path.name for sample in hold_out(good(100, "/another/place"))[1]] == expected
    assert [sample.path.name for sample in hold_out(samples, seed=1)[1]] != expected


def test_own_calibration_images_are_taken(tmp_path: Path) -> None:
    samples = read_dataset(make_mvtec3d(tmp_path))
    fit, calibration = hold_out(samples)
    assert (len(fit), len(calibration)) == (6, 3)
    assert all("validation" in sample.path.parts for sample in calibration)


def test_test_images_never_enter(tmp_path: Path) -> None:
    fit, calibration = hold_out(read_dataset(make_mvtec(tmp_path)))
    assert all("train" in sample.path.parts for sample in fit + calibration)


@pytest.mark.parametrize("samples", [[], good(1), [Sample(Path("a.png"), "test")] * 5])
def test_too_few(samples: list[Sample]) -> None:
    with pytest.raises(DataError, match=r"at least 2 are needed.*add good images"):
        hold_out(samples)


@pytest.mark.parametrize("options", [{"share": 1.0}, {"share": -0.1}, {"minimum": -1}, {"seed": -1}])
def test_arguments_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="share must lie"):
        hold_out(good(10), **options)  # type: ignore[arg-type]


# ---- near copies stay together


def hashed(sizes: list[int]) -> dict[Path, np.ndarray]:
    """Hashes of images in groups of these sizes: chains of steps of 30 bits; some 128 bits lie between groups."""
    rng = np.random.default_rng(0)
    bits = []
    for size in sizes:
        bits.append(rng.random(256) < 0.5)
        for _ in range(size - 1):
            bits.append(bits[-1] ^ (rng.permutation(256) < 30))
    order = rng.permutation(len(bits))  # members of a group do not follow each other
    return {Path(f"/data/{i:04d}.png"): bits[k] for i, k in enumerate(order.tolist())}


def near_copies(hashes: dict[Path, np.ndarray]) -> list[tuple[Path, Path]]:
    """By a plain double loop: pairs at most 60 bits apart."""
    return [(p, q) for p in hashes for q in hashes if p < q and int((hashes[p] ^ hashes[q]).sum()) <= 60]


@pytest.mark.parametrize("seed", range(5))
def test_near_copies_are_never_on_both_sides(seed: int) -> None:
    hashes = hashed([1] * 60 + [2] * 40 + [5] * 12)  # 200 images
    split = split_good(good(200), seed=seed, hashes=hashes)
    assert split.grouped and len(split.calibration) == 20 and len(split.fit) == 180
    held_out = {s.path for s in split.calibration}
    assert all((p in held_out) == (q in held_out) for p, q in near_copies(hashes))
    assert "140 of 200 images have near copies" in split.note
    apart = {s.path for s in hold_out(good(200), seed=seed)[1]}
    assert any((p in apart) != (q in apart) for p, q in near_copies(hashes))
    again = split_good(random.Random(1).sample(good(200), 200), seed=seed, hashes=hashes)
    assert again.calibration == split.calibration


def test_without_near_copies_the_draw_is_the_old_one() -> None:
    split = split_good(good(100), hashes=hashed([1] * 100))
    assert (split.fit, split.calibration) == hold_out(good(100))
    assert split.grouped


def test_groups_that_do_not_fit_come_on_top() -> None:
    split = split_good(good(98), hashes=hashed([7] * 14))  # 20 wanted, in sevens
    assert split.grouped and len(split.calibration) == 21


@pytest.mark.parametrize(("sizes", "why"), [
    ([60] + [1] * 40, "60 of 100 images are near copies"),
    ([45, 45] + [1] * 10, "too large to be held out whole"),
])  # fmt: skip
def test_where_groups_cannot_be_held_out_images_are_drawn_and_it_is_said(sizes: list[int], why: str) -> None:
    split = split_good(good(100), hashes=hashed(sizes))
    assert not split.grouped and why in split.note and "more false alarms on new parts" in split.note
    assert (split.fit, split.calibration) == hold_out(good(100))


def test_images_that_are_all_alike_are_drawn_one_by_one() -> None:
    rng = np.random.default_rng(0)
    split = split_good(good(50), hashes={s.path: rng.random(256) < 0.015 for s in good(50)})
    assert not split.grouped and "so alike that near copies cannot be told" in split.note
    assert (split.fit, split.calibration) == hold_out(good(50))


def test_own_calibration_images_need_no_groups(tmp_path: Path) -> None:
    split = split_good(read_dataset(make_mvtec3d(tmp_path)), hashes={})
    assert len(split.calibration) == 3 and not split.grouped and "own calibration" in split.note


def test_groups_are_joined_through_others_and_across_blocks() -> None:
    pytest.importorskip("scipy", reason="the extra `train` is not installed")
    rng = np.random.default_rng(2)
    hashes = rng.random((2500, 256)) < 0.5
    hashes[2400] = hashes[3] ^ (np.arange(256) < 40)
    hashes[1200] = hashes[2400] ^ (np.arange(256) >= 216)  # 40 bits from 2400, 80 from 3
    groups = near_groups(hashes, 60)
    assert groups[3] == groups[2400] == groups[1200]
    assert len(set(groups.tolist())) == 2498
    assert groups[:5].tolist() == [0, 1, 2, 3, 4]


def test_images_of_one_part_are_hashed_alike(tmp_path: Path) -> None:
    pytest.importorskip("imagehash", reason="the extra `train` is not installed")
    one, other = make_image(1, size=(90, 90))[0], make_image(2, size=(90, 90))[0]
    paths = [write(tmp_path / "a.png", one), write(tmp_path / "b.png", one // 2), write(tmp_path / "c.png", other)]
    hashes = hash_images(paths)
    assert list(hashes) == paths
    near, far = ((hashes[paths[0]] ^ hashes[p]).sum() for p in paths[1:])
    assert near < 40 < far


def test_images_are_hashed_where_a_draw_needs_them(tmp_path: Path) -> None:
    pytest.importorskip("imagehash", reason="the extra `train` is not installed")
    rng = np.random.default_rng(5)
    for i in range(30):  # 30 parts, each under three exposures
        coarse = Image.fromarray(rng.integers(60, 200, (9, 9), dtype=np.uint8))
        part = np.asarray(coarse.resize((96, 96), Image.Resampling.BICUBIC)).astype(float)
        for k, gain in enumerate((1.0, 0.7, 0.5)):
            write(tmp_path / "a" / "train" / "good" / f"{k}_{i:02d}.png", (part * gain).astype(np.uint8))
    samples = read_dataset(tmp_path / "a")
    done: list[int] = []
    split = split_by_part(samples, seed=4, advance=lambda: done.append(1))
    assert split.grouped and len(done) == 90 and split.limit is not None
    parts = [{s.path.stem[2:] for s in side} for side in (split.fit, split.calibration)]
    assert not parts[0] & parts[1] and 20 <= len(split.calibration) <= 23
    apart = [{s.path.stem[2:] for s in side} for side in hold_out(samples, seed=4)]
    assert apart[0] & apart[1]
    broken = samples[0].path
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(ImageError, match=broken.name):
        split_by_part(samples)
    own = make_mvtec3d(tmp_path / "b")
    next((own / "bagel" / "train").rglob("*.png")).write_bytes(b"never read")
    assert len(split_by_part(read_dataset(own)).calibration) == 3


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
    with pytest.raises(DataError, match=r"000.png: cannot be read"):
        fingerprint(copy, tmp_path / "b")
