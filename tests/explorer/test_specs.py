"""Specs: what is refused and with which words, and that equal specs are equal wherever they lie."""

import re

import pytest
import yaml

from explorer.models import build_trainable, image_size
from explorer.samplers import SAMPLERS
from explorer.session import check_spec, sampler_of
from explorer.specs import (
    MAX_ALIASES,
    MAX_SPEC_BYTES,
    ExplorationSpec,
    load_spec,
    preset_names,
    spec_of,
)
from explorer.splits import load_data
from explorer.training import train_config, trials_of
from search_spaces.errors import InputError

MINIMAL = "name: tiny\n"


def write(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "spec.yaml"
    path.write_bytes(text.encode(encoding))
    return path


def refusal(*changes, source="demo"):
    """The message with which a spec is refused, in one line."""
    with pytest.raises(InputError) as caught:
        load_spec(source, changes)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


# What came out of the file


def test_defaults_fill_what_is_not_said(tmp_path):
    spec = load_spec(write(tmp_path, MINIMAL))
    assert spec == ExplorationSpec(name="tiny")
    assert (spec.method, spec.dataset.name, spec.explore.sampler) == ("sshn", "synthetic", "grid")
    assert (spec.train.prior, spec.train.seeds, spec.baselines) == ({"phi": (0.0, 0.5)}, (0,), ())


def test_a_spec_survives_its_own_yaml():
    changes = [
        "train.learning_rate=[1.0e-3, 3e-3]",
        "train.prior={phi: [0.1, 0.25]}",
        "explore.space={phi: [0.1, 0.2]}",
        "explore.constraints={max: {macs: 0.6G}, min: {dice: 0.1}}",
        "explore.objectives={dice: maximize, parameters: minimize}",
        "model.encoder_widths=[4, 8]",
        "model.decoder_widths=[4]",
        "model.choices={interpolation: [linear, nearest]}",
        "baselines=[{method: fixed, grid: {phi: [1e-1], interpolation: [nearest]}}]",
        "dataset.options={num_images: 40, channels: 3, mode: pairs}",
    ]
    spec = load_spec("demo", changes)
    again = spec_of(yaml.safe_load(spec.to_yaml()), "again")
    assert again == spec
    assert again.digest == spec.digest
    assert again.to_yaml() == spec.to_yaml()


def test_equal_specs_have_one_digest_and_others_have_others(tmp_path):
    short = load_spec(write(tmp_path, MINIMAL))
    spelled_out = "name: tiny\ntrain: {seeds: [0], epochs: 100.0}\nmethod: sshn\n"
    assert load_spec(write(tmp_path, spelled_out)).digest == short.digest
    digests = {
        load_spec(write(tmp_path, MINIMAL), [change]).digest
        for change in ("name=other", "train.epochs=99", "explore.seed=1", "tracking=false")
    }
    assert len(digests | {short.digest}) == 5


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("explore.objectives", ("dice: maximize", "dice/structure_1: maximize")),
        ("model.choices", ("a: [b, c]", "interpolation: [linear, nearest]")),
    ],
)
def test_order_that_matters_counts_in_the_digest(key, values):
    first, second = values
    one, other = (
        load_spec("demo", [f"{key}={{{a}, {b}}}"]) for a, b in ((first, second), (second, first))
    )
    assert one == other
    assert one.digest != other.digest


def test_a_spec_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        load_spec("demo").train.epochs = 3


@pytest.mark.parametrize("name", ["demo", "sshn-oasis", "sshn-pets", "sshn-wbc", "sshn-wbc-levels"])
def test_presets_load_and_cost(name):
    assert name in preset_names()
    spec = load_spec(name)
    assert spec.name == name
    trainable = build_trainable(spec)
    costs = trainable.costs(dict.fromkeys(trainable.problem.space.conditioning.names, 0.5))
    assert costs["macs"] > 0
    assert costs["flops"] == 2 * costs["macs"]
    assert [objective.name for objective in check_spec(spec)] == ["dice", "macs"]


@pytest.mark.parametrize(
    ("text", "value"), [("0.6G", 6e8), ("250k", 250e3), ("1e9", 1e9), ("'4M'", 4e6), ("7", 7.0)]
)
def test_quantities_take_suffixes(text, value):
    spec = load_spec("demo", [f"explore.constraints={{max: {{macs: {text}}}}}"])
    assert spec.explore.constraints == {"max": {"macs": value}}


