"""What the papers claim, and what explorations here say of it.

A claim reads a document: what `explorer frontier ID --compare --json` or `explorer analyze ID NAME
--json` prints of an exploration. It held where the whole spread that is told with the number is on
its side, not where all of it is on the other; else the two are not separated. Between methods of a
front the spread is the 95 % interval over images and seeds, between their best settings a signed
rank test over images, elsewhere one standard error, or one standard deviation, over seeds. Costs
have none: a claim of less must hold by a clear factor.
Numbers of the papers are from

- SSHN: Gonzalez Ortiz, Guttag, Dalca, "Scale-Space Hypernetworks for Efficient Biomedical Imaging",
  arXiv:2304.05448;
- SSHN's forerunner: "Amortized Learning of Flexible Feature Scaling for Image Segmentation";
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

CLEARLY = 2.0  # factor between costs that is called less
AS_GOOD = 0.005  # of Dice: half a point is called as accurate
LEVEL = 0.05  # of a test

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
# [forerunner] section 4.2.1: Dice points between the best factors
BEST_GAINS = {"oasis": 0.8, "oxford_pets": 3.1, "cub200": 5.0}

FACTORS = tuple(step / 20 for step in range(11))
FACTORS_2 = tuple(phi for phi in FACTORS if phi != 0.35)


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
    if name == FRONT and "comparison" not in document:
        raise InputError(f"{source}: printed without --compare: nothing in it is held against")
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


def _mean_gain(
    table: Mapping[str, Sequence[float]],
    other: str,
    factors: Sequence[float],
    ends: tuple[float, float],
) -> tuple[float, int]:
    """Mean difference between SSHN and another method over the printed factors in a range."""
    low, high = ends
    gains = [
        own - its
        for phi, own, its in zip(factors, table[_SSHN], table[other], strict=True)
        if low - 1e-9 <= phi <= high + 1e-9
    ]
    return (sum(gains) / len(gains), len(gains)) if gains else (math.nan, 0)


def _compared_over(document: Document) -> tuple[float, float]:
    """The factors that a comparison was restricted to, or all."""
    low, high = document.get("comparison", {}).get("ranges", {}).get("phi", (0.0, 1.0))
    return float(low), float(high)


def _gain_in_table(other: str) -> Callable[[Document], str]:
    def number(document: Document) -> str:
        ends = _compared_over(document)
        if _is_registration(document):
            gain, count = _mean_gain(TABLE_2, other, FACTORS_2, ends)
            return f"{gain:+.1f} points ({count} φ, OASIS)"
        name = _data_of(document)
        if name in TABLE_1:
            gain, count = _mean_gain(TABLE_1[name], other, FACTORS, ends)
            return f"{gain:+.1f} points ({count} φ)"
        gains = [_mean_gain(own, other, FACTORS, ends)[0] for own in TABLE_1.values()]
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
    return f"{100 * difference:+.2f} points (95 %: {100 * low:+.2f} to {100 * high:+.2f})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _pair(document: Document, other: str) -> Mapping[str, Any] | None:
    """The method against another at the settings that both have, on test."""
    for pair in document.get("comparison", {}).get("paired_on_test", ()):
        if pair["method"] == document["method"] and _family(pair["against"]) == other:
            ends = (pair["low"], pair["high"])
            is_told = None not in ends and all(map(math.isfinite, ends))
            return pair if is_told else None
    return None


def _paired(document: Document, pair: Mapping[str, Any]) -> str:
    low, high = _compared_over(document)
    over = "" if (low, high) == (0.0, 1.0) else f", φ from {low:g} to {high:g}"
    return (
        f"{_points(pair['difference'], pair['low'], pair['high'])} of Dice over "
        f"{_count(pair['num_settings'], 'setting')}{over}; {_count(pair['num_images'], 'image')}, "
        f"{_count(pair['num_seeds'], 'seed')}"
    )


def _better_than(other: str) -> Callable[[Document], Finding | None]:
    def read(document: Document) -> Finding | None:
        pair = _pair(document, other)
        if pair is None:
            return None
        held = _separated(pair["low"], pair["high"])
        return Finding(_paired(document, pair), held, _cost_of(document))

    return read


def _as_good_as(other: str) -> Callable[[Document], Finding | None]:
    """Not worse by half a point of Dice, with the whole interval."""

    def read(document: Document) -> Finding | None:
        pair = _pair(document, other)
        if pair is None:
            return None
        held = _separated(pair["low"] + AS_GOOD, pair["high"] + AS_GOOD)
        return Finding(_paired(document, pair), held, _cost_of(document))

    return read


def _best_gain_in_text(document: Document) -> str:
    name = _data_of(document)
    if name in BEST_GAINS:
        return f"{BEST_GAINS[name]:+.1f} points"
    low, high = min(BEST_GAINS.values()), max(BEST_GAINS.values())
    return f"{low:+.1f} to {high:+.1f} points (other data sets)"


def _best_is_better_than(other: str) -> Callable[[Document], Finding | None]:
    """Each at its best on validation, on the images of test."""

    def read(document: Document) -> Finding | None:
        for row in document.get("comparison", {}).get("significance_on_test", ()):
            if row["method"] == document["method"] and _family(row["against"]) == other:
                difference, p = row["difference"], row["wilcoxon_p"]
                held: Held = "not separated"
                if difference > 0 and p < LEVEL:
                    held = "yes"
                elif difference < 0 and p > 1 - LEVEL:
                    held = "no"
                here = (
                    f"{100 * difference:+.2f} points of Dice (better: Wilcoxon p = {p:.2g}; "
                    f"{_count(row['num_samples'], 'image')})"
                )
                return Finding(here, held, _cost_of(document))
        return None

    return read


def _saving_in_text(document: Document) -> str:
    if _data_of(document) == "oxford_pets":
        return "76 % less (φ = 0.25; the forerunner, section 4.2.3)"
    return "at half (OASIS, φ = 0.15; the forerunner: 26 % less)"


def _cheaper_than(other: str) -> Callable[[Document], Finding | None]:
    """Seconds of training of a grid over those of one conditioned network."""

    def read(document: Document) -> Finding | None:
        methods = document.get("comparison", {}).get("methods", {})
        for name, own in methods.items():
            if _family(name) == other:
                mine = methods[document["method"]]
                num_networks = own["num_trainings"] / max(1, mine["num_trainings"])
                here = f"{own['train_ratio']:.1f} times ({num_networks:.3g} networks)"
                return Finding(here, _is_less(own["train_ratio"]), _cost_of(document))
        return None

    return read


def _is_less(factor: float) -> Held:
    if factor >= CLEARLY:
        return "yes"
    return "no" if factor <= 1 else "not separated"


def _saving(document: Document) -> Finding | None:
    """What the best Fixed network's quality costs, both chosen on validation."""
    found = document.get("comparison", {}).get("iso_accuracy", {}).get(_FIXED)
    if found is None:
        return None
    saving = found.get("saving")
    if saving is None:
        return Finding("its quality is not reached", "no", _cost_of(document))
    held: Held = "yes" if saving >= 0.1 else "no" if saving <= 0 else "not separated"
    here = f"{100 * saving:.0f} % fewer multiply-adds (on validation)"
    return Finding(here, held, _cost_of(document))


