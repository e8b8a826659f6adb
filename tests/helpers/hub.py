"""A stand-in for the hub's HTTP interface, on loopback: takes what huggingface_hub sends."""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

TOKEN = "hf_of_a_test"


@dataclass
class Hub:
    """What was sent.

    Attributes:
        address: of the server.
        repositories: ``models/OWNER/NAME`` → whether it is private.
        files: the same → path → content.
        large: digest → content of large files, which are uploaded before the commit that names them.
    """

    address: str = ""
    repositories: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def hub_on_loopback() -> Iterator[Hub]:
    """Serve until the end of the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer({"error": "Invalid username or password."}, 401)
                return
            if self.path == "/api/repos/create":
                told = json.loads(body)
                name = f"{told.get('type', 'model')}s/{told.get('organization') or told['name'].split('/')[0]}"
                name = f"{name}/{told['name'].split('/')[-1]}"
                hub.repositories[name] = told.get("visibility") == "private"
                hub.files.setdefault(name, {})
                self.answer({"url": f"{hub.address}/{name.removeprefix('models/')}"})
            elif match := re.fullmatch(r"/api/(.+)/preupload/main", self.path.partition("?")[0]):
                paths = [file["path"] for file in json.loads(body)["files"]]
                modes = ["lfs" if path.endswith((".safetensors", ".parquet")) else "regular" for path in paths]
                found = [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in zip(paths, modes, strict=True)]
                self.answer({"files": found})
            elif self.path.endswith("/objects/batch"):
                objects = json.loads(body)["objects"]
                found = [of | {"actions": {"upload": {"href": f"{hub.address}/large/{of['oid']}"}}} for of in objects]
                self.answer({"transfer": "basic", "objects": found})
            elif match := re.fullmatch(r"/api/(.+)/commit/main", self.path.partition("?")[0]):
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        hub.files[match[1]][value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        hub.files[match[1]][value["path"]] = hub.large[value["oid"]]
                place = f"{hub.address}/{match[1].removeprefix('models/')}"
                self.answer({"commitUrl": f"{place}/commit/1", "commitOid": "1", "hookOutput": ""})
            else:
                self.answer({"errors": [], "warnings": []})

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            hub.large[self.path.rpartition("/")[2]] = content
            self.answer({})

        def do_GET(self) -> None:
            self.answer({"error": "not found"}, 404)

        def answer(self, content: dict, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, format: str, *arguments) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
