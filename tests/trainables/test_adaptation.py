"""Adaptation to another domain: what stays frozen, who chooses, and what each method is given."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from search_spaces.errors import InputError, RunError
from trainables.adaptation import STRATEGIES, Adaptation, AdaptationModel, matched
from trainables.base import Arrays, Draws, TrainConfig
from trainables.train_loop import PlainContext, evaluate_network, train

MODEL = AdaptationModel(
    channels=1,
    labels=("disc",),
    size=(16, 16),
    width=4,
    num_levels=2,
    policy_widths=(4, 8),
)
CONFIG = TrainConfig(
    epochs=2,
    steps_per_epoch=3,
    batch_size=4,
    optimizer="sgd",
    learning_rate=1e-2,
    betas=(0.9, 0.99),
    schedule="step",
    augment=(),
    validate_every=2,
    keep="last",
)


def arrays(count, seed, *, scale=1.0):
    """Discs on a noisy ground; `scale` is the contrast of the domain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16]
    centres = rng.uniform(5, 11, (count, 2, 1, 1))
    masks = ((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2 < 12).astype(np.uint8)
    images = scale * (masks[:, None] - 0.5) + rng.normal(0, 0.1, (count, 1, 16, 16))
    return Arrays(np.clip(images, -1, 1).astype(np.float32), masks)


def of_both(target, source):
    """Images of both domains, in turn as long as there are of both."""
    order = np.argsort([*np.arange(len(target)), *np.arange(len(source))], kind="stable")
    images, masks = (
        np.concatenate([a, b])[order]
        for a, b in ((target.images, source.images), (target.masks, source.masks))
    )
    domains = np.array(["there"] * len(target) + ["here"] * len(source))[order]
    folds = np.concatenate([np.arange(len(target)) % 3, np.arange(len(source)) % 3])[order]
    return Arrays(images, masks, domains=domains, folds=folds)


SOURCE = {"train": arrays(12, 4), "val": arrays(5, 5), "test": arrays(6, 6)}
TARGET = {
    "train": arrays(9, 1, scale=-1),
    "val": arrays(5, 2, scale=-1),
    "test": arrays(6, 3, scale=-1),
}
DATA = {name: of_both(own, SOURCE[name]) for name, own in TARGET.items()}
FOLDS = np.arange(6) % 3  # of the images of the target


def make(method, settled=None, **changes):
    settled = {} if settled is None else settled
    places = {"domain": "here", "pair": "here-to-there", "amount": 6}
    places = {name: places[name] for name in STRATEGIES[method].places}
    return Adaptation(method, replace(MODEL, **changes), {**places, **settled})


def settled_of(method):
    values = {"spottunet": {"lambda": 0.01}, "oracle": {"fold": 1}}
    return values.get(method, {})


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Weights of a network of the source domain."""
    config = replace(CONFIG, epochs=6, learning_rate=3e-2)
    folder = tmp_path_factory.mktemp("source")
    return train(make("source"), DATA, config, PlainContext(folder, device="cpu")).best


def fitted(trainable, folder, start, **changes):
    config = replace(CONFIG, **changes)
    result = train(trainable, DATA, config, PlainContext(folder, device="cpu"), start=start)
    module = trainable.build(0)
    module.load_state_dict(result.best)
    return module.eval(), result


def batch(split="val"):
    images, masks = TARGET[split].batch(slice(None))
    return torch.from_numpy(images), torch.from_numpy(masks).long()


# What changes and what does not


@pytest.mark.parametrize("method", [m for m in STRATEGIES if m not in ("source", "oracle")])
def test_frozen_weights_and_their_statistics_are_those_of_the_source(method, start, tmp_path):
    trainable = make(method, settled_of(method))
    module, _ = fitted(trainable, tmp_path, start)
    source = {name.removeprefix("network."): tensor for name, tensor in start.items()}
    frozen = (module.frozen or module.network).state_dict()
    kept = [name for name in frozen if module.frozen or name.split(".")[1] not in module.tuned]
    assert all(torch.equal(frozen[name], source[name]) for name in kept)
    assert any("running_mean" in name for name in kept) or method == "finetune-all"
    if trainable.stages:
        tuned = module.network.state_dict()
        changed = {
            name.split(".")[1] for name in tuned if not torch.equal(tuned[name], source[name])
        }
        assert changed == set(module.tuned)


def test_gradients_reach_policy_and_tuned_blocks_alone():
    trainable = make("spottunet", {"lambda": 0.1})
    module = trainable.build(0)
    images, masks = batch()
    trainable.loss(module, images, masks, {}, "fine_tuning", Draws((0, 0), 5)).backward()
    reached = {name for name, p in module.named_parameters() if p.grad is not None}
    wanted = {name for name, _ in module.named_parameters() if not name.startswith("frozen.")}
    assert reached == wanted
    for name, parameter in module.policy.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def decided(module, *, frozen):
    """Give every block to one copy."""
    with torch.no_grad():
        module.policy.head.weight.zero_()
        module.policy.head.bias.copy_(
            torch.tensor([1.0, 0.0] if frozen else [0.0, 1.0]).repeat(module.policy.num_blocks)
        )


def test_policy_of_one_kind_is_the_frozen_or_the_fine_tuned_network(start, tmp_path):
    module, _ = fitted(make("spottunet", {"lambda": 0.0}), tmp_path, start)
    alone, _ = make("finetune-all"), None
    network = alone.build(0)
    images, _ = batch()
    for frozen, copy in ((True, module.frozen), (False, module.network)):
        decided(module, frozen=frozen)
        logits, decisions = module(images)
        assert (decisions == float(frozen)).all()
        assert torch.equal(logits, copy(images))
    network.network.load_state_dict(module.network.state_dict())
    assert torch.equal(network.eval()(images)[0], logits)


def test_blocks_that_cost_too_much_are_not_fine_tuned(start, tmp_path):
    trainable = make("spottunet", {"lambda": 10.0}, policy_rate=10.0, regulariser="sum")
    module, _ = fitted(trainable, tmp_path, start, epochs=8)
    network = trainable.materialize(module, {})
    images, masks = batch()
    assert (trainable.evaluate(network, images, masks)["fine_tuned_blocks"] == 0).all()
    assert torch.equal(network(images), module.frozen(images))


def test_trainings_of_one_network_share_what_is_known_of_it():
    source, tuned = make("source"), make("finetune-first")
    assert source.skeleton is tuned.skeleton
    assert make("source", width=2 * MODEL.width).skeleton is not source.skeleton


@pytest.mark.parametrize(("regulariser", "factor"), [("mean", 1), ("sum", 23)])
def test_price_is_that_of_the_blocks_that_are_fine_tuned(regulariser, factor):
    losses = []
    for price in (0.0, 0.2):
        trainable = make("spottunet", {"lambda": price}, regulariser=regulariser)
        module = trainable.build(0).eval()
        losses.append(trainable.loss(module, *batch(), {}, "fine_tuning").item())
    share = (1 - module.decisions(batch()[0])).mean().item()
    assert len(trainable.skeleton.blocks) == 23
    assert losses[1] - losses[0] == pytest.approx(0.2 * share * factor, rel=1e-4)


def test_amortised_price_is_the_conditioning_and_reaches_the_policy():
    trainable = make("spottunet-amortised")
    module = trainable.build(0).eval()
    cheap, dear = ({"lambda": 0.0}, {"lambda": 1.0})
    losses = [trainable.loss(module, *batch(), one, "fine_tuning") for one in (cheap, dear)]
    assert losses[1] > losses[0]
    logits = [
        module.policy(batch()[0], trainable.materialize(module, one).z) for one in (cheap, dear)
    ]
    assert not torch.allclose(*logits)


def test_policy_that_is_no_number_stops_with_advice(start, tmp_path):
    trainable = make("spottunet", {"lambda": 0.01}, policy_rate=1e30)
    with pytest.raises(RunError, match=r"the loss is nan in epoch 1.*raise adaptation.temperature"):
        fitted(trainable, tmp_path, start)


# What each method is given


def test_source_alone_sees_the_source_domain_and_others_the_annotated_images():
    for name in ("train", "val"):
        seen = make("source").samples(DATA)[name]
        assert np.array_equal(seen.images, SOURCE[name].images)
    own = make("spottunet", {"lambda": 0.0}).samples(DATA)
    assert np.array_equal(own["train"].images, TARGET["train"].images[:6])
    assert np.array_equal(own["val"].masks, TARGET["val"].masks)
    every = make("finetune-all", {"amount": 0}).samples(DATA)["train"]
    assert np.array_equal(every.images, TARGET["train"].images)
    back = make("finetune-all", {"pair": "there-to-here"}).samples(DATA)["train"]
    assert np.array_equal(back.images, SOURCE["train"].images[:6])


def test_each_is_judged_by_the_images_of_its_own_target():
    samples = DATA["val"]
    for settled, domain in (({}, "there"), ({"pair": "there-to-here"}, "here")):
        is_judge = make("no-adaptation", settled).judged_by(samples, "val")
        np.testing.assert_array_equal(is_judge, samples.domains == domain)
    np.testing.assert_array_equal(make("source").judged_by(samples, "val"), is_judge)


@pytest.mark.parametrize("pair", ["here", "here-to-here", "-to-there", "a-to-b-to-c", 3])
def test_pair_names_two_domains(pair):
    with pytest.raises(InputError, match="pair: expected two different domains"):
        make("finetune-all", {"pair": pair})


def test_oracle_is_trained_on_all_but_the_fold_that_it_is_judged_by(start, tmp_path):
    trainable = make("oracle", {"fold": 1})
    images = trainable.samples(DATA)["train"].images
    seen = {image.tobytes() for image in images}
    inside = [image.tobytes() in seen for image in TARGET["test"].images]
    assert inside == [fold != 1 for fold in FOLDS]
    assert all(image.tobytes() in seen for image in TARGET["train"].images)
    assert len(images) == 9 + 4
    test = DATA["test"]
    is_judge = trainable.judged_by(test, "test")
    np.testing.assert_array_equal(is_judge, (test.domains == "there") & (test.folds == 1))
    assert trainable.judged_by(DATA["val"], "val").sum() == 5


def test_methods_without_training_keep_the_source_network(start, tmp_path):
    module, result = fitted(make("no-adaptation"), tmp_path, start)
    assert result.best_epoch == 0
    assert len(result.history) == 1
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in start.items())


def test_histogram_matching_gives_images_the_histogram_of_the_source(start, tmp_path):
    trainable = make("histogram-matching")
    module, _ = fitted(trainable, tmp_path, start)
    images, masks = batch()
    wanted = np.quantile(SOURCE["train"].images, np.linspace(0, 1, 256))
    given = matched(images, module.quantiles).numpy()
    for image in given:
        ends = [image.min(), np.median(image), image.max()]
        middle = np.interp(0.5, np.linspace(0, 1, 256), wanted)
        np.testing.assert_allclose(ends, [wanted[0], middle, wanted[-1]], atol=5e-3)
    order = images[0].flatten().argsort().numpy()
    assert (np.diff(given[0].ravel()[order]) >= 0).all()
    plain = evaluate_network(
        make("no-adaptation"),
        make("no-adaptation").materialize(
            fitted(make("no-adaptation"), tmp_path / "b", start)[0], {}
        ),
        Arrays(given, masks.numpy().astype(np.uint8)),
        torch.device("cpu"),
    )
    mixed = evaluate_network(
        trainable, trainable.materialize(module, {}), TARGET["val"], torch.device("cpu")
    )
    np.testing.assert_allclose(plain["dice"], mixed["dice"], rtol=1e-6)


def test_layout_of_the_images_does_not_matter_to_their_histogram():
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    quantiles = torch.linspace(-1, 1, 256).repeat(3, 1)
    plain = matched(images, quantiles)
    assert torch.equal(matched(images.to(memory_format=torch.channels_last), quantiles), plain)


def test_ties_share_a_rank():
    image = torch.tensor([[[[0.0, 0.0, 0.0, 1.0]]]])
    assert matched(image, torch.linspace(0, 3, 256)[None])[0, 0, 0].tolist() == pytest.approx(
        [1, 1, 1, 3], abs=1e-2
    )


def test_metrics_tell_every_block():
    trainable = make("finetune-first")
    module = trainable.build(0).eval()
    values = trainable.evaluate(trainable.materialize(module, {}), *batch())
    assert tuple(values) == trainable.metrics
    assert (values["fine_tuned_blocks"] == 2).all()
    tuned = [name for name in trainable.skeleton.blocks if values[f"fine_tuned/{name}"].all()]
    assert tuned == ["init_0", "init_1"]


def test_costs_are_the_network_s_and_the_policy_s():
    plain, chosen = (make(m, settled_of(m)) for m in ("finetune-all", "spottunet"))
    module = chosen.build(0)
    policy = sum(operation.macs for operation in module.policy.operations(MODEL.size))
    assert chosen.costs({})["macs"] == plain.costs({})["macs"] + policy
    assert chosen.costs({})["parameters"] == sum(p.numel() for p in module.parameters())


# What is refused


def test_size_that_cannot_be_halved_is_refused():
    with pytest.raises(InputError, match=r"multiples of 4 for 2 halvings, got \[16, 18\]"):
        make("source", size=(16, 18))


@pytest.mark.parametrize(
    ("method", "settled", "message"),
    [
        (
            "finetune-all",
            {"lambda": 0.1},
            "finetune-all has the training parameters pair, amount, not",
        ),
        ("spottunet", {"temperature": 0.5}, "spottunet needs lambda in its grid, got temperature"),
        ("spottunet", {"fold": 1}, "lambda, temperature, pair, amount, not fold"),
        ("spottunet", {"lambda": 20.0}, r"lambda must be in \[0, 10\]"),
        ("oracle", {"fold": 3}, r"fold must be in \[0, 2\]"),
    ],
)
def test_foreign_training_parameter_is_refused(method, settled, message):
    with pytest.raises(InputError, match=message):
        make(method, settled)
