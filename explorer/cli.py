"""The command line: parse, call, print."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from explorer import documents
from explorer.claims import CLAIMS, rows_of
from explorer.exploration import (
    Exploration,
    exploration_ids,
    open_exploration,
)
from explorer.exploration import resume as resume_exploration
from explorer.exploration import run as run_spec
from explorer.extensions import Extensions, find, names_of
from explorer.options import (
    Id,
    Json,
    Knee,
    Max,
    Maximize,
    Method,
    Min,
    Minimize,
    RunsDir,
    Seeds,
    Set,
    SpecSource,
    print_document,
    stdout_to_stderr,
    texts_of,
)
from explorer.places import runs_place
from explorer.presentation import (
    report_in_markdown,
    show_analysis,
    show_answer,
    show_comparison,
    show_costs,
    show_folder,
    show_optima,
    show_point,
    show_points,
    show_report,
    show_result,
    show_table,
)
from explorer.progress import ProgressReport
from explorer.quantities import parse_quantity
from explorer.queries import Answer, Bound, PointTable, parse_bound
from explorer.specs import load_spec
from explorer.store import read_json
from explorer.submitting import jobs_app, submit
from search_spaces.errors import InputError, UserError
from search_spaces.problem import Objective

app = typer.Typer(
    help="Train one hypernetwork, explore its whole frontier, ask for the best setting.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(jobs_app, name="jobs")
datasets_app = typer.Typer(help="The data sets that a spec can name.", no_args_is_help=True)
app.add_typer(datasets_app, name="datasets")


@app.command()
def run(
    spec: SpecSource,
    changes: Set = None,
    new: Annotated[
        bool, typer.Option("--new", help="Start again beside an unfinished one.")
    ] = False,
    exploration_id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Take this id, not the next of the spec's name."),
    ] = None,
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Train, explore, test, compare and track a spec; print the exploration's id.

    Presets: demo, sshn-wbc, sshn-wbc-levels, sshn-wbc-factors, sshn-wbc-prior-width,
    sshn-wbc-small-phi, sshn-oasis, sshn-oasis-factors, sshn-oasis-registration,
    sshn-pandental, sshn-camus, sshn-pets, sshn-cub200, hypermorph-demo,
    hypermorph-contrasts, hypermorph-oasis2d, hypermorph-oasis2d-lambda-gamma,
    hypermorph-oasis2d-lambda-ncc, hypermorph-hippocampus, hypermorph-oasis3d,
    hypermorph-authors, spottunet-demo, spottunet-wbc, spottunet-cc359, hyda-demo,
    hyda-leukocytes, hyda-digits, hyda-cxr, hyda-brain-age. Example:

        explorer run sshn-wbc --set dataset.root=DIR --set train.seeds=[0]
    """
    loaded = load_spec(spec, changes or ())

    def work(progress: ProgressReport) -> Exploration:
        return run_spec(
            loaded,
            runs_dir=runs_dir,
            new=new,
            exploration_id=exploration_id,
            command=_typed("explorer run", spec, changes),
            progress=progress,
        )

    _work(work, as_json)


