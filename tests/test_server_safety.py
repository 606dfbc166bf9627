"""What must never happen: an unexpected error by odd requests, and an acknowledged inspection that is lost."""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy import create_engine, text

import fakes
from line_helpers import free_port, wait_for_port
from serving import Process, Served, as_png, png, running, until

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture(scope="module")
def served(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("server") / "state"
    with running(folder, tiny_run, auth=False, requests_per_minute=10**6) as found:
        yield found


def test_no_request_of_the_openapi_document_gives_an_unexpected_error(served: Served) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    schema = schemathesis.openapi.from_dict(served.http.get("/openapi.json").json())
    uid = served.inspect(png(1)).json()["uid"]
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) > 40
    for operation in operations:
        if not operation.path.endswith(("/train", "/adapt", "/check")):  # these start processes
            call(operation, served.address, {"product": "tiles", "uid": uid, "version": 1, "number": 1})


def call(operation: Any, address: str, known: dict[str, Any]) -> None:
    """Send a few odd requests, most of them to what is there."""
    from hypothesis import HealthCheck, Phase, given, settings

    @settings(max_examples=8, deadline=None, database=None, phases=[Phase.generate], derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=operation.as_strategy())
    def send(case: Any) -> None:
        if chance.random() < 0.6:  # else nearly all would ask for what is not there
            case.path_parameters.update({k: v for k, v in known.items() if k in case.path_parameters})
        answer = case.call(base_url=address)
        assert answer.status_code < 500 or answer.status_code == 503, (operation.label, answer.text)
        if answer.status_code >= 400:
            assert "error" in answer.json()

    chance = random.Random(operation.label)
    send()


def test_damaged_images_are_refused_and_never_an_unexpected_error(served: Served) -> None:
    chance = np.random.default_rng(3)
    originals = [png(1), (jpeg := _encoded("JPEG")), _encoded("TIFF"), _encoded("WEBP"), _encoded("BMP"), jpeg[:100]]
    statuses = set()
    for i in range(120):
        data = bytearray(originals[i % len(originals)])
        for _ in range(int(chance.integers(1, 12))):
            data[int(chance.integers(len(data)))] = int(chance.integers(256))
        if i % 5 == 0:
            data = data[: int(chance.integers(1, len(data)))]
        answer = served.inspect(bytes(data))
        assert answer.status_code in (200, 422), answer.text
        statuses.add(answer.status_code)
    assert statuses == {200, 422}


def _encoded(kind: str) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(fakes.make_image(1, size=(64, 80))[0]).save(out, kind)
    return out.getvalue()


def load(address: str, images: list[bytes], acknowledged: list[str], stop: threading.Event) -> None:
    with httpx.Client(base_url=address, timeout=30) as http:
        number = 0
        while not stop.is_set():
            number += 1
            files = {"file": ("a.png", images[number % len(images)], "image/png")}
            try:
                answer = http.post("/v1/models/tiles/inspect", files=files)
            except httpx.HTTPError:
                return  # it was killed
            if answer.status_code == 200:
                acknowledged.append(answer.json()["uid"])


def killed(folder: Path, run: Path, rounds: int, seconds: float, *arguments: str) -> tuple[list[str], str]:
    """Kill a server under load, several times; the ids of all that it acknowledged, and its database's URL."""
    images = [as_png(fakes.make_image(i, size=(64, 80))[0]) for i in range(20)]
    acknowledged: list[str] = []
    for _ in range(rounds):
        process = Process(folder, f"tiles={run}", "--no-auth", "--backend", "torch", *arguments)
        stop = threading.Event()
        threads = [threading.Thread(target=load, args=(process.address, images, acknowledged, stop)) for _ in range(4)]
        for thread in threads:
            thread.start()
        before = len(acknowledged)
        until(lambda before=before: len(acknowledged) > before + 3, 60)
        time.sleep(seconds)
        process.kill()
        for thread in threads:
            thread.join(30)
    return acknowledged, f"sqlite:///{folder / 'server.sqlite'}"


