"""What arguments name, what folders hold, what is passed over, and our own overlays."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdo_ad.data import list_folder, list_images, read_image
from cdo_ad.data.labels import GOOD_WORDS
from cdo_ad.data.listing import IMAGE_SUFFIXES, holds_images
from cdo_ad.data.marks import is_own_output, write_png
from cdo_ad.data.sources import find_sources
from cdo_ad.errors import CdoError, CdoWarning, ConfigError, DataError, ImageError
from fakes import write

GRAY = np.full((9, 9), 100, np.uint8)


def image(path: Path) -> Path:
    return write(path, GRAY)


def below(root: Path, paths: object) -> list[str]:
    return [Path(path).relative_to(root).as_posix() for path in paths]  # type: ignore[attr-defined]


# ---- listing


def test_a_listing_leaves_nothing_that_looks_like_an_image_untold(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "C.TIFF", "d.WebP", "e.pgm", "f.jp2", "g.gif", "h.avif", "i.heic", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("raw.DNG", "new.jxl"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    (tmp_path / "gone.png").symlink_to("/nothing/gone.png")
    (tmp_path / "good").symlink_to("/nothing/good")
    os.mkfifo(tmp_path / "pipe.png")
    listing = list_folder(tmp_path)
    assert below(tmp_path, listing.images) == [
        "C.TIFF", "a.png", "b.JPG", "d.WebP", "e.pgm", "f.jp2", "g.gif", "gone.png", "h.avif", "i.heic", "pipe.png",
    ]  # fmt: skip
    assert below(tmp_path, listing.unread) == ["good", "new.jxl", "raw.DNG"]
    assert "JPEG XL that is not read: save it as PNG" in listing.unread[tmp_path / "new.jxl"]
    assert listing.own == []


def test_folders_below_are_listed_once_whatever_links_lead_to_them(tmp_path: Path) -> None:
    for name in ("a.png", "sub/e.bmp", ".cache/f.png", "folder.png/g.png"):
        image(tmp_path / name)
    (tmp_path / "sub" / "circle").symlink_to(tmp_path)
    (tmp_path / "sub" / "self").symlink_to("self")
    other = image(tmp_path.with_name("elsewhere") / "z.png")
    (tmp_path / "linked").symlink_to(other.parent)
    assert below(tmp_path, list_images(tmp_path)) == ["a.png"]
    assert below(tmp_path, list_images(tmp_path, recursive=True)) == [
        "a.png", "folder.png/g.png", "linked/z.png", "sub/e.bmp",
    ]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), [
    (lambda path: None, "no such folder"),
    (lambda path: path.write_bytes(b"x"), "is a file"),
    (lambda path: path.symlink_to(path), "cannot be read"),
    (lambda path: os.mkfifo(path), "is a file"),
], ids=["missing", "a file", "a circle", "a pipe"])  # fmt: skip
def test_what_is_no_folder_is_refused_in_one_line(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message) as caught:
        list_folder(tmp_path / "data")
    assert "\n" not in str(caught.value)


@pytest.fixture
def without_power(tmp_path: Path):
    """Run Python as one who may not read everything; as root, by giving up root's power over file rights."""
    words = [sys.executable, "-c"]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root reads everything, and there is no setpriv to give that up")
        words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "--inh-caps=-all", *words]

    def run(code: str) -> str:
        done = subprocess.run(
            [*words, code], capture_output=True, text=True, timeout=60, env=os.environ | {"P": str(tmp_path)}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def lock(path: Path) -> None:
    """Take all rights away, and the file itself where that is needed for root."""
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    path.chmod(0)


def test_unreadable_folders_and_files_are_errors_of_one_line(tmp_path: Path, without_power) -> None:
    image(tmp_path / "ok" / "a.png")
    for name in ("shut", "ok/shut"):
        image(tmp_path / name / "b.png")
        lock(tmp_path / name)
    lock(image(tmp_path / "ok" / "shut.png"))
    try:
        said = without_power("""
import os; from pathlib import Path
from cdo_ad.data import list_folder, read_dataset, read_image
from cdo_ad.data.sources import find_sources
from cdo_ad.errors import CdoError
root = Path(os.environ['P'])
for function, name in ((list_folder, 'shut'), (read_dataset, 'shut'), (read_image, 'ok/shut.png')):
    try: function(root / name); print('no error')
    except CdoError as error: print(error)
found = find_sources([root / 'ok', root / 'shut']).values()
print([str(n) for n in found if isinstance(n, Path)], [n for n in found if isinstance(n, str)])
""").splitlines()
    finally:
        for name in ("shut", "ok/shut", "ok/shut.png"):
            (tmp_path / name).chmod(0o700)
    assert said[:3] == [
        f"{tmp_path}/shut: cannot be listed (Permission denied): check the folder and its rights",
        f"{tmp_path}/shut: cannot be listed (Permission denied): check the folder and its rights",
        f"{tmp_path}/ok/shut.png: cannot be read (Permission denied): check the path and its rights",
    ]
    assert said[3].startswith("['a.png', 'shut.png'] [") and said[3].count("cannot be listed (Permission denied)") == 2


DOCS = Path(__file__).parents[1] / "docs"


def test_the_documents_name_every_ending_and_every_word_for_good() -> None:
    table = (DOCS / "inputs.md").read_text().split("## Formats")[1].split("These are")[0]
    assert set(re.findall(r"`(\.\w+)`", table)) == set(IMAGE_SUFFIXES)
    words = (DOCS / "data-layouts.md").read_text().split("may be called ")[1].split(".\n")[0]
    assert {word.replace(" ", "").casefold() for word in re.findall(r"`([^`]+)`", words)} == GOOD_WORDS


# ---- reading


@pytest.mark.parametrize(("make", "message"), [
    (os.mkfifo, "is a pipe, not a file"),
    (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
    (lambda path: path.symlink_to("/nothing.png"), "a link to a file that is missing"),
    (lambda path: path.symlink_to(path), "cannot be read"),
    (lambda path: path.mkdir(), "is a folder, not a file"),
    (lambda path: socket.socket(socket.AF_UNIX).bind(path.name), "is a socket, not a file"),
], ids=["pipe", "device", "broken link", "circle", "folder", "socket"])  # fmt: skip
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.timeout(20)
def test_only_regular_files_are_opened(tmp_path: Path, make, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x.png")
    with pytest.raises(ImageError, match=message) as caught:
        read_image(tmp_path / "x.png")
    assert str(tmp_path / "x.png") in str(caught.value)


def test_odd_names_are_shown_in_one_printable_line(tmp_path: Path) -> None:
    for name in ("two\nlines.png", "bell\a.png", b"\xff\xfe.png".decode("utf-8", "surrogateescape"), "nul\0.png"):
        with pytest.raises(ImageError) as caught:
            read_image(tmp_path / name)
        assert str(caught.value).isprintable()
        str(caught.value).encode()
    assert str(CdoError("größer als 3 µm")) == "größer als 3 µm"


def test_files_above_the_bound_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdo_ad.data.files.MAX_BYTES", image(tmp_path / "a.png").stat().st_size)
    read_image(tmp_path / "a.png")
    with (tmp_path / "a.png").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ImageError, match="larger than"):
        read_image(tmp_path / "a.png")


# ---- arguments


def named(*arguments: object) -> list[str]:
    """The names of the files that arguments name."""
    return [name.as_posix() for name in find_sources(arguments).values() if isinstance(name, Path)]  # type: ignore[arg-type]


def test_arguments_are_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("a.png", "b.PNG", "sub/c.png", "sub/[1].png"):
        image(tmp_path / name)
    assert named(tmp_path) == ["a.png", "b.PNG", "sub/[1].png", "sub/c.png"]
    assert named(f"{tmp_path}/**/*.png") == ["a.png", "[1].png", "c.png"]
    assert named(f"{tmp_path}/sub/[1].png") == ["[1].png"]
    assert named(f"{tmp_path}/s*") == ["sub/[1].png", "sub/c.png"]
    assert named(tmp_path / "b.PNG", tmp_path) == ["b.PNG", "a.png", "sub/[1].png", "sub/c.png"]


def test_what_one_argument_lacks_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    image(tmp_path / "a.png")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "x.dng").write_bytes(b"x")
    found = find_sources(
        [tmp_path / "gone.png", tmp_path / "empty", tmp_path / "raw", f"{tmp_path}/*.gif", tmp_path / "a.png"]
    )
    assert below(tmp_path, found) == ["gone.png", "empty", "raw/x.dng", "*.gif", "a.png"]
    problems = {path.name: why for path, why in found.items() if isinstance(why, str)}
    assert list(problems) == ["empty", "x.dng", "*.gif"]  # reading gone.png says that it is missing
    assert all(str(tmp_path) in why for why in problems.values())


def test_an_empty_argument_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="empty path"):
        find_sources([tmp_path, ""])


