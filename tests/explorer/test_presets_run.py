"""Every shipped exploration, small: it builds, has a cost, trains two steps and is evaluated."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from explorer.exploring import Chunk, FrozenModels
from explorer.models import build_trainable, dataset_source, image_size, method_of
from explorer.session import check_spec, explored_space, measurement_of
from explorer.specs import ExplorationSpec, load_spec, preset_names, spec_of
from explorer.splits import load_data, samples_of
from explorer.training import (
    Trial,
    keep_record,
    rates_of,
    read_record,
    read_weights,
    starting_trials,
    train_trial,
    trials_of,
)
from search_spaces.space import Config
from tests.formats import FORMATS
from trainables.base import Arrays, Trainable
from trainables.train_loop import PlainContext

pytestmark = pytest.mark.timeout(120)  # seconds; the first of a kind imports and writes volumes

# of images, by what is done with them: what the deepest networks need, and no more
SIDES = {"segmentation": 16, "registration": 16, "adaptation": 16, "generalization": 32}
WIDEST = 32
WIDTHS = {
    "model": ("encoder_widths", "decoder_widths", "hidden_sizes"),
    "adaptation": ("policy_widths",),
}


def small(name: str, root: Path | None) -> dict[str, Any]:
    """A preset whose networks, methods and grids are its own, and whose training is two steps."""
    spec = load_spec(name)
    task = method_of(spec, spec.method).task
    data = spec.model_dump(mode="json", exclude_unset=True)
    num_axes = len(image_size(spec))
    data["dataset"] |= {"size": [SIDES[task]] * num_axes}
    if root is not None:
        data["dataset"]["root"] = str(root)
    else:
        data["dataset"]["options"] |= {"num_images": 80}
    two = {"epochs": 2, "validate_every": 2, "checkpoint_every": 2}
    data["train"] |= {**two, "steps_per_epoch": 1, "batch_size": 8, "seeds": [0], "num_threads": 1}
    for baseline in data.get("baselines", ()):
        baseline.pop("epochs", None)
    for section, names in WIDTHS.items():
        own = data.get(section, {})
        own |= {name: [min(n, WIDEST) for n in own[name]] for name in names if name in own}
    if task == "registration":
        data.setdefault("registration", {})["num_pairs"] = 2
        data["train"]["batch_size"] = 2
    if task == "adaptation":
        data["adaptation"]["pretraining"]["epochs"] = 2
    if task == "generalization":
        # an epoch of each stage
        data["generalization"].setdefault("reader", {})["pretraining"] = 0.5
        data["generalization"].setdefault("tent", {})["num_steps"] = 1
    return data


def first_of_grids(data: dict[str, Any]) -> dict[str, Any]:
    """The same with one training of each method."""

    def first(grid: dict[str, Any]) -> dict[str, Any]:
        return {name: values[:1] for name, values in grid.items()}

    baselines = []
    for own in data.get("baselines", ()):
        grids = [own["grid"]] if "grid" in own else own.get("grids", ())[:1]
        baselines.append({"method": own["method"], "grids": [first(grid) for grid in grids]})
    train = data["train"] | {"grid": first(data["train"].get("grid", {}))}
    return data | {"train": train, "baselines": baselines}


def middle(spec: ExplorationSpec) -> Config:
    space = explored_space(spec, build_trainable(spec))
    return {parameter.name: parameter.from_unit(0.5) for parameter in space}


@pytest.fixture(scope="module")
def root_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a spec's data set, in its official format; None where it needs none."""
    made: dict[tuple[str, ...], Path] = {}

    def find(spec: ExplorationSpec) -> Path | None:
        name = spec.dataset.name
        if not dataset_source(spec).needs_root:
            return None
        deciding = {n: str(x) for n, x in spec.dataset.options.items() if n == "files"}
        key = (name, *deciding.values())
        if key not in made:
            made[key] = tmp_path_factory.mktemp(name) / name
            FORMATS[name](made[key], **deciding)
        return made[key]

    return find


@pytest.mark.parametrize("name", preset_names())
def test_preset_costs_something_at_the_middle_of_its_space(name: str) -> None:
    spec = load_spec(name)
    costs = build_trainable(spec).costs(middle(spec))
    assert costs["flops"] == 2 * costs["macs"] > 0
    assert costs["parameters"] > 0
    assert all(0 <= value < math.inf for value in costs.values())


@pytest.mark.parametrize("name", preset_names())
def test_preset_trains_and_is_evaluated(name: str, root_of: Any, tmp_path: Path) -> None:
    data = small(name, root_of(load_spec(name)))
    whole, spec = spec_of(data, name), spec_of(first_of_grids(data), name)
    objective = check_spec(whole)[0]
    splits = {n: own.arrays for n, own in samples_of(whole, load_data(whole)).items()}
    methods = [spec.method, *(baseline.method for baseline in spec.baselines)]
    rates = {method: rates_of(spec, method)[:1] for method in methods}
    own = trials_of(spec, seeds=spec.train.seeds, rates=rates)
    assert [trial.method for trial in own] == methods
    trials = {trial.trial_id: trial for trial in [*starting_trials(spec), *own]}
    for trial in trials.values():
        trial_dir = tmp_path / trial.trial_id
        context = PlainContext(trial_dir, device="cpu")
        result = train_trial(spec, trial, splits, context, tmp_path)
        keep_record(trial, result, trial_dir)
        trainable, module = untrained(spec, trial, splits, list(trials.values()), tmp_path)
        assert result.history, trial.trial_id
        for row in result.history:
            assert math.isfinite(row["train_loss"]), (trial.trial_id, row)
        has_changed = any(
            not torch.equal(before, result.best[name]) for name, before in module.named_parameters()
        )
        assert has_changed == bool(trainable.stages), trial.trial_id
    best = 1 if objective.direction == "maximize" else math.inf
    for trial in own:
        value = measured(spec, trial, splits["val"], tmp_path)[objective.name]
        assert 0 <= value <= best, (trial.trial_id, value)


def untrained(
    spec: ExplorationSpec,
    trial: Trial,
    splits: dict[str, Arrays],
    trials: list[Trial],
    folder: Path,
) -> tuple[Trainable, nn.Module]:
    """The module of a trial as its training began."""
    trainable = build_trainable(spec, trial.method, trial.settled)
    module, weights = trainable.build(trial.seed), None
    start = method_of(spec, trial.method).start
    if start is not None:
        of = start(trial.settled)
        (found,) = (one.trial_id for one in trials if (one.method, one.settled) == of)
        weights = read_weights(folder / found)
    trainable.begin(module, weights, splits)
    return trainable, module


def measured(
    spec: ExplorationSpec, trial: Trial, samples: Arrays, folder: Path
) -> dict[str, float]:
    """Metrics on validation at the middle of the explored space, or where the trial was trained."""
    trial_dir = folder / trial.trial_id
    weights = {name: own.numpy() for name, own in read_weights(trial_dir).items()}
    models = FrozenModels(
        spec, {trial.trial_id: trial}, {trial.trial_id: weights}, {"val": samples}
    )
    setting = {**middle(spec), **trial.settled}
    (evaluation,) = models.evaluate(Chunk("one", "val", (trial.trial_id,), (setting,)))
    row = measurement_of(
        evaluation,
        read_record(trial_dir),
        samples,
        exploration_id="small-1",
        data_digest="",
        version="",
    )
    return dict(row.metrics)
