"""Client of an OpenAI-compatible server, which keeps every answer on disk."""

import hashlib
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from socket import gaierror
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import urlsplit

from palinka.errors import InputError, track

T = TypeVar("T")
R = TypeVar("R")
RETRIES, TIMEOUT, AT_ONCE = 5, 60.0, 4
LOOPBACK = ("localhost", "127.0.0.1", "::1")
FIRST_WAIT, MAX_WAIT = 1.0, 60.0  # seconds; doubles with each retry
BYTES_PER_TOKEN = 4  # of English, about


class BudgetReached(Exception):  # noqa: N818
    """The next request might cost more than what is left."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects are errors: they would take the key to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Endpoint:
    """A chat model that is sent each request once; later runs read answers from the `folder`.

    The address is that before `/chat/completions`, the `key` goes into a header and nowhere else.
    `prices` are of a million tokens that are read, and of a million that are written; this run
    spends at most `budget`. `parameters` are other fields of a request, such as `temperature`.
    """

    def __init__(
        self, base_url: str, model: str, folder: Path, key: str = "",
        prices: tuple[float, float] = (0.0, 0.0), budget: float | None = None, **parameters: Any,
    ) -> None:  # fmt: skip
        parts = urlsplit(base_url)
        self.host, self.model, self.budget, self.spent = parts.netloc, model, budget, 0.0
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in self.host:
            raise InputError("explain: expected a base_url such as https://HOST/v1, without a user")
        local = parts.hostname in LOOPBACK
        if parts.scheme == "http" and not local:
            raise InputError(f"explain: http://{self.host} is not this machine; use https")
        if not (key.isascii() and key.isprintable()):
            raise InputError("explain: the key has characters that no header may have; set it anew")
        self._url, self._folder, self._key = f"{base_url.rstrip('/')}/chat/completions", folder, key
        self._parameters, self._prices = parameters, prices
        self._lock, self._stopped = threading.Lock(), threading.Event()
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_NoRedirects, *proxies)

    def cost(self, read: float, written: float) -> float:
        """Price of tokens that are read and written."""
        return (read * self._prices[0] + written * self._prices[1]) / 1e6

    def ask(self, system: str, user: str) -> dict[str, Any]:
        """The first of the `choices` of an answer, from the disk if it is there."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        request = {"model": self.model, "messages": messages, **self._parameters}
        canonical = json.dumps({"host": self.host, **request}, sort_keys=True).encode()
        name = hashlib.sha256(canonical).hexdigest()
        path = self._folder / name[:2] / f"{name}.json"
        with suppress(FileNotFoundError, ValueError):  # a loss of power may leave it empty
            return dict(json.loads(path.read_bytes())["answer"])
        body = json.dumps(request).encode()
        most = self.cost(len(body) / BYTES_PER_TOKEN, self._parameters.get("max_tokens", 0))
        with self._lock:
            if self.budget is not None and self.spent + most > self.budget:
                raise BudgetReached
            self.spent += most
        choice, usage = self._send(body)
        counts: list[Any] = [usage.get(n) for n in ("prompt_tokens", "completion_tokens")]
        if all(isinstance(count, int) for count in counts):
            with self._lock:
                self.spent += self.cost(*counts) - most
        record = {"request": request, "answer": choice, "usage": usage, "time": time.time()}
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not flushed to the disk, which takes as long as a fast server does.
        temporary = path.with_suffix(f".{threading.get_ident()}")
        temporary.write_text(json.dumps(record))
        temporary.replace(path)
        return choice

    def each(self, work: Callable[[T], R], items: Sequence[T], description: str) -> list[R]:
        """Results of work with requests, on 4 items at a time; the first exception ends it."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                for future in track(as_completed(futures), description, len(futures)):
                    future.result()
            except BaseException:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
        return [future.result() for future in futures]

    def _send(self, body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, body, headers)
        for retry in range(RETRIES + 1):
            if self._stopped.is_set():
                raise CancelledError
            after = ""
            try:
                with self._opener.open(request, timeout=TIMEOUT) as response:
                    text = response.read().decode()
                found = json.loads(text)
                if self._key:  # in one of JSON's spellings of its characters
                    spelled = json.dumps(found).replace(json.dumps(self._key)[1:-1], "***")
                    found = json.loads(spelled)
                choice, usage = found["choices"][0], dict(found.get("usage") or {})
                choice["message"]["content"] = content = choice["message"]["content"] or ""
                if not isinstance(content, str):
                    raise TypeError
                return choice, usage
            except HTTPError as error:
                problem, after = str(error.code), error.headers.get("Retry-After", "")
                if error.code != 429 and error.code < 500:
                    raise InputError(f"explain: {problem} from {self.host}") from None
            except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
                problem = f"no whole answer ({type(error).__name__})"
                if isinstance(getattr(error, "reason", None), ConnectionRefusedError | gaierror):
                    raise InputError(f"explain: nothing answers at {self.host}") from None
            if retry < RETRIES:
                self._stopped.wait(min(MAX_WAIT, _seconds(after, FIRST_WAIT * 2**retry)))
        times = f"{RETRIES + 1} times"
        raise InputError(f"explain: {problem} from {self.host} {times}; run again to resume")


def _seconds(retry_after: str, default: float) -> float:
    """Seconds from a header that has them, or a date."""
    if retry_after.isdigit():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return default
