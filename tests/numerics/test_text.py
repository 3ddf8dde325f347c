"""Values from text: what a command line may write for each declared type."""

from collections.abc import Sequence

import pytest

from scorefield.numerics.errors import ArgumentError, renamed
from scorefield.numerics.text import base_type, choose, parse


@pytest.mark.parametrize(("text", "annotation", "value"), [
    ("3", int, 3), ("-3", int, -3), ("+1_000", int, 1000), ("3.0", int, 3), ("1e3", int, 1000),
    ("3", float, 3.0), (".5", float, 0.5), ("2.", float, 2.0), ("1e-5", float, 1e-5), ("-0.0", float, 0.0),
    ("true", bool, True), ("False", bool, False), ("0", bool, False), ("yes", bool, True),
    ("", str, ""), ("None", str, "None"), ("3", str, "3"),
    ("None", int | None, None), ("3", int | None, 3), ("None", str | None, None),
    ("(1,2)", Sequence[int], (1, 2)), ("1, 2.5", tuple[float, ...], (1, 2.5)), ("[4]", Sequence[int], (4,)),
    ("()", Sequence[int], ()), ("(1,)", Sequence[int], (1,)), ("1,0.5", str | Sequence[float], "1,0.5"),
])
def test_text_becomes_the_value_of_its_type(text, annotation, value):
    found = parse(text, annotation)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(("text", "annotation"), [
    ("0x10", int), ("٣", int), ("３", int), ("²", int), ("1__0", int), ("3.5", int), ("", int), ("1e400", int),
    ("nan", float), ("inf", float), ("-inf", float), ("1e400", float), ("0x1p3", float), ("٣.٥", float), ("True", int),
    ("1j", float),
    ("--3", int), ("maybe", bool), ("None", int), ("(1,x)", Sequence[int]), ("(1,0x10)", Sequence[int]), ("__import__", int),
])
def test_numbers_are_of_plain_digits_and_finite(text, annotation):
    with pytest.raises(ValueError, match="must be"):
        parse(text, annotation)


def test_the_base_type_of_an_annotation_is_what_text_is_parsed_to():
    assert base_type(int | None) == (int, True) and base_type(Sequence[int]) == (tuple, False)
    with pytest.raises(TypeError, match="a setting cannot be"):
        base_type(dict)


def test_an_unknown_word_lists_the_words_and_the_nearest():
    with pytest.raises(ArgumentError, match="unknown colour 'gren'; choose from red, green; did you mean 'green'") as caught:
        choose("colour", {"red": 1, "green": 2}, "gren", "colour")
    assert caught.value.arguments == ("colour",)


def test_arguments_at_fault_are_renamed_for_whoever_set_them():
    with pytest.raises(ArgumentError) as caught, renamed("sde", {"size": "data.image_size"}):
        raise ArgumentError("no", "beta_min", "size", "data.low")
    assert caught.value.arguments == ("sde.beta_min", "data.image_size", "data.low")
