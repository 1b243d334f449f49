import errno
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from search_spaces.errors import InputError, RunError
from search_spaces.problem import Objective
from search_spaces.rescaling import rescaling_space
from search_spaces.space import FloatParameter, SearchSpace
from trainables.base import Arrays, TrainConfig
from trainables.scale_space import ScaleSpaceSegmentation, SegmentationModel
from trainables.train_loop import (
    PlainContext,
    augment,
    autocast,
    draw,
    evaluate_setting,
    keep_checkpoint,
    kept_checkpoint,
    load_tensors,
    load_weights,
    memory_format,
    read_state,
    read_tensors,
    train,
    validation_settings,
)

ROOT = Path(__file__).parents[2]
MODEL = SegmentationModel(
    in_channels=1,
    labels=("a", "b"),
    size=(8, 8),
    encoder_widths=(2, 3),
    decoder_widths=(2,),
    hidden_sizes=(3, 4),
)
CONFIG = TrainConfig(
    epochs=6,
    batch_size=4,
    prior={"phi": (0.0, 0.5)},
    seed=5,
    validate_every=2,
    checkpoint_every=2,
)


def make_arrays(count, seed=0):
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 3, (count, 8, 8)).astype(np.uint8)
    images = masks[:, None] / 2 - 0.5 + rng.normal(0, 0.1, (count, 1, 8, 8))
    return Arrays(images.astype(np.float32), masks)


DATA = {"train": make_arrays(12), "val": make_arrays(5, seed=1)}


class KilledError(Exception):
    """Stands for the end of the process."""


class KilledContext(PlainContext):
    """Ends the training at the report of an epoch, before anything is kept of it."""

    def __init__(self, folder, epoch, device="cpu"):
        super().__init__(folder, device=device)
        self.epoch = epoch

    def report(self, metrics, checkpoint_dir):
        if metrics["epoch"] == self.epoch:
            raise KilledError
        super().report(metrics, checkpoint_dir)


class RecordingContext(PlainContext):
    def __init__(self, folder):
        super().__init__(folder, device="cpu")
        self.reports = []

    def report(self, metrics, checkpoint_dir):
        self.reports.append((metrics, checkpoint_dir is not None))
        super().report(metrics, checkpoint_dir)


