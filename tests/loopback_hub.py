"""A hub on the loopback interface: what the real client asks of huggingface.co, downloading and uploading, answered in its way, and faults to order.

Large files go by LFS. Xet, which the client prefers where hf_xet is installed, is not spoken: the client's environment sets HF_HUB_DISABLE_XET=1."""
import base64
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
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

MEMBER, STRANGER = "hf_member", "hf_stranger"  # tokens: private and gated repositories let one of them in
LARGE = (".safetensors", ".bin", ".pth")       # kept in LFS: their bytes come from another host than the hub's


def sha256(content): return hashlib.sha256(content).hexdigest()
def blob_id(content): return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # as git names it


@dataclass
class Repo:
    "Files by name, of the branch main; other revisions by theirs; open, private or gated."
    files: dict[str, bytes]
    access: str = "open"
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)                        # Revisions that are tags; the others are branches
    ignored: set[str] = field(default_factory=set)                     # Names that its .gitignore keeps out of a commit
    log: list[tuple[str, str]] = field(default_factory=list)           # Branch and message of what was committed here, in order
    stored: dict[str, bytes] = field(default_factory=dict, repr=False) # Large files that were uploaded, by digest

    @cached_property
    def commits(self):
        "Commit and files, by every name that a revision has; a push adds to them."
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
    received: int = 0  # bytes of the request's
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
    lock: threading.Lock = field(default_factory=threading.Lock)  # one change at a time

    def order(self, kind, amount=0, times=1, method="GET", repo="", name="model.safetensors"):
        """Have something go wrong: "cut" the connection after so many bytes, "stall" there until the client leaves, send "short" as if that were all,
        "garble" the byte there, answer with a "status", "wait" so many seconds first, or do what was asked and "lose" the answer."""
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
        self.given = self.receive()
        path, self.token = unquote(urlsplit(self.path).path), self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.record = Request(self.command, path, self.headers.get("Range"), self.token, len(self.given))
        self.fault = self.hub.fault(self.command, path)
        self.hub.requests.append(self.record)
        try: self.route(path)
        except (BrokenPipeError, ConnectionResetError): self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_GET

    def receive(self):
        "The body of a request."
        if self.headers.get("Transfer-Encoding") != "chunked": return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16): parts.append(self.rfile.read(size)); self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def route(self, path):
        if self.fault and self.fault.kind == "wait": time.sleep(self.fault.amount)
        if self.fault and self.fault.kind == "status": return self.head(int(self.fault.amount), {"Retry-After": "0"})
        if path in self.hub.pages: return self.body(self.hub.pages[path])
        with self.hub.lock:
            if found := re.fullmatch("/api/models/([^/]+/[^/]+)/(preupload|commit|tag|branch)/(.+)", path): return self.write(*found.groups())
            if found := re.fullmatch("/([^/]+/[^/]+)\\.git/info/lfs/objects/(batch|verify)", path): return self.write(*found.groups(), "main")
            if found := re.fullmatch("/lfs/([^/]+/[^/]+)/([0-9a-f]{64})", path): return self.store(*found.groups())
            if path == "/api/repos/create": return self.create(json.loads(self.given))
            if path == "/api/validate-yaml": return self.check_card(json.loads(self.given)["content"])
        if found := re.fullmatch("/api/models/([^/]+/[^/]+)/refs()()", path): return self.refs(found[1])
        if found := re.fullmatch("/api/models/([^/]+/[^/]+)(/revision|/tree)?/?(.*)", path): return self.api(*found.groups())
        if found := re.fullmatch("(/cdn|/api/resolve-cache/models)?/([^/]+/[^/]+)/(?:resolve/)?([^/]+)/(.+)", path): return self.file(*found.groups())
        self.head(404)

    def find(self, repo, revision, about=False):
        "Commit and files, or None once the refusal is sent; what a gated repository holds may be asked by all."
        def refuse(status, code, message=""): self.head(status, {"X-Error-Code": code, "X-Error-Message": message})
        held = self.hub.repos.get(repo)
        if self.token not in (None, MEMBER, STRANGER): return refuse(401, "", "Invalid credentials in Authorization header")
        if held is None or (held.access == "private" and self.token != MEMBER):
            return refuse(404 if self.token else 401, "RepoNotFound", "Repository not found" if self.token else "Invalid username or password.")
        if held.access == "gated" and self.token != MEMBER and not about:
            return refuse(403 if self.token else 401, "GatedRepo", f"Access to model {repo} is restricted.")
        return held.commits.get(revision) or refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def file(self, place, repo, revision, name):
        "The hub itself redirects: to its own cache, or for a large file to another host, which asks for no token (its address is a secret)."
        if place == "/cdn": return self.body(self.hub.repos[repo].commits[revision][1][name])
        if not (found := self.find(repo, revision)): return
        commit, files = found
        content, about = files.get(name), {"X-Repo-Commit": commit}
        if content is None: return self.head(404, about | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        digest = sha256(content) if name.endswith(LARGE) else blob_id(content)
        about["ETag"] = f'"{digest}"'
        if place: return self.body(content, about)
        if not name.endswith(LARGE): return self.head(307, about | {"Location": f"/api/resolve-cache/models/{repo}/{commit}/{name}"})
        about |= {"X-Linked-Etag": about["ETag"], "X-Linked-Size": str(len(content))}
        self.head(302, about | {"Location": f"{self.hub.cdn}/cdn/{repo}/{commit}/{name}"})

    def api(self, repo, what, revision):
        if not (found := self.find(repo, revision or "main", about=True)): return
        commit, files = found
        def large(content): return {"lfs": {"sha256": sha256(content), "size": len(content), "pointerSize": 134}}
        def sized(name, content): return {"size": len(content), "blobId": blob_id(content), **(large(content) if name.endswith(LARGE) else {})}
        whole = "blobs" in parse_qs(urlsplit(self.path).query)
        tree = [{"type": "file", "path": name, "size": len(content), "oid": blob_id(content)} for name, content in files.items()]
        siblings = [{"rfilename": name, **(sized(name, content) if whole else {})} for name, content in files.items()]
        self.tell(tree if what == "/tree" else {"id": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings})

    def refs(self, repo):
        if not self.find(repo, "main", about=True): return
        held = self.hub.repos[repo]
        def listed(kind, names): return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": held.commits[n][0]} for n in names]
        names = [n for n in held.commits if not re.fullmatch("[0-9a-f]{40}", n)]
        self.tell({"branches": listed("heads", [n for n in names if n not in held.tags]), "converts": [], "tags": listed("tags", sorted(held.tags))})

    def may_write(self, owner):
        "Members may write, under any owner but the one called \"other\"; whoever is refused is told so."
        if self.token not in (MEMBER, STRANGER): return self.tell({"error": "Invalid username or password."}, 401)
        return True if self.token == MEMBER and owner != "other" else self.tell({"error": "You don't have the rights to write there."}, 403)

    def create(self, asked):
        owner = asked["organization"] or "ada"
        repo = f"{owner}/{asked['name']}"
        if not self.may_write(owner): return
        status = 409 if repo in self.hub.repos else 200
        if status == 200: self.hub.repos[repo] = Repo({}, "private" if asked.get("visibility") == "private" else "open")
        self.tell({"url": f"{self.hub.address}/{repo}", "name": repo}, status)

    def check_card(self, content):
        "As the hub does: the front matter is YAML, and says a few things in the way that it should."
        front = re.match(r"---\n(.*?)\n---\n", content, re.S)
        try: card = yaml.safe_load(front[1]) if front else {}
        except yaml.YAMLError as e: return self.tell({"errors": [{"message": str(e)}], "warnings": []}, 400)
        wrong = [f"{k} is to be text" for k in ("license", "library_name", "pipeline_tag") if not isinstance(card.get(k, ""), str)]
        wrong += ["tags are to be a list of texts"] * (not all(isinstance(t, str) for t in card.get("tags") or []))
        warned = [] if front else [{"message": "empty or missing yaml metadata in repo card"}]
        self.tell({"errors": [{"message": w} for w in wrong], "warnings": warned}, 400 if wrong else 200)

    def write(self, repo, what, revision):
        if not self.may_write(repo.partition("/")[0]) or not (found := self.find(repo, "main" if what == "branch" else revision)): return
        held, name = self.hub.repos[repo], revision
        commit, files = found
        asked = [json.loads(line) for line in self.given.splitlines() if line]
        if what == "preupload":
            def planned(name, size):
                large, there = name.endswith(LARGE), files.get(name)
                return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": name in held.ignored,
                        "oid": None if there is None else sha256(there) if large else blob_id(there)}
            return self.tell({"files": [planned(f["path"], f["size"]) for f in asked[0]["files"]]})
        if what == "batch":
            def action(digest, size):
                links = {"upload": f"{self.hub.cdn}/lfs/{repo}/{digest}", "verify": f"{self.hub.address}/{repo}.git/info/lfs/objects/verify"}
                return {"oid": digest, "size": size, **({} if digest in held.stored else {"actions": {k: {"href": v} for k, v in links.items()}})}
            return self.tell({"transfer": "basic", "objects": [action(o["oid"], o["size"]) for o in asked[0]["objects"]]})
        if what == "verify": return self.tell({}, 200 if len(held.stored.get(asked[0]["oid"], b"")) == asked[0]["size"] else 404)
        if what == "commit": return self.commit(repo, name, commit, files, asked)
        made = asked[0]["tag"] if what == "tag" else name
        if made in held.commits: return self.tell({"error": f"{made} exists already"}, 409)
        held.commits[made] = (commit, files) if what == "tag" else held.commits[asked[0].get("startingPoint") or "main"]
        if what == "tag": held.tags.add(made)
        self.tell({})

    def store(self, repo, digest):
        "The host of the large files: its addresses are secrets, and it keeps what has the digest that it was announced with."
        if sha256(self.given) != digest: return self.tell({"error": "not what was announced"}, 400)
        self.hub.repos[repo].stored[digest] = self.given
        self.tell({})

    def commit(self, repo, branch, head, files, asked):
        held, (about, *operations) = self.hub.repos[repo], asked
        if about["value"].get("parentCommit") not in (None, head):
            return self.tell({"error": "A commit has happened since. Please refresh and try again."}, 412)
        files = dict(files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file": files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile" and value["oid"] in held.stored: files[value["path"]] = held.stored[value["oid"]]
            elif operation["key"] == "deletedFile": files.pop(value["path"])
            else: return self.tell({"error": f"cannot commit {value['path']}"}, 400)
        content = sorted((name, sha256(data)) for name, data in files.items())
        commit = hashlib.sha1(f"{head} {len(held.log)} {content}".encode()).hexdigest()
        held.commits[branch] = held.commits[commit] = (commit, files)
        held.log.append((branch, about["value"]["summary"]))
        self.tell({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.address}/{repo}/commit/{commit}"})

    def tell(self, answer, status=200):
        content = json.dumps(answer).encode()
        if self.fault and self.fault.kind == "lose": self.close_connection = True; return
        self.head(status, {"Content-Type": "application/json"}, len(content))
        if self.command != "HEAD": self.wfile.write(content)

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


def environment(home, hub=None, **more):
    "The environment of a process whose hub client has a home of its own; without a hub it works offline."
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}  # no token and no habit of whoever runs the tests
    env |= {"HF_ENDPOINT": hub.address} if hub else {"HF_HUB_OFFLINE": "1"}
    env |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "30",
            "HF_HUB_ETAG_TIMEOUT": "30", "NO_PROXY": "*", "OMP_NUM_THREADS": "1", **more}
    return env


def start(code, home, hub=None, *arguments, **options):
    "Run code in such a process; options in capitals are its environment's, others Popen's."
    env = environment(home, hub, **{k: options.pop(k) for k in list(options) if k.isupper()})
    return subprocess.Popen([sys.executable, "-c", f"import json, sys, torch\n{code}", *arguments], env=env, text=True,
                            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


def client(code, home, hub=None, *arguments, **options):
    "What such a process prints last, as JSON; without a hub it works offline."
    process = start(code, home, hub, *arguments, **options)
    told, wrong = process.communicate(timeout=300)
    assert process.returncode == 0, wrong
    return json.loads(told.strip().splitlines()[-1])
