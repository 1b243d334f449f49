"""What every entry of TRAINABLES must do."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from trainables.adaptation import AdaptationModel
from trainables.base import Arrays, Draws, TrainConfig
from trainables.datasets import synthetic
from trainables.generalization import GeneralizationModel
from trainables.hypermorph import RegistrationModel
from trainables.methods import OF_PAIRS, TRAINABLES
from trainables.scale_space import CONDITIONED_NETWORKS, SegmentationModel
from trainables.scale_space_registration import DisplacementModel
from trainables.train_loop import PlainContext, evaluate_setting, load_tensors, train

ROOT = Path(__file__).parents[2]
GRID_METHODS = {name for name, method in TRAINABLES.items() if not method.is_amortised}
NAMES = {"segmentation": "phi", "registration": "lambda", "adaptation": "lambda"}
# baselines whose grid is not over the conditioning
SETTLED = {"oracle": {"fold": 1}} | {
    name: {} for name, method in TRAINABLES.items() if method.parameters == ()
}
PLACES = {
    "domain": "domain_0",
    "pair": "domain_0-to-domain_1",
    "amount": 0,
    "held_out": "domain_2",
    "external": "layer1-layer2",
}
PAIRS = np.array([(a, b) for a in range(8) for b in range(8) if a != b])

methods = pytest.mark.parametrize("method", TRAINABLES)
UNTRAINED = ("histogram-matching", "no-adaptation", "tent")
TRAINED = [name for name in TRAINABLES if name not in UNTRAINED]
trained_methods = pytest.mark.parametrize("method", TRAINED)


def name_of(method):
    """The conditioning's."""
    return "phi" if method.endswith(OF_PAIRS) else NAMES[TRAINABLES[method].task]


@cache
def splits(method):
    if TRAINABLES[method].task in ("adaptation", "generalization"):
        return domains(TRAINABLES[method].task)
    is_of_pairs = TRAINABLES[method].task == "registration"
    data = synthetic.load(
        size=(24, 24), num_images=40, num_labels=2, num_domains=1 if is_of_pairs else 4
    )
    parts = {"train": slice(32), "val": slice(32, None)}
    return {
        name: Arrays(data.images[part], data.masks[part], PAIRS if is_of_pairs else None)
        for name, part in parts.items()
    }


@cache
def domains(task):
    is_whole = task == "generalization"
    data = synthetic.load(
        size=(24, 24),
        num_images=90,
        num_labels=2,
        num_domains=3 if is_whole else 2,
        shift="calibration" if is_whole else "contrast",
    )
    values = np.stack([data.domains, data.classes], 1).astype(np.float32) if is_whole else None
    parts = {"train": slice(0, 64), "val": slice(64, 80), "test": slice(80, 90)}
    names = np.array(data.domain_names)[data.domains]
    folds = np.arange(90) // 2 % 3
    return {
        name: Arrays(
            data.images[part],
            data.masks[part],
            domains=names[part],
            folds=folds[part],
            values=values[part] if is_whole else None,
        )
        for name, part in parts.items()
    }


def make(method, *, dice_share=0.5, settled=None):
    if settled is None and method in GRID_METHODS:
        settled = SETTLED[method] if method in SETTLED else {name_of(method): 0.4}
    places = {name: PLACES[name] for name in TRAINABLES[method].places if name in PLACES}
    settled = {**places, **(settled or {})}
    if TRAINABLES[method].task == "adaptation":
        adaptation = AdaptationModel(
            channels=1,
            labels=synthetic.labels_of(2),
            size=(24, 24),
            width=4,
            num_levels=2,
            policy_widths=(4, 8),
        )
        return TRAINABLES[method].construct(adaptation, settled)
    if TRAINABLES[method].task == "generalization":
        generalization = GeneralizationModel(
            channels=1,
            size=(24, 24),
            domains=("domain_0", "domain_1", "domain_2"),
            num_sources=2,
            predicts="class",
            names=synthetic.CLASS_NAMES["contrast"],
            backbone_options=(("widths", (4, 8)),),
            reader_options=(("widths", (4, 6)),),
            head_widths=(8,),
        )
        return TRAINABLES[method].construct(generalization, settled)
    shape = {
        "labels": synthetic.labels_of(2),
        "size": (24, 24),
        "encoder_widths": (6, 6, 6),
        "decoder_widths": (6, 6),
        "hidden_sizes": (10, 16),
    }
    if method.endswith(OF_PAIRS):
        return TRAINABLES[method].construct(DisplacementModel(in_channels=2, **shape), settled)
    if TRAINABLES[method].task == "registration":
        registration = RegistrationModel(
            channels=1,
            labels=synthetic.labels_of(2),
            size=(24, 24),
            noise_scale=0.02,
            encoder_widths=(6, 6, 6),
            decoder_widths=(6, 6, 6),
            final_widths=(6, 6),
            hidden_sizes=(10, 16),
        )
        return TRAINABLES[method].construct(registration, settled)
    model = SegmentationModel(in_channels=1, dice_share=dice_share, **shape)
    return TRAINABLES[method].construct(model, settled)


