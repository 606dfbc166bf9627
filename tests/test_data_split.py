"""The split: how many, which, and that nothing but the seed and the names decides."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from cdo_ad.data import fingerprint, hold_out, read_dataset
from cdo_ad.errors import ConfigError, DataError
from cdo_ad.types import Sample
from fakes import make_mvtec, make_mvtec3d, make_picture, write


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
    """These pictures, on every machine and with every numpy: a changed draw would change calibrated thresholds."""
    names = [sample.path.stem for sample in hold_out(good(12), share=0.25, minimum=0, seed=3)[1]]
    assert names == ["0000", "0004", "0009"]


def test_only_names_and_seed_decide() -> None:
    samples = good(100)
    expected = [sample.path.name for sample in hold_out(samples)[1]]
    shuffled = random.Random(1).sample(samples, 100)
    assert [sample.path.name for sample in hold_out(shuffled)[1]] == expected
    assert [sample.path.name for sample in hold_out(good(100, "/another/place"))[1]] == expected
    assert [sample.path.name for sample in hold_out(samples, seed=1)[1]] != expected


def test_own_calibration_pictures_are_taken(tmp_path: Path) -> None:
    samples = read_dataset(make_mvtec3d(tmp_path))
    fit, calibration = hold_out(samples)
    assert (len(fit), len(calibration)) == (6, 3)
    assert all("validation" in sample.path.parts for sample in calibration)


def test_test_pictures_never_enter(tmp_path: Path) -> None:
    fit, calibration = hold_out(read_dataset(make_mvtec(tmp_path)))
    assert all("train" in sample.path.parts for sample in fit + calibration)


@pytest.mark.parametrize("samples", [[], good(1), [Sample(Path("a.png"), "test")] * 5])
def test_too_few(samples: list[Sample]) -> None:
    with pytest.raises(DataError, match=r"at least 2 are needed.*add good pictures"):
        hold_out(samples)


@pytest.mark.parametrize("options", [{"share": 1.0}, {"share": -0.1}, {"minimum": -1}, {"seed": -1}])
def test_arguments_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="share must lie"):
        hold_out(good(10), **options)  # type: ignore[arg-type]


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
    write(copy[0].path, make_picture(99)[0])
    assert fingerprint(copy, tmp_path / "b") not in (first, changed_mask)
    copy[0].path.unlink()
    with pytest.raises(DataError, match=r"000.png: cannot be read"):
        fingerprint(copy, tmp_path / "b")
