"""Prediction of whole images in domains that training never saw.

HyDA's domain encoder is trained by the loss of domains alone (eq. 5, and the authors' program), or
by that of the task too (`learns_task`). Heads have no dropout, which the authors' for ages has.

The methods differ in what they do about the domain: nothing (`erm`), generate part of the head from
what an encoder reads of it (`hyda`), learn features that do not tell it (`mdan`), or go on learning
from the images that are asked about (`tent`).

Sources: "HyDA: Hypernetworks for Test Time Domain Adaptation in Medical Imaging Analysis"; Zhao et
al. (2018), "Adversarial Multiple Source Domain Adaptation"; Wang et al. (2021), "Tent: Fully
Test-Time Adaptation by Entropy Minimization", arXiv:2006.10726.
Shapes: B images, k outputs, S source domains; values (B, 1 + v) of images are the position of their
domain and then what is predicted: a class (v = 1), findings (v = k), or a number (v = 1).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.errors import InputError, unknown_name
from search_spaces.generalization import (
    GROUP,
    OWN,
    PARAMETERS,
    embedding_space,
    ends_of,
    generalization_problem,
    line_names,
)
from search_spaces.problem import Objective
from search_spaces.space import Config, SearchSpace
from trainables.base import Arrays, Draws, ParameterGroup, Stage, Trainable
from trainables.cost import Size, costs, traced
from trainables.metrics.classification import auc_parts, mean_of_columns, recall_parts
from trainables.networks.hyda import (
    ConditionedNetwork,
    DomainReader,
    Head,
    Mix,
    Outputs,
    Reading,
)
from trainables.networks.image_encoders import ENCODERS, NORMALISATIONS, skeleton
from trainables.train_loop import evaluation_batch_size

Predicted = Literal["class", "findings", "target"]
Approach = Literal["none", "read", "confuse", "entropy"]
NO_DOMAIN = "none"  # held out: every domain is a source
TRAIN_PART = 0  # of `Arrays.folds`, the split that an image would be in
TEST_PART = 2
DOMAINS, TASK = "domains", "task"  # stages
_NUMBERS = {1: "one", 2: "two"}
OBJECTIVES: dict[Predicted, Objective] = {
    "class": Objective("balanced_accuracy", "maximize"),
    "findings": Objective("auc", "maximize"),
    "target": Objective("mae", "minimize"),
}


@dataclass(frozen=True)
class GeneralizationModel:
    """The networks, their losses, and what is known of the data.

    Attributes:
        channels: C of an image.
        size: spatial size of the images.
        domains: names, in the order in which values number them.
        num_sources: S, those that are trained on.
        predicts: what.
        names: of the classes, of the findings, or of the one target.
        unit: of the target.
        backbone: a name in `ENCODERS`, and its options in `backbone_options`.
        head_widths: of the hidden layers between features and outputs.
        reader: of the domain, a name in `ENCODERS`, and its options in `reader_options`.
        external: numbers of the head's layers, from 1, whose weights are generated.
        embedding_size: d, from which they are.
        bound: of generated weights.
        domain_weight: of the cross-entropy of source domains in the loss.
        similarity_weight: of the multi-similarity loss of features and of embeddings.
        generated_weight: of the mean square of generated weights.
        weight_decay: of everything that is trained.
        reader_share: of the epochs, in which the domain classifier alone is trained.
        learns_task: the loss of the task trains the domain encoder too.
        group_size: images whose embeddings are averaged, where they are, at most.
        confusion_weight: mu of MDAN.
        sharpness: gamma of MDAN, how far the source that does worst counts most.
        num_steps: of TENT for each batch.
        step_size: of TENT.
        adapted_batch_size: images of each of TENT's batches.
        allows_findings: TENT may be asked of findings.
    """

    channels: int
    size: Size
    domains: tuple[str, ...]
    num_sources: int
    predicts: Predicted
    names: tuple[str, ...]
    unit: str = ""
    backbone: str = "small"
    backbone_options: tuple[tuple[str, Any], ...] = ()
    head_widths: tuple[int, ...] = (64,)
    reader: str = "small"
    reader_options: tuple[tuple[str, Any], ...] = (("widths", (8, 16, 32)),)
    external: tuple[int, ...] = (2,)
    embedding_size: int = 16
    bound: float | None = 5.0
    domain_weight: float = 1.0
    similarity_weight: float = 1.0
    generated_weight: float = 1e-3
    weight_decay: float = 1e-2
    reader_share: float = 1 / 6
    learns_task: bool = False
    group_size: int = 32
    confusion_weight: float = 1e-2
    sharpness: float = 10.0
    num_steps: int = 10
    step_size: float = 1e-4
    adapted_batch_size: int = 32
    allows_findings: bool = False


@dataclass(frozen=True)
class Approaching:
    """What a method does about the domain of an image.

    Attributes:
        approach: nothing, `read` it, `confuse` it, or minimise the `entropy` of predictions there.
        parameters: training parameters of its own that a grid may name.
    """

    approach: Approach
    parameters: tuple[str, ...] = ()

    @property
    def places(self) -> tuple[str, ...]:
        """Names of the exploration's grid that concern it."""
        return ("held_out", *self.parameters)


