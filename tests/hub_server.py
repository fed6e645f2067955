"""A hub on this machine: the protocol that huggingface_hub 1.33 speaks, served from directories, with faults to order.

It answers on two ports under two host names, as the real hub does: small files come from the hub itself, large ones
(git LFS) from a content delivery network that a redirect leads to, or by Xet from the storage that is there as well.
The real client talks to it once ``HF_ENDPOINT`` is `Hub.endpoint` and ``NO_PROXY`` names both hosts.

    with serve({"org/model": directory}) as hub:
        hub.alter(r"safetensors$", truncated(after=100))
        ...  # run the client
        assert hub.bytes_sent(r"safetensors$") < 1000
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from email.message import Message
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests import xet_storage

LFS_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5")
LFS_BYTES = 10 * 1024 * 1024
CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Blob:
    """A file's content: where it lies, its size in bytes, git's id of it and, for what LFS holds, its SHA-256."""

    path: Path
    size: int
    git_id: str
    sha256: str | None

    @property
    def etag(self) -> str:
        return f'"{self.sha256 or self.git_id}"'

    @property
    def xet_hash(self) -> str | None:
        return xet_storage.xet_hash(self.sha256) if self.sha256 else None

    @property
    def lfs(self) -> dict[str, object] | None:
        return {"sha256": self.sha256, "size": self.size, "pointerSize": 134} if self.sha256 else None


@dataclass
class Repository:
    """Every commit's files, and the commits that branches and tags stand for."""

    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """Bytes `begin` to `end` of a file."""

    path: Path
    begin: int
    end: int


@dataclass(frozen=True)
class Answer:
    """What is sent back.

    Attributes:
        silence: seconds before anything comes.
        stop_after: bytes of the body after which the connection is closed.
        held: it is not closed there, but nothing more comes.
        seconds_per_byte: how long each byte of the body takes.
        chunked: the length is not said beforehand.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Part = b""
    silence: float = 0.0
    stop_after: int | None = None
    held: bool = False
    seconds_per_byte: float = 0.0
    chunked: bool = False

    @property
    def length(self) -> int:
        return len(self.body) if isinstance(self.body, bytes) else self.body.end - self.body.begin


Alteration = Callable[[Answer], Answer]


def truncated(*, after: int) -> Alteration:
    """The connection breaks after so many bytes of the body."""
    return lambda answer: replace(answer, stop_after=after)


def stalled(*, after: int) -> Alteration:
    """Nothing more comes after so many bytes of the body, and the connection stays."""
    return lambda answer: replace(answer, stop_after=after, held=True)


def silent(*, seconds: float) -> Alteration:
    """Nothing comes for a while."""
    return lambda answer: replace(answer, silence=seconds)


def dripping(*, seconds_per_byte: float) -> Alteration:
    """One byte at a time."""
    return lambda answer: replace(answer, seconds_per_byte=seconds_per_byte)


def once(alteration: Alteration) -> Alteration:
    """The first time only."""
    left = [alteration]
    return lambda answer: left.pop()(answer) if left else answer


def failing(status: int, *, code: str = "") -> Alteration:
    """An error in place of every answer, with the hub's own error code if one is named."""
    return lambda _: _error(status, code=code)


def with_headers(**headers: str) -> Alteration:
    """Other headers than the true ones; ``_`` in a name stands for ``-``."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda answer: replace(answer, headers={**answer.headers, **named})


def chunked() -> Alteration:
    """The whole body, in chunks, without a word about its length."""
    return lambda answer: replace(answer, chunked=True)


def garbled() -> Alteration:
    """As many bytes as there should be, and none of them right."""
    return lambda answer: replace(answer, body=b"?" * answer.length)


def replaced(content: bytes) -> Alteration:
    """Another content in place of every answer, with status 200: what a login page of some network does."""
    return lambda _: Answer(headers={"Content-Type": "text/html"}, body=content)


def rewritten(change: Callable[[Any], Any]) -> Alteration:
    """Another JSON document than the true one."""

    def alter(answer: Answer) -> Answer:
        assert isinstance(answer.body, bytes)
        return replace(answer, body=json.dumps(change(json.loads(answer.body))).encode())

    return alter


@dataclass
class Exchange:
    """One request and what came of it; `sent` counts the bytes of the body as they leave."""

    server: str
    method: str
    path: str
    range: str
    authorization: str
    status: int = 0
    sent: int = 0


@dataclass(frozen=True)
class Request:
    """A request as the routes see it; `path` is still quoted."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Message
    body: bytes

    @property
    def token(self) -> str:
        return self.header("Authorization").removeprefix("Bearer ")

    def header(self, name: str) -> str:
        return str(self.headers.get(name, ""))


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.answer = answer


