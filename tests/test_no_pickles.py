"""Nothing of the project reads or writes pickles, builds objects from YAML, or evaluates text."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("src", "scripts", "benchmarks")
# Whatever reads one of these formats runs what is written in the file.
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
EVALUATORS = {"eval", "exec", "compile", "__import__"}
UNSAFE_LOADS = {"unsafe_load", "unsafe_load_all", "full_load", "full_load_all", "load_all"}
# What raises or what is caught may be named.
EXCEPTIONS = {"UnpicklingError", "PicklingError"}


def sources(repository: Path) -> list[Path]:
    return [path for name in FOLDERS for path in sorted((repository / name).rglob("*.py"))]


def dotted(node: ast.expr) -> str:
    """`torch.load` of an attribute of a name; the last part alone of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def constant(call: ast.Call, name: str) -> object:
    """The value of a keyword that is written out."""
    for keyword in call.keywords:
        if keyword.arg == name and isinstance(keyword.value, ast.Constant):
            return keyword.value.value
    return None


def offenses(tree: ast.AST) -> Iterator[str]:
    """What a module does that could run what is written in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLERS:
            if {alias.name for alias in node.names} - EXCEPTIONS:
                yield f"{node.lineno}: from {node.module} import"
        elif isinstance(node, ast.ImportFrom) and node.module in ("torch", "yaml"):
            if {alias.name for alias in node.names} & {"load", "save", *UNSAFE_LOADS}:
                yield f"{node.lineno}: from {node.module} import load"
        elif isinstance(node, ast.Attribute) and dotted(node).split(".")[0] in PICKLERS:
            if node.attr not in EXCEPTIONS:
                yield f"{node.lineno}: {dotted(node)}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in PICKLERS - {"pickle"}:
                    yield f"{node.lineno}: import {alias.name}"
        elif isinstance(node, ast.Call):
            yield from _offenses_of_call(node)


def _offenses_of_call(call: ast.Call) -> Iterator[str]:
    name = dotted(call.func)
    last = name.rpartition(".")[2]
    if name == "torch.load" and constant(call, "weights_only") is not True:
        yield f"{call.lineno}: torch.load without weights_only=True"
    if last == "load_from_checkpoint" and constant(call, "weights_only") is False:
        yield f"{call.lineno}: load_from_checkpoint with weights_only=False"
    if constant(call, "allow_pickle") is True:
        yield f"{call.lineno}: {name} with allow_pickle=True"
    if name in EVALUATORS or name in {f"builtins.{each}" for each in EVALUATORS}:
        yield f"{call.lineno}: {name}"
    if name.startswith("yaml.") and last in UNSAFE_LOADS | {"load", "compose", "parse"}:
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        # PyYAML's BaseLoader builds text, lists and dicts alone.
        safe = any(kind in given.get("Loader", "") for kind in ("SafeLoader", "BaseLoader"))
        if last in UNSAFE_LOADS or not safe:
            yield f"{call.lineno}: {name} without a safe loader"
    if last in ("read_pickle", "to_pickle") or constant(call, "trust_remote_code") is True:
        yield f"{call.lineno}: {name}"


def test_no_module_could_run_what_a_file_says(repository: Path) -> None:
    files = sources(repository)
    assert len(files) > 100
    found = [
        f"{path.relative_to(repository)}:{offense}"
        for path in files
        for offense in offenses(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "Module.load_from_checkpoint(path, weights_only=False)",
        "from torch import load",
        "import pickle\npickle.loads(data)",
        "import pickle\nread = pickle.Unpickler",
        "from pickle import load",
        "from pickle import UnpicklingError, loads",
        "import dill",
        "import joblib.numpy_pickle",
        "import marshal",
        "import shelve as s",
        "from cloudpickle import load",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text, yaml.SafeLoader)",
        "yaml.unsafe_load(text)",
        "yaml.full_load(text)",
        "from yaml import full_load",
        "eval(text)",
        "exec(text)",
        "builtins.eval(text)",
        "__import__(name)",
        "frame = pd.read_pickle(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_each_of_these_is_found(code: str) -> None:
    assert list(offenses(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path, weights_only=True, mmap=True)",
        "import pickle\ntry: pass\nexcept pickle.UnpicklingError: pass",
        "from pickle import UnpicklingError",
        "np.load(path)",
        "yaml.safe_load(text)",
        "yaml.compose(text, Loader=yaml.SafeLoader)",
        "model.eval()",
        "re.compile(text)",
    ],
)
def test_nothing_else_is(code: str) -> None:
    assert not list(offenses(ast.parse(code)))
