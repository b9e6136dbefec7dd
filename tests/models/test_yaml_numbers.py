"""Numbers with an exponent, as people write them."""

import math

import pytest
import yaml

from models.yaml_numbers import load_yaml


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("-2E5", -2e5), ("1.5e3", 1500.0), ("1.0e-3", 1e-3), ("+1e+2", 100.0)]
)
def test_numbers_with_an_exponent(text, value):
    got = load_yaml(f"lr0: {text}")["lr0"]
    assert isinstance(got, float)
    assert math.isclose(got, value)


@pytest.mark.parametrize("text", ["e3", "1e", "1e3x", "'1e-3'", "v1e3", "1-e3", "yolov5n"])
def test_texts_stay_texts(text):
    assert load_yaml(f"[{text}]") == [text.strip("'")]


def test_no_object_is_made():
    with pytest.raises(yaml.YAMLError):
        load_yaml("!!python/object/apply:os.getcwd []")


@pytest.mark.parametrize("text", ["1:30", "1:30:00", "1:30.5", "-1:30", "010", "1__:2"])
def test_old_forms_of_numbers_are_texts(text):
    assert load_yaml(f"[{text!r}, {text}]") == [text, text]


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("-12", -12), ("1_000", 1000), ("0x1F", 31), (".5", 0.5), ("3.", 3.0), ("+.5e1", 5.0)]
)
def test_other_numbers_stay_numbers(text, value):
    assert load_yaml(f"[{text}]") == [value]
    assert type(load_yaml(f"[{text}]")[0]) is type(value)


@pytest.mark.parametrize("text", [str(2**63), str(-(2**63) - 1), "9" * 400, "0x" + "f" * 5000, "9" * 5000])
def test_a_whole_number_has_at_most_64_bits(text):
    with pytest.raises(yaml.YAMLError, match=f"a whole number of {len(text)} digits, expected at most 64 bits"):
        load_yaml(f"lr0: {text}")


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63)])
def test_the_largest_whole_numbers_are_read(value):
    assert load_yaml(str(value)) == value


def test_infinite_and_no_numbers():
    assert load_yaml("[.inf, -.inf]") == [math.inf, -math.inf]
    assert math.isnan(load_yaml(".nan"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr0: 1\nlrf: 2\nlr0: 3", "the key 'lr0' stands here again, after line 1.*\n.*line 3"),
        ("a: {b: 1, 'b': 1}", "the key 'b' stands here again"),
        ("names: {0: cat, 0: dog}", "the key '0' stands here again"),
    ],
)
def test_a_key_that_stands_twice_is_an_error(text, said):
    with pytest.raises(yaml.YAMLError, match=said):
        load_yaml(text)


def test_keys_that_a_merge_brings_may_stand_again():
    text = "a: &a {x: 1}\nb: {<<: *a, x: 2}\nc: {d: &d {<<: *a, x: 3}}\ne: {<<: [*d, *a]}"
    assert load_yaml(text) == {"a": {"x": 1}, "b": {"x": 2}, "c": {"d": {"x": 3}}, "e": {"x": 3}}


def test_aliases_of_aliases_are_counted_as_what_they_stand_for():
    nested = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    for text in (f"a0: &a0 [1]\n{nested}", "a: &a [*a]"):
        with pytest.raises(yaml.YAMLError, match="aliases stand for more than 1,000,000 values"):
            load_yaml(text)
    assert load_yaml("a: &a [1, 2]\nb: [*a, *a]")["b"] == [[1, 2]] * 2
    assert load_yaml("") is None
