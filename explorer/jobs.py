"""Explorations as jobs of a Ray cluster: submitted, listed, followed, stopped, carried on.

A job is the command line itself, run beside the cluster's head: what was submitted stands in its
entrypoint, where it writes stands in its metadata. The exploration's id is chosen here, so that it
is known before the job has begun. Whoever asks for an answer reads the shared storage, as always.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# a client does not switch it on by itself, and Ray reads it when it is imported
os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray.exceptions
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from explorer.exploration import open_exploration
from explorer.places import place_of
from explorer.specs import ExplorationSpec
from search_spaces.errors import InputError, RunError

POLL_S = 1.0
logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # of its sockets
PASSED_ON = "MLFLOW_TRACKING_URI"  # where the job tracks, if it is set here


@dataclass(frozen=True)
class Job:
    """What a cluster knows of one job.

    Attributes:
        exploration_id: what it works on; a job that was carried on has the same.
        job_id: of Ray; the exploration's id, and a number for the second one and later.
        name: of the spec.
        status: of Ray: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        message: why.
        runs_dir: where the exploration lives.
        began: seconds since 1970; None while it waits.
        ended: seconds since 1970; None while it runs.
    """

    exploration_id: str
    job_id: str
    name: str
    status: str
    message: str
    runs_dir: str
    began: float | None
    ended: float | None

    @property
    def is_over(self) -> bool:
        """Whether its status will not change any more."""
        return JobStatus(self.status).is_terminal()

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `explorer jobs status --json` prints it."""
        return asdict(self)


