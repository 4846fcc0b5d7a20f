"""Check docstrings, messages and the layout of the package; run by `make lint`."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "palinka"
ROOMS = {
    "analyses", "assets", "atlas", "autoencoders", "cli", "data", "errors", "evaluation",
    "interventions", "language_models", "training", "__init__", "__main__", "py",
}  # fmt: skip
QUESTION = re.compile(r"(What|Which|Whether|How|Where)\b")
IS_NO = re.compile(r"(?<![Tt]here )\bis no (?!longer\b|better\b)")
DISLIKED = re.compile(r"\b(nobody|whoever|somebody|so many|if left out|go(es)? on)\b")
LONGEST = 88


def problems(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and faults of one file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if IS_NO.search(node.value):
                yield node.lineno, '"is no …": write "is not a …"'
            if found := DISLIKED.search(node.value):
                yield node.lineno, f"{found[0]!r}: use a plain word of the field"
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            line = getattr(node, "lineno", 1)
            if QUESTION.match(first):
                yield line, f"docstring {first!r}: begin with a noun or an imperative"
            if len(first) > LONGEST:
                yield line, f"docstring of {len(first)} characters; at most {LONGEST}"


def main() -> int:
    """Print every fault; the exit status is 1 if there is one."""
    found = [
        f"{path.relative_to(PACKAGE.parent.parent)}:{line}: {fault}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, fault in problems(path)
    ]
    top = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    found += [f"src/palinka/{name}: not a room of the house" for name in sorted(top - ROOMS)]
    print("\n".join(found), file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
