import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from palinka.atlas import AtlasServer, write_site
from palinka.atlas.facts import LatentFacts
from palinka.atlas.server import API, LARGEST_REQUEST
from palinka.atlas.site import About
from palinka.errors import InputError

JSON = {"Content-Type": "application/json"}


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
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: AtlasServer,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    connection.putrequest(method, path, skip_host="Host" in (headers or {}))
    if body is not None and "Content-Length" not in (headers or {}):
        connection.putheader("Content-Length", str(len(body)))
    for name, value in (headers or {}).items():
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
    status, _, content = ask(server, "POST", API, body, JSON)
    assert (status, json.loads(content)) == (200, {"text": "Füße", "latent": 3})
    status, _, content = ask(server, "POST", API, b'{"text": "bad"}', JSON)
    assert (status, json.loads(content)) == (400, {"error": "the text is bad"})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Host": "127.0.0.1:1"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Length": str(LARGEST_REQUEST + 1)}, 413),
        ({"Content-Length": "9" * 30}, 413),
        ({"Content-Length": "-1"}, 411),
        ({"Content-Length": "²"}, 411),
    ],
)
def test_requests_of_others_are_refused(
    server: AtlasServer, headers: dict[str, str], status: int
) -> None:
    found, _, content = ask(server, "POST", API, b'{"text": "x"}', {**JSON, **headers})
    assert found == status
    assert "error" in json.loads(content)


def test_its_own_origin_is_let_in(server: AtlasServer) -> None:
    port = server.server_address[1]
    for host in (f"127.0.0.1:{port}", f"LocalHost:{port}"):
        headers = {
            **JSON,
            "Host": host,
            "Origin": f"http://{host}",
            "Sec-Fetch-Site": "same-origin",
        }
        assert ask(server, "POST", API, b'{"text": "x"}', headers)[0] == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"[" * 100_000, b'"x"', b'{"text": 3}', b'{"text": "x", "latent": "3"}',
     b'{"text": "x", "latent": true}', b'{"text": "\\ud800"}', b"\xff\xfe"],
    ids=range(10),
)  # fmt: skip
def test_what_is_no_question_is_refused(server: AtlasServer, body: bytes) -> None:
    status, _, content = ask(server, "POST", API, body, JSON)
    assert status == 400
    assert "error" in json.loads(content)


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
    assert ask(server, "POST", "/", b"{}", JSON)[0] == 404


def test_a_folder_that_is_no_atlas_or_a_taken_port(server: AtlasServer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not an atlas"):
        AtlasServer(tmp_path, Answers())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="give another --port"):
        AtlasServer(server.folder, Answers(), server.server_address[1])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="give another --port"):
        AtlasServer(server.folder, Answers(), 70000)  # type: ignore[arg-type]
