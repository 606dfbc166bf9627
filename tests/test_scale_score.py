"""Very many images on a real Ray: one row for each, whatever is damaged or killed; folders, shards, Parquet and S3."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cdo_ad
from cdo_ad.cli.main import app
from cdo_ad.errors import BusyError, ConfigError, DataError, OutputError
from cdo_ad.files import exclusive
from cdo_ad.inference.artifact import write_manifest
from cdo_ad.inference.detector import load
from cdo_ad.scale.cluster import Resources
from fakes import make_image, write
from rays import kill

pytest.importorskip("ray", reason="Ray is not installed: pip install 'cdo-ad[scale]'")

import pyarrow as pa
import pyarrow.parquet as pq

from cdo_ad.scale.judging import Judge, Plan
from cdo_ad.scale.parts import Results, to_part
from cdo_ad.scale.reading import read_images
from cdo_ad.scale.scoring import ScoreSummary, model_of, score
from cdo_ad.scale.sources import LARGEST, Fragment, fragments
from cdo_ad.scale.storage import Storage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto"),
]


def png(seed: int, kind: str = "good") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(make_image(seed, kind, (48, 48))[0]).save(buffer, format="PNG")
    return buffer.getvalue()


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as shard:  # type: ignore[call-overload]
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            shard.addfile(entry, io.BytesIO(data))
    return path


def make_parquet(path: Path, values: list[bytes | None], rows: int = 4, struct: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    column: Any = pa.array([{"bytes": v, "path": "x"} for v in values] if struct else values)
    table = pa.table({"id": list(range(len(values))), "image" if struct else "jpg": column})
    pq.write_table(table, path, row_group_size=rows)
    return path


def rows(out: Path | str, **options: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out, **options).to_pylist()
    assert len({row["path"] for row in found}) == len(found), "an image has two rows"
    return sorted(found, key=lambda row: str(row["path"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 images, among them damaged ones, and what is no image."""
    root = tmp_path_factory.mktemp("score") / "images"
    for i in range(77):
        write(root / f"part_{i % 3}" / f"{i:03d}.png", make_image(i, "spot" if i % 5 == 0 else "good", (48, 48))[0])
    (root / "part_0" / "not.png").write_bytes(b"no image")
    (root / "part_1" / "cut.png").write_bytes(png(1)[:-200])
    (root / "part_2" / "empty.jpg").write_bytes(b"")
    (root / "part_2" / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    write(root / ".hidden" / "000.png", make_image(0)[0])
    return root


def test_each_image_has_one_row_though_processes_die(
    folder: Path, tiny_run: Path, tmp_path: Path, local_ray: Resources
) -> None:
    killed: list[int] = []

    def tell(so_far: ScoreSummary) -> None:
        if not killed:
            killed.extend(kill("MapWorker"))

    done = score(tiny_run, folder, out=tmp_path / "out", device="cpu", tell=tell)
    assert killed
    assert (done.images, done.failed, done.missing) == (80, 3, ())
    found = rows(tmp_path / "out")
    assert len(found) == 80
    detector = load(tiny_run, device="cpu")
    for row in found:
        if row["error"] is not None:
            assert row["path"] in row["error"] and row["score"] is None
            continue
        single = detector.predict_file(row["path"])
        assert row["score"] == pytest.approx(single.score, rel=1e-4)
        assert (row["p_value"], row["anomalous"], row["sentence"]) == (
            single.p_value, single.anomalous, single.sentence,
        )  # fmt: skip
        assert len(row["regions"]) == len(single.regions)
    assert sum(bool(row["anomalous"]) for row in found) == done.anomalous

    # a second call judges only what is missing: a part that was lost, and an image that came
    part = next((tmp_path / "out").glob("files-*.parquet"))
    lost = pq.read_table(part).num_rows
    part.unlink()
    new = write(folder / "part_0" / "new.png", make_image(500, size=(48, 48))[0])
    try:
        again = score(tiny_run, folder, out=tmp_path / "out", device="cpu")
    finally:
        new.unlink()
    assert (again.images, again.known_images) == (lost + 1, 80 - lost)
    assert len(rows(tmp_path / "out")) == 81
    shown = CliRunner().invoke(app, ["score", str(tiny_run), str(folder), "--out", str(tmp_path / "out")])
    assert shown.exit_code == 0 and "0 images judged" in shown.stdout and "81 image files" in shown.stdout


def test_shards_and_parquet_on_s3(tiny_run: Path, tmp_path: Path, local_ray: Resources, s3: dict[str, Any]) -> None:
    import s3fs

    store = s3fs.S3FileSystem(**s3)
    store.mkdir("bucket")
    put = {f"in/images/{i}.png": png(i) for i in range(5)}
    put["in/images/bad.png"] = b"no image"
    put["in/shards/0.tar"] = make_tar(tmp_path / "0.tar", {f"a/{i}.png": png(i) for i in range(4)}).read_bytes()
    put["in/rows/0.parquet"] = make_parquet(tmp_path / "0.parquet", [png(i) for i in range(6)]).read_bytes()
    for name, data in put.items():
        store.pipe_file(f"bucket/{name}", data)
    done = score(tiny_run, "s3://bucket/in", out="s3://bucket/out", device="cpu", options=s3)
    assert (done.images, done.failed, done.missing) == (16, 1, ())
    found = rows("bucket/out", filesystem=store)
    paths = [f"s3://bucket/in/images/{name}.png" for name in (0, 1, 2, 3, 4, "bad")]
    paths += [f"s3://bucket/in/rows/0.parquet#{i}" for i in range(6)]
    paths += [f"s3://bucket/in/shards/0.tar/a/{i}.png" for i in range(4)]
    assert [row["path"] for row in found] == paths
    by_number = [{row["score"] for row in found if row["path"].endswith(end)} for end in ("/1.png", "#1")]
    assert len(by_number[0] | by_number[1]) == 1  # the same image, three ways
    again = score(tiny_run, "s3://bucket/in", out="s3://bucket/out", device="cpu", options=s3)
    assert (again.images, again.known_images, again.known_parts) == (0, 6, 3)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Options for an S3 server on this machine."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield {"key": "k", "secret": "s", "endpoint_url": f"http://{host}:{port}"}
    finally:
        server.stop()


def read(fragment: Fragment) -> list[tuple[str, Any]]:
    return list(read_images(fragment, Storage(fragment.uri)))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_shard_gives_its_images_and_nothing_else(tmp_path: Path, mode: str) -> None:
    members = {"a.png": png(0), "a.json": b"{}", "._a.png": b"x", "b.x.png": png(1), "c.png": b"", "d.dng": b"raw"}
    shard = make_tar(tmp_path / "0.tar", members, mode)
    found = read(Fragment("tar", str(shard)))
    assert [name for name, _ in found] == [f"{shard}/{name}" for name in ("a.png", "b.x.png", "c.png", "d.dng")]
    assert [isinstance(image, np.ndarray) for _, image in found] == [True, True, False, False]


def test_of_a_cut_shard_the_images_before_the_cut_are_kept(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "0.tar", {f"{i}.png": png(i) for i in range(5)})
    shard.write_bytes(shard.read_bytes()[: 3 * 8192])
    found = read(Fragment("tar", str(shard)))
    assert len(found) >= 2 and found[-1][0] == str(shard)
    assert "cannot be read to its end" in str(found[-1][1])
    assert all(isinstance(image, np.ndarray) for _, image in found[:-1])


def test_a_shard_that_is_none_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"no archive" * 100)
    assert [name for name, _ in read(Fragment("tar", str(tmp_path / "0.tar")))] == [str(tmp_path / "0.tar")]


