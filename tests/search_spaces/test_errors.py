import pytest

from search_spaces.errors import InputError, RunError, UserError, unknown_name


@pytest.mark.parametrize(("error", "code"), [(UserError, 1), (InputError, 2), (RunError, 1)])
def test_exit_code_tells_wrong_input_from_failure(error, code):
    assert issubclass(error, UserError)
    assert error("reason").exit_code == code


def test_unknown_name_lists_the_known_ones_in_order():
    error = unknown_name("method", "ssn", ["sshn", "film"])
    assert isinstance(error, InputError)
    assert str(error) == "unknown method 'ssn'; known: film, sshn"
