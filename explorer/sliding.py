"""What the interactive page shows: a sample of an exploration at any setting, and where that is.

Nothing here knows of the page itself; every picture is a PNG and every number a text.

Shapes: pictures (H, W, 3), of volumes their middle slice.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from explorer.answering import Explorations, Question, ask
from explorer.exploration import Exploration
from explorer.figures import metric_against_conditioning, metric_against_cost, metric_map
from explorer.models import method_of
from explorer.predicting import Segmentation, Warping, png, to_bytes
from explorer.quantities import format_quantity
from explorer.queries import Bound
from explorer.recent import Recent
from explorer.registering import middle_slice, register
from explorer.reporting import points_as_json
from explorer.series import conditioning_axis, cost_axis, setting_of
from explorer.session import explored_space
from explorer.specs import ExplorationSpec
from explorer.splits import Samples, load_data, pairs_and_amounts, samples_of
from explorer.store import measurements_store
from search_spaces.space import CategoricalParameter, Config, SearchSpace
from trainables.train_loop import evaluate_network

NUM_OPEN = 4  # explorations whose images and fronts are kept
NUM_SAMPLES = 50  # that can be chosen
DPI = 110


@dataclass(frozen=True)
class Front:
    """The figure that the position is marked in.

    Attributes:
        png: as a data URL.
        figure: that was drawn, for where a point lies in it.
        x: quantity of the horizontal axis, of a point's costs or conditioning.
        y: likewise: the metric, or the other conditioning of a map.
        label: of the horizontal axis.
        divisor: by which x is divided on its axis.
    """

    png: str
    figure: Figure
    x: str
    y: str
    label: str
    divisor: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where values lie in the picture, in percent from its left and its top."""
        axes = self.figure.axes[0]
        across, up = axes.transData.transform((x / self.divisor, y))
        width, height = self.figure.bbox.width, self.figure.bbox.height
        (low_x, low_y), (high_x, high_y) = axes.transAxes.transform([(0, 0), (1, 1)])
        across, up = np.clip(across, low_x, high_x), np.clip(up, low_y, high_y)
        return 100 * float(across) / width, 100 * (1 - float(up) / height)


@dataclass(frozen=True)
class View:
    """A sample at a setting.

    Attributes:
        pictures: PNGs as data URLs, by title.
        facts: what is known of the setting and of the sample there, by name.
        mark: where the setting lies in the front's picture, in percent; None: nowhere.
        command: that hands its network over.
    """

    pictures: dict[str, str]
    facts: dict[str, str]
    mark: tuple[float, float] | None
    command: str


def _judging(spec: ExplorationSpec) -> Samples:
    """The samples of validation by which the spec's models are judged, of all its targets."""
    samples = samples_of(spec, load_data(spec))["val"]
    domains = samples.arrays.domains
    if domains is None:
        return samples
    targets = [target for _, target, _ in pairs_and_amounts(spec)]
    rows = np.flatnonzero(np.isin(domains, targets))
    ids = [samples.ids[row] for row in rows]
    return Samples(samples.arrays.select(rows), ids, samples.indices[rows])


