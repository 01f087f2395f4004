"""A web server on this machine, and a stand-in for the Hub that the real client library talks to."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

RECIPE = """\
# shared
description: "Digits in int8"
model:
  name: vit_tiny_patch16_224
  checkpoint: builtin:digits_vit.safetensors
  kwargs: {img_size: 32, patch_size: 4, embed_dim: 96, depth: 4, num_heads: 3}
data: {train: builtin:digits.tar/train, val: builtin:digits.tar/val, workers: 0, limit_val: 32}
QuantPost: {images: 16}
export: {benchmark: false}
results:
  onnx: {top1: 96.1, bytes: 544972}
"""


@dataclass
class Site:
    """What a server answers: (status, headers, body) by path; the paths that were asked for."""

    url: str = ""
    pages: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def put(self, path: str, body: str | bytes, status: int = 200, **headers: str) -> str:
        """Serve `body` at `path`; returns the address."""
        data = body.encode() if isinstance(body, str) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.pages[path] = (status, named, data)
        return self.url + path


@contextmanager
def site() -> Iterator[Site]:
    """A server on a free port of this machine, for as long as the block lasts."""
    found = Site()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            found.asked.append(f"{self.command} {self.path}")
            length = int(self.headers.get("Content-Length") or 0)
            found.pages.setdefault("posted", (0, {}, b""))
            if length:
                found.pages["posted"] = (0, {}, self.rfile.read(length))
            status, headers, body = found.pages.get(self.path.partition("?")[0], (404, {}, b"nothing here"))
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = answer

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def put_on_hub(hub: Site, repo: str, path: str, body: str, commit: str, revision: str, size: int | None = None) -> None:
    """Serve a file of a Hub repository at a commit that `revision` points at."""
    data = body.encode()
    digest = hashlib.sha1(data).hexdigest()
    info = {"id": repo, "sha": commit, "private": False, "tags": [], "downloads": 0, "likes": 0, "siblings": []}
    entry = {"type": "file", "path": path, "size": len(data) if size is None else size, "oid": digest}
    for name in {revision, commit}:
        hub.put(f"/api/models/{repo}/revision/{name}", json.dumps(info), Content_Type="application/json")
        hub.put(f"/api/models/{repo}/paths-info/{name}", json.dumps([entry]), Content_Type="application/json")
        hub.put(f"/{repo}/resolve/{name}/{path}", data, X_Repo_Commit=commit, ETag=f'"{digest}"')


def as_hub(found: Site, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make huggingface_hub ask `found`, and keep what it downloads in `cache`."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "none"))
