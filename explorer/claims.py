"""What the papers claim, and what explorations here say of it.

A claim reads a document: what `explorer frontier ID --compare --json` or `explorer analyze ID NAME
--json` prints of an exploration. Numbers of the papers are from

- SSHN: Gonzalez Ortiz, Guttag, Dalca, "Scale-Space Hypernetworks for Efficient Biomedical Imaging",
  arXiv:2304.05448;
- HyperMorph: Hoopes, Hoffmann, Fischl, Guttag, Dalca, "HyperMorph: Amortized Hyperparameter
  Learning for Image Registration", arXiv:2101.01035;
- SpotTUnet: Zakazov, Shirokikh, Chernyavskiy, Belyaev, "Anatomy of Domain Shift Impact on U-Net
  Layers in MRI Segmentation", arXiv:2107.04914;
- HyDA: Serebro, Riklin Raviv, "HyDA: Hypernetworks for Test Time Domain Adaptation in Medical
  Imaging Analysis", arXiv:2503.04979.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from search_spaces.errors import InputError

Document: TypeAlias = Mapping[str, Any]
Held: TypeAlias = Literal["yes", "no", "not separated"]
FRONT = "frontier"

# [SSHN] Table 1: test Dice in points at 11 factors, 0 to 0.5 by 0.05, mean over five seeds
_STOCHASTIC, _FILM, _FIXED, _SSHN = "stochastic", "film", "fixed", "sshn"
TABLE_1: dict[str, dict[str, tuple[float, ...]]] = {
    "camus": {
        _STOCHASTIC: (30.5, 66.1, 74.3, 77.3, 79.0, 80.7, 81.4, 82.4, 82.5, 83.1, 83.3),
        _FILM: (32.2, 67.3, 73.0, 77.6, 79.2, 80.0, 80.3, 81.5, 82.4, 82.5, 83.2),
        _FIXED: (39.1, 69.1, 77.5, 79.4, 77.5, 80.7, 79.4, 79.6, 81.8, 82.5, 83.5),
        _SSHN: (35.8, 72.4, 80.0, 82.1, 83.9, 85.0, 84.9, 85.3, 86.0, 86.0, 86.2),
    },
    "oasis": {
        _STOCHASTIC: (12.1, 60.9, 52.3, 81.6, 81.4, 83.9, 84.8, 83.9, 84.7, 84.2, 84.8),
        _FILM: (13.6, 61.0, 61.8, 83.2, 84.1, 85.8, 86.5, 86.4, 87.0, 86.5, 87.2),
        _FIXED: (31.5, 80.5, 84.9, 86.9, 87.9, 88.2, 88.3, 88.6, 88.8, 88.9, 89.1),
        _SSHN: (28.3, 82.7, 86.7, 89.0, 89.6, 90.2, 90.3, 90.5, 90.6, 90.6, 90.7),
    },
    "pandental": {
        _STOCHASTIC: (56.0, 80.7, 80.1, 81.9, 84.1, 84.7, 85.1, 85.6, 85.7, 85.8, 85.6),
        _FILM: (60.2, 80.5, 79.7, 82.1, 84.6, 85.2, 85.5, 85.7, 85.5, 85.7, 85.4),
        _FIXED: (68.5, 83.8, 85.2, 86.5, 85.8, 87.6, 87.3, 86.9, 87.9, 88.1, 88.9),
        _SSHN: (63.7, 83.9, 85.0, 86.4, 87.5, 88.6, 88.9, 89.4, 89.7, 89.8, 89.9),
    },
    "wbc": {
        _STOCHASTIC: (68.9, 85.6, 84.3, 85.5, 86.7, 88.7, 88.7, 89.0, 87.7, 88.3, 88.1),
        _FILM: (73.1, 86.1, 84.9, 83.7, 87.0, 87.5, 87.2, 87.6, 87.5, 86.5, 87.1),
        _FIXED: (76.6, 86.5, 85.9, 86.9, 86.6, 88.3, 87.5, 86.7, 89.1, 89.3, 90.9),
        _SSHN: (75.9, 85.8, 88.4, 89.1, 90.6, 91.8, 91.8, 92.2, 92.7, 92.7, 92.7),
    },
}
# [SSHN] Table 2: the same of registration, OASIS; 0.35 is not in the paper
TABLE_2: dict[str, tuple[float, ...]] = {
    _STOCHASTIC: (66.6, 66.9, 67.2, 67.6, 68.6, 69.1, 69.5, 70.0, 70.2, 70.3),
    _FILM: (67.4, 67.6, 67.8, 68.6, 69.5, 70.0, 70.3, 70.5, 70.6, 70.7),
    _FIXED: (67.7, 67.9, 68.5, 69.1, 69.5, 70.0, 70.2, 70.7, 71.2, 71.5),
    _SSHN: (67.7, 67.8, 68.4, 69.1, 69.9, 70.5, 70.9, 71.5, 71.6, 71.7),
}
# [SSHN] Table 3: minutes of training of all Fixed networks over those of SSHN
TABLE_3 = {"camus": 8.98, "oasis": 9.23, "pandental": 8.93, "wbc": 9.51, "registration": 8.94}


@dataclass(frozen=True)
class Finding:
    """What a document says of a claim.

    Attributes:
        here: what was measured, with its spread.
        held: whether the claim held; `not separated`: the spread includes both.
        cost_s: seconds of training of what the claim is about, all seeds, where they are told.
    """

    here: str
    held: Held
    cost_s: float | None = None


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper that explorations can bear out or not.

    Attributes:
        paper: short name; see the module.
        place: table or figure.
        says: the claim.
        number: the paper's number, given the document.
        document: `frontier`, or the name of the analysis that it reads.
        read: finds; None where the document says nothing of it.
        methods: whose exploration it is about.
    """

    paper: str
    place: str
    says: str
    number: Callable[[Document], str]
    document: str
    read: Callable[[Document], Finding | None]
    methods: tuple[str, ...] = field(default=())


