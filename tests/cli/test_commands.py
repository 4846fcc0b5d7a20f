"""What answers a mistake in each command."""

from typing import Any

import pytest


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("cache lsit", "there is no command 'cache lsit'; did you mean 'cache list'?"),
        ("cache", "there is no command 'cache'; did you mean 'cache list'?"),
        ("cache list --cachedir=x", "did you mean 'cache_dir'?"),
        ("cache remove", "no cache named; give keys"),
        ("cache remove a --ye", "did you mean 'yes'?"),
        ("cache list --cache_dir=$NOWHERE_AT_ALL", "NOWHERE_AT_ALL is not set"),
        ("doctor twice", "unrecognized arguments: twice"),
        ("atlas sevre", "sevre"),
        ("completion bsh", "did you mean 'bash'?"),
        ("import", "import needs where; see"),
        ("export", "export needs --ckpt_path, --format, --output; see"),
        ("export --ckpt_path=a --output=b --format=saelen", "did you mean 'saelens'?"),
        ("export --ckpt_path=no.ckpt --output=b --format=saelens", "no checkpoint no.ckpt"),
        ("analyze", "analyze needs --analyses; see"),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_a_mistake_is_answered_in_one_line(
    line: str, answer: str, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALINKA_CACHE", ".")
    assert answer in refused(*line.split())
