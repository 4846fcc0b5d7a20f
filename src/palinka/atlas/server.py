"""Local server of an atlas."""

import json
import operator
import re
import threading
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.analyses.figures.text_heatmap import display_tokens
from palinka.analyses.stats.latents import choose_latents
from palinka.atlas.site import short
from palinka.errors import InputError
from palinka.language_models import LanguageModel, Tokens
from palinka.language_models.token_text import bos_id, token_bytes, token_ids
from palinka.training import SparseAutoencoderModule

TOP = 10  # latents shown for each token


@dataclass
class LiveLatents:
    """Latents of typed text, one text at a time."""

    model: LanguageModel
    site: str  # that the autoencoder reads
    module: SparseAutoencoderModule
    bos: bool = False  # read a BOS token first, as in training; it is not shown
    skip: int = 0  # tokens at the start that were left out of training

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[str, list[int], NDArray[np.float32]] | None = None

    def answer(self, text: str, latent: int | None = None) -> dict[str, Any]:
        """Latents of a text, or the activations of one of them, as plain values.

        With a latent, `values` are its activations. Otherwise `tokens` are the id and text of each,
        `top` the most active latents of each token, and `active` has of every active latent its
        index, maximum, place of the maximum, and number of active tokens.
        """
        if latent is not None:
            choose_latents(np.zeros(self.module.autoencoder.latent_dim), (), [latent])
        with self._lock:  # one text at a time goes through the model
            if self._last is None or self._last[0] != text:
                self._last = (text, *self._read(text))
            _, ids, latents = self._last
        tokens = (latents > 0).sum(axis=0)
        if latent is not None:
            return {"values": [short(value) for value in latents[:, latent]]}
        shown = display_tokens(token_bytes(self.model.tokenizer, ids))
        return {
            "tokens": [[token, text] for token, text in zip(ids, shown, strict=True)],
            "top": [_strongest(row, TOP) for row in latents],
            "active": [
                [latent, value, int(latents[:, latent].argmax()), int(tokens[latent])]
                for latent, value in _strongest(latents.max(axis=0))
            ],
        }

    @torch.no_grad()
    def _read(self, text: str) -> tuple[list[int], NDArray[np.float32]]:
        (found,) = token_ids(self.model.tokenizer, [text])
        ids = [bos_id(self.model.tokenizer), *found] if self.bos else found
        if not found:
            raise InputError("the text is empty; type some")
        if len(ids) > (most := self.model.context_length):
            raise InputError(f"the text has {len(ids)} tokens, the context {most}; shorten it")
        read = self.model.read(Tokens.of([ids]), [self.site])[self.site][0]
        latents = self.module.encode(read.float().to(self.module.device)).float()
        latents[: self.skip] = 0.0
        return found, latents[int(self.bos) :].cpu().numpy()


def _strongest(row: NDArray[np.float32], most: int | None = None) -> list[list[Any]]:
    """Active latents and their activations, the most active first."""
    order = np.argsort(-row, kind="stable")[:most].tolist()
    return [[latent, short(row[latent])] for latent in order if row[latent] > 0]


HOST = "127.0.0.1"
LARGEST_REQUEST = 1 << 18  # far more than any context
API = "/api/latents"
Reply = tuple[HTTPStatus, bytes, str]  # status, body and its type

_STATIC = re.compile(r"/(assets/[\w.-]+\.(?:css|js|svg)|data/[\w-]+\.js|figures/[\w. -]+\.png)")
_KINDS = {"css": "text/css", "js": "text/javascript", "png": "image/png", "svg": "image/svg+xml"}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class AtlasServer(ThreadingHTTPServer):
    """Server of one atlas, with the latents of typed text.

    It listens on 127.0.0.1 only. Requests must name this server as their host (against DNS
    rebinding) and come from its own origin. A port of 0 is any free port.
    """

    def __init__(self, folder: Path, live: LiveLatents, port: int = 0) -> None:
        check_atlas(folder)
        self.folder = folder.resolve()
        self.live = live
        html = (folder / "index.html").read_text(encoding="utf-8")
        # Content security policy: only the served page may connect, and only to its own server.
        html = html.replace("connect-src 'none'", "connect-src 'self'").replace(" file:", "")
        self.page = html.replace("<html ", "<html data-served ", 1).encode()
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"port {port} of {HOST}: {reason}; give another --port") from error
        own = self.server_address[1]
        self.hosts = {f"{name}:{own}" for name in (HOST, "localhost")}
        self.url = f"http://{HOST}:{own}/"


def check_atlas(folder: Path) -> None:
    """Reject a folder that is not an atlas."""
    if not all((folder / name).is_file() for name in ("index.html", "data/overview.js")):
        raise InputError(f"{folder} is not an atlas; give one that palinka atlas wrote")


class _Handler(BaseHTTPRequestHandler):
    server: AtlasServer
    timeout = 30

    def do_GET(self) -> None:
        """Send the page, or a file of the atlas."""
        self._send(*(self._wrong_sender() or self._file()))

    def do_POST(self) -> None:
        """Send the latents of a text."""
        self._send(*(self._wrong_sender() or self._answer()))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: typed text is private."""

    def _wrong_sender(self) -> Reply | None:
        """Reject a request that does not name this server, or comes from another's page."""
        hosts = self.headers.get_all("Host") or []
        origins = self.headers.get_all("Origin") or []
        allowed = {f"http://{host}" for host in self.server.hosts}
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            return _rejection(HTTPStatus.MISDIRECTED_REQUEST, "wrong host")
        if any(origin.lower() not in allowed for origin in origins):
            return _rejection(HTTPStatus.FORBIDDEN, "wrong origin")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return _rejection(HTTPStatus.FORBIDDEN, "wrong site")
        return None

    def _file(self) -> Reply:
        path = unquote(urlsplit(self.path).path)
        if path == "/":
            return HTTPStatus.OK, self.server.page, "text/html"
        file = self.server.folder / path[1:]
        if not _STATIC.fullmatch(path) or not file.is_file():
            return _rejection(HTTPStatus.NOT_FOUND, "not a file of the atlas")
        return HTTPStatus.OK, file.read_bytes(), _KINDS[file.suffix[1:]]

    def _answer(self) -> Reply:
        length = self.headers.get("Content-Length", "")
        if urlsplit(self.path).path != API:
            return _rejection(HTTPStatus.NOT_FOUND, f"expected {API}")
        # Forms of other sites cannot send this type without a preflight request.
        if self.headers.get_content_type() != "application/json":
            return _rejection(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
        if not length.isdecimal() or int(length) > LARGEST_REQUEST:
            reason = f"send at most {LARGEST_REQUEST} bytes"
            return _rejection(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason)
        try:
            answer = self.server.live.answer(*_question(self.rfile.read(int(length))))
        except InputError as error:
            return _rejection(HTTPStatus.BAD_REQUEST, str(error))
        return HTTPStatus.OK, _json(answer), "application/json"

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.close_connection |= status != HTTPStatus.OK
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        charset = "; charset=utf-8" if kind.startswith("text/") else ""
        self.send_header("Content-Type", f"{kind}{charset}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def _rejection(status: HTTPStatus, reason: str) -> Reply:
    return status, _json({"error": reason}), "application/json"


def _question(body: bytes) -> tuple[str, int | None]:
    """The text of a request, and the index of a latent if given."""
    try:
        value = json.loads(body)
        text, latent = value["text"], value.get("latent")
        text.encode("utf-8")  # rejects unpaired surrogates
        return text, None if latent is None else operator.index(latent)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError('the request is not such as {"text": "…", "latent": 3}') from error
