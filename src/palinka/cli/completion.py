"""`palinka completion`: shell completion."""

import argparse
import inspect
import re
import shlex
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

from palinka.cli import commands
from palinka.cli.commands import PlainParser
from palinka.cli.parser import class_named, class_names

_FIRST_SENTENCE = re.compile(r"^.*?(?:[.;](?=\s|$)|$)")
_LONGEST = 60


class Option(NamedTuple):
    """One option.

    Attributes:
        name: With its dashes.
        does: In a few words.
        takes: What it takes: `nothing`, `anything` (files are offered) or `choices`.
        choices: Those.
    """

    name: str
    does: str
    takes: str = "anything"
    choices: tuple[str, ...] = ()


class Line(NamedTuple):
    """A command line.

    Attributes:
        does: In a few words.
        options: Its options.
        words: What may follow at once: commands within it, or the choices of its argument.
    """

    does: str
    options: tuple[Option, ...]
    words: tuple[str, ...]


def grammar(parsers: Mapping[str, argparse.ArgumentParser]) -> dict[str, Line]:
    """What each command line takes.

    Args:
        parsers: By the words that the command lines begin with.
    """
    return {
        begins: Line(_brief(parser.description), tuple(_options(parser)), _words(begins, parsers))
        for begins, parser in parsers.items()
    }


def _words(begins: str, parsers: Mapping[str, argparse.ArgumentParser]) -> tuple[str, ...]:
    """The choices of an argument without dashes, and the commands in this one."""
    choices = [
        str(choice)
        for action in parsers[begins]._actions
        if not action.option_strings
        for choice in action.choices or ()
    ]
    inner = [o.removeprefix(f"{begins} ") for o in parsers if o.startswith(f"{begins} ")]
    return tuple(dict.fromkeys([*choices, *inner]))


def _options(parser: argparse.ArgumentParser) -> Iterator[Option]:
    yield Option("--quiet", "only results, warnings and errors", "nothing")
    for action in parser._actions:
        # `--list+` appends to what a file says, and `--class.help` describes a class.
        names = [
            name
            for name in action.option_strings
            if name.startswith("--") and not name.endswith(("+", ".help"))
        ]
        for name in names:
            yield _option(name, action)
        hint = getattr(action, "_typehint", None)
        for parameter in sorted(_parameters(hint)) if names else ():
            yield Option(f"{names[0]}.{parameter}", f"of the {names[0].rpartition('.')[2]}")


def _option(name: str, action: argparse.Action) -> Option:
    hint = getattr(action, "_typehint", None)
    choices = tuple(map(str, action.choices or ())) or tuple(class_names(hint))
    if hint is bool:
        choices = ("true", "false")
    if get_origin(hint) is Literal:
        choices = tuple(map(str, get_args(hint)))
    takes = "choices" if choices else "nothing" if action.nargs == 0 else "anything"
    return Option(name, _brief(action.help), takes, choices)


def _parameters(hint: Any) -> set[str]:
    """The arguments of palinka's own classes that a value may be of."""
    found: set[str] = set()
    for name in class_names(hint):
        kind = class_named(hint, name)
        if kind.__module__.startswith("palinka."):
            found |= set(inspect.signature(kind).parameters)
    return {name for name in found if name not in ("input_dim", "output_dim", "args", "kwargs")}


def _brief(text: str | None) -> str:
    """The first sentence, on one line, of characters that no shell reads anything into."""
    sentence = _FIRST_SENTENCE.match(" ".join((text or "").split()))
    kept = re.sub(r"[^\w ,./()-]", "", sentence[0] if sentence else "").strip(" .;")
    return kept if len(kept) <= _LONGEST else f"{kept[: _LONGEST - 2].rstrip()} …"


Commands = Mapping[str, str]
Lines = Mapping[str, Line]


def bash(commands: Commands, lines: Lines) -> str:
    """For bash, from 3.2 on, which is what macOS has.

    Args:
        commands: What each command does, by its name.
        lines: What each command line takes, by the words that it begins with.
    """
    cases = []
    for words, line in lines.items():
        values = "\n".join(
            f"        {option.name}) words={shlex.quote(' '.join(option.choices))};;"
            if option.choices
            else f"        {option.name}) return;;"
            for option in line.options
            if option.takes != "nothing"
        )
        offered = " ".join([*line.words, *(option.name for option in line.options)])
        cases.append(
            f"    {shlex.quote(words)})\n      words={shlex.quote(offered)}\n"
            f'      case "$prev" in\n{values}\n      esac;;'
        )
    joined = "\n".join(cases)
    return f"""\
# palinka in bash: source this file, or put it where bash-completion looks for `palinka`.
_palinka() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD - 1]}}" words i
  # `--key=value` comes as three words.
  if [ "$cur" = "=" ]; then cur=""; prev="${{COMP_WORDS[COMP_CWORD - 1]}}"
  elif [ "$prev" = "=" ]; then prev="${{COMP_WORDS[COMP_CWORD - 2]}}"; fi
  local line="" word
  for ((i = 1; i < COMP_CWORD; i++)); do
    word="${{COMP_WORDS[i]}}"
    case "$word" in
    --quiet) ;;
    -*) break;;
    *) line="${{line:+$line }}$word";;
    esac
  done
  case "$line" in
    "") words={shlex.quote(" ".join([*commands, "--help", "--version", "--quiet"]))};;
{joined}
    *) return;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o bashdefault -o default -F _palinka palinka
"""


