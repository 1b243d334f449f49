"""What the command line prints for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from explorer.exploration import Exploration
from explorer.places import runs_place
from explorer.points import Point
from explorer.quantities import format_quantity, parse_quantity
from explorer.queries import Answer, Bound
from search_spaces.problem import Objective

MAX_ROWS = 30
MAX_LABELS = 6  # of a point in a line
MAX_NAMES = 3  # of files in a line
MIN_WIDTH = 120  # of tables that go into a file or a pipe
WIDE = 180  # likewise, of many columns


def show_result(exploration: Exploration) -> None:
    """A finished run: the front, the comparison, an example query, and where everything is."""
    console = _console()
    state, runs = exploration.state, exploration.folder.parent
    # what is printed can be typed as it is
    where = "" if str(runs) == str(runs_place(None)) else f" --runs-dir {runs}"
    console.print(
        f"\n{exploration.id} is {state['status']}: {state['num_measurements']} measurements"
    )
    points = exploration.frontier()
    show_points(points, exploration.objectives)
    if exploration.spec.baselines:
        show_comparison(exploration.compare())
    cost = exploration.objectives[-1].name
    spent = [point.costs[cost] for point in points if cost in point.costs]
    if spent:
        budget = 0.5 * (min(spent) + max(spent))
        texts = (format_quantity(budget, digits=digits) for digits in range(3, 18))
        text = next((one for one in texts if parse_quantity(one) >= min(spent)), repr(budget))
        console.print(
            f"\nFor example, within a budget: explorer query {exploration.id}{where} "
            f"--max {cost}={text}"
        )
        show_answer(exploration.query([Bound(cost, "max", parse_quantity(text))]))
    console.print(f"\nfigures   {exploration.folder / 'figures'}")
    console.print(f"page      {exploration.folder / 'frontier.html'}")
    if exploration.spec.tracking:
        console.print(f"MLflow    explorer ui{where}, then http://127.0.0.1:5000")
    console.print(f"compare   explorer frontier {exploration.id}{where} --compare")
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in state["elapsed_s"].items())
    console.print(f"time      {times}")


def show_job(job: Mapping[str, Any], address: str) -> None:
    """What a cluster knows of a job, and what to type next."""
    console = _console()
    name, status, message = job["exploration_id"], job["status"], job["message"]
    verbs = {"SUCCEEDED": "result", "STOPPED": "resume", "FAILED": "resume"}
    verb = verbs.get(status, "logs -f")
    console.print(f"{name} is {status}{': ' if message else ''}{message}", soft_wrap=True)
    console.print(f"results   {job['runs_dir']}/{name}", soft_wrap=True)
    console.print(f"next      explorer jobs {verb} {name} --address {address}", soft_wrap=True)


def show_points(points: Sequence[Point], objectives: Sequence[Objective]) -> None:
    """A front as a table, thinned evenly when long; the title says so."""
    step = max(1, -(-len(points) // MAX_ROWS))
    shown = list(points[::-1][::step])[::-1]
    part = "" if step == 1 else f"{len(shown)} of "
    whole = "" if step == 1 else "; --json for all"
    table = Table(title=f"Front on validation: {part}{len(points)} settings{whole}")
    names = [o.name for o in objectives]
    headers = ["setting", *names, f"{names[0]} on test", "seeds"]
    for header in headers:
        table.add_column(header, justify="left" if header == "setting" else "right")
    for point in shown:
        values = {**point.costs, **point.metrics}
        test = point.test_metrics.get(names[0])
        cells = [_number(values[name]) for name in names]
        table.add_row(_setting(point.conditioning), *cells, _number(test), str(point.num_seeds))
    _console().print(table)


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """Methods with their costs, and what separates them."""
    main, objectives = comparison["method"], comparison["objectives"]
    quality, cost = objectives[0]["name"], objectives[-1]["name"]
    table = Table(title=f"Methods (best {quality} chosen on validation)")
    for header in (
        "method",
        "trainings",
        "settings",
        "training s",
        f"/ {main}",
        "with evaluation",
        f"best {quality}",
        "on test",
        cost,
        "at",
    ):
        table.add_column(header, justify="right" if header not in ("method", "at") else "left")
    for name, row in comparison["methods"].items():
        best = row["best"]
        table.add_row(
            name,
            str(row["num_trainings"]),
            str(row["num_settings"]),
            f"{row['train_s']:.0f}",
            f"{row['train_ratio']:.2f}",
            f"{row['total_ratio']:.2f}",
            _number(best["metrics"][quality]),
            _number(best["test_metrics"].get(quality)),
            _number({**best["metrics"], **best["costs"]}.get(cost)),
            _setting(best["conditioning"]),
        )
    console = _console()
    console.print(table)
    for name, row in comparison["methods"].items():
        if objectives[0]["direction"] == "maximize" and row["best"]["metrics"][quality] == 0:
            console.print(
                f"{name} has learned nothing: {quality} is 0 at every setting; train longer, or at "
                f"another learning rate (train.epochs, train.learning_rate)"
            )
    for row in comparison["paired_on_test"]:
        console.print(
            f"{_trained(row, 'method')} minus {_trained(row, 'against')}, {row['metric']} on test: "
            f"{100 * row['difference']:+.2f} points (95 % interval {100 * row['low']:+.2f} to "
            f"{100 * row['high']:+.2f}; {row['num_settings']} settings, "
            f"{row['num_images']} samples, {row['num_seeds']} "
            f"{'seed' if row['num_seeds'] == 1 else 'seeds'})"
        )
    for row in comparison["significance_on_test"]:
        console.print(
            f"{row['method']} minus {row['against']}, each at its best on validation, "
            f"{row['metric']} on test: {100 * row['difference']:+.2f} points "
            f"({row['num_samples']} samples; better: Wilcoxon p = {row['wilcoxon_p']:.2g}, sign "
            f"test p = {row['sign_p']:.2g}; within {100 * row['margin']:g} point: TOST p = "
            f"{row['equivalence_p']:.2g})"
        )
    for name, saving in comparison["iso_accuracy"].items():
        if saving["saving"] is not None:
            setting = _setting(saving["point"]["conditioning"])
            than = "fewer" if saving["saving"] >= 0 else "more"
            console.print(
                f"{main} at {setting} has at least the {quality} of the best {name} on validation "
                f"with {abs(100 * saving['saving']):.0f} % {than} {cost}"
            )
        else:
            console.print(f"{main} does not reach the {quality} of the best {name} on validation")
    for name, found in comparison["iso_cost"].items():
        _show_gain(console, main, name, found, quality=quality, cost=cost)
    for name, shares in comparison["dominance"].items():
        console.print(
            f"the front of {main} dominates {100 * shares['share_of_other_dominated']:.0f} % of "
            f"that of {name}, and is dominated by it in "
            f"{100 * shares['share_of_own_dominated']:.0f} % of its points"
        )


def _trained(row: Mapping[str, Any], which: str) -> str:
    """A method, and the way of training that it was held to."""
    way = row.get("ways", {}).get(row[which])  # documents of earlier versions tell none
    return f"{row[which]} ({_setting(way)})" if way else row[which]


def _show_gain(
    console: Console, main: str, name: str, found: Mapping[str, Any], *, quality: str, cost: str
) -> None:
    if found["gain"] is not None:
        setting = _setting(found["point"]["conditioning"])
        console.print(
            f"{main} at {setting} has at most the {cost} of the best {name} and "
            f"{100 * found['gain']:+.2f} points of {quality} on validation"
        )
    if found["mean_gain"] is not None:
        low, high = (_number(value) for value in found["range"])
        console.print(
            f"{main} minus {name} on validation, mean over budgets of {low} to {high} {cost}: "
            f"{100 * found['mean_gain']:+.2f} points of {quality}"
        )


def show_answer(
    answer: Answer, *, asked: Sequence[str] = (), there: Mapping[str, Any] | None = None
) -> None:
    """A query's answer, or why there is none; labels are told where they were asked for."""
    console = _console()
    if there is not None:
        console.print(f"judged by {there['num_samples']} samples of {there['dataset']}")
    bounds = " and ".join(str(bound) for bound in answer.bounds) or "no bounds"
    named = [*asked, *(bound.name for bound in answer.bounds)]
    if answer.point is None:
        console.print(f"nothing fits {bounds}: {answer.reason}")
        if answer.nearest is not None:
            console.print(f"nearest: {_point(answer.nearest, named)}")
        return
    console.print(f"best within {bounds}: {_point(answer.point, named)}")