class Hub:
    """The repositories, who may read them, what goes wrong, and what was asked.

    Attributes:
        endpoint: what ``HF_ENDPOINT`` must be.
        cdn: where redirects for large files lead, and Xet's storage; another host and port.
        log: every request, in the order in which they came.
        prefix: the path below which all of it lies, as with a mirror; empty for the hub itself.
        ranges: whether ``Range`` is honoured; otherwise the whole file comes with status 200.
    """

    def __init__(self, scratch: Path, *, token: str, private: Collection[str], gated: Collection[str]) -> None:
        self.endpoint = ""
        self.cdn = ""
        self.log: list[Exchange] = []
        self.ranges = True
        self.prefix = ""
        self.stopping = threading.Event()
        self._scratch = scratch
        self._token = token
        self._private = set(private)
        self._gated = gated
        self._repositories: dict[str, Repository] = {}
        self._objects: dict[str, Path] = {}
        self._xet: dict[str, Path] = {}
        self._xorbs: dict[str, bytes] = {}
        self._alterations: list[tuple[re.Pattern[str], Alteration]] = []

    def publish(self, repository: str, directory: Path, *, ref: str = "main") -> str:
        """Make the files of a directory a new commit of a branch; gives the commit."""
        names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
        return self._commit(repository, {name: _blob(directory / name) for name in names}, ref=ref)

    def commit_of(self, repository: str, *, ref: str = "main") -> str:
        """The commit that a branch stands for."""
        return self._repositories[repository].refs[ref]

    def content(self, repository: str, *, ref: str = "main") -> dict[str, bytes]:
        """The files of a branch: name -> content."""
        files = self._repositories[repository].commits[self.commit_of(repository, ref=ref)]
        return {name: blob.path.read_bytes() for name, blob in files.items()}

    def alter(self, path: str, alteration: Alteration) -> None:
        """From now on, alter each answer to a request whose unquoted path a regular expression is found in.

        What the content delivery network serves ends in the file's name, too.
        """
        self._alterations.append((re.compile(path), alteration))

    def restore(self) -> None:
        """Nothing goes wrong any more."""
        self._alterations.clear()

    def requests(self, path: str = "") -> list[Exchange]:
        """The requests whose path a regular expression is found in."""
        return [exchange for exchange in self.log if re.search(path, exchange.path)]

    def bytes_sent(self, path: str = "") -> int:
        """Bytes of all bodies sent for such requests."""
        return sum(exchange.sent for exchange in self.requests(path))

    def altered(self, path: str, answer: Answer) -> Answer:
        """The answer with all that was ordered for this path done to it, in the order in which it was ordered."""
        for pattern, alteration in self._alterations:
            if pattern.search(unquote(path)):
                answer = alteration(answer)
        return answer

    def answer_as_hub(self, request: Request) -> Answer:
        """What the hub itself answers."""
        if not request.path.startswith(f"{self.prefix}/"):
            return _error(404)
        path = request.path.removeprefix(self.prefix)
        for methods, pattern, route in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and request.method in methods.split():
                return route(self, request, *(unquote(group or "") for group in match.groups()))
        return _error(404)

    def answer_as_cdn(self, request: Request) -> Answer:
        """What the content delivery network answers, which knows no tokens; or Xet's storage, which has its own."""
        kind, digest, *rest = request.path.removeprefix("/").split("/")
        if kind == "v1":
            return self._store_by_xet(request, digest, *rest)
        if kind == "xorbs" and digest in self._xet:
            return _sliced(request, xet_storage.xorb_of(self._xet[digest], int(rest[-1])))
        if request.method == "PUT":
            if hashlib.sha256(request.body).hexdigest() != digest:
                return _error(400)
            self._store(request.body)
            return Answer(headers={"ETag": f'"{digest}"'})
        path = self._objects.get(digest)
        return self._file(request, path, digest) if path else _error(404)

    def model_info(self, request: Request, name: str, revision: str) -> Answer:
        """``HfApi.model_info``: a commit and its files, with sizes and digests if ``blobs`` is asked for."""
        repository = self._find(name, request)
        commit = _resolve(repository, revision or "main")
        siblings: list[dict[str, object]] = []
        for path, blob in repository.commits[commit].items():
            details = {"size": blob.size, "blobId": blob.git_id, **({"lfs": blob.lfs} if blob.lfs else {})}
            siblings.append({"rfilename": path, **(details if "blobs" in request.query else {})})
        gated = "manual" if name in self._gated else False
        known = {"id": name, "modelId": name, "sha": commit, "private": name in self._private, "gated": gated}
        return _json({**known, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    def tree(self, request: Request, name: str, revision: str, folder: str = "") -> Answer:
        """``HfApi.list_repo_tree`` on one page: all files, or what lies in one folder."""
        repository = self._find(name, request)
        files = repository.commits[_resolve(repository, revision)]
        start = f"{folder}/" if folder else ""
        below = {path: blob for path, blob in files.items() if path.startswith(start)}
        if folder and not below:
            return _error(404, code="EntryNotFound", message="Entry not found")
        folders: set[str] = set()
        if request.query.get("recursive", ["True"])[0].lower() != "true":
            folders = {start + path.removeprefix(start).split("/")[0] for path in below} - below.keys()
            below = {path: blob for path, blob in below.items() if "/" not in path.removeprefix(start)}
        entries = [_tree_entry(path, blob) for path, blob in below.items()]
        return _json([*entries, *({"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders))])

    def paths_info(self, request: Request, name: str, revision: str) -> Answer:
        """``HfApi.get_paths_info``, for files."""
        repository = self._find(name, request)
        files = repository.commits[_resolve(repository, revision)]
        asked = parse_qs(request.body.decode())["paths"]
        return _json([_tree_entry(path, files[path]) for path in asked if path in files])

    def resolve(self, request: Request, name: str, revision: str, path: str) -> Answer:
        """A file: where it lies, and what ``hf_hub_download`` wants to know beforehand."""
        commit, blob = self._open(request, name, revision, path)
        headers = {"ETag": blob.etag, "X-Repo-Commit": commit}
        if blob.sha256 is None:
            where = f"{self.prefix}/api/resolve-cache/models/{name}/{commit}/{quote(path)}"
            return Answer(status=307, headers={**headers, "Location": where})
        self._objects[blob.sha256] = blob.path
        where = f"{self.cdn}/objects/{blob.sha256}/{quote(path)}"
        linked = {"X-Linked-Size": str(blob.size), "X-Linked-ETag": blob.etag}
        refresh = f"{self.endpoint}/api/models/{name}/xet-read-token/{commit}"
        linked |= {"X-Xet-Hash": str(blob.xet_hash), "Link": f'<{refresh}>; rel="xet-auth"'}
        return Answer(status=302, headers={**headers, **linked, "Location": where})

    def xet_token(self, request: Request, name: str, kind: str, revision: str) -> Answer:
        """Where Xet's storage is, and a token for it."""
        _resolve(self._find(name, request), revision)
        if kind == "write":
            self._check_writer(request)
        access = {"casUrl": self.cdn, "accessToken": xet_storage.TOKEN, "exp": 9999999999}
        named = ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration")
        return replace(_json(access), headers=dict(zip(named, map(str, access.values()), strict=True)))

    def resolved(self, request: Request, name: str, revision: str, path: str) -> Answer:
        """A file that git holds."""
        commit, blob = self._open(request, name, revision, path)
        answer = self._file(request, blob.path, blob.git_id)
        return replace(answer, headers={**answer.headers, "X-Repo-Commit": commit})

    def create(self, request: Request) -> Answer:
        """``HfApi.create_repo``."""
        self._check_writer(request)
        asked = json.loads(request.body)
        name = f"{asked['organization'] or 'user'}/{asked['name']}"
        about = {"name": name, "id": name, "url": f"{self.endpoint}/{name}"}
        if name in self._repositories:
            return replace(_json({"error": "You already created this model repo", **about}), status=409)
        if asked.get("visibility") == "private":
            self._private.add(name)
        self._commit(name, {}, ref="main")
        return _json(about)

    def who_am_i(self, request: Request) -> Answer:
        """``HfApi.whoami``."""
        self._check_writer(request)
        return _json({"type": "user", "name": "user", "orgs": []})

    def validate_yaml(self, request: Request) -> Answer:
        """What ``HfApi.create_commit`` asks about a README.md; any is right."""
        return _json({"errors": [], "warnings": []})

    def preupload(self, request: Request, name: str, revision: str) -> Answer:
        """Which files of a commit to come go to LFS, and which are there already."""
        self._check_writer(request)
        repository = self._find(name, request)
        held = repository.commits[_resolve(repository, revision)]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if _is_lfs(file["path"], file["size"]) else "regular",
                "shouldIgnore": False,
                "oid": held[file["path"]].etag.strip('"') if file["path"] in held else None,
            }
            for file in json.loads(request.body)["files"]
        ]
        return _json({"files": files})

    def lfs_batch(self, request: Request, name: str) -> Answer:
        """Where to put the objects that are not there yet."""
        self._check_writer(request)
        self._find(name, request)
        objects = [
            {**asked, "actions": {"upload": {"href": f"{self.cdn}/uploads/{asked['oid']}"}}}
            if asked["oid"] not in self._objects
            else asked
            for asked in json.loads(request.body)["objects"]
        ]
        return _json({"transfer": "basic", "objects": objects})

    def commit(self, request: Request, name: str, revision: str) -> Answer:
        """A commit, one operation a line."""
        self._check_writer(request)
        repository = self._find(name, request)
        parent = _resolve(repository, revision)
        files = dict(repository.commits[parent])
        for operation in map(json.loads, request.body.splitlines()):
            value = operation["value"]
            match operation["key"]:
                case "header" if value.get("parentCommit", parent) != parent:
                    return _error(412)
                case "file":
                    files[value["path"]] = _blob(self._store(base64.b64decode(value["content"])), name=value["path"])
                case "lfsFile" if value["oid"] not in self._objects:
                    return _error(400)
                case "lfsFile":
                    files[value["path"]] = _blob(self._objects[value["oid"]], name=value["path"])
                case "deletedFile":
                    del files[value["path"]]
                case "deletedFolder":
                    folder = value["path"].rstrip("/") + "/"
                    files = {path: blob for path, blob in files.items() if not path.startswith(folder)}
        commit = self._commit(name, files, ref=revision)
        return _json({"commitOid": commit, "commitUrl": f"{self.endpoint}/{name}/commit/{commit}"})

    def _commit(self, name: str, files: dict[str, Blob], *, ref: str) -> str:
        repository = self._repositories.setdefault(name, Repository())
        described = json.dumps([repository.refs.get(ref), [(path, blob.etag) for path, blob in files.items()]])
        commit = hashlib.sha1(described.encode()).hexdigest()
        repository.commits[commit] = files
        self._xet |= {blob.xet_hash: blob.path for blob in files.values() if blob.xet_hash}
        repository.refs[ref] = commit
        return commit

    def _find(self, name: str, request: Request) -> Repository:
        if request.token and request.token != self._token:
            raise Refused(_error(401, message="Invalid credentials in Authorization header"))
        if name not in self._repositories or (name in self._private and not request.token):
            raise Refused(_error(404 if request.token else 401, code="RepoNotFound", message="Repository not found"))
        return self._repositories[name]

    def _open(self, request: Request, name: str, revision: str, path: str) -> tuple[str, Blob]:
        repository = self._find(name, request)
        if name in self._gated and not request.token:
            raise Refused(_error(401, code="GatedRepo", message=f"Access to model {name} is restricted."))
        commit = _resolve(repository, revision)
        if path not in repository.commits[commit]:
            raise Refused(_error(404, code="EntryNotFound", message="Entry not found"))
        return commit, repository.commits[commit][path]

    def _check_writer(self, request: Request) -> None:
        if not self._token or request.token != self._token:
            raise Refused(_error(401, message="Invalid credentials in Authorization header"))

    def _file(self, request: Request, path: Path, etag: str) -> Answer:
        size = path.stat().st_size
        headers = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.header("Range")) if self.ranges else None
        if asked is None:
            return Answer(headers=headers, body=Part(path, 0, size))
        begin, end = int(asked[1]), min(int(asked[2] or size) + 1, size)
        if begin >= size:
            return Answer(status=416, headers={**headers, "Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        return Answer(status=206, headers=headers, body=Part(path, begin, end))

    def _store_by_xet(self, request: Request, kind: str, *rest: str) -> Answer:
        if request.token != xet_storage.TOKEN:
            return _error(401)
        match kind, request.method:
            case "reconstructions", "GET":
                return self._reconstruction(request, *rest)
            case "xorbs", "POST":
                self._xorbs[rest[-1]] = request.body
                return _json({"was_inserted": True})
            case "shards", "POST":
                for content in xet_storage.files_of(request.body, self._xorbs):
                    self._store(content)
                return _json({"result": 1})
        return _error(404)

    def _reconstruction(self, request: Request, digest: str) -> Answer:
        if digest not in self._xet:
            return _error(404)
        path = self._xet[digest]
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.header("Range"))
        begin, end = (int(asked[1]), int(asked[2]) + 1) if asked else (0, size)
        if begin >= size:
            return _error(416)
        place = f"{self.cdn}/xorbs/{digest}/{quote(path.name)}"
        return _json(xet_storage.reconstruction(size, begin, end, place=place))

    def _store(self, content: bytes) -> Path:
        digest = hashlib.sha256(content).hexdigest()
        self._objects[digest] = self._scratch / digest
        self._objects[digest].write_bytes(content)
        return self._objects[digest]


_MODEL = r"/api/models/([^/]+/[^/]+)"
_DATASET = r"/api/(datasets/[^/]+/[^/]+)"
_REPOSITORY = r"((?:datasets/)?[^/]+/[^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("GET", _DATASET + r"(?:/revision/([^/]+))?", Hub.model_info),
    ("GET", _DATASET + r"/tree/([^/]+)(?:/(.+))?", Hub.tree),
    ("POST", _DATASET + r"/paths-info/([^/]+)", Hub.paths_info),
    ("GET", _MODEL + r"(?:/revision/([^/]+))?", Hub.model_info),
    ("GET", _MODEL + r"/tree/([^/]+)", Hub.tree),
    ("GET", _MODEL + r"/xet-(read|write)-token/([^/]+)", Hub.xet_token),
    ("GET HEAD", rf"/api/resolve-cache/models/{_REPOSITORY}/([^/]+)/(.+)", Hub.resolved),
    ("GET HEAD", rf"/{_REPOSITORY}/resolve/([^/]+)/(.+)", Hub.resolve),
    ("GET", r"/api/whoami-v2", Hub.who_am_i),
    ("POST", r"/api/repos/create", Hub.create),
    ("POST", r"/api/validate-yaml", Hub.validate_yaml),
    ("POST", _MODEL + r"/preupload/([^/]+)", Hub.preupload),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", Hub.lfs_batch),
    ("POST", _MODEL + r"/commit/([^/]+)", Hub.commit),
]


@contextmanager
def serve(
    repositories: Mapping[str, Path],
    *,
    token: str = "",
    private: Collection[str] = (),
    gated: Collection[str] = (),
    prefix: str = "",
) -> Iterator[Hub]:
    """Serve directories as the main branches of repositories until the block ends.

    Args:
        repositories: ``org/name`` -> directory; its files are read when they are asked for.
        token: the one token that is accepted; without one, nothing private or gated can be read and nothing written.
        private: repositories that do not exist for whoever has no token.
        gated: repositories whose files are refused, but not their listing, to whoever has no token.
        prefix: see `Hub`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        hub = Hub(Path(scratch), token=token, private=private, gated=gated)
        with _listening(hub, "hub") as port, _listening(hub, "cdn") as cdn_port:
            hub.prefix = prefix
            hub.endpoint, hub.cdn = f"http://127.0.0.1:{port}{prefix}", f"http://localhost:{cdn_port}"
            for name, directory in repositories.items():
                hub.publish(name, directory)
            yield hub


@contextmanager
def _listening(hub: Hub, role: str) -> Iterator[int]:
    answer = hub.answer_as_hub if role == "hub" else hub.answer_as_cdn

    class Handler(_Handler):
        stopping = hub.stopping

        def answer(self, request: Request) -> tuple[Exchange, Answer]:
            exchange = Exchange(
                server=role,
                method=request.method,
                path=unquote(request.path),
                range=request.header("Range"),
                authorization=request.header("Authorization"),
            )
            hub.log.append(exchange)
            try:
                return exchange, hub.altered(request.path, answer(request))
            except Refused as refused:
                return exchange, hub.altered(request.path, refused.answer)

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        hub.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no error; whatever else goes wrong here is one."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stopping: threading.Event

    def answer(self, request: Request) -> tuple[Exchange, Answer]:
        raise NotImplementedError

    def do_any(self) -> None:
        """Every method goes the same way."""
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        request = Request(self.command, url.path, query, self.headers, self._body())
        exchange, answer = self.answer(request)
        exchange.status = answer.status
        with suppress(BrokenPipeError, ConnectionResetError):
            self._send(exchange, answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_any  # noqa: N815 (the base asks for these names)

    def log_message(self, format: str, *args: object) -> None:
        """The log is `Hub.log`."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, exchange: Exchange, answer: Answer) -> None:
        if answer.silence and self.stopping.wait(answer.silence):
            return
        self.send_response_only(answer.status)
        framing = {"Transfer-Encoding": "chunked"} if answer.chunked else {"Content-Length": str(answer.length)}
        for name, value in {**framing, **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for chunk in _chunks(answer):
            if answer.seconds_per_byte and self.stopping.wait(answer.seconds_per_byte):
                break
            exchange.sent += len(chunk)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if answer.chunked else chunk)
        if answer.held and exchange.sent < answer.length:
            self.stopping.wait()
        if answer.chunked and exchange.sent == answer.length:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = self.close_connection or exchange.sent < answer.length


def _chunks(answer: Answer) -> Iterator[bytes]:
    left = answer.length if answer.stop_after is None else min(answer.stop_after, answer.length)
    step = 1 if answer.seconds_per_byte else CHUNK_BYTES
    if isinstance(answer.body, bytes):
        yield from (answer.body[begin : min(begin + step, left)] for begin in range(0, left, step))
        return
    with answer.body.path.open("rb") as file:
        file.seek(answer.body.begin)
        while left and (chunk := file.read(min(step, left))):
            left -= len(chunk)
            yield chunk


def _sliced(request: Request, content: bytes) -> Answer:
    """Of bytes in memory what is asked for."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.header("Range"))
    begin, end = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(content))
    headers = {"Content-Range": f"bytes {begin}-{end - 1}/{len(content)}"}
    return Answer(status=206, headers=headers, body=content[begin:end])


def _json(content: object) -> Answer:
    return Answer(headers={"Content-Type": "application/json"}, body=json.dumps(content).encode())


def _error(status: int, *, code: str = "", message: str = "") -> Answer:
    headers = {name: value for name, value in (("X-Error-Code", code), ("X-Error-Message", message)) if value}
    answer = _json({"error": message or f"status {status}"})
    return replace(answer, status=status, headers={**answer.headers, **headers})


def _resolve(repository: Repository, revision: str) -> str:
    commit = repository.refs.get(revision, revision)
    if commit not in repository.commits:
        raise Refused(_error(404, code="RevisionNotFound", message=f"Invalid rev id: {revision}"))
    return commit


def _tree_entry(path: str, blob: Blob) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": blob.size, "oid": blob.git_id}
    if blob.lfs is not None:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
        entry["xetHash"] = blob.xet_hash
    return entry


def _is_lfs(name: str, size: int) -> bool:
    return name.endswith(LFS_SUFFIXES) or size > LFS_BYTES


@lru_cache(maxsize=256)
def _digests(path: Path, size: int, changed: int) -> tuple[str, str]:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), hashlib.sha256(content).hexdigest()


def _blob(path: Path, *, name: str = "") -> Blob:
    stat = path.stat()
    git_id, sha256 = _digests(path, stat.st_size, stat.st_mtime_ns)
    if not _is_lfs(name or path.name, stat.st_size):
        return Blob(path, stat.st_size, git_id, None)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {stat.st_size}\n".encode()
    return Blob(path, stat.st_size, hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest(), sha256)
