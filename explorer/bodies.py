"""What the HTTP service is sent and what it sends: the shapes that its OpenAPI document tells.

Answers are made by `explorer.documents` and what it calls; the classes here describe them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

MAX_QUESTIONS = 1000
MAX_NAMES = 32  # bounds of a question, or parameters of a setting

Name = Annotated[str, Field(max_length=200)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Bounds = Annotated[dict[Name, Number | Name], Field(max_length=MAX_NAMES)]
Conditioning = Annotated[dict[Name, Number | Name], Field(max_length=MAX_NAMES)]
Seeds = Annotated[list[Annotated[int, Field(strict=True)]], Field(max_length=1000)]
Solver: TypeAlias = Literal["gradient", "tpe", "grid"]


class Body(BaseModel):
    """What is sent: it has no keys but these."""

    model_config = ConfigDict(extra="forbid")


class QueryBody(Body):
    """A question, as `explorer query` takes it."""

    max: Bounds = Field({}, description="Upper bounds by metric or cost: 6e8 or '0.6G'.")
    min: Bounds = Field({}, description="Lower bounds.")
    maximize: Name | None = Field(None, description="Default: the first objective.")
    minimize: Name | None = Field(None, description="What to minimise instead.")
    knee: bool = Field(False, description="Ask for the front's knee, of its own objectives.")
    method: Name | None = Field(None, description="Whose points; default: the exploration's own.")
    seeds: Seeds | None = Field(None, description="Average these trainings only; default: all.")


class QueriesBody(Body):
    """Many questions at once."""

    queries: list[QueryBody] = Field(max_length=MAX_QUESTIONS)


class CostBody(Body):
    """A setting, as `explorer cost` takes it."""

    conditioning: Conditioning = Field(description="Every parameter's value, such as phi.")
    method: Name | None = Field(None, description="Default: the exploration's own.")


class OptimizeBody(Body):
    """What `explorer optimize` takes."""

    maximize: Name | None = Field(None, description="Default: the first objective.")
    minimize: Name | None = Field(None, description="What to minimise instead.")
    by: Name | None = Field(None, description="An optimum per label, subject or column.")
    solver: Solver = Field("gradient", description="tpe and grid take any metric and method.")
    pairs: int = Field(20, ge=1, le=1000, description="Samples of each group at most.")
    starts: int | None = Field(None, ge=1, le=64, description="Where the gradient starts from.")
    num_points: int | None = Field(None, ge=1, le=1000, description="Settings of tpe and grid.")
    method: Name | None = Field(None, description="Whose models; default: the exploration's own.")
    seeds: Seeds | None = Field(None, description="Average these trainings only; default: all.")


# what is sent back

Values: TypeAlias = dict[str, float]
Setting: TypeAlias = dict[str, float | str]


class StatusDocument(BaseModel):
    """That it is so."""

    status: str


class ListedDocument(BaseModel):
    """A row of `explorer list`."""

    exploration_id: str
    name: str
    method: str
    dataset: str
    status: str
    num_measurements: int


class ShownDocument(BaseModel):
    """`explorer show`: state, trials, and the spec with every default."""

    model_config = ConfigDict(extra="allow")

    exploration_id: str
    folder: str
    status: str
    trials: list[dict[str, Any]]
    spec: dict[str, Any]


class PointDocument(BaseModel):
    """One method at one setting, all seeds together."""

    conditioning: Setting
    metrics: Values
    standard_errors: Values
    seed_sd: Values
    num_seeds: int
    costs: Values
    test_metrics: Values
    method: str
    trial_ids: list[str]


class FrontierDocument(BaseModel):
    """`explorer frontier`."""

    exploration_id: str
    method: str
    frontier: list[PointDocument]
    status: str


class AnswerDocument(BaseModel):
    """`explorer query`: the point, or, where none is feasible, why, and the nearest one."""

    feasible: bool
    bounds: dict[str, Values]
    point: PointDocument | None = None
    reason: str | None = None
    nearest: PointDocument | None = None
    status: str


class AnswersDocument(BaseModel):
    """The answers, in the order of the questions."""

    answers: list[AnswerDocument]


class CostDocument(BaseModel):
    """`explorer cost`."""

    conditioning: Setting
    costs: Values
    sizes: dict[str, list[int]]


class OptimumDocument(BaseModel):
    """The best setting for a group of samples."""

    by: str | None
    group: str
    metric: str
    conditioning: Setting | None
    value: float | None
    objective: float | None
    num_pairs: int
    num_people: int
    num_evaluations: int
    elapsed_s: float


class OptimaDocument(BaseModel):
    """`explorer optimize`."""

    exploration_id: str
    method: str
    metric: str
    solver: str
    num_pairs: int
    num_people: int
    num_seeds: int
    ranges: dict[str, tuple[float, float]]
    results: list[OptimumDocument]
    status: str


class FileDocument(BaseModel):
    """A file."""

    media_type: str = Field(description="image/png, or application/gzip of a NIfTI volume.")
    base64: str


class AreaDocument(BaseModel):
    """How much of an image a label takes."""

    pixels: int
    share: float


class PredictionDocument(BaseModel):
    """What a network made of an image or a pair, on the network's grid."""

    exploration_id: str
    method: str
    trial_id: str
    conditioning: Setting
    costs: Values
    size: list[int]
    labels: dict[str, AreaDocument] | None = Field(None, description="Of a segmentation.")
    displacement: Values | None = Field(None, description="Mean and max, in voxels.")
    folded_voxels: int | None = None
    folded_share: float | None = None
    mask: FileDocument | None = Field(None, description="Label numbers.")
    moved: FileDocument | None = Field(None, description="The warped image.")
    overlay: FileDocument | None = Field(None, description="Of a volume its middle slice.")


class ProblemDocument(BaseModel):
    """What is wrong, in one line."""

    detail: str


class MistakeDocument(BaseModel):
    """One value that cannot be used."""

    loc: list[str | int] = Field(description="Where it stands, such as body, max, macs.")
    msg: str
    type: str


class MistakesDocument(BaseModel):
    """What of the request cannot be used."""

    detail: list[MistakeDocument]


_WORDS: Mapping[int, str] = {
    401: "No token, or a wrong one.",
    404: "There is no exploration of that id.",
    413: "The request is larger than the service takes.",
    422: "A value cannot be used; `detail` names its field.",
    503: "The runs directory or the object store does not answer.",
    504: "It took longer than the service's time limit.",
}


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """What an endpoint may answer instead, for its OpenAPI document."""
    return {
        code: {
            "description": _WORDS[code],
            "model": MistakesDocument if code == 422 else ProblemDocument,
        }
        for code in codes
    }