def test_prior_and_grid_take_suffixes():
    spec = load_spec("demo", ["train.prior={phi: ['1e-1', '0.0005k']}"])
    assert spec.train.prior == {"phi": (0.1, 0.5)}
    spec = load_spec("demo", ["baselines=[{method: fixed, grid: {phi: ['0.0005k']}}]"])
    assert spec.baselines[0].grid == {"phi": (0.5,)}


# Overrides


def test_set_takes_yaml_values_and_creates_sections(tmp_path):
    changes = ["train.seeds=[0,1]", "train.learning_rate=3e-3", "explore.constraints.max.macs=1M"]
    spec = load_spec(write(tmp_path, MINIMAL), [*changes, " name = other "])
    assert spec.name == "other"
    assert spec.train.seeds == (0, 1)
    assert spec.train.learning_rates == (0.003,)
    assert spec.explore.constraints == {"max": {"macs": 1e6}}


def test_set_replaces_a_list_and_the_last_one_wins():
    spec = load_spec("demo", ["baselines=[]", "train.epochs=3", "train.epochs=4"])
    assert spec.baselines == ()
    assert spec.train.epochs == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.epochs", r"--set train\.epochs: expected key=value, for example train\.epochs=200"),
        ("=3", "--set =3: expected key=value"),
        ("train.epochs=[1", r"--set train\.epochs=\[1: the value is not valid YAML"),
        ("name=2024-13-45", "the value is not valid YAML"),
        ("train.epochs=0x_", "the value is not valid YAML"),
        ("train.epochs=" + "[" * 3000, "the value is not valid YAML"),
        ("train.seeds.0=1", "expected a section, got|valid tuple"),
        ("name.first=a", r"--set name\.first=a: expected a section, got demo"),
        ("name.first.second=a", r"--set name\.first\.second=a: first does not hold keys"),
        ("baselines.0.method=film", r"0 does not hold keys"),
    ],
)
def test_malformed_set_is_refused(change, message):
    told = refusal(change)
    assert re.search(message, told)
    assert len(told) < 300


# What is refused


