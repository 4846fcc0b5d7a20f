import numpy as np
import pytest

from palinka.data import Document


def test_a_document_is_text_or_tokens() -> None:
    assert Document("a", text="").text == ""
    assert Document("a", tokens=np.zeros(0, dtype=np.int64)).text is None
    with pytest.raises(ValueError, match="either text or tokens"):
        Document("a")
    with pytest.raises(ValueError, match="either text or tokens"):
        Document("a", text="a", tokens=np.zeros(1, dtype=np.int64))
