"""Where a refinement looks next."""

import numpy as np

from explorer.refining import CLOSEST, settings_around
from search_spaces.rescaling import rescaling_space

PHI = rescaling_space()
GRID = [{"phi": x / 10} for x in range(11)]


def test_new_settings_lie_between_the_neighbours():
    found = settings_around({"phi": 0.3}, GRID, PHI, 8)
    phis = sorted(setting["phi"] for setting in found)
    assert len(set(phis)) == 8
    assert 0.2 <= phis[0] < 0.3 < phis[-1] <= 0.4
    assert max(np.diff([0.2, *phis, 0.4])) < 0.06  # evenly: a bit more than the 0.2 / 9 of a grid


def test_space_ends_the_neighbourhood():
    narrow = PHI.narrowed({"phi": (0.0, 0.5)})
    explored = [{"phi": 0.4}, {"phi": 0.5}]
    found = settings_around({"phi": 0.5}, explored, narrow, 5)
    assert all(0.4 < setting["phi"] < 0.5 for setting in found)


def test_inadmissible_and_explored_settings_are_passed_over():
    found = settings_around({"phi": 0.3}, GRID, PHI, 4, is_admissible=lambda s: s["phi"] < 0.3)
    assert len(found) == 4
    assert all(0.2 < setting["phi"] < 0.3 for setting in found)
    again = settings_around({"phi": 0.3}, [*GRID, *found], PHI, 4)
    assert not {setting["phi"] for setting in again} & {setting["phi"] for setting in found}


def test_exhausted_neighbourhood_gives_fewer():
    assert settings_around({"phi": 0.3}, GRID, PHI, 4, is_admissible=lambda s: False) == []


def test_one_explored_setting_opens_the_whole_space():
    found = settings_around({"phi": 0.5}, [{"phi": 0.5}], PHI, 16)
    phis = [setting["phi"] for setting in found]
    assert min(phis) < 0.1
    assert max(phis) > 0.9


def test_settings_too_close_to_tell_apart_are_left_out():
    explored = [{"phi": value} for value in (0.2, 0.203, 0.206)]
    found = settings_around(explored[1], explored, PHI, 50)
    phis = sorted(one["phi"] for one in [*explored, *found])
    assert 1 <= len(found) < 50
    assert min(np.diff(phis)) >= CLOSEST
