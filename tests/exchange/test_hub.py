"""Push and pull against a real server that speaks the hub's protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from trimtab.errors import DataError
from trimtab.exchange import hub
from trimtab.feedback import records as own
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records


class Hub(BaseHTTPRequestHandler):
    """Data sets in memory: create, commit, resolve."""

    files: ClassVar[dict[str, bytes]] = {}
    private: ClassVar[dict[str, bool]] = {}

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, body: bytes = b"{}", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        kind = headers.pop("kind", "application/json")
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            **headers,
        }.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not (self.headers.get("Authorization") or "").endswith("hf_good"):
            return self._send(b'{"error": "Invalid username or password."}', 401)
        if self.path == "/api/repos/create":
            body = json.loads(raw)
            name = (
                f"{body['organization']}/{body['name']}"
                if body.get("organization")
                else body["name"]
            )
            self.private[name] = body.get("visibility") == "private" or bool(body.get("private"))
            return self._send(
                json.dumps({"url": f"http://{self.headers['Host']}/datasets/{name}"}).encode()
            )
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = json.loads(raw)["files"]
            entries = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return self._send(json.dumps({"files": entries}).encode())
        if "/commit/" in self.path:
            for text in raw.decode().splitlines():
                line = json.loads(text)
                if line["key"] == "file":
                    self.files[f"{name}/{line['value']['path']}"] = base64.b64decode(
                        line["value"]["content"]
                    )
            url = f"http://{self.headers['Host']}/datasets/{name}/commit/{'a' * 40}"
            return self._send(
                json.dumps({"commitUrl": url, "commitOid": "a" * 40, "success": True}).encode()
            )
        return self._send()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].split("/")
        if parts[1] == "datasets" and "resolve" in parts:
            data = self.files.get("/".join([*parts[2:4], *parts[6:]]))
            if data is None:
                return self._send(b'{"error": "no"}', 404, X_Error_Code="EntryNotFound")
            etag = hashlib.sha1(data).hexdigest()
            return self._send(data, kind="text/plain", ETag=f'"{etag}"', X_Repo_Commit="a" * 40)
        return self._send(
            json.dumps({"id": "/".join(parts[3:5]), "sha": "a" * 40, "siblings": []}).encode()
        )

    do_HEAD = do_GET


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.files, Hub.private = {}, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def trimtab(
    folder: Path, address: str, token: str, *words: str
) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {"HF_ENDPOINT": address, "HF_HOME": str(folder / "hf"), "HF_TOKEN": token}
    command = [sys.executable, "-m", "trimtab", "exchange", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_labels_go_to_the_hub_and_come_back(tmp_path: Path, address: str) -> None:
    item = Item.of([{"role": "user", "content": "größer?"}], ["x", "y"])
    judgement = Judgement(
        item=item.id, annotator="ann", ranks=(0, 1), at="2026-01-01T00:00:00Z", seconds=2.0
    )
    own.write(tmp_path / "in.jsonl", Records({item.id: item}, [judgement]))
    done = trimtab(tmp_path, address, "hf_good", "in.jsonl", "--to", "hub://me/labels")
    assert done.returncode == 0, done.stderr
    assert Hub.private == {"me/labels": True}
    assert set(Hub.files) == {
        f"me/labels/{f}" for f in ("items.jsonl", "judgements.jsonl", "README.md")
    }
    done = trimtab(tmp_path, address, "hf_good", "hub://me/labels", "--to", "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "in.jsonl").read_bytes()
    refused = trimtab(tmp_path, address, "hf_bad", "in.jsonl", "--to", "hub://me/labels")
    assert refused.returncode == 2
    assert "cannot be written" in refused.stderr and "Traceback" not in refused.stderr
    missing = trimtab(tmp_path, address, "hf_good", "hub://me/other", "--to", "out.jsonl")
    assert missing.returncode == 2
    assert (
        "items.jsonl cannot be downloaded" in missing.stderr and "Traceback" not in missing.stderr
    )


def test_an_address_is_owner_and_name() -> None:
    with pytest.raises(DataError, match="write hub://OWNER/NAME"):
        hub.pull("hub://../etc/passwd/x")
