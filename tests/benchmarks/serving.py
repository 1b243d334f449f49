"""Queries per second over HTTP, one by one and by the thousand, from the same cores."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import query

NUM_CLIENTS = 4
# Settings of a factorial of three conditionings at 11 levels, and what one machine still holds.
NUM_ROWS = (1331 * 3, 1_000_000)
WARM_UP_S, SECONDS = 3.0, 15.0
NUM_BATCHES, BATCH = 20, 1000
RATE_TARGET, P99_TARGET_MS = 150.0, 50.0
EXPLORATION = "bench-1"
START_S = 120.0


def measure() -> dict[str, list[dict[str, Any]]]:
    """Four clients with random budgets: at least 150 queries a second, 99 % within 50 ms."""
    singles, batches = [], []
    for num_rows in NUM_ROWS:
        with tempfile.TemporaryDirectory() as runs_dir:
            query.NUM_ROWS = num_rows
            query.store_table(Path(runs_dir) / EXPLORATION, 3, None, 1)
            with service(Path(runs_dir)) as port:
                singles.append({"rows": num_rows, **single_queries(port)})
                batches.append({"rows": num_rows, **batched_queries(port)})
    return {"one by one": singles, "by the thousand": batches}


@contextmanager
def service(runs_dir: Path) -> Iterator[int]:
    """`explorer serve` on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "explorer", "serve", "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--runs-dir", str(runs_dir)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
            stdout=log,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + START_S
            while not is_ready(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"explorer serve did not start: {log.read().decode()}")
                time.sleep(0.2)
            yield port
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def single_queries(port: int) -> dict[str, Any]:
    """Each client asks for the best setting within a budget that nobody asked for before."""
    times: list[list[tuple[float, float]]] = [[] for _ in range(NUM_CLIENTS)]
    failures: list[BaseException] = []
    end = time.perf_counter() + WARM_UP_S + SECONDS

    def client(number: int) -> None:
        rng = np.random.default_rng(number)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            while (start := time.perf_counter()) < end:
                answer = asked(connection, "query", budget(rng))
                times[number].append((start, time.perf_counter()))
                assert answer["feasible"], answer
        except BaseException as error:  # noqa: BLE001 - raised again by the one who waits
            failures.append(error)

    clients = [threading.Thread(target=client, args=(n,)) for n in range(NUM_CLIENTS)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    if failures:
        raise failures[0]
    first = end - SECONDS
    counted = [(start, stop) for own in times for start, stop in own if start >= first]
    latencies_ms = [1000 * (stop - start) for start, stop in counted]
    rate = len(counted) / (max(stop for _, stop in counted) - first)
    p50, p99 = (float(np.percentile(latencies_ms, share)) for share in (50, 99))
    return {
        "clients": NUM_CLIENTS,
        "queries": len(counted),
        "per_s": rate,
        "p50_ms": p50,
        "p99_ms": p99,
        "max_ms": max(latencies_ms),
        "reached": rate >= RATE_TARGET and p99 <= P99_TARGET_MS,
    }


def batched_queries(port: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    times = []
    for _ in range(NUM_BATCHES):
        questions = [budget(rng) for _ in range(BATCH)]
        start = time.perf_counter()
        answers = asked(connection, "queries", {"queries": questions})["answers"]
        times.append(time.perf_counter() - start)
        assert len(answers) == BATCH
    return {
        "queries": BATCH,
        "median_s": float(np.median(times)),
        "max_s": max(times),
        "per_s": BATCH / float(np.median(times)),
    }


def budget(rng: np.random.Generator) -> dict[str, Any]:
    return {"max": {"macs": float(rng.uniform(3e7, 3.2e8))}}


def asked(connection: http.client.HTTPConnection, what: str, body: dict[str, Any]) -> Any:
    connection.request(
        "POST",
        f"/explorations/{EXPLORATION}/{what}",
        json.dumps(body),
        {"Content-Type": "application/json"},
    )
    response = connection.getresponse()
    content = response.read()
    assert response.status == 200, content
    return json.loads(content)
