"A hub on the loopback interface: what the real client asks of huggingface.co, answered in its way, and faults to order."
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

MEMBER, STRANGER = "hf_member", "hf_stranger"  # tokens: private and gated repositories let one of them in
LARGE = (".safetensors", ".bin", ".pth")       # kept in LFS: their bytes come from another host than the hub's


def sha256(content): return hashlib.sha256(content).hexdigest()


@dataclass
class Repo:
    "Files by name, of the branch main; other revisions by theirs; open, private or gated."
    files: dict[str, bytes]
    access: str = "open"
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @cached_property
    def commits(self):
        "Commit and files, by every name that a revision has."
        def commit(files): return hashlib.sha1(repr(sorted((name, sha256(content)) for name, content in files.items())).encode()).hexdigest()
        held = {name: (commit(files), files) for name, files in {"main": self.files, **self.revisions}.items()}
        return held | {commit: (commit, files) for commit, files in held.values()}


@dataclass
class Request:
    "What was asked, and what became of it."
    method: str
    path: str
    range: str | None
    token: str | None
    status: int = 0
    sent: int = 0  # bytes of the body


@dataclass
class Fault:
    "What befalls the next `times` requests of a method for a file of a repository."
    kind: str
    amount: float
    times: int
    method: str
    repo: str
    name: str


@dataclass
class Hub:
    repos: dict[str, Repo]
    pages: dict[str, bytes]  # anything else, by its path
    address: str = ""        # of the hub
    cdn: str = ""            # of the host that holds the large files
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def order(self, kind, amount=0, times=1, method="GET", repo="", name="model.safetensors"):
        """Have something go wrong: "cut" the connection after so many bytes, "stall" there until the client leaves, send "short" as if that were all,
        "garble" the byte there, answer with a "status", or "wait" so many seconds first."""
        self.faults.append(Fault(kind, amount, times, method, repo, name))

    def fault(self, method, path):
        "The first fault in store for a request, used up by it."
        for fault in self.faults:
            if fault.times and fault.method == method and fault.repo in path and path.endswith(fault.name): fault.times -= 1; return fault

    def asked(self, method="GET", repo="", name="model.safetensors"):
        return [r for r in self.requests if r.method == method and repo in r.path and r.path.endswith(name)]


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub, *args):
        self.hub = hub
        super().__init__(*args)

    def do_GET(self):
        path, self.token = unquote(urlsplit(self.path).path), self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.record, self.fault = Request(self.command, path, self.headers.get("Range"), self.token), self.hub.fault(self.command, path)
        self.hub.requests.append(self.record)
        try: self.route(path)
        except (BrokenPipeError, ConnectionResetError): self.close_connection = True

    do_HEAD = do_GET

    def route(self, path):
        if self.fault and self.fault.kind == "wait": time.sleep(self.fault.amount)
        if self.fault and self.fault.kind == "status": return self.head(int(self.fault.amount), {"Retry-After": "0"})
        if path in self.hub.pages: return self.body(self.hub.pages[path])
        if found := re.fullmatch("/api/models/([^/]+/[^/]+)(/revision|/tree)?/?(.*)", path): return self.api(*found.groups())
        if found := re.fullmatch("(/cdn|/api/resolve-cache/models)?/([^/]+/[^/]+)/(?:resolve/)?([^/]+)/(.+)", path): return self.file(*found.groups())
        self.head(404)

    def find(self, repo, revision):
        "Commit and files, or None once the refusal is sent."
        def refuse(status, code, message=""): self.head(status, {"X-Error-Code": code, "X-Error-Message": message})
        held = self.hub.repos.get(repo)
        if self.token not in (None, MEMBER, STRANGER): return refuse(401, "", "Invalid credentials in Authorization header")
        if held is None or (held.access == "private" and self.token != MEMBER):
            return refuse(404 if self.token else 401, "RepoNotFound", "Repository not found" if self.token else "Invalid username or password.")
        if held.access == "gated" and self.token != MEMBER:
            return refuse(403 if self.token else 401, "GatedRepo", f"Access to model {repo} is restricted.")
        return held.commits.get(revision) or refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def file(self, place, repo, revision, name):
        "The hub itself redirects: to its own cache, or for a large file to another host, which asks for no token (its address is a secret)."
        if place == "/cdn": return self.body(self.hub.repos[repo].commits[revision][1][name])
        if not (found := self.find(repo, revision)): return
        commit, files = found
        content, about = files.get(name), {"X-Repo-Commit": commit}
        if content is None: return self.head(404, about | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        digest = sha256(content) if name.endswith(LARGE) else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        about["ETag"] = f'"{digest}"'
        if place: return self.body(content, about)
        if not name.endswith(LARGE): return self.head(307, about | {"Location": f"/api/resolve-cache/models/{repo}/{commit}/{name}"})
        about |= {"X-Linked-Etag": about["ETag"], "X-Linked-Size": str(len(content))}
        self.head(302, about | {"Location": f"{self.hub.cdn}/cdn/{repo}/{commit}/{name}"})

    def api(self, repo, what, revision):
        if not (found := self.find(repo, revision or "main")): return
        commit, files = found
        tree = [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()} for name, content in files.items()]
        about = {"id": repo, "sha": commit, "private": False, "tags": [], "siblings": [{"rfilename": name} for name in files]}
        self.body(json.dumps(tree if what == "/tree" else about).encode(), {"Content-Type": "application/json"})

    def body(self, content, about=()):
        "All of it or, where a range is asked for, the rest; less what a fault makes of it."
        about, size = {"Accept-Ranges": "bytes", **dict(about)}, len(content)
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range") or "bytes=0-")[1])
        kind, at = (self.fault.kind, int(self.fault.amount)) if self.fault else (None, 0)
        if kind == "garble": content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1:]
        if kind == "short": content = content[:at]
        content = memoryview(content)[start:]
        if start: about["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self.head(206 if start else 200, about, len(content))
        if self.command == "HEAD": return
        whole = content[:at] if kind in ("cut", "stall") else content
        for i in range(0, len(whole), 1 << 18):
            self.record.sent += len(part := whole[i:i + (1 << 18)])
            self.wfile.write(part)
        if kind == "stall": self.connection.recv(1)
        self.close_connection |= kind in ("cut", "stall")

    def head(self, status, about=(), length=0):
        self.record.status = status
        self.send_response(status)
        for name, value in {**dict(about), "Content-Length": str(length)}.items(): self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args): pass


