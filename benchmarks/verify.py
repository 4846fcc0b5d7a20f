"""Comparing every checksum of a cache, against `sha256sum`.

python benchmarks/verify.py
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import Case, Rival, report
from loader import random_cache

PIECE = 1 << 20


def sha256sum(paths: list[Path]) -> Callable[[], dict[str, str]]:
    """Printed checksums by file."""

    def run() -> dict[str, str]:
        output = subprocess.check_output(["sha256sum", "--", *paths], text=True)
        pairs = (line.split(maxsplit=1) for line in output.splitlines())
        return {Path(name).name: digest for digest, name in pairs}

    return run


def read(paths: list[Path]) -> Callable[[], None]:
    """Read the files, a piece at a time, and look at nothing."""
    buffer = memoryview(bytearray(PIECE))

    def run() -> None:
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    return run


def main() -> None:
    """Measure and report."""
    root = Path(tempfile.mkdtemp())
    try:
        cache = random_cache(root)
        paths = sorted(cache.folder.glob("*.safetensors"))
        cache.verify()
        manifest = (cache.folder / "manifest.json").read_text(encoding="utf-8")

        def agree(theirs: dict[str, str], ours: None) -> str:
            assert len(theirs) == len(paths)
            assert all(digest in manifest for digest in theirs.values())
            return f"the same {len(theirs)} checksums as in the manifest"

        rivals = [Rival("bound: reading the files", read(paths))]
        missing = {}
        if shutil.which("sha256sum"):
            rivals.insert(0, Rival("`sha256sum`", sha256sum(paths), check=agree))
        else:
            missing["`sha256sum`"] = "there is no such command"
        report(
            "verify",
            "Verifying a cache",
            [
                Case(
                    f"{len(paths)} shards, {cache.bytes / 1e6:,.0f} MB, in the page cache",
                    ours=cache.verify,
                    rivals=rivals,
                    missing=missing,
                    rounds=5,
                )
            ],
            remarks="What `palinka verify` does with each cache: SHA-256, shards side by side.",
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