def missing(url: str, acknowledged: list[str]) -> set[str]:
    engine = create_engine(url)
    with engine.connect() as connection:
        kept = {row[0] for row in connection.execute(text("SELECT uid FROM inspections"))}
    engine.dispose()
    return set(acknowledged) - kept


def test_after_kills_under_load_every_acknowledged_inspection_is_there(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    acknowledged, url = killed(folder, tiny_run, rounds=2, seconds=0.5)
    assert len(acknowledged) > 8 and missing(url, acknowledged) == set()
    process = Process(folder, "--no-auth")  # no run named: the last one is remembered
    with httpx.Client(base_url=process.address) as http:
        assert http.get("/v1/history").json()["total"] >= len(acknowledged)
        for uid in acknowledged[:: max(1, len(acknowledged) // 10)]:
            assert http.get(f"/v1/inspections/{uid}/image").status_code == 200
    assert process.stop() == 0  # gracefully


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A real server of its own; where the tests run as root, as the user `postgres`, in a folder open to that user."""
    import os

    if not POSTGRES or (os.geteuid() == 0 and shutil.which("runuser") is None):
        pytest.skip("no PostgreSQL: install it with  apt-get install postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    folder, port = Path(tempfile.mkdtemp(prefix="postgres")), free_port()
    become = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if become:
        shutil.chown(folder, "postgres")
    data = str(folder / "data")
    tool = str(POSTGRES[-1] / "initdb")
    subprocess.run([*become, tool, "-D", data, "-A", "trust", "-U", "postgres"], check=True, capture_output=True)
    words = [*become, str(POSTGRES[-1] / "postgres"), "-D", data, "-p", str(port), "-k", str(folder), "-h", "127.0.0.1"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for_port(port, 60)
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*become, str(POSTGRES[-1] / "pg_ctl"), "stop", "-D", data, "-m", "fast"], check=True,
                           capture_output=True)  # fmt: skip
            server.wait(30)
            shutil.rmtree(folder)


def test_the_same_on_postgresql(tiny_run: Path, tmp_path: Path, postgres: str) -> None:
    acknowledged, _ = killed(tmp_path / "state", tiny_run, 1, 0.5, "--database", postgres)
    url = postgres.replace("postgresql://", "postgresql+psycopg://")
    assert len(acknowledged) > 3 and missing(url, acknowledged) == set()
    with running(tmp_path / "state", database=postgres, auth=False) as served:
        rows = served.http.get("/v1/history", params={"decision": "good"}).json()
        assert rows["total"] > 0 and served.http.get("/v1/history.csv").status_code == 200
        uid = served.inspect(png(3), rate=0.9).json()["uid"]
        if served.http.get(f"/v1/inspections/{uid}").json()["anomalous"]:
            body = {"verdict": "false alarm"}
            assert served.http.put(f"/v1/inspections/{uid}/correction", json=body).status_code == 200
        assert served.http.get("/v1/audit").json()["whole"]
        assert served.http.get("/v1/models/tiles/versions").json()["active"] == 1
        assert served.service.images.usage()[0] > 0 and served.service.images.expire(1e-9, 1) > 0


def test_two_servers_do_not_share_a_folder(tiny_run: Path, tmp_path: Path) -> None:
    from cdo_ad.errors import BusyError
    from cdo_ad.server.service import opened
    from cdo_ad.server.settings import ServerSettings

    settings = ServerSettings.checked(folder=tmp_path / "state")
    with opened(settings), pytest.raises(BusyError), opened(settings):
        pass


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://nobody@127.0.0.1:1/none", "cannot be reached"),
        ("oracle://x", "not usable"),
        ("nonsense", "not usable"),
    ],
)
def test_databases_that_are_none(url: str, words: str, tmp_path: Path) -> None:
    from cdo_ad.server.errors import DatabaseError
    from cdo_ad.server.service import opened
    from cdo_ad.server.settings import ServerSettings

    with pytest.raises(DatabaseError, match=words), opened(ServerSettings.checked(folder=tmp_path, database=url)):
        pass


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    from cdo_ad.server.errors import DatabaseError
    from cdo_ad.server.store.database import open_database

    url = f"sqlite:///{tmp_path / 'a.sqlite'}"
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(DatabaseError, match="newer version"):
        open_database(url)