def show_optima(document: Mapping[str, Any]) -> None:
    """The best settings of all samples and of groups, as `explorer optimize --json` has them."""
    metric, results = document["metric"], document["results"]
    is_soft = document["solver"] == "gradient"
    seeds = f"{document['num_seeds']} seed{'' if document['num_seeds'] == 1 else 's'}"
    table = Table(title=f"Best {metric} of {document['method']} on validation, {seeds}")
    objective = "soft dice" if is_soft else "objective"
    for header in ("group", "setting", metric, objective, "pairs", "people", "evaluations", "s"):
        table.add_column(header, justify="left" if header in ("group", "setting") else "right")
    for one in results:
        setting = one["conditioning"]
        cells = [f"{one[name]:.4f}" if setting else "-" for name in ("value", "objective")]
        table.add_row(
            one["group"],
            _setting(setting) if setting else "no samples",
            *cells,
            str(one["num_pairs"]),
            str(one["num_people"]),
            str(one["num_evaluations"]),
            f"{one['elapsed_s']:.2f}",
        )
    _console().print(table)


def show_folder(document: Mapping[str, Any], source: str) -> None:
    """What a look at the folder of a data set found."""
    typer.echo(f"{document['name']} in {document['root']}: {document['num_images']} images")
    for key, value in document["details"].items():
        if value:
            typer.echo(f"  {key}: {_found(value)}")
    typer.echo(f"  source: {source}")
    for problem in document["problems"]:
        typer.echo(f"  problem: {problem}")