def rows_of(document: Document, source: str) -> Iterator[dict[str, Any]]:
    """A row of the report for every claim that a document says something of.

    Args:
        document: see the module.
        source: where it came from, for messages.

    Raises:
        InputError: it is no such document, or something of it is missing.
    """
    is_mapping = isinstance(document, Mapping)
    name = None if not is_mapping else FRONT if FRONT in document else document.get("analysis")
    if not isinstance(name, str) or "exploration_id" not in document:
        raise InputError(
            f"{source}: expected what explorer frontier --compare --json or explorer analyze ID "
            f"NAME --json printed"
        )
    for claim in CLAIMS:
        if claim.document != name:
            continue
        if claim.methods and document.get("method") not in claim.methods:
            continue
        try:
            found = claim.read(document)
            number = claim.number(document)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"{source}: {type(error).__name__} {error} where the claim {claim.says!r} is read; "
                f"print it again with this version"
            ) from error
        if found is not None:
            yield {
                "paper": claim.paper,
                "place": claim.place,
                "claim": claim.says,
                "paper_number": number,
                "here": found.here,
                "held": found.held,
                "data": document.get("data", ""),
                "cost_s": found.cost_s,
                "exploration_id": document["exploration_id"],
                "command": document.get("command", ""),
            }


def documents_for(method: str, analyses: Sequence[str]) -> list[str]:
    """Names of the documents of an exploration of a method that claims read."""
    names = [
        claim.document
        for claim in CLAIMS
        if (claim.document == FRONT and method in claim.methods) or claim.document in analyses
    ]
    return list(dict.fromkeys(names))


def _fixed_number(text: str) -> Callable[[Document], str]:
    return lambda _: text


def _data_of(document: Document) -> str:
    return str(document.get("data", "")).partition(",")[0]


def _mean_gain(table: Mapping[str, Sequence[float]], other: str) -> float:
    return sum(a - b for a, b in zip(table[_SSHN], table[other], strict=True)) / len(table[other])


