"""`palinka cache`: list and remove caches."""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from palinka.cli.commands import ArgumentParser
from palinka.data.cache import default_cache_dir
from palinka.data.format import JSON
from palinka.data.inventory import StoredCache, remove_cache, stored_caches
from palinka.errors import InputError, did_you_mean, escape_control_chars, expanded
from palinka.language_models import LanguageModelSpec

_HEADINGS = ("KEY", "MODEL", "SITE", "SPLIT", "ROWS", "SIZE", "STATE")
_RIGHT = ("ROWS", "SIZE")
MAX_CELL = 40
_UNITS = ("B", "kB", "MB", "GB", "TB")


def run(arguments: Sequence[str]) -> int:
    """Run `palinka cache list` or `palinka cache remove`.

    Args:
        arguments: The arguments that follow `palinka cache`.

    Returns:
        The exit status: 0, or 1 if the user decided to remove nothing.
    """
    given = _parsers()[0].parse_args(arguments)
    root = expanded(given.cache_dir) if given.cache_dir else default_cache_dir()
    if not root.is_dir():
        if given.cache_dir or given.command == "remove":
            raise InputError(f"there is no folder {root}; give another --cache_dir")
        print(f"no caches: there is no folder {escape_control_chars(str(root))} yet")
        return 0
    if given.command == "list":
        _list(root)
        return 0
    return _remove(root, given.key, given.incomplete, given.yes)


def parsers() -> dict[str, ArgumentParser]:
    """Parsers of `palinka cache` and its commands."""
    parser, commands = _parsers()
    return {"cache": parser, **{f"cache {name}": one for name, one in commands.items()}}


def _parsers() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    parser = ArgumentParser("palinka cache", description="List or remove caches of activations.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{list,remove}")
    listing = commands.add_parser("list", help="list caches", description=_list.__doc__)
    removal = commands.add_parser("remove", help="remove caches", description=_remove.__doc__)
    removal.add_argument("key", nargs="*", metavar="KEY", help="a cache, by how its name begins")
    removal.add_argument(
        "--incomplete", action="store_true", help="all caches that were never finished"
    )
    removal.add_argument("--yes", action="store_true", help="do not ask")
    for command in (listing, removal):
        command.add_argument(
            "--cache_dir",
            metavar="DIR",
            help="the folder of all caches; $PALINKA_CACHE, or ~/.cache/palinka/activations",
        )
    return parser, {"list": listing, "remove": removal}


def _list(root: Path) -> None:
    """List every cache: model, site, split, rows, size and state."""
    caches = stored_caches(root)
    bundled = LanguageModelSpec().fingerprint()["weights"]
    rows = [_cells(cache, bundled) for cache in caches]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
    for row in (_HEADINGS, *rows) if rows else ():
        cells = (
            cell.rjust(width) if heading in _RIGHT else cell.ljust(width)
            for heading, cell, width in zip(_HEADINGS, row, widths, strict=True)
        )
        print("  ".join(cells).rstrip())
    for cache in caches:
        if cache.problem:
            problem = cache.problem.removeprefix(f"{cache.path}").lstrip(":/ ")
            print(f"{escape_control_chars(cache.path.name)}: {escape_control_chars(problem)}")
    count = sum(cache.state != "no cache" for cache in caches)
    total = _size(sum(cache.bytes for cache in caches))
    print(
        f"{count} cache{'' if count == 1 else 's'}, {total}, in {escape_control_chars(str(root))}"
    )


def _cells(cache: StoredCache, bundled: str) -> tuple[str, ...]:
    settings = cache.key.settings if cache.key else {}
    return (
        _cell(cache.path.name),
        _cell(_model(settings.get("language_model"), bundled)),
        _cell(" -> ".join(str(settings[n]) for n in ("site", "target_site") if n in settings)),
        _cell(str(settings.get("split", "?"))),
        "?" if cache.rows is None else f"{cache.rows:,}",
        _size(cache.bytes),
        cache.state,
    )


def _model(known: JSON, bundled: str) -> str:
    """Short name of a model; of a local one, its weights' checksum."""
    if not isinstance(known, dict):
        return "?"
    if "name" in known:
        return f"{known['name']}@{str(known.get('revision', '?'))[:7]}"
    weights = known.get("weights")
    return "mini" if weights == bundled else f"weights {str(weights)[:12]}"


def _size(number: int) -> str:
    power = 0
    while power < len(_UNITS) - 1 and round(number / 1000**power) >= 1000:
        power += 1
    value = number / 1000**power
    return f"{value:.{int(power > 0 and value < 99.95)}f} {_UNITS[power]}"


def _cell(text: str) -> str:
    shown = escape_control_chars(text[:MAX_CELL])
    return shown if len(text) <= MAX_CELL else shown + "…"


def _remove(root: Path, keys: Sequence[str], incomplete: bool, yes: bool) -> int:
    """Remove caches after asking; other files in their folders stay."""
    caches = {cache.path.name: cache for cache in stored_caches(root)}
    chosen = {name: caches[name] for key in keys for name in [_named(key, caches, root)]}
    if incomplete:
        chosen |= {name: c for name, c in caches.items() if c.state == "incomplete"}
    elif not keys:
        raise InputError("no cache named; give keys as `palinka cache list` shows, or --incomplete")
    if not chosen:
        print(f"no incomplete caches in {escape_control_chars(str(root))}")
        return 0
    busy = [name for name, cache in chosen.items() if cache.state == "harvesting"]
    if busy:
        raise InputError(f"{', '.join(busy)}: in use by a running harvest; stop it first")
    if not yes and not _agreed(chosen.values()):
        print("nothing removed")
        return 1
    freed = 0
    for name, cache in chosen.items():
        removal = remove_cache(cache.path)
        freed += removal.bytes
        print(f"removed {escape_control_chars(name)}")
        for left in removal.left:
            print(
                f"left {escape_control_chars(str(cache.path / left))}, which is not part of a cache"
            )
    print(f"freed {_size(freed)}")
    return 0


def _named(key: str, caches: dict[str, StoredCache], root: Path) -> str:
    names = [name for name, cache in caches.items() if cache.state != "no cache"]
    found = [key] if key in names else [name for name in names if key and name.startswith(key)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"'{key}' is how {len(found)} caches begin ({', '.join(found[:3])}"
            f"{', …' if len(found) > 3 else ''}); give more digits"
        )
    if key in caches:
        raise InputError(f"'{key}' is not a cache, and stays")
    hint = did_you_mean(key, names, most=0) or "; see `palinka cache list`"
    raise InputError(f"there is no cache '{key}' in {root}{hint}")


def _agreed(chosen: Collection[StoredCache]) -> bool:
    if not sys.stdin.isatty():
        raise InputError("stdin is not a terminal; give --yes to remove without asking")
    for cache in chosen:
        print(f"{escape_control_chars(cache.path.name)}  {_size(cache.bytes)}  {cache.state}")
    count = "it" if len(chosen) == 1 else f"these {len(chosen)}"
    return input(f"remove {count}? [y/N] ").strip().lower() in ("y", "yes")
