"""Nothing of the project loads objects, or runs the code of others, where ruff's rules miss it."""

import re
from pathlib import Path

import pytest

OFFENSE = re.compile(
    r"""^\s*(import|from)\s+(_pickle|dill|joblib|cloudpickle|shelve)\b
    | \bfrom\s+torch\s+import\s+.*\bload\b
    | \btorch\.load\((?!([^()]|\([^()]*\))*weights_only=True)
    | load_from_checkpoint\([^)]*weights_only=False | allow_pickle=True | trust_remote_code=True
    | \b__import__\( | \bUnpickler\b | \bread_pickle\b | \b(full|unsafe)_load\b""",
    re.VERBOSE | re.MULTILINE,
)


def test_no_module_could_run_what_a_file_says(repository: Path) -> None:
    folders = [repository / name for name in ("src", "scripts", "benchmarks")]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    assert len(files) > 100
    for path in files:
        assert not OFFENSE.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("torch.load(path, weights_only=safe)", True),
        ("torch.load(io.BytesIO(data), weights_only=True, mmap=True)", False),
        ("Module.load_from_checkpoint(path, weights_only=False)", True),
        ("import joblib.numpy_pickle", True),
        ("np.load(path)", False),
    ],
)
def test_what_is_found(code: str, found: bool) -> None:
    assert bool(OFFENSE.search(code)) == found
