"""Changes to the bytes of a file, and to YAML as it is written."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

import yaml

from hostile.values import TEXTS, change

TAGS = (
    "!!python/object/apply:os.system ['touch ../outside/planted']",
    "!!python/object/new:subprocess.Popen [[touch, ../outside/planted]]",
    "!!python/name:os.system ''",
    "!!python/module:antigravity ''",
    "!!int abc",
    "!!int '1:2:3:4'",
    "!!float x",
    "!!bool maybe",
    "!!binary '!!!'",
    "!!timestamp yesterday",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!null x",
    "!!str {a: b}",
    "!!seq x",
    "!!map [x]",
    "!unknown x",
    "!<tag:yaml.org,2002:int> 0x_",
    "0b_", "0x", "1_", "._1", "-_", "1e999999", ".inf", ".nan", "0o7_7", "2001-99-99", "=", "<<",
    "{<<: [1, 2]}", "{[a, b]: c}", "{{a: b}: c}", "&x [*x]", "&x {a: *x}", "*nothing", "? a", "@",
)  # fmt: skip


def bomb(width: int, depth: int) -> str:
    """Few lines of YAML that stand for `width ** depth` words."""
    lines = ["b0: &b0 word"]
    for level in range(1, depth + 1):
        members = ", ".join([f"*b{level - 1}"] * width)
        lines.append(f"b{level}: &b{level} [{members}]")
    return "\n".join(lines) + "\n"


def _truncate(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _flip(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 4, 16])):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _insert(random: Random, data: bytes) -> bytes:
    at = random.randrange(len(data) + 1)
    marks = [b"\xff\xfe", b"\xef\xbb\xbf", b"\xc0\xaf", b"\xed\xa0\x80"]
    pieces = [*marks, b"\0", b"\r\n", b"\x1b[2J", b"\0" * 5000, b"[" * 5000]
    piece = random.choice([*pieces, random.randbytes(8)])
    return data[:at] + piece + data[at:]


def _cut(random: Random, data: bytes) -> bytes:
    start = random.randrange(len(data) + 1)
    return data[:start] + data[start + random.choice([1, 2, 8, 64, 1000]) :]


def _double(random: Random, data: bytes) -> bytes:
    start = random.randrange(len(data) + 1)
    stop = min(len(data), start + random.choice([1, 8, 64, 1000]))
    return data[:stop] + data[start:]


def _whole(random: Random, data: bytes) -> bytes:
    return random.choice(
        [b"", b"\0", b"\n", b"{}", b"[]", b"null", b"\xff" * 64, data + data, random.randbytes(256)]
    )


def _encode(random: Random, data: bytes) -> bytes:
    text = data.decode("utf-8", errors="replace")
    encoding = random.choice(["utf-16", "utf-8-sig", "utf-32", "latin-1", "cp037"])
    return text.encode(encoding, errors="replace")


def _carriage_returns(random: Random, data: bytes) -> bytes:
    return data.replace(b"\n", random.choice([b"\r\n", b"\r", b"\n\n", b"\xe2\x80\xa8"]))


BYTES: tuple[Callable[[Random, bytes], bytes], ...] = (
    _truncate, _flip, _insert, _cut, _double, _whole, _encode, _carriage_returns,
)  # fmt: skip


def change_bytes(random: Random, data: bytes) -> bytes:
    """Change the bytes of any file."""
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        data = random.choice(BYTES)(random, data)
    return data


def change_lines(random: Random, text: str) -> str:
    """Change YAML line by line: keys twice, tags, anchors, aliases, indentation, documents."""
    lines = text.split("\n")
    at = random.randrange(len(lines))
    line = lines[at]
    key, colon, _ = line.partition(":")
    kind = random.randrange(10)
    if kind == 0:
        lines.insert(random.randrange(len(lines) + 1), line)
    elif kind == 1:
        del lines[at]
    elif kind == 2 and colon:
        lines[at] = f"{key}: {random.choice(TAGS)}"
    elif kind == 3:
        lines[at] = random.choice([" ", "  ", "\t", "- ", "- - - ", "? ", "# "]) + line
    elif kind == 4:
        lines[at] = line.strip()
    elif kind == 5:
        document = random.choice(["---", "...", "%YAML 9.9", "%TAG ! tag:x,2000:", "--- !!int"])
        lines.insert(at, document)
    elif kind == 6 and colon:
        lines[at] = f"{key}: &anchor {random.choice(TAGS[-14:])}"
        lines.append(f"{random.choice(['extra', 'kind', key.strip()])}: *anchor")
    elif kind == 7:
        width, depth = random.choice([(2, 12), (10, 4), (10, 9), (2, 40)])
        lines = [*bomb(width, depth).split("\n"), *lines]
        if colon:
            lines[lines.index(line)] = f"{key}: *b{depth}"
    elif kind == 8 and colon:
        depth = random.choice([50, 500, 5000, 50_000])
        opening, closing = random.choice([("[", "]"), ("{a: ", "}"), ("- ", "")])
        lines[at] = f"{key}: {opening * depth}{closing * depth}"
    elif colon:
        lines[at] = f"{key}: {json.dumps(random.choice(TEXTS))}"
    return "\n".join(lines)


def change_yaml(random: Random, text: bytes) -> bytes:
    """Change YAML by value, by line or by byte."""
    kind = random.random()
    if kind < 0.5:
        value: Any = change(random, yaml.safe_load(text))
        return dumped(random, value)
    if kind < 0.8:
        changed = text.decode()
        for _ in range(random.choice([1, 1, 2])):
            changed = change_lines(random, changed)
        return changed.encode("utf-8", errors="surrogatepass")
    return change_bytes(random, text)


def dumped(random: Random, value: Any) -> bytes:
    """A value as YAML, or as JSON, which is YAML as well."""
    if random.random() < 0.2:
        return json.dumps(value).encode()
    return yaml.safe_dump(value, sort_keys=False, width=2**31).encode()
