"""The specification of an exploration: YAML in, checked data out.

The spec is the whole truth of a run: two runs of one spec give the same table.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    model_validator,
)

from explorer.extensions import Extensions
from explorer.places import Place
from explorer.quantities import parse_quantity
from search_spaces.errors import InputError

MAX_SPEC_BYTES = 256 * 1024
MAX_ALIASES = 20
# what pydantic adds to the path of a value that may be of several types
BRANCHES = frozenset({"float", "int", "str", "constrained-float", "constrained-int"})


def _quantity(value: object) -> object:
    try:
        return parse_quantity(value) if isinstance(value, str) else value
    except InputError as error:
        raise ValueError(str(error)) from None


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {str(value).lower()}")
    return value


def _quantity_or_text(value: object) -> object:
    try:
        return _quantity(value)
    except ValueError:
        return value


# YAML reads yes, no, on and off as booleans, and Python takes those for numbers
Number = Annotated[float, BeforeValidator(_no_boolean), Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_no_boolean), Field(ge=0, le=2**31)]
Count = Annotated[Whole, Field(ge=1)]
Quantity = Annotated[Number, BeforeValidator(_quantity)]
Value = Annotated[Number | str, BeforeValidator(_quantity_or_text)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Range = tuple[Quantity, Quantity]
Grid = dict[str, Annotated[tuple[Value, ...], Field(min_length=1)]]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Momentum = Annotated[Number, Field(ge=0, lt=1)]
LearningRate = Annotated[Number, Field(gt=0, le=1)]
Width = Annotated[Whole, Field(ge=1, le=4096)]
Widths = tuple[Width, ...]
Size = Annotated[
    tuple[Annotated[Whole, Field(ge=8, le=4096)], ...], Field(min_length=2, max_length=3)
]


class Section(BaseModel):
    """A part of the spec: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DatasetSpec(Section):
    """Which images: `options` go to the data set's loader.

    Of images that take more than `memory_bytes`, by default a quarter of this machine's memory,
    only those of the batch are read, from where they are kept decoded (`EXPLORER_CACHE_DIR`).
    """

    name: str = "synthetic"
    root: str | None = None
    size: Size | None = None
    split_seed: Whole = 0
    options: dict[str, Annotated[int | float | str, BeforeValidator(_no_boolean)]] = {}
    memory_bytes: Annotated[Quantity, Field(gt=0)] | None = None


class ModelSpec(Section):
    """The primary network and how its weights are conditioned.

    `options` go to the network's constructor. `choices` do too, one value of each at a time: they
    are conditionings, such as `{interpolation: [linear, nearest]}`, drawn evenly in training.
    `encoder_widths` and `decoder_widths` together replace `width`.
    """

    network: str = "unet"
    options: dict[str, Any] = {}
    choices: dict[str, Annotated[tuple[str, ...], Field(min_length=2)]] = {}
    width: Width = 16
    stages: Annotated[Whole, Field(ge=2, le=8)] = 5
    encoder_widths: Annotated[Widths, Field(min_length=2)] | None = None
    decoder_widths: Annotated[Widths, Field(min_length=1)] | None = None
    num_factors: Annotated[Whole, Field(ge=1, le=7)] = 1
    rounding: Literal["round", "ceil"] = "round"
    encoding: Literal["complement", "plain", "fourier"] = "complement"
    hidden_sizes: Widths = (10, 16)
    initialisation: Literal["residual", "kaiming", "kaiming_fan_out", "variance"] = "residual"
    activation: Literal["leaky_relu", "relu", "relu_tanh"] = "leaky_relu"

    @model_validator(mode="after")
    def _widths_match(self) -> ModelSpec:
        encoder, decoder = self.encoder_widths, self.decoder_widths
        if (encoder is None) != (decoder is None):
            raise ValueError("encoder_widths and decoder_widths go together")
        if encoder is not None and decoder is not None and len(decoder) != len(encoder) - 1:
            raise ValueError("decoder_widths must have one entry fewer than encoder_widths")
        return self

    @model_validator(mode="after")
    def _choices_are_open(self) -> ModelSpec:
        for name in self.choices.keys() & self.options.keys():
            raise ValueError(f"choices: {name} is settled by options; leave it out of one of them")
        return self


