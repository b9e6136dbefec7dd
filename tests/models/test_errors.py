"""How errors of others are quoted."""

import pytest

from models.errors import MAX_CAUSE, cause, first_line


@pytest.mark.parametrize(
    ("error", "line", "quoted"),
    [
        (ValueError("a\nb"), "a", "ValueError: a"),
        (KeyError("a"), "'a'", "KeyError: 'a'"),
        (EOFError(), "EOFError", "EOFError"),
        (RuntimeError(" \n"), "RuntimeError", "RuntimeError"),
        (OSError("é \x1b[1m \udcff"), "é \x1b[1m \udcff", r"OSError: é \x1b[1m \udcff"),
    ],
    ids=repr,
)
def test_an_error_is_quoted_in_one_line_that_can_be_printed(error, line, quoted):
    assert first_line(error) == line
    assert cause(error) == quoted


def test_a_long_message_is_cut():
    assert cause(ValueError("x" * 5000)) == "ValueError: " + "x" * MAX_CAUSE
