"""How fast, how small and how steady is a served model? Starts the real commands, and asks over loopback.

Measured of `serve`, and with ``--plain`` of `mlflow models serve` on the same model: seconds until it answers, latency of one
28 x 28 PNG over one connection that is kept, 200 clients at once, and the resident memory of the answering process over 20,000
requests (of `mlflow models serve`: with its launcher, which stays).

    python -m benchmarks.serving --store sqlite:////home/me/mlflow.db --model models:/mnist-classifier@champion --plain

Two minutes on two idle cores; the table is in docs/serving.md.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CLIENTS, EACH = 200, 10
WARM_UP, PARALLEL = 200, 8
START_SECONDS = 300.0


@dataclass(frozen=True)
class Request:
    """One way to ask for the label of an image."""

    path: str
    body: bytes
    content_type: str


@dataclass
class Measured:
    """What was found of one server: seconds, milliseconds, MB, and requests that were not answered with 200."""

    name: str
    ready_seconds: float = 0.0
    latency: dict[str, tuple[float, float]] = field(default_factory=dict)
    crowd_errors: int = 0
    crowd_per_second: float = 0.0
    memory: list[tuple[int, float]] = field(default_factory=list)
    errors: int = 0


def image() -> bytes:
    """Return a 28 x 28 PNG that looks like a digit, about 300 bytes."""
    ramp = np.add.outer(np.arange(28), np.arange(28)) * 4
    pixels = np.where(np.hypot(*np.indices((28, 28)) - 14) < 9, ramp, 0).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def requests(data: bytes) -> dict[str, Request]:
    """Return the ways to ask, by name."""
    split = {"columns": ["image"], "data": [[base64.b64encode(data).decode()]]}
    rows = json.dumps({"dataframe_split": split}).encode()
    return {
        "/predict": Request("/predict", data, "image/png"),
        "/invocations": Request("/invocations", rows, "application/json"),
    }


class Client:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, request: Request) -> int:
        """Send a request; return the status of its answer, 0 where the connection broke."""
        try:
            self._connection.request("POST", request.path, request.body, {"Content-Type": request.content_type})
            answer = self._connection.getresponse()
            answer.read()
            return answer.status
        except OSError:
            self._connection.close()
            return 0


# ---- servers ---------------------------------------------------------------------------------------------------------


@contextmanager
def running(command: Sequence[str], environment: dict[str, str], folder: Path) -> Iterator[psutil.Process]:
    """Run a server in a process group of its own, and end it."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    try:
        yield psutil.Process(process.pid)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_for(port: int, process: psutil.Process) -> float:
    """Return the seconds from the start of a process until its ``/ping`` answers."""
    while process.is_running() and time.time() - process.create_time() < START_SECONDS:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/ping")
            if connection.getresponse().status == 200:
                return time.time() - process.create_time()
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    raise SystemExit("the server does not answer")


def memory_of(process: psutil.Process) -> float:
    """Return the resident memory, in MB, of a process and all it started."""
    return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]) / 1e6


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- measures --------------------------------------------------------------------------------------------------------


def latency(port: int, request: Request, count: int) -> tuple[float, float]:
    """Return median and 95th percentile, in ms, of one client that asks again and again."""
    client, taken = Client(port), []
    for _ in range(WARM_UP + count):
        started = time.perf_counter()
        status = client.ask(request)
        taken.append(1000 * (time.perf_counter() - started))
        assert status == 200, status
    return float(np.median(taken[WARM_UP:])), float(np.percentile(taken[WARM_UP:], 95))