class Cluster:
    """The job server of a Ray cluster.

    Args:
        address: its URL, such as http://127.0.0.1:8265; the dashboard's.
        token_file: holds the cluster's token; by default Ray's own RAY_AUTH_TOKEN,
            RAY_AUTH_TOKEN_PATH or the file under the user's home.

    Raises:
        InputError: no URL, or the token's file cannot be read.
        RunError: the cluster does not answer, or it refuses the token.
    """

    def __init__(self, address: str, *, token_file: Path | None = None) -> None:
        if not address.startswith(("http://", "https://")):
            raise InputError(
                f"--address {address}: expected the URL of a cluster's dashboard, such as "
                f"http://127.0.0.1:8265"
            )
        self.address = address
        if token_file is not None:
            if not token_file.is_file():
                raise InputError(f"--token-file {token_file}: no such file")
            os.environ.pop("RAY_AUTH_TOKEN", None)
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)
        with self._asking():
            self.client = JobSubmissionClient(address)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn what Ray's client raises into a line."""
        try:
            yield
        except ray.exceptions.AuthenticationError as error:
            reason = " ".join(str(error).split()).partition(". ")[0]
            raise RunError(
                f"{self.address}: {reason.rstrip('.')}; give the cluster's token with --token-file "
                f"or RAY_AUTH_TOKEN_PATH"
            ) from error
        except ConnectionError as error:
            raise RunError(
                f"{self.address}: no Ray cluster answers there; start one, or look at the "
                f"dashboard's address"
            ) from error
        except RuntimeError as error:
            raise RunError(f"{self.address}: {_last_line(str(error))}") from error

    def submit(
        self,
        spec: ExplorationSpec,
        *,
        runs_dir: str,
        working_dir: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Job:
        """Start an exploration as a job.

        Args:
            spec: what to carry out; paths in it are those of the cluster's nodes.
            runs_dir: on storage that every node and the caller share: a folder or s3://.
            working_dir: is sent to every node and comes first on the path of Python: the code of
                the spec's extensions, or explorer's own. None: the nodes have what is needed.
            environment: further variables of the job; everybody with the token can read them.

        Raises:
            InputError: a relative path, or no such folder.
            RunError: the cluster refuses.
        """
        _require_absolute(spec)
        exploration_id = f"{spec.name}-{secrets.token_hex(4)}"
        runs = shared_runs_dir(runs_dir)
        document = spec.to_yaml()
        end = f"END_{secrets.token_hex(4)}"
        command = ["run", "-", "--id", exploration_id, "--runs-dir", runs]
        entrypoint = f"{_python(command)} <<'{end}'\n{document}\n{end}\n"
        runtime_env: dict[str, Any] = {"env_vars": {**_variables(), **(environment or {})}}
        if working_dir is not None:
            if not working_dir.is_dir():
                raise InputError(f"--working-dir {working_dir}: no such folder")
            runtime_env["working_dir"] = str(working_dir.absolute())
        metadata = _metadata(exploration_id, spec.name, runs)
        return self._start(exploration_id, entrypoint, metadata, runtime_env)

    def resume(self, exploration_id: str, *, runs_dir: str | None = None) -> Job:
        """Carry an exploration on, as another job with the settings of its last one here.

        Args:
            exploration_id: of an exploration that is not finished.
            runs_dir: where it lives, if this cluster never worked on it: another one did.

        Raises:
            InputError: a job still works on it, or none did and no runs directory is given.
            RunError: the cluster refuses.
        """
        jobs = [one for one in self._all() if _works_on(one, exploration_id)]
        if jobs:
            last = jobs[-1]
            if not last.status.is_terminal():
                raise InputError(f"{exploration_id}: its job is {last.status}; stop it first")
            metadata, runtime_env = last.metadata or {}, last.runtime_env or {}
        elif runs_dir is None:
            raise InputError(
                f"{exploration_id}: no job on {self.address} worked on it; --runs-dir says where "
                f"it lives"
            )
        else:
            exploration = open_exploration(exploration_id, runs_dir)
            runs = shared_runs_dir(runs_dir)
            metadata = _metadata(exploration_id, exploration.spec.name, runs)
            runtime_env = {"env_vars": _variables()}
        command = ["resume", exploration_id, "--runs-dir", metadata["runs_dir"]]
        job_id = f"{exploration_id}-{len(jobs) + 1}" if jobs else exploration_id
        return self._start(job_id, _python(command), metadata, runtime_env)

    def _start(
        self,
        job_id: str,
        entrypoint: str,
        metadata: dict[str, str],
        runtime_env: dict[str, Any],
    ) -> Job:
        with self._asking():
            self.client.submit_job(
                entrypoint=entrypoint,
                submission_id=job_id,
                metadata=metadata,
                runtime_env=runtime_env,
            )
        return self.job(metadata["exploration_id"])

    def jobs(self) -> list[Job]:
        """Every job that works on an exploration, the oldest first."""
        return [_job(details) for details in self._all()]

    def job(self, exploration_id: str) -> Job:
        """The last job of an exploration.

        Raises:
            InputError: no job works on that id.
        """
        return _job(self._details(exploration_id)[-1])

    def logs(self, exploration_id: str) -> str:
        """What its last job has printed so far."""
        job = self.job(exploration_id)
        with self._asking():
            text: str = self.client.get_job_logs(job.job_id)
        return text

    def follow(self, exploration_id: str) -> Iterator[str]:
        """What its last job prints, until it ends."""
        job = self.job(exploration_id)
        lines = self.client.tail_job_logs(job.job_id)
        with self._asking(), asyncio.Runner() as runner:
            while (text := runner.run(_next(lines))) is not None:
                yield text

    def awaited(self, exploration_id: str) -> Job:
        """The last job of an exploration once it is over."""
        while not (job := self.job(exploration_id)).is_over:
            time.sleep(POLL_S)
        return job

    def stop(self, exploration_id: str) -> Job:
        """Ask its last job to stop; what was measured is kept, and `resume` carries it on.

        Raises:
            InputError: no job works on that id, or it is over.
        """
        job = self.job(exploration_id)
        if job.is_over:
            raise InputError(f"{exploration_id}: its job is {job.status} already")
        with self._asking():
            self.client.stop_job(job.job_id)
        return self.awaited(exploration_id)

    def _details(self, exploration_id: str) -> list[JobDetails]:
        own = [one for one in self._all() if _works_on(one, exploration_id)]
        if not own:
            raise InputError(
                f"{exploration_id}: no job on {self.address} works on it; explorer jobs list "
                f"shows those there are"
            )
        return own

    def _all(self) -> list[JobDetails]:
        with self._asking():
            found = self.client.list_jobs()
        ours = [one for one in found if "exploration_id" in (one.metadata or {})]
        return sorted(ours, key=lambda one: one.start_time or 0)


def shared_runs_dir(runs_dir: str) -> str:
    """A runs directory as every node can name it: an object store, or an absolute path.

    Raises:
        InputError: it can be no such place.
    """
    place = place_of(runs_dir)
    return str(place.absolute()) if isinstance(place, Path) else str(place)


def _require_absolute(spec: ExplorationSpec) -> None:
    paths = {"dataset.root": spec.dataset.root, "registration.pairs": spec.registration.pairs}
    for key, path in paths.items():
        if path is not None and not Path(path).is_absolute():
            raise InputError(
                f"{key}: expected an absolute path, as the cluster's nodes read it; got {path}"
            )


def _python(command: Sequence[str]) -> str:
    return f"exec python -m explorer {shlex.join(command)}"


def _works_on(details: JobDetails, exploration_id: str) -> bool:
    return (details.metadata or {})["exploration_id"] == exploration_id


def _metadata(exploration_id: str, name: str, runs_dir: str) -> dict[str, str]:
    return {"exploration_id": exploration_id, "name": name, "runs_dir": runs_dir}


def _variables() -> dict[str, str]:
    from explorer.training import ENVIRONMENT  # loads torch

    value = os.environ.get(PASSED_ON)
    return {**ENVIRONMENT, **({PASSED_ON: value} if value else {})}


def _job(details: JobDetails) -> Job:
    metadata = details.metadata or {}
    return Job(
        exploration_id=metadata["exploration_id"],
        job_id=details.submission_id or "",
        name=metadata.get("name", ""),
        status=str(details.status.value),
        message=_last_line(details.message or ""),
        runs_dir=metadata.get("runs_dir", ""),
        began=_seconds(details.start_time),
        ended=_seconds(details.end_time),
    )


def _last_line(text: str) -> str:
    """Ray's messages end with what a job has printed last, its error."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None


async def _next(lines: AsyncIterator[str]) -> str | None:
    return await anext(lines, None)