class RegistrationSpec(Section):
    """What registration methods train; others leave it alone.

    Of `hypermorph` the conditionings are those of `train.prior`: `lambda`, `gamma` or `radius`;
    those that are none keep `weight`, `gamma` and `radius`. `sshn-registration` and what it is
    compared with have the network of the section `model`, and minimise the mean squared difference
    and `smoothness` times the total variation of the displacement. `pairs` is a table of scans that
    belong together; by default all pairs of a split count (`across_domains`: of two scanners or
    contrasts), and `num_pairs` of them, drawn once, on val and test.
    """

    similarity: Literal["mse", "ncc", "nmi"] = "mse"
    noise_scale: Annotated[Number, Field(gt=0)] = 0.05
    weight: Fraction = 0.5
    gamma: Fraction = 0.0
    radius: Annotated[Whole, Field(ge=1, le=15)] = 4
    trained_labels: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    encoder_widths: Annotated[Widths, Field(min_length=2)] = (16, 32, 32, 32)
    decoder_widths: Annotated[Widths, Field(min_length=2)] = (32, 32, 32, 32)
    final_widths: Widths = (32, 16, 16)
    num_integration_steps: Annotated[Whole, Field(le=16)] = 7
    shrinkage: Fraction = 0.0
    smoothness: Annotated[Number, Field(ge=0)] = 0.001
    num_pairs: Count = 100
    across_domains: bool = False
    pairs: str | None = None

    @model_validator(mode="after")
    def _widths_match(self) -> RegistrationSpec:
        if len(self.encoder_widths) != len(self.decoder_widths):
            raise ValueError("encoder_widths and decoder_widths must have as many entries")
        labels = self.trained_labels or ()
        if len(set(labels)) != len(labels):
            raise ValueError("trained_labels: each label once")
        return self


class PretrainingSpec(Section):
    """How the network of the source domain is trained, once for all methods and each seed."""

    epochs: Count = 100
    learning_rate: LearningRate = 1e-2


class AdaptationSpec(Section):
    """How a network is adapted to another domain; methods of other tasks leave it alone.

    From where to where is in `train.grid`: every `pair` of domains SOURCE-to-TARGET, and every
    `amount` of annotated images of the target that are trained on (0 for all; some of a person
    before those of the next). Points are means over pairs, as over seeds. lambda is a
    conditioning of `spottunet-amortised` and in the grid of `spottunet`; `temperature` may be in
    its grid too. `tolerance` is that of surface Dice: in mm where the data set knows its spacing,
    else in pixels.
    """

    temperature: Annotated[Number, Field(ge=1e-3, le=100)] = 0.1
    regulariser: Literal["mean", "sum"] = "mean"
    num_levels: Annotated[Whole, Field(ge=1, le=6)] = 3
    policy_widths: Annotated[Widths, Field(min_length=2)] = (32, 64, 128, 256)
    policy_rate: Annotated[Number, Field(gt=0)] = 10.0
    policy_weight_decay: Annotated[Number, Field(ge=0)] = 1e-3
    conditioner: Literal["monotone", "film", "hyper"] = "monotone"
    tolerance: Annotated[Number, Field(gt=0, le=50)] = 1.0
    pretraining: PretrainingSpec = PretrainingSpec()


class ReaderSpec(Section):
    """What reads the domain of an image, and how its losses weigh beside the task's.

    `network` is a name in `ENCODERS`, with its `options`. For the share `pretraining` of the epochs
    it is trained alone. The weights are those of the cross-entropy of domains, of the
    multi-similarity loss and of the mean square of generated weights. With `learns_task` the loss
    of the task trains the encoder too. Where embeddings are averaged over a group, images of one
    domain that are asked about together, it is over `group_size` of them at most.
    """

    network: str = "small"
    options: dict[str, Any] = {"widths": [8, 16, 32]}
    embedding_size: Count = 16
    pretraining: Annotated[Number, Field(ge=0, lt=1)] = 1 / 6
    domain_weight: Annotated[Number, Field(ge=0)] = 1.0
    similarity_weight: Annotated[Number, Field(ge=0)] = 1.0
    generated_weight: Annotated[Number, Field(ge=0)] = 1e-3
    learns_task: bool = False
    group_size: Count = 32


class ConfusionSpec(Section):
    """MDAN: weight of its adversaries (mu), and how sharply the worst source counts (gamma)."""

    weight: Annotated[Number, Field(ge=0)] = 1e-2
    sharpness: Annotated[Number, Field(gt=0)] = 10.0


