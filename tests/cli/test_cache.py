"""`palinka cache list` and `palinka cache remove`, as they are typed."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

from palinka.__main__ import main
from palinka.data import Cache, CacheKey, CacheWriter, Context, Layout
from palinka.language_models import LanguageModelSpec

LAYOUT = Layout(width=3, dtype="float32", context_length=8, contexts_per_shard=2)
BUNDLED = LanguageModelSpec().fingerprint()
Said = Callable[..., str]


def begun(root: Path, shards: int = 2, **settings: object) -> CacheWriter:
    """A cache of three shards, of which some are written."""
    described = {"language_model": BUNDLED, "site": "blocks.3.mlp.pre", "split": "train"}
    writer = CacheWriter(root, CacheKey(LAYOUT, described | settings))  # type: ignore[arg-type]
    context = Context(*np.zeros((3, 8), np.int64))
    for index in range(shards):
        with writer.claim(index) as mine:
            assert mine
            writer.write(index, torch.ones(16, 3), [context] * 2)
    return writer


def finished(root: Path, **settings: object) -> Path:
    return begun(root, 3, **settings).finish(3).folder


def damaged(root: Path) -> Path:
    folder = finished(root, site="hidden.6")
    (folder / "shard-00001.safetensors").unlink()
    return folder


@pytest.fixture
def caches(workspace: Path) -> Path:
    return workspace / "cache"


@pytest.fixture
def said(caches: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs `palinka cache`, and gives what it printed."""

    def run(*arguments: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main(["cache", *arguments]) == status
        printed = capsys.readouterr()
        return printed.out if status != 2 else printed.err.removeprefix("palinka: error: ")

    return run


def test_every_cache_is_listed_in_columns(caches: Path, said: Said) -> None:
    whole = finished(caches)
    hub = {"name": "gpt2", "revision": "607a30d783dfa663"}
    validation = finished(caches, split="validation", language_model=BUNDLED | hub)
    folder = finished(caches, site="hidden.2", language_model={"weights": "0123456789abcdef"})
    unfinished = begun(caches, site="hidden.4").folder
    busy = begun(caches, 1, site="hidden.5")
    broken = damaged(caches)
    (caches / "notes.txt").write_text("of a user")
    with busy.claim(1):
        heading, *lines = said("list").splitlines()
    assert heading.split() == ["KEY", "MODEL", "SITE", "SPLIT", "ROWS", "SIZE", "STATE"]
    table = {line.split()[0]: line for line in lines[:7]}
    size = tqdm.format_sizeof(sum(path.stat().st_size for path in whole.iterdir()), "B")
    expected = ["mini", "blocks.3.mlp.pre", "train", f"48  {size}  complete"]
    assert table[whole.name].split(None, 4)[1:] == expected
    assert table[validation.name].split()[1:4] == ["gpt2@607a30d", "blocks.3.mlp.pre", "validation"]
    assert "weights 0123456789ab  hidden.2" in table[folder.name]
    assert table[unfinished.name].split()[4::2] == ["32", "incomplete"]
    assert table[busy.folder.name].split()[4::2] == ["16", "harvesting"]
    assert table[broken.name].endswith("damaged")
    assert table["notes.txt"].endswith("?   0.00B  no cache")
    assert len({line.rindex("B  ") for line in table.values()}) == 1  # columns
    assert [line.split(":")[0] for line in sorted(lines[7:9])] == sorted([broken.name, "notes.txt"])
    assert any(line.startswith(f"{broken.name}: shard-00001.safetensors: not") for line in lines)
    assert lines[9].startswith("6 caches, ")


def test_other_folders_may_be_named_and_looking_does_without_lightning(
    workspace: Path, caches: Path, said: Said
) -> None:
    finished(workspace / "here")
    assert "1 cache, " in said("list", "--cache_dir=here")
    assert said("list") == f"no caches: there is no folder {caches} yet\n"
    script = (
        "import sys; from palinka.__main__ import main; main(sys.argv[1:]); print(*sys.modules)"
    )
    command = [sys.executable, "-c", script, "cache", "list", "--cache_dir=here"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not {"lightning", "transformers.models"} & set(ran.stdout.split())
    line = said("list", "--cache_dir=nowhere", status=2)
    assert line == "there is no folder nowhere; give another --cache_dir\n"


def test_text_of_others_is_shown_and_does_nothing(caches: Path, said: Said) -> None:
    finished(caches, site="\x1b[2Jsite\n\u202eetis", split=["a", {"b": None}], language_model=7)
    (caches / os.fsdecode(b"\x1b]0;title\x07\n\xff\xfe")).mkdir()
    lines = said("list").splitlines()
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 1 + 2 + 1 + 1


def test_incomplete_ones_are_removed_together(caches: Path, said: Said) -> None:
    kept = {finished(caches).name, damaged(caches).name}
    busy = begun(caches, 1, site="hidden.5")
    begun(caches, site="hidden.1")
    (begun(caches, site="hidden.3").folder / "harvest.json").unlink()
    with busy.claim(1):
        assert said("remove", "--incomplete", "--yes").count("removed ") == 2
    assert {path.name for path in caches.iterdir()} == kept | {busy.folder.name}
    assert said("remove", busy.folder.name, "--yes").startswith("removed ")
    assert said("remove", "--incomplete") == f"no incomplete caches in {caches}\n"


def test_nothing_is_removed_that_is_harvested_or_no_part_of_a_cache(
    caches: Path, workspace: Path, said: Said
) -> None:
    busy, whole = begun(caches, 1), finished(caches, site="hidden.2")
    with busy.claim(1):
        line = said("remove", whole.name, busy.folder.name, "--yes", status=2)
    assert line == f"{busy.folder.name}: in use by a running harvest; stop it first\n"
    assert Cache.exists(whole)
    (whole / "notes.txt").write_text("of a user")
    printed = said("remove", whole.name, "--yes")
    assert f"left {whole / 'notes.txt'}, which is not part of a cache\n" in printed
    assert [path.name for path in whole.iterdir()] == ["notes.txt"]
    outside = finished(workspace / "elsewhere")
    (caches / "link").symlink_to(outside)
    for key in (whole.name, "link", f"../elsewhere/{outside.name}", str(outside), ".", "", "*"):
        said("remove", key, "--yes", status=2)
    Cache.open(outside).verify()


def test_caches_are_removed_by_how_their_names_begin(caches: Path, said: Said) -> None:
    names = sorted(finished(caches, site=f"hidden.{site}").name for site in range(17))
    first = next(a[0] for a, b in itertools.pairwise(names) if a[0] == b[0])
    typo = names[0][:8] + "x" + names[0][9:]
    line = said("remove", first, "--yes", status=2)
    assert line.startswith(f"'{first}' matches ")
    assert line.endswith("; give more digits\n")
    line = said("remove", typo, "--yes", status=2)
    assert line == f"there is no cache '{typo}' in {caches} (did you mean '{names[0]}'?)\n"
    assert said("remove", "?!", "--yes", status=2).endswith("see `palinka cache list`\n")
    assert len(list(caches.iterdir())) == 17
    size = sum(path.stat().st_size for path in (caches / names[0]).iterdir())
    removed = f"removed {names[0]}\nfreed {tqdm.format_sizeof(size, 'B')}\n"
    assert said("remove", names[0], names[0][:9], "--yes") == removed
    assert sorted(path.name for path in caches.iterdir()) == names[1:]


def test_removing_asks_first(caches: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished(caches)
    line = said("remove", folder.name, status=2)
    assert line == "stdin is not a terminal; give --yes to remove without asking\n"
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer, status in (("", 1), ("yess", 1), ("Y", 0)):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        printed = said("remove", folder.name, status=status)
        assert folder.name in printed
        assert printed.endswith("complete\nnothing removed\n") is (status == 1)
        assert Cache.exists(folder) is (status == 1)
