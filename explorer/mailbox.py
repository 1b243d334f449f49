"""Work on its way to workers: a small actor between the driver and them.

It imports nothing of ours, and holds references alone, so that it starts in a moment.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

_POLL_S = 0.003


@dataclass(frozen=True)
class Letter:
    """A piece of work by its name.

    Attributes:
        contents: an object reference, in a list, so that it is not resolved on its way.
    """

    name: str
    contents: list[Any]


@ray.remote(num_cpus=0)
class Mailbox:
    """First come, first served; None tells a worker that there is no more."""

    def __init__(self) -> None:
        self.waiting: deque[Letter | None] = deque()
        self.held: dict[int, Letter | None] = {}

    async def put(self, letters: Sequence[Letter | None]) -> None:
        """Add work."""
        self.waiting.extend(letters)

    async def give_back(self, worker: int) -> None:
        """Let others have what a lost worker had."""
        letter = self.held.pop(worker, None)
        if letter is not None:
            self.waiting.appendleft(letter)

    async def stop(self, num_workers: int) -> None:
        """Let every worker end after what it has."""
        self.waiting = deque([None] * num_workers)

    async def take(self, worker: int, done: str | None) -> Letter | None:
        """The next work, once there is some; asked again for the same, the same.

        Args:
            worker: its number.
            done: the name of what it had, if that is finished.
        """
        held = self.held.get(worker)
        if held is not None and held.name == done:
            del self.held[worker]
        while worker not in self.held and not self.waiting:
            await asyncio.sleep(_POLL_S)
        if worker not in self.held:
            self.held[worker] = self.waiting.popleft()
        return self.held[worker]