@pytest.mark.parametrize("struct", [False, True])
def test_rows_of_parquet_are_named_by_their_number(tmp_path: Path, struct: bool) -> None:
    file = make_parquet(tmp_path / "x.parquet", [*(png(i) for i in range(5)), None, b"no image"], struct=struct)
    listed = list(fragments(Storage(str(file)), list))
    assert [fragment.group for fragment in listed] == [0, 1]
    found = [item for fragment in listed for item in read(fragment)]
    assert [name for name, _ in found] == [f"{file}#{i}" for i in range(7)]
    assert [isinstance(image, np.ndarray) for _, image in found] == [True] * 5 + [False] * 2


def test_parquet_without_images_is_left_out_of_a_folder_and_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "table.parquet")
    write(tmp_path / "a.png", make_image(0)[0])
    with pytest.warns(cdo_ad.errors.CdoWarning, match=r"table\.parquet: is left out"):
        assert [f.kind for f in fragments(Storage(str(tmp_path)), list)] == ["files"]
    with pytest.raises(DataError, match="no column holds bytes"):
        list(fragments(Storage(str(tmp_path / "table.parquet")), list))
    two = pa.table({"left": [b"1"], "right": [b"2"]})
    pq.write_table(two, tmp_path / "two.parquet")
    with pytest.raises(DataError, match="choose one with --column"):
        list(fragments(Storage(str(tmp_path / "two.parquet")), list))
    (fragment,) = fragments(Storage(str(tmp_path / "two.parquet")), list, "right")
    assert fragment.column == "right"


def test_a_damaged_parquet_file_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no table")
    (fragment,) = fragments(Storage(str(tmp_path / "x.parquet")), list)
    ((name, error),) = read(fragment)
    assert name == str(tmp_path / "x.parquet") and "cannot be read" in str(error)


