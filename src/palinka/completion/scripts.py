"""The scripts, one for each shell.

Everything that can be typed is in them: completing asks no program, and takes no time.
"""

import shlex
from collections.abc import Callable, Mapping

from palinka.completion.grammar import Line, Option

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