def settings_of(trainable):
    space = trainable.problem.space.conditioning
    if "line" in space.names:
        return [{p.name: p.from_unit(u) for p in space} for u in (0.0, 0.35, 1.0)]
    return [dict.fromkeys(space.names, value) for value in (0.0, 0.35, 1.0)] if space else [{}]


def batch(method, count=3):
    data = splits(method)
    if TRAINABLES[method].task == "generalization":
        data = make(method).samples(data)
    images, masks = data["train"].batch(slice(count))
    truth = torch.from_numpy(masks)
    return torch.from_numpy(images), truth if truth.is_floating_point() else truth.long()


def fit(method, folder, *, dice_share=0.5, seed=0, epochs=2):
    config = TrainConfig(
        epochs=epochs,
        batch_size=8,
        prior={name_of(method): (0.2, 0.6)} if make(method).drawn.names else {},
        seed=seed,
        augment=("flip",),
        validate_every=1,
    )
    trainable, start = make(method, dice_share=dice_share), TRAINABLES[method].start
    begun = "erm" if TRAINABLES[method].task == "generalization" else "source"
    weights = make(begun).build(99).state_dict() if start else None
    context = PlainContext(folder, device="cpu")
    return train(trainable, splits(method), config, context, start=weights)


@pytest.mark.parametrize(
    ("method", "dice_share"),
    [
        (name, share)
        for name in TRAINED
        for share in ((0.0, 1.0) if TRAINABLES[name].task == "segmentation" else (0.0,))
    ],
)
def test_loss_falls_on_synthetic_data(method, dice_share, tmp_path):
    epochs = {"adaptation": 16, "generalization": 70}.get(TRAINABLES[method].task, 25)
    history = fit(method, tmp_path, dice_share=dice_share, epochs=epochs).history
    losses = [row["train_loss"] for row in history]
    assert np.isfinite(losses).all()
    stages = make(method).stages
    alone = round(stages[0].share * epochs) if stages[0].name == "domains" else 0
    assert losses[-1] < 0.9 * losses[alone]


@trained_methods
def test_same_seed_same_training_and_another_seed_another(method, tmp_path):
    first, again, other = (
        fit(method, tmp_path / str(index), seed=seed) for index, seed in enumerate((0, 0, 1))
    )
    assert first.history == again.history
    assert first.best.keys() == again.best.keys()
    assert all(torch.equal(tensor, again.best[name]) for name, tensor in first.best.items())
    assert first.history != other.history


@methods
def test_chosen_weights_give_the_chosen_metric_in_a_fresh_module(method, tmp_path):
    result, trainable = fit(method, tmp_path), make(method)
    module = trainable.build(99)
    load_tensors(module, result.best, "best")
    asked = [{}]
    for parameter in trainable.drawn:
        low, high = map(parameter.to_unit, (0.2, 0.6))  # the prior, of which these are fifths
        units = [low + (high - low) * (k + 0.5) / 5 for k in range(5)]
        asked = [{parameter.name: parameter.from_unit(unit)} for unit in units]
    val, name = trainable.samples(splits(method))["val"], trainable.problem.objectives[0].name
    values = [evaluate_setting(trainable, module.eval(), val, s)[name] for s in asked]
    assert result.best_metric == pytest.approx(np.nanmean(values), rel=1e-12)


@methods
def test_gradients_reach_every_parameter_in_every_stage(method):
    trainable = make(method)
    module, source = trainable.build(0), torch.Generator().manual_seed(1)
    reached = set()
    with torch.no_grad():  # away from a start at which some gradients are zero
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=source))
    for stage in trainable.stages:
        module.zero_grad()
        for step, setting in enumerate(settings_of(trainable)):
            draws = Draws((0, step), 12)
            trainable.loss(module, *batch(method, 12), setting, stage.name, draws).backward()
        parameters = [p for p in module.parameters() if p.requires_grad]
        reached |= {id(p) for p in parameters if p.grad is not None and p.grad.any()}
        # a domain classifier is trained alone at first
        assert stage.name == "domains" or len(reached) == len(parameters), stage
        trained = [p for g in trainable.parameter_groups(module) for p in g.parameters]
        assert {id(p) for p in trained} == {id(p) for p in parameters}


