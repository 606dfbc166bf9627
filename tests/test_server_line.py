"""The line: folders, videos, streams, triggers; files, web, MQTT, Modbus, OPC UA; each with a real counterpart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cdo_ad.cli.main import app
from cdo_ad.errors import CdoError
from cdo_ad.inference.detector import Detector, load
from cdo_ad.server.errors import LineError
from cdo_ad.server.line.delivery import Delivery
from cdo_ad.server.line.folder import FolderSource
from cdo_ad.server.line.frames import Frame, Newest
from cdo_ad.server.line.genicam import as_pixels
from cdo_ad.server.line.outbox import Outbox
from cdo_ad.server.line.sinks import open_sink, shown
from cdo_ad.server.line.sources import open_source, open_trigger
from cdo_ad.server.line.triggers import HttpTrigger, Triggered
from cdo_ad.server.line.video import LiveSource, VideoFile
from cdo_ad.server.line.watch import watch
from line_helpers import Plc, Stream, Web, free_port, mosquitto, rtsp_server, wait_for_port, write_video
from serving import png, running, until


def message(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "uid": f"u{number}", "at": time.time(), "product": "tiles", "name": "a.png", "anomalous": bool(number % 2),
        "decision": "anomalous" if number % 2 else "good", "score": 1.5 + number, "p_value": 0.25, "threshold": 1.0,
        "sentence": "good: 3 of 4 good images score as high", "regions": [], **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def detector(tiny_run: Path) -> Detector:
    return load(tiny_run, backend="torch", device="cpu")


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def take(source: Any, stop: threading.Event, count: int) -> list[Frame]:
    found = []
    for frame in source.frames(stop):
        frame.done(True)
        found.append(frame)
        if len(found) == count:
            stop.set()
    source.close()
    return found


def test_a_folder_gives_finished_files_once(tmp_path: Path, stop: threading.Event) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.png", "deep/a.png", ".hidden.png", "notes.txt"):
        (folder / name).write_bytes(png(1))
    growing = folder / "grows.png"
    growing.write_bytes(b"x")
    ended = threading.Event()

    def grow() -> None:
        while not ended.is_set():
            with growing.open("ab") as file:
                file.write(b"x")
            time.sleep(0.02)

    writer = threading.Thread(target=grow)
    writer.start()
    memory = tmp_path / "seen.sqlite"
    names = [frame.name for frame in take(FolderSource(folder, memory, settle=0.1), stop, 2)]
    assert names == ["b.png", "deep/a.png"]
    ended.set()
    writer.join()
    again = FolderSource(folder, memory, settle=0.1, once=True)
    assert [frame.name for frame in take(again, threading.Event(), 9)] == ["grows.png"]


def test_files_are_moved_when_judged(tmp_path: Path, detector: Detector, stop: threading.Event) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "done").mkdir()
    (folder / "done" / "a.png").write_bytes(b"an older one")
    (folder / "a.png").write_bytes(png(1))
    (folder / "deep" / "bad.png").write_bytes(b"no image")
    source = FolderSource(folder, tmp_path / "seen", "move", settle=0.05, once=True)
    found = list(watch(detector, source, [], tmp_path / "state", stop))
    assert [("error" in each, each["name"]) for each in found] == [(False, "a.png"), (True, "deep/bad.png")]
    assert (folder / "done" / "a_1.png").is_file() and (folder / "failed" / "deep" / "bad.png").is_file()
    assert not (folder / "a.png").exists()


def test_a_video_gives_every_frame(tmp_path: Path, stop: threading.Event) -> None:
    file = write_video(tmp_path / "a.avi", 6)
    found = list(VideoFile(file).frames(stop))
    assert len(found) == 6 and [int(f.content.mean()) for f in found] == pytest.approx([0, 10, 20, 30, 40, 50], abs=3)
    assert len(list(VideoFile(file, every=4).frames(stop))) == 2
    (tmp_path / "b.avi").write_bytes(b"no video")
    with pytest.raises(LineError, match="cannot be read as a video"):
        list(VideoFile(tmp_path / "b.avi").frames(stop))


def test_a_stream_gives_its_newest_image_and_is_connected_again(stop: threading.Event) -> None:
    stream = Stream()
    source = LiveSource("cam", stream.address)
    ages = []
    for count, frame in enumerate(source.frames(stop), 1):
        newest = stream.number % 250
        ages.append((newest - int(frame.content.mean())) % 250)
        assert time.time() - frame.at < 2
        time.sleep(0.15)  # a slow detector
        if count == 5:
            stream.cut()
        if count == 10:
            stop.set()
    status = source.status()
    assert status["dropped"] > 10 and status["connections"] >= 2 and stream.connections >= 2
    assert np.median(ages) < 12, ages  # at 50 images a second, a queue would lag by hundreds
    stream.close()


def test_a_stream_by_rtsp_that_goes_and_comes_back(tmp_path: Path, stop: threading.Event) -> None:
    port = free_port()
    source = open_source(f"rtsp://user:secret@127.0.0.1:{port}/line", tmp_path)
    found: list[Frame] = []
    thread = threading.Thread(target=lambda: found.extend(source.frames(stop)))
    for _ in range(2):
        count = len(found)
        with rtsp_server(port):
            if not thread.is_alive():
                thread.start()
            until(lambda count=count: len(found) > count + 5, 40)
    assert found[0].content.shape == (48, 64, 3) and "secret" not in found[0].name
    stop.set()
    thread.join(20)


def test_a_stream_that_is_not_there_is_waited_for(stop: threading.Event) -> None:
    source = LiveSource("cam", f"http://127.0.0.1:{free_port()}/none")
    thread = threading.Thread(target=lambda: list(source.frames(stop)))
    thread.start()
    assert until(lambda: source.status()["error"]) and not source.status()["connected"]
    stop.set()
    thread.join(15)
    assert not thread.is_alive()


def test_a_trigger_by_http_takes_one_image(stop: threading.Event) -> None:
    stream, trigger = Stream(), HttpTrigger("127.0.0.1", 0)
    source = Triggered(LiveSource("cam", stream.address), trigger)
    found: list[Frame] = []
    thread = threading.Thread(target=lambda: found.extend(source.frames(stop)))
    thread.start()
    until(lambda: trigger.port and source.status()["arrived"] > 3)
    assert found == []
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{trigger.port}/", method="POST")).close()
    until(lambda: source.status()["triggered"] == 1)
    time.sleep(0.3)
    assert source.status()["triggered"] == 1
    stop.set()
    thread.join(10)
    stream.close()
    with pytest.raises(LineError, match="needs a camera"):
        Triggered(FolderSource(Path.cwd(), Path("/dev/null").parent / "shm" / "x.sqlite"), trigger)


def test_a_coil_of_a_plc_is_a_trigger(stop: threading.Event) -> None:
    plc = Plc(port := free_port())
    fire = threading.Event()
    open_trigger(f"modbus://127.0.0.1:{port}/7").start(fire, stop)
    time.sleep(0.3)
    assert not fire.is_set()
    for _ in range(2):
        plc.set_coil(7, True)
        assert fire.wait(5)
        plc.set_coil(7, False)
        time.sleep(0.2)
        fire.clear()
    stop.set()
    time.sleep(0.2)
    plc.close()


@pytest.mark.parametrize(
    "text", ["nowhere", "camera:x", "genicam:none.cti", "missing.mp4"],
)  # fmt: skip
def test_sources_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(LineError):
        open_source(text, tmp_path)


@pytest.mark.parametrize("text", ["modbus://", "modbus://h/x", "ftp://h", "http://h"])
def test_triggers_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(LineError, match="is no trigger"):
        open_trigger(text)


@pytest.mark.parametrize("text", ["", "mqtt://h", "modbus://h/?speed=1", "modbus://h/?coil=x", "smtp://h"])
def test_sinks_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(LineError, match="is no sink"):
        open_sink(text)


def test_passwords_come_from_the_environment_and_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LineError, match="HOOK_SECRET is not set"):
        open_sink("https://example.com/${HOOK_SECRET}")
    monkeypatch.setenv("HOOK_SECRET", "abc")
    assert open_sink("https://example.com/${HOOK_SECRET}")._address.endswith("/abc")  # type: ignore[attr-defined]
    assert "secret" not in shown("mqtt://user:secret@host/topic") and "host/topic" in shown("mqtt://u:s@host/topic")


def test_pixels_of_industrial_cameras() -> None:
    assert as_pixels(np.arange(6, dtype=np.uint8), 2, 3, "Mono8").shape == (2, 3, 3)
    rgb = as_pixels(np.arange(18, dtype=np.uint8), 2, 3, "BGR8")
    assert rgb[0, 0].tolist() == [2, 1, 0]
    with pytest.raises(LineError, match="BayerRG12"):
        as_pixels(np.zeros(6, np.uint8), 2, 3, "BayerRG12")


def test_the_newest_frame_replaces_the_others() -> None:
    newest = Newest()
    for n in range(3):
        newest.put(Frame(str(n), b""))
    found = newest.take(0)
    assert found is not None and found.name == "2" and newest.dropped == 2 and newest.take(0) is None


def test_an_outbox_survives_and_is_bounded(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "a.sqlite", most=3)
    for n in range(5):
        box.put({"n": n})
    assert box.count() == 3 and box.lost() == 2
    box.close()
    box = Outbox(tmp_path / "a.sqlite")
    assert [m["n"] for _, m in box.waiting(9)] == [2, 3, 4] and box.newest() == (5, {"n": 4})
    box.taken(4)
    assert [m["n"] for _, m in box.waiting(9)] == [4]
    box.close()


def deliver(sink: str, tmp_path: Path, count: int) -> tuple[Delivery, Outbox]:
    box = Outbox(tmp_path / "box.sqlite")
    for n in range(count):
        box.put(message(n))
    return Delivery(shown(sink), open_sink(sink), box), box


def test_lines_of_json(tmp_path: Path) -> None:
    delivery, box = deliver(f"jsonl:{tmp_path / 'deep' / 'out.jsonl'}", tmp_path, 3)
    until(lambda: not box.count())
    delivery.close()
    lines = (tmp_path / "deep" / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["uid"] for line in lines] == ["u0", "u1", "u2"]
    box.close()


def test_a_webhook_is_tried_again_until_it_answers(tmp_path: Path) -> None:
    web = Web()
    web.broken = True
    delivery, box = deliver(web.address, tmp_path, 2)
    until(lambda: delivery.status()["failures"] >= 2)
    assert "500" in delivery.status()["error"] and box.count() == 2
    web.broken = False
    until(lambda: not box.count())
    assert [m["uid"] for m in web.received] == web.keys == ["u0", "u1"]
    delivery.close()
    web.close()
    box.close()


def test_mqtt_by_a_real_broker_that_goes_and_comes_back(tmp_path: Path) -> None:
    import aiomqtt

    port, received = free_port(), []

    async def listen() -> None:
        async with aiomqtt.Client("127.0.0.1", port) as client:
            await client.subscribe("line/1", qos=1)
            ready.set()
            async for each in client.messages:
                received.append(json.loads(each.payload))

    def run() -> None:
        loop = asyncio.SelectorEventLoop()
        with contextlib.suppress(aiomqtt.MqttError):  # the broker went
            loop.run_until_complete(listen())
        loop.close()

    delivery, box = deliver(f"mqtt://127.0.0.1:{port}/line/1", tmp_path, 0)
    for round in range(2):
        ready = threading.Event()
        with mosquitto(tmp_path, port):
            listener = threading.Thread(target=run)
            listener.start()
            assert ready.wait(10)
            for n in range(3):
                box.put(message(10 * round + n))
            delivery.wake()
            until(lambda: not box.count())
            until(lambda count=3 * (round + 1): len(received) >= count)
        listener.join(10)
    assert [m["uid"] for m in received] == ["u0", "u1", "u2", "u10", "u11", "u12"]
    delivery.close()
    box.close()


def test_a_plc_gets_the_newest_decision(tmp_path: Path) -> None:
    port = free_port()
    delivery, box = deliver(f"modbus://127.0.0.1:{port}/?coil=3&register=10", tmp_path, 0)
    for n in range(4):
        box.put(message(n))  # while it is switched off
    delivery.wake()
    until(lambda: delivery.status()["failures"])
    plc = Plc(port)
    until(lambda: plc.registers(10) == [1])
    assert plc.coil(3)
    count, p_value, high, low = plc.registers(10, 4)
    assert (count, p_value) == (1, 2500)
    assert struct.unpack(">f", struct.pack(">HH", high, low))[0] == pytest.approx(4.5)
    box.put(message(6))
    box.put(message(1, at=time.time() - 60))  # as after an outage: it says nothing of the part that is in place
    delivery.wake()
    until(lambda: not box.count())
    assert delivery.status()["stale"] >= 4
    delivery.close()
    plc.close()
    box.close()


def test_opc_ua_shows_decision_and_counters(tmp_path: Path) -> None:
    from asyncua import Client

    port = free_port()
    delivery, box = deliver(f"opcua://127.0.0.1:{port}", tmp_path, 0)
    wait_for_port(port, 60)
    for n in (1, 2, 3):
        box.put(message(n))
        delivery.wake()
        until(lambda: not box.count())

    async def read() -> dict[str, Any]:
        async with Client(f"opc.tcp://127.0.0.1:{port}/cdo-ad") as client:
            space = await client.get_namespace_index("urn:cdo-ad:inspection")
            folder = await client.nodes.objects.get_child(f"{space}:Inspection")
            return {(await n.read_browse_name()).Name: await n.read_value() for n in await folder.get_children()}

    values = asyncio.run(read())
    assert values["Anomalous"] is True and values["Uid"] == "u3" and values["Score"] == 4.5
    assert (values["Inspected"], values["Rejected"]) == (3, 2)
    delivery.close()
    box.close()


def test_a_dead_sink_never_stops_the_watch(tmp_path: Path, detector: Detector, stop: threading.Event) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(5):
        (folder / f"{n}.png").write_bytes(png(n))
    dead = f"http://127.0.0.1:{free_port()}/"
    source = FolderSource(folder, tmp_path / "seen.sqlite", settle=0.05, once=True)
    start = time.monotonic()
    assert len(list(watch(detector, source, [dead], tmp_path / "state", stop))) == 5
    assert time.monotonic() - start < 15
    (box,) = (tmp_path / "state").glob("outbox-*.sqlite")
    kept = Outbox(box)
    assert kept.count() == 5  # for the next start
    kept.close()


def test_the_verb_watch(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(1))
    (folder / "b.png").write_bytes(b"no image")
    words = ["watch", str(tiny_run), str(folder), "--once", "--state", str(tmp_path / "state")]
    words += ["--to", f"jsonl:{tmp_path / 'out.jsonl'}", "--backend", "torch"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[0]["name"] == "a.png" and lines[0]["latency"] > 0 and "error" in lines[1]
    assert json.loads((tmp_path / "out.jsonl").read_text())["uid"] == lines[0]["uid"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--source", "cam"], "write it as NAME@PRODUCT=SOURCE"),
        (["--source", "cam=x"], "write it as NAME@PRODUCT=SOURCE"),
        (["--source", "cam@tiles=nowhere"], "no such file"),
        (["--source", "in@tiles=.", "--trigger", "in=server"], "needs a camera"),
        (["--source", "in@tiles=.", "--after", "burn"], "choose keep or move"),
        (["--source", "in@tiles=.", "--source", "in@tiles=."], "two sources of the name"),
        (["--trigger", "cam=server"], "no --source of that name"),
        (["--to", "nonsense"], "is no sink"),
        (["--no-auth", "--host", "0.0.0.0"], "127.0.0.1 only"),
        (["--keep", "some"], "server setting keep"),
        (["missing=/nowhere"], "not a run folder"),
        (["a/b=/nowhere"], "not a run folder"),
    ],
)
def test_what_serve_refuses(words: list[str], text: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["serve", "--state", str(tmp_path / "state"), *words]).exception
    assert isinstance(found, CdoError) and text in str(found)


def test_the_line_inside_the_server(tiny_run: Path, tmp_path: Path) -> None:
    folder, stream, web = tmp_path / "in", Stream(), Web()
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.png").write_bytes(png(n))
    with running(tmp_path / "state", tiny_run, auth=False) as served:
        pass  # sources are added before the start
    plc = Plc(port := free_port())

    def prepare(service: Any) -> None:
        service.station.add_source("in", "tiles", FolderSource(folder, tmp_path / "seen", settle=0.05))
        camera = Triggered(LiveSource("cam", stream.address), open_trigger("server"))
        service.station.add_source("cam", "tiles", camera)
        service.station.add_sink(web.address)
        service.station.add_sink(f"modbus://127.0.0.1:{port}/")

    with running(tmp_path / "state", tiny_run, auth=False, prepare=prepare) as served:
        until(lambda: len(web.received) == 3)
        served.inspect(png(9))  # an upload is no part of the line: the PLC is not told
        until(lambda: len(web.received) == 4)
        until(lambda: served.http.get("/v1/line").json()["sources"][1]["arrived"] > 2)
        assert served.http.post("/v1/line/cam/trigger").status_code == 202
        until(lambda: len(web.received) == 5)
        assert served.http.post("/v1/line/in/trigger").status_code == 400
        assert served.http.post("/v1/line/none/trigger").status_code == 404
        status = served.http.get("/v1/line").json()
        assert [s["judged"] for s in status["sources"]] == [3, 1] and [s["waiting"] for s in status["sinks"]] == [0, 0]
        assert status["sinks"][1]["sent"] + status["sinks"][1]["stale"] == 4
        rows = served.http.get("/v1/history").json()["inspections"]
        assert [row["source"] for row in rows] == ["line:cam", "upload", "line:in", "line:in", "line:in"]
        assert rows[0]["image"] is not None
        served.http.post("/v1/line/cam/pause")
        assert served.http.get("/v1/line").json()["sources"][1]["paused"]
    for each in (stream, web, plc):
        each.close()
