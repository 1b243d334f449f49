"""The measurement, the one record that flows, and the one schema of its table.

A table has fixed columns and flat families of columns: `conditioning/NAME` (float64, or string for
a category), `metric/NAME[/LABEL]`, `se/NAME[/LABEL]` and `cost/NAME` (float64, null where absent).
Shapes: n rows or images.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from search_spaces.space import Value

Family: TypeAlias = Literal["conditioning", "metric", "se", "cost"]
Columns: TypeAlias = Mapping[str, NDArray[Any]]

SCHEMA_VERSION = 1
FIXED_FIELDS = pa.schema(
    [
        ("exploration_id", pa.string()),
        ("trial_id", pa.string()),
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("split", pa.string()),
        ("data_digest", pa.string()),
        ("code_version", pa.string()),
        ("setting_id", pa.string()),
        ("num_samples", pa.int64()),
        ("evaluation_s", pa.float64()),
        ("time", pa.float64()),
    ]
)
KEY = ("trial_id", "split", "setting_id")
SAMPLE_FIELDS = pa.schema(
    [
        ("trial_id", pa.string()),
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("split", pa.string()),
        ("setting_id", pa.string()),
        ("sample_id", pa.string()),
    ]
)
SAMPLE_KEY = (*KEY, "sample_id")

_ATTRIBUTES: dict[Family, str] = {
    "conditioning": "conditioning",
    "metric": "metrics",
    "se": "standard_errors",
    "cost": "costs",
}


@dataclass(frozen=True, eq=False)
class Coded:
    """A column of text: each row's value is `names[code]`; None stands for an absent one."""

    codes: NDArray[np.integer]
    names: tuple[str | None, ...]

    def __getitem__(self, row: int) -> str | None:
        return self.names[int(self.codes[row])]

    @classmethod
    def of(cls, values: NDArray[Any]) -> Coded:
        """Number the texts of an array in the order of their first appearance."""
        # A dictionary numbers 1e6 short strings about ten times faster than sorting them does.
        seen: dict[str | None, int] = {}
        texts = (value if isinstance(value, str) else None for value in values.tolist())
        numbers = (seen.setdefault(text, len(seen)) for text in texts)
        codes = np.fromiter(numbers, dtype=np.int64, count=len(values))
        return cls(codes, tuple(seen))


CodedColumns: TypeAlias = Mapping[str, NDArray[Any] | Coded]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One setting of one trial evaluated on one split; (trial_id, split, setting_id) is unique.

    Attributes:
        exploration_id: the spec carried out.
        trial_id: the training whose model was evaluated.
        method: the trial's method.
        seed: the trial's seed.
        split: `val` or `test`.
        data_digest: sha256 of the data that were read.
        code_version: version of the code that measured.
        setting_id: `setting_id(conditioning)`.
        num_samples: samples behind the metrics.
        evaluation_s: seconds that this evaluation took.
        time: when it ended, in seconds since 1970.
        conditioning: the setting; a baseline's row carries the value that it was trained with.
        metrics: name or name/label to mean; finite.
        standard_errors: of the metrics that have one; NaN counts as absent.
        costs: name to value; finite.
    """

    exploration_id: str
    trial_id: str
    method: str
    seed: int
    split: str
    data_digest: str
    code_version: str
    setting_id: str
    num_samples: int
    evaluation_s: float
    time: float
    conditioning: Mapping[str, Value]
    metrics: Mapping[str, float]
    standard_errors: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)

    @property
    def measurement_id(self) -> str:
        """The unique key as one string, TRIAL/SPLIT/SETTING."""
        return f"{self.trial_id}/{self.split}/{self.setting_id}"


def setting_id(conditioning: Mapping[str, Value]) -> str:
    """First 12 hex digits of the sha256 of the conditioning as canonical JSON.

    Names are sorted; numbers are taken as floats rounded to 12 decimals, so that 3, 3.0 and a value
    that went through the table give the same id.
    """
    canonical = {
        name: value if isinstance(value, str) else round(float(value), 12) + 0.0
        for name, value in conditioning.items()
    }
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def measurements_table(measurements: Sequence[Measurement]) -> pa.Table:
    """Return the n measurements as a table, rows in the order given.

    Raises:
        ValueError: a conditioning, metric, standard error or cost is not finite.
    """
    columns = {
        name: pa.array([getattr(m, name) for m in measurements], kind)
        for name, kind in zip(FIXED_FIELDS.names, FIXED_FIELDS.types, strict=True)
    }
    for family, attribute in _ATTRIBUTES.items():
        rows = [_clean(m, family, getattr(m, attribute)) for m in measurements]
        for name in sorted({name for row in rows for name in row}):
            columns[f"{family}/{name}"] = _value_array([row.get(name) for row in rows])
    return pa.table(columns)


def measurements_of(table: pa.Table) -> list[Measurement]:
    """Return a table's rows as measurements, nulls dropped; inverts `measurements_table`."""
    fixed = {name: table[name].to_pylist() for name in FIXED_FIELDS.names}
    nested = {
        attribute: _dicts(table, family, table.num_rows)
        for family, attribute in _ATTRIBUTES.items()
    }
    columns: dict[str, list[Any]] = {**fixed, **nested}
    return [
        Measurement(**dict(zip(columns, row, strict=True)))
        for row in zip(*columns.values(), strict=True)
    ]


