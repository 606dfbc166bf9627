"""Teaching a product, versions, golden samples, shadow mode, corrections that become a new version."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fakes
from cdo_ad.progress import listen, progress_bar
from cdo_ad.server.teaching import worker
from serving import Served, as_png, png, running, until

QUICK = {"branches": "intensity", "image_height": 32, "image_width": 32, "calibration": "held-out", "epochs": 1,
         "normalize_brightness": False}  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running(tmp_path_factory.mktemp("server") / "state", max_pixels=10**6) as found:
        yield found


def wait(served: Served, job: dict[str, Any], seconds: float = 120) -> dict[str, Any]:
    path = f"/v1/jobs/{job['uid']}"
    return until(lambda: (j := served.http.get(path).json())["state"] not in ("waiting", "running") and j, seconds)


def upload(served: Served, product: str, *images: bytes) -> dict[str, Any]:
    files = [("files", (f"{i}.png", data, "image/png")) for i, data in enumerate(images)]
    return served.http.post(f"/v1/teach/{product}/images", files=files).json()


@pytest.fixture(scope="module")
def taught(served: Served) -> dict[str, Any]:
    """The job that taught `caps`: an even gray with noise, and a version that is active."""
    random = np.random.default_rng(0)
    images = [
        as_png((120 + random.normal(0, 6, (40, 48, 3)) + random.normal(0, 4)).clip(0, 255).astype(np.uint8))
        for _ in range(60)
    ]
    assert upload(served, "caps", *images)["count"] == 60
    region = np.zeros((40, 48), np.uint8)
    region[:, :16] = 255
    files = {"file": ("region.png", as_png(region), "image/png")}
    assert served.http.put("/v1/teach/caps/region", files=files).json()["region"]
    assert served.http.get("/v1/teach/caps/region").content == as_png(region)
    job = served.http.post("/v1/teach/caps/train", json={"settings": QUICK, "rate": 0.2, "note": "first"})
    assert job.status_code == 202, job.text
    return wait(served, job.json())


def test_uploads_are_kept_once_and_bad_ones_are_named(served: Served) -> None:
    first = upload(served, "nuts", png(1), png(1), b"no image", as_png(np.zeros((1100, 1000), np.uint8)))
    assert first["count"] == 1 and len(first["kept"]) == 2
    assert [each["name"] for each in first["refused"]] == ["2.png", "3.png"]
    digest = first["kept"][0]
    small = served.http.get(f"/v1/teach/nuts/images/{digest}")
    assert small.headers["content-type"] == "image/jpeg"
    assert served.http.delete(f"/v1/teach/nuts/images/{digest}").json()["count"] == 0
    assert served.http.get(f"/v1/teach/nuts/images/{digest}").status_code == 404
    assert served.http.get("/v1/teach/nuts/images/..%2f..%2fserver.sqlite").status_code == 404


def test_a_region_of_interest_is_checked(served: Served) -> None:
    def put(data: bytes) -> str:
        return served.http.put("/v1/teach/nuts/region", files={"file": ("r.png", data, "image/png")}).text

    assert "covers nearly nothing" in put(as_png(np.zeros((40, 40), np.uint8))) and "not a JPEG" in put(b"x")
    assert served.http.get("/v1/teach/nuts/region").status_code == 404
    put(as_png(np.full((40, 40), 255, np.uint8)))
    assert not served.http.delete("/v1/teach/nuts/region").json()["region"]


@pytest.mark.parametrize("name", ["..", "a..b", ".hidden", "a/b", "x" * 70, "bad\x07", " "])
def test_names_that_no_product_has(served: Served, name: str) -> None:
    from urllib.parse import quote

    answer = served.http.get(f"/v1/teach/{quote(name, safe='')}")
    assert answer.status_code in (400, 404), name


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"settings": {"weights": "/etc/passwd"}}, "cannot be changed from here"),
        ({"settings": {"epochs": 0}}, "epochs"),
        ({"recipe": "none"}, "unknown recipe"),
        ({"rate": 2}, "rate"),
    ],
)
def test_plans_that_are_none(served: Served, plan: dict[str, Any], words: str) -> None:
    upload(served, "bolts", png(1), png(2))
    answer = served.http.post("/v1/teach/bolts/train", json=plan)
    assert answer.status_code == 400 and words in answer.json()["error"]


def test_too_few_images(served: Served) -> None:
    assert "20 or more" in served.http.post("/v1/teach/none/train", json={}).json()["error"]


def test_the_check_comes_with_findings(served: Served) -> None:
    upload(served, "mixed", *[png(i) for i in range(6)], png(7, size=(30, 200)))
    job = wait(served, served.http.post("/v1/teach/mixed/check", json={}).json())
    assert job["state"] == "done", job
    assert job["result"]["n"]["train"] == 7 and job["result"]["findings"]


def test_a_product_is_taught_and_activated(served: Served, taught: dict[str, Any]) -> None:
    assert taught["state"] == "done", taught
    assert taught["result"]["version"] == 1 and "20.00%" in taught["result"]["promise"][0]
    assert served.inspect(png(1), "caps").status_code == 404  # not active yet
    assert served.http.post("/v1/models/caps/versions/1/activate").json() == {"active": 1, "golden": []}
    part = np.full((40, 48, 3), 120, np.uint8)
    part[5:20, 2:12] = 250
    found = served.inspect(as_png(part), "caps").json()
    assert found["anomalous"] and found["version"] == 1
    listed = served.http.get("/v1/models/caps/versions").json()
    assert listed["versions"][0]["note"] == "first" and listed["versions"][0]["summary"]["good_images"] == 60
    assert found["regions"][0]["box"][0] < 16
    part[5:20, 2:12], part[20:35, 42:] = 120, 250
    outside = served.inspect(as_png(part), "caps", map=True).json()  # of the region of interest
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(outside["map"]))))
    assert not seen[:, 20:].any() and outside["score"] < found["score"]
    report = served.http.get("/v1/models/caps/versions/1/report")
    assert report.status_code == 200 and "attachment" in report.headers["content-disposition"]


def test_a_job_is_cancelled_and_leaves_nothing(served: Served) -> None:
    for i in range(20):
        upload(served, "slow", png(i))
    job = served.http.post("/v1/teach/slow/train", json={"recipe": "lite0"}).json()
    until(lambda: served.http.get(f"/v1/jobs/{job['uid']}").json()["state"] == "running", 60)
    served.http.post(f"/v1/jobs/{job['uid']}/cancel")
    found = wait(served, job)
    assert found["state"] == "cancelled"
    assert served.http.post(f"/v1/jobs/{job['uid']}/cancel").status_code == 409
    assert served.http.get("/v1/jobs/none").status_code == 404
    runs = served.service.settings.folder / "runs"
    assert not any(len(list((each / "data" / "good").iterdir())) == 20 for each in runs.iterdir())
    assert [j["state"] for j in served.http.get("/v1/jobs").json() if j["uid"] == job["uid"]] == ["cancelled"]


def test_corrections_become_a_version(served: Served, taught: dict[str, Any]) -> None:
    served.http.post("/v1/models/caps/versions/1/activate")
    answer = served.http.post("/v1/models/caps/adapt", json={})
    assert answer.status_code == 409 and "no new correction" in answer.json()["error"]
    random = np.random.default_rng(1)
    for i in range(4):
        bright = (150 + i + random.normal(0, 6, (40, 48, 3))).clip(0, 255).astype(np.uint8)
        bright[..., 2] = 40 + i
        found = served.inspect(as_png(bright), "caps").json()
        assert found["anomalous"]
        served.http.put(f"/v1/inspections/{found['uid']}/correction", json={"verdict": "false alarm"})
    job = wait(served, served.http.post("/v1/models/caps/adapt", json={"note": "brighter parts"}).json())
    assert job["state"] == "done", job
    changes = {each["group"]: each for each in job["result"]["changes"]}
    assert changes["new good"]["alarms_before"] == 4 and changes["new good"]["alarms_after"] < 4
    assert served.http.get("/v1/models/caps/corrections").json() == []
    listed = served.http.get("/v1/models/caps/versions").json()["versions"]
    assert listed[0]["number"] == job["result"]["version"] and listed[0]["summary"]["adapted_from"] == 1


def test_versions_golden_samples_and_rolling_back(tiny_run: Path, tmp_path: Path) -> None:
    with running(tmp_path / "state", tiny_run, auth=False) as served:
        service, http = served.service, served.http
        service.catalogue.add_version("tiles", tiny_run, "test", "the same again", {"rate": 0.1})
        verdict = served.inspect(png(1)).json()
        sample = {"inspection": verdict["uid"], "anomalous": verdict["anomalous"], "note": "right"}
        assert len(http.post("/v1/models/tiles/golden", json=sample).json()) == 1
        assert http.post("/v1/models/tiles/versions/2/activate").json()["golden"][0]["right"]
        files = {"file": ("b.png", png(2), "image/png")}
        wrong = not served.inspect(png(2)).json()["anomalous"]
        query = {"anomalous": wrong, "note": "wrong on purpose"}
        assert http.post("/v1/models/tiles/golden/upload", files=files, params=query).status_code == 201
        blocked = http.post("/v1/models/tiles/versions/1/activate")
        assert blocked.status_code == 409 and [g["right"] for g in blocked.json()["golden"]] == [True, False]
        assert http.get("/v1/models/tiles").json()["active"] == 2
        assert http.put("/v1/models/tiles/settings", json={"golden_rule": "warn"}).json()["golden_rule"] == "warn"
        assert http.post("/v1/models/tiles/rollback").json()["active"] == 1
        assert http.post("/v1/models/tiles/rollback").json()["active"] == 2
        compared = http.get("/v1/models/tiles/compare", params={"a": 1, "b": 2}).json()
        assert len(compared["a"]["golden"]) == 2 and compared["b"]["version"] == 2
        number = http.get("/v1/models/tiles/golden").json()[1]["id"]
        assert http.get(f"/v1/models/tiles/golden/{number}/thumbnail").status_code == 200
        assert len(http.delete(f"/v1/models/tiles/golden/{number}").json()) == 1
        assert http.post("/v1/models/tiles/versions/7/activate").status_code == 404
        assert http.post("/v1/models/tiles/versions/0/activate").status_code == 404
        actions = [each["action"] for each in http.get("/v1/audit").json()["entries"]]
        assert "activation blocked" in actions and "roll back" in actions and "golden sample" in actions


def test_a_shadow_judges_without_a_say(tiny_run: Path, tmp_path: Path) -> None:
    with running(tmp_path / "state", tiny_run, auth=False) as served:
        served.service.catalogue.add_version("tiles", tiny_run, "test", "candidate", {"rate": 0.1})
        assert served.http.put("/v1/models/tiles/shadow", json={"version": 9}).status_code == 404
        assert served.http.put("/v1/models/tiles/shadow", json={"version": 2}).json()["shadow"] == 2
        found = [served.inspect(png(i)).json() for i in range(3)]
        assert {each["version"] for each in found} == {1}
        summary = until(
            lambda: (s := served.http.get("/v1/models/tiles/versions").json()["shadow_summary"])["images"] == 3 and s
        )
        assert summary["differs"] == 0
        seen = served.http.get(f"/v1/inspections/{found[0]['uid']}").json()["shadows"][0]
        assert seen["version"] == 2 and seen["score"] == pytest.approx(found[0]["score"], rel=1e-5)
        assert served.http.put("/v1/models/tiles/shadow", json={"version": None}).json()["shadow"] is None


def test_a_rate_is_set_for_a_product(tiny_run: Path, tmp_path: Path) -> None:
    with running(tmp_path / "state", tiny_run, auth=False) as served:
        before = served.inspect(png(1)).json()
        assert served.http.put("/v1/models/tiles/settings", json={"rate": 0.0001}).status_code == 400
        assert served.http.put("/v1/models/tiles/settings", json={"rate": 0.5}).json()["rate"] == 0.5
        after = served.inspect(png(1)).json()
        assert after["rate"] == 0.5 and after["threshold"] < before["threshold"]


def test_a_job_that_ran_at_a_kill_is_called_interrupted(tmp_path: Path) -> None:
    from sqlalchemy import insert

    from cdo_ad.server.store import tables
    from cdo_ad.server.store.database import open_database
    from cdo_ad.server.teaching.jobs import Jobs

    engine = open_database(f"sqlite:///{tmp_path / 'a.sqlite'}")
    with engine.begin() as connection:
        row = {"uid": "a", "kind": "train", "product": "p", "state": "running", "created": time.time(), "by": "x"}
        connection.execute(insert(tables.jobs).values(**row, message="", result={}))
    jobs = Jobs(engine, tmp_path)
    assert jobs.get("a")["state"] == "interrupted"
    jobs.close()
    engine.dispose()


def test_progress_is_heard() -> None:
    from cdo_ad import progress

    heard: list[tuple[str, float, float | None]] = []
    listen(lambda *words: heard.append(words))
    try:
        with progress_bar() as bar:
            task = bar.add_task("reading", total=2, note="")
            bar.update(task, advance=1)
            bar.update(task, advance=1)
    finally:
        progress._listeners.clear()
    assert heard == [("reading", 1, 2), ("reading", 2, 2)]


def test_the_worker_tells_errors(tmp_path: Path) -> None:
    import json

    fakes.write(tmp_path / "data" / "good" / "a.png", fakes.make_image(1)[0])
    job = {"kind": "adapt", "run": str(tmp_path / "none"), "out": str(tmp_path / "out"), "good": str(tmp_path)}
    (tmp_path / "job.json").write_text(json.dumps({**job, "bad": None, "epochs": 0, "device": "cpu"}))
    before = __import__("warnings").showwarning
    try:
        assert worker.main(tmp_path) == 1
    finally:
        __import__("warnings").showwarning = before
        __import__("cdo_ad.progress").progress._listeners.clear()
    assert "not a run folder" in json.loads((tmp_path / "result.json").read_text())["error"]
