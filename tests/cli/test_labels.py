"""The word of a class: numbers, names, and what is wrong."""

import pytest

from scorefield.cli.labels import class_of
from scorefield.numerics.errors import ArgumentError

NAMES = ["T-shirt/top", "Trouser", "ankle boot", "true", "3"]


@pytest.mark.parametrize(("word", "number"), [
    ("0", 0), ("4", 4), (" 2 ", 2), ("Trouser", 1), ("trouser", 1), ("ANKLE BOOT", 2), ("true", 3), ("T-shirt/top", 0)])
def test_a_class_is_its_number_or_its_name_in_any_case(word, number):
    assert class_of(word, 5, NAMES) == number


def test_a_number_wins_over_a_name_that_looks_like_one():
    assert class_of("3", 5, NAMES) == 3 and NAMES.index("3") == 4


def test_a_name_written_exactly_wins_over_one_in_other_case():
    assert [class_of(word, 2, ["a", "A"]) for word in ("a", "A")] == [0, 1]


@pytest.mark.parametrize(("word", "words"), [
    ("5", "from 0 to 4"), ("-1", "from 0 to 4"), ("trousr", "did you mean 'Trouser'"), ("1.5", "got '1.5'"), ("", "got ''"),
    ("nan", "T-shirt/top, Trouser")])
def test_another_word_is_an_error_with_what_is_allowed(word, words):
    with pytest.raises(ArgumentError, match=words) as caught:
        class_of(word, 5, NAMES)
    assert "label" in str(caught.value) and "\n" not in str(caught.value)


def test_without_names_a_class_is_a_number():
    with pytest.raises(ArgumentError, match="a number from 0 to 9, got 'seven'"):
        class_of("seven", 10)


def test_two_classes_of_one_name_must_be_told_apart_by_their_numbers():
    with pytest.raises(ArgumentError, match="names the classes 0, 1; give a number"):
        class_of("cat", 2, ["cat", "cat"])
