"""Tiny data sets in the real layouts, made by code: images of mixed size (40 to 96 pixels) with defects and masks.

Each function fills `root` and returns it. The same arguments give the same bytes.
"""

from __future__ import annotations

import importlib.util
import sys
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import tifffile
from PIL import Image

DEFECTS = ("scratch", "spot")


def make_image(seed: int, defect: str = "good", size: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 texture with a defect, and its (H, W) bool mask."""
    rng = np.random.default_rng(seed)
    height, width = size or (int(rng.integers(40, 97)), int(rng.integers(40, 97)))
    y, x = np.mgrid[:height, :width]
    phase = rng.uniform(0, 2 * np.pi)
    base = 120 + 35 * np.sin(x / 4 + phase) + 20 * np.cos(y / 6) + rng.normal(0, 6, (height, width))
    image = np.stack([base, 0.9 * base + 10, 0.8 * base + 20], axis=2)
    mask = np.zeros((height, width), bool)
    if defect == "scratch":
        mask |= (np.abs(y - x * height / width) < 2) & (x > width // 4) & (x < 3 * width // 4)
    elif defect != "good":
        mask |= (y - height // 2) ** 2 + (x - width // 2) ** 2 < (min(height, width) // 6) ** 2
    image[mask] = 250 if defect == "scratch" else 10
    return image.clip(0, 255).astype(np.uint8), mask


def write(path: Path, array: np.ndarray) -> Path:
    """Write an image, making its folders; JPEG at quality 95."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    Image.fromarray(array).save(path, **options)
    return path


def write_images(
    folder: Path,
    count: int,
    defect: str = "good",
    ending: str = ".png",
    masks: Path | None = None,
    suffix: str = "_mask",
    split: str = "test",
) -> None:
    """Write `count` images 000, 001, ... into `folder`; masks (0 or 255) into `masks` if given."""
    seed = zlib.crc32(f"{split}/{defect}".encode()) % 2**20
    for i in range(count):
        image, mask = make_image(seed + i, defect)
        write(folder / f"{i:03d}{ending}", image)
        if masks is not None:
            write(masks / f"{i:03d}{suffix}.png", mask.astype(np.uint8) * 255)


def make_mvtec(root: Path, train: int = 8, good: int = 3, defective: int = 3) -> Path:
    """One product in the MVTec AD layout: `root`/{train,test,ground_truth}."""
    write_images(root / "train" / "good", train, split="train")
    write_images(root / "test" / "good", good)
    for defect in DEFECTS:
        write_images(root / "test" / defect, defective, defect, masks=root / "ground_truth" / defect)
    return root


def make_mvtec3d(
    root: Path, train: int = 6, validation: int = 3, good: int = 2, defective: int = 2, category: str = "bagel"
) -> Path:
    """One product in the MVTec 3D-AD layout, below `root`/`category`."""
    for split, kind, count in (
        ("train", "good", train),
        ("validation", "good", validation),
        ("test", "good", good),
        *(("test", defect, defective) for defect in DEFECTS),
    ):
        folder = root / category / split / kind
        masks = folder / "gt" if split == "test" else None
        write_images(folder / "rgb", count, kind, masks=masks, suffix="", split=split)
        (folder / "xyz").mkdir()
        for i in range(count):
            (folder / "xyz" / f"{i:03d}.tiff").write_bytes(b"a point cloud, never read")
    return root


def make_visa(root: Path, train: int = 6, good: int = 2, defective: int = 3, category: str = "candle") -> Path:
    """One product in the VisA layout, below `root`/`category`, and a split file at `root`; masks are label ids."""
    lines = []
    images = Path(category) / "Data" / "Images"
    for i in range(train + good):
        path = images / "Normal" / f"{i:04d}.JPG"
        write(root / path, make_image(i)[0])
        lines.append(f"{category},{'train' if i < train else 'test'},normal,{path.as_posix()},")
    for i in range(defective):
        defect = DEFECTS[i % len(DEFECTS)]
        path, mask_path = (
            images / "Anomaly" / f"{i:03d}.JPG",
            Path(category, "Data", "Masks", "Anomaly", f"{i:03d}.png"),
        )
        image, mask = make_image(1000 + i, defect)
        write(root / path, image)
        write(root / mask_path, mask.astype(np.uint8) * np.uint8(1 + i % 4))
        lines.append(f"{category},test,anomaly,{path.as_posix()},{mask_path.as_posix()}")
    table = root / "split_csv" / "1cls.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    header = "object,split,label,image,mask\n"
    table.write_text((table.read_text() if table.exists() else header) + "\n".join(lines) + "\n")
    notes = [f'"{line.split(",")[3]}",{line.split(",")[2]},{line.split(",")[4]}' for line in lines]
    (root / category / "image_anno.csv").write_text("image,label,mask\n" + "\n".join(notes) + "\n")
    return root


def make_folder(root: Path, good: int = 8, defective: int = 3, masks: bool = False, ending: str = ".jpg") -> Path:
    """A plain folder: `root`/good and one folder a defect; masks, if any, in `root`/masks/<type>."""
    write_images(root / "good", good, ending=ending, split="train")
    for defect in DEFECTS if defective else ():
        write_images(root / defect, defective, defect, ending, root / "masks" / defect if masks else None)
    return root


def load_script(name: str) -> ModuleType:
    """A script of the folder `benchmarks` as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def make_scene(
    seed: int, defect: str = "good", side: int = 96, anyhow: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A part on a tilted table, seen by a 3D camera: (side, side, 3) uint8, its points in metres, and a mask.

    The part is a dome; with `anyhow` a long one with ridges, which lies at any angle, and dents are shallow. A `dent`
    shows in the points alone, a `stain` in the colours alone. No point is missing.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side].astype(float)
    centre = side / 2 + rng.normal(0, 0.5, 2)
    radius = np.hypot(y - centre[0], x - centre[1]) / side
    angle = rng.uniform(0, 2 * np.pi) if anyhow else 0.0
    along = ((x - centre[1]) * np.cos(angle) + (y - centre[0]) * np.sin(angle)) / side
    if anyhow:
        radius = np.maximum(0.8 * np.abs(along), 1.5 * np.sqrt(np.maximum(radius**2 - along**2, 0)))
    body = np.clip((0.35 - radius) * (40 if anyhow else 10), 0, 1)
    ridges = 0.015 * np.cos(40 * along) if anyhow else 0.0
    height = side * body * (0.15 + ridges) + rng.normal(0, 0.05, (side, side))
    colour = np.where(radius < 0.3, 150.0, 60.0) + 12 * np.sin(x / 5) + rng.normal(0, 4, (side, side))
    place = side / 2 + rng.uniform(-0.12, 0.12, 2) * side
    spot = np.hypot(y - place[0], x - place[1]) / side
    mask = (spot < 0.06) & (defect != "good")
    if defect == "dent":
        height -= (0.015 if anyhow else 0.04) * side * np.clip(1.5 - spot / 0.06, 0, 1)
    if defect == "stain":
        colour[mask] -= 70
    image = np.stack([colour, 0.9 * colour, 0.8 * colour], axis=2).clip(0, 255).astype(np.uint8)
    tilt = rng.normal(0, 0.1, 2)
    points = np.stack([x - side / 2, y - side / 2, -height], axis=2) @ _turn(*tilt).T
    return image, ((points + np.array([0, 0, 5 * side])) * 0.0005).astype(np.float32), mask


def _turn(first: float, second: float) -> np.ndarray:
    a, b = (np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) for t in (first, second))
    around_x, around_y = np.eye(3), np.eye(3)
    around_x[1:, 1:] = a
    around_y[np.ix_([0, 2], [0, 2])] = b
    return around_x @ around_y


def make_depth(
    root: Path, train: int = 24, good: int = 6, defective: int = 6, category: str = "dome", anyhow: bool = False
) -> Path:
    """One product in the MVTec 3D-AD layout with real point clouds, below `root`/`category`; see `make_scene`."""
    for split, kind, count, first in (
        ("train", "good", train, 0),
        ("test", "good", good, 1000),
        ("test", "dent", defective, 2000),
        ("test", "stain", defective, 3000),
    ):
        folder = root / category / split / kind
        for i in range(count):
            image, points, mask = make_scene(first + i, kind, anyhow=anyhow)
            write(folder / "rgb" / f"{i:03d}.png", image)
            write_points(folder / "xyz" / f"{i:03d}.tiff", points)
            if split == "test":
                write(folder / "gt" / f"{i:03d}.png", mask.astype(np.uint8) * 255)
    return root


def write_points(path: Path, points: np.ndarray) -> Path:
    """Write an xyz TIFF, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, points, photometric="rgb")
    return path
