"""The one training loop: resume, step, reduce, report, checkpoint. It knows no Ray.

Everything random is a function of (seed, step) or (seed, epoch), the same on every worker, so a
resumed training equals an uninterrupted one, and two workers equal one up to reduction order.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from search_spaces.errors import InputError, RunError
from search_spaces.space import CategoricalParameter, Config, Parameter, SearchSpace
from trainables.base import (
    Arrays,
    Draws,
    Precision,
    Stage,
    Trainable,
    TrainConfig,
    TrainContext,
)
from trainables.loading import Loader

NUM_VALIDATION_SETTINGS = 5
# Larger batches are no faster (`make bench evaluation`), and take memory.
EVALUATION_BATCH_SIZE = 64
EVALUATION_BATCH_VOXELS = 2**20
UNREPORTED = "unreported_"
STATE_KEYS = frozenset(
    {"epoch", "best_epoch", "best_metric", "history", "train_s", "wall_s", "training"}
)


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves behind.

    Attributes:
        best: weights of the epoch with the best validation metric, by name.
        best_epoch: that epoch, counted from 1.
        best_metric: its value: the problem's first objective, mean over the validation images
            and over five settings evenly spaced over the prior.
        history: one row per validated epoch.
        train_s: processor seconds (on a GPU: seconds) of steps, validations and checkpoints.
        wall_s: seconds by the clock of the same.
    """

    best: dict[str, Tensor]
    best_epoch: int
    best_metric: float
    history: list[dict[str, float]]
    train_s: float
    wall_s: float


def train(
    trainable: Trainable,
    data: Mapping[str, Arrays],
    config: TrainConfig,
    context: TrainContext,
    *,
    start: Mapping[str, Tensor] | None = None,
) -> TrainResult:
    """Train a model on the split `train`, choosing the epoch on the split `val`.

    Args:
        trainable: what is trained.
        data: its samples, by split.
        config: how.
        context: where.
        start: weights of an earlier training that it starts from, if it does.

    Raises:
        InputError: fewer training images than one batch and no `steps_per_epoch`, fewer images of
            a batch or of `val` than workers, or a checkpoint of another training.
        RunError: the loss is not finite.
    """
    everything, data = data, trainable.samples(data)
    if len(data["train"]) < config.batch_size and config.steps_per_epoch is None:
        raise InputError(
            f"train.batch_size must be at most the number of training images, "
            f"{len(data['train'])}; got {config.batch_size}"
        )
    if min(config.batch_size, len(data["val"])) < context.world_size:
        raise InputError(
            f"train.batch_size and the number of validation images must be at least the number "
            f"of workers, {context.world_size}; got {config.batch_size} and {len(data['val'])}"
        )
    if config.num_threads is not None and context.device == "cpu":
        torch.set_num_threads(config.num_threads)
    training = _Training(trainable, data, config, context)
    training.begin(start, everything)
    return training.run()


