"""Changes to the values of a parsed file: what JSON and YAML hold, and checkpoints."""

import math
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

TEXTS = (
    "",
    " ",
    "null",
    "~",
    "no",
    "../../outside/planted",
    "/etc/hostname",
    "/dev/zero",
    "~nobody-of-this-name/x",
    "$UNSET_VARIABLE_OF_FUZZ/x",
    "a\x00b",
    "line\nbreak",
    "\x1b[2J\x1b]0;title\x07",
    "\u202eright to left",
    "\ud83d",
    "\U0001f469\u200d\U0001f52c",
    "<script>alert(1)</script>",
    "![x](http://127.0.0.1:9/x.png)",
    "=1+2",
    "{target}",
    "{word}{word}",
    "*",
    "a" * 300,
    "a" * 100_000,
    "[" * 3000,
    "9" * 5000,
    "os.system",
    "builtins.eval",
    "torch.load",
    "shard-00001.safetensors",
    "../shard-00000.safetensors",
)
NUMBERS = (
    0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 2**70,
    -(2**31), -(2**63), 10**30, 10**400, 0.0, -0.0, 0.5, 1e-300, 1e300,
    math.inf, -math.inf, math.nan,
)  # fmt: skip
CALLS = tuple(
    {"class_path": path, "init_args": arguments}
    for path, arguments in (
        ("os.system", {"command": "touch ../outside/planted"}),
        ("subprocess.Popen", {"args": ["touch", "../outside/planted"]}),
        ("builtins.open", {"file": "../outside/planted", "mode": "w"}),
        ("builtins.eval", {"source": "open('../outside/planted', 'w')"}),
        ("pathlib.Path", {}),
        ("torch.nn.Linear", {"in_features": 3, "out_features": 3}),
        ("torch.optim.Adam", {"lr": 1}),
        ("torch.load", {"f": "x"}),
        ("KSparseAutoencoder", {"latent_dim": 8}),
        ("RunAnalyses", {"analyses": []}),
        ("TextFiles", {"path": "../outside"}),
    )
)

Node = tuple[Any, Any]  # a container and the key or index of one of its values


def nodes(value: Any) -> list[Node]:
    """Every place in a tree of dicts and lists where a value stands."""
    found: list[Node] = []
    waiting = [value]
    while waiting:
        container = waiting.pop()
        keys = container.keys() if isinstance(container, dict) else range(len(container))
        for key in list(keys):
            found.append((container, key))
            if isinstance(container[key], (dict, list)):
                waiting.append(container[key])
    return found


def nested(value: Any, depth: int, in_list: bool) -> Any:
    """A value deep inside of containers."""
    for _ in range(depth):
        value = [value] if in_list else {"a": value}
    return value


def hostile(random: Random) -> Any:
    """A value that nobody expects."""
    kind = random.randrange(8)
    if kind == 0:
        return random.choice(NUMBERS)
    if kind == 1:
        return random.choice(TEXTS)
    if kind == 2:
        return random.choice([None, True, False, [], {}, [[]], [None], {"": None}])
    if kind == 3:
        return nested(1, random.choice([3, 30, 90]), random.random() < 0.5)
    if kind == 4:
        return deepcopy(random.choice(CALLS))  # it may be changed further
    if kind == 5:
        return [random.choice(NUMBERS) for _ in range(random.randrange(1, 9))]
    if kind == 6:
        return {random.choice(TEXTS): random.choice(NUMBERS + TEXTS)}
    return random.choice(TEXTS) + random.choice(TEXTS)


def _delete(random: Random, container: Any, key: Any) -> None:
    del container[key]


def _rename(random: Random, container: Any, key: Any) -> None:
    if isinstance(container, dict):
        others = [k for k in container if k != key]
        name = str(key)
        new = random.choice([*TEXTS, *others, name + " ", name[1:], name.upper(), name + name])
        container[new] = container.pop(key)
    else:
        container.append(container.pop(key))


def _replace(random: Random, container: Any, key: Any) -> None:
    container[key] = hostile(random)


def _retype(random: Random, container: Any, key: Any) -> None:
    value = container[key]
    container[key] = random.choice(
        [[value], {"value": value}, str(value), repr(value), _copies(value, 3), bool(value is None)]
    )


def _nudge(random: Random, container: Any, key: Any) -> None:
    value = container[key]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        changes = [value + 1, value - 1, -value, value * 2, value * 10**6, value == 1]
        container[key] = random.choice(changes)
    elif isinstance(value, str) and value:
        at = random.randrange(len(value))
        inserted = random.choice(["", "x", "\n", "\x00", "é", "\u202e", "/", "."])
        container[key] = value[:at] + inserted + value[at + random.randrange(2) :]
    else:
        container[key] = hostile(random)


def _repeat(random: Random, container: Any, key: Any) -> None:
    value = container[key]
    if isinstance(value, list) and value:
        times = random.choice([2, 50, 2000 // len(value) + 1])
        container[key] = [part for copy in _copies(value, times) for part in copy]
    elif isinstance(value, str):
        container[key] = value * random.choice([2, 50, 20_000 // (len(value) + 1) + 1])
    else:
        container[key] = hostile(random)


def _copies(value: Any, number: int) -> list[Any]:
    """Copies that share nothing: what stands in two places could be put into itself."""
    return [deepcopy(value) for _ in range(number)]


CHANGES: tuple[Callable[[Random, Any, Any], None], ...] = (
    _delete, _rename, _replace, _retype, _nudge, _repeat,
)  # fmt: skip


def change(random: Random, value: Any) -> Any:
    """Change a tree of dicts and lists, which must not be empty, in one to three places."""
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        places = nodes(value)
        if not places:
            break
        container, key = random.choice(places)
        if random.random() < 0.1:
            _add(random, container)
        elif random.random() < 0.1:
            _exchange(random, container, key, value)
        else:
            random.choice(CHANGES)(random, container, key)
    return value


def _add(random: Random, container: Any) -> None:
    if isinstance(container, dict):
        container[random.choice(TEXTS)] = hostile(random)
    else:
        container.insert(random.randrange(len(container) + 1), hostile(random))


def _exchange(random: Random, container: Any, key: Any, root: Any) -> None:
    """Exchange two values of which neither holds the other."""
    other, place = random.choice(nodes(root))
    mine, theirs = container[key], other[place]
    inside = [n for v in (mine, theirs) if isinstance(v, (dict, list)) for n in nodes(v)]
    holders = {id(mine), id(theirs), *(id(holder) for holder, _ in inside)}
    if id(container) not in holders and id(other) not in holders:
        container[key], other[place] = theirs, mine
