"""Whether one method is better than another on the same samples, or as good.

Shapes: i samples, which are taken for independent: images of one person are not quite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from explorer.points import Floats

MARGIN = 0.01  # of a metric in [0, 1]: one point


@dataclass(frozen=True)
class Significance:
    """Paired tests of one method against another, each at a setting of its own.

    Attributes:
        difference: mean of the samples, the method's minus the other's.
        num_samples: with a value of both.
        wilcoxon_p: of "not better", by the signed ranks; one-sided.
        sign_p: likewise, by the signs alone.
        margin: below which a difference does not matter.
        equivalence_p: of "different by the margin or more": two one-sided t-tests (TOST).
    """

    method: str
    against: str
    metric: str
    difference: float
    num_samples: int
    wilcoxon_p: float
    sign_p: float
    margin: float
    equivalence_p: float


def significance(
    first: Floats,
    second: Floats,
    *,
    method: str,
    against: str,
    metric: str,
    sign: float = 1.0,
    margin: float = MARGIN,
) -> Significance | None:
    """Test two methods' values (i,) of the same samples; None where fewer than two have both.

    Args:
        first: the method's; NaN where undefined.
        second: the other's.
        method: name of the first.
        against: name of the second.
        metric: name of the values.
        sign: 1 where more is better, -1 where less is.
        margin: of equivalence, in the metric's unit.

    Source: Wilcoxon (1945), doi:10.2307/3001968; Schuirmann (1987), doi:10.1007/BF01068419, as in
    Zakazov et al., "Anatomy of Domain Shift Impact on U-Net Layers in MRI Segmentation".
    """
    differences = first - second
    differences = differences[np.isfinite(differences)]
    if len(differences) < 2:
        return None
    better = sign * differences
    num_ahead, num_unequal = int((better > 0).sum()), int((better != 0).sum())
    return Significance(
        method,
        against,
        metric,
        difference=float(differences.mean()),
        num_samples=len(differences),
        wilcoxon_p=_wilcoxon(better) if num_unequal else 1.0,
        sign_p=_sign_test(num_ahead, num_unequal) if num_unequal else 1.0,
        margin=margin,
        equivalence_p=_equivalence(differences, margin),
    )


def _wilcoxon(better: Floats) -> float:
    from scipy import stats  # slow to import, and every command would wait for it

    return float(stats.wilcoxon(better, alternative="greater").pvalue)


def _sign_test(num_ahead: int, num_unequal: int) -> float:
    from scipy import stats

    return float(stats.binomtest(num_ahead, num_unequal, alternative="greater").pvalue)


def _equivalence(differences: Floats, margin: float) -> float:
    """The larger p of two one-sided t-tests: above minus the margin, and below the margin."""
    from scipy import stats

    mean, n = float(differences.mean()), len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        return 0.0 if abs(mean) < margin else 1.0
    return float(stats.t.sf((margin - abs(mean)) / error, n - 1))
