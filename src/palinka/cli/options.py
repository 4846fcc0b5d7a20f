"""Command lines checked against a description of the options, before torch is imported.

`options.json`, which `scripts/describe_options.py` writes from the parsers, has every option with
its type, and the arguments of the classes of palinka, Lightning and torch. What it lacks, such as a
user's own class, is left to the full parser.
"""

import difflib
import json
import shutil
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from itertools import chain
from typing import Any

import yaml

from palinka.errors import InputError, did_you_mean, expanded, one_line

PACKAGES = ("palinka.", "lightning.", "torch.")  # whose classes the description covers
# Modules that some classes need and palinka does not.
_NEEDED = {"CometLogger": "comet_ml", "MLFlowLogger": "mlflow", "WandbLogger": "wandb"}
_NEEDED["HuggingFaceDataset"] = "datasets"
_EXPANDED = "model.autoencoder."  # whose arguments are listed with the options
_HELP_COLUMN = 44
LOG_FOLDER = "lightning_logs"  # of all runs
CHECKPOINT_KEYWORDS = ("best", "hpc", "registry")  # Lightning resolves these, with a trainer
_CONFIG = ("config", "c")
_SWITCHES = ("help", "h", "print_config")
# Options that some formats of `palinka export` have a use for; `license` is for weights.
WITH_TEXTS = {
    "saedashboard": ("data", "model_id", "suffix"),
    "neuronpedia": ("data", "model_id", "suffix", "explanations"),
    "delphi": ("data", "explanations"),
}


@cache
def _description() -> dict[str, dict[str, Any]]:
    text = files("palinka.cli").joinpath("options.json").read_text(encoding="utf-8")
    described: dict[str, dict[str, Any]] = json.loads(text)
    return described


