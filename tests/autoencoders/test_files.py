"""Folders on disk and on the hub, which is a small local server that answers as the hub does."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import Tensor

from palinka.autoencoders import Autoencoder, KSparseAutoencoder
from palinka.autoencoders.files import identify
from palinka.autoencoders.formats import Provenance, load, write
from palinka.autoencoders.formats.load import LIBRARIES
from palinka.errors import InputError

COMMIT = "0123456789012345678901234567890123456789"


class Hub:
    """Repositories: the files of each by name, and what has been fetched."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.fetched: list[str] = []

    def add(self, repo: str, folder: Path, prefix: str = "") -> None:
        files = {
            prefix + path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        self.repositories.setdefault(repo, {}).update(files)


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Be silent."""

    def reply(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def reply_json(self, content: Any) -> None:
        self.reply(200, json.dumps(content).encode(), Content_Type="application/json")

    def refuse(self, code: str) -> None:
        self.reply(404, b"{}", X_Error_Code=code, X_Error_Message="not there")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        if path.startswith("api/models/"):
            owner, name, *more = path.removeprefix("api/models/").split("/")
            repo, rest = f"{owner}/{name}", more[1] if len(more) > 1 else ""
            files = self.hub.repositories.get(repo)
            if files is None:
                self.refuse("RepoNotFound")
            elif rest not in ("", "main", COMMIT):
                self.refuse("RevisionNotFound")
            elif more[:1] == ["tree"]:
                listed = [{"path": n, "size": len(c), "type": "file"} for n, c in files.items()]
                self.reply_json([{**file, "oid": COMMIT} for file in listed])
            else:
                siblings = [{"rfilename": name, "size": len(c)} for name, c in files.items()]
                self.reply_json({"id": repo, "sha": COMMIT, "siblings": siblings})
            return
        repo, _, rest = path.partition("/resolve/")
        _, _, name = rest.partition("/")
        content = self.hub.repositories.get(repo, {}).get(name)
        if content is None:
            self.refuse("EntryNotFound")
            return
        if self.command == "GET":
            self.hub.fetched.append(name)
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self.reply(200, content, ETag=etag, X_Repo_Commit=COMMIT)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0].strip("/")
        if self.headers.get("Authorization") != "Bearer hf_good":
            self.reply(403, b"{}", X_Error_Message="may not write")
        elif path == "api/repos/create":
            asked = json.loads(body)
            repo = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            self.hub.repositories.setdefault(repo, {})
            self.reply_json({"url": f"http://{self.headers['Host']}/{repo}"})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            self.reply_json({"files": [{"path": file["path"], **mode} for file in files]})
        elif "/commit/" in path:
            repo = "/".join(path.split("/")[2:4])
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    self.hub.repositories[repo][value["path"]] = base64.b64decode(value["content"])
            url = f"http://{self.headers['Host']}/{repo}/commit/{COMMIT}"
            self.reply_json({"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self.reply_json({})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    handler = type("HandlerOfHub", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    # What the environment's HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE stand for, read once.
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def test_only_what_is_needed_is_fetched(
    hub: Hub, k_sparse: Autoencoder, folder: Path, x: Tensor
) -> None:
    write(k_sparse, Provenance(site="blocks.3.mlp.pre"), "saelens", folder)
    (folder / "optimizer.bin").write_bytes(b"huge")
    hub.add("owner/repo", folder)
    again, provenance = load("owner/repo")
    assert torch.equal(again.encode(x), k_sparse.encode(x))
    assert provenance.site == "blocks.3.mlp.pre"
    assert sorted(hub.fetched) == ["cfg.json", "sae_weights.safetensors"]


def test_a_folder_within(hub: Hub, k_sparse: Autoencoder, folder: Path, x: Tensor) -> None:
    write(k_sparse, Provenance(hook="h.3.mlp.act"), "sparsify", folder)
    hub.add("owner/repo", folder)
    with pytest.raises(InputError, match=r"owner/repo/h\.3\.mlp\.act"):
        load("owner/repo")
    again, provenance = load("owner/repo/h.3.mlp.act", revision="main")
    assert torch.equal(again.encode(x), k_sparse.encode(x))
    assert provenance.site == "blocks.3.mlp.post"
    with pytest.raises(InputError, match="holds no files"):
        load("owner/repo/h.4.mlp.act")


def test_what_is_not_there(hub: Hub, k_sparse: Autoencoder, folder: Path) -> None:
    with pytest.raises(InputError, match=r"owner/none could not be loaded .*not there"):
        load("owner/none")
    write(k_sparse, Provenance(), "palinka", folder)
    hub.add("owner/repo", folder)
    with pytest.raises(InputError, match="owner/repo at old could not be loaded"):
        load("owner/repo", revision="old")


def test_without_a_network(
    hub: Hub, k_sparse: Autoencoder, folder: Path, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(k_sparse, Provenance(), "palinka", folder)
    (folder / "optimizer.bin").write_bytes(b"never downloaded")
    hub.add("owner/repo", folder)
    load("owner/repo")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    again, _ = load("owner/repo")
    assert torch.equal(again.encode(x), k_sparse.encode(x))
    with pytest.raises(InputError, match="owner/other could not be loaded") as caught:
        load("owner/other")
    assert "\n" not in str(caught.value)


def test_put_on_the_hub_and_fetched_again(hub: Hub, k_sparse: Autoencoder, x: Tensor) -> None:
    url = k_sparse.push_to_hub("owner/mine", token="hf_good")
    assert url.endswith(f"/owner/mine/commit/{COMMIT}")
    assert hub.repositories["owner/mine"].keys() >= {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    assert torch.equal(Autoencoder.from_pretrained("owner/mine").encode(x), k_sparse.encode(x))


def test_who_may_not_write(hub: Hub, k_sparse: Autoencoder) -> None:
    with pytest.raises(InputError, match="cannot upload to owner/mine"):
        k_sparse.push_to_hub("owner/mine", token="hf_bad")
    for name in ("a/b/c", "../x"):
        with pytest.raises(InputError, match="give owner/repository"):
            k_sparse.push_to_hub(name, token="hf_good")
    assert not hub.repositories


@pytest.mark.parametrize(
    ("files", "library"),
    [
        (["config.json", "model.safetensors", "README.md"], "palinka"),
        (["cfg.json", "sae_weights.safetensors", "sparsity.safetensors"], "SAELens"),
        (["cfg.json", "sae.safetensors"], "sparsify"),
        (["config.json", "ae.pt"], "dictionary_learning"),
        (["8.pt"], "OpenAI"),
    ],
)
def test_the_files_tell(files: list[str], library: str) -> None:
    assert identify(files, "DIR", LIBRARIES)[0] == library


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
    with pytest.raises(InputError) as caught:
        identify(files, "DIR", LIBRARIES)
    assert expected in str(caught.value)


@pytest.mark.parametrize("where", ["nowhere", "./no/where", "a\0b", "a/../b", "/x/y"])
def test_what_is_neither_a_folder_nor_on_the_hub(where: str) -> None:
    with pytest.raises(InputError) as caught:
        Autoencoder.from_pretrained(where)
    assert str(caught.value).isprintable()


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    KSparseAutoencoder(4).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="only the hub has revisions"):
        Autoencoder.from_pretrained(tmp_path, revision="main")