@contextmanager
def loopback_hub(repos=(), pages=()):
    "Serve `{repo: Repo, or its files by name, or the bytes of its model.safetensors}`; the same hub under two addresses, of which one is the CDN's."
    def entry(r): return r if isinstance(r, Repo) else Repo(r if isinstance(r, dict) else {"model.safetensors": r})
    hub = Hub({name: entry(r) for name, r in dict(repos).items()}, dict(pages))
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), partial(Answer, hub)) for _ in range(2)]
    hub.address, hub.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers: threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try: yield hub
    finally:
        for server in servers: server.shutdown(); server.server_close()


def start(code, home, hub=None, *arguments, **options):
    "Run code in a process whose hub client has a home of its own; options in capitals are its environment's, others Popen's."
    environment = {k: options.pop(k) for k in list(options) if k.isupper()}
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}  # no token and no habit of whoever runs the tests
    env |= {"HF_ENDPOINT": hub.address} if hub else {"HF_HUB_OFFLINE": "1"}
    env |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "30", "HF_HUB_ETAG_TIMEOUT": "30", "NO_PROXY": "*",
            "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen([sys.executable, "-c", f"import json, sys, torch\n{code}", *arguments], env=env, text=True,
                            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


def client(code, home, hub=None, *arguments, **options):
    "What such a process prints last, as JSON; without a hub it works offline."
    process = start(code, home, hub, *arguments, **options)
    told, wrong = process.communicate(timeout=300)
    assert process.returncode == 0, wrong
    return json.loads(told.strip().splitlines()[-1])