@app.command()
def resume(exploration_id: Id, runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """Carry on an exploration that was stopped; nothing recorded is computed again."""

    def work(progress: ProgressReport) -> Exploration:
        return resume_exploration(exploration_id, runs_dir=runs_dir, progress=progress)

    _work(work, as_json)


@app.command("list")
def list_explorations(runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """List the explorations of a runs directory."""
    runs = runs_place(runs_dir)
    rows = []
    for exploration_id in exploration_ids(runs):
        exploration = Exploration(runs / exploration_id)
        try:
            rows.append(documents.listed(exploration))
        except InputError as error:
            typer.echo(f"left out: {error}", err=True)
    print_document(rows, as_json, lambda: show_table(rows, empty=f"no explorations in {runs}"))


@app.command()
def show(exploration_id: Id, runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """Show an exploration's state and its spec with every default written out."""
    exploration = open_exploration(exploration_id, runs_dir)
    document = documents.shown(exploration)

    def text() -> None:
        for name, value in document.items():
            if name == "created":
                value = (
                    datetime.fromtimestamp(value, UTC).astimezone().isoformat(timespec="seconds")
                )
            if name not in ("spec", "trials"):
                typer.echo(f"{name}: {value if not isinstance(value, float) else f'{value:.6g}'}")
        show_table(document["trials"], empty="no trial has ended yet")
        typer.echo(exploration.spec.to_yaml())

    print_document(document, as_json, text)


@app.command()
def cost(
    spec: SpecSource,
    at: Annotated[list[str], typer.Option("--at", help="A setting: phi=0.5. Repeatable.")],
    changes: Set = None,
    as_json: Json = False,
) -> None:
    """Say what a setting costs; nothing is trained and no data are needed."""
    from explorer.models import build_trainable

    trainable = build_trainable(load_spec(spec, changes or ()))
    space = trainable.problem.space
    try:
        conditioning = space.validate(_assignments(at))
    except InputError as error:
        domains = ", ".join(f"{parameter.name} {parameter.domain}" for parameter in space)
        raise InputError(f"--at: {error}; give one --at NAME=VALUE each: {domains}") from None
    document = documents.costs(trainable, conditioning)
    print_document(document, as_json, lambda: show_costs(document))


@app.command()
def frontier(
    exploration_id: Id,
    compare: Annotated[
        bool, typer.Option("--compare", help="Against every other method, with costs.")
    ] = False,
    between: Annotated[
        list[str] | None,
        typer.Option("--between", help="Differences on test over these alone: phi=0.1:0.5."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw into a .html or .png file.")
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="The split that --plot shows: val or test.")
    ] = "val",
    method: Method = None,
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Print the nondominated settings, chosen on validation, with their test values."""
    exploration = open_exploration(exploration_id, runs_dir)
    points = exploration.frontier(method=method)
    document = documents.front(exploration, points, method=method, status=_status(exploration))
    if compare:
        document["comparison"] = exploration.compare(method=method, ranges=_ranges(between))
    if plot is not None:
        document["plot"] = str(exploration.plot(plot, split=split))

    def text() -> None:
        show_points(points, exploration.objectives)
        if compare:
            show_comparison(document["comparison"])
        if plot is not None:
            typer.echo(f"drawn: {plot}")

    print_document(document, as_json, text)


@app.command()
def query(
    exploration_id: Id,
    at_most: Max = None,
    at_least: Min = None,
    maximize: Maximize = None,
    minimize: Minimize = None,
    knee: Knee = False,
    method: Method = None,
    refine: Annotated[
        int,
        typer.Option("--refine", min=0, help="Evaluate N new settings around the answer first."),
    ] = 0,
    seeds: Seeds = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="Refuse to answer from another data set than this one."),
    ] = None,
    evaluate_on: Annotated[
        str | None,
        typer.Option(
            "--evaluate-on",
            metavar="DATASET",
            help="Judge by the images of another data set: its name, or what differs: "
            "'{root: DIR}', '{name: NAME, root: DIR, options: {...}}'.",
        ),
    ] = None,
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Ask for the best setting within bounds; exit 3 when nothing fits.

    Bounds and objectives name metrics (dice), labels of metrics (dice/nucleus), costs (macs,
    flops, parameters, activation_bytes) and conditionings (phi, lambda). Chosen on validation, its
    test value beside it. Examples:

        explorer query demo-1 --max macs=10M

        explorer query demo-1 --min dice=0.85 --minimize macs

        explorer query demo-1 --min dice=0.85 --minimize macs --refine 20

        explorer query demo-1 --min dice/region1=0.8 --max parameters=20k --max macs=14M

        explorer query demo-1 --knee --method fixed --seed 0

        explorer query demo-1 --min dice=0.8 --minimize activation_bytes
        --evaluate-on '{root: DIR}'
    """
    exploration = open_exploration(exploration_id, runs_dir)
    if knee and refine:
        raise InputError("--knee is of the points that there are: leave --refine out")
    if evaluate_on is not None and refine:
        raise InputError("--refine is of the validation images: leave --evaluate-on out")
    bounds, objective = _bounds(at_most, at_least), _objective(maximize, minimize)
    there: dict[str, Any] | None = None
    if evaluate_on is None:
        ask = _question(
            exploration, bounds, objective, knee=knee, method=method, seeds=seeds, dataset=dataset
        )
    else:
        _question(
            exploration, bounds, objective, knee=knee, method=method, seeds=seeds, dataset=dataset
        )()  # a wrong question costs nothing
        with stdout_to_stderr():
            table, there = exploration.elsewhere(
                _plain("--evaluate-on", evaluate_on),
                method=method,
                seeds=seeds,
                progress=ProgressReport(),
            )
        ask = _asked_of(table, exploration, bounds, objective, knee=knee)
    answer = ask()
    if refine:
        before = answer
        with stdout_to_stderr():
            exploration.refine(
                refine, bounds, objective=objective, method=method, progress=ProgressReport()
            )
        answer = ask()
        if (answer.point, answer.nearest) == (before.point, before.nearest):
            typer.echo("refining found nothing better: the answer is the one before", err=True)
    document = documents.answered(answer, status=_status(exploration), there=there)
    asked = [objective.name] if objective else []
    print_document(document, as_json, lambda: show_answer(answer, asked=asked, there=there))
    if not answer.feasible:
        raise typer.Exit(3)


@app.command()
def optimize(
    exploration_id: Id,
    maximize: Maximize = None,
    minimize: Minimize = None,
    by: Annotated[
        str | None,
        typer.Option("--by", help="An optimum per label, subject, or value of a COLUMN."),
    ] = None,
    solver: Annotated[
        str, typer.Option("--solver", help="gradient; tpe and grid take any metric and method.")
    ] = "gradient",
    pairs: Annotated[
        int, typer.Option("--pairs", min=1, help="Validation samples of each group at most.")
    ] = 20,
    starts: Annotated[
        int | None,
        typer.Option(
            "--starts", min=1, help="Settings that the gradient starts from (two per parameter)."
        ),
    ] = None,
    num_points: Annotated[
        int | None,
        typer.Option(
            "--num-points",
            min=1,
            help="Settings of tpe (50); values per parameter of grid (101, or 21 of several).",
        ),
    ] = None,
    method: Method = None,
    seeds: Seeds = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the groups' optima into a .png file.")
    ] = None,
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Find the best setting for pairs of validation by gradient through the frozen network.

    The network stays as it is, the setting alone varies, within the explored ranges. The objective
    is soft Dice (dice, dice/LABEL, dice/trained, dice/held_out); the metric itself at the setting
    found is told beside it. Examples:

        explorer optimize hypermorph-demo-1 --by label --plot labels.png

        explorer optimize hypermorph-demo-1 --minimize displacement --solver grid --num-points 21
    """
    exploration = open_exploration(exploration_id, runs_dir)
    if plot is not None and (by is None or plot.suffix != ".png"):
        raise InputError(f"--plot {plot}: expected groups (--by) and a file name ending in .png")
    with stdout_to_stderr():
        found = exploration.optimize(
            objective=_objective(maximize, minimize),
            by=by,
            solver=solver,
            num_pairs=pairs,
            starts=starts,
            num_points=num_points,
            method=method,
            seeds=seeds,
            progress=ProgressReport(),
        )
        if plot is not None:
            found.plot(plot)
    document = documents.optimized(found, status=_status(exploration))

    def text() -> None:
        show_optima(document)
        if plot is not None:
            typer.echo(f"drawn: {plot}")

    print_document(document, as_json, text)


@app.command()
def analyze(
    exploration_id: Id,
    name: Annotated[
        str | None, typer.Argument(help="What to analyze; without it, what there is.")
    ] = None,
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Draw and tabulate what an exploration tells beyond its front; shown in MLflow too.

    Of rescaling factors: structures, iso-accuracy (the same quality for less), parameters (of
    training), training-cost, prior-width, transfer (weights of one factor at others), variation,
    kernels and feature-maps (what is predicted), factors and factor-fronts (one for each level). Of
    adaptations: strategies (every method at every amount of images), lambda, blocks (which of
    the network are fine-tuned) and amortisation (one training against one for each lambda). Of
    domains held out: domains (every method in each), parameters (of training), cost (of a
    prediction), interpolation (along the lines between embeddings) and features (of domains, in two
    dimensions). Each leaves figures/analysis-NAME.png and tables/NAME.csv in the exploration's
    folder. Examples:

        explorer analyze spottunet-demo-1

        explorer analyze spottunet-demo-1 blocks
    """
    exploration = open_exploration(exploration_id, runs_dir)
    if name is None:
        known, lacking = exploration.analyses(), exploration.analyses_lacking()
        print_document(
            {"exploration_id": exploration.id, "analyses": known, "needs": lacking},
            as_json,
            lambda: show_table(
                [
                    {"analysis": own, "shows": text, "needs": lacking.get(own, "")}
                    for own, text in known.items()
                ],
                empty=f"there is no analysis of {exploration.id} yet",
            ),
        )
        return
    with stdout_to_stderr():
        found, figure, table = exploration.analyze(name, progress=ProgressReport())
    document = documents.analyzed(exploration, name, found, figure, table)
    print_document(document, as_json, lambda: show_analysis(document))


@app.command()
def report(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID|FILE.json ...]", help="Default: every finished exploration."),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="A table for a README, with the commands.")
    ] = False,
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Hold what the papers claim against what was found here: number, spread, cost, held or not.

    Of explorations, which are analyzed for it (minutes), or of files that explorer frontier ID
    --compare --json or explorer analyze ID NAME --json printed. A claim held ("yes") where the
    whole spread is on its side; "no" where it is on the other; else the two are "not separated",
    as where there is one seed and the spread is that over seeds. A training is called cheaper at
    half the time or less, a network from 10 % fewer multiply-adds, weights serve at another
    factor where at most 5 points are lost. For example:

        explorer report sshn-wbc-1

        explorer report front.json domains.json --markdown
    """
    if markdown and as_json:
        raise InputError("--markdown and --json: expected one of them")
    rows: list[dict[str, Any]] = []
    with stdout_to_stderr():
        progress = ProgressReport()
        for source in sources or _finished(runs_dir):
            path = Path(source)
            if source.endswith(".json") and not path.exists():
                raise InputError(f"{source}: there is no such file")
            if source.endswith(".json"):
                rows += rows_of(read_json(path), source)
                continue
            if path.is_file():
                raise InputError(f"{source}: expected an exploration's id or a .json file")
            exploration = open_exploration(source, runs_dir)
            if (status := exploration.state["status"]) != "finished":
                raise InputError(
                    f"{source} is {status}: report on it once explorer resume {source} has "
                    f"finished it"
                )
            rows += documents.reported(exploration, progress)
    order = [claim.says for claim in CLAIMS]
    rows.sort(key=lambda row: order.index(row["claim"]))
    if markdown:
        typer.echo(report_in_markdown(rows))
    else:
        print_document(rows, as_json, lambda: show_report(rows))


def _finished(runs_dir: str | None) -> list[str]:
    runs = runs_place(runs_dir)
    every = (Exploration(runs / exploration_id) for exploration_id in exploration_ids(runs))
    finished = [own.id for own in every if own.state["status"] == "finished"]
    if not finished:
        raise InputError(
            f"{runs}: no finished exploration to report on; name explorations or JSON files, or "
            f"another --runs-dir"
        )
    return finished


@app.command()
def export(
    exploration_id: Id,
    output: Annotated[Path, typer.Option("--output", help="A new folder.")],
    at_most: Max = None,
    at_least: Min = None,
    maximize: Maximize = None,
    minimize: Minimize = None,
    knee: Knee = False,
    method: Method = None,
    seeds: Seeds = None,
    at: Annotated[
        list[str] | None,
        typer.Option("--at", help="This setting, measured or not: phi=0.3. Repeatable."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="pt2 (torch.export) or onnx, beside safetensors, which is always there. "
            "Repeatable.",
        ),
    ] = None,
    register: Annotated[
        str | None,
        typer.Option("--register", metavar="NAME", help="Also a version in MLflow's registry."),
    ] = None,
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Write the primary network of a query's answer, the hypernetwork left out.

    Of several seeds, that of the one which is best on validation. The folder holds weights and the
    JSON to rebuild them from, programs if asked for, and a model card. A registered one has an
    alias that names the budget or, without one, the setting. Examples:

        explorer export demo-1 --max macs=14M --output network --format onnx --format pt2

        explorer export demo-1 --at phi=0.3 --output network --register cells

        mlflow models serve -m models:/cells@phi-0_3 --env-manager local
    """
    exploration = open_exploration(exploration_id, runs_dir)
    bounds, objective = _bounds(at_most, at_least), _objective(maximize, minimize)
    if at:
        if bounds or objective or knee:
            raise InputError(
                "--at names the setting: leave --max, --min, --maximize, --minimize and --knee out"
            )
        answer = Answer((), exploration.at(_assignments(at), method=method, seeds=seeds))
    else:
        answer = _question(exploration, bounds, objective, knee=knee, method=method, seeds=seeds)()
    _status(exploration)
    if answer.point is None:
        print_document(answer.to_json(), as_json, lambda: show_answer(answer))
        raise typer.Exit(3)
    if register:
        from explorer.registry import require_name

        require_name(register)
    with stdout_to_stderr():
        exported = exploration.export(answer.point, output, formats=formats or ())
        registered = exploration.register(exported, register, bounds=bounds) if register else None
    document = {
        **exported.to_json(),
        "registered": registered.to_json() if registered else None,
    }

    def text() -> None:
        if at:
            show_point(exported.point)
        else:
            show_answer(answer)
        typer.echo(f"exported {exported.trial_id} to {output}")
        if registered:
            typer.echo(f"registered version {registered.version}: {registered.uri}")

    print_document(document, as_json, text)


@app.command()
def ui(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
    runs_dir: RunsDir = None,
) -> None:
    """Open the MLflow UI on the explorations of a runs directory."""
    from explorer.tracking import tracking_uri

    uri = tracking_uri(runs_place(runs_dir))
    if "://" in uri and uri.startswith("http"):
        typer.echo(f"tracking is on a server: open {uri}")
        return
    typer.echo(f"MLflow UI: http://{host}:{port} (stop with Ctrl-C)", err=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    os.execv(sys.executable, [*command, "--host", host, "--port", str(port)])


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Holds a token that every request must bear; needed wherever others can reach it.",
        ),
    ] = None,
    max_upload: Annotated[
        str, typer.Option("--max-upload", help="Largest request, in bytes: 64M.")
    ] = "64M",
    time_limit: Annotated[
        float,
        typer.Option("--time-limit", min=0.1, help="Seconds of one prediction or optimisation."),
    ] = 120.0,
    replicas: Annotated[
        int,
        typer.Option(
            "--replicas",
            min=1,
            help="Processes that answer, at most one per processor; the page needs a single one.",
        ),
    ] = 1,
    runs_dir: RunsDir = None,
) -> None:
    """Answer over HTTP: explorations, frontiers, queries, costs, predictions, optima.

    Described at /docs and /openapi.json. Ends at Ctrl-C. Example:

        explorer serve --host 0.0.0.0 --token-file token.txt
    """
    try:
        from explorer.guarding import token_digest

        token_digest(host, token_file)  # before the imports, which take seconds
        from explorer.serving import Settings
        from explorer.serving import serve as serve_forever
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is missing: pip install 'pareto-explorer[serve]' brings what explorer "
            f"serve needs"
        ) from error
    settings = Settings(
        runs_dir=str(runs_place(runs_dir)),
        host=host,
        port=port,
        token_file=token_file,
        max_upload_bytes=max(1, int(parse_quantity(max_upload))),
        time_limit_s=time_limit,
        replicas=replicas,
    )
    with stdout_to_stderr():
        serve_forever(settings, ProgressReport())