def _gain_in_table(other: str) -> Callable[[Document], str]:
    def number(document: Document) -> str:
        if _is_registration(document):
            return f"{_mean_gain(TABLE_2, other):+.1f} points (mean of ten φ, OASIS)"
        name = _data_of(document)
        if name in TABLE_1:
            return f"{_mean_gain(TABLE_1[name], other):+.1f} points (mean of eleven φ)"
        gains = [_mean_gain(own, other) for own in TABLE_1.values()]
        return f"{min(gains):+.1f} to {max(gains):+.1f} points (four other data sets)"

    return number


def _is_registration(document: Document) -> bool:
    return str(document.get("method", "")).endswith("-registration")


def _family(name: str) -> str:
    return name.removesuffix("-registration")


def _cost_in_table(document: Document) -> str:
    name = "registration" if _is_registration(document) else _data_of(document)
    if name in TABLE_3:
        return f"{TABLE_3[name]:.1f} times (eleven networks)"
    return f"{min(TABLE_3.values()):.1f} to {max(TABLE_3.values()):.1f} times (eleven networks)"


def _cost_of(document: Document) -> float | None:
    own = document.get("comparison", {}).get("methods", {}).get(document["method"])
    return None if own is None else float(own["train_s"])


def _separated(low: float, high: float) -> Held:
    if low > 0:
        return "yes"
    return "no" if high < 0 else "not separated"


def _points(difference: float, low: float, high: float) -> str:
    return f"{100 * difference:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _better_than(other: str) -> Callable[[Document], Finding | None]:
    """SSHN against another method at the settings that both have, on test."""

    def read(document: Document) -> Finding | None:
        for pair in document.get("comparison", {}).get("paired_on_test", ()):
            own = document["method"]
            if pair["method"] != own or _family(pair["against"]) != other:
                continue
            low, high = pair["low"], pair["high"]
            if None in (low, high) or not all(map(math.isfinite, (low, high))):
                return None
            here = (
                f"{_points(pair['difference'], low, high)} of Dice at "
                f"{_count(pair['num_settings'], 'setting')}, "
                f"{_count(pair['num_images'], 'image')}, {_count(pair['num_seeds'], 'seed')}"
            )
            return Finding(here, _separated(low, high), _cost_of(document))
        return None

    return read


def _no_worse_than(other: str) -> Callable[[Document], Finding | None]:
    better = _better_than(other)

    def read(document: Document) -> Finding | None:
        found = better(document)
        if found is None:
            return None
        return Finding(found.here, "no" if found.held == "no" else "yes", found.cost_s)

    return read


def _cheaper_than(other: str) -> Callable[[Document], Finding | None]:
    """Seconds of training of a grid over those of one conditioned network."""

    def read(document: Document) -> Finding | None:
        methods = document.get("comparison", {}).get("methods", {})
        for name, own in methods.items():
            if _family(name) == other:
                mine = methods[document["method"]]
                num_networks = own["num_trainings"] / max(1, mine["num_trainings"])
                here = f"{own['train_ratio']:.1f} times ({num_networks:.3g} networks)"
                held: Held = "yes" if own["train_ratio"] > 1 else "no"
                return Finding(here, held, _cost_of(document))
        return None

    return read


def _saving(document: Document) -> Finding | None:
    found = document.get("comparison", {}).get("iso_accuracy", {}).get(_FIXED)
    if found is None:
        return None
    saving = found.get("saving")
    if saving is None:
        return Finding("its quality is not reached", "no", _cost_of(document))
    held: Held = "yes" if saving >= 0.4 else "no"
    return Finding(f"{100 * saving:.0f} % fewer multiply-adds", held, _cost_of(document))


