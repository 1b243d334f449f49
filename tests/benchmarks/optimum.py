"""How many network evaluations the best lambda takes: by gradient, by TPE, by a grid of 101.

Needs a finished exploration of a registration over one conditioning:
EXPLORER_REGISTRATION=RUNS/hypermorph-oasis2d-1 python tests/benchmarks/run.py optimum
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from explorer import open_exploration
from explorer.exploration import Exploration
from explorer.models import build_trainable
from explorer.optimizing import Optimizer, Question, frozen_models, minimise_line, on_line
from explorer.samplers import SAMPLERS
from explorer.sampling import SamplingTask
from explorer.session import explored_space
from explorer.splits import candidates_of, load_data
from search_spaces.space import SearchSpace

NUM_PAIRS = 20
NUM_SEEDS = 10
MOST = 100  # evaluations of TPE
NEAR, NEAR_DICE = 0.02, 1e-3


def measure() -> dict[str, list[dict[str, Any]]]:
    """Evaluations to the best lambda of up to 20 validation pairs; targets: README."""
    folder = os.environ.get("EXPLORER_REGISTRATION")
    if not folder:
        print("  left out: EXPLORER_REGISTRATION names no exploration")
        return {"optimum": []}
    path = Path(folder)
    exploration = open_exploration(path.name, path.parent)
    return {"optimum": [row(exploration, seed) for seed in exploration.spec.train.seeds]}


def row(exploration: Exploration, seed: int) -> dict[str, Any]:
    """One training's optimum, by each way."""
    spec = exploration.spec
    space = explored_space(spec, build_trainable(spec))
    (name,) = space.names
    objective = exploration.objectives[0]
    trial_ids = exploration.points(seeds=[seed]).point(0).trial_ids
    models = frozen_models(exploration.folder, spec, trial_ids)
    group = candidates_of(spec, load_data(spec)).everything(objective.name, NUM_PAIRS)
    layout = spec.train.channels_last

    grid = Optimizer(models, space, objective, solver="grid", channels_last=layout)
    asked = Question(grid, group)
    lambdas = np.linspace(0, 1, 101)
    dice = np.array([asked.measure({name: value})[objective.name] for value in lambdas.tolist()])
    soft = np.array([-asked.loss(np.array([value]))[0] for value in lambdas])
    found = Optimizer(models, space, objective, channels_last=layout).optimize(group)
    assert found.conditioning is not None
    assert found.value is not None
    assert found.objective is not None
    at = float(found.conditioning[name])
    searched = Question(Optimizer(models, space, objective, channels_last=layout), group)
    minimise_line(lambda u: on_line(searched, u))
    num_passes = searched.num_evaluations  # without the ends, which TPE does not try either
    hard_gap, soft_gap = dice.max() - found.value, soft.max() - found.objective
    counts = [tpe_count(asked, space, soft.max() - max(soft_gap, 0), k) for k in range(NUM_SEEDS)]
    return {
        "seed": seed,
        "pairs": found.num_pairs,
        "people": found.num_people,
        "gradient": round(at, 4),
        "grid_soft": float(lambdas[soft.argmax()]),
        "grid": float(lambdas[dice.argmax()]),
        "soft_gap_points": round(100 * float(soft_gap), 4),
        "gap_points": round(100 * float(hard_gap), 3),
        "agrees": bool(abs(at - lambdas[dice.argmax()]) <= NEAR or hard_gap <= NEAR_DICE),
        "evaluations": num_passes,
        "with_ends_and_dice": found.num_evaluations,
        "elapsed_s": round(found.elapsed_s, 2),
        "tpe_median": float(np.median(counts)),
        "tpe_counts": counts,
        "ratio": round(float(np.median(counts)) / num_passes, 1),
    }


def tpe_count(asked: Question, space: SearchSpace, target: float, seed: int) -> int:
    """Evaluations until TPE reaches a soft overlap; `MOST` if it does not."""
    objective = asked.optimizer.objective
    sampler = SAMPLERS["tpe"](SamplingTask(space, (objective,), MOST, seed=seed))
    for count in range(1, MOST + 1):
        (setting,) = sampler.ask(1)
        value = -asked.loss(space.encode([setting])[0])[0]
        if value >= target:
            return count
        sampler.tell([setting], [{objective.name: value}])
    return MOST