app.command()(submit)


@datasets_app.command("list")
def datasets_list(as_json: Json = False) -> None:
    """List the data sets that are shipped or brought by installed packages."""
    from trainables.datasets.sources import DATASETS

    known = names_of("datasets", DATASETS, Extensions())
    rows = [
        {
            "name": source.name,
            "needs_root": source.needs_root,
            "size": "x".join(map(str, source.size)),
            "labels": len(source.labels),
            "summary": source.summary,
        }
        for source in (find("datasets", name, DATASETS, Extensions()) for name in known)
    ]
    print_document(rows, as_json, lambda: show_table(rows, empty=""))


@datasets_app.command("check")
def datasets_check(
    name: Annotated[str, typer.Argument(help="A data set of `explorer datasets list`.")],
    root: Annotated[Path, typer.Option("--root", help="The folder of its files.")],
    as_json: Json = False,
) -> None:
    """Count and validate the files of a data set; exit 2 when something is wrong."""
    from trainables.datasets.sources import DATASETS

    source = find("datasets", name, DATASETS, Extensions())
    report = source.check(root)
    document = {
        "name": name,
        "root": str(root),
        "num_images": report.num_images,
        "problems": list(report.problems),
        "details": report.details,
    }

    print_document(document, as_json, lambda: show_folder(document, source.summary))
    if report.problems:
        raise typer.Exit(2)


