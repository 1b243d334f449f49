"""What a spec's names stand for: its data set, its methods, and the models that these train."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from explorer.extensions import find
from explorer.specs import (
    AdaptationSpec,
    ExplorationSpec,
    GeneralizationSpec,
    ModelSpec,
    RegistrationSpec,
    Section,
)
from search_spaces import adaptation
from search_spaces.errors import InputError
from search_spaces.registration import PARAMETERS
from search_spaces.rescaling import rescaling_space
from search_spaces.space import Config
from trainables.adaptation import AdaptationModel
from trainables.base import Trainable
from trainables.datasets.base import DatasetSource, Size
from trainables.datasets.sources import DATASETS
from trainables.generalization import NO_DOMAIN, GeneralizationModel, Predicted
from trainables.hypermorph import RegistrationModel
from trainables.methods import TRAINABLES, Method
from trainables.networks.architectures import NETWORKS
from trainables.networks.image_encoders import require_encoder
from trainables.scale_space import SegmentationModel
from trainables.scale_space_registration import DisplacementModel


def dataset_source(spec: ExplorationSpec) -> DatasetSource:
    """The registered data set that the spec names."""
    return find("datasets", spec.dataset.name, DATASETS, spec.extensions)


def image_size(spec: ExplorationSpec) -> Size:
    """Spatial size of the spec's images: its own, or the default of the data set's options."""
    source = dataset_source(spec)
    default = source.size_of(spec.dataset.options) if source.size_of else source.size
    return spec.dataset.size or default


def method_of(spec: ExplorationSpec, name: str) -> Method:
    """The registered method of that name.

    Raises:
        InputError: there is none.
    """
    return find("methods", name, TRAINABLES, spec.extensions)


# what a model tells every network by itself
_GIVEN = ("in_channels", "out_channels", "encoder_widths", "decoder_widths", "num_dims", "rounding")


def _options_of(network: Any) -> list[str]:
    """Keywords that a network's constructor takes beside those that every network is given."""
    while isinstance(network, partial):
        network = network.func
    found: set[str] = set()
    for kind in network.__mro__ if isinstance(network, type) else (network,):
        parameters = inspect.signature(kind).parameters.values()
        found |= {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    return sorted(found - set(_GIVEN))


def build_trainable(
    spec: ExplorationSpec, method: str | None = None, settled: Config | None = None
) -> Trainable:
    """The trainable of a method (the spec's own by default) on the spec's network and data shape.

    Raises:
        InputError: unknown method or data set, or a model that does not fit.
    """
    chosen = method_of(spec, method or spec.method)
    if chosen.described_by not in MODELS:
        raise InputError(
            f"method {method or spec.method}: expected one that is given "
            f"{', '.join(kind.__name__ for kind in MODELS)}, got {chosen.described_by.__name__}"
        )
    model = MODELS[chosen.described_by](spec)
    try:
        return chosen.construct(model, settled)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise
        known = _options_of(find("networks", spec.model.network, NETWORKS, spec.extensions))
        raise InputError(
            f"model.options of {spec.model.network}: unknown option {unknown[1]!r}; known: "
            f"{', '.join(known) or 'none'}"
        ) from None
    except ValueError as error:
        raise InputError(f"model: {spec.model.network}: {error}") from None


def _segmentation_model(spec: ExplorationSpec) -> SegmentationModel:
    _refuse_sections(spec, but=())
    channels = _data_shape(spec)[0]
    return SegmentationModel(
        in_channels=channels, dice_share=spec.train.dice_share, **_rescaling(spec)
    )


def _displacement_model(spec: ExplorationSpec) -> DisplacementModel:
    _refuse_sections(spec, but=("registration",))
    default, own = RegistrationSpec(), spec.registration
    known = ("smoothness", "num_pairs", "across_domains", "pairs")
    foreign = {n for n in dict(own) if getattr(own, n) != getattr(default, n)} - set(known)
    if foreign:
        raise InputError(
            f"registration.{min(foreign)}: {spec.method} reads {', '.join(known)}; leave it out"
        )
    channels = _data_shape(spec)[0]
    return DisplacementModel(
        in_channels=2 * channels, smoothness=own.smoothness, **_rescaling(spec)
    )


def _rescaling(spec: ExplorationSpec) -> dict[str, Any]:
    """Of a network that shrinks its features, what is the same for every task."""
    _, labels, size = _data_shape(spec)
    model, prior = spec.model, spec.train.prior
    factors = rescaling_space(num_factors=model.num_factors).names
    return {
        "labels": labels,
        "size": size,
        "encoder_widths": model.encoder_widths or (model.width,) * model.stages,
        "decoder_widths": model.decoder_widths or (model.width,) * (model.stages - 1),
        "num_factors": model.num_factors,
        "rounding": model.rounding,
        "prior": tuple(prior.get(name, (0.0, 1.0)) for name in factors),
        "encoding": model.encoding,
        "hidden_sizes": model.hidden_sizes,
        "initialisation": model.initialisation,
        "activation": model.activation,
        "network": find("networks", model.network, NETWORKS, spec.extensions),
        "network_name": model.network,
        "network_options": model.options,
        "network_choices": model.choices,
        "distillation": spec.train.distillation,
    }


def _registration_model(spec: ExplorationSpec) -> RegistrationModel:
    channels, labels, size = _data_shape(spec)
    _refuse_sections(spec, but=("registration",))
    _refuse_model_keys(
        spec,
        "registration has a network of its own, set by registration.encoder_widths, "
        "decoder_widths and final_widths",
        but={"encoding", "hidden_sizes", "initialisation", "activation"},
    )
    section = spec.registration
    return RegistrationModel(
        channels=channels,
        labels=labels,
        size=size,
        conditionings=tuple(spec.train.prior),
        weight=section.weight,
        gamma=section.gamma,
        radius=section.radius,
        similarity=section.similarity,
        noise_scale=section.noise_scale,
        trained_labels=section.trained_labels,
        encoder_widths=section.encoder_widths,
        decoder_widths=section.decoder_widths,
        final_widths=section.final_widths,
        num_integration_steps=section.num_integration_steps,
        shrinkage=section.shrinkage,
        encoding=spec.model.encoding,
        hidden_sizes=spec.model.hidden_sizes,
        initialisation=spec.model.initialisation,
        activation=spec.model.activation,
        centre=_centre(spec.train.prior),
    )


def _adaptation_model(spec: ExplorationSpec) -> AdaptationModel:
    channels, labels, size = _data_shape(spec)
    _refuse_sections(spec, but=("adaptation",))
    _refuse_model_keys(
        spec,
        "adaptation has a network of its own, set by model.width and adaptation.num_levels",
        but={"width", "encoding", "hidden_sizes"},
    )
    section = spec.adaptation
    if "pair" not in spec.train.grid:
        raise InputError(
            "train.grid: pair is missing; name domains of the data set, {pair: [SOURCE-to-TARGET]}"
        )
    price = adaptation.PARAMETERS["lambda"]
    ends = [price.to_unit(end) for end in spec.train.prior.get("lambda", (0.0, 1.0))]
    return AdaptationModel(
        channels=channels,
        labels=labels,
        size=size,
        temperature=section.temperature,
        regulariser=section.regulariser,
        width=spec.model.width,
        num_levels=section.num_levels,
        policy_widths=section.policy_widths,
        policy_rate=section.policy_rate,
        policy_weight_decay=section.policy_weight_decay,
        conditioner=section.conditioner,
        encoding=spec.model.encoding,
        hidden_sizes=spec.model.hidden_sizes,
        ends=(ends[0], ends[1]),
        tolerance=section.tolerance,
        spacing=dataset_source(spec).spacing_mm,
    )


def _generalization_model(spec: ExplorationSpec) -> GeneralizationModel:
    channels, size = _channels(spec), image_size(spec)
    _refuse_sections(spec, but=("generalization",))
    _refuse_model_keys(
        spec, "generalization has networks of its own, set by generalization.network", but=set()
    )
    section = spec.generalization
    encoders = {"": (section.network, section.options)}
    encoders["reader."] = (section.reader.network, section.reader.options)
    for place, (name, options) in encoders.items():
        require_encoder(
            f"generalization.{place}", name, _items(options), channels=channels, size=size
        )
    predicts, names, unit = _predicted(spec)
    domains = domains_of(spec)
    held_out = spec.train.grid.get("held_out")
    if held_out is None:
        raise InputError(
            "train.grid: held_out is missing; name the domains that are held out in turn, "
            f"{{held_out: [{', '.join(domains)}]}}, or {NO_DOMAIN} for none"
        )
    if NO_DOMAIN in held_out and len(held_out) > 1:
        raise InputError(
            f"train.grid: held_out: {NO_DOMAIN} is an exploration of its own, since points are "
            f"means over what is held out"
        )
    reader, mdan, tent = section.reader, section.mdan, section.tent
    return GeneralizationModel(
        channels=channels,
        size=size,
        domains=domains,
        num_sources=len(domains) - (NO_DOMAIN not in held_out),
        predicts=predicts,
        names=names,
        unit=unit,
        backbone=section.network,
        backbone_options=_items(section.options),
        head_widths=section.head_widths,
        reader=reader.network,
        reader_options=_items(reader.options),
        external=section.external,
        embedding_size=reader.embedding_size,
        bound=section.bound,
        domain_weight=reader.domain_weight,
        similarity_weight=reader.similarity_weight,
        generated_weight=reader.generated_weight,
        weight_decay=section.weight_decay,
        reader_share=reader.pretraining,
        learns_task=reader.learns_task,
        group_size=reader.group_size,
        confusion_weight=mdan.weight,
        sharpness=mdan.sharpness,
        num_steps=tent.num_steps,
        step_size=tent.step_size,
        adapted_batch_size=tent.batch_size,
        allows_findings=tent.allows_findings,
    )


def domains_of(spec: ExplorationSpec) -> tuple[str, ...]:
    """The domains that take part in a generalization.

    Raises:
        InputError: they are not named, and the data set has no fixed ones.
    """
    source = dataset_source(spec)
    domains = spec.generalization.domains or source.domain_names
    if not domains:
        raise InputError(
            f"generalization.domains: missing; which domains {source.name} has depends on its "
            f"files, so name those that take part"
        )
    if len(set(domains)) != len(domains):
        raise InputError("generalization.domains: each domain once")
    return domains


def _predicted(spec: ExplorationSpec) -> tuple[Predicted, tuple[str, ...], str]:
    """What is predicted of an image, the names of that, and the unit of a number."""
    source, options = dataset_source(spec), spec.dataset.options
    classes = source.class_names_of(options) if source.class_names_of else source.class_names
    target, _, unit = source.target_name.partition(" (")
    has: dict[Predicted, tuple[str, ...]] = {
        "class": classes,
        "findings": source.finding_names,
        "target": (target,) if target else (),
    }
    known = [kind for kind, names in has.items() if names]
    chosen = spec.generalization.predicts or next(iter(known), None)
    if chosen not in known:
        raise InputError(
            f"generalization.predicts: {source.name} has {' and '.join(known) or 'nothing of it'}, "
            f"of class, findings and target; got {chosen or 'none'}"
        )
    return chosen, has[chosen], unit.rstrip(")")


def _items(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Options that can be compared and written down; lists become tuples."""
    plain = {n: tuple(x) if isinstance(x, list) else x for n, x in options.items()}
    return tuple(sorted(plain.items()))


# of one task alone: without a word of it, and what other tasks do not do
SECTIONS: dict[str, tuple[Section, str]] = {
    "registration": (RegistrationSpec(), "registers nothing"),
    "adaptation": (AdaptationSpec(), "adapts nothing"),
    "generalization": (GeneralizationSpec(), "holds no domain out"),
}


def _refuse_sections(spec: ExplorationSpec, *, but: tuple[str, ...]) -> None:
    """Sections of other tasks must not be given."""
    for name, (default, reason) in SECTIONS.items():
        if name not in but and getattr(spec, name) != default:
            raise InputError(f"{name}: {spec.method} {reason}; leave the section out")


def _refuse_model_keys(spec: ExplorationSpec, reason: str, *, but: set[str]) -> None:
    """Keys of `model` that a task does not read must not be given."""
    given, default = spec.model, ModelSpec()
    foreign = {n for n in dict(given) if getattr(given, n) != getattr(default, n)} - but
    if foreign:
        raise InputError(f"model.{min(foreign)}: {reason}; leave it out")


def _centre(prior: Mapping[str, tuple[float, float]]) -> tuple[float, ...]:
    """The middle of what training draws, as features; nothing is known of unknown names here."""
    known = {name: ends for name, ends in prior.items() if name in PARAMETERS}
    try:
        features = {n: [PARAMETERS[n].to_features(end)[0] for end in known[n]] for n in known}
    except InputError as error:
        raise InputError(f"train.prior: {error}") from None
    return tuple(sum(ends) / 2 for ends in features.values())


MODELS: dict[type, Callable[[ExplorationSpec], Any]] = {
    SegmentationModel: _segmentation_model,
    DisplacementModel: _displacement_model,
    RegistrationModel: _registration_model,
    AdaptationModel: _adaptation_model,
    GeneralizationModel: _generalization_model,
}


def _data_shape(spec: ExplorationSpec) -> tuple[int, tuple[str, ...], Size]:
    """Channels, labels and spatial size of the images, without reading them."""
    source, options = dataset_source(spec), spec.dataset.options
    labels = source.labels_of(options) if source.labels_of else source.labels
    if not labels:
        raise InputError(
            f"dataset.name: {source.name} has no label maps, which {spec.method} is trained with"
        )
    return _channels(spec), labels, image_size(spec)


def _channels(spec: ExplorationSpec) -> int:
    channels = spec.dataset.options.get("channels", dataset_source(spec).channels)
    if not isinstance(channels, int) or channels < 1:
        raise InputError(
            f"dataset.options.channels: expected a whole number of at least 1, got {channels!r}"
        )
    return channels
