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
