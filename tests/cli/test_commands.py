"""What answers a mistake in each command."""

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("cache lsit", "there is no command 'cache lsit' (did you mean 'cache list'?)"),
        ("cache", "there is no command 'cache' (did you mean 'cache list'?)"),
        ("cache list --cachedir=x", "did you mean 'cache_dir'?"),
        ("cache remove", "no cache named; give keys"),
        ("cache list --cache_dir=$NOWHERE_AT_ALL", "NOWHERE_AT_ALL is not set"),
        ("doctor twice", "unrecognized arguments: twice"),
        ("completion bsh", "did you mean 'bash'?"),
        ("import", "import needs where; see"),
        ("export", "export needs --ckpt_path, --format, --output; see"),
        ("export --ckpt_path=last --output=b --format=saelen", "did you mean 'saelens'?"),
        ("analyze", "analyze needs --analyses; give a configuration, as in `palinka analyze --con"),
        ("analyze --analyses=[]", "at least one"),
        (
            'analyze --analyses=[{"name":"a","analyse":"x","stimuli":"x.yaml"}]',
            "AnalysisEntry has no option 'analyse' (did you mean 'analysis'?)",
        ),
        ("analyze --site=hidden.2", "'sites' belongs in an entry of the YAML list `analyses`"),
        ("import taken", "taken holds no files"),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_a_mistake_is_answered_in_one_line(
    line: str, answer: str, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALINKA_CACHE", ".")
    Path("taken").mkdir()
    Path("x.yaml").touch()
    assert answer in refused(*line.split())
