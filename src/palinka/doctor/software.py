"""Versions of what palinka is built on, held against what it asks for."""

import platform
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

import palinka
from palinka.doctor.finding import Finding, State

_SHOWN = ("torch", "lightning", "transformers")


def software() -> list[Finding]:
    """Python, the packages that palinka needs, and those for its extras."""
    found = [
        Finding("palinka", palinka.__version__),
        Finding("python", f"{platform.python_version()} on {platform.platform()}"),
    ]
    wanted = [Requirement(line) for line in _requirements()]
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    fitting = []
    for requirement in needed:
        state, text = _held_against(requirement)
        if state is State.FINE and requirement.name not in _SHOWN:
            fitting.append(f"{requirement.name} {text}")
        else:
            found.append(Finding(requirement.name, text, state))
    found.append(Finding("packages", ", ".join(fitting)))
    for requirement in (one for one in wanted if one not in needed):
        if not _installed(requirement.name):
            extra = str(requirement.marker).rpartition("==")[2].strip(" \"'")
            text = f"not installed; pip install 'palinka[{extra}]' if you need it"
            found.append(Finding(requirement.name, text, State.REMARK))
    return found


def _requirements() -> list[str]:
    try:
        return requires("palinka") or []
    except PackageNotFoundError:  # run from its source, without being installed
        return []


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _held_against(requirement: Requirement) -> tuple[State, str]:
    there = _installed(requirement.name)
    asked = f"pip install '{requirement.name}{requirement.specifier}'"
    if there is None:
        return State.BROKEN, f"not installed; {asked}"
    if not requirement.specifier.contains(there, prereleases=True):
        return State.BROKEN, f"{there}, but palinka needs {requirement.specifier}; {asked}"
    return State.FINE, there