def main() -> None:
    """Entry point: users' mistakes become one line and an exit code; our bugs keep a traceback."""
    # a scheduler's SIGTERM is to leave a resumable exploration, as Ctrl-C does
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)


def _work(work: Callable[[ProgressReport], Exploration], as_json: bool) -> None:
    """Carry out long work with progress on stderr, then print its result on stdout."""
    with stdout_to_stderr():
        exploration = work(ProgressReport())
    print_document(exploration.summary(), as_json, lambda: show_result(exploration))


def _typed(command: str, spec: str, changes: list[str] | None) -> str:
    """What was typed, to be typed again."""
    options = [part for change in changes or () for part in ("--set", change)]
    return f"{command} {shlex.join([spec, *options])}"


def _plain(option: str, text: str) -> str | dict[str, Any]:
    """A name, or a mapping in YAML."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        value = None
    is_mapping = isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if isinstance(value, str):
        return value
    if is_mapping:
        return dict(value)
    raise InputError(
        f"{option}: expected the name of a data set, or a mapping such as "
        f"'{{name: wbc, root: DIR}}', got {text[:80]!r}"
    )


def _asked_of(
    table: PointTable,
    exploration: Exploration,
    bounds: list[Bound],
    objective: Objective | None,
    *,
    knee: bool,
) -> Callable[[], Answer]:
    """A query of points that are not the exploration's own, or one for their knee."""
    if knee:
        return lambda: table.knee(exploration.objectives, bounds)
    return lambda: table.query(
        bounds,
        objective=objective or exploration.objectives[0],
        tie_breaks=exploration.tie_breaks,
    )