@pytest.mark.parametrize(
    ("change", "path", "known"),
    [
        (
            "epoch=1",
            "epoch",
            "name, method, dataset, model, registration, adaptation, generalization, train, "
            "explore, baselines",
        ),
        ("train.epoch=1", "train.epoch", "epochs, steps_per_epoch, batch_size, optimizer"),
        ("dataset.sizes=1", "dataset.sizes", "name, root, size, split_seed, options"),
        ("model.depth=1", "model.depth", "network, options, choices, width"),
        ("explore.points=1", "explore.points", "space, split, sampler, num_points"),
        ("baselines=[{method: film}, {name: x}]", "baselines.1.name", "method, grid"),
        ("1=2", "1", "name, method"),
        ("a..b=2", "a", "name, method"),
    ],
)
def test_unknown_key_is_named_with_its_path_and_the_known_ones(change, path, known):
    told = refusal(change)
    if "baselines" not in change:
        assert told.startswith(f"demo: {path}: unknown key; expected one of {known}")
    else:
        assert "baselines.1" in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # wrong types
        ("train.epochs=many", "train.epochs: .*valid integer.* got 'many'"),
        ("train.epochs=1.5", "train.epochs: .*integer.*fraction.* got '1.5'"),
        ("train.epochs=yes", "train.epochs: expected a number, got true"),
        ("train.seeds=[0, no]", r"train.seeds.1: expected a number, got false"),
        ("train.dice_share=on", "train.dice_share: expected a number, got true"),
        ("train.learning_rate=true", "train.learning_rate: expected a number, got true"),
        ("train.learning_rate=fast", "train.learning_rate: .*valid number.* got 'fast'"),
        ("explore.constraints={max: {macs: yes}}", "constraints.max.macs: expected a number"),
        ("dataset.options={num_images: true}", "dataset.options.num_images: expected a number"),
        ("dataset.options={num_images: [1]}", r"dataset.options.num_images: .*got '\[1\]'"),
        ("dataset.root=3", "dataset.root: .*valid string, got '3'"),
        ("train=3", "train: .*valid dictionary.* got '3'"),
        ("train=", "train: .*valid dictionary.* got 'None'"),
        ("train.seeds=0", "train.seeds: .*valid tuple, got '0'"),
        ("baselines={method: fixed}", "baselines: .*valid tuple"),
        ("tracking=maybe", "tracking: .*valid boolean.* got 'maybe'"),
        # out of range
        ("train.epochs=0", "train.epochs: .*greater than or equal to 1, got '0'"),
        ("train.epochs=10000000000", "train.epochs: .*less than or equal to 2147483648"),
        ("train.epochs=.inf", "train.epochs: .*finite number"),
        ("train.learning_rate=.nan", "train.learning_rate: .*finite number, got 'nan'"),
        ("train.learning_rate=0", "train.learning_rate: .*greater than 0"),
        ("train.learning_rate=[0.1, 2]", "train.learning_rate.1: .*less than or equal to 1"),
        ("train.learning_rate=[]", "train.learning_rate: "),
        ("train.betas=[0.9, 1]", "train.betas.1: .*less than 1, got '1'"),
        ("train.betas=[0.9]", "train.betas.1: missing"),
        ("train.seeds=[-1]", "train.seeds.0: .*greater than or equal to 0"),
        ("train.seeds=[]", "train.seeds: .*at least 1 item"),
        ("train.seeds=[1, 1]", "train: seeds must differ"),
        ("train.dice_share=1.1", "train.dice_share: .*less than or equal to 1, got '1.1'"),
        ("model.width=0", "model.width: .*greater than or equal to 1"),
        ("model.stages=1", "model.stages: .*greater than or equal to 2"),
        ("dataset.size=[4, 4]", "dataset.size.0: .*greater than or equal to 8"),
        ("dataset.size=[64]", "dataset.size: .*at least 2 items"),
        ("dataset.size=[]", "dataset.size: .*at least 2 items"),
        ("dataset.size=[8, 8, 8, 8]", "dataset.size: .*at most 3 items"),
        ("model.hidden_sizes=[8, 0]", "model.hidden_sizes.1: .*greater than or equal to 1"),
        ("explore.num_points=2000000", "explore.num_points: .*less than or equal to 1000000"),
        ("max_failures=-1", "max_failures: .*greater than or equal to 0"),
        # wrong words
        ("name=Demo run", "name: .*match pattern.* got 'Demo run'"),
        ("name=../up", "name: .*match pattern"),
        ("train.precision=fp8", "train.precision: .*'auto', 'float32' or 'bf16', got 'fp8'"),
        ("explore.split=test", "explore.split: .*'val', got 'test'"),
        ("explore.objectives={dice: up}", "objectives.dice: .*'maximize' or 'minimize'"),
        ("explore.constraints={maxx: {macs: 1}}", "constraints.maxx: .*'max' or 'min'"),
        ("explore.constraints={max: {macs: lots}}", r"constraints.max.macs: .*0\.6G, got 'lots'"),
        ("explore.constraints={max: {macs: 9e999}}", "constraints.max.macs: "),
        ("model.choices={interpolation: [linear]}", "model.choices.interpolation: .*at least 2"),
        ("model.choices={interpolation: [1, 2]}", "choices.interpolation.0: .*valid string"),
        # values that do not go together
        ("train.prior={phi: [0.5, 0.2]}", r"train: prior: .*\[low, high\] with low <= high"),
        ("train.prior={phi: [0.5]}", "train.prior.phi.1: missing"),
        ("train.prior={phi: 0.5}", "train.prior.phi: .*valid tuple"),
        ("explore.space={phi: [0.2, 0.2]}", "explore: space: .*low < high"),
        ("model.encoder_widths=[3, 4]", "model: encoder_widths and decoder_widths go together"),
        ("baselines=[{method: sshn}]", "baselines: each method once, got sshn, sshn"),
        ("baselines=[{method: film}, {method: film}]", "each method once, got sshn, film, film"),
        ("baselines=[{grid: {phi: [1]}}]", "baselines.0.method: missing; it is required"),
        (
            "baselines=[{method: fixed, grids: [{phi: [0]}], grid: {phi: [1]}}]",
            "grid and grids: one",
        ),
        ("baselines=[{method: fixed, grid: {phi: []}}]", "baselines.0.grid.phi: "),
    ],
)
def test_wrong_value_is_refused_with_its_place(change, message):
    told = refusal(change)
    assert told.startswith("demo: ")
    assert re.search(message, told)


def test_decoder_must_fit_its_encoder():
    changes = ["model.encoder_widths=[3, 4]", "model.decoder_widths=[3, 4]"]
    assert "decoder_widths must have one entry fewer than encoder_widths" in refusal(*changes)


def test_unknown_preset_lists_the_known_ones():
    told = refusal(source="demmo")
    assert told == "demmo: no such preset or file; presets: " + ", ".join(preset_names())


