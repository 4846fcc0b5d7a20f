import pytest

from palinka.data import Passage
from palinka.errors import InputError


def test_is_one_document() -> None:
    (document,) = Passage("I saw him.").documents()
    assert document.text == "I saw him."
    (marked,) = Passage("\ufeffI saw him.").documents()
    assert marked == document


def test_fingerprint_is_that_of_the_text() -> None:
    assert Passage("a").fingerprint() == Passage("a").fingerprint()
    assert Passage("a").fingerprint() != Passage("b").fingerprint()


@pytest.mark.parametrize("text", ["", " \n\t", "\ufeff\n"])
def test_refuses_an_empty_text(text: str) -> None:
    with pytest.raises(InputError, match="the passage is empty; give"):
        Passage(text)
