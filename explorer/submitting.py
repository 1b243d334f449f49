"""The commands around a Ray cluster: submit, and what becomes of what was submitted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from explorer.exploration import open_exploration
from explorer.options import (
    Id,
    Json,
    RunsDir,
    Set,
    SpecSource,
    print_document,
    texts_of,
)
from explorer.places import runs_place
from explorer.presentation import show_job, show_result, show_table
from explorer.specs import load_spec
from search_spaces.errors import RunError

if TYPE_CHECKING:
    from explorer.jobs import Cluster, Job

jobs_app = typer.Typer(
    help="The explorations that `explorer submit` gave to a Ray cluster.", no_args_is_help=True
)
Address = Annotated[
    str,
    typer.Option(
        "--address",
        metavar="URL",
        envvar="RAY_API_SERVER_ADDRESS",
        help="The dashboard of a Ray cluster, such as http://127.0.0.1:8265.",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="Holds the cluster's token (default: Ray's RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN).",
    ),
]


def submit(
    spec: SpecSource,
    address: Address,
    changes: Set = None,
    runs_dir: RunsDir = None,
    working_dir: Annotated[
        Path | None,
        typer.Option(
            "--working-dir",
            metavar="DIR",
            help="Send this folder's code to every node (default: their image has what it takes).",
        ),
    ] = None,
    environment: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME=VALUE", help="A variable of the job. Repeatable."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow its log; exit 1 unless it succeeds.")
    ] = False,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Give a spec to a Ray cluster as a job; print the exploration's id, known from now on.

    The runs directory is on storage that the nodes and this machine share: s3://, or a folder with
    the same path everywhere. MLFLOW_TRACKING_URI is passed on. A job's variables and spec can be
    read by everybody who has the cluster's token: give secrets to the nodes themselves. Examples:

        explorer submit sshn-wbc --address http://head:8265 --runs-dir s3://bucket/runs
            --set dataset.root=/data/wbc --wait

        explorer submit spec.yaml --address http://head:8265 --runs-dir /shared/runs
            --working-dir .
    """
    from explorer.jobs import Cluster
    from explorer.session import check_spec

    loaded = load_spec(spec, changes or ())
    check_spec(loaded)
    cluster = Cluster(address, token_file=token_file)
    job = cluster.submit(
        loaded,
        runs_dir=str(runs_place(runs_dir)),
        working_dir=working_dir,
        environment=texts_of(environment or []),
    )
    typer.echo(f"submitted {job.exploration_id} to {address}", err=True)
    _tell(cluster, job, wait=wait, as_json=as_json)


@jobs_app.command("list")
def jobs_list(address: Address, token_file: TokenFile = None, as_json: Json = False) -> None:
    """List the jobs of a cluster that work on explorations, the oldest first."""
    from explorer.jobs import Cluster

    rows = [job.to_json() for job in Cluster(address, token_file=token_file).jobs()]
    shown = [{name: row[name] for name in ("exploration_id", "status", "runs_dir")} for row in rows]
    print_document(rows, as_json, lambda: show_table(shown, empty=f"no explorations on {address}"))


@jobs_app.command("status")
def jobs_status(
    exploration_id: Id, address: Address, token_file: TokenFile = None, as_json: Json = False
) -> None:
    """Show what has become of an exploration's last job."""
    from explorer.jobs import Cluster

    job = Cluster(address, token_file=token_file).job(exploration_id)
    print_document(job.to_json(), as_json, lambda: show_job(job.to_json(), address))


@jobs_app.command("logs")
def jobs_logs(
    exploration_id: Id,
    address: Address,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends.")
    ] = False,
    token_file: TokenFile = None,
) -> None:
    """Print what an exploration's last job has printed."""
    from explorer.jobs import Cluster

    cluster = Cluster(address, token_file=token_file)
    parts = cluster.follow(exploration_id) if follow else [cluster.logs(exploration_id)]
    for part in parts:
        typer.echo(part, nl=False)


@jobs_app.command("stop")
def jobs_stop(
    exploration_id: Id, address: Address, token_file: TokenFile = None, as_json: Json = False
) -> None:
    """Stop an exploration's job; what it has measured is kept, and `jobs resume` carries it on."""
    from explorer.jobs import Cluster

    job = Cluster(address, token_file=token_file).stop(exploration_id)
    print_document(job.to_json(), as_json, lambda: show_job(job.to_json(), address))


@jobs_app.command("resume")
def jobs_resume(
    exploration_id: Id,
    address: Address,
    runs_dir: RunsDir = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow its log; exit 1 unless it succeeds.")
    ] = False,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Carry a stopped or failed exploration on, as a new job with the settings of its last one.

    Where another cluster worked on it, `--runs-dir` says where it lives.
    """
    from explorer.jobs import Cluster

    cluster = Cluster(address, token_file=token_file)
    job = cluster.resume(exploration_id, runs_dir=runs_dir)
    _tell(cluster, job, wait=wait, as_json=as_json)


@jobs_app.command("result")
def jobs_result(
    exploration_id: Id,
    address: Address,
    runs_dir: RunsDir = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Print what a finished job has found, as `explorer run` does; read from its runs directory.

    `--runs-dir` says where that is from here, if not where it is for the cluster.
    """
    from explorer.jobs import Cluster

    job = Cluster(address, token_file=token_file).job(exploration_id)
    if job.status != "SUCCEEDED":
        raise RunError(
            f"{exploration_id}: its job is {job.status}, so there is no result yet; explorer jobs "
            f"logs {exploration_id} shows how far it is"
        )
    exploration = open_exploration(exploration_id, runs_dir or job.runs_dir)
    print_document(exploration.summary(), as_json, lambda: show_result(exploration))


def _tell(cluster: Cluster, job: Job, *, wait: bool, as_json: bool) -> None:
    """Print a job that was started; once it is over, if that is waited for, its log on stderr."""
    if wait:
        for text in cluster.follow(job.exploration_id):
            typer.echo(text, nl=False, err=True)
        job = cluster.awaited(job.exploration_id)
    document = {**job.to_json(), "address": cluster.address}
    print_document(document, as_json, lambda: show_job(document, cluster.address))
    if wait and job.status != "SUCCEEDED":
        raise RunError(f"{job.exploration_id}: the job is {job.status}: {job.message}")
