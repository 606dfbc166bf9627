"""The surface beside an image: the organised point cloud of a 3D camera (xyz TIFF) as heights above its background.

- A cloud is (H, W, 3) float, one point (x, y, z) for each pixel. A point that the camera did not see is (0, 0, 0) or
  not a number. z grows away from the camera.
- The background is the plane through the points near the image's border, fitted so that a part which reaches the border
  does not move it. Heights are distances from it towards the camera, so a tilted camera makes no difference.
- Heights are in pixels of the size that is asked for: the file's unit, metres or millimetres, makes no difference, and
  a slope of 1 is 45 degrees.
- Missing points never mix with others. Where too few points remain, heights are continued from those around.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cdo_ad.data import headers, tiff
from cdo_ad.data.files import read_bytes
from cdo_ad.errors import ImageError
from cdo_ad.types import Float32Array

__all__ = ["CHANNELS", "find_xyz", "read_points", "read_surface", "require_xyz", "to_surface"]

CHANNELS = 2
"""Of a surface: height and presence."""
FOLDER, ENDINGS = "xyz", (".tiff", ".tif")
BORDER = 1 / 16
"""Width of the border that shows the background, as a share of each side."""
LEAST_POINTS = 50
"""With fewer points near the border the plane is that of all points, and with fewer than that there is none."""
MOST_POINTS, TRIALS = 2000, 300
"""Points that the plane is looked for among, and planes through three of them that are tried."""
MOST_NEIGHBOURS = 20_000
"""Pairs of neighbours whose distances are measured."""
LEAST_SHARE = 0.25
"""Of a pixel of the result that present points must cover, or else it counts as missing."""

FloatArray = npt.NDArray[np.float64]


def find_xyz(image: Path) -> Path | None:
    """The point cloud of an image in the layout of MVTec 3D-AD: `xyz/000.tiff` beside `rgb/000.png`; None without."""
    if image.parent.name.casefold() != "rgb":
        return None
    folder = image.parent.parent / FOLDER
    return next((file for end in ENDINGS if (file := folder / f"{image.stem}{end}").is_file()), None)


def require_xyz(image: Path) -> Path:
    """As `find_xyz`; raises ImageError, which names the image and the file that is missing, where there is none."""
    found = find_xyz(image)
    if found is None:
        wanted = image.parent.parent / FOLDER / f"{image.stem}{ENDINGS[0]}"
        where = f"put it at {wanted}" if image.parent.name.casefold() == "rgb" else "the image lies in no folder rgb"
        raise ImageError(
            f"{image}: its point cloud is missing, and this run looks at depth too: {where}, or name the file with "
            "--depth"
        )
    return found


def read_surface(image: Path | str, size: tuple[int, int], xyz: Path | str | None = None) -> Float32Array:
    """The surface of an image, from its point cloud.

    Args:
        image: the image's file.
        size: (h, w) of the result, in pixels.
        xyz: the point cloud's file; None for the one that `find_xyz` finds.

    Returns:
        (2, h, w) float32, see `to_surface`.

    Raises:
        ImageError: there is no point cloud, or it cannot be read; names the file.
    """
    found = require_xyz(Path(image)) if xyz is None else Path(xyz)
    return to_surface(read_points(found), size, str(found))


def read_points(path: Path | str) -> Float32Array:
    """Read the points of an xyz TIFF.

    Args:
        path: a TIFF of one page with three floating-point channels.

    Returns:
        (H, W, 3) float32 in the file's unit, missing points as stored.

    Raises:
        ImageError: as `cdo_ad.data.decode.read_image`, or for samples of another kind.
    """
    return tiff.decode_points(read_bytes(path), str(path), headers.MAX_PIXELS)


def to_surface(points: npt.NDArray[np.floating], size: tuple[int, int], name: str = "the points") -> Float32Array:
    """Heights above the background, resized.

    Args:
        points: (H, W, 3) x, y and z, in any unit; missing ones are (0, 0, 0), infinite or not numbers.
        size: (h, w) of the result, in pixels.
        name: what error messages call the points.

    Returns:
        (2, h, w) float32: the height in pixels of the result, at most the longer side up or down, continued where
        points are missing; and 1 where points are present, 0 where they are missing.

    Raises:
        ImageError: an array of another shape, or with too few points for a plane.
    """
    if points.ndim != 3 or points.shape[2] != 3:
        raise ImageError(f"{name}: points must be (H, W, 3), got {points.shape}: give x, y and z of each pixel")
    exact = points.astype(np.float64)
    present = np.isfinite(exact).all(axis=2) & (exact != 0).any(axis=2)
    exact[~present] = 0
    centre, normal = _background(exact, present, name)
    heights = (exact - centre) @ normal
    step = _step(exact - heights[..., None] * normal, present, size, name)
    bound = max(size)
    heights = np.where(present, np.clip(heights / step, -bound, bound), 0)
    weight = _resized(present, size)
    mean = _resized(heights, size) / np.maximum(weight, 1e-6)
    there = weight >= LEAST_SHARE
    if not there.any():
        raise _too_few(int(present.sum()), name)
    return np.stack([_continued(mean, there), there]).astype(np.float32)


def _background(points: FloatArray, present: npt.NDArray[np.bool_], name: str) -> tuple[FloatArray, FloatArray]:
    """A point of the background plane and its unit normal, which points towards the camera."""
    rows, columns = (max(2, round(BORDER * side)) for side in present.shape)
    border = present.copy()
    border[rows:-rows, columns:-columns] = False
    chosen = points[border if border.sum() >= LEAST_POINTS else present]
    if len(chosen) < LEAST_POINTS:
        raise _too_few(len(chosen), name)
    chosen = chosen[:: -(-len(chosen) // MOST_POINTS)]
    # least median of squares (Rousseeuw 1984): holds while more than half of the points are of the background
    draw = (np.random.PCG64(0).random_raw(3 * TRIALS) % np.uint64(len(chosen))).reshape(TRIALS, 3).astype(np.int64)
    first, second, third = chosen[draw].transpose(1, 0, 2)
    normals = np.cross(second - first, third - first)
    lengths = np.linalg.norm(normals, axis=1)
    sound = lengths > 1e-6 * float(np.ptp(chosen, axis=0).max()) ** 2
    if not sound.any():
        raise ImageError(f"{name}: its points lie on one line, so there is no plane to measure heights from")
    normals, first = normals[sound] / lengths[sound, None], first[sound]
    away = np.median(np.abs(normals @ chosen.T - (normals * first).sum(axis=1)[:, None]), axis=1)
    best = int(away.argmin())
    centre, normal, scatter = first[best], normals[best], float(away[best])
    for _ in range(3):  # least squares of the points that fit it
        distances = np.abs((chosen - centre) @ normal)
        near = chosen[distances <= max(3 * 1.4826 * scatter, float(np.median(distances)))]
        centre = near.mean(axis=0)
        normal = np.linalg.svd(near - centre, full_matrices=False)[2][2]
        scatter = float(np.median(np.abs((chosen - centre) @ normal)))
    return centre, normal if normal[2] < 0 else -normal


def _step(flat: FloatArray, present: npt.NDArray[np.bool_], size: tuple[int, int], name: str) -> float:
    """The side of a pixel of the result, in the points' unit: from points on the plane to their neighbours."""
    sides = []
    for axis, wanted in enumerate(size):
        both = np.delete(present, 0, axis) & np.delete(present, -1, axis)
        lengths = np.linalg.norm(np.diff(flat, axis=axis)[both][:: max(1, both.sum() // MOST_NEIGHBOURS)], axis=1)
        sides.append(float(np.median(lengths)) * present.shape[axis] / wanted if len(lengths) else 0.0)
    step = float(np.sqrt(sides[0] * sides[1]))
    if not step > 0:
        raise ImageError(f"{name}: its points have no neighbours, so their distances are not known")
    return step


def _resized(values: npt.NDArray[np.generic], size: tuple[int, int]) -> FloatArray:
    """(H, W) to (h, w), bilinear with antialiasing."""
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR)).astype(np.float64)


def _continued(heights: FloatArray, there: npt.NDArray[np.bool_]) -> FloatArray:
    """Heights continued smoothly to where there are none: from means over ever larger squares."""
    if there.all():
        return heights
    height, width = there.shape
    padded = np.pad(np.stack([np.where(there, heights, 0), there]), ((0, 0), (0, height % 2), (0, width % 2)))
    sums = padded.reshape(2, padded.shape[1] // 2, 2, padded.shape[2] // 2, 2).sum(axis=(2, 4))
    coarse = _continued(sums[0] / np.maximum(sums[1], 1), sums[1] > 0)
    wide = _resized(coarse, (padded.shape[1], padded.shape[2]))[:height, :width]
    return np.where(there, heights, wide)


def _too_few(count: int, name: str) -> ImageError:
    return ImageError(f"{name}: holds {count} points only, too few for the plane of its background: take it again")
