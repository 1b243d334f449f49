"""What a trainable model declares, how its training is set, and where it trains.

Shapes: n images, C channels, spatial axes H W (or D H W).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.problem import Problem
from search_spaces.space import Config, SearchSpace
from trainables.mapped import Mapped, selected

Precision = Literal["float32", "bf16"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["cosine", "step", "constant"]


@dataclass(frozen=True)
class Arrays:
    """The samples of one split: its images, or pairs of them.

    Attributes:
        images: (m, C, *spatial) float32; in memory, or read from a file row by row.
        masks: (m, *spatial) labels; likewise.
        pairs: (n, 2) indices of a moving and a fixed image each; None: every image is a sample.
        domains: (n,) names of where the images come from; None: that makes no difference.
        folds: (n,) parts, 0 to 2, into which those of one person fall together: of a
            cross-validation, or of the split; None: there are none.
        values: (m, v) numbers of whole images, NaN unknown, which are learned instead of label
            maps: position of the domain, then what is predicted; None: label maps are.
    """

    images: NDArray[np.float32] | Mapped
    masks: NDArray[np.uint8] | Mapped
    pairs: NDArray[np.int64] | None = None
    domains: NDArray[np.str_] | None = None
    folds: NDArray[np.int64] | None = None
    values: NDArray[np.float32] | None = None

    @property
    def truth(self) -> NDArray[Any] | Mapped:
        """What is learned of each image: (m, *spatial) labels, or (m, v) numbers."""
        return self.masks if self.values is None else self.values

    def __len__(self) -> int:
        return len(self.images if self.pairs is None else self.pairs)

    def select(self, rows: Any) -> Arrays:
        """Some of the samples; `rows` is whatever indexes an array."""
        if self.pairs is not None:
            return Arrays(self.images, self.masks, self.pairs[rows])
        columns = {"domains": self.domains, "folds": self.folds, "values": self.values}
        own: dict[str, Any] = {n: x[rows] for n, x in columns.items() if x is not None}
        return Arrays(selected(self.images, rows), selected(self.masks, rows), **own)

    def joined(self, other: Arrays) -> Arrays:
        """These samples, which are images, and then others; of both what both have."""
        names = ("images", "masks", "domains", "folds", "values")
        both = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return Arrays(**{n: np.concatenate(x) for n, x in both.items() if x[0] is not None})

    def batch(self, rows: Any) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Images (B, C, *spatial) of some samples, and their truth; see `gather`."""
        images, truth = gather(self.images, self.truth, self.pairs, rows)
        return images, truth


def gather(images: Any, masks: Any, pairs: Any, rows: Any) -> tuple[Any, Any]:
    """Images and masks of some samples, of NumPy arrays or of tensors.

    Of pairs, moving then fixed: images (B, 2 C, *spatial) and masks (B, 2, *spatial).
    """
    if pairs is None:
        return images[rows], masks[rows]
    chosen = pairs[rows]
    both = images[chosen]
    return both.reshape(len(chosen), -1, *both.shape[3:]), masks[chosen]


@dataclass(frozen=True)
class Stage:
    """A part of a training with one loss.

    Attributes:
        name: for progress and histories.
        share: its part of the epochs; the shares of all stages sum to one.
        is_validated: whether its epochs are validated, and may be the one that is kept.
    """

    name: str
    share: float
    is_validated: bool = True


@dataclass(frozen=True)
class Draws:
    """Where the random numbers of one training step come from.

    Attributes:
        key: (seed, step), which alone decide them.
        num_images: of the whole batch.
        rank: of this worker, from 0.
        world_size: number of workers.
    """

    key: tuple[int, int]
    num_images: int
    rank: int = 0
    world_size: int = 1

    def uniform(self, *shape: int) -> Tensor:
        """Numbers (B, *shape) in (0, 1) for the B images of this worker's part of the batch."""
        generator = np.random.default_rng((*self.key, 4))
        numbers = generator.random((self.num_images, *shape)) + np.finfo(np.float32).tiny
        own = numbers[self.rank :: self.world_size].astype(np.float32)
        return torch.from_numpy(own).clamp(max=1 - 2**-24)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained alike.

    Attributes:
        parameters: of the module.
        rate: factor on the learning rate.
        weight_decay: of the optimiser.
    """

    parameters: list[nn.Parameter]
    rate: float = 1.0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; everything here changes the result.

    Attributes:
        epochs: passes over the training samples.
        steps_per_epoch: of a pass; where the images do not suffice, they come again in another
            order. None: a pass ends with the last whole batch.
        batch_size: images per step, over all workers together; an incomplete batch is left out.
        optimizer: `adam`, `adamw` (weight decay apart from the gradient), or `sgd` with Nesterov's
            momentum.
        learning_rate: at the start.
        betas: of Adam; the first is the momentum of SGD.
        schedule: of the learning rate: `cosine` to zero over all epochs, `step` to a tenth after
            three quarters of them, or `constant`.
        max_grad_norm: the gradient of a step is shortened to this Euclidean norm; None: never.
            Small factors have the largest losses and gradients: shortened, every draw counts.
        prior: range of each conditioning parameter, drawn uniformly once per step.
        endpoint_share: part of the draws that are an end of the range; categories have none.
        prior_power: of the uniform draws, as shares of the range: above 1 more are small.
        draws: `separate`, or `common`: one share for the ranges of all numbers.
        seed: of the initial weights, the batches, the augmentation and the draws.
        precision: `bf16` runs the primary network under bfloat16 autocast.
        channels_last: memory format of images and features.
        augment: any of `flip` (each axis) and `transpose` (square images), per image.
        validate_every: epochs between validations; the last epoch is always validated.
        checkpoint_every: epochs between checkpoints.
        patience: validations without improvement before training stops; None: never.
        keep: the epoch whose weights remain: the `best` on validation, or the `last`.
        num_threads: of torch on a CPU; None leaves them alone.
    """

    epochs: int
    steps_per_epoch: int | None = None
    batch_size: int = 16
    optimizer: Optimizer = "adam"
    learning_rate: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.99)
    schedule: Schedule = "cosine"
    max_grad_norm: float | None = None
    prior: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    endpoint_share: float = 0.0
    prior_power: float = 1.0
    draws: Literal["separate", "common"] = "separate"
    seed: int = 0
    precision: Precision = "float32"
    channels_last: bool = False
    augment: tuple[str, ...] = ("flip", "transpose")
    validate_every: int = 10
    checkpoint_every: int = 50
    patience: int | None = None
    keep: Literal["best", "last"] = "best"
    num_threads: int | None = 1


