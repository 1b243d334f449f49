"""What the commands share: options that several take, and how an answer is printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from search_spaces.errors import InputError

RunsDir = Annotated[
    str | None,
    typer.Option(
        "--runs-dir",
        metavar="DIR",
        help="Where explorations live: a folder, or s3://BUCKET/PREFIX (default: "
        "EXPLORER_RUNS_DIR or runs/).",
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document and nothing else; errors are text on stderr.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a key of the spec: train.epochs=200. Repeatable."),
]
Max = Annotated[list[str] | None, typer.Option("--max", help="Upper bound: macs=0.6G. Repeatable.")]
Min = Annotated[list[str] | None, typer.Option("--min", help="Lower bound: dice=0.9. Repeatable.")]
Maximize = Annotated[
    str | None,
    typer.Option("--maximize", help="What to maximise (default: the first objective)."),
]
Minimize = Annotated[str | None, typer.Option("--minimize", help="What to minimise instead.")]
Method = Annotated[str | None, typer.Option("--method", help="Ask this method, not the main one.")]
Knee = Annotated[
    bool,
    typer.Option("--knee", help="The front's knee: beyond it, each gain costs far more."),
]
Seeds = Annotated[
    list[int] | None,
    typer.Option("--seed", help="Average this seed only, not all. Repeatable."),
]
SpecSource = Annotated[
    str, typer.Argument(metavar="SPEC", help="A preset's name, a YAML file, or - for stdin.")
]
Id = Annotated[str, typer.Argument(metavar="ID", help="An exploration, such as demo-1.")]


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Whatever libraries print goes to stderr: stdout holds the answer alone."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def print_document(document: Any, as_json: bool, text: Callable[[], None]) -> None:
    """As one JSON document, or in words."""
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))
    else:
        text()


def texts_of(assignments: list[str]) -> dict[str, str]:
    """`NAME=VALUE` texts as a mapping.

    Raises:
        InputError: not of that form, or a name twice.
    """
    values: dict[str, str] = {}
    for text in assignments:
        name, separator, value = (part.strip() for part in text.partition("="))
        if not separator:
            raise InputError(f"{text}: expected NAME=VALUE such as phi=0.5")
        if name in values:
            raise InputError(f"expected one value of {name}, got several")
        values[name] = value
    return values
