"""The model card of an exported network: what it is, what it was made from, and what it is not for.

In the form that Hugging Face reads: YAML between dashes, then Markdown. The code in it runs as it
stands, in the folder of the export; sections that a reader can most do without come last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from explorer.points import Point
from explorer.quantities import format_quantity
from explorer.specs import ExplorationSpec
from trainables.datasets.base import SPLIT_PERCENTAGES, DatasetSource

CARD_FILE = "README.md"
_TASK_TAGS = {"segmentation": "image-segmentation", "registration": "image-to-image"}
_METHOD_DEFAULT = "segmentation"


@dataclass(frozen=True)
class CardFacts:
    """What is told of an exported network.

    Attributes:
        description: what `network.json` holds.
        names: of its input and output.
        spec: of the exploration.
        source: of the data set.
        num_images: of the data set; None: not known.
        learning_rate: with which the weights were trained.
        validated: metrics on validation of this network's seed; None: not measured.
        tested: likewise on test.
        mean: the same setting over all seeds.
    """

    description: Mapping[str, Any]
    names: tuple[str, str]
    spec: ExplorationSpec
    source: DatasetSource
    num_images: int | None
    learning_rate: float
    validated: Point | None
    tested: Point | None
    mean: Point

    @property
    def task(self) -> str:
        """Segmentation or registration."""
        return str(self.description.get("task", _METHOD_DEFAULT))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input, (C, *spatial)."""
        takes = self.description["input"]
        return (int(takes["channels"]), *map(int, takes["size"]))

    @property
    def setting(self) -> str:
        """The conditioning in words."""
        values = self.description["conditioning"].items()
        return ", ".join(
            f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value}"
            for name, value in values
        )


def model_card(facts: CardFacts, differences: Mapping[str, float]) -> str:
    """The card as Markdown; `differences` of the programs to the network, by format."""
    front = yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{card_text(facts, differences)}"


