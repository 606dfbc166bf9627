"""The verbs of the line: serve, watch, keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cdo_ad.cli.options import Category, Device, Run, say, show
from cdo_ad.errors import ConfigError

if TYPE_CHECKING:
    from cdo_ad.server.line.station import Station

__all__ = ["VERBS"]

To = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SINK",
        help="Where decisions go: jsonl:FILE, https://..., mqtt://HOST/TOPIC, modbus://HOST/?coil=0&register=0, "
        "opcua://ADDRESS:PORT; may be repeated.",
    ),
]
After = Annotated[str, typer.Option(help="Files of a folder that were judged: keep or move (to done/ and failed/).")]
State = Annotated[Path, typer.Option("--state", help="Folder for all that the server keeps.")]


def serve(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=]RUN...", help="Run folders to serve; more can be taught.")
    ] = None,
    state: State = Path("server"),
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 for any that is free.")] = 8000,
    grpc_port: Annotated[int | None, typer.Option(help="Port for gRPC; default: no gRPC.")] = None,
    database: Annotated[
        str, typer.Option(envvar="CDO_AD_DATABASE", help="postgresql://USER:PASSWORD@HOST/NAME; default: SQLite.")
    ] = "",
    demo: Annotated[
        bool, typer.Option("--demo", help="Drawn products on a drawn line; without keys, on this machine only.")
    ] = False,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="No API keys; on 127.0.0.1 only.")] = False,
    allow_host: Annotated[list[str] | None, typer.Option(help="Host name to answer for; may be repeated.")] = None,
    queue: Annotated[int, typer.Option(help="Images that may wait; more get 503.")] = 64,
    batch: Annotated[int, typer.Option(help="Images judged together at the most.")] = 8,
    keep: Annotated[str, typer.Option(help="Images to keep: all, anomalous or none.")] = "all",
    keep_days: Annotated[float, typer.Option(help="Days that images stay.")] = 30,
    keep_gigabytes: Annotated[float, typer.Option(help="Gigabytes of images that stay.")] = 20,
    max_upload: Annotated[int, typer.Option(help="Bytes of one upload.")] = 32 * 2**20,
    max_pixels: Annotated[int, typer.Option(help="Pixels of one image.")] = 50_000_000,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME@PRODUCT=SOURCE", help="Images of the line, as for watch; may be repeated."),
    ] = None,
    trigger: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=TRIGGER", help="Of a source: server, http://HOST:PORT or modbus://HOST:PORT/COIL."),
    ] = None,
    to: To = None,
    after: After = "keep",
    requests_per_minute: Annotated[int, typer.Option(help="Of one key.")] = 6000,
    backend: Annotated[str, typer.Option(help="auto, torch, openvino, openvino-int8 or onnx.")] = "auto",
    device: Device = "auto",
) -> None:
    """Answer over HTTP: inspection, history, teaching, a page for people. Ends with Ctrl-C."""
    from cdo_ad.server.logs import set_up
    from cdo_ad.server.run import serve as answer
    from cdo_ad.server.service import opened
    from cdo_ad.server.settings import ServerSettings

    settings = ServerSettings.checked(
        folder=state, host=host, port=port, grpc_port=grpc_port, database=database, auth=not (no_auth or demo),
        hosts=tuple(allow_host or ()), queue=queue, batch=batch, keep=keep, keep_days=keep_days,
        keep_gigabytes=keep_gigabytes, max_upload=max_upload, max_pixels=max_pixels,
        requests_per_minute=requests_per_minute, backend=backend, device=device,
    )  # fmt: skip
    with opened(settings) as service:
        if demo:
            from cdo_ad.server.demo import set_up_demo

            set_up_demo(service, say)
        for text in runs or []:
            name, run = _named(text)
            service.serve_run(run, name)
        _add_line(service.station, state, source or [], trigger or [], to or [], after)
        if settings.auth and service.keys.empty:
            say(f"the first key, of the role admin, shown this once: {service.keys.create('first admin', 'admin')}")
        set_up()
        answer(service, lambda address: show(f"ready at {address}"))


def watch(
    run: Run,
    source: Annotated[
        str, typer.Argument(help="A folder, a video, camera:0, rtsp://..., http://... or genicam:PRODUCER.cti.")
    ],
    to: To = None,
    state: Annotated[Path, typer.Option("--state", help="Folder for outboxes and for what was judged.")] = Path(
        "watch"
    ),
    after: After = "keep",
    trigger: Annotated[
        str | None, typer.Option(help="Take one image at each: http://HOST:PORT or modbus://HOST:PORT/COIL.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Of a video, every nth frame.")] = 1,
    once: Annotated[bool, typer.Option("--once", help="End when all files of the folder are judged.")] = False,
    name: Annotated[str | None, typer.Option(help="Of the product, in messages; default: the run's.")] = None,
    category: Category = None,
    rate: Annotated[float | None, typer.Option(help="False-alarm rate to decide with; default: the run's.")] = None,
    backend: Annotated[str, typer.Option(help="auto, torch, openvino, openvino-int8 or onnx.")] = "auto",
    device: Device = "auto",
) -> None:
    """Judge what a camera, a stream or a folder gives: a JSON line for each image, and messages to sinks."""
    import json
    import threading

    from cdo_ad.inference.detector import load
    from cdo_ad.server.line.sources import open_source, open_trigger
    from cdo_ad.server.line.watch import watch as look

    detector = load(run, backend=backend, device=device)
    if rate is not None:
        detector = detector.at_rate(rate)
    found = open_source(
        source, state, after=_after(after), every=every, once=once, trigger=open_trigger(trigger) if trigger else None
    )
    stop = threading.Event()
    product = name or run.resolve().name
    try:
        for message in look(detector, found, to or [], state, stop, name=product, category=category):
            show(json.dumps(message))
    finally:
        stop.set()


def keys(
    state: State = Path("server"),
    database: Annotated[str, typer.Option(envvar="CDO_AD_DATABASE", help="As for serve.")] = "",
    add: Annotated[str | None, typer.Option(metavar="NAME", help="Make a key.")] = None,
    role: Annotated[str, typer.Option(help="operator, engineer or admin.")] = "operator",
    revoke: Annotated[str | None, typer.Option(metavar="NAME", help="Make a key useless.")] = None,
) -> None:
    """List, make or revoke API keys; works while the server runs."""
    from cdo_ad.server.settings import ServerSettings
    from cdo_ad.server.store.audit import AuditTrail
    from cdo_ad.server.store.database import open_database
    from cdo_ad.server.store.keys import KeyStore

    if not database and not (state / "server.sqlite").is_file():
        raise ConfigError(f"{state} is not the folder of a server: name it with  --state")
    engine = open_database(ServerSettings.checked(folder=state, database=database).database_url)
    store, audit = KeyStore(engine), AuditTrail(engine)
    if add is not None:
        show(store.create(add, role))  # type: ignore[arg-type]  # the store checks it
        audit.add("command line", "make key", name=add, role=role)
    elif revoke is not None:
        store.revoke(revoke)
        audit.add("command line", "revoke key", name=revoke)
    else:
        for key in store.list():
            show(f"{key['name']:30} {key['role']:10} {'revoked' if key['revoked'] else ''}".rstrip())


def _add_line(
    station: Station, state: Path, sources: list[str], triggers: list[str], sinks: list[str], after: str
) -> None:
    from cdo_ad.server.line.sources import open_source, open_trigger

    fired = dict(_split(text, "--trigger", "NAME=TRIGGER") for text in triggers)
    for text in sources:
        place, address = _split(text, "--source", "NAME@PRODUCT=SOURCE")
        name, at, product = place.partition("@")
        if not at:
            raise ConfigError(f"--source {text}: write it as NAME@PRODUCT=SOURCE")
        trigger = open_trigger(fired.pop(name)) if name in fired else None
        found = open_source(address, state / "line", name=name, after=_after(after), trigger=trigger)
        station.add_source(name, product, found)
    if fired:
        raise ConfigError(f"--trigger {next(iter(fired))}: there is no --source of that name")
    for text in sinks:
        station.add_sink(text)


def _split(text: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"{option} {text}: write it as {form}")
    return name, value


def _after(text: str) -> Literal["keep", "move"]:
    if text == "keep":
        return "keep"
    if text == "move":
        return "move"
    raise ConfigError(f"--after {text}: choose keep or move")


def _named(text: str) -> tuple[str, Path]:
    """(product, run folder) of `NAME=RUN` or `RUN`, whose last part then is the name."""
    name, equals, path = text.partition("=")
    if equals and "/" not in name and "\\" not in name:
        return name, Path(path)
    return Path(text).resolve().name, Path(text)


VERBS = (serve, watch, keys)