def columns_of(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Return a table as one array per column: NaN for an absent number, None for absent text."""
    return {name: table[name].to_numpy() for name in table.column_names}


def coded_columns_of(table: pa.Table) -> dict[str, NDArray[Any] | Coded]:
    """Return a table's columns, text as codes: a million rows without a million strings."""
    return {name: _codes_or_array(table[name]) for name in table.column_names}


def _codes_or_array(column: pa.ChunkedArray) -> NDArray[Any] | Coded:
    if not pa.types.is_string(column.type):
        array: NDArray[Any] = column.to_numpy()
        return array
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return Coded(encoded.indices.to_numpy(), tuple(encoded.dictionary.to_pylist()))


def samples_table(
    *,
    trial_id: str,
    method: str,
    seed: int,
    split: str,
    conditioning: Mapping[str, Value],
    sample_ids: Sequence[str],
    metrics: Mapping[str, NDArray[np.float64]],
) -> pa.Table:
    """Return the per-image values of one setting, one row per image.

    Args:
        trial_id: the training whose model was evaluated.
        method: the trial's method.
        seed: the trial's seed.
        split: `val` or `test`.
        conditioning: the setting.
        sample_ids: n unique ids.
        metrics: name to (n,) values; NaN, undefined for that image, becomes null.

    Raises:
        ValueError: a metric has another shape than (n,), or an infinite value.
    """
    n = len(sample_ids)
    place = f"{trial_id}/{split}/{setting_id(conditioning)}"
    fixed = {
        "trial_id": trial_id,
        "method": method,
        "seed": seed,
        "split": split,
        "setting_id": setting_id(conditioning),
    }
    columns = {name: pa.repeat(pa.scalar(value), n) for name, value in fixed.items()}
    columns["sample_id"] = pa.array(sample_ids, pa.string())
    for name, value in sorted(conditioning.items()):
        columns[f"conditioning/{name}"] = _value_array([value] * n)
    for name, values in sorted(metrics.items()):
        array = np.asarray(values, dtype=np.float64)
        if array.shape != (n,):
            raise ValueError(f"metric {name} of {place}: expected shape ({n},), got {array.shape}")
        if np.isinf(array).any():
            raise ValueError(f"metric {name} of {place} must be finite or NaN, got infinity")
        columns[f"metric/{name}"] = pa.array(array, from_pandas=True)
    return pa.table(columns)


def values_by_row(samples: pa.Table) -> dict[tuple[str, str, str], dict[str, NDArray[np.float64]]]:
    """Values per image by metric, NaN where absent, for every key of a measurement.

    Images keep the order in which they were stored; those of one key lie together.
    """
    if not samples.num_rows:
        return {}
    columns = [samples[name].dictionary_encode().combine_chunks() for name in KEY]
    codes = np.stack([column.indices.to_numpy() for column in columns])
    starts = [0, *(np.flatnonzero((np.diff(codes) != 0).any(axis=0)) + 1), samples.num_rows]
    metrics = {name: samples[f"metric/{name}"].to_numpy() for name in families(samples, "metric")}
    found = {}
    for start, end in itertools.pairwise(starts):
        trial_id, split, setting = (
            column.dictionary[int(code)].as_py()
            for column, code in zip(columns, codes[:, start], strict=True)
        )
        found[trial_id, split, setting] = {
            name: values[start:end] for name, values in metrics.items()
        }
    return found


def join_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Stack one table or more: absent columns become null, fixed columns first, families sorted.

    Raises:
        TypeError: a column holds numbers in one table and text in another.
    """
    joined = pa.concat_tables(tables, promote_options="default")
    fixed = [name for name in joined.column_names if "/" not in name]
    return joined.select(fixed + sorted(set(joined.column_names) - set(fixed)))


def families(table: pa.Table, family: Family) -> tuple[str, ...]:
    """Names that a family has in a table (`dice`, `dice/nucleus`), sorted."""
    prefix = f"{family}/"
    return tuple(sorted(c.removeprefix(prefix) for c in table.column_names if c.startswith(prefix)))


def _clean(
    measurement: Measurement, family: Family, values: Mapping[str, Value]
) -> Mapping[str, Value]:
    if family == "se":
        values = {name: value for name, value in values.items() if value == value}
    for name, value in values.items():
        if not isinstance(value, str) and not math.isfinite(value):
            raise ValueError(
                f"{family} {name} of {measurement.measurement_id} must be finite, got {value}"
            )
    return values


def _value_array(values: Sequence[Value | None]) -> pa.Array:
    is_text = any(isinstance(value, str) for value in values)
    if is_text:
        return pa.array(values, pa.string())
    return pa.array([None if v is None else float(v) for v in values], pa.float64())


def _dicts(table: pa.Table, family: Family, num_rows: int) -> list[dict[str, Value]]:
    dicts: list[dict[str, Value]] = [{} for _ in range(num_rows)]
    for name in families(table, family):
        for row, value in zip(dicts, table[f"{family}/{name}"].to_pylist(), strict=True):
            if value is not None:
                row[name] = value
    return dicts
