"""An atlas on 127.0.0.1, where text can be typed; for nobody but the one who started it."""

import json
import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from palinka.atlas.live import LiveLatents
from palinka.errors import InputError

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
