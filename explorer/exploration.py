"""The exploration: what users hold, and how one is carried out, resumed and found again.

Importing this module, opening an exploration and querying it load neither torch nor ray.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from explorer.comparisons import compare
from explorer.extensions import Extensions
from explorer.measurements import (
    FIXED_FIELDS,
    CodedColumns,
    Columns,
    coded_columns_of,
    columns_of,
)
from explorer.places import Place, files_in, runs_place
from explorer.points import FIXED_COLUMNS, Point
from explorer.progress import ProgressReport
from explorer.queries import FEWER_MACS, Answer, Bound, PointTable
from explorer.sending import tracked
from explorer.specs import ExplorationSpec, spec_of
from explorer.store import (
    create_folder,
    measurements_store,
    read_json,
    samples_store,
    set_state,
    write_bytes,
    write_json,
    write_lock,
    write_text,
)
from search_spaces.errors import InputError, UserError, unknown_name
from search_spaces.problem import Objective
from search_spaces.space import Value

if TYPE_CHECKING:
    from explorer.explored import Analysis
    from explorer.exporting import Export
    from explorer.optimizing import Optimisation
    from explorer.registering import RegisteredPairs
    from explorer.registry import Registered
    from trainables.base import Arrays
    from trainables.datasets.base import ImageDataset

MAX_POINT_TABLES = 8  # of a method, split and seeds; the newest are kept for further questions


@dataclass(frozen=True)
class _Loaded:
    """The measurements as they were published under a version, and the points made of them."""

    version: str
    columns: CodedColumns
    tables: dict[tuple[Any, ...], PointTable] = field(default_factory=dict)


class Exploration:
    """One spec carried out, or being carried out; it owns nothing that its folder does not say.

    Args:
        folder: RUNS/ID.
        extensions: what its spec names beside what is shipped and installed.

    Raises:
        InputError: no exploration lies there, or its files are damaged.
    """

    def __init__(self, folder: Place, *, extensions: Extensions | None = None) -> None:
        self.folder, self.extensions = folder, extensions or Extensions()
        self.id = folder.name
        self._loaded: _Loaded | None = None
        self._lock = threading.Lock()  # several threads may ask: one reads the table
        if not (folder / "state.json").is_file():
            known = ", ".join(e for e in exploration_ids(folder.parent)) or "none"
            raise InputError(f"no exploration {self.id!r} in {folder.parent}; there are: {known}")

    def __repr__(self) -> str:
        return f"Exploration({self.id!r}, {self.state['status']}, {self.folder})"

    @property
    def state(self) -> dict[str, Any]:
        """Status, digests, times and the problem, as written by the process that runs it."""
        state: dict[str, Any] = read_json(self.folder / "state.json")
        return state

    @cached_property
    def spec(self) -> ExplorationSpec:
        """The spec with every default written out."""
        path = self.folder / "spec.yaml"
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"{path}: expected the exploration's spec; restore it") from error
        return spec_of(data, str(path)).extended(self.extensions)

    @cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives of the front; the first is a query's default."""
        return tuple(Objective(**objective) for objective in self.state["objectives"])

    @property
    def tie_breaks(self) -> tuple[Objective, ...]:
        """What decides between points that a query's objective holds equal: the better, cheaper."""
        return (*self.objectives, FEWER_MACS)

    def table(self) -> Columns:
        """The measurements, one array per column.

        Raises:
            InputError: nothing was measured yet, or the store is damaged.
        """
        columns = columns_of(measurements_store(self.folder).load())
        self._refuse_empty(columns["split"])
        return columns

    def points(
        self,
        *,
        method: str | None = None,
        split: str = "val",
        seeds: Collection[int] | None = None,
    ) -> PointTable:
        """The points of a method (the exploration's own by default), averaged over (all) seeds.

        Kept until the table grows, so that only the first question reads it.

        Raises:
            InputError: nothing of that method, split and seeds was measured.
        """
        key = (method or self.spec.method, split, None if seeds is None else tuple(sorted(seeds)))
        with self._lock:
            loaded = self._load()
            table = loaded.tables.get(key)
            if table is None:
                table = PointTable.of(loaded.columns, method=key[0], split=split, seeds=key[2])
                loaded.tables[key] = table
                for old in list(loaded.tables)[:-MAX_POINT_TABLES]:
                    loaded.tables.pop(old, None)
        return table

    def _load(self) -> _Loaded:
        store = measurements_store(self.folder)
        version = store.version()  # taken first: rows published meanwhile are read again
        if self._loaded is None or self._loaded.version != version or not version:
            without = set(FIXED_FIELDS.names) - FIXED_COLUMNS
            columns = coded_columns_of(store.load(without=without))
            self._refuse_empty(columns["seed"])
            self._loaded = _Loaded(version, columns)
        return self._loaded

    def _refuse_empty(self, column: Any) -> None:
        if not len(column):
            status = self.state["status"]
            remedy = "wait for it, or if its process died, " if status == "running" else ""
            raise InputError(
                f"{self.id} holds no measurements yet (it is {status}); {remedy}"
                f"explorer resume {self.id} carries it on"
            )

    def query(
        self,
        bounds: Sequence[Bound] = (),
        *,
        objective: Objective | None = None,
        method: str | None = None,
        seeds: Collection[int] | None = None,
        dataset: str | None = None,
    ) -> Answer:
        """The best point within bounds, chosen on validation (Eq. 3 of the paper).

        Args:
            bounds: on metrics, labels of metrics (`dice/nucleus`) and costs.
            objective: what is best; the exploration's first objective by default.
            method: whose points; the exploration's own by default.
            seeds: average these trainings only; all by default.
            dataset: refuse to answer from an exploration of another data set.

        Raises:
            InputError: an unknown name, method, seed or data set.
        """
        self._refuse_other_dataset(dataset)
        points = self.points(method=method, seeds=seeds)
        return points.query(
            bounds,
            objective=objective or self.objectives[0],
            tie_breaks=self.tie_breaks,
        )

    def knee(
        self,
        bounds: Sequence[Bound] = (),
        *,
        method: str | None = None,
        seeds: Collection[int] | None = None,
        dataset: str | None = None,
    ) -> Answer:
        """The knee of the front within bounds: see `PointTable.knee`; arguments as in `query`."""
        self._refuse_other_dataset(dataset)
        return self.points(method=method, seeds=seeds).knee(self.objectives, bounds)

    def elsewhere(
        self,
        dataset: str | Mapping[str, Any],
        *,
        method: str | None = None,
        seeds: Collection[int] | None = None,
        progress: ProgressReport | None = None,
    ) -> tuple[PointTable, dict[str, Any]]:
        """The points of a method judged by all images of another data set: D' of Eq. 3.

        Measured once, and kept beside the exploration.

        Args:
            dataset: a name, or keys of the section `dataset` that differ from the exploration's.
            method: whose points; the exploration's own by default.
            seeds: average these trainings only; all by default.
            progress: where to show progress.

        Returns:
            The points, and what the images are: data set, their number and digest.

        Raises:
            InputError: it cannot be read, has other labels, channels or size, or images that the
                models were trained on.
        """
        shown = progress or ProgressReport(quiet=True)
        table = self.points(method=method, seeds=seeds)
        from explorer.elsewhere import dataset_of, judged_elsewhere
        from explorer.specs import spec_of

        data = {**self.spec.model_dump(), "dataset": dataset_of(self.spec, dataset)}
        other = spec_of(data, "--evaluate-on").dataset
        own = _unchanged_data(self, shown)
        points = [table.point(index) for index in range(len(table))]
        with write_lock(self.folder / "lock"), shown:
            columns, told = judged_elsewhere(self.folder, self.spec, points, other, own, shown)
        return PointTable.of(columns, method=method or self.spec.method, seeds=seeds), told

    def _refuse_other_dataset(self, name: str | None) -> None:
        # One exploration reads one data set, so that a filter by name can only keep all or none.
        if name is not None and name != self.spec.dataset.name:
            raise InputError(
                f"{self.id} explores the data set {self.spec.dataset.name!r}, not {name!r}; "
                f"explorer list names each exploration's"
            )

    def refine(
        self,
        num_points: int,
        bounds: Sequence[Bound] = (),
        *,
        objective: Objective | None = None,
        method: str | None = None,
        progress: ProgressReport | None = None,
    ) -> Answer:
        """The answer to a query after evaluating new settings of the frozen models around it.

        The new settings are stored, and have no test values. Evaluated in this process.

        Raises:
            InputError: not finished, of a method that is trained per setting, or changed data.
            RunError: it could not be carried out; what was measured is kept.
        """
        method, objective = method or self.spec.method, objective or self.objectives[0]
        shown = progress or ProgressReport(quiet=True)
        if self.state["status"] != "finished":
            raise InputError(
                f"{self.id} is {self.state['status']}: refine it once explorer resume {self.id} "
                f"has finished it"
            )
        shown.say(f"refining {self.id}")
        from explorer.models import method_of
        from explorer.session import Session

        if not method_of(self.spec, method).is_amortised:
            raise InputError(f"{method} is trained for each setting: there is nothing to refine")
        self.query(bounds, objective=objective, method=method)  # a wrong question costs nothing
        dataset = _unchanged_data(self, shown)
        with write_lock(self.folder / "lock"), tracked(self.folder, self.spec, shown), shown:
            session = Session(self.folder, self.spec, self.objectives, dataset, shown)
            session.refine(bounds, objective, method, num_points)
        return self.query(bounds, objective=objective, method=method)

    def optimize(
        self,
        *,
        objective: Objective | None = None,
        by: str | None = None,
        solver: str = "gradient",
        num_pairs: int = 20,
        starts: int | None = None,
        num_points: int | None = None,
        method: str | None = None,
        seeds: Collection[int] | None = None,
        progress: ProgressReport | None = None,
    ) -> Optimisation:
        """The best setting for validation samples, through the frozen models (Eq. 4).

        Nothing is stored. Evaluated in this process, in float32.

        Args:
            objective: a metric; the exploration's first objective by default.
            by: `label`, `subject` (pairs within and across) or a column of the data set's
                participants: an optimum for each such group, beside that of all.
            solver: `gradient`; `tpe` and `grid` ask for any metric of any amortised method.
            num_pairs: samples, pairs or images, of each group at most.
            starts: settings that the gradient starts from; two per parameter by default.
            num_points: settings of tpe (50), values per parameter of a grid (101, or 21 of several
                parameters).
            method: whose models; the exploration's own by default.
            seeds: average these trainings only; all by default.
            progress: where to show progress; nowhere by default.

        Raises:
            InputError: an unknown name, a metric or method without a gradient, or changed data.
        """
        from explorer.models import build_trainable, method_of

        method, objective = method or self.spec.method, objective or self.objectives[0]
        advice = {"adaptation": "lambda", "generalization": "interpolation"}
        name = advice.get(method_of(self.spec, method).task)
        if name is not None:
            raise InputError(
                f"{method}: its models are judged by images of their own domains, and not by "
                f"samples at choice; ask explorer query, or explorer analyze {self.id} {name}"
            )
        shown = progress or ProgressReport(quiet=True)
        trial_ids = self.points(method=method, seeds=seeds).best(self.objectives[0]).trial_ids
        shown.say(f"optimizing {self.id}")
        from explorer.optimizing import Optimisation, Optimizer, frozen_models, optimize_all
        from explorer.session import explored_space
        from explorer.splits import candidates_of

        if not method_of(self.spec, method).is_amortised:
            raise InputError(f"{method} is trained for each setting: there is nothing to optimize")
        optimizer = Optimizer(
            frozen_models(self.folder, self.spec, trial_ids),
            explored_space(self.spec, build_trainable(self.spec, method)),
            objective,
            solver=solver,
            starts=starts,
            num_points=num_points,
            channels_last=self.spec.train.channels_last,
        )
        candidates = candidates_of(self.spec, _unchanged_data(self, shown))
        with shown:
            results = optimize_all(
                optimizer, candidates, by=by, num_samples=num_pairs, progress=shown
            )
        return Optimisation(
            exploration_id=self.id,
            method=method,
            metric=objective.name,
            solver=solver,
            num_seeds=len(trial_ids),
            ranges=optimizer.ranges,
            results=results,
        )

    def analyses(self) -> dict[str, str]:
        """Names of the analyses that there are for its task, and what each tells."""
        from explorer.analyses import analyses_of

        return analyses_of(self.spec)

    def analyses_lacking(self) -> dict[str, str]:
        """Of these the analyses that it cannot have, and what each would need."""
        from explorer.analyses import lacking_for

        return lacking_for(self.spec)

    def analyze(
        self, name: str, *, progress: ProgressReport | None = None
    ) -> tuple[Analysis, Place, Place]:
        """An analysis by name, kept as figure and table in the folder and shown in MLflow.

        Returns:
            What was found, the figure (PNG) and the table (CSV).

        Raises:
            InputError: there is none of that name for its task, or not enough was measured.
            RunError: a file cannot be written.
        """
        from explorer.analyses import analyse
        from explorer.explored import Explored
        from explorer.reporting import points_as_json, save_figure
        from explorer.training import trained_model

        known = self.analyses()
        if known and name not in known:
            raise unknown_name(f"analysis of {self.id}", name, known)
        samples = samples_store(self.folder).load()
        samples = samples.filter(samples["split"].to_numpy() == "test")
        settled = {trial["trial_id"]: trial["settled"] for trial in self.trials()}
        explored = Explored(
            self.id,
            self.spec,
            self.objectives,
            self.table(),
            columns_of(samples),
            settled,
            model=lambda trial_id: trained_model(self.folder / "trials" / trial_id, self.spec),
            images=self._images,
            points=points_as_json,
        )
        if self.state["status"] != "finished":
            raise InputError(
                f"{self.id} is {self.state['status']}: analyze it once explorer resume {self.id} "
                f"has finished it"
            )
        found = analyse(explored, name)
        shown = progress or ProgressReport(quiet=True)
        figure = self.folder / "figures" / f"analysis-{name}.png"
        table = self.folder / "tables" / f"{name}.csv"
        with write_lock(self.folder / "lock"), tracked(self.folder, self.spec, shown), shown:
            if isinstance(figure, Path):
                figure.parent.mkdir(exist_ok=True)
            save_figure(found.figure, figure)
            write_bytes(table, found.to_csv().encode())
        return found, figure, table

    def _images(self) -> dict[str, Arrays]:
        """The splits, of the data that was explored."""
        from explorer.splits import samples_of

        dataset = _unchanged_data(self, ProgressReport(quiet=True))
        return {n: own.arrays for n, own in samples_of(self.spec, dataset).items()}

    def registered_pairs(
        self, *, split: str = "val", method: str | None = None, seed: int | None = None
    ) -> RegisteredPairs:
        """The pairs of a split, to be registered at any setting of a frozen model.

        Args:
            split: whose pairs.
            method: an amortised one; the exploration's own by default.
            seed: of the training; the first by default.

        Raises:
            InputError: an unknown name, a method that registers nothing, or changed data.
        """
        method = method or self.spec.method
        seeds = None if seed is None else [seed]
        trial_id = self.points(method=method, seeds=seeds).best(self.objectives[0]).trial_ids[0]
        from explorer.models import method_of
        from explorer.registering import RegisteredPairs
        from explorer.splits import samples_of
        from explorer.training import trained_model

        if method_of(self.spec, method).task != "registration":
            raise InputError(f"{self.id}: {method} registers no pairs")
        if not method_of(self.spec, method).is_amortised:
            raise InputError(
                f"{self.id}: {method} was trained for one setting each; {self.spec.method} "
                f"registers at any"
            )
        dataset = _unchanged_data(self, ProgressReport(quiet=True))
        samples = samples_of(self.spec, dataset)
        if split not in samples:
            raise unknown_name("split", split, samples)
        trainable, module = trained_model(self.folder / "trials" / trial_id, self.spec)
        return RegisteredPairs(trainable, module, samples[split].arrays, samples[split].ids)

    def frontier(self, *, method: str | None = None, split: str = "val") -> list[Point]:
        """The nondominated points of a method on a split, by ascending last objective.

        Choose on validation: a front on `test` is to be looked at.
        """
        table = self.points(method=method, split=split)
        points = [table.point(int(index)) for index in table.frontier(self.objectives).ids]
        last = self.objectives[-1].name
        return sorted(points, key=lambda point: {**point.metrics, **point.costs}[last])

    def compare(
        self,
        *,
        method: str | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> dict[str, Any]:
        """A method, by default the exploration's, against the others; see `comparisons.compare`."""
        columns = self.table()
        samples = samples_store(self.folder).load()
        samples = samples.filter(samples["split"].to_numpy() == "test")
        return compare(
            columns,
            columns_of(samples) if samples.num_rows else None,
            method=method or self.spec.method,
            objectives=self.objectives,
            ranges=ranges or {},
            ways=self.spec.train.grid,
        )

    def trials(self) -> list[dict[str, Any]]:
        """One row per ended training: what it was, how it ended, what it took."""
        rows = []
        for path in files_in(self.folder, "trials/*/trial.json"):
            record = read_json(path)
            row = {**record.pop("trial"), **record}
            row.pop("history")
            rows.append(row)
        return rows

    def plot(self, path: str | Path, *, split: str = "val") -> Path:
        """Draw the fronts of all methods into a .html or .png file.

        Raises:
            InputError: another kind of file, or a split without measurements.
        """
        from explorer.reporting import plot_frontier

        target = Path(path)
        plot_frontier(
            target,
            self.table(),
            self.objectives,
            main=self.spec.method,
            split=split,
            title=self.id,
        )
        return target

    def at(
        self,
        conditioning: Mapping[str, Value],
        *,
        method: str | None = None,
        seeds: Collection[int] | None = None,
    ) -> Point:
        """The point at a setting within the explored ranges, whether or not it was measured.

        One that was not has its known costs and no metrics.

        Args:
            conditioning: a value of every conditioning.
            method: whose; the exploration's own by default.
            seeds: of these trainings only; all by default.

        Raises:
            InputError: an unknown name, a value outside its range, or a setting that a method was
                not trained for.
        """
        table = self.points(method=method, seeds=seeds)
        found = table.find(conditioning)
        if found is not None:
            return found
        from explorer.models import build_trainable, method_of
        from explorer.session import explored_space

        method = method or self.spec.method
        trainable = build_trainable(self.spec, method)
        if not method_of(self.spec, method).is_amortised:
            raise InputError(
                f"{method} is trained for each setting and was not for this one: explorer frontier "
                f"{self.id} --method {method} names some, and --method {self.spec.method} has all"
            )
        space = explored_space(self.spec, trainable)
        trained = [name for name in table.point(0).conditioning if name not in space.names]
        settled = {name: conditioning[name] for name in trained if name in conditioning}
        asked = {name: x for name, x in conditioning.items() if name not in settled}
        setting = space.validate(asked)
        for name in trained:
            every = (table.point(index).conditioning[name] for index in range(len(table)))
            values = list(dict.fromkeys(every))
            if name not in settled and len(values) > 1:
                told = ", ".join(x if isinstance(x, str) else f"{x:g}" for x in values)
                raise InputError(f"{name}: needed, since {method} was trained at {told}")
            settled.setdefault(name, values[0])
        found = table.find({**setting, **settled})
        if found is not None:
            return found
        there = (table.point(index) for index in range(len(table)))
        near = next((one for one in there if settled.items() <= one.conditioning.items()), None)
        if near is None:
            told = ", ".join(f"{name} = {value}" for name, value in settled.items())
            raise InputError(
                f"{method} was not trained for {told}: explorer frontier {self.id} --method "
                f"{method} names the values that there are"
            )
        return Point(
            conditioning={**setting, **settled},
            metrics={},
            standard_errors={},
            seed_sd={},
            num_seeds=0,
            costs=trainable.costs(setting),
            test_metrics={},
            method=method,
            trial_ids=near.trial_ids,
        )

    def export(self, point: Point, output: str | Path, *, formats: Sequence[str] = ()) -> Export:
        """Write the primary network at a point, of the seed that is best on validation.

        Args:
            point: of a query, of the front, or `at` any setting.
            output: a new or empty folder.
            formats: `pt2` and `onnx`, beside the safetensors that are always there.

        Raises:
            InputError: `output` is in use, or a format cannot be written.
            RunError: `output` cannot be written, or a program is not the network.
        """
        from explorer.exporting import export

        return export(
            self.folder,
            self.spec,
            self.table(),
            self.objectives[0],
            point,
            Path(output),
            formats=formats,
        )

    def register(self, exported: Export, name: str, *, bounds: Sequence[Bound] = ()) -> Registered:
        """Make what was exported a version in the registry of the MLflow that tracks this.

        Args:
            exported: what `export` returned.
            name: of the registered model.
            bounds: that were asked for: the version's alias names them, else the setting.

        Raises:
            InputError: the name is none.
            RunError: MLflow is away or refuses.
        """
        from explorer.registry import register

        return register(self.folder, exported, name, bounds=bounds)

    def summary(self) -> dict[str, Any]:
        """What `explorer run` prints as JSON."""
        state = self.state
        has_rows = state["num_measurements"] > 0
        return {
            "exploration_id": self.id,
            "name": self.spec.name,
            "status": state["status"],
            "num_measurements": state["num_measurements"],
            "frontier": [point.to_json() for point in self.frontier()] if has_rows else [],
            "elapsed_s": state["elapsed_s"],
        }


def exploration_ids(runs_dir: Place) -> list[str]:
    """Ids of the explorations in a runs directory, oldest first."""
    if not runs_dir.is_dir():
        return []
    found = [path.parent for path in runs_dir.glob("*/state.json")]
    return [path.name for path in sorted(found, key=_began)]


def _began(folder: Place) -> float:
    try:
        return (folder / "spec.yaml").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def open_exploration(
    exploration_id: str,
    runs_dir: str | Place | None = None,
    *,
    extensions: Extensions | None = None,
) -> Exploration:
    """An exploration by its id.

    Args:
        exploration_id: as `run` told it.
        runs_dir: where explorations live, as in `run`.
        extensions: what its spec names beside what is shipped and installed.

    Raises:
        InputError: there is none of that id, or no such place.
        RunError: the object store does not answer.
    """
    require_id(exploration_id)
    return Exploration(runs_place(runs_dir) / exploration_id, extensions=extensions)


def run(
    spec: ExplorationSpec,
    *,
    runs_dir: str | Place | None = None,
    new: bool = False,
    exploration_id: str | None = None,
    extensions: Extensions | None = None,
    command: str = "",
    progress: ProgressReport | None = None,
) -> Exploration:
    """Carry out a spec: train, explore, test, compare, track.

    Args:
        spec: what to do.
        runs_dir: where explorations live: a folder, or s3://BUCKET/PREFIX; default
            `EXPLORER_RUNS_DIR` or `runs/`.
        new: start again although an exploration of the same spec is unfinished.
        exploration_id: to take; by default the next free one of the spec's name. One that says
            more than the name is no second try of what is unfinished.
        extensions: what the spec names beside what is shipped and installed.
        command: that the spec came from, for reports.
        progress: where to show progress; nowhere by default.

    Raises:
        InputError: the spec or the data are wrong, or an exploration of it is unfinished.
        RunError: it could not be carried out; `resume` goes on where it stopped.
    """
    progress = progress or ProgressReport(quiet=True)
    runs = runs_place(runs_dir)
    if spec.tracking and not isinstance(runs, Path):
        from explorer.tracking import tracking_uri

        tracking_uri(runs)  # raises where it cannot be
    progress.say("checking the spec")  # before the imports, which take seconds
    from explorer.fitting import fitting_batch_size
    from explorer.session import check_spec, code_version
    from explorer.splits import load_data
    from explorer.training import settled_precision

    train = spec.train.model_copy(update={"precision": settled_precision(spec)})
    spec = spec.model_copy(update={"train": train}).extended(extensions or Extensions())
    objectives = check_spec(spec)
    batch_size = fitting_batch_size(spec)
    if batch_size < spec.train.batch_size:
        progress.say(
            f"train.batch_size {spec.train.batch_size} becomes {batch_size}, so that the largest "
            f"rescaling factors fit into memory"
        )
        train = spec.train.model_copy(update={"batch_size": batch_size})
        spec = spec.model_copy(update={"train": train}).extended(spec.extensions)
    if exploration_id is not None:
        require_id(exploration_id)
    elif not new:
        _refuse_unfinished(spec, runs)
    progress.say(f"reading the data set {spec.dataset.name}")
    dataset = load_data(spec)
    folder = _new_folder(runs, spec.name, exploration_id)
    write_text(folder / "spec.yaml", spec.to_yaml())
    state = {
        "status": "running",
        "spec_digest": spec.digest,
        "spec_file_digest": _digest(folder / "spec.yaml"),
        "data_digest": dataset.digest,
        "code_version": code_version(),
        "created": time.time(),
        "num_measurements": 0,
        "elapsed_s": {},
        "num_images": len(dataset),
        "objectives": [asdict(objective) for objective in objectives],
        "command": command,
    }
    write_json(folder / "state.json", state)
    exploration = Exploration(folder, extensions=extensions)
    _carry_out(exploration, dataset, progress)
    return exploration


def resume(
    exploration_id: str,
    *,
    runs_dir: str | Place | None = None,
    extensions: Extensions | None = None,
    progress: ProgressReport | None = None,
) -> Exploration:
    """Carry on an exploration that was stopped; nothing recorded is computed again.

    Raises:
        InputError: unknown id, or data that changed since it began.
        RunError: it could not be carried out.
    """
    exploration = open_exploration(exploration_id, runs_dir, extensions=extensions)
    if _digest(exploration.folder / "spec.yaml") != exploration.state["spec_file_digest"]:
        raise InputError(
            f"{exploration.folder / 'spec.yaml'} changed since the exploration began; restore it, "
            f"or run the changed spec as an exploration of its own"
        )
    progress = progress or ProgressReport(quiet=True)
    progress.say("checking the spec")
    from explorer.session import check_spec

    check_spec(exploration.spec)
    _carry_out(exploration, _unchanged_data(exploration, progress), progress)
    return exploration


def _unchanged_data(exploration: Exploration, progress: ProgressReport) -> ImageDataset:
    progress.say(f"reading the data set {exploration.spec.dataset.name}")
    from explorer.splits import load_data

    dataset = load_data(exploration.spec)
    expected = exploration.state["data_digest"]
    if dataset.digest != expected:
        raise InputError(
            f"{exploration.id}: the data set {exploration.spec.dataset.name!r} changed since the "
            f"exploration began (digest {expected[:12]}, now {dataset.digest[:12]}); restore the "
            f"data, or run the spec anew with --new"
        )
    return dataset


def require_id(exploration_id: str) -> None:
    """Refuse what can be no exploration's id, and could lead out of the runs directory.

    Raises:
        InputError: it is of other characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", exploration_id):
        raise InputError(f"expected an exploration id such as demo-1, got {exploration_id!r}")


def _digest(path: Place) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _refuse_unfinished(spec: ExplorationSpec, runs: Place) -> None:
    for exploration_id in exploration_ids(runs):
        try:
            state = read_json(runs / exploration_id / "state.json")
        except InputError:
            continue  # a damaged exploration keeps no other one from running
        if state["spec_digest"] == spec.digest and state["status"] != "finished":
            raise InputError(
                f"{exploration_id} has the same spec and is {state['status']}: carry it on with "
                f"explorer resume {exploration_id}, or start another with --new"
            )


def _new_folder(runs: Place, name: str, exploration_id: str | None) -> Place:
    """Take the given id, or the next free one: NAME-1, NAME-2, ..."""
    number = 1
    while True:
        folder = runs / (exploration_id or f"{name}-{number}")
        try:
            create_folder(folder)
        except FileExistsError:
            if not runs.is_dir():
                raise InputError(f"--runs-dir {runs}: expected a folder, found a file") from None
            if exploration_id is not None:
                raise InputError(
                    f"--id {exploration_id}: {runs} has one of that id already; explorer resume "
                    f"{exploration_id} carries it on"
                ) from None
            number += 1
        except OSError as error:
            raise InputError(
                f"--runs-dir {runs}: cannot be written ({error.strerror or error}); choose another"
            ) from error
        else:
            return folder


def _carry_out(exploration: Exploration, dataset: ImageDataset, progress: ProgressReport) -> None:
    from explorer.session import Session

    folder = exploration.folder
    with write_lock(folder / "lock"), tracked(folder, exploration.spec, progress):
        set_state(folder, status="running")
        session = Session(folder, exploration.spec, exploration.objectives, dataset, progress)
        try:
            with progress:
                session.carry_out()
        except KeyboardInterrupt:
            set_state(folder, status="interrupted")
            progress.say(
                f"{exploration.id} is interrupted; carry it on with explorer resume "
                f"{exploration.id}"
            )
            raise
        except UserError as error:
            set_state(folder, status="failed", error=str(error))
            raise
