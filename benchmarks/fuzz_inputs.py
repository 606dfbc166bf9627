"""Feed damaged and hostile inputs to the decoder, the masks, the readers and the listing.

    python benchmarks/fuzz_inputs.py --inputs 100000

Each input must end as an image that is used rightly, or as a `CdoError` of one printable line that names the file.
Nothing else may happen: no other exception, no warning, no hang, no file left open, and no more memory than the
largest image takes; and nothing on stderr but the remarks of libtiff, which Pillow does not turn off. Inputs that
break this are kept in `--keep` and make the exit code 1.

The inputs are mutations of small valid files of every kind that is read (`seeds`), of VisA's table, and random folder
trees with links, circles, pipes and odd names. The same seed gives the same inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from cdo_ad.audit.listing import list_leniently
from cdo_ad.data import headers, list_categories, list_folder, read_dataset, read_image, read_mask
from cdo_ad.data.decode import decode_reduced, image_size
from cdo_ad.data.kinds import read_with_kind
from cdo_ad.data.sources import find_sources
from cdo_ad.errors import CdoError, CdoWarning

MOST_PIXELS = 2_000_000
"""The limit of the decoder while it is fuzzed, so that memory is bounded in proportion."""
MEMORY = 600 * 2**20
"""Bytes by which the process may grow: some hundred for each pixel of the largest image."""
SECONDS = 20
"""Wall time for one input; the slowest takes well under a second on a quiet machine."""
NAME = "part 7.img"
INTERESTING = (0, 1, 2, 7, 8, 16, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
WORDS = (
    "good", "OK", "train", "test", "validation", "masks", "ground_truth", "scratch", "rgb", "gt", "Data", "Images",
    "good_2", "GOOD", "split_csv", "a", "b.png", "two\nlines", "ünï", "\udcff\udcfe", "x" * 200, ".hidden", " ", "-rf",
)  # fmt: skip
FILES = (
    "a.png", "a_mask.png", "a.jpg", "b.PNG", "000.tif", "x.heic", "x.dng", "x.jxl", "notes.txt", ".DS_Store",
    "1cls.csv", "new\nline.png", "\udcff.png", "noending",
)  # fmt: skip


LIBTIFF = re.compile(r"(tempfile\.tif|_?TIFF\w*|MissingRequired|JPEGLib|\w+(Decode|Setup|Init|Strip|Tile)\w*): ")


class Broken(AssertionError):
    """An input that ended in another way than it may."""


class TimedOut(BaseException):
    """Raised by the alarm; no `except Exception` in between may swallow it."""


@dataclass
class Outcome:
    """How the inputs ended."""

    counts: Counter[str] = field(default_factory=Counter)
    """By way of ending, such as `image: read`."""
    broken: list[str] = field(default_factory=list)
    """What may not happen, with where the input lies."""
    slowest: float = 0.0
    """Seconds of the slowest input."""
    grown: int = 0
    """Bytes by which the process grew."""


# ---- what may happen


def judge_image(path: Path) -> str:
    """Read a file in every way; the ways must agree. Returns `read` or `refused`."""
    first = _attempt(lambda: read_image(path), path)
    if isinstance(first, np.ndarray):
        _require(first.ndim == 3 and first.shape[2] == 3 and first.dtype == np.uint8 and first.size > 0, "no RGB image")
        _require(first.flags.c_contiguous and first.flags.writeable, "not contiguous or not writable")
        _require(first.shape[0] * first.shape[1] <= headers.MAX_PIXELS, "above the limit")
        image, kind = read_with_kind(path)
        _require(np.array_equal(image, first), "two readings differ")
        _require((kind.height, kind.width) == first.shape[:2], f"the kind says {kind}, the image is {first.shape}")
        _require(image_size(path) == first.shape[:2], "the header says another size")
        reduced, size = decode_reduced(path.read_bytes(), str(path), 8)
        _require(size == first.shape[:2] and reduced.size > 0, "the reduced image says another size")
    else:
        _attempt(lambda: image_size(path), path)
        _attempt(lambda: decode_reduced(path.read_bytes(), str(path), 8), path)
    _attempt(lambda: read_image(path, bits=12), path)
    mask = _attempt(lambda: read_mask(path), path)
    if isinstance(mask, np.ndarray) and isinstance(first, np.ndarray):
        _require(mask.dtype == np.bool_ and mask.shape == first.shape[:2], "the mask has another shape")
    return "read" if isinstance(first, np.ndarray) else "refused"


def judge_tree(root: Path) -> str:
    """Read a folder in every way. Returns `read` or `refused`."""
    samples = _attempt(lambda: read_dataset(root), root)
    for layout in ("folder", "mvtec", "mvtec3d", "visa"):
        _attempt(lambda layout=layout: read_dataset(root, layout), root)  # type: ignore[misc]
    _attempt(lambda: list_categories(root), root)
    _attempt(lambda: list_leniently(root), root)
    listing = _attempt(lambda: list_folder(root, recursive=True), root)
    if not isinstance(listing, CdoError):
        _require(len(set(listing.images)) == len(listing.images), "an image is listed twice")
        _require(not set(listing.own) & set(listing.images), "an own output is an image too")
    sources = _attempt(lambda: find_sources([root, root / "gone.png", f"{root}/*"]), root)
    _require(not isinstance(sources, CdoError), "arguments are refused together")
    if isinstance(sources, dict):
        _require(
            all(str(CdoError(why)) for why in sources.values() if isinstance(why, str)), "a failure without a word"
        )
    if isinstance(samples, CdoError):
        return "refused"
    for sample in samples[:3]:
        _require(os.path.lexists(sample.path), f"no such sample {sample.path}")
        _attempt(lambda sample=sample: read_image(sample.path), sample.path)  # type: ignore[misc]
    return "read"


def _attempt(call: Callable[[], object], path: Path):  # type: ignore[no-untyped-def]
    """What a call gives, or its CdoError if that is as it should be; anything else is broken."""
    try:
        return call()
    except CdoError as error:
        text = str(error)
        shown = str(CdoError(str(path)))
        _require(text.isprintable(), f"the message is no printable line: {text!r}")
        _require(shown in text, f"the message does not name {shown!r}: {text!r}")
        return error
    except TimedOut:
        raise
    except Exception as error:
        raise Broken(f"{type(error).__name__}: {error}") from error


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise Broken(what)


# ---- inputs


def seeds() -> dict[str, bytes]:
    """Small valid files of every kind that is read."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (24, 17, 3), dtype=np.uint8)
    smooth = np.add.outer(np.arange(24), np.arange(17) * 3).astype(np.uint8)
    deep = rng.integers(0, 65536, (24, 17, 3), dtype=np.uint16)
    colour, gray = Image.fromarray(noise), Image.fromarray(smooth)
    alpha = Image.fromarray(np.dstack([noise, smooth]))
    exif = Image.Exif()
    exif[274], exif[270] = 6, "a part"
    found = {
        "png": _encoded(colour, "PNG"), "png gray": _encoded(gray, "PNG"), "png alpha": _encoded(alpha, "PNG"),
        "png palette": _encoded(colour.quantize(7), "PNG"), "png 1": _encoded(gray.convert("1"), "PNG"),
        "png 16": _encoded(Image.fromarray(deep[..., 0]), "PNG"), "png exif": _encoded(colour, "PNG", exif=exif),
        "png transparent": _encoded(colour, "PNG", transparency=(1, 2, 3)),
        "png frames": _encoded(colour, "PNG", save_all=True, append_images=[alpha.convert("RGB")]),
        "jpeg": _encoded(colour, "JPEG", exif=exif), "jpeg gray": _encoded(gray, "JPEG"),
        "jpeg progressive": _encoded(colour, "JPEG", progressive=True, subsampling=0),
        "jpeg cmyk": _encoded(colour.convert("CMYK"), "JPEG"),
        "mpo": _encoded(colour, "MPO", save_all=True, append_images=[colour]),
        "bmp": _encoded(colour, "BMP"), "bmp palette": _encoded(colour.quantize(7), "BMP"),
        "webp": _encoded(colour, "WEBP"), "webp lossless": _encoded(alpha, "WEBP", lossless=True, exif=exif),
        "gif": _encoded(colour, "GIF"), "gif frames": _encoded(gray, "GIF", save_all=True, append_images=[colour]),
        "avif": _encoded(colour, "AVIF"), "avif alpha": _encoded(alpha, "AVIF", exif=exif),
        "jp2": _encoded(colour, "JPEG2000"), "j2k": _encoded(gray, "JPEG2000", no_jp2=True),
        "jp2 16": _encoded(Image.fromarray(deep[..., 0]), "JPEG2000"),
        "pbm": _encoded(gray.convert("1"), "PPM"), "pgm": _encoded(gray, "PPM"), "ppm": _encoded(colour, "PPM"),
        "pgm 12": b"P5 17 24 4095\n" + (deep[..., 0] >> 4).astype(">u2").tobytes(),
        "ppm 16": b"P6\n#x\n17 24\n65535\n" + deep.astype(">u2").tobytes(),
        "pgm plain": b"P2 3 2 4095\n0 1 2\n3 4 4095\n", "pbm plain": b"P1 3 2 0 1 0 1 1 1",
        "tiff": _encoded(colour, "TIFF"), "tiff 16": _tiff(deep[..., 0]), "tiff rgb 16": _tiff(deep, photometric="rgb"),
        "tiff planes": _tiff(np.moveaxis(deep, 2, 0), photometric="rgb", planarconfig="separate"),
        "tiff big": _tiff(deep, photometric="rgb", bigtiff=True, byteorder=">"),
        "tiff white": _tiff(deep[..., 0], photometric="miniswhite", compression="zlib", predictor=True),
        "tiff tiles": _tiff(np.tile(noise, (2, 2, 1)), photometric="rgb", tile=(16, 16)),
        "tiff pages": _tiff(np.stack([smooth, smooth]), photometric="minisblack"),
        "tiff alpha": _tiff(np.dstack([noise, smooth]), photometric="rgb", extrasamples=["assocalpha"]),
        **{f"tiff {name}": _encoded(colour, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "packbits")},
        "tiff fax": _encoded(gray.convert("1"), "TIFF", compression="group4"),
        "tiff turned": _encoded(colour, "TIFF", tiffinfo={274: 6}),
    }  # fmt: skip
    with contextlib.suppress(ImportError):
        import pillow_heif

        file = io.BytesIO()
        pillow_heif.from_pillow(colour).save(file)
        found["heic"] = file.getvalue()
    return found


