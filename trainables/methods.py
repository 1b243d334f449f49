"""The registry of methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from search_spaces.rescaling import PARAMETERS
from search_spaces.space import Config
from trainables.adaptation import STRATEGIES, Adaptation, AdaptationModel, domains_of
from trainables.base import Trainable
from trainables.generalization import APPROACHES, Generalization, GeneralizationModel
from trainables.hypermorph import Registration, RegistrationModel
from trainables.scale_space import CONDITIONED_NETWORKS, ScaleSpaceSegmentation, SegmentationModel
from trainables.scale_space_registration import DisplacementModel, ScaleSpaceRegistration

Task = Literal["segmentation", "registration", "adaptation", "generalization"]
OF_PAIRS = "-registration"  # ends the name of a method of segmentation that registers instead
DEFAULT_MODELS: dict[Task, type] = {
    "segmentation": SegmentationModel,
    "registration": RegistrationModel,
    "adaptation": AdaptationModel,
    "generalization": GeneralizationModel,
}
# (the model of its task, setting unless amortised)
Constructor = Callable[[Any, Config | None], Trainable]


@dataclass(frozen=True)
class Method:
    """A way to reach many settings.

    Attributes:
        construct: makes the trainable of a model, and of a setting unless it is amortised.
        is_amortised: one training serves every conditioning; otherwise each takes its own.
        task: what its networks do, and so what samples are.
        model: what describes its networks, which it is given; by default that of its task.
        parameters: names that the grid of a method that is not amortised must have, if they are
            not all conditionings of the explored one.
        places: names of the exploration's own grid at whose every value it is trained.
        replicates: names of either grid that are no setting: trainings that differ in them alone
            are averaged, as seeds are.
        start: the method, and its settled parameters, whose training of the same seed it starts
            from, given its own; None: it starts from none.
    """

    construct: Constructor
    is_amortised: bool = True
    task: Task = "segmentation"
    model: type | None = None
    parameters: tuple[str, ...] | None = None
    places: tuple[str, ...] = ()
    replicates: tuple[str, ...] = ()
    start: Callable[[Config], tuple[str, Config]] | None = None

    @property
    def described_by(self) -> type:
        """The class of what describes its networks."""
        return self.model or DEFAULT_MODELS[self.task]


def _erm_of(settled: Config) -> tuple[str, Config]:
    return "erm", settled


def _source_of(settled: Config) -> tuple[str, Config]:
    return "source", {"domain": domains_of(settled["pair"])[0]}


TRAINABLES: dict[str, Method] = {
    **{
        name: Method(
            partial(ScaleSpaceSegmentation, name),
            is_amortised=name != "fixed",
            places=() if name == "fixed" else tuple(PARAMETERS),
        )
        for name in CONDITIONED_NETWORKS
    },
    **{
        f"{name}{OF_PAIRS}": Method(
            partial(ScaleSpaceRegistration, f"{name}{OF_PAIRS}", condition=condition),
            is_amortised=name != "fixed",
            task="registration",
            model=DisplacementModel,
            places=() if name == "fixed" else tuple(PARAMETERS),
        )
        for name, condition in CONDITIONED_NETWORKS.items()
    },
    "hypermorph": Method(partial(Registration, "hypermorph"), task="registration"),
    "voxelmorph": Method(
        partial(Registration, "voxelmorph"), is_amortised=False, task="registration"
    ),
    **{
        name: Method(
            partial(Adaptation, name),
            is_amortised=own.is_amortised,
            task="adaptation",
            parameters=own.parameters[:1],
            places=own.places,
            replicates=("pair", "fold"),
            start=_source_of if own.domain == "target" else None,
        )
        for name, own in STRATEGIES.items()
    },
    **{
        name: Method(
            partial(Generalization, name),
            is_amortised=own.approach == "read",
            task="generalization",
            parameters=(),
            places=own.places,
            replicates=("held_out",),
            start=_erm_of if own.approach == "entropy" else None,
        )
        for name, own in APPROACHES.items()
    },
}