class EntropySpec(Section):
    """TENT: steps of Adam for each batch of images; several findings only where it is allowed."""

    num_steps: Count = 10
    step_size: LearningRate = 1e-4
    batch_size: Count = 32
    allows_findings: bool = False


class GeneralizationSpec(Section):
    """How whole images of domains that training never saw are predicted; others leave it alone.

    What is predicted is by default the first that the data set has of `class`, `findings` and
    `target`. `domains` are those that take part, by default all that the data set has. Which of
    them is held out is in `train.grid`: `{held_out: [A, B]}`, or `none`, which trains on all of
    them. Points are means over the domains held out, as over seeds. `network` is a name in
    `ENCODERS` with its `options`, and the head's layers with numbers in `external`, counted from 1,
    have weights generated by `hyda`; `train.grid` may have several, `{external: [none,
    layer1-layer2]}`, and the numbers of `reader`.
    """

    predicts: Literal["class", "findings", "target"] | None = None
    domains: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    network: str = "small"
    options: dict[str, Any] = {}
    head_widths: Widths = (64,)
    external: tuple[Count, ...] = (2,)
    bound: Annotated[Number, Field(gt=0)] | None = 5.0
    weight_decay: Annotated[Number, Field(ge=0)] = 1e-2
    reader: ReaderSpec = ReaderSpec()
    mdan: ConfusionSpec = ConfusionSpec()
    tent: EntropySpec = EntropySpec()