class Trainable(Protocol):
    """A model family that can be trained and asked; it knows nothing of where or why.

    Its repr names everything that decides its result: a checkpoint belongs to one repr. What has a
    body here suits most families, which inherit it.

    Attributes:
        method: its name in `TRAINABLES`.
        problem: the space and objectives; its conditioning parameters are drawn while training.
        metrics: names of what `evaluate` returns.
        stages: in the order of training; none: there is nothing to train.
        advice: what else may help when the loss is no number.
        always_asked: settings that an exploration asks beside its sampler's.

    Registration is given pairs: images (n, 2 C, *spatial) and masks (n, 2, *spatial), moving then
    fixed. Where whole images are judged, masks are numbers (n, v) of them; see `Arrays`.
    """

    method: str
    problem: Problem
    metrics: tuple[str, ...]
    stages: tuple[Stage, ...]
    advice: str = ""
    always_asked: tuple[Config, ...] = ()

    def samples(self, data: Mapping[str, Arrays]) -> Mapping[str, Arrays]:
        """The splits `train`, `val` and, where it is at hand, `test`, out of what there is."""
        return data

    def judged_by(self, samples: Arrays, split: str) -> NDArray[np.bool_]:
        """Which (n,) of the samples this model is judged by."""
        return np.ones(len(samples), dtype=bool)

    @property
    def drawn(self) -> SearchSpace:
        """The conditionings that training draws and that its validation looks at."""
        return self.problem.space.conditioning

    def build(self, seed: int) -> nn.Module:
        """A freshly initialised module; the seed alone decides its weights."""
        ...

    def begin(
        self, module: nn.Module, weights: Mapping[str, Tensor] | None, data: Mapping[str, Arrays]
    ) -> None:
        """Give a fresh module what it takes from all images there are, and from `weights`, what an
        earlier training has learned, by name, where it starts from one.
        """  # noqa: D205
        if weights is not None:
            raise TypeError(f"{self.method} starts from no other training")

    def parameter_groups(self, module: nn.Module) -> list[ParameterGroup]:
        """What is trained, and how."""
        return [ParameterGroup(list(module.parameters()))]

    def loss(
        self,
        module: nn.Module,
        images: Tensor,
        masks: Tensor,
        conditioning: Config,
        stage: str,
        draws: Draws | None = None,
    ) -> Tensor:
        """Training loss (scalar), a mean over the batch; without `draws` nothing is random."""
        ...

    def materialize(self, module: nn.Module, conditioning: Config) -> nn.Module:
        """The network that remains once the conditioning is chosen; maps images to outputs."""
        ...

    def evaluate(self, network: nn.Module, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Values (n,) per metric and label of a materialised network; NaN where undefined."""
        ...

    def measured(
        self, values: dict[str, NDArray[np.float64]], samples: Arrays
    ) -> dict[str, NDArray[np.float64]]:
        """The metrics (n,) of samples, of what `evaluate` told of each: as a rule the same."""
        return values

    def costs(self, conditioning: Config) -> dict[str, float]:
        """The problem's known costs of one image, computed without running the model."""
        ...

    def sizes(self, conditioning: Config) -> dict[str, list[int]]:
        """Spatial size of the features of each stage, by name."""
        ...


class TrainContext(Protocol):
    """Where a training runs: in this process, as a Ray Tune trial, as one of several workers.

    Attributes:
        rank: of this worker, from 0.
        world_size: number of workers.
        device: torch device string.
        scratch_dir: an existing folder where checkpoints are written before they are reported;
            on the file system where they are kept, if that is a disk.
    """

    rank: int
    world_size: int
    device: str
    scratch_dir: Path

    def report(self, metrics: dict[str, Any], checkpoint_dir: Path | None) -> None:
        """Tell progress; takes over the checkpoint folder, if there is one."""
        ...

    def checkpoint_dir(self) -> Path | None:
        """The last checkpoint that was reported for this trial, if any."""
        ...

    def prepare(self, module: nn.Module) -> nn.Module:
        """Move the module to its device and wrap it for several workers."""
        ...
