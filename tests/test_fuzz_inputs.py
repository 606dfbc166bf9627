"""Hostile inputs: the fuzzer of benchmarks/fuzz_inputs.py on a thousand of them, and what holds for any input."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cdo_ad.data import as_rgb, decode_image, list_folder, read_dataset, read_image, read_mask
from cdo_ad.data import listing as listing_module
from cdo_ad.errors import CdoError, CdoWarning, ImageError
from fakes import load_script, make_mvtec, make_visa

fuzz_inputs = load_script("fuzz_inputs")
SEEDS: dict[str, bytes] = fuzz_inputs.seeds()

calm = settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@contextmanager
def folder() -> Iterator[Path]:
    """A new folder for one example; CdoWarnings are no errors there."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore", CdoWarning)
        yield Path(name)


# ---- the fuzzer


def test_a_thousand_damaged_inputs_end_as_images_or_clear_errors(tmp_path: Path) -> None:
    outcome = fuzz_inputs.fuzz(1000, seed=7, keep=tmp_path)
    assert outcome.broken == []
    endings = {kind.split(": ")[1]: 0 for kind in outcome.counts}
    for kind, count in outcome.counts.items():
        endings[kind.split(": ")[1]] += count
    assert endings["read"] > 100 and endings["refused"] > 300  # both ways are tried


@pytest.mark.parametrize("name", SEEDS)
def test_the_fuzzer_starts_from_files_that_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "seed"
    path.write_bytes(SEEDS[name])
    ending = fuzz_inputs.judge_image(path)
    assert ending == ("refused" if "frames" in name or "pages" in name else "read")


def test_the_fuzzer_finds_what_may_not_happen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_inputs, "image_size", lambda path: (1, 1))
    outcome = fuzz_inputs.fuzz(60, seed=1, keep=tmp_path)
    assert any("another size" in line for line in outcome.broken)
    assert any(tmp_path.iterdir())


# ---- images


@calm
@given(st.sampled_from(sorted(SEEDS)), st.data())
def test_any_change_of_a_few_bytes_is_an_image_or_a_clear_error(name: str, data: st.DataObject) -> None:
    content = bytearray(SEEDS[name])
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)):
        content[at] = value
    with folder() as root:
        (root / "x.png").write_bytes(bytes(content)[: data.draw(st.integers(0, len(content)))])
        fuzz_inputs.judge_image(root / "x.png")


@calm
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_clearly(content: bytes) -> None:
    try:
        decode_image(content, "x.png")
    except ImageError as error:
        assert str(error).startswith("x.png: ") and str(error).isprintable()


@calm
@given(
    hnp.arrays(
        st.one_of(hnp.scalar_dtypes(), st.just(np.dtype(object)), hnp.unicode_string_dtypes(max_len=3)),
        hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
    ),
    st.sampled_from(["auto", 8, 10, 12, 16]),
)
def test_any_array_is_an_image_or_refused(array: np.ndarray, bits: int | str) -> None:
    try:
        result = as_rgb(array, "x", bits=bits)  # type: ignore[arg-type]
    except ImageError as error:
        assert str(error).startswith("x: ") and str(error).isprintable()
    else:
        assert result.shape == (*array.shape[:2], 3) and result.dtype == np.uint8 and result.flags.c_contiguous


@calm
@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)), st.integers(8, 16))
def test_more_bits_keep_the_order_of_brightness(array: np.ndarray, bits: int) -> None:
    values = array >> (16 - bits)
    result = as_rgb(values, bits=bits)[..., 0].ravel().astype(int)
    order = np.argsort(values, axis=None)
    assert (np.diff(result[order]) >= 0).all()
    assert (result == values.ravel().astype(int) * 256 // 2**bits).all()


@calm
@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)), st.sampled_from((1, 7, 64, 255)))
def test_a_mask_survives_whatever_number_marks_the_defect(mask: np.ndarray, value: int) -> None:
    with folder() as root:
        for dtype in (np.uint8, np.uint16):
            Image.fromarray(mask.astype(dtype) * dtype(value)).save(root / "m.png")
            np.testing.assert_array_equal(read_mask(root / "m.png"), mask)


# ---- folders and tables

NAMES = st.one_of(
    st.sampled_from((*fuzz_inputs.WORDS, *fuzz_inputs.FILES)),
    st.text(min_size=1, max_size=12).filter(lambda name: not set(name) & {"/", "\0"} and name not in (".", "..")),
)
CONTENTS = st.sampled_from((SEEDS["png"], SEEDS["jpeg"], SEEDS["png"][:-20], b"", b"no image"))
TREES = st.recursive(
    st.one_of(CONTENTS, st.sampled_from(("link .", "link ..", "link /nothing", "link a.png", "pipe"))),
    lambda inner: st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=12,
)


def plant(path: Path, tree: object) -> None:
    """Make what a drawn tree says; names that the disk refuses are left out."""
    try:
        if isinstance(tree, dict):
            path.mkdir(exist_ok=True)
            for name, inner in tree.items():
                plant(path / name, inner)
        elif tree == "pipe":
            os.mkfifo(path)
        elif isinstance(tree, str):
            path.symlink_to(tree.removeprefix("link "))
        else:
            path.write_bytes(tree)  # type: ignore[arg-type]
    except (OSError, ValueError):
        return


@pytest.mark.timeout(300)
@calm
@given(st.dictionaries(NAMES, TREES, max_size=5))
def test_any_folder_is_read_or_refused_clearly(tree: dict[str, object]) -> None:
    with folder() as root:
        plant(root / "data", tree)
        fuzz_inputs.judge_tree(root / "data")


@calm
@given(st.data())
def test_any_table_is_read_or_refused_clearly(data: st.DataObject) -> None:
    with folder() as root:
        table = make_visa(root, train=2, good=1, defective=1) / "split_csv" / "1cls.csv"
        lines = table.read_text().splitlines()
        cell = st.one_of(st.sampled_from((*lines[0].split(","), "../x", "OK", "train", '"')), st.text(max_size=8))
        row = st.lists(cell, max_size=6).map(",".join)
        lines[data.draw(st.integers(0, len(lines) - 1))] = data.draw(row)
        table.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        fuzz_inputs.judge_tree(root)


@pytest.mark.parametrize("victims", [1, 5])
def test_files_that_vanish_while_a_folder_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victims: int
) -> None:
    """Each look at a file makes others vanish, as on a line where another program clears the folder."""
    root = make_mvtec(tmp_path)
    files = sorted(root.rglob("*.png"))
    real = listing_module.is_own_output

    def look(path: Path) -> bool:
        for _ in range(victims):
            if files:
                files.pop().unlink()
        return real(path)

    monkeypatch.setattr(listing_module, "is_own_output", look)
    images = list_folder(root, recursive=True).images
    gone = [path for path in images if not path.exists()]
    assert gone
    with pytest.raises(ImageError, match="no such file"):
        read_image(gone[0])
    with pytest.raises(CdoError):
        read_dataset(root)