class TrainSpec(Section):
    """How every model of the exploration is trained, baselines alike.

    A list of learning rates is a choice: each method takes the one that is best on the validation
    split, trained with the first seed. Every method is trained at each value of the training
    parameters of `grid` that concern it (see `adaptation` and `generalization`); a baseline's own
    grid may name others of them. `precision: auto` is settled when the exploration begins: bf16
    where the machine computes in it, float32 elsewhere, where bf16 is several times slower.
    `prior_power` above 1 draws more small factors, `draws: common` one share of the ranges for all
    factors, `distillation` is the share of the loss that is agreement with the largest factors'
    network (see `search_spaces.rescaling.PARAMETERS`; for networks over rescaling factors alone).
    `memory_bytes` is what one training (one worker of it) may take, by default its share of the
    machine's; networks over rescaling factors get a smaller batch where theirs would not fit.
    """

    epochs: Count = 100
    steps_per_epoch: Count | None = None
    batch_size: Count = 16
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: LearningRate | Annotated[tuple[LearningRate, ...], Field(min_length=1)] = 3e-3
    betas: tuple[Momentum, Momentum] = (0.9, 0.99)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    max_grad_norm: Annotated[Number, Field(gt=0)] | None = None
    prior: dict[str, Range] = {"phi": (0.0, 0.5)}
    endpoint_share: Fraction = 0
    prior_power: Annotated[Number, Field(ge=0.1, le=10)] = 1.0
    draws: Literal["separate", "common"] = "separate"
    distillation: Fraction = 0
    grid: Grid = {}
    dice_share: Fraction = 0.5
    seeds: Annotated[tuple[Whole, ...], Field(min_length=1)] = (0,)
    precision: Literal["auto", "float32", "bf16"] = "float32"
    channels_last: bool = True
    augment: tuple[Literal["flip", "transpose"], ...] = ("flip", "transpose")
    validate_every: Count | None = None
    checkpoint_every: Count | None = None
    patience: Count | None = None
    keep: Literal["best", "last"] = "best"
    num_workers: Whole = 0
    num_threads: Count = 1
    memory_bytes: Annotated[Quantity, Field(gt=0)] | None = None
    gpus_per_worker: Annotated[Number, Field(ge=0)] = 0

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The candidates, one or several."""
        rates = self.learning_rate
        return rates if isinstance(rates, tuple) else (rates,)

    @model_validator(mode="after")
    def _seeds_differ(self) -> TrainSpec:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must differ")
        if any(low > high for low, high in self.prior.values()):
            raise ValueError("prior: each range must be [low, high] with low <= high")
        return self


class RacingSpec(Section):
    """When the evaluation of a setting may stop: see `explorer.racing`."""

    block_size: Count = 8
    confidence: Annotated[Number, Field(gt=0.5, lt=1)] = 0.95
    margin: Annotated[Number, Field(ge=0)] = 1e-4


class ExploreSpec(Section):
    """How the frozen models are asked.

    `space` narrows the explored ranges; they default to the prior's. `sampler` is a name in
    `SAMPLERS`; every combination of `settings` is evaluated beside what it asks for, such as those
    of a baseline's grid: `{lambda: [0, 0.005]}`. `num_points` is per parameter for `grid`, in all
    for other samplers. `batch_size` is settings per chunk of work; by default few for a sampler
    that learns from what it is told, else as many as keep the workers busy. `constraints` are
    bounds such as
    `{max: {macs: 0.6G}, min: {dice: 0.9}}`. With `racing` (`{}` for its defaults) a setting that
    cannot be on the front any more is given up before its last image: for search, not for tables.
    `precision: bf16` gives way to float32 where it moves a metric by 0.001 or more.
    """

    space: dict[str, Range] | None = None
    split: Literal["val"] = "val"
    sampler: str = "grid"
    num_points: Annotated[Whole, Field(ge=1, le=1_000_000)] = 51
    settings: Grid = {}
    batch_size: Count | None = None
    num_workers: Whole = 2
    objectives: dict[str, Literal["maximize", "minimize"]] | None = None
    constraints: dict[Literal["max", "min"], dict[str, Quantity]] = {}
    racing: RacingSpec | None = None
    precision: Literal["float32", "bf16"] = "float32"
    seed: Whole = 0

    @model_validator(mode="after")
    def _ranges_have_width(self) -> ExploreSpec:
        if self.space and any(low >= high for low, high in self.space.values()):
            raise ValueError("space: each range must be [low, high] with low < high")
        return self


class BaselineSpec(Section):
    """A method to compare with: a grid of training parameters, or none when it is amortised.

    `grids` are several, such as a fine one at one amount of data and a coarse one at others.
    `epochs` where it trains for another time than the exploration's own method.
    """

    method: str
    grid: Grid | None = None
    grids: tuple[Annotated[Grid, Field(min_length=1)], ...] = ()
    epochs: Count | None = None

    @model_validator(mode="after")
    def _one_or_several(self) -> BaselineSpec:
        if self.grid is not None and self.grids:
            raise ValueError("grid and grids: one of them")
        return self

    @property
    def every_grid(self) -> tuple[Grid, ...]:
        """One grid or several; none where the method has no training parameter of its own."""
        return (self.grid,) if self.grid else self.grids


class ExplorationSpec(Section):
    """One exploration."""

    name: Name
    method: str = "sshn"
    dataset: DatasetSpec = DatasetSpec()
    model: ModelSpec = ModelSpec()
    registration: RegistrationSpec = RegistrationSpec()
    adaptation: AdaptationSpec = AdaptationSpec()
    generalization: GeneralizationSpec = GeneralizationSpec()
    train: TrainSpec = TrainSpec()
    explore: ExploreSpec = ExploreSpec()
    baselines: tuple[BaselineSpec, ...] = ()
    max_failures: Whole = 0
    tracking: bool = True
    _extensions: Extensions = PrivateAttr(default_factory=Extensions)

    @property
    def extensions(self) -> Extensions:
        """What its names may stand for beside what is shipped and installed."""
        return self._extensions

    def extended(self, extensions: Extensions) -> ExplorationSpec:
        """The same spec with names of its own."""
        spec = self.model_copy()
        spec._extensions = extensions
        return spec

    @model_validator(mode="after")
    def _methods_differ(self) -> ExplorationSpec:
        methods = [self.method, *(baseline.method for baseline in self.baselines)]
        if len(set(methods)) != len(methods):
            raise ValueError(f"baselines: each method once, got {', '.join(methods)}")
        return self

    @property
    def digest(self) -> str:
        """The same for equal specs; the order of objectives and choices counts, which have one."""
        data = self.model_dump(mode="json")
        for section, key in (("explore", "objectives"), ("model", "choices")):
            mapping = data[section][key] or {}
            if list(mapping) != sorted(mapping):
                data[section][key] = list(mapping.items())
        text = json.dumps(data, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """The spec with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def preset_names() -> list[str]:
    """Names of the shipped explorations."""
    folder = resources.files("explorer") / "presets"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load_spec(source: str | Place, overrides: Sequence[str] = ()) -> ExplorationSpec:
    """Read a shipped preset or a YAML file.

    Args:
        source: a preset's name, the path of a YAML file, or - for standard input.
        overrides: `dotted.key=value` with values in YAML.

    Raises:
        InputError: unknown preset, unreadable or oversized file, unknown key, wrong value.
    """
    name = str(source)
    if name in preset_names():
        text = (resources.files("explorer") / "presets" / f"{name}.yaml").read_text()
    elif name == "-":
        name, text = "standard input", _read_input()
    else:
        text = _read_file(Path(source) if isinstance(source, str) else source, name)
    data = _parse(text, name)
    for override in overrides:
        _apply(data, override)
    return spec_of(data, name)


