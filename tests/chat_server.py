"""A chat server on the loopback, whose answers follow a rule."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-never-on-disk"


def by_the_rule(system: str, user: str) -> str:
    """Explain by the token that is marked most; a passage fits a description with its words."""
    if "[EXPLANATION]:" in system:
        marked = re.findall(r"<<\s*(\w+)", user)
        most = max(sorted({*marked, "it"}), key=marked.count)
        return f"They share it.\n[EXPLANATION]: has {most}"
    about, *passages = user.split("\n")
    if not about.startswith("Description"):  # the first that lacks the pair that most have
        found = [re.findall("<<(.*?)>>", passage) for passage in (about, *passages)]
        pairs = [{int(w) // 2 for w in re.findall(r"w(\d+)", " ".join(own))} for own in found]
        most = max({0}.union(*pairs), key=lambda pair: sum(pair in own for own in pairs))
        lacking = [most not in own for own in pairs]
        return json.dumps([int(i == lacking.index(max(lacking))) for i in range(len(pairs))])
    words = re.findall(r"w\w+", about.removeprefix("Description: has"))
    found = [re.findall(r"<<(.*?)>>", p) if "<<" in p else [p.partition(": ")[2]] for p in passages]
    fits = [any(re.search(rf"\b{w}\b", " ".join(p)) for w in words) for p in found]
    return f"Here you are: {json.dumps([int(fit) for fit in fits])}. Anything else?"


class Server:
    """Requests so far, and what goes wrong with the next ones."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.faults: list[str] = []
        self.answer = by_the_rule
        self.retry_after = "0"
        self.url = ""


@contextmanager
def serving() -> Iterator[Server]:
    found, lock = Server(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                fault = found.faults.pop() if found.faults else ""
                found.keys.add(self.headers["Authorization"])
                if not fault:
                    found.requests.append(request)
            system, user = (message["content"] for message in request["messages"])
            # A server that repeats the key, as a debugging proxy may.
            answer = {"message": {"content": found.answer(system, user)}, "echo": KEY}
            usage = {"prompt_tokens": 100, "completion_tokens": 10}
            body = json.dumps({"choices": [answer], "usage": usage}).encode()
            self.send_response(int(fault) if fault.isdigit() else 200)
            self.send_header("Retry-After", found.retry_after)
            self.send_header("Location", f"{found.url}/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield found
        server.shutdown()
