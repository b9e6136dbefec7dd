"""Texts from strangers: what becomes of class names before anything shows, draws or writes them."""

import pytest

from models.errors import UserError
from models.spec import MAX_CLASSES
from utils.text import MAX_NAME, class_names, printable


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], {0: "a", 1: "b"}),
        (("a",), {0: "a"}),
        ({1: "b", 0: "a"}, {0: "a", 1: "b"}),
        ({"0": "a", "1": "b"}, {0: "a", 1: "b"}),
        ({0: "\ud800x", 1: "a\nb\x1b[31m"}, {0: r"\ud800x", 1: r"a\nb\x1b[31m"}),
        ({0: "\u5706\u5f62", 1: "\u0645\U0001f697"}, {0: "\u5706\u5f62", 1: "\u0645\U0001f697"}),
        (["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"], {0: "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"}),
        (["a\u202eb"], {0: r"a\u202eb"}),
        (["x" * MAX_NAME], {0: "x" * MAX_NAME}),
        ([7], {0: "7"}),
    ],
)
def test_names_become_text_that_can_be_written(names, expected):
    found = class_names(names)
    assert list(found.items()) == list(expected.items())
    assert all(name.encode() and printable(name) == name for name in found.values())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "must be a list, or a mapping"),
        ("names", "must be a list, or a mapping"),
        ([], "must be a list, or a mapping"),
        ({1: "a"}, "not numbered from 0 to 0"),
        ({0: "a", "x": "b"}, "not numbered from 0 to 1"),
        ({0: "a", "0": "b"}, "not numbered from 0 to 1"),
        ({0: "a", float("inf"): "b"}, "not numbered from 0 to 1"),
        ({0: "a", 10**5000: "b"}, "not numbered from 0 to 1"),
        (["a", "b" * 900_000], "class 1 has a name of 900,000 characters, more than 255"),
        (["\n" * 200], "class 0 has a name of 400 characters"),
        (["x"] * (MAX_CLASSES + 1), "names of 20,001 classes, more than 20,000"),
    ],
)
def test_too_much_is_one_sentence(names, message):
    with pytest.raises(UserError, match=message) as raised:
        class_names(names)
    assert len(str(raised.value)) < 200
