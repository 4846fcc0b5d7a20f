"""Nothing of the project reads or writes pickles, builds objects from YAML, or evaluates text."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# Whatever reads one of these formats runs what is written in the file.
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
EVALUATORS = {"eval", "exec", "compile", "__import__"}
UNSAFE_LOADS = {"unsafe_load", "unsafe_load_all", "full_load", "full_load_all", "load_all"}
# What raises or what is caught may be named.
EXCEPTIONS = {"UnpicklingError", "PicklingError"}


def dotted(node: ast.expr) -> str:
    """`torch.load` of an attribute of a name; the last part alone of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_offense(node: ast.AST) -> bool:
    """What a module does that could run what is written in a file."""
    if isinstance(node, ast.ImportFrom):
        names = {alias.name for alias in node.names}
        if node.module in ("torch", "yaml"):
            return bool(names & {"load", "save", *UNSAFE_LOADS})
        return (node.module or "").split(".")[0] in PICKLERS and bool(names - EXCEPTIONS)
    if isinstance(node, ast.Attribute):
        return dotted(node).split(".")[0] in PICKLERS and node.attr not in EXCEPTIONS
    if isinstance(node, ast.Import):
        return any(a.name.split(".")[0] in PICKLERS - {"pickle"} for a in node.names)
    return isinstance(node, ast.Call) and is_offending_call(node)


def is_offending_call(call: ast.Call) -> bool:
    name = dotted(call.func)
    last = name.rpartition(".")[2]
    given = {k.arg: ast.unparse(k.value) for k in call.keywords}
    if name.startswith("yaml.") and last in UNSAFE_LOADS | {"load", "compose", "parse"}:
        # PyYAML's BaseLoader builds text, lists and dicts alone.
        loader = given.get("Loader", "")
        return last in UNSAFE_LOADS or not ("SafeLoader" in loader or "BaseLoader" in loader)
    return (
        (name == "torch.load" and given.get("weights_only") != "True")
        or (last == "load_from_checkpoint" and given.get("weights_only") == "False")
        or "True" in (given.get("allow_pickle"), given.get("trust_remote_code"))
        or name.removeprefix("builtins.") in EVALUATORS
        or last in ("read_pickle", "to_pickle")
    )


def offenses(tree: ast.AST) -> Iterator[int]:
    yield from (getattr(node, "lineno", 0) for node in ast.walk(tree) if is_offense(node))


def test_no_module_could_run_what_a_file_says(repository: Path) -> None:
    folders = [repository / name for name in ("src", "scripts", "benchmarks")]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    assert len(files) > 100
    found = [(path, *offenses(ast.parse(path.read_text(encoding="utf-8")))) for path in files]
    assert not [lines for lines in found if lines[1:]]


@pytest.mark.parametrize(
    "code",
    """\
torch.load(path)
torch.load(path, weights_only=False)
torch.load(path, weights_only=safe)
Module.load_from_checkpoint(path, weights_only=False)
from torch import load
import pickle; pickle.loads(data)
import pickle; read = pickle.Unpickler
from pickle import load
from pickle import UnpicklingError, loads
import dill
import joblib.numpy_pickle
import marshal
import shelve as s
from cloudpickle import load
np.load(path, allow_pickle=True)
yaml.load(text, Loader=yaml.Loader)
yaml.load(text, yaml.SafeLoader)
yaml.unsafe_load(text)
yaml.full_load(text)
from yaml import full_load
eval(text)
exec(text)
builtins.eval(text)
__import__(name)
frame = pd.read_pickle(path)
AutoModel.from_pretrained(name, trust_remote_code=True)""".splitlines(),
)
def test_each_of_these_is_found(code: str) -> None:
    assert list(offenses(ast.parse(code)))


def test_nothing_else_is() -> None:
    code = """
import pickle
from pickle import UnpicklingError
try: torch.load(path, weights_only=True, mmap=True)
except pickle.UnpicklingError: pass
np.load(path)
yaml.safe_load(text)
yaml.compose(text, Loader=yaml.SafeLoader)
model.eval()
re.compile(text)
"""
    assert not list(offenses(ast.parse(code)))
