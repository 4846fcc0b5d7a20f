"""Model cards, and folders on disk and on the hub: a local server that answers as the hub does."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import constants
from torch import Tensor

from palinka.autoencoders import Autoencoder, JumpReLUAutoencoder, KSparseAutoencoder
from palinka.autoencoders.files import Provenance, identify, model_card
from palinka.autoencoders.formats import load, write
from palinka.autoencoders.formats.load import LIBRARIES
from palinka.errors import InputError

HOSTILE = "x`|<script>alert(1)</script>\n# A heading\n```\n---\n[link](javascript:x)\x1b[31m![i](http://x)"


def test_the_card_says_what_is_known() -> None:
    facts: dict[str, Any] = {
        "language_model": "gpt2@607a30d", "site": "blocks.6.mlp.pre", "corpus": "some books",
    }  # fmt: skip
    interval = {"val_interval/ce/low": 3.25, "val_interval/ce/high": 3.75}
    metrics = {"val/fvu": 0.25, "val/ce": 3.5, **interval}
    provenance = Provenance(**facts, tokens=8192000, metrics=metrics, license="cc-by-4.0")
    card = model_card(KSparseAutoencoder(6), provenance, "SAELens")
    for fact in (*facts.values(), "8,192,000"):
        assert f"`{fact}`" in card
    for row in ("| `val/fvu` | 0.25 |  |", "| `val/ce` | 3.5 | 3.25 to 3.75 |"):
        assert row in card
    assert 'SAE.load_from_disk("DIR")' in card
    assert "val_interval" not in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"
    card = model_card(JumpReLUAutoencoder(6), Provenance(metrics={"val/fvu": 0.25}))
    assert "| metric | value |\n| --- | --- |\n| `val/fvu` | 0.25 |\n" in card
    assert "None" not in card
    assert 'palinka.Autoencoder.from_pretrained("DIR")' in card
    assert 'license: "unknown"' in card


@pytest.mark.parametrize(
    "field", ["language_model", "language_model_name", "site", "corpus", "hook"]
)
def test_nothing_that_others_wrote_is_markup(field: str) -> None:
    provenance = Provenance(**{field: HOSTILE}, metrics={HOSTILE: 1.0})
    for inner in (".", HOSTILE, '"; import os'):
        card = model_card(KSparseAutoencoder(6), provenance, "sparsify", inner)
        plain = [line for line in card.splitlines() if line.startswith(("#", "```", "---"))]
        assert len(plain) == 2 + 3 + 4  # front matter, headings, two blocks of code
        for line in card.splitlines():
            if "<script>" in line:
                # A single span of code, in one cell of a table.
                assert line.count("`") == 2
                assert line.count("|") in (3, 4)
                assert "<script>" in line.split("`")[1]
        assert "\x1b" not in card
        assert "import os" not in card


def test_what_has_another_type_is_dropped() -> None:
    known = {"site": "blocks.1.resid", "bos": False, "context_length": 128}
    other = {"hook": "", "module": 3, "corpus": None, "language_model": ["x"], "more": "text"}
    assert Provenance.from_dict({**known, **other}).to_dict() == known
    assert Provenance.from_dict({"bos": 1, "context_length": True}) == Provenance()


COMMIT = "0123456789012345678901234567890123456789"


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, and notes what has been fetched."""

    repositories: dict[str, dict[str, bytes]]
    fetched: list[str]

    @classmethod
    def add(cls, repo: str, folder: Path) -> None:
        (folder / "optimizer.bin").write_bytes(b"huge")
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        cls.repositories[repo] = files

    def log_message(self, *_: Any) -> None:
        """Be silent."""

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        of_api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if of_api else parts
        files = self.repositories.get(f"{owner}/{name}")
        error, content = None, b"{}"
        if files is None:
            error = "RepoNotFound"
        elif len(rest) > 1 and rest[1] not in ("main", COMMIT):
            error = "RevisionNotFound"
        elif of_api and rest[:1] == ["tree"]:
            listed = [{"path": n, "size": len(c), "type": "file"} for n, c in files.items()]
            content = json.dumps([{**file, "oid": COMMIT} for file in listed]).encode()
        elif of_api:
            siblings = [{"rfilename": name} for name in files]
            repo = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings}
            content = json.dumps(repo).encode()
        elif "/".join(rest[2:]) in files:
            content = files["/".join(rest[2:])]
            self.fetched += ["/".join(rest[2:])] if self.command == "GET" else []
        else:
            error = "EntryNotFound"
        self.send_response(404 if error else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        if error:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", "not there")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.do_GET()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    hub = type("EmptyHub", (Hub,), {"repositories": {}, "fetched": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    # What the environment's HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE stand for, read once.
    for name, value in {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield hub
    server.shutdown()
    server.server_close()


def test_only_what_is_needed_is_fetched_and_kept_for_offline(
    hub: type[Hub], k_sparse: Autoencoder, folder: Path, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(k_sparse, Provenance(site="blocks.3.mlp.pre"), "saelens", folder)
    hub.add("owner/repo", folder)
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        again, provenance = load("owner/repo")
        assert torch.equal(again.encode(x), k_sparse.encode(x))
        assert provenance.site == "blocks.3.mlp.pre"
        assert sorted(hub.fetched) == ["cfg.json", "sae_weights.safetensors"]
    with pytest.raises(InputError, match="owner/other could not be loaded") as caught:
        load("owner/other")
    assert "\n" not in str(caught.value)


def test_a_folder_within(hub: type[Hub], k_sparse: Autoencoder, folder: Path, x: Tensor) -> None:
    write(k_sparse, Provenance(hook="h.3.mlp.act"), "sparsify", folder)
    hub.add("owner/repo", folder)
    with pytest.raises(InputError, match=r"owner/repo/h\.3\.mlp\.act"):
        load("owner/repo")
    again, provenance = load("owner/repo/h.3.mlp.act", revision="main")
    assert torch.equal(again.encode(x), k_sparse.encode(x))
    assert provenance.site == "blocks.3.mlp.post"
    for where, revision, message in [
        ("owner/repo/h.4.mlp.act", None, "holds no files"),
        ("owner/repo", "old", "owner/repo at old could not be loaded"),
        ("owner/none", None, r"owner/none could not be loaded .*not there"),
    ]:
        with pytest.raises(InputError, match=message):
            load(where, revision)


def test_it_is_put_on_the_hub_with_a_card(
    k_sparse: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: set[str] = set()

    def upload_folder(*, repo_id: str, folder_path: str, **_: Any) -> Any:
        if repo_id != "owner/mine":
            raise ValueError("may not write\nthere")
        uploaded.update(path.name for path in Path(folder_path).iterdir())
        return SimpleNamespace(commit_url="the commit")

    api = create_autospec(huggingface_hub.HfApi)
    api.return_value.upload_folder.side_effect = upload_folder
    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    assert k_sparse.push_to_hub("owner/mine", token="hf_good") == "the commit"
    assert uploaded == {"README.md", "config.json", "model.safetensors"}
    api.assert_called_with(token="hf_good")
    with pytest.raises(InputError, match=r"cannot upload to \.\./x .* may not write; give owner/"):
        k_sparse.push_to_hub("../x")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], "DIR holds no files"),
        (["a.txt", "b.bin"], "DIR holds a.txt, b.bin: expected"),
        (["1.pt", "2.pt"], "DIR holds 1.pt, 2.pt"),
        (["cfg.json"], "DIR holds cfg.json: expected config.json + model.safetensors (palinka)"),
        (["ae.pt"], "config.json + ae.pt (dictionary_learning)"),
        (
            ["config.json", "h.1/cfg.json", "h.1/sae.safetensors", "h.2/cfg.json"],
            "holds autoencoders in h.1: give one of them, such as DIR/h.1",
        ),
    ],
)
def test_what_is_none_or_many(files: list[str], expected: str) -> None:
    with pytest.raises(InputError, match=re.escape(expected)):
        identify(files, "DIR", LIBRARIES)


def test_what_is_neither_a_folder_nor_on_the_hub(folder: Path) -> None:
    for where in ("nowhere", "./no/where", "a\0b", "a/../b", "/x/y"):
        with pytest.raises(InputError) as caught:
            Autoencoder.from_pretrained(where)
        assert str(caught.value).isprintable()
    KSparseAutoencoder(4).save_pretrained(folder)
    with pytest.raises(InputError, match="only the hub has revisions"):
        Autoencoder.from_pretrained(folder, revision="main")
