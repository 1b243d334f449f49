"""Whether a training step fits into memory, before anything starts: large factors may not."""

from __future__ import annotations

import os
from collections.abc import Iterator

from explorer.models import build_trainable
from explorer.quantities import format_quantity
from explorer.specs import ExplorationSpec
from explorer.training import rates_of, settled_precision, trials_of
from search_spaces.errors import InputError
from search_spaces.space import Config
from trainables.memory import free_bytes, step_memory
from trainables.scale_space import ScaleSpace

MARGIN = 1.9  # on CPUs steps took 1.3 to 1.8 times what is predicted: memory of convolutions
HALF = 0.6  # of features in bf16, beside which the losses have some in float32
SHARES = tuple(k / 20 for k in range(19, 0, -1))  # of the largest factor, tried for advice


def fitting_batch_size(spec: ExplorationSpec) -> int:
    """The spec's batch size, or the largest smaller one with which every training fits.

    Trainings on a cluster are only checked against `train.memory_bytes`.

    Raises:
        InputError: not even one image fits.
    """
    available = _available_bytes(spec)
    if available is None:
        return spec.train.batch_size
    num_workers = max(1, spec.train.num_workers)
    wanted = -(-spec.train.batch_size // num_workers)
    fits = wanted
    for trainable, setting in _costliest(spec):
        if _needed(spec, trainable, fits, setting) <= available:
            continue
        one, two = (_needed(spec, trainable, size, setting) for size in (1, 2))
        if one > available:
            raise InputError(_refusal(spec, trainable, setting, one, available))
        fits = min(fits, 1 + int((available - one) // max(1.0, two - one)))
    return min(spec.train.batch_size, fits * num_workers)


def _needed(
    spec: ExplorationSpec, trainable: ScaleSpace, batch_size: int, setting: Config
) -> float:
    share = HALF if settled_precision(spec) == "bf16" else 1.0
    found = step_memory(trainable, batch_size, setting)
    return found.parameters + MARGIN * share * found.features


def _available_bytes(spec: ExplorationSpec) -> float | None:
    """For one training, or for one of its workers."""
    section = spec.train
    if section.memory_bytes is not None:
        return section.memory_bytes
    if os.environ.get("RAY_ADDRESS"):
        return None
    free = free_bytes(on_gpu=bool(section.gpus_per_worker))
    if free is None:
        return None
    if section.gpus_per_worker:
        return free * min(1.0, section.gpus_per_worker)
    return free / max(1, (os.cpu_count() or 1) // section.num_threads)


def _costliest(spec: ExplorationSpec) -> Iterator[tuple[ScaleSpace, Config]]:
    """Every method at the largest factors that it is trained at; of a grid the largest network."""
    methods = [spec.method, *(baseline.method for baseline in spec.baselines)]
    trials = trials_of(spec, seeds=(0,), rates={name: rates_of(spec, name)[:1] for name in methods})
    for method in methods:
        own = [build_trainable(spec, t.method, t.settled) for t in trials if t.method == method]
        spaces = [one for one in own if isinstance(one, ScaleSpace)]
        if spaces:
            trainable = max(spaces, key=lambda one: (one.distillation, _size(one.settled)))
            choices = {name: own[0] for name, own in trainable.model.network_choices.items()}
            asked = {**trainable.top(), **choices}
            names = trainable.problem.space.conditioning.names
            yield trainable, {name: own for name, own in asked.items() if name in names}


def _size(settled: Config) -> float:
    return sum(x for x in settled.values() if not isinstance(x, str))


def _refusal(
    spec: ExplorationSpec, trainable: ScaleSpace, setting: Config, needed: float, available: float
) -> str:
    """Why nothing fits, and how far the prior would have to shrink."""
    numbers = {name: x for name, x in setting.items() if not isinstance(x, str)}
    told = ", ".join(f"{name} = {x:g}" for name, x in numbers.items()) or "its setting"
    advice = "lower dataset.size or model.width"
    for share in SHARES if numbers else ():
        less = {**setting, **{name: share * x for name, x in numbers.items()}}
        if _needed(spec, trainable, 1, less) <= available:
            ends = ", ".join(f"{name}: [0, {share * x:g}]" for name, x in numbers.items())
            advice = f"narrow train.prior to at most {{{ends}}}"
            break
    return (
        f"train: at {told} one image of {trainable.method} needs about "
        f"{format_quantity(needed, digits=3)} bytes of memory, and a training has "
        f"{format_quantity(available, digits=3)}; {advice}, or set train.memory_bytes to what "
        f"there is"
    )
