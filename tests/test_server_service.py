"""Inspection of uploads, history, keys and roles, guards: over HTTP, as clients see them."""

from __future__ import annotations

import base64
import csv
import io
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from cdo_ad.errors import ConfigError
from cdo_ad.inference.detector import load
from cdo_ad.server.serving.pace import Pace
from cdo_ad.server.settings import ServerSettings, is_loopback
from serving import Served, as_png, png, running, until


@pytest.fixture(scope="module")
def served(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running(tmp_path_factory.mktemp("server") / "state", tiny_run, max_upload=2**20, max_pixels=10**6) as found:
        yield found


def test_an_upload_is_judged_as_the_detector_judges_it(served: Served, tiny_run: Path, tmp_path: Path) -> None:
    data = png(3, "spot")
    (tmp_path / "a.png").write_bytes(data)
    expected = load(tiny_run, backend="torch", device="cpu").predict_file(tmp_path / "a.png")
    found = served.inspect(data, overlay=True, heat=True, map=True).json()
    assert found["score"] == pytest.approx(expected.score, rel=1e-5)
    assert found["decision"] == ("anomalous" if expected.anomalous else "good")
    assert found["sentence"] == expected.sentence and found["p_value"] == expected.p_value
    assert [r["box"] for r in found["regions"]] == [list(r.box) for r in expected.regions]
    modes = {"overlay": "RGB", "heat": "RGBA", "map": "I;16"}
    for name, mode in modes.items():
        drawn = Image.open(io.BytesIO(base64.b64decode(found[name])))
        assert drawn.mode == mode and drawn.size == (80, 64)


def test_it_is_in_the_history_with_its_image(served: Served) -> None:
    data = png(4)
    uid = served.inspect(data).json()["uid"]
    row = served.http.get(f"/v1/inspections/{uid}").json()
    assert row["uid"] == uid and row["name"] == "part.png" and row["shadows"] == []
    image = served.http.get(f"/v1/inspections/{uid}/image")
    assert image.content == data and image.headers["content-type"] == "image/png"
    for name in ("overlay.png", "heat.png", "map.png", "thumbnail"):
        assert served.http.get(f"/v1/inspections/{uid}/{name}").headers["content-type"].startswith("image/")
    newest = served.http.get("/v1/history", params={"limit": 1}).json()
    assert newest["inspections"][0]["uid"] == uid and newest["total"] > 0
    number = newest["inspections"][0]["number"]
    assert served.http.get("/v1/history", params={"after": number}).json() == {"inspections": []}


def test_filters_and_csv_agree(served: Served) -> None:
    for i in range(3):
        served.inspect(png(i, "spot"))
    for query in ({}, {"decision": "good"}, {"product": "tiles", "since": 0}, {"until": 1}, {"verdict": "none"}):
        page = served.http.get("/v1/history", params={**query, "limit": 500}).json()
        text = served.http.get("/v1/history.csv", params=query).text
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [row["uid"] for row in rows] == [row["uid"] for row in page["inspections"]]
        assert page["total"] == len(rows) and page["anomalous"] <= page["total"]


def test_a_stricter_rate_moves_the_threshold(served: Served) -> None:
    thresholds = [served.inspect(png(5), rate=rate).json()["threshold"] for rate in (0.08, 0.2, 0.5)]
    assert thresholds == sorted(thresholds, reverse=True) and thresholds[0] > thresholds[2]
    answer = served.inspect(png(5), rate=0.001)
    assert answer.status_code == 400 and "999 different parts" in answer.json()["error"]


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 422, "empty"),
        (b"no image at all", 422, "not a JPEG"),
        (png(1)[:200], 422, "part.png"),
        (as_png(np.zeros((4, 90, 3), np.uint8)), 422, "too small"),
        (as_png(np.zeros((1100, 1000), np.uint8)), 422, "more than the 1,000,000"),
        (bytes(2**20 + 5), 413, "larger than"),
    ],
    ids=["empty", "text", "cut", "small", "many pixels", "many bytes"],
)
def test_what_is_no_image_is_refused(served: Served, data: bytes, status: int, words: str) -> None:
    answer = served.inspect(data)
    assert answer.status_code == status and words in answer.json()["error"]