def spec_of(data: Mapping[str, Any], place: str) -> ExplorationSpec:
    """Check plain data; an error names its place, the key's path and what was expected."""
    try:
        return ExplorationSpec.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{place}: {_message(error)}") from None


def _read_file(path: Place, name: str) -> str:
    if not path.is_file():
        known = ", ".join(preset_names())
        raise InputError(f"{name}: no such preset or file; presets: {known}")
    try:
        size = path.stat().st_size
        if size > MAX_SPEC_BYTES:
            raise InputError(f"{name}: expected at most {MAX_SPEC_BYTES} bytes, got {size}")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: expected a readable YAML file in UTF-8: {error}") from error


def _read_input() -> str:
    data = sys.stdin.buffer.read(MAX_SPEC_BYTES + 1)
    if len(data) > MAX_SPEC_BYTES:
        raise InputError(f"standard input: expected at most {MAX_SPEC_BYTES} bytes, got more")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: expected YAML in UTF-8: {error}") from error


class _SpecLoader(yaml.SafeLoader):
    """Plain data alone; a key that is given twice is refused, where YAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, count in Counter(keys).items():
            if count > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {str(key)[:80]} is given {count} times",
                    problem_mark=node.start_mark,
                )
        return super().construct_mapping(node, deep)


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        tokens = yaml.scan(text, Loader=yaml.SafeLoader)
        num_aliases = sum(isinstance(token, yaml.AliasToken) for token in tokens)
        if num_aliases > MAX_ALIASES:
            raise InputError(
                f"{name}: expected at most {MAX_ALIASES} YAML aliases, got {num_aliases}"
            )
        data = yaml.load(text, Loader=_SpecLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that is none
        detail = " ".join(str(error).split())
        raise InputError(f"{name}: not valid YAML: {detail}") from None
    except RecursionError:
        raise InputError(f"{name}: nested too deeply for a spec") from None
    if not isinstance(data, dict):
        raise InputError(f"{name}: expected a mapping of keys such as name, method, dataset, train")
    return data


def _apply(data: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    place = f"--set {override[:80]}"
    if not separator or not path.strip():
        raise InputError(f"{place}: expected key=value, for example train.epochs=200")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"{place}: the value is not valid YAML") from None
    *parents, last = path.strip().split(".")
    target: Any = data
    for key in parents:
        target = target.setdefault(key, {}) if isinstance(target, dict) else None
        if target is None:
            raise InputError(f"{place}: {key} does not hold keys")
    if not isinstance(target, dict):
        raise InputError(f"{place}: expected a section, got {str(target)[:80]}")
    target[last] = value


def _message(error: ValidationError) -> str:
    """The first mistake in one line: where, what was expected, what came."""
    mistakes = error.errors()
    # of a union's branches the deepest says most
    first = max(
        mistakes, key=lambda e: len(e["loc"]) if e["loc"][:1] == mistakes[0]["loc"][:1] else 0
    )
    path = ".".join(str(part) for part in first["loc"] if not _is_branch(part))
    where = f"{path}: " if path else ""
    if first["type"] == "extra_forbidden":
        known = ", ".join(_known_keys(first["loc"][:-1]))
        return f"{where}unknown key; expected one of {known}"
    if first["type"] == "missing":
        return f"{where}missing; it is required"
    came = "" if first["type"] == "value_error" else f", got {str(first['input'])[:80]!r}"
    return f"{where}{first['msg'].removeprefix('Value error, ')}{came}"


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and ("[" in part or part in BRANCHES)


def _known_keys(path: Sequence[int | str]) -> list[str]:
    model: Any = ExplorationSpec
    for part in path:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        model = BaselineSpec if part == "baselines" else annotation
    return list(model.model_fields)