def _wide_prior(document: Document) -> Finding | None:
    """The widest prior of the paper's, half width 0.05, against none; at their middle."""
    own = {
        row["prior_width"]: row for row in document["rows"] if row.get("prior_width") is not None
    }
    if 0 not in own:
        return None

    def gain(width: float) -> tuple[float, float]:
        spreads = (own[width]["test_sd"], own[0]["test_sd"])
        error = math.nan if None in spreads else math.hypot(*spreads)
        return own[width]["test"] - own[0]["test"], error

    told = {width: gain(width) for width in sorted(own) if width}
    known = [width for width in told if width <= 0.05 + 1e-9 and not math.isnan(told[width][1])]
    if not known:
        return None
    here = "; ".join(
        f"half width {width:g} against 0: {100 * x:+.2f} ± {100 * error:.2f} points on test"
        for width, (x, error) in told.items()
        if width >= known[-1]
    )
    x, error = told[known[-1]]
    return Finding(f"{here} (sd over seeds)", _separated(x - error, x + error))


def _lost(document: Document) -> dict[str, tuple[float, float]]:
    """Of each method, the most that weights for φ = 0.5 lose at 0.45 to 0.6, and its spread."""
    found: dict[str, tuple[float, float]] = {}
    for row in document["rows"]:
        if row["weights_at"] != 0.5:
            return {}
        found.setdefault(row["method"], (-math.inf, 0.0))
    for method in found:
        own = {
            row["phi"]: (row["dice"], math.nan if row["sd"] is None else row["sd"])
            for row in document["rows"]
            if row["method"] == method and "phi" in row
        }
        near = [value for phi, value in own.items() if 0.45 - 1e-9 <= phi <= 0.6 + 1e-9]
        if not near:
            return {}
        home, spread = own[min(own, key=lambda phi: abs(phi - 0.5))]
        low, at_low = min(near)
        found[method] = (home - low, math.hypot(spread, at_low))
    return found


def _sd(spread: float) -> str:
    return "" if math.isnan(spread) else f" ± {100 * spread:.1f}"


