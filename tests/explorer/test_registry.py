"""Names in MLflow's registry; what lies there is asked for in the integration tests."""

import pytest

from explorer.queries import Bound
from explorer.registry import alias_of, require_name
from search_spaces.errors import InputError


@pytest.mark.parametrize(
    ("bounds", "alias"),
    [
        ([], "phi-0_5__interpolation-linear"),
        ([Bound("macs", "max", 0.6e9)], "macs-600M"),
        ([Bound("macs", "max", 1.25e9)], "macs-1_25G"),
        (
            [Bound("dice/nucleus", "min", 0.9), Bound("macs", "max", 14e6)],
            "dice_nucleus-min-0_9__macs-14M",
        ),
    ],
)
def test_alias_names_the_budget_or_else_the_setting(bounds: list[Bound], alias: str) -> None:
    assert alias_of(bounds, {"phi": 0.5, "interpolation": "linear"}) == alias


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "..", " a", "a\nb"])
def test_name_that_mlflow_does_not_take_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"--register .*expected letters, digits"):
        require_name(name)


def test_names_that_mlflow_takes_are_taken() -> None:
    for name in ("cells", "White blood cells", "sshn-wbc_0.6"):
        require_name(name)
