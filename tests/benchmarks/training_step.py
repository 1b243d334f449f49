"""One training step as the training loop makes it, with the time of its parts.

Batches are random and stay where they are: loading and augmentation are the same for all methods
and left out, so ratios of steps are a little larger than ratios of whole trainings.
"""

import resource
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from trainables.base import Precision
from trainables.methods import TRAINABLES
from trainables.scale_space import SegmentationModel
from trainables.train_loop import autocast, memory_format

LABELS = ("cytoplasm", "nucleus")
IN_CHANNELS = 3
MAX_PHI = 0.5
MIN_ROUNDS = 4
GOLDEN = 0.6180339887498949


class Turn(NamedTuple):
    """Means over the timed steps of one turn: seconds by the clock, and minor page faults."""

    step: float
    forward: float
    backward: float
    optimiser: float
    page_faults: float


@dataclass(frozen=True)
class Workload:
    """What is the same for all methods that are compared."""

    size: int
    width: int
    batch_size: int
    precision: Precision
    channels_last: bool


class TrainingStep:
    """A model, its optimiser and a batch.

    Args:
        method: a name in `TRAINABLES`.
        workload: network and batch.
        hidden_sizes: of the hypernetwork, and of FiLM's network.
        device: torch device string.
    """

    def __init__(
        self,
        method: str,
        workload: Workload,
        *,
        hidden_sizes: tuple[int, ...] = (10, 32),
        device: str = "cpu",
    ) -> None:
        self.workload, self.device = workload, torch.device(device)
        model = SegmentationModel(
            in_channels=IN_CHANNELS,
            labels=LABELS,
            size=(workload.size, workload.size),
            encoder_widths=(workload.width,) * 5,
            decoder_widths=(workload.width,) * 4,
            hidden_sizes=hidden_sizes,
        )
        self.trainable: Any = TRAINABLES[method].construct(model, None)
        self.module = self.trainable.build(0).to(self.device)
        self.optimizer = torch.optim.Adam(
            self.module.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True
        )
        generator = torch.Generator().manual_seed(0)
        shape = (workload.batch_size, *model.size)
        layout = memory_format(workload.channels_last, 2)
        images = torch.rand((shape[0], IN_CHANNELS, *model.size), generator=generator)
        self.images = images.to(self.device).contiguous(memory_format=layout)
        masks = torch.randint(0, len(LABELS) + 1, shape, generator=generator)
        self.masks = masks.to(self.device)

    def run(self, phi: float) -> tuple[float, float, float]:
        """Make one step at that rescaling factor; seconds of forward, backward and optimiser.

        On a GPU they are those of handing the work over.
        """
        start = time.perf_counter()
        with autocast(self.device, self.workload.precision):
            loss = self.trainable.loss(
                self.module, self.images, self.masks, {"phi": phi}, "cross_entropy"
            )
        self.optimizer.zero_grad(set_to_none=True)
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        self.optimizer.step()
        end = time.perf_counter()
        return forward - start, backward - forward, end - backward


def interleaved(
    steps: Mapping[str, TrainingStep], *, budget_s: float, num_timed: int
) -> dict[str, list[Turn]]:
    """Let the models take turns, all at the same factor, until the time is over.

    A turn begins with a step that is not timed: it brings the model's weights back into the cache
    and the allocator into the state that it has when this model trains alone. The order is
    reversed in every other round, so that nobody always follows the same one.
    """
    for step in steps.values():
        step.run(MAX_PHI)  # the largest: later steps find their memory
    turns: dict[str, list[Turn]] = {name: [] for name in steps}
    deadline = time.perf_counter() + budget_s
    index = 0
    while index < MIN_ROUNDS or time.perf_counter() < deadline:
        phi = factor(index)
        for name in list(steps)[:: 1 if index % 2 else -1]:
            turns[name].append(take_turn(steps[name], phi, num_timed))
        index += 1
    return turns


def take_turn(step: TrainingStep, phi: float, num_timed: int) -> Turn:
    step.run(phi)
    faults = page_faults()
    parts = np.array([step.run(phi) for _ in range(num_timed)])
    faults = page_faults() - faults
    forward, backward, optimiser = parts.mean(0).tolist()
    total = forward + backward + optimiser
    return Turn(total, forward, backward, optimiser, faults / num_timed)


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def quartiles(values: Iterable[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    return [float(q) for q in np.quantile(list(values), [0.25, 0.5, 0.75])]


def factor(index: int) -> float:
    """Factor of round `index`: fills the uniform prior evenly, however few rounds there are."""
    return MAX_PHI * ((0.5 + index * GOLDEN) % 1)