def _found(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{each} ({_found(own)})" for each, own in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        more = len(value) - MAX_NAMES
        return ", ".join(map(str, value[:MAX_NAMES])) + (f" and {more} more" if more > 0 else "")
    return str(value)


def show_costs(document: Mapping[str, Any]) -> None:
    """What a setting costs."""
    console = _console()
    console.print(f"at {_setting(document['conditioning'])}, one image:")
    for name, value in document["costs"].items():
        console.print(f"  {name:<18}{_number(value):>8}  ({value:.0f})")
    console.print("  features: " + ", ".join(f"{n} {s}" for n, s in document["sizes"].items()))


def show_table(rows: Sequence[Mapping[str, Any]], *, empty: str, width: int = MIN_WIDTH) -> None:
    """Rows of equal keys as a table."""
    if not rows:
        _console().print(empty)
        return
    table = Table()
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    _console(width).print(table)


def show_report(rows: Sequence[Mapping[str, Any]]) -> None:
    """What papers claim against what was found, and the commands that find it again."""
    table = Table(title="Claims of the papers, and what was found here", show_lines=True)
    headers = ("paper", "claims", "there", "here", "held", "data", "training s")
    for header in headers:
        table.add_column(header, justify="right" if header == "training s" else "left")
    for row in rows:
        table.add_row(*_claimed(row))
    console = _console(WIDE)
    if not rows:
        console.print("none of these explorations says anything of a claim of the papers")
        return
    console.print(table)
    for exploration_id, command in _commands(rows):
        console.print(f"{exploration_id}: {command}", soft_wrap=True)


def report_in_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same as a table in Markdown, and under it a block of commands."""
    lines = [
        "| paper | claims | there | here | held | data | training s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in _claimed(row)]
        lines.append(f"| {' | '.join(cells)} |")
    commands = dict.fromkeys(command for _, command in _commands(rows))
    return "\n".join([*lines, "", "```", *commands, "```"])


def _claimed(row: Mapping[str, Any]) -> list[str]:
    cost = "" if row["cost_s"] is None else f"{row['cost_s']:.0f}"
    paper = f"{row['paper']}, {row['place']}"
    return [paper, row["claim"], row["paper_number"], row["here"], row["held"], row["data"], cost]


def _commands(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Ids and commands, each pair once: files of two explorations may tell the same id."""
    told = ((row["exploration_id"], row["command"]) for row in rows if row["command"])
    return list(dict.fromkeys(told))


def show_analysis(document: Mapping[str, Any]) -> None:
    """The table of an analysis, what it says, and where its files are."""
    rows = [_analysed(row) for row in document["rows"]]
    show_table(rows, empty="nothing was found", width=WIDE)
    console = _console()
    for note in document["notes"]:
        console.print(note)
    console.print(f"figure    {document['figure']}")
    console.print(f"table     {document['table']}")


def _analysed(row: Mapping[str, Any]) -> dict[str, str]:
    """A row with few columns: spreads in brackets, settings in words, differences alone."""
    names = {"num_seeds": "seeds", "num_images": "images", "fine_tuned_blocks": "blocks"}
    cells: dict[str, str] = {}
    for name, value in row.items():
        if name == "setting":
            cells[name] = _setting(value)
        elif name == "against_best_fixed":
            told = "" if value is None else f"{value['gain']:+.4f} ± {value['error']:.4f}"
            cells["gain on best fixed"] = told
        elif name == "metrics":
            spread = row.get("seed_sd", {})
            for own, mean in value.items():
                sd = f" ({_number(spread[own])})" if own in spread else ""
                cells[names.get(own, own)] = f"{_number(mean)}{sd}"
        elif name == "difference":
            cells |= {f"{names.get(own, own)} more": f"{x:+.4f}" for own, x in value.items()}
        elif name == "amount":
            cells[name] = "all" if value == 0 else str(value or "")
        elif not isinstance(value, (list, Mapping)):
            cells[names.get(name, name)] = (
                _number(value) if isinstance(value, float) else str(value)
            )
    return cells


def _console(width: int = MIN_WIDTH) -> Console:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = max(console.width, width)
    return console


def show_point(point: Point) -> None:
    """A setting that was asked for by itself."""
    _console().print(_point(point))


def _point(point: Point, named: Sequence[str] = ()) -> str:
    setting = _setting(point.conditioning)
    where = f"{point.method} at {setting}" if setting else point.method
    if not point.metrics:
        costs = ", ".join(f"{name} {_number(value)}" for name, value in point.costs.items())
        return f"{where}: not measured; {costs}"
    metrics, test = _metrics(point.metrics, named), _metrics(point.test_metrics, named)
    costs = ", ".join(f"{name} {_number(value)}" for name, value in point.costs.items())
    on_test = f" (on test {test})" if test else " (not looked at on test)"
    return f"{where}: {metrics}{on_test}; {costs}"


def _metrics(values: Mapping[str, float], named: Sequence[str]) -> str:
    """Names and values; of many labels those that were named alone."""
    labels = [name for name in values if "/" in name and name not in named]
    hidden = labels if len(labels) > MAX_LABELS else []
    told = [f"{name} {value:.4f}" for name, value in values.items() if name not in hidden]
    return ", ".join(told + [f"{len(hidden)} labels (--json)"] * bool(hidden))


def _setting(conditioning: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value}"
        for name, value in conditioning.items()
    )


def _number(value: float | None) -> str:
    return "-" if value is None else format_quantity(value, digits=4)


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