class _Training:
    """The state of one training: what a checkpoint holds, and what is rebuilt around it."""

    def __init__(
        self,
        trainable: Trainable,
        data: Mapping[str, Arrays],
        config: TrainConfig,
        context: TrainContext,
    ) -> None:
        self.trainable, self.config, self.context = trainable, config, context
        self.data = data
        self.space = trainable.drawn
        self.device = torch.device(context.device)
        self.memory_format = memory_format(config.channels_last, data["train"].images.ndim - 2)
        self.bare = trainable.build(config.seed)
        self.module = context.prepare(self.bare)
        self.groups = trainable.parameter_groups(self.bare) if trainable.stages else []
        self.optimizer = self._optimizer() if self.groups else None
        whole = len(data["train"]) // config.batch_size
        self.steps_per_epoch = config.steps_per_epoch or whole
        self.start = ""  # digest of the weights that it starts from
        self.epoch = 0
        self.best: dict[str, Tensor] = {}
        self.best_epoch, self.best_metric = 0, -math.inf
        self.history: list[dict[str, float]] = []
        self.spent_s = self.spent_wall_s = 0.0

    def _optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        groups = [
            {
                "params": one.parameters,
                "lr": config.learning_rate * one.rate,
                "weight_decay": one.weight_decay,
            }
            for one in self.groups
        ]
        if config.optimizer == "sgd":
            return torch.optim.SGD(groups, momentum=config.betas[0], nesterov=True, fused=True)
        adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        return adam(groups, betas=config.betas, fused=True)

    def begin(self, weights: Mapping[str, Tensor] | None, data: Mapping[str, Arrays]) -> None:
        """Start from what an earlier training has learned, or from nothing."""
        if weights is not None:
            self.start = hashlib.sha256(save(dict(weights))).hexdigest()
        self.trainable.begin(self.bare, weights, data)

    def run(self) -> TrainResult:
        self._restore()
        clock = _Clock(self.device)
        if not self.trainable.stages:
            self._validate(0.0)
            self.spent_s, self.spent_wall_s = clock.read()
            told = {"epoch": 1, "epochs": 1, "train_loss": 0.0, "val": self.best_metric}
            self.context.report(told, None)
            return self._result()
        loader = Loader(self.data["train"], self.device)
        while self.epoch < self.config.epochs and not self._is_stalled():
            is_validated = self._stage().is_validated
            loss = self._train_epoch(loader)
            self.epoch += 1
            last = self.epoch == self.config.epochs
            if last or (is_validated and self.epoch % self.config.validate_every == 0):
                self._validate(loss)
            last = last or self._is_stalled()
            saved = last or self.epoch % self.config.checkpoint_every == 0
            spent_s, wall_s = clock.read()
            self.spent_s, self.spent_wall_s = self.spent_s + spent_s, self.spent_wall_s + wall_s
            metrics = {"epoch": self.epoch, "epochs": self.config.epochs, "train_loss": loss}
            if self.history:
                metrics |= {"val": self.history[-1]["val"]}
            self.context.report(metrics, self._save() if saved else None)
        return self._result()

    def _result(self) -> TrainResult:
        return TrainResult(
            self.best,
            self.best_epoch,
            self.best_metric,
            self.history,
            self.spent_s,
            self.spent_wall_s,
        )

    def _is_stalled(self) -> bool:
        patience = self.config.patience
        if patience is None or not self.history:
            return False
        since_best = sum(row["epoch"] > self.best_epoch for row in self.history)
        return since_best >= patience

    def _stage(self) -> Stage:
        """The stage of the present epoch: stages divide the epochs by their shares."""
        passed = 0.0
        for stage in self.trainable.stages:
            passed += stage.share
            if self.epoch < round(passed * self.config.epochs):
                break
        return stage

    def _train_epoch(self, loader: Loader) -> float:
        config, context = self.config, self.context
        assert self.optimizer is not None
        self.module.train()
        stage, losses, drawn = self._stage().name, [], []
        for step, x, y in loader.batches(self._batches(len(self.data["train"]))):
            x, y = augment(x, _usable(y), config.augment, (config.seed, step))
            x, y = x[context.rank :: context.world_size], y[context.rank :: context.world_size]
            x = x.contiguous(memory_format=self.memory_format)
            conditioning = draw(
                self.space,
                config.prior,
                (config.seed, step),
                endpoint_share=config.endpoint_share,
                power=config.prior_power,
                is_common=config.draws == "common",
            )
            for group, own in zip(self.optimizer.param_groups, self.groups, strict=True):
                group["lr"] = config.learning_rate * own.rate * self._schedule(step)
            draws = Draws((config.seed, step), config.batch_size, context.rank, context.world_size)
            with autocast(self.device, config.precision):
                loss = self.trainable.loss(self.module, x, y, conditioning, stage, draws)
            # workers average gradients; weighting by shard size makes that the batch's mean
            weight = len(x) * context.world_size / config.batch_size
            self.optimizer.zero_grad(set_to_none=True)
            (loss * weight).backward()
            if config.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.bare.parameters(), config.max_grad_norm)
            self.optimizer.step()
            losses.append((loss * weight).detach())
            drawn.append(conditioning)
        values = self._mean_over_workers(torch.stack(losses)).tolist()
        for step, (value, conditioning) in enumerate(zip(values, drawn, strict=True)):
            if not math.isfinite(value):
                raise RunError(
                    f"{self.trainable.method}: the loss is {value} in epoch {self.epoch + 1}, step "
                    f"{step + 1}, at {conditioning or 'its fixed setting'}: lower "
                    f"train.learning_rate (now {config.learning_rate:g}){self.trainable.advice}"
                )
        return float(np.mean(values))

    def _batches(self, num_samples: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (global step, sample indices) of one epoch, in an order from (seed, epoch)."""
        size = self.config.batch_size
        rng = np.random.default_rng((self.config.seed, self.epoch, 1))
        num_passes = -(-self.steps_per_epoch * size // num_samples)
        order = np.concatenate([rng.permutation(num_samples) for _ in range(max(1, num_passes))])
        for index in range(self.steps_per_epoch):
            batch = torch.from_numpy(order[index * size : (index + 1) * size])
            yield self.epoch * self.steps_per_epoch + index, batch

    def _schedule(self, step: int) -> float:
        """Factor on the learning rate."""
        if self.config.schedule == "constant":
            return 1.0
        num_steps = self.config.epochs * self.steps_per_epoch
        if self.config.schedule == "step":
            return 1.0 if 4 * step < 3 * num_steps else 0.1
        return 0.5 * (1 + math.cos(math.pi * step / num_steps))

    def _validate(self, train_loss: float) -> None:
        self.module.eval()
        name = self.trainable.problem.objectives[0].name
        rank, size = self.context.rank, self.context.world_size
        shard = self.data["val"].select(slice(rank, None, size))
        totals = torch.zeros(2, dtype=torch.float64)
        settings = validation_settings(self.space, self.config.prior)
        for conditioning in settings:
            values = evaluate_setting(
                self.trainable,
                self.bare,
                shard,
                conditioning,
                precision=self.config.precision,
                channels_last=self.config.channels_last,
            )[name]
            finite = values[np.isfinite(values)]
            totals += torch.tensor([finite.sum(), len(finite)], dtype=torch.float64)
        total, count = self._sum_over_workers(totals).tolist()
        objective = self.trainable.problem.objective(name)
        metric = total / max(count, 1)
        self.history.append(
            {
                "epoch": float(self.epoch),
                "train_loss": train_loss,
                "val": metric,
                "learning_rate": self.optimizer.param_groups[0]["lr"] if self.optimizer else 0.0,
            }
        )
        is_better = objective.to_loss(metric) < objective.to_loss(self.best_metric)
        if not self.best or is_better or self.config.keep == "last":
            self.best_metric, self.best_epoch = metric, self.epoch
            self.best = {n: t.cpu().clone() for n, t in self.bare.state_dict().items()}

    def _sum_over_workers(self, values: Tensor) -> Tensor:
        if self.context.world_size > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def _mean_over_workers(self, values: Tensor) -> Tensor:
        return self._sum_over_workers(values) / self.context.world_size

    def _fingerprint(self) -> str:
        settings = [repr(self.trainable), asdict(self.config)]
        return json.dumps([*settings, self.start] if self.start else settings, sort_keys=True)

    def _save(self) -> Path | None:
        """Write everything that a resumed training needs; rank 0 does."""
        if self.context.rank:
            return None
        folder = Path(tempfile.mkdtemp(prefix=UNREPORTED, dir=self.context.scratch_dir))
        try:
            self._write(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise RunError(f"{folder}: the checkpoint could not be written: {error}") from error
        return folder

    def _write(self, folder: Path) -> None:
        assert self.optimizer is not None
        optimizer = {
            f"{index}.{name}": value
            for index, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        save_file(self.bare.state_dict(), folder / "last.safetensors")
        save_file(optimizer, folder / "optimizer.safetensors")
        save_file(self.best, folder / "best.safetensors")
        state = {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_metric": self.best_metric,
            "history": self.history,
            "train_s": self.spent_s,
            "wall_s": self.spent_wall_s,
            "training": self._fingerprint(),
        }
        (folder / "state.json").write_text(json.dumps(state))

    def _restore(self) -> None:
        folder = self.context.checkpoint_dir()
        if folder is None:
            return
        state = read_state(folder)
        if not state.keys() >= STATE_KEYS or state["training"] != self._fingerprint():
            raise InputError(
                f"{folder}: this checkpoint belongs to a training with other settings; "
                f"remove it or restore the settings"
            )
        assert self.optimizer is not None
        load_weights(self.bare, folder / "last.safetensors")
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in read_tensors(folder / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.best = read_tensors(folder / "best.safetensors")
        self.epoch, self.history = state["epoch"], state["history"]
        self.best_epoch, self.best_metric = state["best_epoch"], state["best_metric"]
        self.spent_s, self.spent_wall_s = state["train_s"], state["wall_s"]


class PlainContext:
    """This process alone; the last checkpoint is kept in a folder.

    Args:
        folder: where `checkpoint/` lies; one that is there is resumed from.
        device: torch device string.
    """

    rank = 0
    world_size = 1

    def __init__(self, folder: Path, *, device: str | None = None) -> None:
        self.folder = self.scratch_dir = folder
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{UNREPORTED}*"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    def report(self, metrics: dict[str, Any], checkpoint_dir: Path | None) -> None:
        if checkpoint_dir is not None:
            keep_checkpoint(checkpoint_dir, self.folder)

    def checkpoint_dir(self) -> Path | None:
        return kept_checkpoint(self.folder)

    def prepare(self, module: nn.Module) -> nn.Module:
        return module.to(self.device) if self.device != "cpu" else module


def keep_checkpoint(checkpoint_dir: Path, folder: Path) -> None:
    """Make a written checkpoint the folder's one; at every moment one of the two is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    new, kept, old = folder / "checkpoint.new", folder / "checkpoint", folder / "checkpoint.old"
    shutil.rmtree(new, ignore_errors=True)
    try:
        shutil.move(checkpoint_dir, new)
    except OSError as error:
        raise RunError(
            f"{folder}: the checkpoint could not be written: {error.strerror}"
        ) from error
    if kept.exists():  # else `old` is what a killed writer left, and the only whole one
        shutil.rmtree(old, ignore_errors=True)
        kept.rename(old)
    new.rename(kept)
    shutil.rmtree(old, ignore_errors=True)


def kept_checkpoint(folder: Path) -> Path | None:
    """The folder's whole checkpoint, if any; a writer that was killed leaves the one before."""
    for name in ("checkpoint", "checkpoint.old"):
        if (folder / name / "state.json").exists():
            return folder / name
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint.

    Raises:
        InputError: it is damaged.
    """
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder / 'state.json'}: damaged checkpoint; remove {folder} to train again"
        ) from error
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Load a safetensors file; nothing in it is executed.

    Raises:
        InputError: missing or damaged.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: expected a whole safetensors file, got {error}; remove its folder to train "
            f"the trial again"
        ) from error
    return tensors


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a module's own tensors from a safetensors file.

    Raises:
        InputError: damaged file, or names or shapes that differ; the first difference is named.
    """
    load_tensors(module, read_tensors(path), str(path))


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], place: str) -> None:
    """Copy tensors into a module, which must have exactly these names and shapes."""
    own = module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        expected = tuple(own[name].shape) if name in own else None
        came = tuple(tensors[name].shape) if name in tensors else None
        if expected != came:
            raise InputError(
                f"{place}: tensor {name!r}: expected shape {expected}, got {came}; the file "
                f"belongs to another model"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def draw(
    space: SearchSpace,
    prior: Mapping[str, tuple[float, float]],
    key: tuple[int, int],
    *,
    endpoint_share: float = 0.0,
    power: float = 1.0,
    is_common: bool = False,
) -> Config:
    """One conditioning out of the prior; a function of the key (seed, step) alone.

    Args:
        space: its parameters.
        prior: range of each.
        key: (seed, step).
        endpoint_share: probability with which a number is one of the ends of its range.
        power: of the uniform share of a number's range: above 1 there are more small numbers.
        is_common: all numbers lie at the same share of their ranges; categories are on their own.
    """
    generator = np.random.default_rng((*key, 2))
    units = generator.random(len(space)).tolist()
    numeric = [not isinstance(parameter, CategoricalParameter) for parameter in space]
    if is_common:
        units = [units[0] if own else u for u, own in zip(units, numeric, strict=True)]
    units = [u**power if own else u for u, own in zip(units, numeric, strict=True)]
    if endpoint_share:
        coins = generator.random((len(space), 2)).tolist()
        units = [
            round(end) if coin < endpoint_share and own else u
            for u, own, (coin, end) in zip(units, numeric, coins, strict=True)
        ]
    return {p.name: p.from_unit(_in_prior(p, prior, u)) for p, u in zip(space, units, strict=True)}


def validation_settings(
    space: SearchSpace, prior: Mapping[str, tuple[float, float]]
) -> list[Config]:
    """Five settings on the diagonal of the prior, at the centres of its fifths.

    Categories pass through their fifths in another order than numbers do, so that the first
    choices are not validated at small numbers alone.
    """
    if not len(space):
        return [{}]
    n = NUM_VALIDATION_SETTINGS
    steps = [2 if isinstance(p, CategoricalParameter) else 1 for p in space]
    return [
        {
            p.name: p.from_unit(_in_prior(p, prior, (index * step % n + 0.5) / n))
            for p, step in zip(space, steps, strict=True)
        }
        for index in range(n)
    ]


def _in_prior(p: Parameter, prior: Mapping[str, tuple[float, float]], u: float) -> float:
    low, high = (p.to_unit(end) for end in prior[p.name]) if p.name in prior else (0.0, 1.0)
    return low + u * (high - low)


def augment(
    images: Tensor, masks: Tensor, names: tuple[str, ...], key: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Flip and transpose each image of a batch at random; a function of the key (seed, step).

    Args:
        images: (B, C, *spatial).
        masks: (B, *spatial), or (B, 2, *spatial) of pairs, which are turned together; numbers
            (B, v) of whole images stay as they are.
        names: any of `flip` and `transpose`; the latter acts on the last two axes when equal.
        key: (seed, step).
    """
    generator = np.random.default_rng((*key, 3))
    has_maps = masks.dim() > 2

    def chosen(like: Tensor) -> Tensor:
        return torch.from_numpy(coins).to(like.device).view(-1, *[1] * (like.dim() - 1))

    if "flip" in names:
        for axis in range(-(images.dim() - 2), 0):
            coins = generator.random(len(images)) < 0.5
            images = torch.where(chosen(images), images.flip(axis), images)
            if has_maps:
                masks = torch.where(chosen(masks), masks.flip(axis), masks)
    if "transpose" in names and images.shape[-1] == images.shape[-2]:
        coins = generator.random(len(images)) < 0.5
        images = torch.where(chosen(images), images.transpose(-1, -2), images)
        if has_maps:
            masks = torch.where(chosen(masks), masks.transpose(-1, -2), masks)
    return images, masks


def _usable(truth: Tensor) -> Tensor:
    """Labels as indices; numbers of whole images as they are."""
    return truth if truth.is_floating_point() else truth.long()


def evaluate_setting(
    trainable: Trainable,
    module: nn.Module,
    data: Arrays,
    conditioning: Config,
    *,
    precision: Precision = "float32",
    channels_last: bool = False,
) -> dict[str, NDArray[np.float64]]:
    """Values (n,) per metric and label of every image at one setting; see `evaluate_network`."""
    with torch.inference_mode():
        network = trainable.materialize(module, conditioning)
    device = next(module.parameters()).device
    return evaluate_network(
        trainable, network, data, device, precision=precision, channels_last=channels_last
    )


def evaluation_batch_size(size: Sequence[int]) -> int:
    """Images of a spatial size that are evaluated at a time."""
    return max(1, min(EVALUATION_BATCH_SIZE, EVALUATION_BATCH_VOXELS // math.prod(size)))


def evaluate_network(
    trainable: Trainable,
    network: nn.Module,
    data: Arrays,
    device: torch.device,
    *,
    precision: Precision = "float32",
    channels_last: bool = False,
    batch_size: int | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Values (n,) per metric and label of samples, which pass in batches in their order.

    A metric of whole images may depend on all that are given; see `Trainable.measured`.

    Args:
        trainable: knows its metrics.
        network: materialised.
        data: n samples.
        device: where the network is.
        precision: of the primary network.
        channels_last: memory format of images and features.
        batch_size: images at a time; by default what the network asks for in an attribute of that
            name, or `evaluation_batch_size`.
    """
    layout = memory_format(channels_last, data.images.ndim - 2)
    own = batch_size or getattr(network, "batch_size", None)
    size = own or evaluation_batch_size(data.images.shape[2:])
    parts: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for start in range(0, len(data), size):
            images, truth = data.batch(slice(start, start + size))
            x = torch.from_numpy(images).to(device).contiguous(memory_format=layout)
            y = _usable(torch.from_numpy(truth).to(device))
            with autocast(device, precision):
                values = trainable.evaluate(network, x, y)
            for name, value in values.items():
                parts.setdefault(name, []).append(value.double().cpu())
    joined = {name: torch.cat(values).numpy() for name, values in parts.items()}
    return trainable.measured(joined, data)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which the primary network runs."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def memory_format(channels_last: bool, num_dims: int) -> torch.memory_format:
    """Layout of images and features with two or three spatial axes."""
    if not channels_last:
        return torch.contiguous_format
    return torch.channels_last if num_dims == 2 else torch.channels_last_3d


class _Clock:
    """Seconds since the last reading: of the processor, or of the GPU's wall clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.last = self._now()

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter(), time.perf_counter()
        return time.process_time(), time.perf_counter()

    def read(self) -> tuple[float, float]:
        """Return (cost seconds, wall seconds) and start again."""
        before, self.last = self.last, self._now()
        return self.last[0] - before[0], self.last[1] - before[1]