def card_text(facts: CardFacts, differences: Mapping[str, float]) -> str:
    """The card without its front matter."""
    sections = [
        _title(facts),
        _results(facts),
        _costs(facts),
        _data(facts),
        _limits(facts),
        _interface(facts),
        _loading(facts, differences),
        _training(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts) -> dict[str, Any]:
    description, task = facts.description, _TASK_TAGS[facts.task]
    front: dict[str, Any] = {
        "library_name": "pareto-explorer",
        # whoever publishes the weights states theirs; that of the data is in the text
        "license": "unknown",
        "pipeline_tag": task,
        "tags": ["medical-imaging", facts.task, description["method"]],
    }
    results = [
        {
            "task": {"type": task},
            "dataset": {
                "name": description["dataset"],
                "type": description["dataset"],
                "split": split,
            },
            "metrics": [
                {"type": name, "value": value} for name, value in sorted(point.metrics.items())
            ],
        }
        for split, point in (("validation", facts.validated), ("test", facts.tested))
        if point is not None
    ]
    if results:
        front["model-index"] = [{"name": description["exploration_id"], "results": results}]
    return front


def _title(facts: CardFacts) -> str:
    told = facts.description
    is_amortised = not any(
        baseline.method == told["method"] and baseline.every_grid
        for baseline in facts.spec.baselines
    )
    made = (
        f"One setting of a model that was trained once over all of them (`{told['method']}`): its "
        f"weights are those for **{facts.setting}**, and what predicted them is left out."
        if is_amortised
        else f"A network that was trained for **{facts.setting}** (`{told['method']}`)."
    )
    return (
        f"# {told['exploration_id']}: {facts.task} at {facts.setting}\n\n{made} Architecture "
        f"`{told['architecture']}`; seed {told['seed']}, the best on validation of "
        f"{len(facts.mean.trial_ids)} trained (`{told['trial_id']}`)."
    )


def _results(facts: CardFacts) -> str:
    columns = (facts.validated, facts.tested)
    if facts.validated is None and facts.tested is None:
        return (
            "## Results\n\n**Not measured**: this setting was not evaluated, neither on validation "
            "nor on test. The exploration's table holds the settings that were."
        )
    names = sorted({name for point in columns if point for name in point.metrics})
    rows = [
        f"| {name} | {' | '.join(_value(point, name) for point in columns)} | "
        f"{_mean(facts.mean.metrics, facts.mean.seed_sd, name)} | "
        f"{_mean(facts.mean.test_metrics, {}, name)} |"
        for name in names
    ]
    seeds = facts.mean.num_seeds
    over = f"mean of {seeds} seeds" if seeds > 1 else "one seed"
    return "\n".join(
        [
            "## Results",
            "",
            "Weights were chosen on validation, ± standard error over its images; test was "
            "evaluated once, after that. In brackets the standard deviation over seeds.",
            "",
            f"| metric | validation | test | validation, {over} | test, {over} |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _value(point: Point | None, name: str) -> str:
    if point is None or name not in point.metrics:
        return "not measured"
    error = point.standard_errors.get(name)
    return _number(point.metrics[name]) + (f" ± {_number(error)}" if error is not None else "")


def _mean(values: Mapping[str, float], spread: Mapping[str, float], name: str) -> str:
    if name not in values:
        return "not measured"
    return _number(values[name]) + (f" ({_number(spread[name])})" if name in spread else "")


def _number(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e3 or value == 0 else f"{value:.3g}"


def _costs(facts: CardFacts) -> str:
    costs = facts.description["costs"]
    units = {
        "macs": "multiply-adds",
        "flops": "floating-point operations, two per multiply-add",
        "parameters": "weights and biases",
        "activation_bytes": "bytes of activations at the peak, float32",
    }
    rows = [
        f"| {name} | {format_quantity(costs[name], digits=4)} | {unit} |"
        for name, unit in units.items()
        if name in costs
    ]
    one = "pair" if facts.task == "registration" else "image"
    return "\n".join([f"## Cost of one {one}", "", "| | | |", "|---|---|---|", *rows])


def _data(facts: CardFacts) -> str:
    source, dataset = facts.source, facts.spec.dataset
    images = f"{facts.num_images} images, " if facts.num_images else ""
    shares = ", ".join(f"{share} % {name}" for name, share in SPLIT_PERCENTAGES.items())
    options = f"; options {dict(dataset.options)}" if dataset.options else ""
    return "\n".join(
        [
            "## Data",
            "",
            f"- **Data set**: `{dataset.name}`: {source.summary}{options}",
            f"- **Licence of the data**: {source.licence or 'not stated; ask its authors'}",
            *([f"- **To be cited**: {source.citation}"] if source.citation else []),
            f"- **Split**: {images}{shares}, seed {dataset.split_seed}; people kept whole, "
            f"stratified by domain",
            "",
            "The licence of these weights is for whoever publishes them to state, within that of "
            "the data.",
        ]
    )


def _limits(facts: CardFacts) -> str:
    return (
        "## Intended use and limits\n\n"
        "For research on methods: comparing accuracy and cost on data like those above. **Not a "
        "medical device**: not validated for, and not to be used in, diagnosis, treatment or any "
        "decision about a person. Nothing is known of scanners, stains, species, ages or diseases "
        "that the data set does not hold, nor of other image sizes or intensities than those "
        "below; the metrics above are means, and single images can fail without a sign."
    )


def _interface(facts: CardFacts) -> str:
    told, (given, result) = facts.description, facts.names
    takes, gives = told["input"], told["output"]
    size = " × ".join(map(str, takes["size"]))
    order = f", in the order {takes['order']}" if "order" in takes else ""
    channels = "channel" if takes["channels"] == 1 else "channels"
    if "labels" in gives:
        labels = ", ".join(f"{index} {name}" for index, name in enumerate(gives["labels"]))
        meaning = f"one channel of logits per label ({labels}); the largest one is the label"
    else:
        meaning = f"{gives['displacement']}, one channel per axis, in the order of the axes"
    return "\n".join(
        [
            "## Input and output",
            "",
            f"- `{given}`: (batch, {takes['channels']}, {size}), {takes['channels']} {channels}"
            f"{order}; {takes['intensities']}",
            f"- `{result}`: {meaning}",
        ]
    )


def _loading(facts: CardFacts, differences: Mapping[str, float]) -> str:
    parts = ["## Loading", "In the folder of this file.", _block(_safetensors(facts))]
    for name, difference in differences.items():
        text, code = _PROGRAMS[name]
        given, result = facts.names
        parts += [
            f"{text} Its outputs on random images differ from those of the network above by at "
            f"most {difference:.2g}.",
            _block([*code[:-1], *_example(facts), code[-1].format(given=given, result=result)]),
        ]
    return "\n\n".join(parts)


def _safetensors(facts: CardFacts) -> Iterator[str]:
    given, result = facts.names
    yield "import torch"
    yield "from explorer.networks import load_network  # of pareto-explorer; executes nothing"
    if facts.task == "registration":
        yield "from trainables.deformations import warp"
    yield ""
    yield 'network = load_network(".")'
    yield from _example(facts)
    yield "with torch.inference_mode():"
    yield f"    {result} = network({given})"
    if facts.task == "registration":
        yield f"    moved = warp({given}[:, :1], {result})"
    else:
        yield f"    labels = {result}.argmax(1)"


def _example(facts: CardFacts) -> Iterator[str]:
    yield f"{facts.names[0]} = torch.zeros(1, {', '.join(map(str, facts.shape))})"


_PROGRAMS: dict[str, tuple[str, Sequence[str]]] = {
    "pt2": (
        "With torch alone. `torch.export.load` unpickles parts of the file, so that a file that "
        "was tampered with can execute code: load only what comes from somebody you trust.",
        (
            "import torch",
            "",
            'program = torch.export.load("network.pt2").module()',
            "{result} = program({given})",
        ),
    ),
    "onnx": (
        "With onnxruntime, and anything else that reads ONNX.",
        (
            "import onnxruntime",
            "import torch",
            "",
            'session = onnxruntime.InferenceSession("network.onnx")',
            '({result},) = session.run(None, {{"{given}": {given}.numpy()}})',
        ),
    ),
}


def _block(lines: Iterator[str] | Sequence[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _training(facts: CardFacts) -> str:
    spec, told = facts.spec, facts.description
    sections = ["model", "train"] + ["registration"] * (facts.task == "registration")
    settings: dict[str, Any] = spec.model_dump(mode="json", include=set(sections))
    settings["train"]["learning_rate"] = facts.learning_rate
    settings["train"]["seeds"] = [told["seed"]]
    own = [baseline.epochs for baseline in spec.baselines if baseline.method == told["method"]]
    if own and own[0] is not None:
        settings["train"]["epochs"] = own[0]
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return f"## Training\n\nExploration `{told['exploration_id']}`:\n\n```yaml\n{text}```"
