"""Names to things."""

import pytest

from models.errors import UserError, did_you_mean
from models.registry import Registry, UnknownName


@pytest.fixture
def words():
    words = Registry("module")
    words.register("Conv", "nn.Conv")("the convolution")
    words.register("Concat")("the joint")
    return words


def test_an_entry_has_every_name_it_was_given(words):
    assert words["Conv"] == words["nn.Conv"] == "the convolution"


def test_it_is_a_mapping(words):
    assert (list(words), len(words)) == (["Conv", "nn.Conv", "Concat"], 3)
    assert "Conv" in words
    assert "conv" not in words
    assert words.get("Cnov") is None


def test_register_gives_back_what_it_decorates(words):
    def upsample(): ...

    assert words.register("Upsample")(upsample) is upsample


def test_a_name_is_given_once(words):
    with pytest.raises(ValueError, match="module 'Conv' is registered twice"):
        words.register("New", "Conv")("another")


def test_a_lazy_entry_is_made_once_when_it_is_asked_for(words):
    made = []
    words.register_lazy("Slow", lambda: made.append(1) or "from a slow library")
    assert "Slow" in words
    assert (list(words), len(words)) == (["Conv", "nn.Conv", "Concat", "Slow"], 4)
    assert not made
    assert words["Slow"] == words.get("Slow") == dict(words)["Slow"] == "from a slow library"
    assert made == [1]


def test_a_lazy_name_is_given_once(words):
    words.register_lazy("Slow", str)
    for again in (lambda: words.register_lazy("Slow", str), lambda: words.register("Slow")("another")):
        with pytest.raises(UserError, match="module 'Slow' is registered twice"):
            again()
    with pytest.raises(UserError, match="module 'Conv' is registered twice"):
        words.register_lazy("Conv", str)


def test_a_lazy_entry_derives_from_the_base():
    kinds = Registry("kind", base=str)
    kinds.register_lazy("Other", lambda: int)
    with pytest.raises(UserError, match="kind 'Other' must be a class that derives from str"):
        kinds["Other"]


@pytest.mark.parametrize("entry", [int, lambda: None, 1], ids=["class", "function", "number"])
def test_an_entry_derives_from_the_base(entry):
    kinds = Registry("kind", base=str)
    kinds.register("Text")(str)
    with pytest.raises(UserError, match="kind 'Other' must be a class that derives from str"):
        kinds.register("Other")(entry)
    assert list(kinds) == ["Text"]


def test_a_miss_says_what_was_probably_meant(words):
    with pytest.raises(UnknownName) as caught:
        words["Cnov"]
    assert str(caught.value) == "unknown module 'Cnov' (did you mean 'Conv'?)"


def test_a_miss_is_a_user_error_and_a_key_error(words):
    for kind in (UserError, KeyError):
        with pytest.raises(kind):
            words["nothing like it"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("conv", "Conv"), ("CONCAT", "Concat"), ("Concta", "Concat"), ("xyz", None), ("", None)],
)
def test_did_you_mean(name, hint, words):
    assert did_you_mean(name, words) == (f" (did you mean '{hint}'?)" if hint else "")
