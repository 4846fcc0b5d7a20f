"""Caches of activations: the manifest, a finished one, and one that a harvest goes on with."""

import contextlib
import json
from pathlib import Path
from random import Random

import numpy as np
import torch

from hostile.containers import change_safetensors
from hostile.folders import change_folder
from hostile.target import Target
from hostile.texts import change_bytes
from hostile.values import change
from palinka.data.cache import Cache
from palinka.data.format import CacheKey, Layout, Manifest, sealed
from palinka.data.writer import CacheWriter

KEY = CacheKey(
    Layout(width=3, dtype="float32", context_length=8, blocks_per_shard=2, skip=1),
    {"corpus": {"kind": "counted", "names": ["a", "b"]}, "blocks": 5, "fraction": 0.05},
)


def write_cache(root: Path, shards: int = 3) -> CacheWriter:
    """Five blocks of eight tokens in three shards, or the first of them."""
    writer = CacheWriter(root, KEY)
    tokens = np.arange(40).reshape(5, 8)
    for index in range(shards):
        with writer.claim(index) as shard:
            if shard is not None:
                part = tokens[2 * index : 2 * index + 2]
                rows = torch.from_numpy(part[:, 1:].reshape(-1, 1) + np.zeros(3)).float()
                shard.write(rows, part, part // 7, part % 7)
    return writer


def _change_sealed(random: Random, path: Path) -> None:
    """Change a manifest or a record, with a checksum that is right again most of the time."""
    if random.random() < 0.3:
        path.write_bytes(change_bytes(random, path.read_bytes()))
        return
    members = change(random, json.loads(path.read_bytes()))
    with contextlib.suppress(ValueError):  # NaN, which the seal does not take
        if isinstance(members, dict):
            members.pop("checksum", None)
            path.write_bytes(sealed(members))


class ManifestFile(Target):
    """The manifest of a cache."""

    name = "manifest"

    def prepare(self) -> None:
        folder = write_cache(self.originals).finish(3).folder
        (folder / "manifest.json").rename(self.originals / "manifest.json")
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    def change(self, random: Random, inside: Path) -> None:
        if random.random() < 0.05:
            change_folder(random, inside, inside.parent / "outside")
        else:
            _change_sealed(random, inside / "manifest.json")

    def read(self, inside: Path) -> None:
        manifest = Manifest.read(inside)
        members = json.loads((inside / "manifest.json").read_bytes())
        assert manifest.key.settings == members["settings"]
        assert vars(manifest.key.layout) == members["layout"]
        listed = [entry["sha256"] for entry in members["shards"]]
        assert [entry.sha256 for entry in manifest.shards] == listed
        assert manifest.statistics.sum.tolist() == [float(x) for x in members["statistics"]["sum"]]


class CacheFolder(Target):
    """A finished cache: opened, verified, and read from end to end."""

    name = "cache"

    def prepare(self) -> None:
        cache = write_cache(self.originals).finish(3)
        self.rows = cache.read_rows(0, cache.rows)
        self.contexts = [cache.context(row) for row in range(cache.rows)]

    def change(self, random: Random, inside: Path) -> None:
        kind = random.random()
        (folder,) = inside.iterdir()
        shard = random.choice(sorted(folder.glob("*.safetensors")))
        if kind < 0.4:
            shard.write_bytes(change_safetensors(random, shard.read_bytes()))
        elif kind < 0.6:
            shard.write_bytes(change_bytes(random, shard.read_bytes()))
        elif kind < 0.7:
            _change_sealed(random, folder / "manifest.json")
        else:
            change_folder(random, folder, inside.parent / "outside")

    def read(self, inside: Path) -> None:
        (folder,) = inside.iterdir()
        cache = Cache.open(folder)
        rows = cache.read_rows(0, cache.rows)
        contexts = [cache.context(row) for row in range(cache.rows)]
        cache.verify()
        assert torch.equal(rows, self.rows)
        for mine, context in zip(self.contexts, contexts, strict=True):
            np.testing.assert_array_equal(context.tokens, mine.tokens)
            assert (context.offset, context.position) == (mine.offset, mine.position)


class HalfACache(Target):
    """A harvest that died, and goes on among files that others have left there."""

    name = "resumed cache"
    written = ("inside",)

    def prepare(self) -> None:
        write_cache(self.originals, shards=2)

    def change(self, random: Random, inside: Path) -> None:
        (folder,) = inside.iterdir()
        kind = random.random()
        if kind < 0.3:
            _change_sealed(random, random.choice(sorted(folder.glob("*.json"))))
        elif kind < 0.5:
            shard = random.choice(sorted(folder.glob("*.safetensors")))
            shard.write_bytes(change_safetensors(random, shard.read_bytes()))
        elif kind < 0.8:
            change_folder(random, folder, inside.parent / "outside")
        else:
            name = random.choice(["manifest.json", "shard-00002.safetensors", "shard-00001.json"])
            leftover = folder / (name + random.choice(["", ".tmp"]))
            leftover.unlink(missing_ok=True)
            leftover.symlink_to(inside.parent / "outside" / random.choice(["secret", "planted"]))

    def read(self, inside: Path) -> None:
        cache = write_cache(inside).finish(3)
        assert cache.rows == 35
