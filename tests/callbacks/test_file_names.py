import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palinka.analyses.findings import file_names


def test_plain_names_stay_readable() -> None:
    assert file_names(["hidden.1/comma/units", "Straße", "日本", "a b"]) == {
        "hidden.1/comma/units": "hidden.1-comma-units",
        "Straße": "Straße",
        "日本": "日本",
        "a b": "a-b",
    }


@pytest.mark.parametrize(
    "name", ["CON", "nul.part", "com1", "Lpt9.x", "", ".", "..", "n" * 300, "é" * 200]
)
def test_names_that_no_file_should_have_end_in_a_hash(name: str) -> None:
    (file,) = file_names([name]).values()
    assert file != name
    assert len(file.encode()) < 200
    assert file.strip(".-")


@pytest.mark.parametrize(
    "names",
    [
        ["a b", "a-b", "a/b"],
        ["Comma", "comma"],
        ["é", "e\u0301"],
        ["n" * 200, "n" * 201],
        ["ß", "ss"],
    ],
)
def test_names_of_the_same_file_are_told_apart(names: list[str]) -> None:
    files = [unicodedata.normalize("NFC", file).casefold() for file in file_names(names).values()]
    assert len(set(files)) == len(names)
    assert file_names(names[:1])[names[0]] == file_names(names)[names[0]]


@given(st.lists(st.text(st.characters(exclude_categories=())), unique=True))
def test_every_name_has_a_harmless_file_of_its_own(names: list[str]) -> None:
    files = file_names(names)
    assert list(files) == names
    assert len({file.casefold() for file in files.values()}) == len(names)
    for file in files.values():
        assert all(c.isalnum() or c in "-_." for c in file)
        assert 0 < len(file.encode()) < 200
        assert file not in (".", "..")