@pytest.mark.parametrize("text", ["", "3", "- name: tiny", "tiny", "null"])
def test_file_without_a_mapping_is_refused(tmp_path, text):
    assert "expected a mapping of keys such as name" in refusal(source=write(tmp_path, text))


def test_name_is_required(tmp_path):
    path = write(tmp_path, "method: sshn")
    assert refusal(source=path) == f"{path}: name: missing; it is required"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [tiny", "not valid YAML: .*line 1"),
        ("name: tiny\x00", "not valid YAML"),
        ("name: !!python/object/apply:os.getcwd []", "not valid YAML: .*constructor"),
        ("name: 2024-13-45", "not valid YAML: month must be in 1..12"),
        ("name: " + "1" * 5000, "not valid YAML: "),
        ("name: " + "[" * 5000, "nested too deeply"),
        ("? [a]\n: 1", "not valid YAML: .*unhashable"),
    ],
)
def test_broken_yaml_is_refused(tmp_path, text, message):
    assert re.search(message, refusal(source=write(tmp_path, text)))


def test_yaml_bomb_is_refused(tmp_path):
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 9)]
    told = refusal(source=write(tmp_path, "\n".join(lines)))
    assert f"expected at most {MAX_ALIASES} YAML aliases, got 72" in told


def test_a_few_aliases_are_fine(tmp_path):
    text = MINIMAL + "train: {seeds: &own [3]}\nbaselines: []\nexplore: {seed: 3}\n"
    assert load_spec(write(tmp_path, text)).train.seeds == (3,)


@pytest.mark.parametrize(
    ("text", "key"),
    [("name: other\n", "name"), ("train: {epochs: 1, seeds: [0], epochs: 2}\n", "epochs")],
)
def test_key_given_twice_is_refused(tmp_path, text, key):
    told = refusal(source=write(tmp_path, MINIMAL + text))
    assert re.search(rf"not valid YAML: the key {key} is given 2 times.*line \d", told)


def test_huge_file_is_refused_unread(tmp_path):
    path = write(tmp_path, "#" * (MAX_SPEC_BYTES + 1))
    assert f"expected at most {MAX_SPEC_BYTES} bytes, got {MAX_SPEC_BYTES + 1}" in refusal(
        source=path
    )


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = write(tmp_path, "name: tiny # größer", encoding="latin-1")
    assert "expected a readable YAML file in UTF-8" in refusal(source=path)


def test_folder_is_no_spec(tmp_path):
    assert "no such preset or file" in refusal(source=tmp_path)


