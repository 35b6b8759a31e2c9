"""A Hugging Face Hub on loopback, in memory: what huggingface_hub's real client needs to push and to pull.

Repositories of models, data sets and Spaces with branches, commits, pull requests, plain LFS. Clients are pointed at it
with `LoopbackHub.environment`, before huggingface_hub is imported. A test may break it in the ways of the real one:
`fail` answers the next requests of some path with an error, falls silent, or cuts the line in the middle.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKENS = {"hf_write": "write", "hf_read": "read"}  # made up; whoever has the first may push as USER
USER = "me"
LFS_ABOVE = 100_000  # bytes
LFS_SUFFIXES = (".safetensors", ".png", ".jpg", ".parquet", ".onnx")


@dataclass
class Repository:
    name: str
    kind: str
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        sha = hashlib.sha1(f"{self.kind}/{self.name}/{len(self.commits)}".encode()).hexdigest()
        self.commits[sha], self.messages[sha], self.branches[branch] = files, message, sha
        return sha

    def sha(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class LoopbackHub:
    """`with LoopbackHub() as hub:` serves on a free port of 127.0.0.1."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.failures: list[tuple[re.Pattern, int | str]] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()

        class Handler(_Handler):
            hub = self

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def environment(self, token: str | None = "hf_write") -> dict[str, str]:
        """Environment variables for a client's process."""
        variables = {"HF_ENDPOINT": self.address, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        return variables | ({} if token is None else {"HF_TOKEN": token})

    def repository(self, name: str, kind: str = "model") -> Repository:
        return self.repositories[kind, name]

    def publish(self, name: str, files: dict[str, bytes], kind: str = "model") -> str:
        """Commits exactly these files, without a client; returns the hash."""
        repository = self.repositories.setdefault((kind, name), Repository(name, kind))
        return repository.commit("main", files, "published")

    def fail(self, path: str, how: int | str, times: int = 1) -> None:
        """The next requests whose method and path match are broken.

        Args:
            path: Pattern of method and path.
            how: A status to answer with; `"cut"`: the line, before an answer; `"half"`: half-way through what is sent,
                up or down; `"late"`: when all was done and nothing answered yet; `"stall"`: silence.
            times: How many requests.
        """
        self.failures += [(re.compile(path), how)] * times


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    how: int | str | None = None  # this request is broken

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        self.how = self._failure(f"{self.command} {address.path}")
        length = int(self.headers.get("Content-Length") or 0)
        if self.how == "half" and length:  # of an answer to what sends nothing, half is sent below
            self.rfile.read(length // 2)
            return self._break("cut")
        body = self._body()
        if self.how not in (None, "half", "late"):
            return self._break(self.how)
        with self.hub.lock:
            for pattern, answer in ROUTES:
                match = pattern.fullmatch(f"{self.command} {address.path}")
                if match:
                    parts = [part and unquote(part) for part in match.groups()]
                    return answer(self, *parts, body=body, query=parse_qs(address.query))
        return self.error(404, "NotFound", f"no such address: {self.command} {address.path}")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _failure(self, request: str) -> int | str | None:
        with self.hub.lock:
            for failure in self.hub.failures:
                if failure[0].search(request):
                    self.hub.failures.remove(failure)
                    return failure[1]
        return None

    def _break(self, how: int | str) -> None:
        if how == "stall":
            self.hub.closing.wait(300)
        if how in ("cut", "stall"):
            self.hub.requests.append((self.command, self.path, 0))
            self.close_connection = True
            return self.connection.close()
        return self.error(int(how), "InternalError", "broken by the test")

    def answer(self, content=None, *, code: int = 200, raw: bytes | None = None, **headers: str) -> None:
        if self.how == "late":
            self._break("cut")
            return
        data = raw if raw is not None else json.dumps(content).encode() if content is not None else b""
        self.send_response(code)
        standard = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        for name, value in (standard | {name.replace("_", "-"): value for name, value in headers.items()}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.how == "half":
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if self.how == "half" else data)
        self.hub.requests.append((self.command, self.path, code))

    def error(self, code: int, kind: str, message: str) -> None:
        self.answer({"error": message}, code=code, X_Error_Code=kind, X_Error_Message=message)

    @property
    def right(self) -> str | None:
        """The client's permission: None, read or write."""
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def may_write(self, owner: str = USER) -> bool:
        if self.right is None:
            self.error(401, "Unauthorized", "Invalid username or password.")
        elif self.right == "read" or owner != USER:
            self.error(403, "Forbidden", "You don't have the rights to create a repository or to write into this one.")
        else:
            return True
        return False

    def find(self, kind: str, name: str) -> Repository | None:
        repository = self.hub.repositories.get((kind, name))
        if repository is None or (repository.private and self.right is None):
            self.error(401 if self.right is None else 404, "RepoNotFound", "Repository not found")
            return None
        return repository

    def find_revision(self, kind: str, name: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.find(kind, name)
        if repository is None:
            return None
        sha = repository.sha(revision)
        if sha is None:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, sha


def is_large(path: str, size: int) -> bool:
    return size > LFS_ABOVE or path.endswith(LFS_SUFFIXES)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry_of(path: str, content: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_digest(content)}
    large = {"lfs": {"oid": digest(content), "size": len(content), "pointerSize": 134}}
    return entry | (large if is_large(path, len(content)) else {})


def who_am_i(client: _Handler, **_) -> None:
    if client.right is None:
        return client.error(401, "Unauthorized", "Invalid token")
    access = {"type": "access_token", "accessToken": {"displayName": "test", "role": client.right}}
    return client.answer({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": access})


def create_repository(client: _Handler, *, body: bytes, **_) -> None:
    wanted = json.loads(body)
    owner, kind = wanted.get("organization") or USER, wanted.get("type") or "model"
    if not client.may_write(owner):
        return None
    name = f"{owner}/{wanted['name']}"
    prefix = "" if kind == "model" else f"{kind}s/"
    address = {"url": f"{client.hub.address}/{prefix}{name}", "name": name, "id": name}
    if (kind, name) in client.hub.repositories:
        return client.answer({"error": "You already created this repo", **address}, code=409)
    private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
    repository = Repository(name, kind, private, settings=wanted)
    client.hub.repositories[kind, name] = repository
    return client.answer(address)


def preupload(client: _Handler, kind: str, name: str, revision: str, *, body: bytes, **_) -> None:
    found = client.find(kind, name)
    if found is None or not client.may_write():
        return None
    present = found.files(found.sha(revision) or "main")
    wanted = [(each["path"], each["size"]) for each in json.loads(body)["files"]]
    files = [
        {
            "path": path,
            "uploadMode": "lfs" if is_large(path, size) else "regular",
            "shouldIgnore": False,
            "oid": git_digest(present[path]) if path in present else None,
        }
        for path, size in wanted
    ]
    return client.answer({"files": files})


def offer_large_files(client: _Handler, kind: str | None, name: str, *, body: bytes, **_) -> None:
    if not client.may_write():
        return None
    objects = []
    for wanted in json.loads(body)["objects"]:
        upload = {"actions": {"upload": {"href": f"{client.hub.address}/_lfs/{wanted['oid']}"}}}
        known = wanted["oid"] in client.hub.large_files
        objects.append({"oid": wanted["oid"], "size": wanted["size"], **({} if known else upload)})
    return client.answer({"transfer": "basic", "objects": objects})


def take_large_file(client: _Handler, oid: str, *, body: bytes, **_) -> None:
    if digest(body) != oid:
        return client.error(400, "BadRequest", "the content has another digest")
    client.hub.large_files[oid] = body
    return client.answer()


def commit(client: _Handler, kind: str, name: str, revision: str, *, body: bytes, query: dict, **_) -> None:
    repository = client.find(kind, name)
    if repository is None or not client.may_write():
        return None
    files, message = dict(repository.files(repository.sha(revision) or "main")), ""
    for line in body.splitlines():
        operation = json.loads(line)
        value = operation["value"]
        if operation["key"] == "header":
            message = value["summary"]
        elif operation["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif operation["key"] == "lfsFile":
            if value["oid"] not in client.hub.large_files:
                return client.error(400, "BadRequest", f"{value['path']} was not uploaded")
            files[value["path"]] = client.hub.large_files[value["oid"]]
        elif operation["key"] == "deletedFile":
            files.pop(value["path"], None)
    extra = {}
    if query.get("create_pr") == ["1"]:
        number = 1 + sum(branch.startswith("refs/pr/") for branch in repository.branches)
        revision = f"refs/pr/{number}"
        extra = {"pullRequestUrl": f"{client.hub.address}/{name}/discussions/{number}"}
    sha = repository.commit(revision, files, message)
    address = f"{client.hub.address}/{name}/commit/{sha}"
    return client.answer({"success": True, "commitOid": sha, "commitUrl": address, "hookOutput": "", **extra})


def create_branch(client: _Handler, kind: str, name: str, branch: str, **_) -> None:
    repository = client.find(kind, name)
    if repository is None or not client.may_write():
        return None
    if branch in repository.branches:
        return client.error(409, "Conflict", "Reference already exists")
    repository.branches[branch] = repository.branches["main"]
    return client.answer({})


def list_references(client: _Handler, kind: str, name: str, **_) -> None:
    repository = client.find(kind, name)
    if repository is not None:
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": sha}
            for branch, sha in repository.branches.items()
        ]
        client.answer({"branches": branches, "tags": [], "converts": []})


def list_tree(client: _Handler, kind: str, name: str, revision: str, folder: str | None, **_) -> None:
    found = client.find_revision(kind, name, revision)
    if found is not None:
        repository, sha = found
        inside = "" if folder is None else f"{folder}/"
        entries = [
            entry_of(path, content)
            for path, content in sorted(repository.files(sha).items())
            if path.startswith(inside)
        ]
        client.answer(entries)


def list_paths(client: _Handler, kind: str, name: str, revision: str, *, body: bytes, **_) -> None:
    found = client.find_revision(kind, name, revision)
    if found is not None:
        repository, sha = found
        is_json = "json" in client.headers.get("Content-Type", "")
        wanted = (json.loads(body) if is_json else parse_qs(body.decode())).get("paths", [])
        files = repository.files(sha)
        client.answer([entry_of(path, files[path]) for path in wanted if path in files])


def describe(client: _Handler, kind: str, name: str, revision: str | None, **_) -> None:
    found = client.find_revision(kind, name, revision or "main")
    if found is not None:
        repository, sha = found
        files = [{"rfilename": path} for path in sorted(repository.files(sha))]
        moment = "2026-01-01T00:00:00.000Z"
        client.answer(
            {"_id": "0", "id": name, "modelId": name, "author": name.split("/")[0], "sha": sha, "siblings": files}
            | {"private": repository.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
            | {"lastModified": moment, "createdAt": moment, "tags": [], "library_name": "transformers"}
        )


def give_file(client: _Handler, kind: str | None, name: str, revision: str, path: str, **_) -> None:
    found = client.find_revision(kind or "model", name, revision)
    if found is None:
        return None
    repository, sha = found
    content = repository.files(sha).get(path)
    if content is None:
        headers = {"X_Error_Code": "EntryNotFound", "X_Error_Message": "Entry not found", "X_Repo_Commit": sha}
        return client.answer({"error": "Entry not found"}, code=404, **headers)
    large = is_large(path, len(content))
    tag = digest(content) if large else git_digest(content)
    headers = {"X_Repo_Commit": sha, "ETag": f'"{tag}"', "Content_Type": "application/octet-stream"}
    if large:
        headers |= {"X_Linked_Etag": f'"{tag}"', "X_Linked_Size": str(len(content))}
    return client.answer(raw=content, **headers)


KIND, NAME = "(model|dataset|space)s", "([^/]+/[^/]+)"
ROUTES = [
    (re.compile(pattern), answer)
    for pattern, answer in (
        ("GET /api/whoami-v2", who_am_i),
        ("GET /api/agent-harnesses", lambda client, **_: client.answer({"harnesses": []})),
        ("POST /api/validate-yaml", lambda client, **_: client.answer({"errors": [], "warnings": []})),
        ("POST /api/repos/create", create_repository),
        ("PUT /_lfs/([0-9a-f]{64})", take_large_file),
        (f"POST /(?:(dataset|space)s/)?{NAME}\\.git/info/lfs/objects/batch", offer_large_files),
        (f"POST /api/{KIND}/{NAME}/preupload/(.+)", preupload),
        (f"POST /api/{KIND}/{NAME}/commit/(.+)", commit),
        (f"POST /api/{KIND}/{NAME}/branch/(.+)", create_branch),
        (f"POST /api/{KIND}/{NAME}/paths-info/(.+)", list_paths),
        (f"GET /api/{KIND}/{NAME}/refs", list_references),
        (f"GET /api/{KIND}/{NAME}/tree/([^/]+)(?:/(.+))?", list_tree),
        (f"GET /api/{KIND}/{NAME}(?:/revision/(.+))?", describe),
        (f"(?:GET|HEAD) /(?:(dataset|space)s/)?{NAME}/resolve/([^/]+)/(.+)", give_file),
    )
]