def test_a_body_without_a_length_is_bounded_too(served: Served) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(2**16)

    answer = served.http.post("/v2/models/tiles/infer", content=parts())
    assert answer.status_code == 413


def test_one_image_from_many_clients_at_once(served: Served) -> None:
    data = [png(1000 + i) for i in range(4)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: served.inspect(data[i // 8 % 4]), range(32)))
    assert {answer.status_code for answer in answers} == {200}


def test_names_of_clients_are_text_only(served: Served) -> None:
    files = {"file": ("../../etc/pass\x07wd<script>.png", png(1), "image/png")}
    name = served.http.post("/v1/models/tiles/inspect", files=files).json()["name"]
    assert "/" not in name and "\x07" not in name


def test_keys_and_roles(served: Served) -> None:
    assert httpx.get(f"{served.address}/v1/models").status_code == 401
    wrong = {"Authorization": "Bearer cdo_wrong"}
    assert httpx.get(f"{served.address}/v1/models", headers=wrong).json()["error"].startswith("send a valid key")
    with served.client("operator") as operator, served.client("engineer") as engineer:
        assert operator.get("/v1/me").json()["role"] == "operator"
        assert operator.get("/v1/audit").status_code == 403 and engineer.get("/v1/audit").status_code == 200
        assert engineer.get("/v1/keys").status_code == 403
    made = served.http.post("/v1/keys", json={"name": "line 3", "role": "operator"})
    assert made.status_code == 201
    key = {"Authorization": f"Bearer {made.json()['key']}"}
    assert httpx.get(f"{served.address}/v1/me", headers=key).json()["name"] == "line 3"
    assert served.http.post("/v1/keys", json={"name": "line 3", "role": "operator"}).status_code == 400
    listed = served.http.delete("/v1/keys/line 3").json()
    assert all("digest" not in each and "key" not in each for each in listed)
    assert httpx.get(f"{served.address}/v1/me", headers=key).status_code == 401
    assert served.http.delete("/v1/keys/line 3").status_code == 404


def test_keys_are_kept_as_hashes_only(served: Served) -> None:
    key = served.http.post("/v1/keys", json={"name": "hashed", "role": "operator"}).json()["key"]
    files = [path.read_bytes() for path in served.service.settings.folder.glob("server.sqlite*")]
    assert files and not any(key.encode() in data or key[4:].encode() in data for data in files)


def test_the_audit_trail_shows_a_change(served: Served) -> None:
    from sqlalchemy import create_engine, text

    assert served.http.get("/v1/audit").json()["whole"]
    lines = served.http.get("/v1/audit.jsonl").text.splitlines()
    assert len(lines) == len(list(served.service.audit.entries()))
    engine = create_engine(served.service.settings.database_url)
    with engine.begin() as connection:
        row = connection.execute(text("SELECT id, detail FROM audit ORDER BY id LIMIT 1")).one()
        connection.execute(text("UPDATE audit SET detail = '{}' WHERE id = :id"), {"id": row.id})
    assert served.http.get("/v1/audit").json()["broken_at"] == row.id
    with engine.begin() as connection:
        connection.execute(text("UPDATE audit SET detail = :d WHERE id = :id"), {"id": row.id, "d": row.detail})
        last = connection.execute(text("SELECT max(id) FROM audit")).scalar()
    assert served.http.get("/v1/audit").json()["whole"] and last
    engine.dispose()


def test_corrections(served: Served) -> None:
    found = served.inspect(png(6), rate=0.9).json()  # nearly all are called anomalous
    while not found["anomalous"]:
        found = served.inspect(png(int(time.time_ns() % 10**6)), rate=0.9).json()
    path = f"/v1/inspections/{found['uid']}/correction"
    assert served.http.put(path, json={"verdict": "missed", "boxes": [[1, 1, 5, 5]]}).status_code == 400
    assert served.http.put(path, json={"verdict": "false alarm"}).json()["verdict"] == "false alarm"
    good = served.inspect(png(7), rate=0.08).json()
    if not good["anomalous"]:
        path = f"/v1/inspections/{good['uid']}/correction"
        assert "needs a box" in served.http.put(path, json={"verdict": "missed"}).json()["error"]
        outside = {"verdict": "missed", "boxes": [[70, 1, 50, 5]]}
        assert "inside the image" in served.http.put(path, json=outside).json()["error"]
        assert served.http.put(path, json={"verdict": "missed", "boxes": [[1, 1, 5, 5]]}).status_code == 200
    listed = served.http.get("/v1/models/tiles/corrections").json()
    assert found["uid"] in [each["inspection"] for each in listed]
    assert served.http.delete(path).json()["verdict"] is None


def test_headers_of_every_answer(served: Served) -> None:
    for path in ("/v2", "/v1/models", "/nowhere", "/page/"):
        headers = served.http.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["x-request-id"]
        assert "access-control-allow-origin" not in headers and "server" not in headers


def test_pages_of_other_origins_are_refused(served: Served) -> None:
    assert served.http.get("/v2", headers={"Origin": "http://evil.example"}).status_code == 403
    assert served.http.get("/v2", headers={"Origin": served.address}).status_code == 200


def test_without_keys_only_loopback_names_are_answered(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1 only"):
        ServerSettings.checked(folder=tmp_path, auth=False, host="0.0.0.0")
    with running(tmp_path / "state", auth=False) as served:
        assert served.http.get("/v1/models").json() == []
        assert served.http.get("/v1/models", headers={"Host": "rebound.example"}).status_code == 421


@pytest.mark.parametrize(("host", "yes"), [("localhost", True), ("::1", True), ("10.0.0.1", False), ("a.b", False)])
def test_loopback_names(host: str, yes: bool) -> None:
    assert is_loopback(host) == yes


def test_a_full_queue_answers_503(tiny_run: Path, tmp_path: Path) -> None:
    with running(tmp_path / "state", tiny_run, auth=False, queue=2) as served:
        engine = served.service.models.get(served.service.models.id("tiles")).detector.engine
        gate, infer = threading.Event(), engine.infer
        engine.infer = lambda *a: (gate.wait(20), infer(*a))[1]
        with ThreadPoolExecutor(4) as pool:
            first = [pool.submit(served.inspect, png(i)) for i in range(2)]
            until(lambda: served.service.inspector.admission.images == 2)
            refused = served.inspect(png(9))
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
            gate.set()
            assert [f.result().status_code for f in first] == [200, 200]
        assert 'cdo_ad_refused_total{reason="queue"} 1.0' in served.http.get("/metrics").text


def test_a_late_answer_is_given_up(tiny_run: Path, tmp_path: Path) -> None:
    with running(tmp_path / "state", tiny_run, auth=False, timeout=0.3) as served:
        engine = served.service.models.get(served.service.models.id("tiles")).detector.engine
        infer = engine.infer
        engine.infer = lambda *a: (time.sleep(1), infer(*a))[1]
        answer = served.inspect(png(1))
        assert answer.status_code == 503 and "too long" in answer.json()["error"]


def test_a_version_that_is_loaded_holds_nobody_up(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdo_ad.server.serving import models

    with running(tmp_path / "state", tiny_run, auth=False) as served:
        served.service.catalogue.add_version("tiles", tiny_run, "test", "slow", {"rate": 0.1})
        gate = threading.Event()
        monkeypatch.setattr(models, "load", lambda *a, **k: (gate.wait(20), load(*a, **k))[1])
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(served.inspect, png(1), version=2)
            time.sleep(0.3)
            assert served.inspect(png(2)).status_code == 200 and not slow.done()
            gate.set()
            assert slow.result().json()["version"] == 2


def test_images_of_one_size_are_judged_together(tiny_run: Path, tmp_path: Path) -> None:
    with running(tmp_path / "state", tiny_run, auth=False, wait_ms=200) as served:
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda i: served.inspect(png(i)), range(6)))
        scores = {a.json()["score"] for a in answers}
        assert len(scores) == 6
        text = served.http.get("/metrics").text
        assert 'cdo_ad_batch_size_bucket{le="1.0"} 0.0' in text or "cdo_ad_batch_size_count 1.0" in text


def test_metrics_and_the_drift_light(served: Served) -> None:
    served.http.post("/v1/models/tiles/drift/reset")  # what other tests inspected is another stream
    served.inspect(png(1))
    text = served.http.get("/metrics").text
    for name in ("cdo_ad_seconds_bucket", "cdo_ad_queue", "cdo_ad_inspections_total", "cdo_ad_p_value", "cdo_ad_drift"):
        assert name in text
    model = served.service.models.get(served.service.models.id("tiles"))
    for _ in range(400):  # the run was calibrated on a few images, so evidence grows slowly
        served.service.inspector.lights.update(model, 1e3, "")
    light = served.http.get("/v1/models/tiles").json()["light"]
    assert light["state"] == "red" and "camera" in light["sentence"]
    assert served.http.post("/v1/models/tiles/drift/reset").json()["state"] == "green"


def test_too_many_requests() -> None:
    limit = Pace(600)
    waits = [limit.wait("a") for _ in range(61)]
    assert waits[:60] == [0.0] * 60 and 0 < waits[60] <= 0.1
    assert limit.wait("b") == 0


def test_retention_removes_the_oldest_first_and_spares_what_is_pinned(served: Served, tmp_path: Path) -> None:
    from cdo_ad.server.store.database import open_database
    from cdo_ad.server.store.images import ImageStore

    engine = open_database(f"sqlite:///{tmp_path / 'a.sqlite'}")
    store = ImageStore(engine, tmp_path / "images")
    digests = [store.add(bytes([i]) * 1000) for i in range(5)]
    store.pin(digests[0])
    assert store.usage() == (5, 5000)
    for digest in digests:
        os.utime(store.path(digest), (0, 0))
    assert store.expire(days=1, gigabytes=3e-6) == 2
    assert [store.path(d).is_file() for d in digests] == [True, False, False, True, True]
    assert store.expire(days=1, gigabytes=1, now=time.time() + 2 * 86400) == 2
    assert store.read(digests[0]) == bytes(1000)
    (tmp_path / "images" / "ab").mkdir()
    (tmp_path / "images" / "ab" / ("ab" * 32)).write_bytes(b"left over")
    assert store.sweep(older_than=-1) == 1 and store.path(digests[0]).is_file()
    used = store.add(b"in use")
    store.write(b"in use")  # again, and its inspection is not recorded yet
    assert store.expire(days=1e-9, gigabytes=1) == 1 and store.path(used).is_file()
    engine.dispose()


def test_the_schema_is_that_of_the_migrations(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from cdo_ad.server.store.database import open_database
    from cdo_ad.server.store.tables import metadata

    engine = open_database(f"sqlite:///{tmp_path / 'a.sqlite'}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_logs_are_lines_of_json() -> None:
    from cdo_ad.server.logs import JsonFormatter, request_id

    record = logging.LogRecord("cdo_ad.server", logging.WARNING, "", 0, "%s fails", ("it",), None)
    record.source = "cam"
    token = request_id.set("abc")
    entry = json.loads(JsonFormatter().format(record))
    request_id.reset(token)
    assert entry["message"] == "it fails" and entry["source"] == "cam" and entry["request"] == "abc"
    assert entry["level"] == "warning" and entry["time"].endswith("+00:00")


def test_a_key_that_another_process_revokes_is_refused_soon(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from cdo_ad.server.store import keys
    from cdo_ad.server.store.database import open_database

    monkeypatch.setattr(keys, "REMEMBERED", 0.0)
    key = served.service.keys.create("other process", "operator")
    assert served.service.keys.find(key) is not None
    engine = open_database(served.service.settings.database_url)
    keys.KeyStore(engine).revoke("other process")
    engine.dispose()
    assert served.service.keys.find(key) is None


def test_the_verb_keys(served: Served) -> None:
    from typer.testing import CliRunner

    from cdo_ad.cli.main import app

    state = ["--state", str(served.service.settings.folder)]
    made = CliRunner().invoke(app, ["keys", *state, "--add", "by hand", "--role", "engineer"])
    assert made.exit_code == 0 and made.stdout.startswith("cdo_")
    assert "by hand" in CliRunner().invoke(app, ["keys", *state]).stdout
    assert CliRunner().invoke(app, ["keys", *state, "--revoke", "by hand"]).exit_code == 0
    assert "revoked" in CliRunner().invoke(app, ["keys", *state]).stdout
    assert isinstance(CliRunner().invoke(app, ["keys", *state, "--add", "x", "--role", "king"]).exception, ConfigError)
