"""A stand-in, on loopback, for the batch files of OpenAI's protocol, and for its chat completions."""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NOUNS = ["mice", "tumours", "statins", "proteins", "receptors", "neurons", "antibodies", "genes"]
VERBS = ["shrink", "grow", "bind", "block", "activate", "repair", "slow", "kill"]


def completion(body: dict[str, Any]) -> dict[str, Any]:
    """Answer a request as a function of its content: mostly a query, at times none, with the words as tokens."""
    draw = random.Random(json.dumps(body, sort_keys=True))
    text = f"{draw.choice(NOUNS)} {draw.choice(VERBS)} {draw.choice(NOUNS)} {draw.randrange(10_000)}"
    text = draw.choice([text, text, text, ""])
    prompt = sum(len(turn["content"].split()) for turn in body["messages"])
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": prompt, "completion_tokens": len(text.split())}}


@dataclass
class Api:
    """What was sent, and how it is answered.

    Attributes:
        address: of the API.
        files: id → content.
        batches: id → object, as the API tells of it.
        paid: custom ids of requests, and bodies' hashes of chat completions, in the order they were answered.
        looks: how often a batch is seen under way before it ends.
        ends: what the next batches end as; afterwards ``completed``.
        wrong: custom ids of requests that fail, each as often as it is here.
        page: batches of a listed page.
        busy: number of chat completions that are refused by 429, with a second to wait.
        moments: when chat completions came, by the monotonic clock.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    paid: list[str] = field(default_factory=list)
    looks: int = 1
    ends: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    page: int = 2
    busy: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def upload(self, content: bytes) -> dict[str, Any]:
        """Take a file."""
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return {"id": name, "object": "file", "purpose": "batch"}

    def submit(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Take a batch."""
        assert asked["endpoint"] == "/v1/chat/completions" and asked["completion_window"] == "24h"
        name = f"batch-{len(self.batches)}"
        lines = self.files[asked["input_file_id"]].splitlines()
        counts = {"total": len(lines), "completed": 0, "failed": 0}
        own = {"looks": self.looks, "end": self.ends.pop(0) if self.ends else "completed"}
        self.batches[name] = asked | {"id": name, "status": "validating", "request_counts": counts} | own
        return self.batches[name]

    def look(self, name: str) -> dict[str, Any]:
        """Tell of a batch, which goes on by being looked at."""
        batch = self.batches[name]
        if batch["status"] in ("validating", "in_progress"):
            batch["looks"] -= 1
            batch["status"] = "in_progress" if batch["looks"] >= 0 else batch["end"]
            if batch["looks"] < 0:
                self._end(batch)
        return batch

    def _end(self, batch: dict[str, Any]) -> None:
        if batch["end"] in ("token_limit_exceeded", "invalid"):
            batch["status"] = "failed"
            batch["errors"] = {"data": [{"code": batch["end"], "message": "as the test has it", "line": None}]}
            return
        asked = [json.loads(line) for line in self.files[batch["input_file_id"]].split(b"\n") if line]
        assert all(line["method"] == "POST" and line["url"] == batch["endpoint"] for line in asked)
        random.Random(1).shuffle(asked)
        done, missed = [], []
        for place, line in enumerate(asked):
            name = line["custom_id"]
            if batch["end"] != "completed" and place % 2:
                error = {"code": f"batch_{batch['end']}", "message": f"this request could not be done: {batch['end']}"}
                missed.append({"custom_id": name, "response": None, "error": error})
            elif name in self.wrong:
                self.wrong.remove(name)
                body = {"error": {"message": "a failure of this test's", "code": "server_error"}}
                missed.append({"custom_id": name, "response": {"status_code": 500, "body": body}, "error": None})
            else:
                self.paid.append(name)
                body = completion(line["body"])
                done.append({"custom_id": name, "response": {"status_code": 200, "body": body}, "error": None})
        for key, lines in (("output_file_id", done), ("error_file_id", missed)):
            if lines:
                # as it is, not escaped: a text may have what Python takes for the end of a line
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                batch[key] = self.upload(text.encode())["id"]

    def listed(self, after: str | None) -> dict[str, Any]:
        """Tell of all batches, the latest first, a page at a time."""
        names = list(reversed(self.batches))
        start = names.index(after) + 1 if after else 0
        page = names[start : start + self.page]
        return {"data": [self.batches[name] for name in page], "has_more": start + self.page < len(names)}


@contextmanager
def batch_api() -> Iterator[Api]:
    """Serve until the end of the block."""
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with api.lock:
                if self.path == "/v1/files":
                    head = b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n"
                    parts = BytesParser().parsebytes(head + body).get_payload()
                    fields = {part.get_param("name", header="content-disposition"): part for part in parts}
                    assert fields["purpose"].get_payload() == "batch"
                    self.answer(api.upload(fields["file"].get_payload(decode=True)))
                elif self.path == "/v1/batches":
                    self.answer(api.submit(json.loads(body)))
                elif self.path == "/v1/chat/completions" and api.busy:
                    api.busy -= 1
                    self.answer({"error": {"message": "too many"}}, 429, {"Retry-After": "1"})
                elif self.path == "/v1/chat/completions":
                    api.paid.append(hashlib.sha256(body).hexdigest())
                    self.answer(completion(json.loads(body)))
                else:
                    self.answer({"error": "not found"}, 404)

        def do_GET(self) -> None:
            with api.lock:
                if match := re.fullmatch(r"/v1/files/(.+)/content", self.path):
                    self.answer(api.files[match[1]])
                elif match := re.fullmatch(r"/v1/batches/(.+)", self.path):
                    known = match[1] in api.batches
                    self.answer(*((api.look(match[1]),) if known else ({"error": "no such batch"}, 404)))
                elif match := re.fullmatch(r"/v1/batches\?limit=100(?:&after=(.+))?", self.path):
                    self.answer(api.listed(match[1]))
                else:
                    self.answer({"error": "not found"}, 404)

        def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    api.address = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