def _wide_prior(document: Document) -> Finding | None:
    """The widest prior against none, at the setting in their middle."""
    own = [row for row in document["rows"] if row["prior_width"] is not None]
    narrow = min(own, key=lambda row: float(row["prior_width"]))
    wide = max(own, key=lambda row: float(row["prior_width"]))
    if narrow is wide:
        return None
    gain = wide["test"] - narrow["test"]
    error = math.hypot(wide["test_sd"], narrow["test_sd"])
    here = (
        f"half width {wide['prior_width']:g} against {narrow['prior_width']:g}: "
        f"{100 * gain:+.2f} ± {100 * error:.2f} points on test"
    )
    return Finding(here, _separated(gain - error, gain + error))


def _transferable(document: Document) -> Finding | None:
    """Weights of 0.5 at other factors; 5 points are what is called usable here."""
    (name,) = set(document["rows"][0]) - {"method", "weights_at", "dice", "sd"}
    lost: dict[str, float] = {}
    for method in dict.fromkeys(row["method"] for row in document["rows"]):
        own = {row[name]: row["dice"] for row in document["rows"] if row["method"] == method}
        near = [value for x, value in own.items() if 0.45 - 1e-9 <= x <= 0.6 + 1e-9]
        if not near:
            return None
        home = own[min(own, key=lambda x: abs(x - 0.5))]
        lost[method] = home - min(near)
    here = ", ".join(f"{method} at most {100 * x:.1f} points lost" for method, x in lost.items())
    held: Held = "yes" if all(x <= 0.05 for x in lost.values()) else "no"
    return Finding(f"φ from 0.45 to 0.6: {here}", held)


def _first_matters_most(document: Document) -> Finding | None:
    shares = {row["factor"]: row["share_of_variance"] for row in document["rows"]}
    order = sorted(shares, key=lambda name: -shares[name])
    here = ", ".join(f"{name} {100 * shares[name]:.0f} %" for name in order)
    held: Held = "yes" if order == sorted(order) else "no"
    return Finding(f"of the variance explained alone: {here}", held)


def _within_best_fixed(method: str) -> Callable[[Document], Finding | None]:
    def read(document: Document) -> Finding | None:
        own = [
            row
            for row in document["rows"]
            if row["method"] == method and row["against_best_fixed"] is not None
        ]
        if not own:
            return None
        gains = [row["against_best_fixed"]["gain"] for row in own]
        errors = [row["against_best_fixed"]["error"] for row in own]
        count = sum(gain >= -error for gain, error in zip(gains, errors, strict=True))
        here = (
            f"within one standard error, or better, in {count} of {len(own)} cases; surface Dice "
            f"{100 * sum(gains) / len(gains):+.1f} points on average"
        )
        seconds = sum(row["train_s"] * row["num_seeds"] for row in own)
        return Finding(here, "yes" if count == len(own) else "no", seconds)

    return read


def _amortised(document: Document) -> Finding | None:
    rows = [row for row in document["rows"] if row["against"] == "spottunet"]
    if not rows:
        return None
    gain = sum(row["difference"]["dice"] for row in rows) / len(rows)
    here = f"{100 * gain:+.2f} points of Dice on average over {len(rows)} pairs, amounts and λ"
    return Finding(here, "yes" if gain > -0.005 else "no")


def _against_erm(method: str) -> Callable[[Document], Finding | None]:
    """Mean over the domains that were held out, with one standard error over seeds."""

    def read(document: Document) -> Finding | None:
        for row in document["rows"]:
            if row["held_out"] == "mean" and row["method"] == method:
                gain, error = row["gain"], row["gain_error"]
                if gain is None or error is None:
                    return None
                metric = "balanced_accuracy" if "balanced_accuracy" in row else "mae"
                if metric == "balanced_accuracy":
                    here = f"{100 * gain:+.1f} ± {100 * error:.1f} points of balanced accuracy"
                else:
                    here = f"absolute error {-gain:+.3f} ± {error:.3f}"
                seconds = row["train_s"] * len(row["seeds"])
                return Finding(here, _separated(gain - error, gain + error), seconds)
        return None

    return read


def _one_pass(document: Document) -> Finding | None:
    times = {row["method"]: row["times_erm"] for row in document["rows"]}
    if "hyda" not in times or "tent" not in times:
        return None
    ratio = times["tent"] / times["hyda"]
    held: Held = "yes" if ratio > 1 else "no"
    return Finding(f"TENT takes {ratio:.1f} times HyDA's time per image", held)