class Options:
    """The options of one command, such as `fit` or `atlas serve`."""

    def __init__(self, command: str) -> None:
        description = _description()
        own = dict(description["commands"][command])
        self.command = command
        self.description: str = own.pop("description")
        self.sections: list[str] = own.pop("sections")
        self._options: dict[str, dict[str, Any]] = own
        for section in self.sections:
            self._options |= description["sections"][section]
        # By option, the classes that it accepts, with their arguments.
        self.classes = {k: v for k, v in description["classes"].items() if k in self._options}
        # Class chosen for each option; None for one that is not described.
        self._chosen: dict[str, str | None] = {}
        for key, family in self.classes.items():
            name = str(self._options[key].get("default")).rpartition(".")[2]
            only = next(iter(family)) if len(family) == 1 else None
            self._chosen[key] = name if name in family else only
        self._given: dict[str, Any] = {}

    def check(self, arguments: Sequence[str]) -> None:
        """Reject unknown and missing options, and values that are not of their types."""
        see = f"see `palinka {self.command} --help`"
        if self.command == "fit" and not arguments:
            raise InputError("fit needs options; a first run: palinka fit --config quickstart")
        words, given = self._split(arguments)
        for key, value in given:
            if key in _CONFIG and value is not None:
                self._check_file(value)
        for key, value in given:
            if key not in (*_CONFIG, *_SWITCHES) and not key.endswith(".help"):
                for name, inner in flat(_parsed(value), key.removesuffix("+"), lists=True):
                    self._check(name, inner)
        places = [name for name, entry in self._options.items() if entry.get("positional")]
        several = places and self._options[places[-1]]["positional"] == "several"
        if len(words) > len(places) and not several:
            raise InputError(f"unrecognized arguments: {' '.join(words[len(places) :])}; {see}")
        for name, word in zip(places, words, strict=False):
            self._check(name, word)
        required = [n for n, e in self._options.items() if e.get("required")]
        missing = [n for n in required if not any(f"{k}.".startswith(f"{n}.") for k in self._given)]
        if missing and "print_config" not in dict(given):
            shown = [n if n in places else f"--{n}" for n in missing]
            if self.command == "analyze":
                see = "give a configuration, as in `palinka analyze --config him_her`"
            raise InputError(f"{self.command} needs {', '.join(shown)}; {see}")
        if "format" in self._given:
            self._check_uses({key for key, _ in given})

    def _check_uses(self, typed: Collection[str]) -> None:
        """Reject options of other formats, also typed defaults; a file may list all defaults."""
        kind, options = self._given["format"], self._options
        others = {"license", *chain(*WITH_TEXTS.values())} - {*WITH_TEXTS.get(kind, ("license",))}
        changed = {k for k, v in self._given.items() if v != options.get(k, {}).get("default")}
        wanted = {key.partition(".")[0] for key in changed.union(typed)}
        if useless := ", ".join(f"--{name}" for name in sorted(others & wanted)):
            raise InputError(f"export {kind} has no use for {useless}; leave it out")

    def _split(self, arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
        words: list[str] = []
        given: list[tuple[str, str | None]] = []
        remaining = list(arguments)
        while remaining:
            argument = remaining.pop(0)
            key, equals, value = argument.lstrip("-").partition("=")
            if not argument.startswith("-"):
                words.append(argument)
            elif equals:
                given.append((key, value))
            elif "flag" in self._options.get(key, {}).get("type", ()) or key in _SWITCHES:
                given.append((key, "true"))
            else:
                follows = remaining and not remaining[0].startswith("--")
                given.append((key, remaining.pop(0) if follows else None))
        return words, given

    def _check_file(self, path: str) -> None:
        try:
            with expanded(path).open("rb") as file:
                settings = yaml.safe_load(file) or {}
        except OSError as error:
            hint = "give a YAML file, or a name that `palinka configs` lists"
            raise InputError(f"configuration {path}: {error.strerror}; {hint}") from error
        except yaml.YAMLError as error:  # with the line
            raise InputError(f"{path} is not valid YAML: {one_line(error)}") from error
        if not isinstance(settings, dict):
            raise InputError(f"{path} is not a configuration; expected `key: value` lines")
        if isinstance(settings.get("kind"), str):
            remedy = "give one whose `analyses` name it, as in `palinka configs copy him_her`"
            raise InputError(f"{path} is a stimuli file, not a configuration; {remedy}")
        keys = [key for key, _ in flat(settings, lists=True)]
        if not all(map(self._accepts, keys)):
            for other in map(Options, ("fit", "analyze")):
                if all(map(other._accepts, keys)):
                    raise InputError(f"{path} is for `palinka {other.command}`; use that command")
        for key, value in flat(settings, lists=True):
            self._check(key, value)
            stimuli = key.endswith("analyses.stimuli") and isinstance(value, str)
            if stimuli and not (expanded(path).parent / expanded(value)).is_file():
                given = f"{path}: there is no stimuli file {value}"
                raise InputError(f"{given}; paths are relative to the configuration")

    def _check(self, key: str, value: Any) -> None:
        """Check one value, of an option or of an argument of an option's class."""
        self._given[key] = value
        owner = next((k for k in self.classes if key == k or key.startswith(f"{k}.")), "")
        name = key.removeprefix(f"{owner}.").removeprefix("init_args.")
        if key == owner or (owner and name == "class_path"):
            if isinstance(value, str) and "str" not in self._options[owner]["type"]:
                self._choose(owner, value)
        elif key in self._options:
            _check_type(key, value, self._options[key])
            named = value if isinstance(value, list) else [value]
            for given in map(str, filter(None, named if key in ("ckpt_path", "against") else ())):
                looked_up = given in ("last", *CHECKPOINT_KEYWORDS) or "://" in given
                path = expanded(given)
                in_run = (path / "checkpoints").is_dir() or key == "against"
                if not (looked_up or path.is_file() or (in_run and path.is_dir())):
                    remedy = f"give `last`, or one of those that fits write to {LOG_FOLDER}/"
                    raise InputError(f"there is no checkpoint {given}; {remedy}")
        elif owner:
            outer, _, inner = name.partition(".")
            chosen = self._chosen[owner]
            if not chosen or outer in ("init_args", "help", "dict_kwargs"):
                return
            arguments = self.classes[owner][chosen]
            if outer not in arguments:
                hint = did_you_mean(outer, arguments) or self._nearest(name)
                raise InputError(f"{owner}: {chosen} has no option '{outer}'{hint}")
            if not inner:
                _check_type(f"{owner}.{name}", value, arguments[outer])
        elif not self._accepts(key):
            raise InputError(f"there is no option {key}{self._nearest(key)}")

    def _accepts(self, key: str) -> bool:
        return any(f"{key}.".startswith(f"{n}.") or n.startswith(f"{key}.") for n in self._options)

    def _choose(self, key: str, path: str) -> None:
        """Remember the class of an option; a short name must be among those described."""
        name = path.rpartition(".")[2]
        family = self.classes[key]
        if name == path and name not in family:
            parts = [each for each in family if name.lower() in each.lower()]
            hint = f" (did you mean '{min(parts, key=len)}'?)" if name and parts else ""
            raise InputError(f"{key}: no class '{name}'{hint or did_you_mean(name, family)}")
        if (needed := _NEEDED.get(name)) and not find_spec(needed):
            package = "'palinka[datasets]'" if needed == "datasets" else needed.replace("_", "-")
            raise InputError(f"{key}: {name} needs {needed}; pip install {package}")
        described = name in family and (name == path or path.startswith(PACKAGES))
        self._chosen[key] = name if described else None

    def names(self) -> dict[str, dict[str, Any]]:
        """Every option, with the arguments of the classes chosen."""
        found = {}
        for key, entry in self._options.items():
            found[key] = entry
            arguments = self.classes.get(key, {}).get(self._chosen.get(key) or "", {})
            found |= {f"{key}.{name}": argument for name, argument in arguments.items()}
        return found

    def _nearest(self, key: str) -> str:
        """Suggest an option with the same last part, or else the nearest name."""
        known = [*self.names(), _CONFIG[0], *_SWITCHES[::2]]
        last = key.rpartition(".")[2]
        section = key.partition(".")[0] + "."
        siblings = [name for name in known if name.startswith(section)]
        for ending in (f".{last}", f"_{last}"):  # the latter for `epochs` in place of `max_epochs`
            for names in (siblings, known):
                if found := [name for name in names if f".{name}".endswith(ending)]:
                    return _suggestion(min(found, key=lambda name: (len(name), name)))
        for names, cutoff in ((siblings, 0.5), (known, 0.8)):
            parts = {name.rpartition(".")[2]: name for name in reversed(names)}
            for part in difflib.get_close_matches(last, parts, n=1, cutoff=cutoff):
                return _suggestion(parts[part])
        return did_you_mean(key, [*known, *self.sections], most=0)

    def requested_help(self, arguments: Sequence[str]) -> str | None:
        """Help on the command, the trainer or a class, if the arguments request it."""
        if wanted := {"-h", "--help", "--help_trainer"}.intersection(arguments):
            return self.help(trainer="--help_trainer" in wanted)
        for option, name in self._split(arguments)[1]:
            key = option.removesuffix(".help")
            kind = (name or self._chosen.get(key) or "").rpartition(".")[2]
            if option != key and kind in self.classes.get(key, {}):
                summary = _description()["summaries"]["classes"][kind]
                described = self.classes[key][kind].items()
                lines = [_help_line(f"{key}.{n}", entry, _width()) for n, entry in described]
                return "\n".join([f"{kind}: {summary}", "", *lines, ""])
        return None

    def help(self, *, trainer: bool = False) -> str:
        """Format the help: palinka's own options, or those of Lightning's trainer."""
        width, known = _width(), self.names()
        words = [f" {name.upper()}" for name in known if known[name].get("positional")]
        configured = " [--config FILE ...]" if self.classes else ""
        usage = f"usage: palinka {self.command}{''.join(words)}{configured} [--KEY VALUE ...]"
        lines = [usage, *(["", self.description] if self.description else [])]
        shown = [name for name in known if name in self._options or name.startswith(_EXPANDED)]
        wanted = ["trainer"] if trainer else ["data", "model", "options", ""]
        for section in wanted:
            names = [n for n in shown if (n.partition(".")[0] if "." in n else "") == section]
            title = section or "options"
            lines += ["", title] if names and title not in lines else []
            lines += [_help_line(name, known[name], width) for name in names]
        if trainer:
            return "\n".join(lines) + "\n"
        if "trainer" in self.sections:
            lines += ["", f"trainer: palinka {self.command} --help_trainer"]
        for key, family in self.classes.items():
            if len(family) > 1:
                listed = f"classes for --{key}: {', '.join(family)}"
                lines += ["", *textwrap.wrap(listed, width, subsequent_indent="  ")]
        if self.classes:
            lines += ["", "arguments of a class: --KEY.help CLASS"]
        return "\n".join(lines) + "\n"


def _suggestion(name: str) -> str:
    owner, _, part = name.partition(".")
    if part and owner == "analyses":
        return f"; '{part}' belongs in an entry of the YAML list `analyses`"
    return f" (did you mean '{name}'?)"


def _width() -> int:
    return max(60, shutil.get_terminal_size((100, 24)).columns)


def _help_line(name: str, entry: Mapping[str, Any], width: int) -> str:
    default = entry.get("default")
    if default is None:
        kinds = sorted((k for k in entry["type"] if k != "null"), key=lambda kind: kind == "any")
        value = kinds[0].upper() if isinstance(kinds[0], str) else "|".join(map(str, kinds[0]))
    else:
        value = json.dumps(default).strip('"').rpartition("palinka.")[2]
    if "flag" in entry["type"]:
        value = ""
    shown = name.upper() if entry.get("positional") else f"--{name} {value}"
    flag = f"  {shown}  ".ljust(_HELP_COLUMN)
    margin = " " * _HELP_COLUMN
    text = textwrap.fill(
        entry.get("help", ""), width, initial_indent=margin, subsequent_indent=margin
    )
    return f"{flag.rstrip()}\n{text}" if len(flag) > _HELP_COLUMN else flag + text[_HELP_COLUMN:]


def flat(value: Any, key: str = "", lists: bool = False) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested settings, and of `lists` of them, classes first."""
    if isinstance(value, dict) and value:
        for name, inner in sorted(value.items(), key=lambda item: item[0] != "class_path"):
            yield from flat(inner, f"{key}.{name}" if key else str(name), lists)
    elif lists and isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for each in value:
            yield from flat(each, key, lists)
    else:
        yield key, value


def _parsed(value: str | None) -> Any:
    if value is None:
        return None
    try:
        return yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        return value


def _check_type(key: str, value: Any, entry: Mapping[str, Any]) -> None:
    kinds = entry["type"]
    if not {"any", "class", "str", "flag"}.isdisjoint(k for k in kinds if isinstance(k, str)):
        return
    choices = [choice for kind in kinds if isinstance(kind, list) for choice in kind]
    if value is None:
        if "null" not in kinds and not entry.get("required"):
            raise InputError(f"{key} is null; give a value, or leave it out")
        return
    fits = (
        value in choices
        or (isinstance(value, bool) and "bool" in kinds)
        or ("float" in kinds and _number(value) is not None)
        or ("int" in kinds and (number := _number(value)) is not None and number.is_integer())
    )
    if not fits and choices:
        shown = [str(choice) for choice in choices]
        hint = did_you_mean(str(value), shown, most=0)
        raise InputError(f"{key}: {value!r} is not one of {', '.join(shown)}{hint}")
    if not fits:
        expected = " or ".join(kind for kind in kinds if kind != "null")
        raise InputError(f"{key}: expected {expected}, got {value!r}")


def _number(value: Any) -> float | None:
    """Read a number as YAML and JSON write it; `1e-3` is a string in YAML 1.1."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
