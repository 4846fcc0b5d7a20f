import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from palinka.atlas import AtlasServer, write_site
from palinka.atlas.facts import LatentFacts
from palinka.atlas.server import API, LARGEST_REQUEST, TOP, LiveLatents
from palinka.atlas.site import About
from palinka.autoencoders import KSparseAutoencoder
from palinka.errors import InputError
from palinka.language_models import LanguageModel
from palinka.training import SparseAutoencoderModule

JSON = {"Content-Type": "application/json"}
SITE = "blocks.3.mlp.pre"
TEXT = "Once upon a time there was <b>a</b> 😀."


@pytest.fixture(scope="module")
def live() -> LiveLatents:
    torch.manual_seed(0)
    model = LanguageModel.from_pretrained("mini")
    module = SparseAutoencoderModule(KSparseAutoencoder(model.width(SITE), 40, k=12)).eval()
    return LiveLatents(model, SITE, module)


def test_every_latent_is_told_at_every_token(live: LiveLatents) -> None:
    answer = live.answer(TEXT)
    ids = [token for token, _ in answer["tokens"]]
    read = live.model.read(torch.tensor([ids]), [SITE])[SITE][0]
    latents = live.module.encode(read).detach()
    for row, top in zip(latents, answer["top"], strict=True):
        values, which = row.topk(TOP)
        assert [value for _, value in top] == pytest.approx(values.tolist(), rel=1e-3)
        assert [latent for latent, _ in top] == which.tolist()
    active = {latent: rest for latent, *rest in answer["active"]}
    assert set(active) == set((latents > 0).any(dim=0).nonzero()[:, 0].tolist())
    for latent, (largest, at, tokens) in active.items():
        values = latents[:, latent]
        assert largest == pytest.approx(values.max().item(), rel=1e-3)
        assert (at, tokens) == (int(values.argmax()), int((values > 0).sum()))
        assert live.answer(TEXT, latent)["values"] == pytest.approx(values.tolist(), rel=1e-3)
    assert "😀" in "".join(text for _, text in answer["tokens"])


def test_positions_without_rows_have_no_latents(live: LiveLatents) -> None:
    answer = LiveLatents(live.model, SITE, live.module, skip=1).answer("Once upon")
    assert answer["top"][0] == []
    assert answer["top"][1]


@pytest.mark.parametrize("skip", [0, 1])
def test_a_bos_token_is_read_and_not_shown(live: LiveLatents, skip: int) -> None:
    begun = LiveLatents(live.model, SITE, live.module, bos=True, skip=skip)
    answer = begun.answer("Once upon")
    assert answer["tokens"] == live.answer("Once upon")["tokens"]
    tokens = live.model.tokenize(["Once upon"], bos=True)
    latents = live.module.encode(live.model.read(tokens, [SITE])[SITE][0, 1:]).detach()
    for row, top in zip(latents, answer["top"], strict=True):
        assert [latent for latent, _ in top] == row.topk(TOP).indices.tolist()
    with pytest.raises(InputError, match="is empty; type some"):
        begun.answer("")


def test_what_cannot_be_read_is_refused(live: LiveLatents) -> None:
    for question, message in (
        (("",), "is empty; type some"),
        (("many words " * 5000,), "tokens, the context"),
        (("x", 40), "latent is 40; expected 0 to 39"),
    ):
        with pytest.raises(InputError, match=message):
            live.answer(*question)


class Answers:
    """Stands for the model."""

    def answer(self, text: str, latent: int | None = None) -> dict[str, Any]:
        if text == "bad":
            raise InputError("the text is bad")
        return {"text": text, "latent": latent}


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, facts: LatentFacts, about: About
) -> Iterator[AtlasServer]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "secret.txt").write_text("secret")
    page = write_site(folder / "atlas", facts, about)
    with AtlasServer(page.parent, Answers()) as server:  # type: ignore[arg-type]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(
    server: AtlasServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        given = {**JSON, "Content-Length": str(len(body)), **given}
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    connection.putrequest(method, path, skip_host="Host" in given)
    for name, value in given.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def test_the_page_may_ask_its_server_and_nobody_else(server: AtlasServer) -> None:
    status, headers, page = ask(server, "GET", "/")
    assert status == 200
    assert b"connect-src 'self'" in page
    assert b"data-served" in page
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert ask(server, "GET", "/assets/data.js")[1]["Content-Type"].startswith("text/javascript")
    assert server.server_address[0] == "127.0.0.1"


def test_a_text_is_answered(server: AtlasServer) -> None:
    body = json.dumps({"text": "Füße", "latent": 3}).encode()
    status, _, content = ask(server, "POST", API, body)
    assert (status, json.loads(content)) == (200, {"text": "Füße", "latent": 3})
    status, _, content = ask(server, "POST", API, b'{"text": "bad"}')
    assert (status, json.loads(content)) == (400, {"error": "the text is bad"})


REFUSED = [
    *(("Host", host, 421) for host in ("evil.example", "127.0.0.1", "127.0.0.1:1", "")),
    *(("Origin", origin, 403) for origin in ("http://evil.example", "null")),
    *(("Sec_Fetch_Site", site, 403) for site in ("cross-site", "same-site")),
    *(("Content_Type", kind, 415) for kind in ("text/plain", "multipart/form-data")),
    *(("Content_Length", n, 413) for n in (str(LARGEST_REQUEST + 1), "9" * 30, "-1", "²")),
]
NO_QUESTIONS = [
    b"", b"{", b"[]", b"[" * 100_000, b'"x"', b'{"text": 3}', b'{"text": "x", "latent": "3"}',
    b'{"text": "\\ud800"}', b"\xff\xfe",
]  # fmt: skip


def test_requests_of_others_and_what_is_no_question_are_refused(server: AtlasServer) -> None:
    requests = [(b'{"text": "x"}', {header: value}, status) for header, value, status in REFUSED]
    for body, headers, status in [*requests, *((body, {}, 400) for body in NO_QUESTIONS)]:
        found, _, content = ask(server, "POST", API, body, **headers)
        assert found == status, (body, headers)
        assert "error" in json.loads(content)


@pytest.mark.parametrize("name", ["127.0.0.1", "LocalHost"])
def test_its_own_origin_is_let_in(server: AtlasServer, name: str) -> None:
    host = f"{name}:{server.server_address[1]}"
    own = {"Host": host, "Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
    assert ask(server, "POST", API, b'{"text": "x"}', **own)[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/secret.txt", "/../secret.txt", "/%2e%2e/secret.txt", "/data/../../secret.txt",
     "/data/%2e%2e/%2e%2e/secret.txt", "/data/", "/data", "/index.html",
     "/assets/%00.js", "//secret.txt", "/figures/none.png", "/data/overview.js/x", "/api/latents"],
)  # fmt: skip
def test_only_files_of_the_atlas_are_sent(server: AtlasServer, path: str) -> None:
    status, _, content = ask(server, "GET", path)
    assert status == 404
    assert b"secret" not in content


def test_other_methods_are_not_known(server: AtlasServer) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD"):
        assert ask(server, method, "/")[0] == 501
    assert ask(server, "POST", "/", b"{}")[0] == 404


def test_a_folder_that_is_no_atlas_or_a_taken_port(server: AtlasServer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not an atlas"):
        AtlasServer(tmp_path, Answers())  # type: ignore[arg-type]
    for port in (server.server_address[1], 70000):
        with pytest.raises(InputError, match="give another --port"):
            AtlasServer(server.folder, Answers(), port)  # type: ignore[arg-type]
