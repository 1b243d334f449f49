"""Prediction in domains held out: what reaches training, and what each method makes of an image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.errors import InputError
from search_spaces.generalization import ends_of, line_names
from trainables.base import Arrays, TrainConfig
from trainables.generalization import (
    APPROACHES,
    AdaptingPredictor,
    Generalization,
    GeneralizationModel,
    domain_features,
    external_layers,
    readings,
)
from trainables.train_loop import PlainContext, evaluate_network, train

DOMAINS = ("north", "east", "south")
MODEL = GeneralizationModel(
    channels=1,
    size=(16, 16),
    domains=DOMAINS,
    num_sources=2,
    predicts="class",
    names=("dark", "bright"),
    backbone_options=(("widths", (4, 8)),),
    reader_options=(("widths", (4, 6)),),
    head_widths=(8,),
    embedding_size=5,
    num_steps=2,
    step_size=1e-2,
    adapted_batch_size=4,
)
TARGETS = replace(MODEL, predicts="target", names=("age",))
FINDINGS = replace(MODEL, predicts="findings", names=("a", "b"))
CONFIG = TrainConfig(
    epochs=6,
    batch_size=6,
    optimizer="adamw",
    learning_rate=3e-3,
    augment=("flip",),
    validate_every=3,
    keep="last",
)
HELD_OUT = {"held_out": "south"}


def arrays(count, seed, *, values=None):
    """Squares whose brightness is a class; domains, in turn, have another ground."""
    rng = np.random.default_rng(seed)
    domains = np.arange(count) % 3
    classes = rng.permutation(np.arange(count) // 3 % 2)
    images = np.zeros((count, 1, 16, 16)) - 0.3 * domains[:, None, None, None]
    images[:, :, 4:12, 4:12] += 0.5 * classes[:, None, None, None]
    images += rng.normal(0, 0.05, images.shape)
    return Arrays(
        images.astype(np.float32),
        np.zeros((count, 16, 16), np.uint8),
        domains=np.array(DOMAINS)[domains],
        folds=rng.permutation(np.arange(count) % 3),
        values=np.stack([domains, classes], 1).astype(np.float32) if values is None else values,
    )


DATA = {"train": arrays(36, 0), "val": arrays(18, 1), "test": arrays(30, 2)}


def changed(data, *, of="south", splits=("train", "val", "test")):
    """The same splits with other images and values of a domain."""
    found = dict(data)
    for name in splits:
        own, is_own = data[name], data[name].domains == of
        images, values = own.images.copy(), own.values.copy()
        images[is_own] = 0.77
        values[is_own, 1:] = 1 - values[is_own, 1:]
        found[name] = replace(own, images=images, values=values)
    return found


def trained(method, tmp_path, *, data=DATA, model=MODEL, settled=HELD_OUT, config=CONFIG):
    trainable = Generalization(method, model, settled)
    return trainable, train(trainable, data, config, PlainContext(tmp_path))


def module_of(trainable, result):
    module = trainable.build(0)
    module.load_state_dict(result.best)
    return module.eval()


@pytest.mark.parametrize("method", ["hyda", "erm"])
def test_nothing_of_the_domain_held_out_reaches_training(method, tmp_path):
    _, clean = trained(method, tmp_path / "clean")
    _, poisoned = trained(method, tmp_path / "poisoned", data=changed(DATA))
    for name, tensor in clean.best.items():
        assert torch.equal(tensor, poisoned.best[name]), name
    assert clean.best_metric == poisoned.best_metric


def test_mdan_is_given_images_of_the_adaptation_part_alone_and_no_label(tmp_path):
    trainable = Generalization("mdan", MODEL, HELD_OUT)
    given = trainable.samples(DATA)["train"]
    is_target = given.domains == "south"
    expected = (DATA["test"].domains == "south") & (DATA["test"].folds != 0)
    assert is_target.sum() == expected.sum() > 0
    assert np.isnan(given.values[is_target, 1:]).all()
    assert not (expected & trainable.judged_by(DATA["test"], "test")).any()
    _, clean = trained("mdan", tmp_path / "clean")
    labels = DATA["test"].values.copy()
    labels[DATA["test"].domains == "south", 1:] = 1
    other = {**DATA, "test": replace(DATA["test"], values=labels)}
    _, relabelled = trained("mdan", tmp_path / "other", data=other)
    _, repainted = trained("mdan", tmp_path / "third", data=changed(DATA))
    names = list(clean.best)
    assert all(torch.equal(clean.best[n], relabelled.best[n]) for n in names)
    assert not all(torch.equal(clean.best[n], repainted.best[n]) for n in names)


@pytest.mark.parametrize("method", ["hyda", "erm", "mdan"])
def test_what_depends_on_no_domain_is_learned(method, tmp_path):
    trainable, result = trained(method, tmp_path, config=replace(CONFIG, epochs=30))
    assert result.best_metric > 0.9
    network = trainable.materialize(module_of(trainable, result), {})
    own = DATA["test"].select(np.flatnonzero(trainable.judged_by(DATA["test"], "test")))
    found = evaluate_network(trainable, network, own, torch.device("cpu"))
    assert set(found) == set(trainable.metrics)
    assert np.nanmean(found["balanced_accuracy"]) == np.nanmean(found["balanced_accuracy/south"])
    assert np.isnan(found["balanced_accuracy/north"]).all()


def test_the_domain_classifier_is_trained_first_and_alone(tmp_path):
    config = replace(CONFIG, epochs=1)
    trainable, result = trained(
        "hyda", tmp_path, model=replace(MODEL, reader_share=0.99), config=config
    )
    fresh = trainable.build(config.seed).state_dict()
    changed_names = {n for n, t in result.best.items() if not torch.equal(t, fresh[n])}
    assert trainable.stages[0].name == "domains"
    assert not trainable.stages[0].is_validated
    primary = {n for n in changed_names if n.startswith("network.backbone.blocks.0.")}
    assert not primary  # its convolution; the statistics of its norms follow the images
    assert any(n.startswith("network.reader.encoder") for n in changed_names)
    assert not any(n.startswith("network.head") for n in changed_names)


@pytest.mark.parametrize("learns_task", [False, True])
def test_the_task_trains_the_domain_encoder_where_it_is_asked_to(learns_task):
    bare = replace(MODEL, domain_weight=0, similarity_weight=0, learns_task=learns_task)
    trainable = Generalization("hyda", bare, HELD_OUT)
    module = trainable.build(0)
    data = trainable.samples(DATA)["train"]
    images, values = torch.from_numpy(data.images), torch.from_numpy(data.values)
    trainable.loss(module, images, values, {}, "task").backward()
    reader = module.network.reader
    norms = [0 if p.grad is None else float(p.grad.norm()) for p in reader.encoder.parameters()]
    assert (sum(norms) > 0) == learns_task
    assert reader.embed.linear.weight.grad.norm() > 0


def test_epochs_of_the_domain_classifier_alone_are_not_chosen(tmp_path):
    config = replace(CONFIG, epochs=6, validate_every=1, keep="best", patience=2)
    _, result = trained("hyda", tmp_path, model=replace(MODEL, reader_share=0.5), config=config)
    assert result.history[0]["epoch"] == 4
    assert result.best_epoch > 3


def test_an_embedding_on_its_own_place_is_the_one_that_is_read(tmp_path):
    trainable, result = trained("hyda", tmp_path)
    module, images = module_of(trainable, result), torch.from_numpy(DATA["test"].images)
    with torch.inference_mode():
        read = trainable.materialize(module, {})(images)
        own = trainable.materialize(module, {"line": "own-to-source2", "t": 0.0})(images)
        there = trainable.materialize(module, {"line": "own-to-source2", "t": 1.0})
        same = trainable.materialize(module, {"line": "source1-to-source2", "t": 1.0})
        half = trainable.materialize(module, {"line": "source1-to-source2", "t": 0.5})
        assert torch.equal(read, own)
        torch.testing.assert_close(there(images), same(images), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(read, half(images), atol=1e-4)


def test_the_mean_of_a_group_is_over_the_images_of_its_domain(tmp_path):
    trainable, result = trained("hyda", tmp_path)
    module = module_of(trainable, result)
    samples = DATA["val"]
    images, domains = torch.from_numpy(samples.images), torch.from_numpy(samples.values[:, 0])
    network = trainable.materialize(module, {"line": "own-to-group", "t": 1.0})
    half = trainable.materialize(module, {"line": "own-to-group", "t": 0.5})
    assert (network.batch_size, trainable.materialize(module, {}).batch_size) == (32, None)
    with torch.inference_mode():
        read = module.network.reader(images).embedding
        features = module.network.backbone(images)
        for name in range(3):
            own = domains == name
            mean = read[own].mean(0, keepdim=True)
            for mixed, place in ((network, mean), (half, (read[own] + mean) / 2)):
                scores, _ = module.network.head(features[own], place.expand(int(own.sum()), -1))
                found = mixed.run(images, domains).scores[own]
                torch.testing.assert_close(found, scores, rtol=1e-4, atol=1e-4)
                together = mixed.run(images[own]).scores
                torch.testing.assert_close(together, scores, rtol=1e-4, atol=1e-4)
    values = trainable.evaluate(network, images, torch.from_numpy(samples.values))
    expected = network.run(images, domains).scores
    assert torch.equal(values["score/0"], expected[:, 0])


def test_centroids_are_those_of_the_sources_embeddings(tmp_path):
    trainable, result = trained("hyda", tmp_path, config=replace(CONFIG, epochs=40))
    module = module_of(trainable, result)
    reader = module.network.reader
    sources = trainable.samples(DATA)["train"]
    with torch.inference_mode():
        read = reader(torch.from_numpy(sources.images)).embedding
    means = torch.stack([read[torch.from_numpy(sources.domains == n)].mean(0) for n in DOMAINS[:2]])
    apart = (means[0] - means[1]).norm()
    # a running mean over batches, of weights that still moved
    assert (reader.centroids - means).norm(dim=1).max() < 0.25 * apart
    assert reader.counts.min() > 0


def test_tent_adapts_a_copy_and_goes_on_from_batch_to_batch(tmp_path):
    erm, result = trained("erm", tmp_path)
    trainable = Generalization("tent", MODEL, HELD_OUT)
    module = trainable.build(3)
    trainable.begin(module, result.best, DATA)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    images = torch.from_numpy(DATA["test"].images)
    with torch.inference_mode():
        network = trainable.materialize(module, {})
        assert isinstance(network, AdaptingPredictor)
        first, second = network(images[:4]), network(images[:4])
        again = trainable.materialize(module, {})(images[:4])
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    entropy = [float(-(s.softmax(1) * s.log_softmax(1)).sum(1).mean()) for s in (first, second)]
    assert entropy[1] < entropy[0]
    assert erm.stages
    assert trainable.stages == ()


def test_tent_takes_the_batches_of_its_own_size():
    trainable = Generalization("tent", MODEL, HELD_OUT)
    images = torch.from_numpy(DATA["test"].images[:10])
    module = trainable.build(0).eval()
    with torch.inference_mode():
        whole = trainable.materialize(module, {})(images)
        network = trainable.materialize(module, {})
        parts = torch.cat([network(batch) for batch in images.split(4)])
    assert torch.equal(whole, parts)


def test_tent_is_evaluated_in_its_own_batches_and_takes_a_single_image():
    model = replace(MODEL, backbone_options=(("widths", (4, 8, 8, 8)),), adapted_batch_size=3)
    trainable = Generalization("tent", model, HELD_OUT)
    module, own = trainable.build(0).eval(), DATA["test"].select(slice(7))  # 3, 3 and 1
    network = trainable.materialize(module, {})
    found = trainable_scores(trainable, network, own)
    again = trainable.materialize(module, {})
    images = torch.from_numpy(own.images)
    with torch.inference_mode():
        expected = torch.cat([again(batch) for batch in images.split(3)])
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


def trainable_scores(trainable, network, samples):
    """Scores of all samples, as they pass through an evaluation."""
    kept = []
    plain = trainable.measured
    trainable.measured = lambda values, own: kept.append(values) or plain(values, own)
    evaluate_network(trainable, network, samples, torch.device("cpu"))
    return np.stack([kept[0][f"score/{k}"] for k in range(2)], axis=1)


def test_metrics_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth, scores = rng.integers(0, 2, 40), rng.normal(size=(40, 2))
    values = np.stack([np.arange(40) % 3, truth], 1).astype(np.float32)
    samples = replace(arrays(40, 0), values=values)
    raw = {f"score/{k}": scores[:, k] for k in range(2)}
    found = Generalization("erm", MODEL).measured(dict(raw), samples)
    expected = balanced_accuracy_score(truth, scores.argmax(1))
    assert np.mean(found["balanced_accuracy"]) == pytest.approx(expected, rel=1e-12)
    for number, name in enumerate(DOMAINS):
        own = values[:, 0] == number
        expected = balanced_accuracy_score(truth[own], scores[own].argmax(1))
        assert np.nanmean(found[f"balanced_accuracy/{name}"]) == pytest.approx(expected, rel=1e-12)
    both = np.stack([np.arange(40) % 3, truth, 1 - truth], 1).astype(np.float32)
    both[:5, 1] = np.nan
    samples = replace(samples, values=both)
    found = Generalization("erm", FINDINGS).measured(dict(raw), samples)
    aucs = [roc_auc_score(truth[5:], scores[5:, 0]), roc_auc_score(1 - truth, scores[:, 1])]
    assert np.nanmean(found["auc/a"]) == pytest.approx(aucs[0], rel=1e-12)
    assert np.nanmean(found["auc"]) == pytest.approx(np.mean(aucs), rel=1e-12)


def test_targets_are_predicted_in_their_unit(tmp_path):
    def ages(samples):
        values = samples.values.copy()
        values[:, 1] = 60 + 20 * values[:, 1]
        return replace(samples, values=values)

    data = {name: ages(own) for name, own in DATA.items()}
    config = replace(CONFIG, epochs=60)
    trainable, result = trained("hyda", tmp_path, data=data, model=TARGETS, config=config)
    sources = trainable.samples(data)["train"].values[:, 1]
    assert float(result.best["mean"]) == pytest.approx(sources.mean(), rel=1e-5)
    assert float(result.best["spread"]) == pytest.approx(sources.std(), rel=1e-5)
    assert result.best_metric < 6


def test_an_unknown_finding_teaches_nothing(tmp_path):
    values = {
        name: np.concatenate([own.values, 1 - own.values[:, 1:]], 1).astype(np.float32)
        for name, own in DATA.items()
    }
    for own in values.values():
        own[::2, 2] = np.nan
    data = {name: replace(own, values=values[name]) for name, own in DATA.items()}
    config = replace(CONFIG, epochs=30)
    _, result = trained("erm", tmp_path, data=data, model=FINDINGS, config=config)
    assert result.best_metric > 0.9


@pytest.mark.parametrize("method", sorted(APPROACHES))
def test_multiply_adds_are_those_that_torch_counts(method):
    trainable = Generalization(method, MODEL, HELD_OUT)
    module = trainable.build(0).eval()
    module.network.adversaries = None
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 1, 16, 16))
    costs = trainable.costs({})
    times = 2 * MODEL.num_steps if method == "tent" else 1
    assert costs["macs"] == times * counter.get_total_flops() / 2
    assert costs["flops"] == 2 * costs["macs"]
    assert costs["parameters"] == sum(p.numel() for p in module.parameters())
    assert costs["gradient_steps"] == (MODEL.num_steps if method == "tent" else 0)


def test_external_layers_and_sizes_are_training_parameters():
    none, one, both = (
        Generalization("hyda", MODEL, {**HELD_OUT, "external": value})
        for value in ("none", "layer2", "layer1-layer2")
    )
    assert (none.external, one.external, both.external) == ((), (2,), (1, 2))
    wide = Generalization("hyda", MODEL, {**HELD_OUT, "embedding_size": 9})
    assert none.costs({})["macs"] < one.costs({})["macs"] < both.costs({})["macs"]
    assert wide.build(0).network.reader.centroids.shape == (2, 9)
    assert Generalization("hyda", MODEL, {"held_out": "none"}).sources == DOMAINS


def test_similarity_changes_training_and_no_weight_leaves_it_out(tmp_path):
    settled = [{**HELD_OUT, "similarity_weight": w} for w in (0.0, 2.0)]
    results = [trained("hyda", tmp_path / str(k), settled=own)[1] for k, own in enumerate(settled)]
    assert not torch.equal(*(r.best["network.reader.encoder.blocks.0.weight"] for r in results))


def test_generated_weights_shrink_with_their_price(tmp_path):
    squares = []
    for price in (0.0, 100.0):
        settled = {**HELD_OUT, "generated_weight": price}
        config = replace(CONFIG, epochs=15)
        trainable, result = trained("hyda", tmp_path / str(price), settled=settled, config=config)
        module = module_of(trainable, result)
        with torch.inference_mode():
            outputs = module.network(torch.from_numpy(DATA["val"].images))
        squares.append(float(outputs.generated))
    assert squares[1] < 0.5 * squares[0]


def test_domain_features_are_those_before_the_domain_classifier(tmp_path):
    trainable, result = trained("hyda", tmp_path)
    module = module_of(trainable, result)
    features = domain_features(module, DATA["test"].images)
    assert features.shape == (30, 6)
    with pytest.raises(InputError, match="reads no domain"):
        domain_features(Generalization("erm", MODEL, HELD_OUT).build(0), DATA["test"].images)


def test_readings_are_shares_of_the_way_between_centroids(tmp_path):
    trainable, result = trained("hyda", tmp_path)
    module = module_of(trainable, result)
    images = DATA["test"].images
    with torch.no_grad():
        points = module.network.reader(torch.from_numpy(images)).embedding.double()
    module.network.reader.centroids[:] = torch.stack([points[0], points[1]])
    found = readings(module, images)
    assert set(found) == {"source1-to-source2"}  # the lines that begin where images are read: none
    read = found["source1-to-source2"]
    assert read.shares[:2] == pytest.approx([0, 1], abs=1e-5)
    way = (points[1] - points[0]).numpy()
    beside = points.numpy() - points[0].numpy() - read.shares[:, None] * way
    assert np.abs(beside @ way).max() < 1e-5
    length = np.linalg.norm(way)
    assert read.distance == pytest.approx(np.sqrt((beside**2).sum(1).mean()) / length, rel=1e-5)
    with pytest.raises(InputError, match="reads no domain"):
        readings(Generalization("erm", MODEL, HELD_OUT).build(0), images)


@pytest.mark.parametrize(
    ("method", "model", "settled", "message"),
    [
        ("hyda", MODEL, {"held_out": "west"}, "held_out"),
        ("hyda", replace(MODEL, domains=("a", "b")), {"held_out": "a"}, "at least two"),
        ("erm", replace(MODEL, domains=("a",)), {"held_out": "a"}, "erm needs at least one"),
        ("erm", MODEL, {"external": "none"}, "external"),
        ("hyda", MODEL, {**HELD_OUT, "external": "layer3"}, "external: expected none or"),
        ("hyda", MODEL, {**HELD_OUT, "external": "layer1-layer1"}, "external: expected none or"),
        ("hyda", MODEL, {**HELD_OUT, "embedding_size": 0}, "embedding_size"),
        ("hyda", replace(MODEL, external=(4,)), HELD_OUT, "generalization.external"),
        ("mdan", MODEL, {"held_out": "none"}, "needs a domain"),
        ("tent", TARGETS, HELD_OUT, "no entropy"),
        ("tent", FINDINGS, HELD_OUT, "allows_findings"),
    ],
)
def test_what_cannot_be_is_refused_by_name(method, model, settled, message):
    with pytest.raises(InputError, match=message):
        Generalization(method, model, settled)


def test_one_source_is_enough_for_methods_that_tell_no_domains_apart(tmp_path):
    pair = replace(MODEL, domains=("north", "south"), num_sources=1)
    is_own = {name: np.flatnonzero(own.domains != "east") for name, own in DATA.items()}
    data = {name: own.select(is_own[name]) for name, own in DATA.items()}
    for own in data.values():
        own.values[:, 0] = own.domains == "south"
    for method in ("erm", "mdan"):
        trainable, result = trained(method, tmp_path / method, data=data, model=pair)
        assert trainable.sources == ("north",)
        assert np.isfinite(result.best_metric)


def test_tent_may_be_asked_of_findings_and_needs_batch_normalisation():
    trainable = Generalization("tent", replace(FINDINGS, allows_findings=True), HELD_OUT)
    images = torch.from_numpy(DATA["test"].images[:6])
    with torch.inference_mode():
        network = trainable.materialize(trainable.build(0), {})
        assert not torch.equal(network(images), network(images))
    bare = replace(MODEL, backbone="brain", backbone_options=())
    with pytest.raises(InputError, match="brain has no batch normalisation"):
        Generalization("tent", bare, HELD_OUT)


def test_lines_join_every_two_places():
    lines = ("own-to-group", "own-to-source1", "own-to-source2", "source1-to-source2")
    assert line_names(2) == lines
    assert len(line_names(3)) == 7
    assert [ends_of(name) for name in lines] == [("own", "group"), ("own", 0), ("own", 1), (0, 1)]
    assert external_layers("layer2-layer1", 2) == (1, 2)


@pytest.mark.parametrize("network", ["small", "brain", "densenet121"])
def test_backbones_fit_any_image(network):
    model = replace(MODEL, backbone=network, backbone_options=(), size=(32, 32))
    trainable = Generalization("hyda", model, HELD_OUT)
    with torch.inference_mode():
        outputs = trainable.build(0).eval()(torch.zeros(2, 1, 32, 32))
    assert outputs.scores.shape == (2, 2)
    assert trainable.costs({})["macs"] > 0


def test_a_repr_tells_everything_that_decides_a_training():
    assert repr(Generalization("hyda", MODEL, HELD_OUT)) != repr(
        Generalization("hyda", replace(MODEL, similarity_weight=0.5), HELD_OUT)
    )
    assert "south" in repr(Generalization("hyda", MODEL, HELD_OUT))