_SSHN_REGISTRATION = f"{_SSHN}-registration"

CLAIMS: tuple[Claim, ...] = (
    *(
        Claim(
            paper="SSHN",
            place=place,
            says=f"one SSHN is more accurate than {title}",
            number=_gain_in_table(other),
            document=FRONT,
            read=_better_than(other),
            methods=(method,),
        )
        for method, place in ((_SSHN, "Table 1"), (_SSHN_REGISTRATION, "Table 2"))
        for other, title in (
            (_FIXED, "a network trained for each φ"),
            (_STOCHASTIC, "Stochastic"),
            (_FILM, "FiLM"),
        )
    ),
    Claim(
        paper="SSHN",
        place="Table 3",
        says="training it takes a fraction of training a network for each φ",
        number=_cost_in_table,
        document=FRONT,
        read=_cheaper_than(_FIXED),
        methods=(_SSHN, _SSHN_REGISTRATION),
    ),
    Claim(
        paper="SSHN",
        place="Fig. 7",
        says="the quality of the best Fixed network for at least 40 % less",
        number=_fixed_number("at least 40 %"),
        document=FRONT,
        read=_saving,
        methods=(_SSHN,),
    ),
    Claim(
        paper="SSHN",
        place="Fig. 8",
        says="a prior around φ = 0.5 makes the network for φ = 0.5 better",
        number=_fixed_number("half widths 0 to 0.05: from below Fixed to above it"),
        document="prior-width",
        read=_wide_prior,
    ),
    Claim(
        paper="SSHN",
        place="Fig. 9",
        says="weights for φ = 0.5 serve at φ from 0.45 to 0.6",
        number=_fixed_number("in the figure"),
        document="transfer",
        read=_transferable,
    ),
    Claim(
        paper="SSHN",
        place="Fig. 12",
        says="of separate factors the first matters most, the last least",
        number=_fixed_number("in the figure"),
        document="factors",
        read=_first_matters_most,
    ),
    Claim(
        paper="HyperMorph",
        place="section 4.1",
        says="at every setting as accurate as a network trained for it",
        number=_fixed_number("0.16 ± 0.03 points between the best; two settings: 0.32 ± 0.02"),
        document=FRONT,
        read=_no_worse_than("voxelmorph"),
        methods=("hypermorph",),
    ),
    Claim(
        paper="HyperMorph",
        place="section 4.1",
        says="training it takes a fraction of training the grid",
        number=_fixed_number("5.2 ± 0.2 times (13 networks); two settings: 10.5 ± 0.2 (25)"),
        document=FRONT,
        read=_cheaper_than("voxelmorph"),
        methods=("hypermorph",),
    ),
    Claim(
        paper="SpotTUnet",
        place="Fig. 3",
        says="no fixed choice of layers to fine-tune is better",
        number=_fixed_number("better with 8 to 90 slices (p ≤ 0.02), level with 270 and 800"),
        document="strategies",
        read=_within_best_fixed("spottunet"),
    ),
    Claim(
        paper="SpotTUnet",
        place="not in the paper",
        says="one training over λ is within half a point of one for each λ",
        number=_fixed_number(""),
        document="amortisation",
        read=_amortised,
    ),
    *(
        Claim(
            paper="HyDA",
            place="Tables 1 and 3",
            says=f"{title} is better than a plain network on a domain that training never saw",
            number=_fixed_number("chest X-rays +3 points of AUC; brain age 3.73 to 3.57 years"),
            document="domains",
            read=_against_erm(method),
        )
        for method, title in (("hyda", "HyDA"), ("hyda by group", "HyDA, read over a group,"))
    ),
    Claim(
        paper="HyDA",
        place="section 1",
        says="it adapts in one pass, unlike adaptation at test time",
        number=_fixed_number(""),
        document="cost",
        read=_one_pass,
    ),
)
