"""Local server of an atlas."""

import json
import re
import threading
from collections.abc import Sequence
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
from palinka.atlas.site import short
from palinka.errors import InputError
from palinka.language_models import LanguageModel, Tokens
from palinka.language_models.token_text import bos_id, token_bytes, token_ids
from palinka.training import SparseAutoencoderModule

# Shown of each token.
TOP = 10


@dataclass
class LiveLatents:
    """A language model and the latents at one of its sites, for one text at a time.

    Attributes:
        model: The language model.
        site: What the autoencoder reads.
        module: The autoencoder with its scaling, on any device.
        bos: Whether contexts began with a BOS token in training; it is read and not shown.
        skip: How many tokens at the beginning were left out of training.
    """

    model: LanguageModel
    site: str
    module: SparseAutoencoderModule
    bos: bool = False
    skip: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[str, list[int], NDArray[np.float32]] | None = None

    def answer(self, text: str, latent: int | None = None) -> dict[str, Any]:
        """What there is to say of a text, as plain values.

        Args:
            text: The text.
            latent: Only say how active this one is at each token.

        Returns:
            With a latent, `values`: its activation at each token. Otherwise `tokens`: id and
            text of each, `top`: for each token its most active latents and their activations,
            and `active`: of every latent that is active anywhere its number, its largest
            activation, where that is, and at how many tokens it is active.

        Raises:
            InputError: If the text has no tokens, or more than the model's context, or there is
                no such latent.
        """
        count = self.module.autoencoder.latent_dim
        if latent is not None and not 0 <= latent < count:
            raise InputError(f"there is no latent {latent}; they are 0 to {count - 1}")
        with self._lock:  # one text at a time goes through the model
            if self._last is None or self._last[0] != text:
                self._last = (text, *self._read(text))
            _, ids, latents = self._last
        if latent is not None:
            return {"values": [short(value) for value in latents[:, latent]]}
        shown = display_tokens(token_bytes(self.model.tokenizer, ids))
        return {
            "tokens": [[token, text] for token, text in zip(ids, shown, strict=True)],
            "top": [_strongest(row) for row in latents],
            "active": _active(latents),
        }

    @torch.no_grad()
    def _read(self, text: str) -> tuple[list[int], NDArray[np.float32]]:
        (found,) = token_ids(self.model.tokenizer, [text])
        ids = [bos_id(self.model.tokenizer), *found] if self.bos else found
        if not found:
            raise InputError("the text has no tokens; type some")
        if len(ids) > self.model.context_length:
            raise InputError(
                f"the text has {len(ids)} tokens, and the model's context"
                f" {self.model.context_length}; shorten it"
            )
        read = self.model.read(Tokens.of([ids]), [self.site])[self.site][0]
        latents = self.module.encode(read.float().to(self.module.device)).float()
        latents[: self.skip] = 0.0
        return found, latents[int(self.bos) :].cpu().numpy()


def _strongest(row: NDArray[np.float32]) -> list[list[Any]]:
    order: Sequence[int] = np.argsort(-row, kind="stable")[:TOP].tolist()
    return [[latent, short(row[latent])] for latent in order if row[latent] > 0]


def _active(latents: NDArray[np.float32]) -> list[list[Any]]:
    """Every latent that is active anywhere, the most active one first."""
    largest, where = latents.max(axis=0), latents.argmax(axis=0)
    tokens = (latents > 0).sum(axis=0)
    order = np.argsort(-largest, kind="stable")[: int((largest > 0).sum())]
    return [
        [int(latent), short(largest[latent]), int(where[latent]), int(tokens[latent])]
        for latent in order
    ]


HOST = "127.0.0.1"
# Characters are at most four bytes, and no context is longer than this many of them.
LARGEST_REQUEST = 1 << 18
# A browser that stops in the middle of a request does not hold its thread for longer.
TIMEOUT_SECONDS = 30
API = "/api/latents"

