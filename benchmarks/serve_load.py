"""How fast the server is, whether it stays so, and whether it keeps what it acknowledged.

    python benchmarks/serve_load.py RUN                    # images/s at 8 clients against the bare runtime, p99
    python benchmarks/serve_load.py RUN --soak 10          # ten minutes: memory, open files, threads
    python benchmarks/serve_load.py RUN --kills 50         # kill -9 under load, 50 times: nothing acknowledged is lost

The server runs in a process of its own, as a user starts it; the clients are threads of this one and share its cores.
The bare runtime judges the same decoded images one after the other in this process, before the server starts.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from cdo_ad.data.decode import decode_image
from cdo_ad.inference.detector import load

PRODUCT = "part"


class Server:
    """`cdo-ad serve` in a process of its own."""

    def __init__(self, run: Path, state: Path, backend: str, keep: str) -> None:
        words = [
            sys.executable,
            "-m",
            "cdo_ad.cli.main",
            "serve",
            f"{PRODUCT}={run}",
            "--state",
            str(state),
            "--port",
            "0",
        ]
        words += ["--no-auth", "--backend", backend, "--keep", keep, "--requests-per-minute", "10000000"]
        self._log = state.with_suffix(".log").open("ab")
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=self._log, text=True)
        assert self.process.stdout is not None
        found = re.search(r"ready at (\S+)", self.process.stdout.readline())
        if found is None:
            raise SystemExit(f"the server does not start: see {self._log.name}")
        self.address = found[1]

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, gracefully or not."""
        self.process.send_signal(how)
        self.process.wait(60)
        self._log.close()

    def usage(self) -> dict[str, float]:
        """Resident megabytes, open files and threads."""
        folder = Path("/proc", str(self.process.pid))
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return {
            "mib": int(status["VmRSS"].split()[0]) / 1024,
            "files": len(list((folder / "fd").iterdir())),
            "threads": int(status["Threads"]),
        }


def images_like(run: Path, count: int = 24) -> list[bytes]:
    """Files like those that the run learned from; noise where they are gone."""
    from cdo_ad.bundle import read_bundle

    paths = [path for path in read_bundle(run).comparison_paths if path.is_file()][:count]
    if paths:
        return [path.read_bytes() for path in paths]
    chance, found = np.random.default_rng(0), []
    for _ in range(count):
        out = io.BytesIO()
        Image.fromarray(chance.integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(out, "PNG")
        found.append(out.getvalue())
    return found


def bare(run: Path, backend: str, images: list[bytes], seconds: float) -> float:
    """Images a second of the runtime alone: decoding is left out."""
    detector = load(run, backend=backend, device="cpu")
    decoded = [decode_image(data) for data in images]
    detector.predict(decoded[0])
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        detector.predict(decoded[count % len(decoded)])
        count += 1
    return count / (time.perf_counter() - start)


class Load:
    """Clients that ask again as soon as they are answered."""

    def __init__(self, address: str, images: list[bytes], clients: int) -> None:
        self.latencies: list[float] = []
        self.acknowledged: list[str] = []
        self.statuses: dict[int, int] = {}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(address, images, i)) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let the clients finish."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, address: str, images: list[bytes], number: int) -> None:
        with httpx.Client(base_url=address, timeout=60) as http:
            while not self._stop.is_set():
                number += 1
                files = {"file": ("a.png", images[number % len(images)], "image/png")}
                start = time.perf_counter()
                try:
                    answer = http.post(f"/v1/models/{PRODUCT}/inspect", files=files)
                except httpx.HTTPError:
                    return
                self.latencies.append(time.perf_counter() - start)
                self.statuses[answer.status_code] = self.statuses.get(answer.status_code, 0) + 1
                if answer.status_code == 200:
                    self.acknowledged.append(answer.json()["uid"])


def throughput(arguments: argparse.Namespace, state: Path, images: list[bytes]) -> dict[str, object]:
    """Images a second, beside the bare runtime."""
    alone = bare(arguments.run, arguments.backend, images, arguments.seconds / 2)
    server = Server(arguments.run, state, arguments.backend, arguments.keep)
    warm = Load(server.address, images, arguments.clients)
    time.sleep(3)
    warm.end()
    start, clients = time.perf_counter(), Load(server.address, images, arguments.clients)
    time.sleep(arguments.seconds)
    clients.end()
    seconds = time.perf_counter() - start
    server.end()
    latencies = np.array(clients.latencies)
    rate = clients.statuses.get(200, 0) / seconds
    return {
        "bare_images_per_second": round(alone, 1),
        "served_images_per_second": round(rate, 1),
        "share_of_bare": round(rate / alone, 2),
        "p50_ms": round(float(np.median(latencies)) * 1e3),
        "p99_ms": round(float(np.quantile(latencies, 0.99)) * 1e3),
        "statuses": clients.statuses,
        "clients": arguments.clients,
    }


def soak(arguments: argparse.Namespace, state: Path, images: list[bytes]) -> dict[str, object]:
    """What grows while it works."""
    server = Server(arguments.run, state, arguments.backend, arguments.keep)
    clients = Load(server.address, images, arguments.clients)
    samples = []
    end = time.monotonic() + 60 * arguments.soak
    while time.monotonic() < end:
        time.sleep(min(5, 6 * arguments.soak))
        samples.append(server.usage())
    clients.end()
    server.end()
    third = len(samples) // 3
    early, late = (
        {k: float(np.mean([s[k] for s in part])) for k in samples[0]}
        for part in (samples[third:-third], samples[-third:])
    )
    grown = {key: round(late[key] - early[key], 1) for key in early}
    return {"minutes": arguments.soak, "statuses": clients.statuses, "middle": early, "end": late, "grown": grown}


def kills(arguments: argparse.Namespace, state: Path, images: list[bytes]) -> dict[str, object]:
    """What is lost by kills."""
    acknowledged: list[str] = []
    chance = np.random.default_rng(0)
    for _ in range(arguments.kills):
        server = Server(arguments.run, state, arguments.backend, arguments.keep)
        clients = Load(server.address, images, arguments.clients)
        until = time.monotonic() + 30
        while not clients.acknowledged and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(float(chance.uniform(0.2, 1.5)))
        server.end(signal.SIGKILL)
        clients.end()
        acknowledged += clients.acknowledged
    Server(arguments.run, state, arguments.backend, arguments.keep).end()
    with sqlite3.connect(state / "server.sqlite") as database:
        rows = dict(database.execute("SELECT uid, image FROM inspections"))
    lost = [uid for uid in acknowledged if uid not in rows]
    files = [rows[uid] for uid in acknowledged if rows.get(uid)]
    gone = [digest for digest in files if not (state / "images" / digest[:2] / digest).is_file()]
    return {"kills": arguments.kills, "acknowledged": len(acknowledged), "lost": len(lost), "images_lost": len(gone)}


def main() -> int:
    """Measure what the arguments ask for; the exit code says whether it is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--keep", default="all", help="all, anomalous or none")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--kills", type=int)
    arguments = parser.parse_args()
    images = images_like(arguments.run)
    with tempfile.TemporaryDirectory() as folder:
        work = kills if arguments.kills else soak if arguments.soak else throughput
        result = work(arguments, Path(folder, "state"), images)
    print(json.dumps(result, indent=2))
    if arguments.kills:
        return int(bool(result["lost"] or result["images_lost"]))
    if arguments.soak:
        grown = result["grown"]
        assert isinstance(grown, dict)
        return int(grown["files"] > 5 or grown["threads"] > 2 or grown["mib"] > 20 + 5 * arguments.soak)
    return 0


if __name__ == "__main__":
    sys.exit(main())