@methods
def test_loss_is_a_finite_scalar_and_leaves_its_inputs_alone(method):
    trainable = make(method)
    module, (images, masks) = trainable.build(0), batch(method)
    for setting in settings_of(trainable):
        before = dict(setting)
        for stage in trainable.stages:
            loss = trainable.loss(module, images, masks, setting, stage.name)
            assert loss.shape == ()
            assert torch.isfinite(loss)
        assert setting == before
    assert torch.equal(images, batch(method)[0])
    assert torch.equal(masks, batch(method)[1])


@trained_methods
def test_stages_share_all_epochs(method):
    shares = [stage.share for stage in make(method).stages]
    assert sum(shares) == pytest.approx(1, rel=1e-12)
    assert all(share > 0 for share in shares)


@methods
def test_state_survives_a_round_trip(method):
    first, second = (make(method).build(seed).eval() for seed in (0, 1))
    second.load_state_dict(first.state_dict())
    trainable, (images, _) = make(method), batch(method)
    for setting in settings_of(trainable):
        networks = [trainable.materialize(module, setting) for module in (first, second)]
        assert torch.equal(networks[0](images), networks[1](images))


@methods
def test_values_are_one_per_image_and_declared_as_objectives(method):
    trainable, module = make(method), make(method).build(0).eval()
    network = trainable.materialize(module, settings_of(trainable)[0])
    with torch.no_grad():
        values = trainable.evaluate(network, *batch(method, 5))
        if TRAINABLES[method].task == "generalization":  # metrics of a set
            told = {name: own.double().numpy() for name, own in values.items()}
            values = trainable.measured(told, splits(method)["train"].select(slice(5)))
        assert tuple(values) == trainable.metrics
    assert {tuple(value.shape) for value in values.values()} == {(5,)}
    declared = [o.name for o in trainable.problem.objectives]
    known = {*values, *trainable.problem.known_costs}
    assert set(declared) <= known
    family = declared[0]
    own = [name for name in values if name.split("/")[0] == family]
    assert len(own) > 1
    assert all(trainable.problem.objective(name).direction == "maximize" for name in own)


@pytest.mark.parametrize("method", [name for name in TRAINABLES if name != "tent"])
def test_one_image_gives_the_values_that_it_has_among_others(method):
    trainable, module = make(method), make(method).build(0).eval()
    network = trainable.materialize(module, settings_of(trainable)[-1])
    images, masks = batch(method, 4)
    with torch.no_grad():
        together = trainable.evaluate(network, images, masks)
        alone = [trainable.evaluate(network, images[i : i + 1], masks[i : i + 1]) for i in range(4)]
    for name, values in together.items():
        tolerance = 1e-12 if values.dtype == torch.float64 else 1e-5  # counted or measured
        np.testing.assert_allclose(
            values.numpy(), [single[name].item() for single in alone], rtol=tolerance
        )


@methods
def test_costs_are_the_declared_ones_and_depend_on_the_setting_alone(method):
    trainable = make(method)
    for setting in settings_of(trainable):
        costs = trainable.costs(setting)
        assert tuple(costs) == trainable.problem.known_costs
        assert all(value > 0 or name == "gradient_steps" for name, value in costs.items())
        assert costs == make(method).costs(setting)


@pytest.mark.parametrize("method", CONDITIONED_NETWORKS)
def test_sizes_grow_with_the_factor(method):
    small, large = (
        make(method, settled={"phi": phi}).sizes({})
        if method in GRID_METHODS
        else make(method).sizes({"phi": phi})
        for phi in (0.2, 0.8)
    )
    assert small.keys() == large.keys()
    assert all(len(size) == 2 for size in small.values())
    assert all(a <= b for name in small for a, b in zip(small[name], large[name], strict=True))
    assert small != large


def test_names_are_the_keys_of_the_registry():
    assert {name: make(name).method for name in TRAINABLES} == {name: name for name in TRAINABLES}


@pytest.mark.timeout(60)  # a fresh interpreter loads torch
def test_trainables_load_neither_ray_nor_pydantic_nor_mlflow():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "trainables").rglob("*.py"))
        if path.name != "__init__.py"
    ]
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {modules}]\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert loaded.isdisjoint({"ray", "pydantic", "mlflow", "explorer"})
