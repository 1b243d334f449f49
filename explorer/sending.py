"""The process beside a run that keeps MLflow up to date, and waits for nothing but MLflow.

It reads the exploration's folder and sends what that says (`explorer.projecting`): nothing is
handed over by the run, so that nothing can pile up, and a server that is away, slow or broken is
no concern of the run's. The spool of what could not be sent is the table itself, and the mark
`tracking: pending` in `state.json`, which is there from the beginning of a run until all was
delivered: a run killed at any moment leaves it, and `explorer resume` sends what is missing. The
process ends with the run, however that ends; it may be killed at any moment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from explorer.places import Place, fetched, files_in, mark_of, place_of
from explorer.progress import ProgressReport
from explorer.specs import ExplorationSpec
from explorer.store import measurements_store, read_json, set_state
from search_spaces.errors import UserError

EXPERIMENT = "explorations"
EVERY_S = 10.0

_REST = 30.0  # of the processor time that reading took: it has at most a thirtieth of one core
_RETRY_AFTER_S = (0.5, 2.0)
_LEAST_LIMIT_S, _LIMIT_SHARE = 60.0, 0.05
_STOPPED_LIMIT_S = 5.0


@contextmanager
def tracked(folder: Place, spec: ExplorationSpec, progress: ProgressReport) -> Iterator[None]:
    """Show the exploration in MLflow while the body carries it out; the caller holds its lock.

    What was not delivered when the body ends is sent then: of a finished exploration for at most a
    minute or a twentieth of its time (one that was finished before only came to send: no limit), of
    a stopped one for some seconds. What is left is pending.
    """
    if not spec.tracking:
        yield
        return
    was_finished = read_json(folder / "state.json")["status"] == "finished"
    set_state(folder, tracking="pending")
    sender = Sender(folder)
    try:
        yield
    finally:
        state = read_json(folder / "state.json")
        is_finished = state["status"] == "finished"
        limit_s = max(_LEAST_LIMIT_S, _LIMIT_SHARE * state["elapsed_s"].get("total", 0.0))
        reason = sender.finish(
            None if was_finished else limit_s if is_finished else _STOPPED_LIMIT_S
        )
        if reason is None:
            set_state(folder, tracking="delivered")
        elif is_finished:
            progress.say(f"tracking is pending, explorer resume {folder.name} sends it: {reason}")


class Sender:
    """The sending process of an exploration, as the run sees it.

    Args:
        folder: RUNS/ID.
        every_s: seconds between two looks at the folder, at least.
    """

    def __init__(self, folder: Place, *, every_s: float = EVERY_S) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "explorer.sending", str(folder), str(every_s)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path},
            process_group=0,  # Ctrl-C is for the run, which then says how to finish
        )

    def finish(self, limit_s: float | None) -> str | None:
        """Let it send what is left, then end it; None, or in one line why something is pending."""
        try:
            with self.process:  # closes its pipes
                return self._finish(limit_s)
        finally:
            self._errors.close()

    def _finish(self, limit_s: float | None) -> str | None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # it failed; why is read below
                self.process.stdin.write(b"finish\n")
                self.process.stdin.flush()
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"not sent within {limit_s:.0f} s"
        finally:
            self.process.kill()
            self.process.wait()
        if self.process.returncode:
            self._errors.seek(0)
            errors = self._errors.read().decode(errors="replace").splitlines()
            return f"the sending process failed: {(errors or ['it was killed'])[-1]}"
        pending: str | None = json.loads(self.process.stdout.read())["pending"]
        return pending


def send(folder: Place) -> str | None:
    """Make MLflow show the exploration in a folder; None, or in one line why it is pending."""
    return _look_and_send(folder)[0]


def _look_and_send(folder: Place) -> tuple[str | None, float]:
    """What `send` says, and the processor seconds that reading the folder took."""
    from explorer.projecting import files_of, record_of
    from explorer.tracking import Tracker, tracking_uri

    began = time.process_time()
    reading_s = 0.0
    with tempfile.TemporaryDirectory(prefix="sending_") as scratch_dir:
        scratch = Path(scratch_dir)
        # for as long as it is sent; on the disk of the others, if they are on one
        parquet = (folder if isinstance(folder, Path) else scratch) / "measurements.parquet"
        try:
            uri, artifacts_dir = tracking_uri(folder.parent), folder.parent / "mlartifacts"
            record = record_of(folder)
            reading_s = time.process_time() - began
            if record.table is not None:
                measurements_store(folder).copy_to(parquet)
                files = [fetched(file, scratch) for file in files_of(folder)]
                record = replace(record, files=[*files, parquet])
            Tracker(uri, experiment=EXPERIMENT, artifacts_dir=artifacts_dir).project(record)
        except UserError as error:
            return str(error), reading_s
        finally:
            parquet.unlink(missing_ok=True)
    return None, reading_s


def main(arguments: Sequence[str] | None = None) -> None:
    """Send what changes in a folder until told to finish; then once more, and say how it went."""
    name, every_s = arguments or sys.argv[1:]
    folder = place_of(name)
    finish = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_listen, args=(finish,), daemon=True).start()
    sent: object = None
    while not finish.is_set():
        now, reading_s = _stamp(folder), 0.0
        if now != sent:
            reason, reading_s = _look_and_send(folder)
            sent = now if reason is None else sent
        # Only reading is rested for: what is sent now need not be sent at the end.
        finish.wait(max(float(every_s), _REST * reading_s))
    reason = None if _stamp(folder) == sent else send(folder)
    for pause_s in _RETRY_AFTER_S:
        if reason is None:
            break
        time.sleep(pause_s)
        reason = send(folder)
    sys.stdout.write(json.dumps({"pending": reason}))


def _listen(finish: threading.Event) -> None:
    """Wait for the run's word; its end closes the pipe, and this process has nothing to tidy up."""
    for _ in sys.stdin:
        finish.set()
    os._exit(0)


def _stamp(folder: Place) -> list[object]:
    """Changes whenever there is something new to show."""
    files = [folder / "state.json", folder / "measurements" / "manifest.json"]
    files += files_in(folder, "trials/*/trial.json")
    return [mark_of(path) for path in files if path.exists()]


if __name__ == "__main__":
    main()
