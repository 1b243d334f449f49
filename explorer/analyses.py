"""What `explorer analyze` answers: a table and a figure of a finished exploration, by name."""

from __future__ import annotations

from explorer import (
    adaptation_analyses,
    generalization_analyses,
    inside_analyses,
    rescaling_analyses,
)
from explorer.explored import Analysis, Explored, NamedAnalysis
from explorer.models import method_of
from explorer.specs import ExplorationSpec
from search_spaces.errors import InputError, unknown_name
from trainables.adaptation import AdaptationModel
from trainables.generalization import GeneralizationModel
from trainables.scale_space import RescalingModel

ANALYSES: dict[type, dict[str, NamedAnalysis]] = {
    RescalingModel: rescaling_analyses.ANALYSES | inside_analyses.ANALYSES,
    AdaptationModel: adaptation_analyses.ANALYSES,
    GeneralizationModel: generalization_analyses.ANALYSES,
}


def analyses_of(spec: ExplorationSpec) -> dict[str, str]:
    """The analyses that there are for a spec's models, and what each tells; none for some."""
    return {name: one.summary for name, one in _known(spec).items()}


def lacking_for(spec: ExplorationSpec) -> dict[str, str]:
    """Of the same analyses those that this spec cannot have, and what each would need."""
    found = {name: one.lacking(spec) for name, one in _known(spec).items()}
    return {name: lacking for name, lacking in found.items() if lacking}


def _known(spec: ExplorationSpec) -> dict[str, NamedAnalysis]:
    model = method_of(spec, spec.method).described_by
    return next((own for kind, own in ANALYSES.items() if issubclass(model, kind)), {})


def analyse(explored: Explored, name: str) -> Analysis:
    """Carry an analysis out.

    Raises:
        InputError: there is none of that name for its task, it is not of this kind, or not enough
            was measured.
    """
    known = _known(explored.spec)
    if not known:
        raise InputError(f"{explored.exploration_id}: there is no analysis for its task yet")
    if name not in known:
        raise unknown_name(f"analysis of {explored.exploration_id}", name, known)
    if lacking := known[name].lacking(explored.spec):
        raise InputError(f"{explored.exploration_id}: {name} needs {lacking}")
    if not len(explored.samples.get("sample_id", ())):
        raise InputError(
            f"{explored.exploration_id}: nothing was measured on test yet; let it finish, or "
            f"resume it"
        )
    return known[name].analyse(explored)
