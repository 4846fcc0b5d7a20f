"""`palinka cache list` and `palinka cache remove`."""

import sys
from collections.abc import Collection
from pathlib import Path

from tqdm import tqdm

from palinka.data.cache import default_cache_dir
from palinka.data.format import JSON
from palinka.data.inventory import StoredCache, remove_cache, stored_caches
from palinka.errors import InputError, counted, did_you_mean, escape_control_chars, expanded
from palinka.language_models import LanguageModelSpec

_HEADINGS = ("KEY", "MODEL", "SITE", "SPLIT", "ROWS", "SIZE", "STATE")
_SIDES = "<<<<>><"  # numbers to the right


def list_caches(cache_dir: str | None = None) -> int:
    """List every cache: model, site, split, rows, size and state.

    Args:
        cache_dir: The folder of all caches; $PALINKA_CACHE, or ~/.cache/palinka/activations.
    """
    if not cache_dir and not default_cache_dir().is_dir():
        print(escape_control_chars(f"no caches: there is no folder {default_cache_dir()} yet"))
        return 0
    root = _folder(cache_dir)
    caches = stored_caches(root)
    bundled = LanguageModelSpec().fingerprint()["weights"]
    rows = [_cells(cache, bundled) for cache in caches]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
    for row in (_HEADINGS, *rows) if rows else ():
        columns = zip(_SIDES, row, widths, strict=True)
        cells = [f"{cell:{side}{width}}" for side, cell, width in columns]
        print(escape_control_chars("  ".join(cells).rstrip()))
    for cache in caches:
        if cache.problem:
            problem = cache.problem.removeprefix(f"{cache.path}").lstrip(":/ ")
            print(escape_control_chars(f"{cache.path.name}: {problem}"))
    count = sum(cache.state != "no cache" for cache in caches)
    total = _size(sum(cache.bytes for cache in caches))
    print(escape_control_chars(f"{counted(count, 'caches')}, {total}, in {root}"))
    return 0


def remove_caches(
    key: list[str], /, incomplete: bool = False, yes: bool = False, cache_dir: str | None = None
) -> int:
    """Remove caches after asking; other files in their folders stay.

    Args:
        key: Caches, by the beginnings of their names.
        incomplete: All caches that were never finished.
        yes: Remove without confirmation.
        cache_dir: The folder of all caches; $PALINKA_CACHE, or ~/.cache/palinka/activations.

    Returns:
        The exit status: 0, or 1 if the user decided to remove nothing.
    """
    root = _folder(cache_dir)
    caches = {cache.path.name: cache for cache in stored_caches(root)}
    chosen = {name: caches[name] for one in key for name in [_named(one, caches, root)]}
    if incomplete:
        chosen |= {name: c for name, c in caches.items() if c.state == "incomplete"}
    elif not key:
        raise InputError("no cache named; give keys as `palinka cache list` shows, or --incomplete")
    if not chosen:
        print(escape_control_chars(f"no incomplete caches in {root}"))
        return 0
    busy = [name for name, cache in chosen.items() if cache.state == "harvesting"]
    if busy:
        raise InputError(f"{', '.join(busy)}: in use by a running harvest; stop it first")
    if not yes and not _agreed(chosen.values()):
        print("nothing removed")
        return 1
    freed = 0
    for name, cache in chosen.items():
        size, left = remove_cache(cache.path)
        freed += size
        print(escape_control_chars(f"removed {name}"))
        for other in left:
            print(escape_control_chars(f"left {cache.path / other}, which is not part of a cache"))
    print(f"freed {_size(freed)}")
    return 0


def _folder(given: str | None) -> Path:
    root = expanded(given) if given else default_cache_dir()
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; give another --cache_dir")
    return root


def _cells(cache: StoredCache, bundled: str) -> tuple[str, ...]:
    settings = cache.key.settings if cache.key else {}
    return (
        cache.path.name,
        _model(settings.get("language_model"), bundled),
        " -> ".join(str(settings[n]) for n in ("site", "target_site") if n in settings),
        str(settings.get("split", "?")),
        "?" if cache.rows is None else f"{cache.rows:,}",
        _size(cache.bytes),
        cache.state,
    )


def _model(known: JSON, bundled: str) -> str:
    if not isinstance(known, dict):
        return "?"
    if "name" in known:
        return f"{known['name']}@{str(known.get('revision', '?'))[:7]}"
    weights = known.get("weights")
    return "mini" if weights == bundled else f"weights {str(weights)[:12]}"


def _size(number: int) -> str:
    return str(tqdm.format_sizeof(number, "B"))


def _named(key: str, caches: dict[str, StoredCache], root: Path) -> str:
    names = [name for name, cache in caches.items() if cache.state != "no cache"]
    found = [key] if key in names else [name for name in names if key and name.startswith(key)]
    if len(found) == 1:
        return found[0]
    if found:
        begun = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise InputError(f"'{key}' matches {len(found)} caches ({begun}); give more digits")
    hint = did_you_mean(key, names, most=0) or "; see `palinka cache list`"
    raise InputError(f"there is no cache '{key}' in {root}{hint}")


def _agreed(chosen: Collection[StoredCache]) -> bool:
    if not sys.stdin.isatty():
        raise InputError("stdin is not a terminal; give --yes to remove without asking")
    for cache in chosen:
        print(escape_control_chars(f"{cache.path.name}  {_size(cache.bytes)}  {cache.state}"))
    count = "it" if len(chosen) == 1 else f"these {len(chosen)}"
    return input(f"remove {count}? [y/N] ").strip().lower() in ("y", "yes")
