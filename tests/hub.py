"""A stand-in for the Hugging Face hub: real HTTP on loopback, real files, as much of its interface as we use.

`*.h5` are large files: uploaded by the LFS protocol, and given out through a redirect, as by the hub's CDN.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

Files = dict[str, str]  # path -> SHA-256 of a file in the store


@dataclass
class Repository:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)  # name -> commit
    commits: dict[str, Files] = field(default_factory=dict)

    def commit(self, branch: str, files: Files) -> str:
        name = hashlib.sha1(json.dumps([len(self.commits), files], sort_keys=True).encode()).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        return name

    def files(self, branch: str = "main") -> Files:
        return self.commits[self.branches[branch]]


class Hub:
    """The hub's state. Use as a context manager; `url` is what HF_ENDPOINT shall be."""

    def __init__(self, store: Path) -> None:
        self.store, self.repositories = store, dict[str, Repository]()
        self.tokens = {"hf_writer": True, "hf_reader": False}  # -> may write
        self.log: list[tuple[str, str, str]] = []  # method, path, Range
        self.stall: int | None = None  # so many bytes of a large file are sent, then nothing
        self.stalled, self.released = threading.Event(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Answers,), {"hub": self}))
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        store.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def keep(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (self.store / digest).write_bytes(data)
        return digest

    def make(self, name: str, files: dict[str, bytes], private: bool = False) -> Repository:
        """A repository with these files on main."""
        repository = self.repositories[name] = Repository(private)
        repository.commit("main", {path: self.keep(data) for path, data in files.items()})
        return repository

    def read(self, name: str, branch: str = "main") -> dict[str, bytes]:
        files = self.repositories[name].files(branch)
        return {path: (self.store / digest).read_bytes() for path, digest in files.items()}


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class RefusedError(Exception):
    def __init__(self, status: int, code: str = "", **body: object) -> None:
        self.status, self.code, self.body = status, code, body


class Answers(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._route()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append((self.command, path, self.headers.get("Range", "")))
        self.data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            for method, pattern, answer in ROUTES:
                if method == self.command and (found := re.fullmatch(pattern, path)):
                    answer(self, *found.groups())
                    return
            raise RefusedError(404)
        except RefusedError as refused:
            self._send(json.dumps(refused.body).encode(), refused.status, {"X-Error-Code": refused.code})
        except ConnectionError:
            pass  # the client was killed

    def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def _json(self, **body: object) -> None:
        self._send(json.dumps(body).encode(), headers={"Content-Type": "application/json"})

    def _may(self, write: bool) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if write and not self.hub.tokens.get(token):
            raise RefusedError(403 if token in self.hub.tokens else 401)
        return token in self.hub.tokens

    def _find(self, name: str, write: bool = False) -> Repository:
        known, found = self._may(write), self.hub.repositories.get(name)
        if found is None or (found.private and not known):
            raise RefusedError(404 if known else 401, "RepoNotFound")
        return found

    def _at(self, name: str, revision: str) -> tuple[str, Files]:
        found = self._find(name)
        commit = found.branches.get(revision, revision)
        if commit not in found.commits:
            raise RefusedError(404, "RevisionNotFound")
        return commit, found.commits[commit]

    def create(self) -> None:
        self._may(write=True)
        asked = json.loads(self.data)
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        url = f"{self.hub.url}/datasets/{name}"
        if name in self.hub.repositories:
            raise RefusedError(409, url=url)
        self.hub.make(name, {".gitattributes": b"*.h5 filter=lfs\n"}, asked.get("visibility") == "private")
        self._json(url=url)

    def branch(self, name: str, revision: str) -> None:
        found = self._find(name, write=True)
        if revision in found.branches:
            raise RefusedError(409)
        found.branches[revision] = found.branches["main"]
        self._json()

    def validate(self) -> None:
        _, front, _ = json.loads(self.data)["content"].split("---\n", 2)
        known = {"pretty_name", "license", "license_name", "size_categories", "tags", "viewer"}
        errors = [{"message": f"unknown key {key}"} for key in yaml.safe_load(front).keys() - known]
        if errors:
            raise RefusedError(400, errors=errors)
        self._json(errors=[], warnings=[])

    def preupload(self, name: str, revision: str) -> None:
        there = self._find(name, write=True).files(revision)
        files = []
        for path in (file["path"] for file in json.loads(self.data)["files"]):
            large = path.endswith(".h5")
            digest = there.get(path)
            oid = digest if large or digest is None else git_hash((self.hub.store / digest).read_bytes())
            mode = "lfs" if large else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json(files=files)

    def batch(self, name: str) -> None:
        self._find(name, write=True)
        objects: list[dict[str, Any]] = json.loads(self.data)["objects"]
        for one in objects:
            if not (self.hub.store / one["oid"]).exists():
                one["actions"] = {"upload": {"href": f"{self.hub.url}/large/{one['oid']}"}}
        self._json(objects=objects)

    def upload(self, digest: str) -> None:
        assert self.hub.keep(self.data) == digest
        self._send(b"")

    def commit(self, name: str, revision: str) -> None:
        found = self._find(name, write=True)
        files = dict(found.files(revision))
        for line in self.data.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = self.hub.keep(base64.b64decode(value["content"]))
            elif entry["key"] == "lfsFile":
                files[value["path"]] = value["oid"]
        made = found.commit(revision, files)
        self._json(commitUrl=f"{self.hub.url}/datasets/{name}/commit/{made}", commitOid=made)

    def info(self, name: str, revision: str | None) -> None:
        commit, files = self._at(name, revision or "main")
        siblings = []
        for path, digest in files.items():
            data = (self.hub.store / digest).read_bytes()
            one: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": git_hash(data)}
            if path.endswith(".h5"):
                one["lfs"] = {"size": len(data), "sha256": digest, "pointerSize": 130}
            siblings.append(one)
        private = self.hub.repositories[name].private
        self._json(id=name, sha=commit, private=private, siblings=siblings, tags=[], downloads=0, likes=0)

    def resolve(self, name: str, revision: str, path: str) -> None:
        commit, files = self._at(name, revision)
        if path not in files:
            raise RefusedError(404, "EntryNotFound")
        elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
        self._send(b"", 302, {"Location": f"{elsewhere}/large/{files[path]}", "X-Repo-Commit": commit})

    def download(self, digest: str) -> None:
        if "Authorization" in self.headers:
            raise RefusedError(400)  # a token is for the hub alone
        data = (self.hub.store / digest).read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self.send_response(206 if start else 200)
        for key, value in {
            "Content-Length": str(len(data) - start),
            "ETag": f'"{digest}"',
            **headers,
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.hub.stall is not None and len(data) > self.hub.stall:
            self.wfile.write(data[start : self.hub.stall])
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.released.wait()
            return
        self.wfile.write(data[start:])


NAME = "([^/]+/[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", Answers.create),
    ("POST", f"/api/datasets/{NAME}/branch/(.+)", Answers.branch),
    ("POST", "/api/validate-yaml", Answers.validate),
    ("POST", f"/api/datasets/{NAME}/preupload/(.+)", Answers.preupload),
    ("POST", rf"/datasets/{NAME}\.git/info/lfs/objects/batch", Answers.batch),
    ("PUT", "/large/(.+)", Answers.upload),
    ("POST", f"/api/datasets/{NAME}/commit/(.+)", Answers.commit),
    ("GET", f"/api/datasets/{NAME}(?:/revision/(.+))?", Answers.info),
    ("GET", f"/datasets/{NAME}/resolve/([^/]+)/(.+)", Answers.resolve),
    ("GET", "/large/(.+)", Answers.download),
]
