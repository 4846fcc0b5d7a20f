import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.atlas.site import packed, script, short


@settings(max_examples=60)
@given(st.text())
def test_no_text_leaves_its_script(text: str) -> None:
    written = script("name", {"text": text, text: 1})
    assert written.isascii()
    assert "<" not in written
    assert written.count("\n") == 1
    name, value = json.loads("[" + written[len("palinka.receive(") : -3] + "]")
    assert (name, value) == ("name", {"text": text, text: 1})


def test_numbers_are_finite_and_little_endian() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        script("name", float("nan"))
    data = base64.b64decode(packed(np.array([[1.0, 2.0]]), "float32")["data"])
    assert data == b"\0\0\x80?\0\0\0@"
    assert short(0.123456) == 0.1235
    assert short(float("inf")) is None
