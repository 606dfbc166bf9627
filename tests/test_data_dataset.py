"""The store of training images: kept or read each time, the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from cdo_ad.data import list_images, read_image
from cdo_ad.data.store import ImageStore, load_image
from cdo_ad.errors import ConfigError, DataError, ImageError
from fakes import make_folder, make_image, write

SIZE = (48, 32)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return list_images(make_folder(tmp_path, good=9, defective=0) / "good")


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_kept_and_read_images_are_the_same_bytes(paths: list[Path], workers: int) -> None:
    kept = ImageStore(paths, SIZE, workers=workers)
    read = ImageStore(paths, SIZE, memory_budget=0, workers=workers)
    assert kept.cached and kept.images is not None and not read.cached and read.images is None
    assert len(kept) == len(read) == 9
    for i, path in enumerate(paths):
        assert kept[i].dtype == torch.float32 and kept[i].shape == (3, *SIZE)
        assert torch.equal(kept[i], read[i]) and torch.equal(kept[i], load_image(path, SIZE))


def test_the_budget_counts_the_kept_bytes(paths: list[Path]) -> None:
    needed = 9 * 3 * 4 * SIZE[0] * SIZE[1]
    assert ImageStore(paths, SIZE, memory_budget=needed).cached
    assert not ImageStore(paths, SIZE, memory_budget=needed - 1).cached


def test_images_are_resized_with_antialiasing_and_not_rounded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", make_image(0, size=(90, 70))[0])
    image = torch.from_numpy(read_image(path)).permute(2, 0, 1)[None].double()
    expected = F.interpolate(image, size=SIZE, mode="bilinear", antialias=True, align_corners=False)
    assert (load_image(path, SIZE)[None] - expected).abs().max() <= 1e-3
    same_size = load_image(path, (90, 70))
    np.testing.assert_array_equal(same_size.permute(1, 2, 0).numpy(), read_image(path))


@pytest.mark.slow
def test_loader_workers_read_the_same(paths: list[Path]) -> None:
    read = ImageStore(paths, SIZE, memory_budget=0)
    plain = torch.cat(list(DataLoader(read, batch_size=4)))
    loader = DataLoader(read, batch_size=4, num_workers=2, multiprocessing_context="spawn")
    assert torch.equal(plain, torch.cat(list(loader)))


def test_some_of_a_store_are_those_images(paths: list[Path]) -> None:
    for store in (ImageStore(paths, SIZE), ImageStore(paths, SIZE, memory_budget=0)):
        some = store.some([7, 2])
        assert len(some) == 2 and some.cached == store.cached
        assert [some.paths[number] for number in some.source] == [paths[7], paths[2]]
        assert torch.equal(some[0], store[7]) and torch.equal(some[1], store[2]) and len(store) == 9


@pytest.mark.parametrize("budget", [2**20, 0], ids=["kept", "read"])
@pytest.mark.parametrize("workers", [0, 2])
def test_all_bad_images_are_named_at_once(paths: list[Path], budget: int, workers: int) -> None:
    for path in (paths[1], paths[7]):
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageError, match=r"2 of 9 images cannot be used: .*001.jpg, .*007.jpg; .*truncated") as caught:
        ImageStore(paths, SIZE, memory_budget=budget, workers=workers)
    assert "more" not in str(caught.value)


def test_one_bad_image_and_many(paths: list[Path]) -> None:
    paths[3].write_bytes(paths[3].read_bytes()[:-200])
    with pytest.raises(ImageError, match=r"003.jpg: the image is truncated"):
        ImageStore(paths, SIZE)
    missing = [path.with_name(f"x{i}.png") for i, path in enumerate(paths * 2)]
    with pytest.raises(ImageError, match=r"18 of 18 .*x9.png and 8 more; .*x0.png: there is no such file"):
        ImageStore(missing, SIZE)


def test_without_verifying_a_bad_image_shows_when_it_is_read(paths: list[Path]) -> None:
    paths[3].write_bytes(b"nothing")
    store = ImageStore(paths, SIZE, memory_budget=0, verify=False)
    assert store[2].shape == (3, *SIZE)
    with pytest.raises(ImageError, match=r"003.jpg"):
        store[3]


def test_loading_gives_back_the_threads_of_torch(paths: list[Path]) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    ImageStore(paths, SIZE, progress=lambda done, total: seen.append(torch.get_num_threads()))
    paths[0].write_bytes(b"nothing")
    with pytest.raises(ImageError):
        ImageStore(paths, SIZE)
    assert set(seen) == {1} and torch.get_num_threads() == before


def test_progress(paths: list[Path]) -> None:
    seen: list[tuple[int, int]] = []
    ImageStore(paths, SIZE, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 9) for i in range(1, 10)]


@pytest.mark.parametrize(("size", "workers"), [((0, 32), 0), ((48, -1), 0), ((48,), 0), (SIZE, -1)])
def test_arguments_out_of_range(paths: list[Path], size: tuple[int, int], workers: int) -> None:
    with pytest.raises(ConfigError, match="size must be"):
        ImageStore(paths, size, workers=workers)


def test_no_images() -> None:
    with pytest.raises(DataError, match="no images"):
        ImageStore([], SIZE)
