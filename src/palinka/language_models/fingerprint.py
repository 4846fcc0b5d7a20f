"""What identifies a model's weights and tokenizer, whatever folder or device they are in."""

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from palinka.language_models.source import Source
from palinka.progress import progress

_TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
)
_PIECE_BYTES = 1 << 24


def fingerprint(source: Source, dtype: str) -> dict[str, str]:
    """Identify a model by its commit on the hub, or by the content of its local files.

    Args:
        source: Where the model is.
        dtype: What it is computed in.

    Returns:
        `weights`, `tokenizer` and `dtype`; a model on the hub also has its `name` and
        `revision` (the commit). No path and no device is in it.
    """
    if source.commit is not None:
        named = {"name": str(source.location), "revision": source.commit}
        content = ":".join(filter(None, (source.commit, source.gguf_file)))
        return named | {"weights": content, "tokenizer": content, "dtype": dtype}
    folder = Path(source.location)
    if source.gguf_file is not None:
        # Weights, configuration and tokenizer are all in the one file.
        content = _digest(folder / source.gguf_file)
        return {"weights": content, "tokenizer": content, "dtype": dtype}
    # Where both kinds of weights are there, transformers reads the safetensors.
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    tokenizer = {file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)}
    return {
        "weights": _digest_all([folder / "config.json", *weights]),
        "tokenizer": _digest_all(sorted(tokenizer)),
        "dtype": dtype,
    }


def _digest_all(files: Iterable[Path]) -> str:
    """One hash of the names and contents of files."""
    contents = [[file.name, _digest(file)] for file in files]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _digest(file: Path) -> str:
    """The SHA-256 of a file, computed once for as long as the file does not change."""
    status = file.stat()
    return _cached_digest(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _cached_digest(file: Path, size: int, _changed: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream, progress(f"Hashing {file.name}", size, "bytes") as bar:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()