def _over_seeds(spread: float) -> str:
    return " (one seed: no spread)" if math.isnan(spread) else " (sd over seeds)"


def _transferable(document: Document) -> Finding | None:
    """5 points of Dice are what is called usable here."""
    lost = _lost(document).get(_SSHN)
    if lost is None:
        return None
    here = f"at most {100 * lost[0]:.1f}{_sd(lost[1])} points lost{_over_seeds(lost[1])}"
    return Finding(here, _separated(0.05 - lost[0] - lost[1], 0.05 - lost[0] + lost[1]))


def _more_transferable(document: Document) -> Finding | None:
    lost = _lost(document)
    if not {_SSHN, _FIXED} <= lost.keys():
        return None
    gain = lost[_FIXED][0] - lost[_SSHN][0]
    error = math.hypot(lost[_FIXED][1], lost[_SSHN][1])
    here = (
        f"SSHN at most {100 * lost[_SSHN][0]:.1f} points, Fixed {100 * lost[_FIXED][0]:.1f}: "
        f"{100 * gain:+.1f}{_sd(error)}{_over_seeds(error)}"
    )
    return Finding(here, _separated(gain - error, gain + error))


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
        worse = sum(gain < -error for gain, error in zip(gains, errors, strict=True))
        better = sum(gain > error for gain, error in zip(gains, errors, strict=True))
        here = (
            f"better by a standard error in {better}, worse in {worse} of "
            f"{_count(len(own), 'case')}; surface Dice {100 * sum(gains) / len(gains):+.1f} points "
            f"on average"
        )
        held: Held = "no" if worse else "yes" if better == len(own) else "not separated"
        return Finding(here, held, sum(row["train_s"] * row["num_seeds"] for row in own))

    return read


# metric of whole images: what it is called, and what a difference for the better is multiplied by
_WHOLE = {
    "balanced_accuracy": ("points of balanced accuracy", 100.0),
    "auc": ("points of AUC", 100.0),
    "mae": ("of absolute error", -1.0),
}


def _against_erm(method: str) -> Callable[[Document], Finding | None]:
    """Mean over the domains that were held out, with one standard error over seeds."""

    def read(document: Document) -> Finding | None:
        own = [row for row in document["rows"] if row["method"] == method and "held_out" in row]
        for row in own:
            if row["held_out"] != "mean" or None in (row["gain"], row["gain_error"]):
                continue
            metric = next(name for name in _WHOLE if name in row)
            unit, scale = _WHOLE[metric]
            digits = 1 if abs(scale) > 1 else 3
            gain, error = row["gain"], row["gain_error"]
            here = (
                f"{scale * gain:+.{digits}f} ± {abs(scale) * error:.{digits}f} {unit} (standard "
                f"error over {_count(len(row['seeds']), 'seed')})"
            )
            held = _separated(gain - error, gain + error)
            trained = [each for each in own if each["held_out"] != "mean"]
            return Finding(here, held, sum(x["train_s"] * len(x["seeds"]) for x in trained))
        return None

    return read


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
        paper="SSHN's forerunner",
        place="section 4.2.1",
        says="at its best φ it is more accurate than the best network trained for one φ",
        number=_best_gain_in_text,
        document=FRONT,
        read=_best_is_better_than(_FIXED),
        methods=(_SSHN,),
    ),
    Claim(
        paper="SSHN",
        place="text of Fig. 7",
        says="it reaches the quality of the best network trained for one φ at less cost",
        number=_saving_in_text,
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
        says="its weights for φ = 0.5 serve at φ from 0.45 to 0.6",
        number=_fixed_number("in the figure"),
        document="transfer",
        read=_transferable,
    ),
    Claim(
        paper="SSHN",
        place="Fig. 9",
        says="they lose less there than weights trained for φ = 0.5",
        number=_fixed_number("in the figure"),
        document="transfer",
        read=_more_transferable,
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
        says="at most half a point below networks trained for each setting",
        number=_fixed_number("0.16 ± 0.03 points between the optima; two settings: 0.32 ± 0.02"),
        document=FRONT,
        read=_as_good_as("voxelmorph"),
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
        number=_fixed_number("better with 8 to 90 slices (p < 0.02 in their notebook)"),
        document="strategies",
        read=_within_best_fixed("spottunet"),
    ),
    *(
        Claim(
            paper="HyDA",
            place="Tables 1 and 3",
            says=f"{title} is better than a plain network on a domain that training never saw",
            number=_fixed_number("+3 points of AUC (chest X-rays); -0.16 years (age)"),
            document="domains",
            read=_against_erm(method),
        )
        for method, title in (("hyda", "HyDA"), ("hyda by group", "HyDA, read over a group,"))
    ),
)
