"""What a person sees while a run works: bars on a terminal, plain lines elsewhere; on stderr."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType, TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

LINE_EVERY_S = 10.0


class ProgressReport:
    """Progress of the phases of a run; each phase has a total, and items that move within it.

    Entered, it sees to it that Ctrl-C ends the run: a KeyboardInterrupt that was raised where
    Python ignores it, or where a library swallowed it, is raised again at the next update.

    Args:
        quiet: show nothing (as a library).
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.bars: Progress | None = None
        if sys.stderr.isatty() and not quiet:
            columns = (
                TextColumn("{task.description:<28}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self.bars = Progress(
                *columns, TimeElapsedColumn(), console=self.console, transient=True
            )
        self.phase_name = ""
        self.num_items: int | None = None
        self.num_done = 0
        self.fractions: dict[str, float] = {}
        self.tasks: dict[str, TaskID] = {}
        self.started = self.last_line = time.monotonic()
        self.is_interrupted = False
        self.signals: list[signal.Signals] = []

    def __enter__(self) -> ProgressReport:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is signal.default_int_handler:
                    signal.signal(number, self._interrupt)
                    self.signals.append(number)
        if self.bars:
            self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.bars:
            self.bars.stop()
        while self.signals:
            signal.signal(self.signals.pop(), signal.default_int_handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.is_interrupted = True
        raise KeyboardInterrupt

    def say(self, text: str) -> None:
        """Print one line that stays."""
        self.console.print(text, markup=False)

    def phase(self, name: str, num_items: int | None = None) -> None:
        """Begin a phase of so many items; None when nobody knows yet."""
        self._clear()
        self.phase_name, self.num_items, self.num_done = name, num_items, 0
        self.fractions = {}
        self.started = self.last_line = time.monotonic()
        self.say(name if num_items is None else f"{name}: {num_items}")
        if self.bars:
            self.tasks[""] = self.bars.add_task(name, total=num_items, note="")

    def update(self, item: str, fraction: float, note: str = "") -> None:
        """Move one item within the phase; at fraction 1 it is done.

        Raises:
            KeyboardInterrupt: there was one before, and it has not ended the run.
        """
        if self.is_interrupted:
            raise KeyboardInterrupt
        if self.fractions.get(item) == 1.0:
            return
        self.fractions[item] = fraction
        self.num_done = sum(value == 1.0 for value in self.fractions.values())
        if self.bars:
            self._move_bar(item, fraction, note)
        elif fraction == 1.0 or time.monotonic() - self.last_line > LINE_EVERY_S:
            self._print_line(item, note)

    def _print_line(self, item: str, note: str) -> None:
        now = time.monotonic()
        if now - self.last_line < LINE_EVERY_S and self.num_done != self.num_items:
            return
        self.last_line = now
        total = "" if self.num_items is None else f"/{self.num_items}"
        self.say(
            f"{self.phase_name}: {self.num_done}{total} done after "
            f"{now - self.started:.0f} s; {item} {note}".rstrip()
        )

    def _move_bar(self, item: str, fraction: float, note: str) -> None:
        assert self.bars is not None
        if item not in self.tasks:
            self.tasks[item] = self.bars.add_task(f"  {item}", total=1.0, note=note)
        self.bars.update(self.tasks[item], completed=fraction, note=note)
        if fraction == 1.0:
            self.bars.remove_task(self.tasks.pop(item))
        self.bars.update(self.tasks[""], completed=sum(self.fractions.values()))

    def _clear(self) -> None:
        if self.bars:
            for task in self.tasks.values():
                self.bars.remove_task(task)
        self.tasks = {}
