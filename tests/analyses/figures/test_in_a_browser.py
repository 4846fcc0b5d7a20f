"""A page opened in a browser: what tokens say is shown, not run and not fetched."""

import html
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from palinka.analyses.figures.text_heatmap import Heatmap, text_heatmap_html

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--virtual-time-budget=5000", "--dump-dom",
)  # fmt: skip

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


@pytest.fixture
def requests() -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and what is asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def opened(page: str, folder: Path) -> str:
    """What the browser makes of a page once its scripts have run, as HTML."""
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    assert BROWSER is not None
    command = [BROWSER, *OPTIONS, f"--user-data-dir={folder / 'profile'}", str(file)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode()


def hostile(address: str) -> list[str | bytes]:
    run = "document.body.dataset.ran = 1"
    return [
        f"</title></style></i></b></div><script>{run}</script>",
        f"<img src={address}/img onerror='{run}'>",
        f'" onmouseover="{run}" style="background:url({address}/style)',
        f"<link rel=stylesheet href={address}/link><iframe src={address}/frame></iframe>",
        f"<svg onload='{run}'><style>@import '{address}/import'</style></svg>",
        f"<meta http-equiv=refresh content='0;url={address}/refresh'>",
        "\u202ereversed\u202c",
        "\x00\x1b[2J",
        *(bytes([byte]) for byte in "👩\u200d🔬".encode()),
        "x" * 5000,
        "{{ 7 * 7 }}",
    ]


def test_nothing_runs_and_nothing_is_fetched(
    requests: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, asked = requests
    tokens = hostile(address)
    markup = "".join(token for token in tokens[:5] if isinstance(token, str))
    shown = opened(f"<!doctype html><body>{markup}", tmp_path)
    assert "data-ran" in shown  # outside palinka's page the browser does run and fetch them
    assert "/img" in asked
    asked.clear()
    title = str(tokens[0]) + str(tokens[1])
    page = text_heatmap_html(tokens, [Heatmap(np.arange(len(tokens)), title)], title=title)
    shown = opened(page, tmp_path)
    assert "data-ran" not in shown
    assert asked == []
    text = html.unescape(shown)
    for token in (*tokens[:6], "⟨U+202E⟩reversed", "⟨U+0000⟩⟨U+001B⟩[2J", "👩", "{{ 7 * 7 }}"):
        assert str(token) in text
    assert "⟨F0 9F 91⟩" in text or "⟨F0⟩" in text
