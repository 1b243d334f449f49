"""What a comparison says in words."""

import json
from pathlib import Path

import pytest

from explorer.presentation import show_comparison

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


@pytest.mark.parametrize(("dice", "is_told"), [(0.0, True), (0.7, False)])
def test_a_method_that_learned_nothing_is_named(dice, is_told, capsys):
    comparison = json.loads((RESULTS / "arch-pspnet.json").read_text())["comparison"]
    comparison["methods"]["fixed"]["best"]["metrics"]["dice"] = dice
    show_comparison(comparison)
    told = capsys.readouterr().out
    assert ("fixed has learned nothing: dice is 0 at every setting" in told) == is_told
    assert "sshn has learned nothing" not in told
    assert "3 seeds)" in told
