"""Errors that a user can cause, with the exit code that the command line returns for them."""

from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can mend; its message is one line: place, expectation, remedy."""

    exit_code = 1


class InputError(UserError):
    """Wrong usage, specification or data: nothing was started."""

    exit_code = 2


class RunError(UserError):
    """A run that could not go on: disk full, non-finite loss, cluster away, trials failed."""

    exit_code = 1


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that a registry does not hold; it lists the names that it does."""
    return InputError(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}")