def test_many_images_make_few_fragments_and_few_many(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i in range(3000):
        (tmp_path / "a" / f"{i}.jpg").touch()
    sizes = [len(fragment.names) for fragment in fragments(Storage(str(tmp_path)), list)]
    assert sum(sizes) == 3000 and sizes[0] == 16 and max(sizes) <= LARGEST and len(sizes) < 60
    assert next(f.kind for f in fragments(Storage(str(tmp_path / "a" / "*7.jpg")), list)) == "files"


def test_results_inside_the_source_are_not_judged(folder: Path, tmp_path: Path, tiny_run: Path) -> None:
    shutil.copytree(folder, tmp_path / "in")
    make_parquet(tmp_path / "in" / "out" / "files-0.parquet", [b"x"])
    (tmp_path / "in" / "out" / "_cdo_ad_scores.json").write_text("{}")
    assert {f.kind for f in fragments(Storage(str(tmp_path / "in")), list)} == {"files"}


def test_names_that_are_no_text_are_judged_once(folder: Path, tiny_run: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/in/\xff.png")
    write(Path(odd), make_image(0)[0])
    part = to_part([{"path": odd, "score": 1.0, "anomalous": True}, {"path": "b", "error": "damaged"}])
    assert (part.images, part.anomalous, part.failed) == (2, 1, 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "files-0.parquet").write_bytes(part.data)
    judged = model_of(tiny_run, None)
    (tmp_path / "out" / "_cdo_ad_scores.json").write_text(json.dumps(judged.to_json()))
    results = Results(Storage(str(tmp_path / "out")), judged)
    assert not list(fragments(Storage(str(tmp_path / "in")), results.known.missing))


@pytest.fixture
def judged_folder(tiny_run: Path, folder: Path, tmp_path: Path) -> Path:
    """Results of one part, made without Ray."""
    out = tmp_path / "judged"
    out.mkdir()
    results = Results(Storage(str(out)), model_of(tiny_run, None))
    plan = Plan(tiny_run, str(folder), str(out), None, "auto", "cpu", 1, None, results.call)
    fragment = next(iter(fragments(Storage(str(folder)), list)))
    old = Judge(replace(plan, call="of a call that was killed"))({"fragment": pickle.dumps(fragment)})
    assert (old["kind"], old["images"]) == ("BusyError", 0) and not list(out.glob("*.parquet"))
    answer = Judge(plan)({"fragment": pickle.dumps(fragment)})
    assert (answer["images"], answer["error"]) == (16, "")
    return out


def test_results_of_another_model_do_not_mix(judged_folder: Path, dense_run: Path, tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match="another model"):
        score(dense_run, "nowhere", out=judged_folder)
    with pytest.raises(ConfigError, match="category None"):
        score(tiny_run, "nowhere", out=judged_folder, category="bolt")


def test_an_exported_file_is_known_by_its_checksums(judged_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"model")
    write_manifest(model)
    with pytest.raises(ConfigError, match="another model"):
        score(model, "nowhere", out=judged_folder)
    model.write_bytes(b"another")
    with pytest.raises(cdo_ad.errors.BundleError, match="is damaged"):
        score(model, "nowhere", out=judged_folder)


def test_damaged_results_and_folders_in_use_are_named(judged_folder: Path, folder: Path, tiny_run: Path) -> None:
    with exclusive(judged_folder), pytest.raises(BusyError):
        score(tiny_run, folder, out=judged_folder)
    part = next(judged_folder.glob("files-*"))
    part.write_bytes(b"PAR1")
    with pytest.raises(OutputError, match="is damaged: delete it"):
        score(tiny_run, folder, out=judged_folder)
    (judged_folder / "_cdo_ad_scores.json").write_text(json.dumps({"kind": "x"}))
    with pytest.raises(OutputError, match="damaged"):
        score(tiny_run, folder, out=judged_folder)


def test_a_folder_of_other_files_is_not_written_into(folder: Path, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        score(tiny_run, folder, out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"mine.txt", ".lock"}


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        ("nowhere", DataError, "there is nothing"),
        ("", ConfigError, "empty address"),
        ("nix://bucket/x", ConfigError, "nix"),
    ],
)
def test_wrong_addresses_are_named(
    source: str, kind: type[Exception], words: str, tiny_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=words):
        score(tiny_run, source, out=tmp_path / "out")


def test_an_unknown_model_and_an_empty_folder_are_named(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(cdo_ad.errors.BundleError, match="is not a complete run folder"):
        score(tmp_path, tmp_path, out=tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image, tar shard or Parquet"):
        score(tiny_run, tmp_path / "empty", out=tmp_path / "out")


def test_without_ray_the_message_says_what_to_install(
    folder: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(cdo_ad.errors.MissingExtraError, match=r"cdo-ad\[scale\]"):
        score(tiny_run, folder, out=tmp_path / "out")