class Scripted(ScaleSpaceSegmentation):
    """Records what the loop asks for; validation metrics, one per validation, are given."""

    def __init__(self, *values, method="sshn", model=MODEL, settled=None):
        super().__init__(method, model, settled)
        self.values, self.asked, self.validated = values, [], []

    def loss(self, module, images, masks, conditioning, stage, draws=None):
        self.asked.append((images.clone(), masks.clone(), conditioning, stage))
        return super().loss(module, images, masks, conditioning, stage)

    def materialize(self, module, conditioning):
        weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        self.validated.append((conditioning, weights))
        return super().materialize(module, conditioning)

    def evaluate(self, network, images, masks):
        if not self.values:
            return super().evaluate(network, images, masks)
        value = self.values[(len(self.validated) - 1) // 5]
        return {"dice": torch.full((len(images),), value, dtype=torch.float64)}


class Diverging(ScaleSpaceSegmentation):
    """Its loss stops being a number at the fifth step."""

    steps = 0

    def loss(self, *args):
        self.steps += 1
        return super().loss(*args) * (math.nan if self.steps == 5 else 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted training, and the weights of its last epoch."""
    folder = tmp_path_factory.mktemp("whole")
    result = train(make(), DATA, CONFIG, PlainContext(folder, device="cpu"))
    return result, load_file(folder / "checkpoint" / "last.safetensors")


def make(method="sshn", settled=None, **changes):
    return ScaleSpaceSegmentation(method, replace(MODEL, **changes), settled)


def run(folder, *, trainable=None, data=DATA, context=None, **changes):
    trainable = trainable or make()
    context = context or PlainContext(folder, device="cpu")
    return train(trainable, data, replace(CONFIG, **changes), context)


def is_same(tensors, others):
    return tensors.keys() == others.keys() and all(
        torch.equal(tensors[name], others[name]) for name in tensors
    )


def assert_equals_whole(result, folder, whole):
    expected, last = whole
    assert is_same(result.best, expected.best)
    assert is_same(load_file(folder / "checkpoint" / "last.safetensors"), last)
    assert (result.best_epoch, result.best_metric) == (expected.best_epoch, expected.best_metric)
    assert result.history == expected.history


# --- reproducibility and resuming


def test_same_seed_gives_the_same_weights_to_the_bit(tmp_path, whole):
    assert_equals_whole(run(tmp_path), tmp_path, whole)


def test_another_seed_gives_other_weights(tmp_path, whole):
    result = run(tmp_path, seed=6)
    assert not is_same(result.best, whole[0].best)
    assert result.history != whole[0].history


@pytest.mark.parametrize("epoch", [1, 3, 4, 6])
def test_resumed_training_equals_the_uninterrupted_one(tmp_path, whole, epoch):
    with pytest.raises(KilledError):
        run(tmp_path, context=KilledContext(tmp_path, epoch))
    kept = kept_checkpoint(tmp_path)
    assert (read_state(kept)["epoch"] if kept else 0) == (epoch - 1) // 2 * 2
    assert_equals_whole(run(tmp_path), tmp_path, whole)


def test_training_killed_twice_equals_the_uninterrupted_one(tmp_path, whole):
    for epoch in (3, 5):
        with pytest.raises(KilledError):
            run(tmp_path, context=KilledContext(tmp_path, epoch))
    assert_equals_whole(run(tmp_path), tmp_path, whole)


def test_resuming_before_the_first_validation_changes_nothing(tmp_path):
    expected = run(tmp_path / "whole", validate_every=4)
    with pytest.raises(KilledError):
        run(tmp_path, context=KilledContext(tmp_path, 3), validate_every=4)
    assert read_tensors(tmp_path / "checkpoint" / "best.safetensors") == {}
    result = run(tmp_path, validate_every=4)
    assert is_same(result.best, expected.best)
    assert result.history == expected.history


@contextmanager
def killed_before_renaming(name):
    """Let the process end where a folder of that name would be renamed."""
    rename = Path.rename

    def killed(path, target):
        if path.name == name:
            raise KilledError
        return rename(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        yield


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint.new"])
def test_training_killed_while_a_checkpoint_is_kept_resumes(tmp_path, whole, name):
    with pytest.raises(KilledError):
        run(tmp_path, context=KilledContext(tmp_path, 3))
    with killed_before_renaming(name), pytest.raises(KilledError):
        run(tmp_path)  # ends while it keeps the checkpoint of epoch 4
    assert read_state(kept_checkpoint(tmp_path))["epoch"] == 2
    assert_equals_whole(run(tmp_path), tmp_path, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_checkpoint_is_whole_even_when_keeping_fails_twice(tmp_path):
    for epoch in (1, 2):
        source = tmp_path / f"written_{epoch}"
        source.mkdir()
        (source / "state.json").write_text(json.dumps({"epoch": epoch}))
    kept = tmp_path / "kept"
    keep_checkpoint(tmp_path / "written_1", kept)
    (kept / "checkpoint").rename(kept / "checkpoint.old")  # as a killed writer leaves it
    with killed_before_renaming("checkpoint.new"), pytest.raises(KilledError):
        keep_checkpoint(tmp_path / "written_2", kept)
    assert read_state(kept_checkpoint(kept)) == {"epoch": 1}


def test_what_a_killed_writer_left_behind_is_replaced(tmp_path):
    for number in (1, 2):
        source = tmp_path / "written"
        source.mkdir()
        (source / "state.json").write_text(json.dumps({"epoch": number}))
        for name in ("checkpoint.new", "checkpoint.old"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "leftover").touch()
        keep_checkpoint(source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert read_state(kept_checkpoint(tmp_path)) == {"epoch": 2}


def test_finished_training_is_not_trained_again(tmp_path, whole):
    expected = run(tmp_path)
    context = RecordingContext(tmp_path)
    result = run(tmp_path, context=context)
    assert context.reports == []
    assert (result.train_s, result.wall_s) == (expected.train_s, expected.wall_s)
    assert_equals_whole(result, tmp_path, whole)


def test_spent_seconds_add_up_over_interruptions(tmp_path):
    with pytest.raises(KilledError):
        run(tmp_path, context=KilledContext(tmp_path, 5))
    before = read_state(tmp_path / "checkpoint")
    result = run(tmp_path)
    assert 0 < before["train_s"] < result.train_s
    assert 0 < before["wall_s"] < result.wall_s


def test_data_are_not_modified(tmp_path):
    data = {split: make_arrays(len(arrays)) for split, arrays in DATA.items()}
    copies = {s: Arrays(a.images.copy(), a.masks.copy()) for s, a in data.items()}
    run(tmp_path, data=data, epochs=1)
    for split, arrays in data.items():
        assert np.array_equal(arrays.images, copies[split].images)
        assert np.array_equal(arrays.masks, copies[split].masks)


# --- steps


def test_setting_of_a_step_depends_on_seed_and_step_alone(tmp_path):
    asked = {}
    for epochs, batch_size in ((2, 4), (4, 6)):
        trainable = Scripted()
        folder = tmp_path / str(epochs)
        run(folder, trainable=trainable, epochs=epochs, batch_size=batch_size)
        asked[epochs] = [setting for _, _, setting, _ in trainable.asked]
    space = rescaling_space()
    assert asked[2] == [draw(space, CONFIG.prior, (5, step)) for step in range(6)]
    assert asked[4][:6] == asked[2]


def test_draws_are_uniform_over_the_prior():
    space = SearchSpace((FloatParameter("phi", 0, 1), FloatParameter("lam", 0.01, 1, log=True)))
    settings = [draw(space, {"phi": (0.2, 0.4)}, (0, step)) for step in range(2000)]
    phi = np.array([setting["phi"] for setting in settings])
    exponent = np.log10([setting["lam"] for setting in settings])
    assert ((phi >= 0.2) & (phi <= 0.4)).all()
    # four standard errors of the mean of 2000 uniform draws over a unit range: 0.026
    assert abs((phi.mean() - 0.2) / 0.2 - 0.5) < 0.026
    assert abs((exponent.mean() + 2) / 2 - 0.5) < 0.026
    assert abs(np.corrcoef(phi, exponent)[0, 1]) < 4 / math.sqrt(2000)


def test_ends_of_the_range_are_drawn_as_often_as_asked():
    prior = {"phi": (0.1, 0.3)}
    space = rescaling_space()
    drawn = [draw(space, prior, (0, step), endpoint_share=0.4)["phi"] for step in range(4000)]
    low, high = drawn.count(0.1) / 4000, drawn.count(0.3) / 4000
    assert low == pytest.approx(0.2, abs=0.03)
    assert high == pytest.approx(0.2, abs=0.03)
    inside = [phi for phi in drawn if 0.1 < phi < 0.3]
    assert np.mean(inside) == pytest.approx(0.2, abs=0.005)
    plain = [draw(space, prior, (0, step))["phi"] for step in range(4000)]
    assert set(inside) <= set(plain)  # the other draws are what they are without


def test_power_of_the_draws_makes_more_of_them_small():
    space, prior = rescaling_space(), {"phi": (0.1, 0.5)}
    plain, squared = (
        np.array([draw(space, prior, (0, step), power=p)["phi"] for step in range(2000)])
        for p in (1.0, 2.0)
    )
    shares = (plain - 0.1) / 0.4
    assert squared == pytest.approx(0.1 + 0.4 * shares**2, rel=1e-9)
    assert squared.mean() == pytest.approx(0.1 + 0.4 / 3, abs=0.01)


def test_common_draws_lie_at_one_share_of_every_range_and_leave_categories_alone():
    modes = {"interpolation": ("linear", "nearest")}
    space = rescaling_space(num_factors=2, choices=modes)
    prior = {"phi_0": (0.0, 1.0), "phi_1": (0.2, 0.4)}
    separate = [draw(space, prior, (3, step)) for step in range(200)]
    common = [draw(space, prior, (3, step), is_common=True) for step in range(200)]
    for own, other in zip(common, separate, strict=True):
        assert own["phi_0"] == other["phi_0"]
        assert own["phi_1"] == pytest.approx(0.2 + 0.2 * own["phi_0"])
        assert own["interpolation"] == other["interpolation"]


def test_an_epoch_ends_after_its_steps(tmp_path):
    shorter = replace(CONFIG, steps_per_epoch=2)
    trainable = Scripted(*range(3))
    train(trainable, DATA, shorter, PlainContext(tmp_path, device="cpu"))
    assert len(trainable.asked) == 2 * CONFIG.epochs  # of three whole batches in 12 images


def test_images_come_again_where_an_epoch_has_more_steps_than_they_fill(tmp_path):
    longer = Scripted(*range(3))
    config = replace(CONFIG, steps_per_epoch=5, batch_size=6, augment=())
    train(longer, DATA, config, PlainContext(tmp_path, device="cpu"))
    assert len(longer.asked) == 5 * CONFIG.epochs
    first = [image.numpy().tobytes() for images, *_ in longer.asked[:4] for image in images]
    assert Counter(first) == dict.fromkeys({image.tobytes() for image in DATA["train"].images}, 2)
    assert first[:12] != first[12:]
    few = {**DATA, "train": DATA["train"].select(slice(4))}  # fewer than a batch
    train(few_made := Scripted(*range(3)), few, config, PlainContext(tmp_path / "few"))
    assert len(few_made.asked) == 5 * CONFIG.epochs
    with pytest.raises(InputError, match="at most the number of training images, 4; got 6"):
        train(Scripted(), few, replace(config, steps_per_epoch=None), PlainContext(tmp_path / "no"))


def test_step_schedule_falls_to_a_tenth_after_three_quarters(tmp_path):
    trainable = Scripted(*range(10))
    config = replace(CONFIG, epochs=8, validate_every=1, schedule="step", learning_rate=0.01)
    history = train(trainable, DATA, config, PlainContext(tmp_path, device="cpu")).history
    assert [row["learning_rate"] for row in history] == pytest.approx([0.01] * 6 + [0.001] * 2)


def test_last_epoch_is_kept_where_the_best_is_not_asked_for(tmp_path):
    for keep, epoch in (("best", 2), ("last", 6)):
        trainable = Scripted(0.9, 0.5, 0.7)
        config = replace(CONFIG, keep=keep)
        result = train(trainable, DATA, config, PlainContext(tmp_path / keep, device="cpu"))
        assert (result.best_epoch, result.best_metric) == (epoch, 0.9 if keep == "best" else 0.7)


def test_sgd_is_resumed_as_it_was(tmp_path):
    config = replace(CONFIG, optimizer="sgd", learning_rate=0.01)
    whole = train(make(), DATA, config, PlainContext(tmp_path / "whole", device="cpu"))
    with pytest.raises(KilledError):
        train(make(), DATA, config, KilledContext(tmp_path / "killed", 5))
    resumed = train(make(), DATA, config, PlainContext(tmp_path / "killed", device="cpu"))
    assert resumed.history == whole.history
    assert all(torch.equal(tensor, resumed.best[name]) for name, tensor in whole.best.items())


def test_pairs_are_gathered_moving_first():
    arrays = make_arrays(4)
    pairs = Arrays(arrays.images, arrays.masks, np.array([[0, 1], [3, 2], [1, 0]]))
    assert len(pairs) == 3
    images, masks = pairs.batch([1, 2])
    assert images.shape == (2, 2, 8, 8)
    assert np.array_equal(images[0], arrays.images[[3, 2], 0])
    assert np.array_equal(masks[1], arrays.masks[[1, 0]])
    some = pairs.select(slice(1, None))
    assert np.array_equal(some.batch(slice(None))[0], images)


def test_both_images_of_a_pair_are_turned_alike():
    arrays = make_arrays(6)
    pairs = Arrays(arrays.images, arrays.masks, np.array([[a, a] for a in range(6)]))
    images, masks = (torch.from_numpy(one) for one in pairs.batch(slice(None)))
    turned, labels = augment(images, masks, ("flip", "transpose"), (0, 1))
    assert not torch.equal(turned, images)
    assert torch.equal(turned[:, 0], turned[:, 1])
    assert torch.equal(labels[:, 0], labels[:, 1])


def test_other_seed_or_step_draws_another_setting():
    keys = [(seed, step) for seed in range(4) for step in range(4)]
    values = {draw(rescaling_space(), {}, key)["phi"] for key in keys}
    assert len(values) == len(keys)


def test_every_epoch_visits_images_once_in_a_new_order_and_leaves_a_rest_out(tmp_path):
    trainable, data = Scripted(), DATA | {"train": make_arrays(11)}
    run(tmp_path, trainable=trainable, data=data, epochs=2, augment=())
    known = {image.tobytes(): index for index, image in enumerate(data["train"].images)}
    seen = [[known[image.numpy().tobytes()] for image in asked[0]] for asked in trainable.asked]
    assert [len(batch) for batch in seen] == [4, 4, 4, 4]
    first, second = seen[0] + seen[1], seen[2] + seen[3]
    assert len(set(first)) == len(set(second)) == 8
    assert first != second


def test_masks_follow_their_images_through_batches(tmp_path):
    data = DATA | {"train": make_arrays(12)}
    noiseless = (data["train"].masks[:, None] / 2 - 0.5).astype(np.float32)
    trainable = Scripted()
    data["train"] = Arrays(noiseless, data["train"].masks)
    run(tmp_path, trainable=trainable, data=data, epochs=1)
    for images, masks, _, _ in trainable.asked:
        assert torch.equal(images[:, 0], masks.float() / 2 - 0.5)
        assert masks.dtype == torch.int64


@pytest.mark.parametrize(
    ("dice_share", "expected"),
    [(0.25, [6, 2]), (0.5, [4, 4]), (0.0, [8, 0]), (1.0, [0, 8])],
)
def test_stages_split_the_epochs_by_share(tmp_path, dice_share, expected):
    trainable = Scripted(model=replace(MODEL, dice_share=dice_share))
    run(tmp_path, trainable=trainable, epochs=8, batch_size=12)
    stages = [stage for *_, stage in trainable.asked]
    assert stages == ["cross_entropy"] * expected[0] + ["soft_dice"] * expected[1]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("cosine", [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_learning_rate_follows_the_schedule(tmp_path, schedule, expected):
    changes = {"schedule": schedule, "validate_every": 1}
    result = run(tmp_path, epochs=4, batch_size=12, learning_rate=0.002, **changes)
    rates = [row["learning_rate"] for row in result.history]
    assert rates == pytest.approx([0.002 * factor for factor in expected], rel=1e-12)


def test_one_step_is_adam_with_the_configured_betas(tmp_path):
    betas, rate = (0.5, 0.6), 0.01
    changes = {"batch_size": 12, "augment": (), "betas": betas, "learning_rate": rate}
    result = run(tmp_path, epochs=1, schedule="constant", **changes)
    trainable = make()
    module = trainable.build(5)
    order = np.random.default_rng((5, 0, 1)).permutation(12)
    x = torch.from_numpy(DATA["train"].images[order])
    y = torch.from_numpy(DATA["train"].masks[order]).long()
    trainable.loss(
        module, x, y, draw(trainable.space, CONFIG.prior, (5, 0)), "soft_dice"
    ).backward()
    for name, parameter in module.named_parameters():
        # the first step of Adam: moments divided by 1 - beta are the gradient and its square
        expected = parameter - rate * parameter.grad / (parameter.grad.abs() + 1e-8)
        torch.testing.assert_close(result.best[name], expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_step_is_shortened_to_max_grad_norm(tmp_path):
    run(tmp_path, epochs=1, batch_size=12, betas=(0.5, 0.6), max_grad_norm=1e-3)
    (path,) = tmp_path.rglob("optimizer.safetensors")
    first_moments = [t for name, t in read_tensors(path).items() if name.endswith(".exp_avg")]
    norm = torch.cat([moment.flatten() for moment in first_moments]).norm().item()
    assert norm == pytest.approx((1 - 0.5) * 1e-3, rel=1e-4)


def test_bfloat16_training_keeps_its_weights_in_float32(tmp_path, whole):
    result = run(tmp_path, precision="bf16")
    assert {tensor.dtype for tensor in result.best.values()} == {torch.float32}
    assert not is_same(result.best, whole[0].best)
    losses = [row["train_loss"] for row in result.history]
    expected = [row["train_loss"] for row in whole[0].history]
    assert losses == pytest.approx(expected, rel=2e-2)


def test_memory_layout_changes_results_by_rounding_alone(tmp_path, whole):
    result = run(tmp_path, channels_last=True)
    losses = [row["train_loss"] for row in result.history]
    # eighteen steps of Adam carry each other's rounding on
    assert losses == pytest.approx([row["train_loss"] for row in whole[0].history], rel=1e-4)


def test_number_of_threads_is_set_when_given(tmp_path):
    torch.set_num_threads(2)
    run(tmp_path / "kept", epochs=1, num_threads=None)
    assert torch.get_num_threads() == 2
    run(tmp_path / "set", epochs=1, num_threads=1)
    assert torch.get_num_threads() == 1


# --- validation


def test_validation_settings_are_the_centres_of_the_priors_fifths():
    settings = validation_settings(rescaling_space(), {"phi": (0.0, 0.5)})
    assert [s["phi"] for s in settings] == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45], rel=1e-12)


def test_validation_settings_lie_on_the_diagonal_of_several_parameters():
    settings = validation_settings(rescaling_space(num_factors=2), {"phi_1": (0.5, 1.0)})
    pairs = [(s["phi_0"], s["phi_1"]) for s in settings]
    expected = [(u, 0.5 + u / 2) for u in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert np.allclose(pairs, expected, rtol=1e-12, atol=0)


def test_validation_settings_meet_every_choice_at_small_and_at_large_numbers():
    space = rescaling_space(choices={"mode": ("a", "b")})
    settings = validation_settings(space, {"phi": (0.0, 0.5)})
    assert [setting["mode"] for setting in settings] == ["a", "b", "b", "a", "b"]
    assert [s["phi"] for s in settings] == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45], rel=1e-12)


def test_choices_are_drawn_evenly_and_whatever_the_number():
    space = rescaling_space(choices={"mode": ("a", "b", "c")})
    drawn = [draw(space, {"phi": (0.0, 0.5)}, (0, step)) for step in range(3000)]
    for mode in ("a", "b", "c"):
        own = [setting["phi"] for setting in drawn if setting["mode"] == mode]
        # four standard deviations of a count of 3000/3, and of a mean of 1000 uniform draws
        assert abs(len(own) - 1000) < 4 * (3000 * 2 / 9) ** 0.5
        assert abs(np.mean(own) - 0.25) < 4 * 0.5 / 12**0.5 / 1000**0.5


def test_nothing_to_draw_is_validated_once():
    assert validation_settings(SearchSpace(()), {}) == [{}]


def test_validation_metric_is_the_mean_over_settings_and_images(tmp_path):
    trainable = Scripted()
    result = run(tmp_path, trainable=trainable, epochs=1)
    module = make().build(0)
    load_tensors(module, result.best, "best")
    settings = validation_settings(trainable.space, CONFIG.prior)
    assert [setting for setting, _ in trainable.validated] == settings
    values = [evaluate_setting(make(), module, DATA["val"], s)["dice"] for s in settings]
    assert result.best_metric == pytest.approx(np.mean(values), rel=1e-12)


def test_undefined_values_are_left_out_of_the_validation_metric(tmp_path):
    masks = DATA["val"].masks.copy()
    masks[1:] = 0
    data = DATA | {"val": Arrays(DATA["val"].images, masks)}

    class Background(Scripted):
        def evaluate(self, network, images, masks):
            present = masks.flatten(1).any(1)
            return {"dice": torch.where(present, 0.75, math.nan).double()}

    result = run(tmp_path, trainable=Background(), data=data, epochs=1)
    assert result.best_metric == 0.75


@pytest.mark.parametrize(
    ("direction", "epoch", "metric"), [("maximize", 4, 0.8), ("minimize", 2, 0.2)]
)
def test_best_epoch_is_the_best_on_validation(tmp_path, direction, epoch, metric):
    trainable = Scripted(0.2, 0.8, 0.5)
    trainable.problem = replace(trainable.problem, objectives=(Objective("dice", direction),))
    result = run(tmp_path, trainable=trainable)
    assert (result.best_epoch, result.best_metric) == (epoch, pytest.approx(metric, rel=1e-12))
    assert is_same(result.best, trainable.validated[5 * (epoch // 2 - 1)][1])
    assert not is_same(result.best, trainable.validated[-1][1])


def test_first_of_equally_good_epochs_is_chosen(tmp_path):
    assert run(tmp_path, trainable=Scripted(0.5, 0.5, 0.5)).best_epoch == 2


def test_history_has_a_row_per_validated_epoch_and_the_last_is_one(tmp_path):
    result = run(tmp_path, epochs=5)
    assert [row["epoch"] for row in result.history] == [2, 4, 5]
    assert all(
        set(row) == {"epoch", "train_loss", "val", "learning_rate"} for row in result.history
    )


def test_train_loss_is_the_mean_over_the_steps_of_an_epoch(tmp_path):
    losses = []

    class Recording(ScaleSpaceSegmentation):
        def loss(self, *args):
            losses.append(super().loss(*args))
            return losses[-1]

    result = run(tmp_path, trainable=Recording("sshn", MODEL), epochs=1)
    assert len(losses) == 3
    expected = np.mean([loss.item() for loss in losses])
    assert result.history[0]["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_patience_stops_after_as_many_validations_without_improvement(tmp_path):
    trainable = Scripted(0.1, 0.5, 0.4, 0.3, 0.9)
    context = RecordingContext(tmp_path)
    result = run(tmp_path, trainable=trainable, context=context, epochs=10, patience=2)
    assert [row["epoch"] for row in result.history] == [2, 4, 6, 8]
    assert result.best_epoch == 4
    assert context.reports[-1][1]  # the end is kept
    again = RecordingContext(tmp_path)
    run(tmp_path, trainable=Scripted(0.9), context=again, epochs=10, patience=2)
    assert again.reports == []


def test_reports_tell_every_epoch_and_carry_checkpoints_at_their_interval(tmp_path):
    context = RecordingContext(tmp_path)
    result = run(tmp_path, context=context, epochs=5, checkpoint_every=3)
    assert [metrics["epoch"] for metrics, _ in context.reports] == [1, 2, 3, 4, 5]
    assert [saved for _, saved in context.reports] == [False, False, True, False, True]
    assert "val" not in context.reports[0][0]
    assert context.reports[-1][0]["val"] == result.history[-1]["val"]
    assert {metrics["epochs"] for metrics, _ in context.reports} == {5}


# --- mistakes


def test_loss_that_is_no_number_names_epoch_setting_and_learning_rate(tmp_path):
    phi = draw(rescaling_space(), CONFIG.prior, (5, 4))["phi"]
    message = (
        rf"^sshn: the loss is nan in epoch 2, step 2, at \{{'phi': {phi}\}}: "
        r"lower train.learning_rate \(now 0.003\)$"
    )
    with pytest.raises(RunError, match=message):
        run(tmp_path, trainable=Diverging("sshn", MODEL))


def test_diverging_baseline_is_named_without_a_setting(tmp_path):
    with pytest.raises(RunError, match=r"fixed: the loss is nan in epoch 2.* its fixed setting"):
        run(tmp_path, trainable=Diverging("fixed", MODEL, {"phi": 0.3}), prior={})


def test_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(InputError, match="at most the number of training images, 12; got 13"):
        run(tmp_path, batch_size=13)


@pytest.mark.parametrize(("batch_size", "num_val"), [(1, 5), (4, 1)])
def test_worker_without_images_is_refused(tmp_path, batch_size, num_val):
    data = DATA | {"val": make_arrays(num_val)}
    with pytest.raises(InputError, match=rf"number of workers, 2; got {batch_size} and {num_val}"):
        run(tmp_path, data=data, context=WorkerContext(tmp_path, 0), batch_size=batch_size)


@pytest.mark.parametrize("changes", [{"epochs": 8}, {"seed": 1}, {"prior": {"phi": (0.0, 1.0)}}])
def test_checkpoint_of_other_settings_is_refused(tmp_path, changes):
    run(tmp_path, epochs=2)
    with pytest.raises(InputError, match="belongs to a training with other settings; remove it"):
        run(tmp_path, **({"epochs": 2} | changes))


@pytest.mark.parametrize("text", ["", '{"epoch": 2', "\x00"])
def test_damaged_state_is_refused(tmp_path, text):
    run(tmp_path, epochs=2)
    (tmp_path / "checkpoint" / "state.json").write_text(text)
    with pytest.raises(InputError, match=r"state.json: damaged checkpoint; remove .*checkpoint"):
        run(tmp_path, epochs=2)


@pytest.mark.parametrize("name", ["last", "best", "optimizer"])
@pytest.mark.parametrize("is_missing", [False, True])
def test_damaged_tensors_are_refused(tmp_path, name, is_missing):
    run(tmp_path, epochs=2)
    path = tmp_path / "checkpoint" / f"{name}.safetensors"
    content = path.read_bytes()
    path.unlink()
    if not is_missing:
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=rf"{name}.safetensors: expected a whole safetensors file"):
        run(tmp_path, epochs=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("bias"), r"'bias': expected shape \(3,\), got None; the file"),
        (lambda t: t.update(extra=torch.ones(2)), r"'extra': expected shape None, got \(2,\)"),
        (
            lambda t: t.update(weight=torch.ones(3, 1)),
            r"'weight': expected shape \(3, 2\), got \(3, 1\); the file belongs to another model",
        ),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, change, message):
    module, path = torch.nn.Linear(2, 3), tmp_path / "weights.safetensors"
    tensors = {name: torch.full_like(t, 9) for name, t in module.state_dict().items()}
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(InputError, match=rf"weights.safetensors: tensor {message}"):
        load_weights(module, path)
    assert all(not (tensor == 9).any() for tensor in module.state_dict().values())


def test_checkpoint_of_another_network_is_refused(tmp_path):
    run(tmp_path, epochs=2)
    with pytest.raises(InputError, match="belongs to a training with other settings"):
        run(tmp_path, trainable=make(encoder_widths=(2, 4)), epochs=2)


def test_loaded_weights_are_the_saved_ones(tmp_path):
    first, second = make().build(0), make().build(1)
    save_file(first.state_dict(), tmp_path / "weights.safetensors")
    load_weights(second, tmp_path / "weights.safetensors")
    assert is_same(first.state_dict(), second.state_dict())


def test_full_disk_is_told(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "move", full)
    with pytest.raises(RunError, match="checkpoint could not be written: No space left on device"):
        run(tmp_path, epochs=2)


# --- augmentation


def numbered(count, *size):
    """Images of one channel whose every pixel differs, and masks of the same numbers."""
    masks = torch.arange(count * math.prod(size)).view(count, *size)
    return masks[:, None].float(), masks


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (2, 3, 3)])
@pytest.mark.parametrize("names", [(), ("flip",), ("transpose",), ("flip", "transpose")])
def test_images_and_masks_move_together(size, names):
    images, masks = augment(*numbered(6, *size), names, (0, 3))
    assert torch.equal(images[:, 0], masks.float())
    before = numbered(6, *size)[1]
    assert torch.equal(masks.flatten(1).sort().values, before.flatten(1))
    is_moved = not torch.equal(masks, before)
    assert is_moved == ("flip" in names or ("transpose" in names and size[-1] == size[-2]))


def test_each_image_has_its_own_symmetry_and_all_eight_occur():
    _, masks = augment(*numbered(400, 2, 2), ("flip", "transpose"), (0, 0))
    kinds = {tuple((mask - 4 * index).flatten().tolist()) for index, mask in enumerate(masks)}
    square = torch.arange(4).view(2, 2)
    flips = [square, square.flip(0), square.flip(1), square.flip(0, 1)]
    assert kinds == {tuple(x.flatten().tolist()) for s in flips for x in (s, s.T)}


def test_augmentation_is_a_function_of_its_key():
    both = ("flip", "transpose")
    first = augment(*numbered(9, 4, 4), both, (1, 2))[1]
    assert torch.equal(augment(*numbered(9, 4, 4), both, (1, 2))[1], first)
    for key in ((1, 3), (2, 2)):
        assert not torch.equal(augment(*numbered(9, 4, 4), both, key)[1], first)


def test_augmentation_leaves_its_input_alone():
    images, masks = numbered(5, 4, 4)
    augment(images, masks, ("flip", "transpose"), (0, 0))
    assert torch.equal(images, numbered(5, 4, 4)[0])
    assert torch.equal(masks, numbered(5, 4, 4)[1])


# --- evaluation


@pytest.mark.parametrize("channels_last", [False, True])
def test_evaluation_in_batches_equals_one_image_at_a_time(channels_last):
    trainable, data = make(), make_arrays(70)
    module = trainable.build(0)
    values = evaluate_setting(trainable, module, data, {"phi": 0.4}, channels_last=channels_last)
    network = trainable.materialize(module, {"phi": 0.4})
    for index in range(70):
        x = torch.from_numpy(data.images[index : index + 1])
        y = torch.from_numpy(data.masks[index : index + 1]).long()
        with torch.no_grad():
            single = trainable.evaluate(network, x, y)
        for name, value in single.items():
            assert values[name][index] == pytest.approx(value.item(), rel=1e-12, nan_ok=True)
    assert {value.shape for value in values.values()} == {(70,)}
    assert {value.dtype for value in values.values()} == {np.dtype(np.float64)}


def test_autocast_is_bfloat16_for_that_precision_alone():
    a = torch.ones(2, 2)
    with autocast(torch.device("cpu"), "bf16"):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), "float32"):
        assert (a @ a).dtype == torch.float32


def test_memory_format_follows_the_number_of_axes():
    assert memory_format(False, 2) == torch.contiguous_format
    assert memory_format(True, 2) == torch.channels_last
    assert memory_format(True, 3) == torch.channels_last_3d


def test_plain_context_is_one_worker_on_its_device(tmp_path):
    context, module = PlainContext(tmp_path, device="cpu"), torch.nn.Linear(1, 1)
    assert (context.rank, context.world_size) == (0, 1)
    assert context.prepare(module) is module
    assert context.checkpoint_dir() is None
    default = PlainContext(tmp_path).device
    assert default == ("cuda" if torch.cuda.is_available() else "cpu")


# --- several workers


class WorkerContext(PlainContext):
    """One of two processes that average their gradients over gloo."""

    def __init__(self, folder, rank):
        super().__init__(folder, device="cpu")
        self.rank, self.world_size = rank, 2

    def report(self, metrics, checkpoint_dir):
        assert (checkpoint_dir is None) or self.rank == 0
        super().report(metrics, checkpoint_dir)

    def prepare(self, module):
        return DistributedDataParallel(module)


def work(folder, rank):
    """Train as one of two workers: this file is the workers' program too."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    # five images a batch: the workers' shares differ
    result = run(folder, context=WorkerContext(folder, rank), batch_size=5)
    save_file(result.best, folder / f"best_{rank}.safetensors")
    rows = [result.best_epoch, result.best_metric, result.history]
    (folder / f"result_{rank}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


@pytest.mark.timeout(120)  # two interpreters load torch
def test_two_workers_equal_one_up_to_the_order_of_sums(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), str(rank)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=100)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    expected = run(tmp_path / "one", batch_size=5)
    both = [load_file(tmp_path / f"best_{rank}.safetensors") for rank in range(2)]
    rows = [json.loads((tmp_path / f"result_{rank}.json").read_text()) for rank in range(2)]
    assert rows[0] == rows[1]
    assert is_same(*both)
    torch.testing.assert_close(both[0], expected.best, rtol=1e-5, atol=1e-6)
    assert rows[0][:2] == pytest.approx([expected.best_epoch, expected.best_metric], rel=1e-12)
    for row, other in zip(rows[0][2], expected.history, strict=True):
        assert row == pytest.approx(other, rel=1e-5)


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
