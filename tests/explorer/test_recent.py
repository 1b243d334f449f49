"""What is kept of what was asked for."""

import pytest

from explorer.recent import Recent


def test_the_value_asked_for_longest_ago_goes_first():
    made = []
    recent = Recent(2)

    def ask(key):
        return recent.get(key, lambda: made.append(key) or key.upper())

    assert [ask(key) for key in "abacab"] == list("ABACAB")
    assert made == list("abcb")
    assert len(recent) == 2


def test_what_could_not_be_made_is_tried_again():
    recent = Recent(1)
    with pytest.raises(ZeroDivisionError):
        recent.get("a", lambda: 1 / 0)
    assert recent.get("a", lambda: 1) == 1