APPROACHES: dict[str, Approaching] = {
    "hyda": Approaching("read", ("external", *PARAMETERS)),
    "erm": Approaching("none"),
    "mdan": Approaching("confuse"),
    "tent": Approaching("entropy"),
}


def external_layers(value: object, num_layers: int) -> tuple[int, ...]:
    """Numbers of layers that are written as `layer1-layer2`, `layer3` or `none`.

    Raises:
        InputError: they are written otherwise, or there are not so many layers.
    """
    if value == "none":
        return ()
    names = {f"layer{number}": number for number in range(1, num_layers + 1)}
    parts = str(value).split("-")
    if len(set(parts)) < len(parts) or not set(parts) <= names.keys():
        raise InputError(
            f"external: expected none or different layers of the head, joined by -, of "
            f"{', '.join(names)}; got {value!r}"
        )
    return tuple(sorted(names[part] for part in parts))


class Predictor(nn.Module):
    """A network with the embedding that is asked for.

    Args:
        network: frozen.
        mix: where the embedding lies; None: where it is read.
        group_size: images whose embeddings are averaged, where they are.

    Attributes:
        batch_size: images that should be asked about together; None: any number.
    """

    batch_size: int | None

    def __init__(self, network: ConditionedNetwork, mix: Mix | None, group_size: int = 32) -> None:
        super().__init__()
        self.network, self.mix = network, mix
        is_grouped = mix is not None and GROUP in (mix.start, mix.end)
        self.batch_size = group_size if is_grouped else None

    def run(self, images: Tensor, groups: Tensor | None = None) -> Outputs:
        """Everything that is told of images, whose groups (B,) are numbers of domains.

        A group is what is known to come from one place, such as a scanner; without groups, all of
        the images.
        """
        outputs: Outputs = self.network(images, self.mix, groups)
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, k) of images (B, C, *spatial)."""
        return self.run(images).scores


class AdaptingPredictor(Predictor):
    """A network that goes on learning from the images that it is asked about.

    Of every batch it lowers the entropy of its predictions by the scales and shifts of its batch
    normalisation, which uses the statistics of the batch; what it has learned stays. A batch is
    told what the last of its steps predicted before it was taken.

    Args:
        network: of which it adapts a copy.
        num_steps: for each batch.
        step_size: of Adam.
        batch_size: images of a batch; the last may have fewer.
        is_exclusive: classes exclude each other; otherwise each output is a finding.
    """

    def __init__(
        self,
        network: ConditionedNetwork,
        *,
        num_steps: int,
        step_size: float,
        batch_size: int,
        is_exclusive: bool,
    ) -> None:
        with torch.inference_mode(mode=False):
            adapted = copy.deepcopy(network).requires_grad_(False)
        super().__init__(adapted, None)
        self.num_steps, self.batch_size = num_steps, batch_size
        self.is_exclusive = is_exclusive
        for norm in (one for one in adapted.modules() if isinstance(one, NORMALISATIONS)):
            norm.requires_grad_(True)
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = None
        parameters = [p for p in adapted.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, lr=step_size)

    def run(self, images: Tensor, groups: Tensor | None = None) -> Outputs:
        with torch.inference_mode(mode=False), torch.enable_grad():
            batches = images.clone().split(self.batch_size)
            scores = torch.cat([self._adapted(batch) for batch in batches])
        return Outputs(scores, scores)

    def _adapted(self, images: Tensor) -> Tensor:
        count = len(images)
        if count == 1:  # of one pixel alone there are no statistics
            images = torch.cat([images, images])
        for _ in range(self.num_steps):
            scores: Tensor = self.network(images).scores
            self.optimizer.zero_grad(set_to_none=True)
            self._entropy(scores.float()).backward()
            self.optimizer.step()
        return scores.detach()[:count]

    def _entropy(self, scores: Tensor) -> Tensor:
        if self.is_exclusive:
            return -(scores.softmax(1) * scores.log_softmax(1)).sum(1).mean()
        p = scores.sigmoid()
        return F.binary_cross_entropy_with_logits(scores, p)


class GeneralizingModule(nn.Module):
    """The network, and what is known of the source domains' images.

    Attributes:
        weights: (k,) of the classes in the loss: each counts alike, 1 on average over images.
        mean: of the targets.
        spread: their standard deviation.
    """

    weights: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(self, network: ConditionedNetwork, num_outputs: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("weights", torch.ones(num_outputs))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, images: Tensor) -> Outputs:
        """What the network tells of images."""
        outputs: Outputs = self.network(images)
        return outputs


class Generalization(Trainable):
    """Prediction of whole images in a domain that is held out.

    Args:
        method: a name in `APPROACHES`.
        model: networks, losses and data.
        settled: values of its training parameters, and the domain that is `held_out`, `none` for
            none. Without these it says what is asked of any.

    Raises:
        InputError: an unknown domain or parameter, too few sources, or a prediction that the method
            cannot make.
    """

    def __init__(
        self, method: str, model: GeneralizationModel, settled: Config | None = None
    ) -> None:
        self.method, self.model = method, model
        self.own, self.settled = APPROACHES[method], settled or {}
        for name in self.settled:
            if name not in self.own.places:
                raise unknown_name(f"{method}: grid", name, list(self.own.places))
        self.held_out = str(self.settled.get("held_out", NO_DOMAIN))
        if self.held_out not in (NO_DOMAIN, *model.domains):
            raise unknown_name("held_out", self.held_out, [*model.domains, NO_DOMAIN])
        self.sources = tuple(name for name in model.domains if name != self.held_out)
        least = 2 if self.own.approach == "read" else 1
        if min(len(self.sources), model.num_sources) < least:
            raise InputError(
                f"generalization.domains: {method} needs at least {_NUMBERS[least]} besides the "
                f"one held out, got {', '.join(model.domains) or 'none'} in all"
            )
        self._check_method()
        given = self.settled.get("external")
        num_layers = len(model.head_widths) + 1
        self.external = () if self.own.approach != "read" else model.external
        if given is not None:
            self.external = external_layers(given, num_layers)
        elif any(not 1 <= number <= num_layers for number in self.external):
            raise InputError(
                f"generalization.external: expected layers of 1 to {num_layers}, got "
                f"{list(self.external)}"
            )
        numbers = {name: PARAMETERS[name] for name in PARAMETERS if name in self.settled}
        self.numbers = SearchSpace(tuple(numbers.values())).validate(
            {name: self.settled[name] for name in numbers}
        )
        space = embedding_space(model.num_sources) if self.own.approach == "read" else ()
        self.problem = generalization_problem(OBJECTIVES[model.predicts], tuple(space))
        self.metrics = self._metric_names()
        if space:
            line = line_names(model.num_sources)[0]  # from each image's own place to its group's
            self.always_asked = ({"line": line, "t": 0.0}, {"line": line, "t": 1.0})
        self.stages = self._stages()

    def _check_method(self) -> None:
        approach, predicts = self.own.approach, self.model.predicts
        if approach == "confuse" and "held_out" in self.settled and self.held_out == NO_DOMAIN:
            raise InputError(f"{self.method}: needs a domain that is held out; leave it out")
        if approach != "entropy":
            return
        model = self.model
        encoder = skeleton(model.backbone, model.backbone_options, model.channels, model.size)
        if not any(isinstance(one, NORMALISATIONS) for one in encoder.modules()):
            raise InputError(
                f"{self.method}: {model.backbone} has no batch normalisation to adapt; take "
                f"another generalization.network, or leave {self.method} out"
            )
        if predicts == "target":
            raise InputError(
                f"{self.method}: a number has no entropy that could be lowered; leave it out"
            )
        if predicts == "findings" and not self.model.allows_findings:
            raise InputError(
                f"{self.method}: lowering the entropy drives each finding apart from the others to "
                f"yes or no, which it was not made for; leave it out, or say "
                f"generalization.tent.allows_findings"
            )

    def _metric_names(self) -> tuple[str, ...]:
        model = self.model
        kind = OBJECTIVES[model.predicts].name
        parts: dict[Predicted, tuple[str, ...]] = {
            "class": ("accuracy", *(f"recall/{name}" for name in model.names)),
            "findings": tuple(f"auc/{name}" for name in model.names),
            "target": ("bias",),
        }
        by_domain = (f"{kind}/{name}" for name in model.domains)
        read = ("domain_accuracy",) if self.own.approach == "read" else ()
        return (kind, *parts[model.predicts], *by_domain, *read)

    def _stages(self) -> tuple[Stage, ...]:
        if self.own.approach == "entropy":
            return ()
        share = self.model.reader_share if self.own.approach == "read" else 0.0
        first = (Stage(DOMAINS, share, is_validated=False),) if share else ()
        return (*first, Stage(TASK, 1 - share))

    def __repr__(self) -> str:
        return f"Generalization({self.method!r}, {self.model!r}, {self.settled!r})"

    @property
    def drawn(self) -> SearchSpace:
        return SearchSpace(())  # training reads every embedding from its image

    def _number(self, name: str) -> float:
        return float(self.numbers.get(name, getattr(self.model, name)))

    def samples(self, data: Mapping[str, Arrays]) -> Mapping[str, Arrays]:
        own = {name: _select(data[name], self._is_source) for name in ("train", "val")}
        if self.own.approach == "confuse":
            unlabelled = _select(data["test"], self._is_given)
            assert unlabelled.values is not None
            values = unlabelled.values.copy()
            values[:, 1:] = np.nan
            own["train"] = own["train"].joined(
                Arrays(
                    unlabelled.images,
                    unlabelled.masks,
                    domains=unlabelled.domains,
                    folds=unlabelled.folds,
                    values=values,
                )
            )
        return own

    def _is_source(self, samples: Arrays) -> NDArray[np.bool_]:
        is_source: NDArray[np.bool_] = np.isin(np.asarray(samples.domains), self.sources)
        return is_source

    def _is_given(self, samples: Arrays) -> NDArray[np.bool_]:
        """The part of the domain held out whose images, without labels, `mdan` is given."""
        is_given: NDArray[np.bool_] = np.asarray(samples.domains) == self.held_out
        is_given &= np.asarray(samples.folds) != TRAIN_PART
        return is_given

    def judged_by(self, samples: Arrays, split: str) -> NDArray[np.bool_]:
        """On validation the sources; on test the part of the domain held out that no method saw."""
        if split != "test":
            return self._is_source(samples)
        is_new = self.held_out != NO_DOMAIN
        is_own: NDArray[np.bool_] = np.asarray(samples.domains) == self.held_out
        is_own = is_own if is_new else self._is_source(samples)
        is_own &= np.asarray(samples.folds) == (TRAIN_PART if is_new else TEST_PART)
        return is_own

    def build(self, seed: int) -> GeneralizingModule:
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of torch's own layers, which take no generator
            network = self._network(generator)
        return GeneralizingModule(network, self.num_outputs)

    @property
    def num_outputs(self) -> int:
        """Classes, findings, or one number."""
        return len(self.model.names)

    def _network(self, generator: torch.Generator) -> ConditionedNetwork:
        model, approach = self.model, self.own.approach
        size = int(self._number("embedding_size"))
        backbone = self._encoder(model.backbone, model.backbone_options)
        num_features = int(backbone.num_features)  # type: ignore[arg-type]  # an int of ours
        head = Head(
            (num_features, *model.head_widths, self.num_outputs),
            external=self.external,
            embedding_size=size,
            bound=model.bound,
            generator=generator,
        )
        reader = adversaries = None
        if approach == "read":
            reader = DomainReader(
                self._encoder(model.reader, model.reader_options),
                num_sources=len(self.sources),
                embedding_size=size,
                learns_task=model.learns_task,
                generator=generator,
            )
        if approach == "confuse":
            adversaries = nn.ModuleList(nn.Linear(num_features, 2) for _ in self.sources)
        return ConditionedNetwork(backbone, head, reader=reader, adversaries=adversaries)

    def _encoder(self, name: str, options: Sequence[tuple[str, Any]]) -> nn.Module:
        num_dims = len(self.model.size)
        return ENCODERS[name](self.model.channels, num_dims=num_dims, **dict(options))

    def begin(
        self, module: nn.Module, weights: Mapping[str, Tensor] | None, data: Mapping[str, Arrays]
    ) -> None:
        assert isinstance(module, GeneralizingModule)
        if weights is not None:
            module.load_state_dict(dict(weights))
            return
        values = _select(data["train"], self._is_source).values
        assert values is not None
        if self.model.predicts == "class":
            counts = np.bincount(values[:, 1].astype(int), minlength=self.num_outputs)
            shares = counts.sum() / np.maximum(counts, 1) / np.count_nonzero(counts)
            module.weights.copy_(torch.from_numpy(shares))
        elif self.model.predicts == "target":
            module.mean.fill_(float(values[:, 1].mean()))
            module.spread.fill_(max(float(values[:, 1].std()), 1e-6))

    def parameter_groups(self, module: nn.Module) -> list[ParameterGroup]:
        decay = self.model.weight_decay
        return [ParameterGroup(list(module.parameters()), weight_decay=decay)]

    def loss(
        self,
        module: nn.Module,
        images: Tensor,
        masks: Tensor,
        conditioning: Config,
        stage: str,
        draws: Draws | None = None,
    ) -> Tensor:
        bare, positions = _bare(module), self._positions(masks[:, 0])
        if stage == DOMAINS:
            assert bare.network.reader is not None
            return self._domain_loss(bare.network.reader(images), positions)
        outputs: Outputs = module(images)
        per_image = self._task_losses(outputs.scores.float(), masks[:, 1:], bare)
        if self.own.approach == "confuse":
            return self._confused(per_image, positions, outputs.features, bare)
        if outputs.reading is None:
            return per_image.mean()
        loss = self._domain_loss(outputs.reading, positions)
        if module.training:
            assert bare.network.reader is not None
            bare.network.reader.follow(outputs.reading.embedding, positions)
        if outputs.generated is not None:
            loss = loss + self._number("generated_weight") * outputs.generated
        return loss + per_image.mean()

    def _positions(self, domains: Tensor) -> Tensor:
        """Position (B,) of each image's domain among the sources; of the one held out, -1."""
        names = self.model.domains
        table = [self.sources.index(n) if n in self.sources else -1 for n in names]
        return torch.tensor(table, device=domains.device)[domains.long()]

    def _task_losses(self, scores: Tensor, truth: Tensor, module: GeneralizingModule) -> Tensor:
        """Loss (B,) of each image, zero where nothing is known of it."""
        is_known = truth.isfinite()
        truth = truth.nan_to_num()
        if self.model.predicts == "class":
            classes = truth[:, 0].long()
            losses = F.cross_entropy(scores, classes, weight=module.weights, reduction="none")
            return losses * is_known[:, 0]
        if self.model.predicts == "findings":
            losses = F.binary_cross_entropy_with_logits(scores, truth, reduction="none")
            return (losses * is_known).mean(1)
        errors = scores[:, 0] - (truth[:, 0] - module.mean) / module.spread
        return errors.square() * is_known[:, 0]

    def _domain_loss(self, reading: Reading, positions: Tensor) -> Tensor:
        """Cross-entropy of the domain, and multi-similarity of features and embeddings (eq. 5)."""
        loss = self._number("domain_weight") * F.cross_entropy(reading.scores.float(), positions)
        weight = self._number("similarity_weight")
        if weight:
            similarity, miner = _similarity()
            for points in (reading.features.float(), reading.embedding.float()):
                loss = loss + weight * similarity(points, positions, miner(points, positions))
        return loss

    def _confused(
        self, per_image: Tensor, positions: Tensor, features: Tensor, module: GeneralizingModule
    ) -> Tensor:
        """Soft maximum over sources of the loss there and of how well the target is told apart.

        Batches are drawn from all images alike, where the authors' program takes as many of every
        source and of the target; sources that a batch does not have do not count.

        Source: Zhao et al. (2018), the soft version of MDAN, and the authors' program.
        """
        assert module.network.adversaries is not None
        reversed_features: Tensor = _Reversal.apply(features.float())  # type: ignore[no-untyped-call]  # torch's
        is_target = positions < 0
        terms = []
        for k, adversary in enumerate(module.network.adversaries):
            is_own = positions == k
            if not is_own.any():
                continue
            logits = adversary(reversed_features)
            apart = F.cross_entropy(logits[is_own], _labels(logits[is_own], 1))
            if is_target.any():
                target = logits[is_target]
                apart = apart + F.cross_entropy(target, _labels(target, 0))
            terms.append(per_image[is_own].mean() + self.model.confusion_weight * apart)
        if not terms:  # a batch of the target alone
            return 0 * reversed_features.sum()
        gamma = self.model.sharpness
        return torch.logsumexp(gamma * torch.stack(terms), 0) / gamma

    def materialize(self, module: nn.Module, conditioning: Config) -> Predictor:
        assert isinstance(module, GeneralizingModule)
        if self.own.approach == "entropy":
            model = self.model
            return AdaptingPredictor(
                module.network,
                num_steps=model.num_steps,
                step_size=model.step_size,
                batch_size=model.adapted_batch_size,
                is_exclusive=model.predicts == "class",
            )
        mix = None
        if conditioning:
            start, end = ends_of(str(conditioning["line"]))
            share = float(conditioning["t"])
            # on its own place an embedding is what was read, to the last bit
            mix = None if start == OWN and share == 0 else Mix(start, end, share)
        return _Scaled(module, mix, self.model.group_size)

    def evaluate(self, network: nn.Module, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        assert isinstance(network, Predictor)
        outputs = network.run(images, masks[:, 0])
        scores = outputs.scores
        values = {f"score/{k}": scores[:, k] for k in range(scores.shape[1])}
        if outputs.reading is not None:
            positions = self._positions(masks[:, 0])
            is_right = (outputs.reading.scores.argmax(1) == positions).double()
            values["domain_accuracy"] = is_right.where(positions >= 0, torch.nan)
        return values

    def measured(
        self, values: dict[str, NDArray[np.float64]], samples: Arrays
    ) -> dict[str, NDArray[np.float64]]:
        """Metrics (n,) of all images together, as one number per image; see `classification`."""
        assert samples.values is not None
        scores = np.stack([values[f"score/{k}"] for k in range(self.num_outputs)], axis=1)
        truth = samples.values[:, 1:].astype(np.float64)
        found = self._metrics(scores, truth)
        kind = OBJECTIVES[self.model.predicts].name
        for number, name in enumerate(self.model.domains):
            own = samples.values[:, 0] == number
            part = np.full(len(samples), np.nan)
            if own.any():
                part[own] = self._metrics(scores[own], truth[own])[kind]
            found[f"{kind}/{name}"] = part
        if "domain_accuracy" in values:
            found["domain_accuracy"] = values["domain_accuracy"]
        return found

    def _metrics(
        self, scores: NDArray[np.float64], truth: NDArray[np.float64]
    ) -> dict[str, NDArray[np.float64]]:
        names = self.model.names
        if self.model.predicts == "target":
            errors = scores[:, 0] - truth[:, 0]
            return {"mae": np.abs(errors), "bias": errors}
        if self.model.predicts == "findings":
            columns = [auc_parts(scores[:, k], truth[:, k]) for k in range(len(names))]
            parts = np.stack(columns, axis=1)
            own = {f"auc/{name}": parts[:, k] for k, name in enumerate(names)}
            return {"auc": mean_of_columns(parts), **own}
        classes, predicted = truth[:, 0].astype(np.int64), scores.argmax(1)
        parts = recall_parts(predicted, classes, len(names))
        own = {f"recall/{name}": parts[:, k] for k, name in enumerate(names)}
        is_right = (predicted == classes).astype(np.float64)
        return {"balanced_accuracy": mean_of_columns(parts), "accuracy": is_right, **own}

    @cached_property
    def _known_costs(self) -> dict[str, float]:
        with torch.device("meta"):
            network = self._network(torch.Generator())
        network.adversaries = None  # of no use once it is trained
        found = costs(
            traced(network, (self.model.channels, *self.model.size)),
            num_parameters=sum(p.numel() for p in network.parameters()),
        )
        num_steps = self.model.num_steps if self.own.approach == "entropy" else 0
        if num_steps:
            # a step is a forward pass and its gradients with respect to features, as many again
            found |= {name: found[name] * 2 * num_steps for name in ("macs", "flops")}
        return {**found, "gradient_steps": float(num_steps)}

    def costs(self, conditioning: Config) -> dict[str, float]:
        return dict(self._known_costs)

    def sizes(self, conditioning: Config) -> dict[str, list[int]]:
        return {"image": list(self.model.size)}


def domain_features(module: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Features (n, g) that the domain encoder of a trained module reads from images.

    Raises:
        InputError: it has no such encoder.
    """
    return _read(_reader(module), images, lambda reading: reading.features)


def _reader(module: nn.Module) -> DomainReader:
    assert isinstance(module, GeneralizingModule)
    if module.network.reader is None:
        raise InputError("features: this method reads no domain; ask of hyda")
    return module.network.reader


def _read(
    reader: DomainReader, images: NDArray[np.float32], what: Callable[[Reading], Tensor]
) -> NDArray[np.float64]:
    batches = torch.from_numpy(images).split(evaluation_batch_size(images.shape[2:]))
    with torch.inference_mode():
        found: NDArray[np.float64] = torch.cat([what(reader(b)) for b in batches]).double().numpy()
    return found


@dataclass(frozen=True)
class Readings:
    """Where the embeddings of images lie on the line between two sources' centroids.

    Attributes:
        shares: (n,) of the way, of the nearest point of the line.
        distance: of the embeddings from the line, root of the mean square, in its lengths.
    """

    shares: NDArray[np.float64]
    distance: float


def readings(module: nn.Module, images: NDArray[np.float32]) -> dict[str, Readings]:
    """Of each line between two sources: where the domain encoder places images (n, C, *spatial).

    Raises:
        InputError: the method has no such encoder.
    """
    reader = _reader(module)
    points = _read(reader, images, lambda reading: reading.embedding)
    centroids = reader.centroids.double().numpy()
    found = {}
    for line in line_names(len(centroids)):
        start, end = ends_of(line)
        if not isinstance(start, int) or not isinstance(end, int):
            continue
        way = centroids[end] - centroids[start]
        length = float(np.linalg.norm(way))
        shares = (points - centroids[start]) @ way / max(length, 1e-12) ** 2
        away = points - centroids[start] - shares[:, None] * way
        distance = math.sqrt((away**2).sum(axis=1).mean()) / max(length, 1e-12)
        found[line] = Readings(shares, distance)
    return found


class _Scaled(Predictor):
    """A predictor whose numbers are in the unit of the targets; classes are left alone."""

    def __init__(self, module: GeneralizingModule, mix: Mix | None, group_size: int) -> None:
        super().__init__(module.network, mix, group_size)
        self.mean, self.spread = module.mean, module.spread

    def run(self, images: Tensor, groups: Tensor | None = None) -> Outputs:
        outputs = super().run(images, groups)
        return outputs._replace(scores=outputs.scores.float() * self.spread + self.mean)


class _Reversal(torch.autograd.Function):
    """The identity, whose gradient has the other sign.

    Source: Ganin et al. (2016), arXiv:1505.07818.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


def _similarity() -> tuple[Any, Any]:
    """The multi-similarity loss and its miner, as the authors of HyDA set them."""
    from pytorch_metric_learning.losses import MultiSimilarityLoss  # take seconds
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    return MultiSimilarityLoss(alpha=2, beta=50), MultiSimilarityMiner(epsilon=0.1)


def _labels(logits: Tensor, value: int) -> Tensor:
    return torch.full((len(logits),), value, device=logits.device)


def _bare(module: nn.Module) -> GeneralizingModule:
    """The module that workers share."""
    own = getattr(module, "module", module)
    assert isinstance(own, GeneralizingModule)
    return own


def _select(samples: Arrays, choose: Any) -> Arrays:
    return samples.select(np.flatnonzero(choose(samples)))
