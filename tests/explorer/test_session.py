"""Standard errors of images, and of pairs that share them; which samples an adaptation is given."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from explorer.session import check_spec, standard_error
from explorer.specs import load_spec
from explorer.splits import _least_sources, load_data, samples_of
from search_spaces.errors import InputError
from trainables.datasets.domains import folds_of

PAIRS = np.array([(a, b) for a in range(8) for b in range(8) if a != b])


def test_of_images_it_is_the_usual_one():
    values = np.array([0.5, 0.7, np.nan, 0.9])
    assert standard_error(values) == pytest.approx(0.2 / np.sqrt(3))
    assert standard_error(np.array([0.5, np.nan])) is None


def test_of_pairs_it_is_that_of_what_their_images_bring():
    means, told, naive = [], [], []
    for seed in range(300):
        own = np.random.default_rng(seed).normal(size=8)
        values = own[PAIRS].sum(axis=1)
        means.append(values.mean())
        told.append(standard_error(values, PAIRS))
        naive.append(standard_error(values))
    spread = np.std(means)
    assert np.mean(told) == pytest.approx(spread, rel=0.15)
    assert np.mean(naive) < 0.6 * spread


def test_pairs_without_a_value_do_not_count():
    values = np.random.default_rng(0).random(len(PAIRS))
    values[PAIRS[:, 0] == 0] = np.nan
    some = np.isfinite(values)
    assert standard_error(values, PAIRS) == standard_error(values[some], PAIRS[some])
    assert standard_error(np.array([0.1, 0.2]), PAIRS[[0, 0]]) is None


# Adaptation


PRIOR = "{lambda: [0, 1]}"
FEW = "{pair: [domain_0-to-domain_1], amount: [4]}"


def adapting(*changes):
    return load_spec("spottunet-demo", ["dataset.size=[16,16]", "model.width=2", *changes])


def test_images_of_the_pairs_domains_alone_are_split_and_each_knows_its_own():
    spec = adapting("dataset.options.num_domains=3", "train.grid.pair=[domain_2-to-domain_1]")
    dataset = load_data(spec)
    samples = samples_of(spec, dataset)
    assert list(samples) == ["train", "val", "test"]
    for own in samples.values():
        names = [dataset.domain_names[number] for number in dataset.domains[own.indices]]
        assert own.arrays.domains.tolist() == names
        assert set(names) == {"domain_1", "domain_2"}
        assert own.ids == [dataset.ids[index] for index in own.indices]
        assert np.array_equal(own.arrays.images, dataset.images[own.indices])
    every = np.concatenate([own.indices for own in samples.values()])
    assert len(set(every.tolist())) == len(every)
    test = samples["test"].arrays
    for name in ("domain_1", "domain_2"):
        assert sorted(set(test.folds[test.domains == name])) == [0, 1, 2]


def test_first_annotated_images_are_the_same_whatever_their_number():
    few, more = (
        samples_of(spec, load_data(spec))["train"].ids
        for spec in (adapting(), adapting("train.grid.amount=[20]"))
    )
    assert few == more != sorted(few)


def test_images_of_one_person_lie_together_and_in_one_fold():
    dataset = load_data(adapting())
    people = tuple(f"person {index // 6}" for index in range(len(dataset)))
    dataset = replace(dataset, groups=people)
    own = samples_of(adapting(), dataset)
    is_target = own["train"].arrays.domains == "domain_1"
    names = [people[index] for index in own["train"].indices[is_target]]
    changes = sum(a != b for a, b in itertools.pairwise(names))
    assert changes == len(set(names)) - 1
    folds = own["test"].arrays.folds
    for name in {people[index] for index in own["test"].indices}:
        inside = [people[index] == name for index in own["test"].indices]
        assert len(set(folds[inside])) == 1


def test_folds_take_turns():
    assert folds_of(["a", "b", "b", "c", "d"], [0] * 5).tolist() == [0, 1, 1, 2, 0]
    assert folds_of(["a", "x", "b", "y", "c"], [0, 1, 0, 1, 0]).tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.grid={amount: [8]}", "train.grid: pair is missing; name domains"),
        ("train.grid.pair=[domain_0-to-domain_0]", "two different domains, SOURCE-to-TARGET"),
        ("train.grid.pair=[domain_0]", "two different domains, SOURCE-to-TARGET, got 'domain_0'"),
        ("train.grid.pair=[domain_0-to-moon]", r"pair: domain 'moon'; known: domain_0, domain_1"),
        ("train.grid.amount=[8, 1000]", "domain_1 has 3[0-9] images to train on, not 1000"),
        ("train.grid.amount=[-8]", "amount must be in"),
        ("train.grid.amount=[all]", "amount must be a number, got 'all'"),
        (
            "explore.settings={lambda: [0.1, 0.4]}",
            r"explore.settings: lambda must be in \[0, 0.3\]",
        ),
        ("explore.settings={phi: [0.1]}", "explore.settings: expected values for lambda, got phi"),
        ("train.grid.colour=[red]", "train.grid 'colour'; known: amount, pair"),
        (
            f"train={{steps_per_epoch: null, batch_size: 8, prior: {PRIOR}, grid: {FEW}}}",
            "number of training samples, 4; got 8",
        ),
        ("explore.racing={}", "models are judged by the images of their own target"),
        ("baselines=[{method: source}]", "source is trained for the others, not beside them"),
        (
            "baselines=[{method: oracle, grids: [{}]}]",
            "grids.0: Dictionary should have at least 1 item",
        ),
        ("model.stages=3", "model.stages: adaptation has a network of its own"),
        ("registration.radius=2", "spottunet-amortised registers nothing"),
        ("baselines=[{method: finetune-all, grid: {lambda: [0]}}]", "finetune-all takes no grid"),
        ("baselines=[{method: oracle}]", "oracle needs grid"),
        ("baselines=[{method: fixed, grid: {phi: [0.5]}}]", "fixed is for segmentation"),
        ("dataset.size=[20,16]", "multiples of 8 for 3 halvings"),
        ("train.prior={phi: [0, 1]}", "train.prior: unknown parameter 'phi'; known: lambda"),
    ],
)
def test_mistakes_of_an_adaptation_are_named(change, message):
    def check(spec):
        check_spec(spec)
        load_data(spec)

    with pytest.raises(InputError, match=message):
        check(adapting(change))


def test_amount_of_one_baseline_alone_is_refused():
    changes = (
        "train.grid={pair: [domain_0-to-domain_1]}",
        "baselines=[{method: spottunet, grid: {lambda: [0.1], amount: [8]}}]",
    )
    with pytest.raises(InputError, match="spottunet: amount is in its grid alone"):
        check_spec(adapting(*changes))


def test_batch_is_of_one_domain():
    changes = ("train.grid.amount=[0]", "train.steps_per_epoch=null", "train.batch_size=48")
    with pytest.raises(InputError, match=r"number of training samples, 3[0-9]; got 48"):
        load_data(adapting(*changes))


def test_further_pair_changes_no_image_of_another():
    few = "train.grid.pair=[domain_0-to-domain_1]"
    more = "train.grid.pair=[domain_0-to-domain_1, domain_2-to-domain_0]"
    own = []
    for pairs in (few, more):
        spec = adapting("dataset.options.num_domains=3", pairs)
        train = samples_of(spec, load_data(spec))["train"]
        own.append(
            [n for n, d in zip(train.ids, train.arrays.domains, strict=True) if d == "domain_1"]
        )
    assert own[0] == own[1]


def test_methods_that_need_label_maps_refuse_data_without():
    with pytest.raises(InputError, match="digits has no label maps, which sshn is trained with"):
        check_spec(load_spec("demo", ["dataset={name: digits}", "baselines=[]"]))


def generalizing(*changes):
    small = ("dataset={name: synthetic, size: [16, 16], options: {num_images: 80}}", *changes)
    return load_spec("hyda-demo", small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.grid={}", r"train.grid: held_out is missing; name the domains .* \[domain_0, "),
        ("train.grid.held_out=[moon]", "held_out 'moon'; known: domain_0, domain_1"),
        ("train.grid.held_out=[none, domain_0]", "none is an exploration of its own"),
        ("train.grid.external=[layer3]", "external: expected none or different layers of the head"),
        ("train.grid.colour=[red]", "train.grid 'colour'; known: domain_weight, .*held_out"),
        ("generalization.domains=[domain_0, domain_1]", "hyda needs at least two besides the"),
        ("generalization.domains=[domain_0, domain_1, moon]", "moon"),
        ("generalization.domains=[domain_0, domain_0, domain_1]", "each domain once"),
        ("generalization.predicts=findings", "synthetic has class and target, of .*; got findings"),
        ("generalization.predicts=target", "tent: a number has no entropy"),
        ("generalization.network=vgg", "generalization.network 'vgg'; known: brain, densenet121"),
        ("generalization.external=[5]", r"layers of 1 to 2, got \[5\]"),
        ("generalization.options={depth: 3}", "generalization.options of small: .*'depth'"),
        ("generalization.options={widths: []}", "generalization.options of small: .*a block"),
        ("generalization.options={normalisation: layer}", "expected normalisation batch or"),
        ("generalization.options={widths: [4, -2]}", "generalization.options of small"),
        ("generalization={network: brain}", "no batch normalisation to adapt"),
        ("train.learning_rate=[1e-3, 1e-2]", "train.learning_rate: expected one, since a choice"),
        ("train.num_workers=2", "train.num_workers: expected 0 or 1"),
        ("model.width=8", "generalization.network"),
        ("adaptation.num_levels=2", "hyda adapts nothing"),
        ("explore.racing={}", "images of their own domains"),
        ("baselines=[{method: erm, grid: {held_out: [domain_0]}}]", "erm takes no grid"),
        ("dataset.options.shift=colour", "shift must be one of contrast, calibration"),
        ("dataset={name: wbc}", "wbc has nothing of it, of class, .*; got class"),
        ("dataset={name: digits}", "generalization.domains: missing; which domains digits has"),
        ("train.batch_size=60", "number of training samples, 38; got 60"),
    ],
)
def test_mistakes_of_a_generalization_are_named(change, message):
    def check(spec):
        check_spec(spec)
        load_data(spec)

    with pytest.raises(InputError, match=message):
        check(generalizing(change))


def test_class_that_no_source_has_is_refused_by_name():
    spec = generalizing()
    dataset = load_data(spec)
    is_third = dataset.domains == 3
    classes = np.where(is_third, dataset.classes, np.minimum(dataset.classes, 1))
    with pytest.raises(InputError, match="without domain_3 no image to train on tells 'left'"):
        _least_sources(spec, replace(dataset, classes=classes), np.arange(len(dataset)))


def test_test_split_holds_every_image_once_with_its_part():
    spec = generalizing()
    dataset = load_data(spec)
    samples = samples_of(spec, dataset)
    assert sorted(samples["test"].ids) == sorted(dataset.ids)
    by_id = dict(zip(samples["test"].ids, samples["test"].arrays.folds, strict=True))
    for number, split in enumerate(("train", "val")):
        assert {by_id[name] for name in samples[split].ids} == {number}
    values = samples["train"].arrays.values
    indices = [dataset.ids.index(name) for name in samples["train"].ids]
    assert values[:, 0].tolist() == dataset.domains[indices].tolist()
    assert values[:, 1].tolist() == dataset.classes[indices].tolist()


def test_images_of_domains_that_do_not_take_part_are_left_out():
    spec = generalizing("generalization.domains=[domain_3, domain_1, domain_0]")
    samples = samples_of(spec, load_data(spec))["train"].arrays
    assert set(samples.domains) == {"domain_0", "domain_1", "domain_3"}
    assert set(samples.values[samples.domains == "domain_3", 0]) == {0}
