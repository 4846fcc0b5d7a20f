"""Changes to safetensors files and to checkpoints, beneath what their libraries would write."""

import io
import json
import pickle
import zipfile
from random import Random
from typing import Any

import torch

from hostile.texts import change_bytes
from hostile.values import change

LENGTHS = (0, 1, 7, 2**16, 2**31, 2**32, 10**8, 10**8 + 1, 2**62, 2**63, 2**64 - 1)


def change_safetensors(random: Random, data: bytes) -> bytes:
    """Change a safetensors file: its header by value, its declared length, or any byte."""
    kind = random.random()
    if kind < 0.25:
        return change_bytes(random, data)
    length = int.from_bytes(data[:8], "little")
    if kind < 0.4:
        declared = random.choice([*LENGTHS, length + 1, length - 1, length + 8, len(data)])
        return declared.to_bytes(8, "little") + data[8:]
    header = json.loads(data[8 : 8 + length])
    if kind < 0.7:
        header = change(random, header)
    else:
        _change_places(random, header)
    text = json.dumps(header).encode()
    if random.random() < 0.2:
        text = change_bytes(random, text)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _change_places(random: Random, header: dict[str, Any]) -> None:
    """Let tensors overlap, lie outside of the file, or have a shape of another size."""
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    entry, other = random.choice(tensors), random.choice(tensors)
    kind = random.randrange(6)
    if kind == 0:
        entry["data_offsets"] = list(other["data_offsets"])
    elif kind == 1:
        entry["data_offsets"] = [offset - 8 for offset in entry["data_offsets"]]
    elif kind == 2:
        entry["data_offsets"] = entry["data_offsets"][::-1]
    elif kind == 3:
        entry["shape"] = random.choice(
            [[2**32, 2**32], [2**63], [0], [], [1] * 100, [-1], entry["shape"][::-1]]
        )
    elif kind == 4:
        entry["dtype"] = random.choice(["F64", "BOOL", "F8_E5M2", "I8", "", "f32", "C64"])
    else:
        entry["data_offsets"] = [0, random.choice([2**40, 2**63, 2**64])]


class Planted:
    """What runs a command where it is unpickled without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch ../outside/planted",)


def change_checkpoint(random: Random, data: bytes) -> bytes:
    """Change a checkpoint: what is stored, the archive around it, or any byte."""
    kind = random.random()
    if kind < 0.55:
        content = torch.load(io.BytesIO(data), weights_only=True)
        content = random.choice([change(random, content), content, [content], None, "text", 7])
        if random.random() < 0.1 and isinstance(content, dict):
            content["planted"] = Planted()
        stream = io.BytesIO()
        torch.save(content, stream)
        return stream.getvalue()
    if kind < 0.8:
        return _change_archive(random, data)
    return change_bytes(random, data)


def _change_archive(random: Random, data: bytes) -> bytes:
    """The archive with members renamed, dropped, doubled, pickled anew or damaged."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = random.randrange(len(members))
    name, content = members[at]
    kind = random.randrange(6)
    if kind == 0:
        del members[at]
    elif kind == 1:
        names = ["../outside/planted", "/tmp/planted", name + "x", "data.pkl", "a" * 5000]
        members[at] = (random.choice(names), content)
    elif kind == 2:
        members.append((name, change_bytes(random, content)))
    elif kind == 3:
        members[at] = (name, change_bytes(random, content))
    else:
        pickled = [n for n, (member, _) in enumerate(members) if member.endswith("data.pkl")]
        if pickled:
            name, content = members[pickled[0]]
            planted = pickle.dumps(random.choice([Planted(), {"x": Planted()}, 7]), protocol=2)
            content = planted if kind == 4 else change_bytes(random, content)
            members[pickled[0]] = (name, content)
    stream = io.BytesIO()
    compression = random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()