_STATIC = re.compile(r"/(assets/[\w.-]+\.(?:css|js|svg)|data/[\w-]+\.js|figures/[\w. -]+\.png)")
_KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
# In the page, what the static site may not do and the served one may: ask its own server.
_STATIC_POLICY = "connect-src 'none'"
_SERVED_POLICY = "connect-src 'self'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class AtlasServer(ThreadingHTTPServer):
    """Serves one atlas and answers for one autoencoder.

    Only 127.0.0.1 is listened on. A request must name this server as its host, so that no name
    that some web site lets point to 127.0.0.1 is answered, and no page of another origin may ask.

    Args:
        folder: The atlas.
        live: Answers for typed text.
        port: Where to listen; 0 for any free port.

    Raises:
        InputError: If the folder is no atlas, or the port is taken.
    """

    daemon_threads = True

    def __init__(self, folder: Path, live: LiveLatents, port: int = 0) -> None:
        check_atlas(folder)
        page = folder / "index.html"
        self.folder = folder.resolve()
        self.live = live
        html = page.read_text(encoding="utf-8").replace(_STATIC_POLICY, _SERVED_POLICY)
        html = html.replace(" file:", "")
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
    """Make sure that a folder holds an atlas.

    Raises:
        InputError: If it does not.
    """
    if not all((folder / name).is_file() for name in ("index.html", "data/overview.js")):
        raise InputError(f"{folder} is no atlas; give one that palinka atlas has written")


class _Handler(BaseHTTPRequestHandler):
    server: AtlasServer
    timeout = TIMEOUT_SECONDS
    server_version = "palinka"
    sys_version = ""

    def do_GET(self) -> None:
        """Send the page, or a file of the atlas."""
        if not self._is_ours():
            return
        path = unquote(urlsplit(self.path).path)
        if path == "/":
            self._send(HTTPStatus.OK, self.server.page, _KINDS[".html"])
            return
        # No name in the pattern leads out of its folder; a link in it might.
        file = self.server.folder / path[1:]
        if (
            not _STATIC.fullmatch(path)
            or not file.is_file()
            or not file.resolve().is_relative_to(self.server.folder)
        ):
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such file in the atlas")
            return
        self._send(HTTPStatus.OK, file.read_bytes(), _KINDS[file.suffix])

    def do_POST(self) -> None:
        """Answer for a text."""
        if not self._is_ours():
            return
        if urlsplit(self.path).path != API:
            self._refuse(HTTPStatus.NOT_FOUND, f"only {API} takes a text")
            return
        # A form of another site cannot send this kind without being asked first.
        if self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "send a Content-Length")
            return
        if len(length) > 10 or int(length) > LARGEST_REQUEST:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send at most {LARGEST_REQUEST} bytes"
            )
            return
        try:
            text, latent = _question(self.rfile.read(int(length)))
            answer = self.server.live.answer(text, latent)
        except InputError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        self._send_json(HTTPStatus.OK, answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: what somebody types is theirs."""

    def _is_ours(self) -> bool:
        """Whether the request is for this server, and from its own page or from no page."""
        hosts = self.headers.get_all("Host") or []
        origins = self.headers.get_all("Origin") or []
        allowed = {f"http://{host}" for host in self.server.hosts}
        site = self.headers.get("Sec-Fetch-Site", "none")
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this is the server of another name")
        elif any(origin.lower() not in allowed for origin in origins):
            self._refuse(HTTPStatus.FORBIDDEN, "the page of another origin may not ask")
        elif site not in ("none", "same-origin"):
            self._refuse(HTTPStatus.FORBIDDEN, "the page of another site may not ask")
        else:
            return True
        return False

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True
        self._send_json(status, {"error": reason})

    def _send_json(self, status: HTTPStatus, value: Any) -> None:
        body = json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
        self._send(status, body, "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        charset = "; charset=utf-8" if kind.startswith("text/") else ""
        self.send_header("Content-Type", f"{kind}{charset}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _question(body: bytes) -> tuple[str, int | None]:
    """The text of a request, and the latent where it asks for one.

    Raises:
        InputError: If it is anything else.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError("the request is no JSON") from error
    text = value.get("text") if isinstance(value, dict) else None
    latent = value.get("latent") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise InputError('the request has no text; send {"text": "…"}')
    if latent is not None and (isinstance(latent, bool) or not isinstance(latent, int)):
        raise InputError("latent is no number of a latent")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError("the text holds half a character; leave it out") from error
    return text, latent