class Views:
    """Samples and fronts of explorations, kept for the next look.

    Args:
        explorations: that are shown.
    """

    def __init__(self, explorations: Explorations) -> None:
        self.explorations = explorations
        self._samples: Recent[Any, Samples] = Recent(NUM_OPEN)
        self._fronts: Recent[Any, Front] = Recent(NUM_OPEN)

    def ids(self) -> list[str]:
        """Explorations that have something to show, the latest first."""
        rows = self.explorations.rows()
        return [row["exploration_id"] for row in reversed(rows) if row["num_measurements"]]

    def space(self, exploration: Exploration) -> SearchSpace:
        """The conditionings, with the ranges that were explored."""
        return explored_space(exploration.spec, self.explorations.trainable(exploration, None))

    def cost(self, exploration: Exploration) -> str | None:
        """The cost that the front trades for quality; None: its objectives have none."""
        known = self.explorations.trainable(exploration, None).problem.known_costs
        return next((one.name for one in exploration.objectives if one.name in known), None)

    def budgets(self, exploration: Exploration) -> tuple[float, float] | None:
        """The least and the largest cost of a point; None: they do not differ."""
        name = self.cost(exploration)
        values = exploration.points().values(name) if name else np.zeros(1)
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        return (low, high) if low < high else None

    def within(self, exploration: Exploration, budget: float) -> Config:
        """The best setting within a budget; the cheapest of all where none is."""
        name = self.cost(exploration)
        assert name is not None
        answer = ask(exploration, Question((Bound(name, "max", budget),)))
        point = answer.point or answer.nearest
        assert point is not None
        return dict(point.conditioning)

    def best(self, exploration: Exploration) -> Config:
        """The setting that is best on validation."""
        point = ask(exploration, Question()).point
        assert point is not None
        return dict(point.conditioning)

    def samples(self, exploration: Exploration) -> Samples:
        """The validation samples, images or pairs, decoded once.

        Raises:
            InputError: the data are not where the service runs, or damaged.
        """
        key = exploration.folder, exploration.state["data_digest"]
        return self._samples.get(key, lambda: _judging(exploration.spec))

    def front(self, exploration: Exploration) -> Front:
        """The figure of the front on validation, drawn anew once the table has grown."""
        key = exploration.folder, measurements_store(exploration.folder).version()
        return self._fronts.get(key, lambda: self._draw(exploration))

    def _draw(self, exploration: Exploration) -> Front:
        points = points_as_json(exploration.table(), "val")
        metric, main = exploration.objectives[0].name, exploration.spec.method
        names = [
            one.name for one in self.space(exploration) if not isinstance(one, CategoricalParameter)
        ]
        cost, axis, y = self.cost(exploration), conditioning_axis(names[0]), metric
        shared: dict[str, Any] = {"metric": metric, "split": "val", "main": main}
        if cost is not None and self.budgets(exploration) is not None:
            figure, axis = (
                metric_against_cost(points, cost=cost, **shared),
                cost_axis(points, cost, "val"),
            )
        elif len(names) == 2 and len(self.space(exploration)) == 2:
            figure, y = metric_map(points, conditionings=(names[0], names[1]), **shared), names[1]
        else:
            figure = metric_against_conditioning(points, conditioning=names[0], **shared)
        figure.set_dpi(DPI)
        data = io.BytesIO()
        figure.savefig(data, format="png")
        return Front(data_url(data.getvalue()), figure, axis.name, y, axis.label, axis.divisor)

    def view(self, exploration: Exploration, row: int, setting: Mapping[str, Any]) -> View:
        """A validation sample at a setting.

        Raises:
            InputError: no such setting, or data or weights that are missing.
        """
        own = {one.name for one in self.space(exploration)}
        trained = {n: x for n, x in self.best(exploration).items() if n not in own}
        choice = self.explorations.choose(exploration, {**trained, **setting})
        samples = self.samples(exploration)
        spec = exploration.spec
        trainable, network = self.explorations.predictor.network(
            exploration.folder, spec, choice.trial_id, choice.conditioning
        )
        arrays = samples.arrays.select([row])
        values = evaluate_network(
            trainable,
            network,
            arrays,
            torch.device("cpu"),
            channels_last=spec.train.channels_last,
        )
        images, masks = arrays.batch([0])
        is_registration = method_of(spec, trainable.method).task == "registration"
        if is_registration:
            pictures = _pair(network, images[0])
        else:
            labels: tuple[str, ...] = trainable.model.labels  # type: ignore[attr-defined]
            pictures = _segmented(network, images[0], masks[0], labels)
        metric = exploration.objectives[0].name
        point = self._nearest(exploration, choice.conditioning)
        nearby = setting_of({"conditioning": point.conditioning})
        facts = {
            f"{metric} of this sample": _text(float(values[metric][0])),
            f"{metric} on validation": f"{point.metrics[metric]:.4f}"
            + ("" if point.conditioning == choice.conditioning else f" (measured at {nearby})"),
            "MACs": format_quantity(choice.costs["macs"], digits=4),
        }
        facts |= self._position(exploration, choice.costs, point.metrics[metric])
        if is_registration:
            facts["folded voxels"] = f"{values['folded_voxels'][0]:.0f}"
            facts["mean displacement"] = f"{values['displacement'][0]:.2f} voxels"
        front = self.front(exploration)
        known = {**choice.conditioning, **choice.costs, metric: point.metrics[metric]}
        at = " ".join(f"--at {name}={_plain(own)}" for name, own in choice.conditioning.items())
        return View(
            pictures,
            facts,
            front.place(float(known[front.x]), float(known[front.y])),
            f"explorer export {exploration.id} {at} --output network/",
        )

    def _nearest(self, exploration: Exploration, setting: Config) -> Any:
        table = exploration.points()
        scales = {
            one.name: 1.0 if isinstance(one, CategoricalParameter) else one.high - one.low
            for one in self.space(exploration)
        }
        # of other values of what was trained for nothing is near
        scales |= {name: 1e-9 for name in setting if name not in scales}
        return table.point(int(np.nanargmin(table.distances(setting, scales))))

    def _position(
        self, exploration: Exploration, costs: Mapping[str, float], value: float
    ) -> dict[str, str]:
        """How the setting compares with the best that costs no more."""
        cost, objective = self.cost(exploration), exploration.objectives[0]
        if cost is None or self.budgets(exploration) is None:
            return {}
        answer = ask(exploration, Question((Bound(cost, "max", costs[cost]),)))
        if answer.point is None:
            return {"best for this cost": "cheaper than all that was measured"}
        best = answer.point.metrics[objective.name]
        is_on_front = objective.to_loss(value) <= objective.to_loss(best)
        if is_on_front:
            return {"on the front": "yes: nothing measured is better for this cost"}
        where = setting_of({"conditioning": answer.point.conditioning})
        return {"best for this cost": f"{best:.4f} at {where}"}


def data_url(data: bytes) -> str:
    """A PNG as it stands in a page."""
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def _segmented(
    network: torch.nn.Module, image: Any, mask: Any, labels: tuple[str, ...]
) -> dict[str, str]:
    with torch.inference_mode():
        logits: torch.Tensor = network(torch.from_numpy(image)[None])
    found = logits.argmax(1)[0].to(torch.uint8).numpy()
    plain = Segmentation(image, np.zeros_like(found), labels)
    drawn = {
        "image": plain.overlay(),
        "given labels": Segmentation(image, mask, labels).overlay(),
        "network": Segmentation(image, found, labels).overlay(),
    }
    return {title: data_url(png(picture).data) for title, picture in drawn.items()}


def _pair(network: torch.nn.Module, pair: Any) -> dict[str, str]:
    moved, displacement = register(network, pair)
    moving, fixed = pair
    difference = np.abs(middle_slice(moved) - middle_slice(fixed)) - 1
    warping = Warping(fixed, moved, displacement)
    drawn = {
        "moving": to_bytes(middle_slice(moving)),
        "moved": to_bytes(middle_slice(moved)),
        "fixed": to_bytes(middle_slice(fixed)),
        "difference": to_bytes(difference),
        "overlay: fixed green, moved magenta": warping.overlay(),
    }
    return {title: data_url(png(picture).data) for title, picture in drawn.items()}


def _text(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "not defined"


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