def _encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)  # type: ignore[arg-type]
    return file.getvalue()


def _tiff(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)  # type: ignore[arg-type]
    return file.getvalue()


def mutate(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """Change a valid file in one to eight places; most often in its beginning, where the headers are."""
    out = bytearray(data)
    for _ in range(min(int(rng.geometric(0.5)), 8)):
        if not out:
            break
        reach = len(out) if rng.random() < 0.4 else min(len(out), 160)
        at = int(rng.integers(0, reach))
        match int(rng.integers(0, 9)):
            case 0:
                out[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                out[at] = int(rng.integers(0, 256))
            case 2 | 3:
                size, order = int(rng.choice((2, 4, 8))), str(rng.choice(("<", ">")))
                number = int(rng.choice(INTERESTING)) & (256**size - 1)
                out[at : at + size] = struct.pack(order + {2: "H", 4: "I", 8: "Q"}[size], number)
            case 4:
                del out[at : at + int(rng.integers(1, 20))]
            case 5:
                out[at:at] = out[at : at + int(rng.integers(1, 40))]
            case 6:
                del out[at + int(rng.integers(0, len(out))) :]
            case 7:
                out[at:at] = rng.integers(0, 256, int(rng.integers(1, 12)), dtype=np.uint8).tobytes()
            case 8:
                other = others[int(rng.integers(0, len(others)))]
                out[at:] = other[int(rng.integers(0, len(other))) :]
    return _with_checksums(bytes(out)) if rng.random() < 0.7 else bytes(out)


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have right checksums again, so that not all ends there; others as they are."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(out + data[at:])


def grow_tree(root: Path, rng: np.random.Generator, contents: list[bytes], depth: int = 0) -> None:
    """Fill a folder with files, folders, links, circles and pipes of odd names."""
    root.mkdir(exist_ok=True)
    for _ in range(int(rng.integers(0, 6))):
        name = str(rng.choice(WORDS if rng.random() < 0.5 else FILES))
        path = root / name
        if os.path.lexists(path) and not path.is_dir():
            continue
        with contextlib.suppress(OSError, ValueError):
            match int(rng.integers(0, 12)):
                case 0:
                    path.symlink_to(str(rng.choice((".", "..", "/nothing", name, "a.png", "/dev/zero", str(root)))))
                case 1:
                    os.mkfifo(path)
                case 2 | 3 | 4 | 5 if depth < 4:
                    grow_tree(path, rng, contents, depth + 1)
                case _:
                    path.write_bytes(contents[int(rng.integers(0, len(contents)))])


def damaged_table(text: str, rng: np.random.Generator) -> bytes:
    """VisA's table with lines lost, doubled or mixed, and bytes changed."""
    lines = text.splitlines(keepends=True)
    for _ in range(int(rng.integers(0, 4))):
        at = int(rng.integers(0, len(lines)))
        fields = lines[at].split(",")
        fields[int(rng.integers(0, len(fields)))] = str(
            rng.choice(
                (
                    "",
                    "..",
                    "/etc/passwd",
                    "../" * 9,
                    "train",
                    "test",
                    "normal",
                    "OK",
                    "anomaly",
                    '"',
                    "\0",
                    "é,",
                    "a\\b",
                )
            )
        )
        lines[at : at + int(rng.integers(0, 2))] = [",".join(fields)]
    data = "".join(lines).encode()
    return mutate(data, [data], rng) if rng.random() < 0.5 else data


# ---- the run


def fuzz(
    inputs: int, seed: int = 0, keep: Path | None = None, progress: Callable[[int], None] = lambda done: None
) -> Outcome:
    """Judge that many inputs: nine of ten are images, the others trees and tables.

    Args:
        inputs: how many.
        seed: of the mutations.
        keep: folder for the inputs that break a rule; None keeps none.
        progress: called with the number of inputs done.
    """
    rng = np.random.default_rng(seed)
    valid = seeds()
    names, contents = list(valid), list(valid.values())
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name, _watched() as complaints:
        work = Path(name)
        visa = _visa(work / "visa", contents[0])
        table = (visa / "split_csv" / "1cls.csv").read_text()
        before = _memory()
        open_before = len(list(Path("/proc/self/fd").iterdir()))
        for i in range(inputs):
            choice = rng.random()
            if choice < 0.9:
                which = names[int(rng.integers(0, len(names)))]
                path = work / NAME
                path.write_bytes(mutate(valid[which], contents, rng))
                _one(outcome, f"image {which.split()[0]}", judge_image, path, complaints, keep, i)
            elif choice < 0.95:
                path = work / "tree"
                grow_tree(path, rng, [*contents[:6], b"", b"no image"])
                _one(outcome, "tree", judge_tree, path, complaints, keep, i)
                shutil.rmtree(path)
            else:
                (visa / "split_csv" / "1cls.csv").write_bytes(damaged_table(table, rng))
                _one(outcome, "table", judge_tree, visa, complaints, keep, i)
            progress(i + 1)
        outcome.grown = _memory() - before
        if outcome.grown > MEMORY:
            outcome.broken.append(f"the process grew by {outcome.grown / 2**20:.0f} MiB")
        if len(list(Path("/proc/self/fd").iterdir())) > open_before:
            outcome.broken.append("files were left open")
    return outcome


def _one(
    outcome: Outcome,
    kind: str,
    judge: Callable[[Path], str],
    path: Path,
    complaints: Callable[[], str],
    keep: Path | None,
    number: int,
) -> None:
    start = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        ending = judge(path)
        if said := complaints():
            raise Broken(f"it said: {said}")
    except (Broken, TimedOut) as error:
        ending = "broken"
        where = ""
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            copy = keep / f"{number}"
            (keep / f"{number}.txt").write_text("".join(traceback.format_exception(error)), errors="backslashreplace")
            with contextlib.suppress(shutil.Error):  # pipes are not copied
                shutil.copytree(path, copy, symlinks=True) if path.is_dir() else shutil.copy(path, copy)
            where = f" ({copy})"
        outcome.broken.append(f"{kind} {number}: {type(error).__name__} {error}{where}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    outcome.counts[f"{kind}: {ending}"] += 1
    outcome.slowest = max(outcome.slowest, time.perf_counter() - start)


@contextlib.contextmanager
def _watched() -> Iterator[Callable[[], str]]:
    """A low limit of pixels, an alarm, and a look at warnings and at what C libraries write to stderr."""

    def ring(*_: object) -> None:
        raise TimedOut(f"took more than {SECONDS} s")

    limit, handler = headers.MAX_PIXELS, signal.signal(signal.SIGALRM, ring)
    headers.MAX_PIXELS = MOST_PIXELS
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as written, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", CdoWarning)
        os.dup2(written.fileno(), 2)
        seen = 0

        def complaints() -> str:
            nonlocal seen
            texts = [f"{warning.category.__name__} {warning.message}" for warning in caught]
            caught.clear()
            end = os.fstat(written.fileno()).st_size
            said = os.pread(written.fileno(), end - seen, seen).decode(errors="replace")
            seen = end
            return "; ".join(texts + [line for line in said.splitlines() if line and not LIBTIFF.match(line)])

        try:
            yield complaints
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            signal.signal(signal.SIGALRM, handler)
            headers.MAX_PIXELS = limit


def _memory() -> int:
    """Bytes of the largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _visa(root: Path, png: bytes) -> Path:
    """A small data set in VisA's layout."""
    lines = ["object,split,label,image,mask"]
    for i in range(4):
        label, folder = ("anomaly", "Anomaly") if i == 3 else ("normal", "Normal")
        image, mask = f"nut/Data/Images/{folder}/{i}.JPG", f"nut/Data/Masks/Anomaly/{i}.png" if i == 3 else ""
        for name in filter(None, (image, mask)):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(png)
        lines.append(f"nut,{'train' if i < 2 else 'test'},{label},{image},{mask}")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(lines) + "\n")
    return root


def main() -> None:
    """Parse, fuzz, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-broken"), help="folder for inputs that break a rule")
    options = parser.parse_args()
    start = time.perf_counter()

    def progress(done: int) -> None:
        if done % 5000 == 0:
            print(f"{done} inputs, {time.perf_counter() - start:.0f} s", flush=True)

    outcome = fuzz(options.inputs, options.seed, options.keep, progress)
    for ending, count in sorted(outcome.counts.items()):
        print(f"{count:8d}  {ending}")
    seconds = time.perf_counter() - start
    print(f"slowest {outcome.slowest:.2f} s, grown by {outcome.grown / 2**20:.0f} MiB, {seconds:.0f} s in all")
    for line in outcome.broken[:50]:
        print(line)
    print(f"{len(outcome.broken)} broken")
    sys.exit(1 if outcome.broken else 0)


if __name__ == "__main__":
    main()
