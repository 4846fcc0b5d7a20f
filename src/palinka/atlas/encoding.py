"""Data as scripts: what a page that was opened from the disk can load, and no text can leave."""

import base64
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray


def script(name: str, value: Any) -> str:
    """A script that hands data to the page under a name.

    A page from the disk may not fetch files, but it may load scripts. All that is not ASCII is
    escaped, and `<` too, so that no text in the data can be read as anything else, whatever
    encoding the script is taken for and wherever it is put.

    Args:
        name: What the page asks for.
        value: Plain values; numbers are finite.

    Raises:
        ValueError: If a number is not finite.
    """
    arguments = (
        json.dumps(part, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
        for part in (name, value)
    )
    return f"palinka.receive({','.join(arguments)});\n".replace("<", "\\u003c")


def packed(array: NDArray[Any], kind: str) -> dict[str, str]:
    """An array as its bytes, little-endian, in base64.

    Args:
        array: Any shape; flattened.
        kind: `float32`, `uint32`, `uint16` or `uint8`.
    """
    little = np.dtype(kind).newbyteorder("<")
    data = np.ascontiguousarray(array, dtype=little).tobytes()
    return {"kind": kind, "data": base64.b64encode(data).decode("ascii")}


def short(value: float, digits: int = 4) -> float | None:
    """A number with so many significant digits; None where it is not finite."""
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None