def zsh(commands: Commands, lines: Lines) -> str:
    """For zsh; arguments as for `bash`."""
    shown = "\n".join(f"    {shlex.quote(f'{name}:{does}')}" for name, does in commands.items())
    cases = []
    for words, line in lines.items():
        specs = "\n".join(
            f"        {shlex.quote(_zsh_option(option))} \\" for option in line.options
        )
        further = " ".join(line.words)
        first = f"        {shlex.quote(f'1: :({further})')} \\\n" if further else ""
        cases.append(
            f"    {shlex.quote(words)})\n      _arguments \\\n{first}{specs}\n        && ret=0;;"
        )
    joined = "\n".join(cases)
    several = "|".join(dict.fromkeys(words.split()[0] for words in lines if " " in words))
    return f"""\
#compdef palinka
# palinka in zsh: put this file into a folder of $fpath as `_palinka`.
_palinka() {{
  local ret=1 line state command
  local -a commands
  commands=(
{shown}
  )
  _arguments -C '--quiet[only results, warnings and errors]' '--help[list the commands]' \\
    '--version[say which version]' '1: :->command' '*:: :->rest' && ret=0
  if [[ $state == command ]]; then
    _describe command commands && ret=0
    return ret
  fi
  command=$line[1]
  if [[ $command == ({several}) && $CURRENT -gt 2 && $words[2] != -* ]]; then
    command="$command $words[2]"
    shift words
    (( CURRENT-- ))
  fi
  case $command in
{joined}
  esac
  return ret
}}
if [ "$funcstack[1]" = "_palinka" ]; then _palinka "$@"; else compdef _palinka palinka; fi
"""


def _zsh_option(option: Option) -> str:
    said = f"{option.name}[{option.does}]"
    if option.takes == "nothing":
        return said
    return f"{said}: :({' '.join(option.choices)})" if option.choices else f"{said}: :_files"


def fish(commands: Commands, lines: Lines) -> str:
    """For fish; arguments as for `bash`."""
    known = " ".join(commands)
    no_command = f"not __fish_seen_subcommand_from {known}"
    rows = [
        "# palinka in fish: put this file into ~/.config/fish/completions as `palinka.fish`.",
        "complete -c palinka -f",
        f"complete -c palinka -n {shlex.quote(no_command)} -l quiet -d 'say less'",
    ]
    for name, does in commands.items():
        rows.append(
            f"complete -c palinka -n {shlex.quote(no_command)} -a {name} -d {shlex.quote(does)}"
        )
    for words, line in lines.items():
        seen = " && ".join(f"__fish_seen_subcommand_from {word}" for word in words.split())
        apart = f" && not __fish_seen_subcommand_from {' '.join(line.words)}" if line.words else ""
        where = f"complete -c palinka -n {shlex.quote(seen + apart)}"
        if line.words:
            rows.append(f"{where} -a {shlex.quote(' '.join(line.words))}")
        for option in line.options:
            takes = {"nothing": "", "anything": " -r -F"}.get(
                option.takes, f" -x -a {shlex.quote(' '.join(option.choices))}"
            )
            does = f" -d {shlex.quote(option.does)}" if option.does else ""
            rows.append(f"{where} -l {option.name.removeprefix('--')}{takes}{does}")
    return "\n".join([*rows, ""])


SCRIPTS: dict[str, Callable[[Commands, Lines], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


_DESCRIPTION = """\
Print a script with which a shell completes commands, options and the names of classes. Everything
is in the script, so that completing takes no time; print it again after an update.

  bash   palinka completion bash > ~/.local/share/bash-completion/completions/palinka
  zsh    palinka completion zsh > ~/.zfunc/_palinka   (with ~/.zfunc in $fpath)
  fish   palinka completion fish > ~/.config/fish/completions/palinka.fish
"""


def run(arguments: Sequence[str]) -> int:
    """Run `palinka completion SHELL`.

    Args:
        arguments: What follows `palinka completion` on the command line.

    Returns:
        The exit status.

    Raises:
        InputError: If the command line cannot be understood.
    """
    shell = _parser().parse_args(arguments).shell

    does = {name: command.does for name, command in commands.COMMANDS.items()}
    print(SCRIPTS[shell](does, grammar(commands.parsers())), end="")
    return 0


def parsers() -> dict[str, PlainParser]:
    """The parser of `palinka completion`."""
    return {"completion": _parser()}


def _parser() -> PlainParser:
    parser = PlainParser(
        "palinka completion", description=_DESCRIPTION, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("shell", choices=sorted(SCRIPTS), help="the shell that is to complete")
    return parser