def _question(
    exploration: Exploration,
    bounds: list[Bound],
    objective: Objective | None,
    *,
    knee: bool,
    **filters: Any,
) -> Callable[[], Answer]:
    """A query, or one for the knee, as it can be asked again."""
    if not knee:
        return lambda: exploration.query(bounds, objective=objective, **filters)
    if objective is not None:
        raise InputError(
            "--knee is of the exploration's own objectives: leave --maximize and --minimize out"
        )
    return lambda: exploration.knee(bounds, **filters)


def _status(exploration: Exploration) -> str:
    """The exploration's status; while it has not finished, stderr says what that means."""
    status: str = exploration.state["status"]
    if status != "finished":
        remedy = "" if status == "running" else f"; explorer resume {exploration.id} carries it on"
        typer.echo(
            f"{exploration.id} is {status}: this is of what it has measured so far{remedy}",
            err=True,
        )
    return status


def _objective(maximize: str | None, minimize: str | None) -> Objective | None:
    if maximize and minimize:
        raise InputError("--maximize and --minimize: expected one of them, got both")
    if minimize:
        return Objective(minimize, "minimize")
    return Objective(maximize, "maximize") if maximize else None


def _bounds(at_most: list[str] | None, at_least: list[str] | None) -> list[Bound]:
    bounds = [parse_bound(text, "max") for text in at_most or ()]
    return bounds + [parse_bound(text, "min") for text in at_least or ()]


def _assignments(texts: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` texts as a mapping; numbers where they are numbers."""
    values: dict[str, Any] = {}
    for name, value in texts_of(texts).items():
        try:
            values[name] = float(value)
        except ValueError:
            values[name] = value
    return values


def _ranges(texts: list[str] | None) -> dict[str, tuple[float, float]]:
    ranges = {}
    for text in texts or ():
        name, _, ends = text.partition("=")
        low, _, high = ends.partition(":")
        try:
            ranges[name.strip()] = float(low), float(high)
        except ValueError:
            raise InputError(
                f"--between {text}: expected NAME=LOW:HIGH such as phi=0.1:0.5"
            ) from None
        if float(low) > float(high):
            raise InputError(f"--between {text}: expected LOW at most HIGH")
    return ranges