# Mistakes that only the registries can tell


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "method=shn",
            "unknown method 'shn'; known: erm, film, .*sshn, .*stochastic, .*tent, voxelmorph",
        ),
        ("dataset.name=mnist", "unknown data set 'mnist'; known: .*synthetic"),
        (
            "explore.sampler=cma",
            "unknown explore.sampler 'cma'; known: adaptive, gp, grid, nsga2, random, sobol, tpe",
        ),
        (
            "registration.noise_scale=0.1",
            "registration: sshn registers nothing; leave the section out",
        ),
        (
            "baselines=[{method: voxelmorph, grid: {lambda: [0.1]}}]",
            "baselines: voxelmorph is for registration, sshn for segmentation; an exploration has",
        ),
        ("train.prior={phi: [0, 1.5]}", r"train\.prior: phi must be in \[0, 1\], got 1\.5"),
        ("train.prior={psi: [0, 1]}", r"train\.prior: unknown parameter 'psi'; known: phi"),
        ("train.prior={phi: [-0.1, -0.1]}", r"train\.prior: phi must be in \[0, 1\]"),
        ("explore.space={phi: [0, 2]}", r"explore\.space: phi must be in \[0, 1\]"),
        ("explore.space={psi: [0, 1]}", r"explore\.space: unknown parameter 'psi'"),
        ("baselines=[{method: fixed}]", "baselines: fixed needs grid, got None"),
        ("baselines=[{method: film, grid: {phi: [0.1]}}]", "film is amortised and takes no grid"),
        ("baselines=[{method: fixed, grid: {phi: [1.5]}}]", "baselines: fixed: phi must be in"),
        ("baselines=[{method: fixed, grid: {phi: [lots]}}]", "fixed: phi must be a number, got"),
        ("baselines=[{method: fixed, grid: {psi: [0.5]}}]", "baselines: fixed: expected values"),
        ("baselines=[{method: best}]", "unknown method 'best'"),
        ("model.network=vnet", "unknown model.network 'vnet'; known: fpn, pspnet"),
        (
            "model.options={depth: 3}",
            "model.options of unet: unknown option 'depth'; known: block, decoder_block",
        ),
        ("model.options={interpolation: cubic}", "model: unet: interpolation must be one of"),
        ("model.choices={interpolation: [linear, cubic]}", "must be one of .*, got 'cubic'"),
        ("model.choices={phi: [linear, cubic]}", "model: unet: parameter names must differ"),
        (
            "model.choices={depth: [a, b]}",
            "model.options of unet: unknown option 'depth'; known: block, decoder_block",
        ),
        (
            "model.choices={interpolation: [linear, nearest]}",
            "baselines: fixed: expected values for phi, interpolation, got phi",
        ),
        ("model.num_factors=3", "model.num_factors must be 1 or the number of downsampling steps"),
        ("explore.objectives={dize: maximize}", "unknown explore.objectives 'dize'; known: .*dice"),
        ("explore.objectives={macs: minimize, dice: maximize}", "the first must be a metric"),
        ("explore.constraints={min: {dize: 0.9}}", r"unknown explore\.constraints\.min 'dize'"),
        ("explore.constraints={min: {dice/foo: 0.9}}", "known: .*, dice/structure_1, dice/"),
        ("explore.constraints={max: {macs: 1}}", "relax the bounds on known costs"),
        ("baselines=[{method: fixed, grid: {phi: [0.1, 0.1]}}]", "got fixed-phi0.1-s0 twice"),
        ("baselines=[{method: fixed, grid: {phi: [0.3, 0.30000001]}}]", "first six digits"),
        ("train.learning_rate=[0.01, 0.01]", "got sshn-lr0.01-s0 twice"),
        ("train.prior={phi: [0.2, 0.2]}", r"explore\.space: needed, since a range of train\.prior"),
        ("dataset.options={channels: abc}", r"dataset\.options\.channels: expected a whole"),
        ("train.num_threads=4096", "4096 processors each do not fit on this machine"),
        ("train.gpus_per_worker=99", "99 GPUs each do not fit on this machine"),
    ],
)
def test_check_finds_it_before_anything_starts(change, message, monkeypatch):
    # other tests' Ray may be up, and a Ray that runs is asked itself
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(InputError, match=message):
        check_spec(load_spec("demo", [change]))


def test_choice_is_either_settled_or_open():
    changes = ["model.options={interpolation: linear}"]
    told = refusal(*changes, "model.choices={interpolation: [linear, nearest]}")
    assert "model: choices: interpolation is settled by options" in told


MODES = ["model.choices={interpolation: [linear, nearest]}", "baselines=[]"]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.timeout(60)  # gp fits
def test_every_sampler_explores_every_choice_of_a_model(sampler):
    spec = load_spec("demo", [*MODES, f"explore.sampler={sampler}", "explore.num_points=20"])
    source, space = sampler_of(spec, "sshn", check_spec(spec)), build_trainable(spec).problem.space
    asked = source.ask(12)
    source.tell(asked, [{"dice": setting["phi"], "macs": 1.0} for setting in asked])
    asked += source.ask(8)
    assert [space.validate(setting) for setting in asked] == asked
    assert {setting["interpolation"] for setting in asked} == {"linear", "nearest"}
    assert all(0 <= setting["phi"] <= 0.5 for setting in asked)


@pytest.mark.parametrize("section", ["train.prior", "explore.space"])
def test_category_has_no_range(section):
    with pytest.raises(InputError, match=f"{section}: interpolation must be one of linear, near"):
        check_spec(load_spec("demo", [*MODES, f"{section}={{interpolation: [0, 1]}}"]))


def test_one_layer_is_no_network():
    changes = ["model.encoder_widths=[4]", "model.decoder_widths=[]"]
    assert "model.encoder_widths: " in refusal(*changes)


