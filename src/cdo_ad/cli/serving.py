"""The verbs of the inspection server: serve, keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cdo_ad.cli.options import Device, say, show
from cdo_ad.errors import ConfigError

__all__ = ["VERBS"]

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
    no_auth: Annotated[bool, typer.Option("--no-auth", help="No API keys; on 127.0.0.1 only.")] = False,
    allow_host: Annotated[list[str] | None, typer.Option(help="Host name to answer for; may be repeated.")] = None,
    queue: Annotated[int, typer.Option(help="Images that may wait; more get 503.")] = 64,
    batch: Annotated[int, typer.Option(help="Images judged together at the most.")] = 8,
    keep: Annotated[str, typer.Option(help="Images to keep: all, anomalous or none.")] = "all",
    keep_days: Annotated[float, typer.Option(help="Days that images stay.")] = 30,
    keep_gigabytes: Annotated[float, typer.Option(help="Gigabytes of images that stay.")] = 20,
    max_upload: Annotated[int, typer.Option(help="Bytes of one upload.")] = 32 * 2**20,
    max_pixels: Annotated[int, typer.Option(help="Pixels of one image.")] = 50_000_000,
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
        folder=state, host=host, port=port, grpc_port=grpc_port, database=database, auth=not no_auth,
        hosts=tuple(allow_host or ()), queue=queue, batch=batch, keep=keep, keep_days=keep_days,
        keep_gigabytes=keep_gigabytes, max_upload=max_upload, max_pixels=max_pixels,
        requests_per_minute=requests_per_minute, backend=backend, device=device,
    )  # fmt: skip
    set_up()
    with opened(settings) as service:
        for text in runs or []:
            name, run = _named(text)
            service.serve_run(run, name)
        if settings.auth and service.keys.empty:
            say(f"the first key, of the role admin, shown this once: {service.keys.create('first admin', 'admin')}")
        answer(service, lambda address: show(f"ready at {address}"))


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


def _named(text: str) -> tuple[str, Path]:
    """(product, run folder) of `NAME=RUN` or `RUN`, whose last part then is the name."""
    name, equals, path = text.partition("=")
    if equals and "/" not in name and "\\" not in name:
        return name, Path(path)
    return Path(text).resolve().name, Path(text)


VERBS = (serve, keys)
