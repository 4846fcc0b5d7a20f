"""Nothing of the project reads or writes pickles, builds objects from YAML, or evaluates text."""

import re
from pathlib import Path

import pytest

# Whatever could run what is written in a file; names of exceptions are not.
OFFENSE = re.compile(
    r"""^\s*(import|from)\s+(cPickle|_pickle|dill|joblib|cloudpickle|shelve|marshal)\b
    | \bfrom\s+pickle\s+import\s+(?!(Unp|P)icklingError$)
    | \bpickle\.(?!UnpicklingError|PicklingError)\w
    | \bfrom\s+(torch|yaml)\s+import\s+.*\b(unsafe_|full_)?(load|save)(_all)?\b
    | \btorch\.load\((?!([^()]|\([^()]*\))*weights_only=True)
    | load_from_checkpoint\([^)]*weights_only=False | allow_pickle=True | trust_remote_code=True
    | (?<![\w.`])(?<!def\ )(builtins\.)?(eval|exec|compile|__import__)\(
    | \byaml\.(unsafe_load|full_load|load_all)
    | \byaml\.(load|compose|parse)\((?!([^()]|\([^()]*\))*Loader=\w*\.?\w*(Safe|Base)Loader)
    | \.(read|to)_pickle\(""",
    re.VERBOSE | re.MULTILINE,
)


def test_no_module_could_run_what_a_file_says(repository: Path) -> None:
    folders = [repository / name for name in ("src", "scripts", "benchmarks")]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    assert len(files) > 100
    for path in files:
        assert not OFFENSE.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    "code",
    """\
torch.load(path, weights_only=safe)
Module.load_from_checkpoint(path, weights_only=False)
from torch import load
import pickle; read = pickle.Unpickler
from pickle import UnpicklingError, loads
import joblib.numpy_pickle
np.load(path, allow_pickle=True)
yaml.load(text, Loader=yaml.Loader)
yaml.load(text, yaml.SafeLoader)
from yaml import full_load
builtins.eval(text)
__import__(name)
frame = pd.read_pickle(path)
AutoModel.from_pretrained(name, trust_remote_code=True)""".splitlines(),
)
def test_each_of_these_is_found(code: str) -> None:
    assert OFFENSE.search(code)


def test_nothing_else_is() -> None:
    code = """
import pickle
from pickle import UnpicklingError
try: torch.load(io.BytesIO(data), weights_only=True, mmap=True)
except pickle.UnpicklingError: pass
np.load(path)
yaml.safe_load(text)
yaml.compose(text, Loader=yaml.SafeLoader)
model.eval()
re.compile(text)
"""
    assert not OFFENSE.search(code)