def test_explored_ranges_are_the_priors_unless_narrowed():
    changes = ["model.num_factors=4", "baselines=[]", "explore.num_points=2"]
    prior = "{phi_0: [0, 0.5], phi_1: [0.1, 0.2], phi_2: [0, 1], phi_3: [0, 1]}"
    spec = load_spec(
        "demo", [*changes, f"train.prior={prior}", "explore.space={phi_2: [0.3, 0.4]}"]
    )
    corners = sampler_of(spec, "sshn", check_spec(spec)).ask(16)
    assert corners[0] == {"phi_0": 0.0, "phi_1": 0.1, "phi_2": 0.3, "phi_3": 0.0}
    assert corners[-1] == {"phi_0": 0.5, "phi_1": 0.2, "phi_2": 0.4, "phi_3": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dataset.options={images: 3}", r"dataset\.options of synthetic: .*'images'"),
        ("dataset.options={num_images: 0}", "num_images must be a whole number"),
        ("dataset.options={num_images: 2}", "split '.*' would be empty"),
        ("train.batch_size=1000", r"train\.batch_size: expected at most .* \d+; got 1000"),
        ("dataset.name=wbc", r"dataset\.root: wbc needs the folder of its files"),
    ],
)
def test_data_are_checked_before_anything_starts(change, message):
    with pytest.raises(InputError, match=message):
        load_data(load_spec("demo", ["dataset.size=[16,16]", change]))


@pytest.mark.parametrize(
    ("options", "size", "num_labels"),
    [
        ("{}", (160, 192), 24),
        ("{segmentation: 4}", (160, 192), 4),
        ("{files: volume}", (160, 192, 224), 35),
        ("{files: volume_2mm, segmentation: 4}", (80, 96, 112), 4),
    ],
)
def test_options_set_labels_and_default_size_before_any_file_is_read(options, size, num_labels):
    changes = ["dataset={name: oasis}", f"dataset.options={options}"]
    spec = load_spec("demo", changes)
    assert image_size(spec) == size
    model = build_trainable(spec).model
    assert (model.size, len(model.labels)) == (size, num_labels)
    assert image_size(load_spec("demo", [*changes, "dataset.size=[32,32]"])) == (32, 32)


def test_a_grid_method_cannot_be_explored():
    with pytest.raises(InputError, match="method: fixed has nothing to explore"):
        check_spec(load_spec("demo", ["method=fixed", "baselines=[]"]))


def test_a_method_without_settings_is_explored_at_its_only_one():
    alone = ["method=erm", "baselines=[]", "generalization.domains=[domain_0, domain_1]"]
    held_out = "train.grid.held_out=[domain_0, domain_1]"
    assert check_spec(load_spec("hyda-demo", [*alone, held_out]))


def test_objectives_of_the_spec_replace_the_problems():
    spec = load_spec("demo", ["explore.objectives={dice/structure_1: maximize, flops: minimize}"])
    names = [(objective.name, objective.direction) for objective in check_spec(spec)]
    assert names == [("dice/structure_1", "maximize"), ("flops", "minimize")]


def test_registration_that_was_written_out_is_built_again():
    spec = load_spec("hypermorph-demo")
    again = spec_of(yaml.safe_load(spec.to_yaml()), "again")
    assert repr(build_trainable(again)) == repr(build_trainable(spec))
    with pytest.raises(InputError, match=r"model\.width: registration has a network of its own"):
        build_trainable(load_spec("hypermorph-demo", ["model.width=8"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "model.width=8",
            "model.width: registration has a network of its own",
        ),
        ("train.prior={radius: [1, 4]}", "train.prior: radius is a window of similarity ncc"),
        ("train.prior={lambda: [0, 2]}", r"train.prior: lambda must be in \[0, 1\], got 2"),
        (
            "train.prior={phi: [0, 1]}",
            "train.prior: expected any of lambda, gamma, radius",
        ),
        ("registration.encoder_widths=[8, 8]", "registration: encoder_widths and decoder_widths"),
        ("registration.trained_labels=[a, a]", "registration: trained_labels: each label once"),
        ("registration.trained_labels=[liver]", "registration.trained_labels: liver is not one of"),
        ("dataset.size=[8, 64]", "dataset.size: expected at least 16 along each axis"),
        ("dataset.options.channels=3", "hypermorph: expected images of one channel, got 3"),
        ("explore.racing={}", "explore.racing: pairs share images"),
        (
            "baselines=[{method: fixed, grid: {phi: [0.1]}}]",
            "baselines: fixed is for segmentation, hypermorph for registration",
        ),
    ],
)
def test_a_registration_that_cannot_be_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        check_spec(load_spec("hypermorph-demo", [change]))


def test_a_baseline_may_train_for_another_time():
    spec = load_spec("hypermorph-demo")
    epochs = {
        trial.method: train_config(spec, build_trainable(spec, trial.method, trial.settled), trial)
        for trial in trials_of(spec, seeds=(0,), rates={"hypermorph": (1,), "voxelmorph": (1,)})
    }
    assert {method: config.epochs for method, config in epochs.items()} == {
        "hypermorph": 40,
        "voxelmorph": 20,
    }
