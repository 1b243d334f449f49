"""Figures: what they draw and say, checked on points with known fronts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure

from explorer import figures
from explorer.series import PALETTE
from tests.explorer.conftest import make_points


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def line_of(figure: Figure, color: str) -> np.ndarray:
    """The longest line of a colour, as (n, 2) data."""
    lines = [line for line in figure.axes[0].lines if line.get_color() == color]
    longest = max(lines, key=lambda line: len(line.get_xydata()))
    return np.asarray(longest.get_xydata())


def test_conditioning_figure_draws_means_sorted_along_the_conditioning(points) -> None:
    figure = figures.metric_against_conditioning(points, split="test", main="sshn")
    sshn = [[0.0, 0.81], [0.1, 0.88], [0.2, 0.87], [0.3, 0.91], [0.5, 0.90]]
    np.testing.assert_array_equal(line_of(figure, PALETTE[0]), sshn)
    np.testing.assert_array_equal(
        line_of(figure, PALETTE[1]), [[0.0, 0.80], [0.25, 0.88], [0.5, 0.87]]
    )
    assert figure.axes[0].get_ylabel() == "Dice on test"
    assert figure.axes[0].get_xlabel() == "φ"
    assert legend_of(figure) == ["sshn (3 seeds)", "fixed (3 seeds)", "best of a method"]


def test_amortised_methods_have_a_band_and_grid_baselines_have_bars(points) -> None:
    axes = figures.metric_against_conditioning(points, split="test", main="sshn").axes[0]
    (bars,) = axes.containers
    assert len(bars.lines[0].get_xdata()) == 3
    bands = [one for one in axes.collections if one not in bars.get_children()]
    vertices = bands[0].get_paths()[0].vertices
    assert vertices[:, 1].min() == pytest.approx(0.80)
    assert vertices[:, 1].max() == pytest.approx(0.92)


def test_each_category_is_a_line_of_its_own_against_a_number(points_of_modes) -> None:
    figure = figures.metric_against_conditioning(points_of_modes, split="test", main="sshn")
    mine = [line for line in figure.axes[0].lines if line.get_color() == PALETTE[0]]
    solid, dashed, star = mine
    assert star.get_xydata().tolist() == [[0.4, 0.90]]
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
    np.testing.assert_array_equal(solid.get_ydata(), [0.80, 0.85, 0.90])
    np.testing.assert_array_equal(dashed.get_ydata(), [0.70, 0.86, 0.88])
    assert legend_of(figure) == [
        "sshn, linear (3 seeds)",
        "sshn, nearest (3 seeds)",
        "fixed, nearest (3 seeds)",
        "best of a method",
    ]


def test_grids_of_two_categories_have_markers_of_their_own(points_of_modes) -> None:
    fixed = make_points("fixed", [0.2, 0.4], [0.7, 0.75], is_grid=True)
    for point in fixed:
        point["conditioning"]["interpolation"] = "linear"
    figure = figures.metric_against_conditioning(
        [*points_of_modes, *fixed], split="test", main="sshn"
    )
    assert {bars.lines[0].get_marker() for bars in figure.axes[0].containers} == {"s", "o"}


def test_front_takes_the_better_category_and_names_it(points_of_modes) -> None:
    figure = figures.metric_against_cost(points_of_modes, split="test", main="sshn")
    front = [[1.0, 0.80], [1.2, 0.86], [1.4, 0.90]]
    np.testing.assert_allclose(line_of(figure, PALETTE[0])[:3], front, rtol=1e-12)
    named = [text.get_text() for text in figure.axes[0].texts]
    assert named == ["φ 0, linear", "φ 0.2, nearest", "φ 0.4, linear"]


def test_of_several_conditionings_the_best_of_the_others_is_drawn() -> None:
    points = make_points("sshn", [0.0, 0.2, 0.4, 0.0, 0.2, 0.4], [0.8, 0.7, 0.9, 0.6, 0.85, 0.5])
    for row, point in enumerate(points):
        point["conditioning"]["gamma"] = 0.0 if row < 3 else 1.0
    figure = figures.metric_against_conditioning(points, split="val", main="sshn")
    line = line_of(figure, PALETTE[0])
    np.testing.assert_allclose(line, [[0.0, 0.8], [0.2, 0.85], [0.4, 0.9]], rtol=1e-12)
    assert figure.axes[0].get_xlabel() == "φ, the other conditionings at their best"


def test_one_label_of_a_metric_is_named(points) -> None:
    figure = figures.metric_against_conditioning(
        points, metric="dice/nucleus", split="val", main="sshn"
    )
    assert figure.axes[0].get_ylabel() == "Dice of nucleus on val"


def test_cost_figure_draws_the_front_as_steps(points) -> None:
    figure = figures.metric_against_cost(points, split="test", main="sshn")
    front = [[1.0, 0.81], [1.1, 0.88], [1.3, 0.91], [1.5, 0.91]]
    np.testing.assert_allclose(line_of(figure, PALETTE[0]), front, rtol=1e-12)
    assert figure.axes[0].get_xlabel() == "Multiply-adds per image (GMAC)"
    assert [text.get_text() for text in figure.axes[0].texts] == ["φ 0", "φ 0.1", "φ 0.3"]


def test_cost_figure_compares_at_equal_accuracy(points) -> None:
    figure = figures.metric_against_cost(points, split="test", main="sshn")
    # 1.1 GMAC reach the 0.88 that the best fixed one has at 1.25.
    assert "same Dice as the best fixed, 12 % fewer MACs" in legend_of(figure)


def test_cost_figure_is_silent_when_the_best_baseline_is_not_reached(points) -> None:
    better = make_points("fixed", [0.4], [0.99], is_grid=True)
    figure = figures.metric_against_cost(points + better, split="test", main="sshn")
    assert not [text for text in legend_of(figure) if text.startswith("same")]


def test_attainment_is_drawn_as_the_band_of_the_front(points) -> None:
    surfaces = {
        "best": {"dice": [0.83, 0.93], "macs": [1.0e9, 1.2e9]},
        "median": {"dice": [0.81, 0.91], "macs": [1.0e9, 1.3e9]},
        "worst": {"dice": [0.80, 0.90], "macs": [1.1e9, 1.4e9]},
    }
    figure = figures.metric_against_cost(
        points, split="val", main="sshn", attainment={"sshn": surfaces, "fixed": surfaces}
    )
    assert legend_of(figure).count("band: fronts of single seeds, worst to best") == 1
    drawn = figure.axes[0].collections
    (band,) = [one for one in drawn if isinstance(one, FillBetweenPolyCollection)]
    corners = {(round(x, 9), round(y, 9)) for x, y in band.get_paths()[0].vertices}
    # nothing below the cheapest cost of the worst, and to the right as far as points reach
    assert {(1.1, 0.80), (1.1, 0.83), (1.2, 0.93), (1.4, 0.80), (1.4, 0.90)} <= corners
    assert max(x for x, _ in corners) == 1.5


def test_growth_of_the_hypervolume_is_drawn_over_the_largest() -> None:
    histories = {
        "sshn": {"num_settings": [1, 2, 3], "hypervolume": [0.0, 3.0, 4.0]},
        "fixed": {"num_settings": [1, 2], "hypervolume": [1.0, 2.0]},
    }
    figure = figures.hypervolume_growth(histories, main="sshn")
    np.testing.assert_array_equal(line_of(figure, PALETTE[0]), [[1, 0.0], [2, 75.0], [3, 100.0]])
    assert legend_of(figure) == [
        "sshn: 100 % of the largest after 3",
        "fixed: 50 % of the largest after 2",
    ]


def test_collapse_is_cut_off_and_said() -> None:
    phis = np.linspace(0, 0.5, 51).tolist()
    dices = [0.2, *np.linspace(0.9, 0.95, 50).tolist()]
    figure = figures.metric_against_conditioning(
        make_points("sshn", phis, dices), split="test", main="sshn"
    )
    assert 0.85 < figure.axes[0].get_ylim()[0] < 0.9
    assert legend_of(figure)[-1] == "below the axis, down to 0.2"


def test_whole_range_is_shown_when_nothing_collapses(points) -> None:
    figure = figures.metric_against_conditioning(points, split="test", main="sshn")
    assert figure.axes[0].get_ylim()[0] < 0.79
    assert legend_of(figure)[-1] == "best of a method"


def test_colours_do_not_depend_on_the_order_of_points(points) -> None:
    first, second = (
        figures.metric_against_cost(some, split="test", main="sshn")
        for some in (points, points[::-1])
    )
    for color in PALETTE[:2]:
        np.testing.assert_array_equal(line_of(first, color), line_of(second, color))


def test_unknown_metric_is_refused(points) -> None:
    with pytest.raises(ValueError, match="no point has both 'macs' and 'auc'"):
        figures.metric_against_cost(points, metric="auc", split="test", main="sshn")


def test_training_cost_bars_choose_a_unit() -> None:
    figure = figures.training_cost_bars({"fixed": 7200.0, "sshn": 1800.0}, main="sshn")
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 2.0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["sshn", "fixed"]
    assert axes.get_xlabel() == "Training time (h)"


def test_learning_curves_draw_what_each_report_holds() -> None:
    history = [{"epoch": 0, "train_loss": 1.0}, {"epoch": 1, "train_loss": 0.5, "dice": 0.8}]
    figure = figures.learning_curves({"a": history}, methods={"a": "sshn"}, main="sshn")
    left, right = figure.axes
    np.testing.assert_array_equal(left.lines[0].get_xydata(), [[0, 1.0], [1, 0.5]])
    np.testing.assert_array_equal(right.lines[0].get_xydata(), [[1, 0.8]])
    assert (left.get_ylabel(), right.get_ylabel()) == ("Training loss", "Dice on val")
    assert legend_of(figure) == ["sshn (1 trained)"]


def test_png_has_the_promised_resolution(points, tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    figures.save_png(figures.metric_against_cost(points, split="test", main="sshn"), path)
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(head[16:20]), int.from_bytes(head[20:24])) == (900, 660)


def test_map_draws_the_surface_its_best_and_the_other_methods() -> None:
    grid = [(x, y) for x in (0.0, 0.5, 1.0) for y in (0.0, 0.5, 1.0)]
    points = [
        {
            "conditioning": {"lambda": x, "gamma": y},
            "metrics": {"dice": 0.7 - (x - 0.5) ** 2 - (y - 1) ** 2},
            "costs": {},
            "seed_sd": {},
            "num_seeds": 1,
            "method": method,
            "trial_ids": [method if method == "hypermorph" else f"v{x}{y}"],
        }
        for method in ("hypermorph", "voxelmorph")
        for x, y in (grid if method == "hypermorph" else grid[:2])
    ]
    figure = figures.metric_map(
        points, conditionings=("lambda", "gamma"), split="val", main="hypermorph"
    )
    axes, bar = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("λ", "γ", "Dice on val")
    star, square = (line for line in axes.lines if len(line.get_xydata()) == 1)
    assert star.get_xydata().tolist() == [[0.5, 1.0]]
    assert square.get_xydata().tolist() == [[0.0, 0.5]]
    assert legend_of(figure)[0] == "best of hypermorph (1 seed)"


def test_panels_of_a_pair_draw_where_each_voxel_is_read() -> None:
    image = np.zeros((20, 30), np.float32)
    shift = np.stack([np.full((20, 30), 2.0), np.zeros((20, 30))]).astype(np.float32)
    figure = figures.registration_panels(
        image, image, [("λ 0", image, shift * 0), ("λ 1", image, shift)], title="a to b"
    )
    assert len(figure.axes) == 10
    assert [axes.get_ylabel() for axes in figure.axes[::5]] == ["λ 0", "λ 1"]
    straight, moved = (axes.lines[0].get_ydata() for axes in figure.axes[4::5])
    np.testing.assert_array_equal(moved, straight + 2)


def optimum(group: str, setting: dict[str, float] | None, by: str | None = "label") -> Any:
    return {"by": by, "group": group, "conditioning": setting, "num_pairs": 20 if setting else 0}


def test_optima_are_sorted_dots_with_a_line_for_all() -> None:
    results = [
        optimum("all", {"lambda": 0.4, "gamma": 0.1}, None),
        optimum("cortex", {"lambda": 0.6, "gamma": 0.2}),
        optimum("csf", None),
        optimum("pallidum", {"lambda": 0.3, "gamma": 0.7}),
    ]
    figure = figures.optima(results, {"lambda": (0.0, 1.0), "gamma": (0.0, 0.8)})
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["pallidum", "cortex"]
    for axes, places, best in ((left, [0.3, 0.6], 0.4), (right, [0.7, 0.2], 0.1)):
        line, dots = axes.lines
        np.testing.assert_array_equal(dots.get_xdata(), places)
        assert set(line.get_xdata()) == {best}
    assert (left.get_xlabel(), right.get_xlabel()) == ("Best λ on val", "Best γ on val")
    assert right.get_xlim() == pytest.approx((-0.024, 0.824))
    assert legend_of(figure) == ["by label (20 samples each)", "all together (20 samples)"]


def test_figure_of_optima_needs_a_group_with_a_setting() -> None:
    with pytest.raises(ValueError, match="expected a group with a setting, got none"):
        figures.optima([optimum("all", {"lambda": 0.4}, None)], {"lambda": (0.0, 1.0)})


def test_front_against_a_metric_is_drawn_without_a_saving(points) -> None:
    for point in points:
        point["metrics"]["folded_share"] = 0.0 if point["method"] == "fixed" else 0.01
    figure = figures.metric_against_cost(points, cost="folded_share", split="val", main="sshn")
    assert figure.axes[0].get_xlabel() == "Share of folded voxels on val"
    assert not any("fewer" in text or "more" in text for text in legend_of(figure))
