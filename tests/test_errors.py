from palinka.errors import InputError


def test_a_message_is_one_line_whatever_was_given() -> None:
    assert str(InputError("file a\nb\x1b[31m: missing")) == r"file a\nb\x1b[31m: missing"


def test_a_long_message_shows_both_ends() -> None:
    line = str(InputError("begins" + "x" * 10**6 + "ends"))
    assert line.startswith("begins")
    assert line.endswith("ends")
    assert len(line) < 21_000
