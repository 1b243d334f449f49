"""Batches of a split for training, on the device that trains."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from trainables.base import Arrays, gather
from trainables.mapped import Mapped

NUM_WORKERS = 2
READ_AHEAD = 4  # batches


class Loader:
    """Batches of one split; see `gather` for their shapes.

    A split in memory moves to the device as a whole, once. Of one that stays in its file, threads
    read the batches that come next while the present one is trained on.

    Args:
        data: the split.
        device: where batches are wanted.
    """

    def __init__(self, data: Arrays, device: torch.device) -> None:
        self.data, self.device = data, device
        self.is_mapped = isinstance(data.images, Mapped) or isinstance(data.truth, Mapped)
        if not self.is_mapped:
            self.images = torch.from_numpy(data.images).to(device)
            self.truth = torch.from_numpy(data.truth).to(device)
            pairs = data.pairs
            self.pairs = None if pairs is None else torch.from_numpy(pairs).to(device)

    def batches(self, order: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (step, images, truth) for every (step, indices) of an order."""
        if not self.is_mapped:
            for step, rows in order:
                yield step, *gather(self.images, self.truth, self.pairs, rows)
            return
        order = iter(order)
        waiting: deque[tuple[int, Future[tuple[Tensor, Tensor]]]] = deque()
        with ThreadPoolExecutor(NUM_WORKERS) as pool:
            for step, rows in itertools.islice(order, READ_AHEAD):
                waiting.append((step, pool.submit(self._read, rows)))
            while waiting:
                step, batch = waiting.popleft()
                x, y = batch.result()
                for later, rows in itertools.islice(order, 1):
                    waiting.append((later, pool.submit(self._read, rows)))
                yield (
                    step,
                    x.to(self.device, non_blocking=True),
                    y.to(self.device, non_blocking=True),
                )

    def _read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        x, y = (torch.from_numpy(own) for own in self.data.batch(rows.numpy()))
        return (x.pin_memory(), y.pin_memory()) if self.device.type == "cuda" else (x, y)
