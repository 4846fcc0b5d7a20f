"""Explanations of latents through a server, against the same requests alone.

python benchmarks/explain.py
"""

import json
import multiprocessing
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from harness import Case, Rival, report
from palinka.evaluation.endpoint import AT_ONCE, Endpoint
from palinka.evaluation.explain import Item, explain

LATENTS, SECONDS = 12, 0.05


class Handler(BaseHTTPRequestHandler):
    """Answers after a while, as a fast model would."""

    def do_POST(self) -> None:
        """Explain, or judge five passages."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(SECONDS)
        explains = "[EXPLANATION]:" in request["messages"][0]["content"]
        message = {"content": "[EXPLANATION]: a word" if explains else "[1, 0, 1, 0, 1]"}
        body = json.dumps({"choices": [{"message": message}], "usage": {}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def serve(port: Connection) -> None:
    """Serve in a process of its own, and tell the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.send(server.server_port)
    server.serve_forever()


def random_item(latent: int) -> Item:
    """A latent with random texts."""
    random = np.random.default_rng(latent)
    passages = [" ".join(f"word{i}" for i in random.integers(5000, size=32)) for _ in range(140)]
    kinds = random.permutation(np.repeat(["active", "hard", "random"], [50, 25, 25]))
    bands = [passages[4 * i : 4 * i + 4] for i in range(10)]
    places = random.integers(5, size=10)
    shown = "\n".join(passages[100:])
    return Item(
        latent, 0.01, shown, "word1", kinds, passages[:100], passages[:100], bands,
        passages[:10], places,
    )  # fmt: skip


def main() -> None:
    """Measure and publish."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    port = ours.recv()
    items, folder = [random_item(j) for j in range(LATENTS)], Path(tempfile.mkdtemp())
    folders = (folder / str(n) for n in range(99))

    def with_palinka() -> Any:
        endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", "fake", next(folders), max_tokens=512)
        return explain(items, endpoint, 0)

    with_palinka()
    answers = [json.loads(path.read_bytes()) for path in (folder / "0").rglob("*.json")]
    bodies = [json.dumps(answer["request"]).encode() for answer in answers]
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def send(body: bytes) -> None:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with opener.open(request) as response:
            response.read()

    def alone() -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(send, bodies))

    title = f"{LATENTS} latents, {len(bodies)} requests"
    bare = Rival("the same requests alone", alone, at_most=1.05)
    report(
        "explain",
        "Explaining latents through a server",
        [Case(title, with_palinka, [bare], rounds=3)],
        f"A server on this machine answers each request after {1000 * SECONDS:.0f} ms, "
        f"{AT_ONCE} at a time; every answer is kept on disk. The ratio is of wall times.",
    )


if __name__ == "__main__":
    main()