def at_once(port: int, request: Request, clients: int, each: int) -> tuple[int, float]:
    """Return how many requests were not answered with 200, and the answers per second, of clients that ask at once."""
    statuses: list[int] = []
    start = threading.Barrier(clients)

    def work() -> None:
        client = Client(port)
        start.wait()
        statuses.extend(client.ask(request) for _ in range(each))

    threads = [threading.Thread(target=work) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(status != 200 for status in statuses), len(statuses) / (time.perf_counter() - started)


def soak(
    port: int, request: Request, total: int, seconds: float, memory: Callable[[], float]
) -> tuple[int, list[tuple[int, float]]]:
    """Return the errors of so many requests, and the memory in MB at each tenth of them; ends after so many seconds."""
    errors, found, until = 0, [(0, memory())], time.monotonic() + seconds
    for tenth in range(1, 11):
        errors += at_once(port, request, PARALLEL, total // (10 * PARALLEL))[0]
        found.append((tenth * total // 10, memory()))
        if time.monotonic() > until:
            break
    return errors, found


def measure(
    name: str,
    command: Sequence[str],
    environment: dict[str, str],
    port: int,
    ways: dict[str, Request],
    words: argparse.Namespace,
) -> Measured:
    """Start a server and ask it everything."""
    measured = Measured(name)
    with TemporaryDirectory() as folder, running(command, environment, Path(folder)) as process:
        measured.ready_seconds = wait_for(port, process)
        for path, request in ways.items():
            measured.latency[path] = latency(port, request, words.count)
        request = next(iter(ways.values()))
        measured.crowd_errors, measured.crowd_per_second = at_once(port, request, CLIENTS, EACH)
        measured.errors, measured.memory = soak(port, request, words.requests, words.seconds, lambda: memory_of(process))
    return measured


def table(results: Sequence[Measured]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield f"| | {' | '.join(one.name for one in results)} |"
    yield f"|---|{'---|' * len(results)}"
    cells = {
        "ready after": [f"{one.ready_seconds:.1f} s" for one in results],
        **{
            f"latency of {path}, median (p95)": [
                "{:.1f} ms ({:.1f})".format(*one.latency[path]) if path in one.latency else "-" for one in results
            ]
            for path in ("/predict", "/invocations")
        },
        f"{CLIENTS} clients at once, {EACH} requests each": [
            f"{one.crowd_errors} errors, {one.crowd_per_second:,.0f}/s" for one in results
        ],
        "memory at first": [f"{one.memory[0][1]:.0f} MB" for one in results],
        "memory later": [
            ", ".join(f"{mb:.0f}" for _, mb in one.memory[2::2]) + f" MB to {one.memory[-1][0]:,} requests" for one in results
        ],
        "errors of those": [str(one.errors) for one in results],
    }
    for title, values in cells.items():
        yield f"| {title} | {' | '.join(values)} |"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="tracking.uri of the model")
    parser.add_argument("--model", required=True)
    parser.add_argument("--plain", action="store_true", help="measure `mlflow models serve` too")
    parser.add_argument("--count", type=int, default=1000, help="requests for the latency")
    parser.add_argument("--requests", type=int, default=20_000, help="requests for the memory")
    parser.add_argument("--seconds", type=float, default=240.0, help="at most so long for the memory of one server")
    words = parser.parse_args()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where MLflow finds uvicorn
    environment = {**os.environ, "MLFLOW_TRACKING_URI": words.store, "PYTHONPATH": str(ROOT), "PATH": path}
    port, ways = free_port(), requests(image())
    ours = [sys.executable, "-m", "pipelines.serve", "--params", str(ROOT / "params" / "train.yaml")]
    results = [measure("`serve`", [*ours, "--model", words.model, "--port", str(port)], environment, port, ways, words)]
    if words.plain:
        port = free_port()
        plain = [sys.executable, "-m", "mlflow", "models", "serve", "-m", words.model, "--env-manager", "local"]
        only = {name: way for name, way in ways.items() if name == "/invocations"}
        results.append(measure("`mlflow models serve`", [*plain, "-p", str(port)], environment, port, only, words))
    for line in table(results):
        print(re.sub(r"\s+$", "", line), flush=True)


if __name__ == "__main__":
    main()
