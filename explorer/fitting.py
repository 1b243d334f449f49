"""Whether a training step fits into memory, before anything starts: large factors may not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from explorer.models import build_trainable
from explorer.quantities import format_quantity
from explorer.specs import ExplorationSpec
from explorer.training import Trial, rates_of, settled_precision, trials_of
from search_spaces.errors import InputError
from search_spaces.space import Config
from trainables.memory import MARGIN, step_memory, whole_bytes
from trainables.scale_space import ScaleSpace
from trainables.scale_space_registration import ScaleSpaceRegistration

HALF = 0.6  # of features in bf16, beside which the losses have some in float32
SHARE = 0.9  # of a machine's memory that trainings may take
SHARES = tuple(k / 20 for k in range(19, 0, -1))  # of the largest factor, tried for advice


def fitting_batch_size(spec: ExplorationSpec) -> int:
    """The spec's batch size, or the largest smaller one with which every training fits.

    Trainings on a cluster are only checked against `train.memory_bytes`; networks that do not run
    without storage are not.

    Raises:
        InputError: not even one image fits.
    """
    methods = [spec.method, *(baseline.method for baseline in spec.baselines)]
    trials = trials_of(
        spec, seeds=spec.train.seeds, rates={name: rates_of(spec, name)[:1] for name in methods}
    )
    available = _available_bytes(spec, len(trials))
    if available is None:
        return spec.train.batch_size
    num_workers = max(1, spec.train.num_workers)
    fits = -(-spec.train.batch_size // num_workers)
    for trainable in _costliest(spec, trials):
        top = _top(trainable)
        try:
            if _needed(spec, trainable, fits, top) <= available:
                continue
            one, two = (_needed(spec, trainable, size, top) for size in (1, 2))
        except RuntimeError:  # what looks at numbers of a tensor cannot run without them
            continue
        if one > available:
            raise InputError(_refusal(spec, trainable, top, one, available))
        fits = min(fits, 1 + int((available - one) // max(1.0, two - one)))
    return min(spec.train.batch_size, fits * num_workers)


def _needed(
    spec: ExplorationSpec, trainable: ScaleSpace, batch_size: int, factors: Config
) -> float:
    share = HALF if settled_precision(spec) == "bf16" else 1.0
    names = trainable.problem.space.conditioning.names
    asked = {name: own for name, own in factors.items() if name in names}
    found = step_memory(
        trainable, batch_size, asked, is_of_pairs=isinstance(trainable, ScaleSpaceRegistration)
    )
    return found.parameters + MARGIN * share * found.features


def _available_bytes(spec: ExplorationSpec, num_trials: int) -> float | None:
    """For one training, or for one of its workers."""
    section = spec.train
    if section.memory_bytes is not None:
        return section.memory_bytes
    if os.environ.get("RAY_ADDRESS"):
        return None
    whole = whole_bytes(on_gpu=bool(section.gpus_per_worker))
    if whole is None:
        return None
    if section.gpus_per_worker:
        return whole * min(1.0, section.gpus_per_worker)
    num_processes = max(1, section.num_workers) * num_trials
    return SHARE * whole / max(1, min(num_processes, (os.cpu_count() or 1) // section.num_threads))


def _costliest(spec: ExplorationSpec, trials: Sequence[Trial]) -> Iterator[ScaleSpace]:
    """Of every method the training whose largest factors hold most features."""
    found: dict[str, ScaleSpace] = {}
    for settled in {(trial.method, tuple(trial.settled.items())) for trial in trials}:
        method, own = settled
        trainable = build_trainable(spec, method, dict(own))
        if isinstance(trainable, ScaleSpace):
            before = found.get(method)
            if before is None or _held(trainable) > _held(before):
                found[method] = trainable
    yield from (found[method] for method in sorted(found))


def _held(trainable: ScaleSpace) -> float:
    """Features at the largest factors, twice where the sandwich rule runs two networks."""
    held = trainable.costs(_top(trainable))["activation_bytes"]
    return held * (2 if trainable.distillation else 1)


def _top(trainable: ScaleSpace) -> Config:
    """The setting of the largest factors that are trained."""
    choices = {name: own[0] for name, own in trainable.model.network_choices.items()}
    return {**choices, **{n: x for n, x in trainable.settled.items() if n in choices}} | (
        trainable.top()
    )


def _refusal(
    spec: ExplorationSpec, trainable: ScaleSpace, top: Config, needed: float, available: float
) -> str:
    """Why nothing fits, and how far the prior would have to shrink."""
    numbers = {name: x for name, x in top.items() if not isinstance(x, str)}
    told = ", ".join(f"{name} = {x:g}" for name, x in numbers.items())
    advice = "it would not at smaller factors either: lower dataset.size or model.width"
    for share in SHARES if not trainable.settled else ():
        less = {**top, **{name: share * x for name, x in numbers.items()}}
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