# ---- our own outputs


def test_own_outputs_are_recognised_by_content_and_left_out(tmp_path: Path) -> None:
    image(tmp_path / "part_overlay.png")  # the user's own, whatever its name
    write_png(tmp_path / "renamed.png", np.zeros((9, 9, 3), np.uint8))
    write_png(tmp_path / "part_map.png", np.full((9, 9), 40000, np.uint16))
    assert np.asarray(Image.open(tmp_path / "part_map.png")).max() == 40000
    listing = list_folder(tmp_path)
    assert below(tmp_path, listing.images) == ["part_overlay.png"]
    assert below(tmp_path, listing.own) == ["part_map.png", "renamed.png"]
    for argument in (tmp_path, f"{tmp_path}/*.png"):
        with pytest.warns(CdoWarning, match="cdo-ad itself wrote are left out: 2"):
            assert named(argument) == ["part_overlay.png"]
    (tmp_path / "part_overlay.png").unlink()
    assert not holds_images(tmp_path)
    assert not is_own_output(tmp_path / "missing.png")


def test_an_output_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png(tmp_path / "a.png", GRAY)
    before = (tmp_path / "a.png").read_bytes()

    def full_disk(self: Image.Image, file: Path, **options: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(ImageError, match=r"a.png: cannot be written \(No space left on device\)"):
        write_png(tmp_path / "a.png", GRAY)
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(ImageError, match="must be"):
        write_png(tmp_path / "a.png", GRAY.astype(np.float32))
