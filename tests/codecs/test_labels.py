"""Classes by their numbers and their names."""

from __future__ import annotations

import pytest

from everyway.codecs.plain import Labels
from everyway.errors import UsageError


def test_a_class_is_given_by_name_or_number():
    codec = Labels(classes=3, names=("cat", "dog", "2"))
    assert codec.encode(["dog", 0, "1", "2", 2, "cat"]).tolist() == [1, 0, 1, 2, 2, 0]
    for wrong in ("cow", 3, "3", -1, "-1", "²"):
        with pytest.raises(
            UsageError, match=f"class {wrong} is unknown; choose one of cat, dog, 2"
        ):
            codec.encode([wrong])


def test_a_name_of_digits_is_before_a_number_of_them():
    codec = Labels(classes=3, names=("1", "10", "2"))
    assert codec.encode(["2", "10", "0", 2]).tolist() == [2, 1, 0, 2]


def test_classes_without_names_are_numbers():
    assert Labels(classes=3).encode(["2", 0]).tolist() == [2, 0]
    with pytest.raises(UsageError, match="class cat is unknown; give a number from 0 to 2"):
        Labels(classes=3).encode(["cat"])
