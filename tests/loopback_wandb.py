"""A Weights & Biases server on the loopback interface: as much of its GraphQL and of its file storage as runs and artifacts need.

What the installed client and its wandb-core ask is answered by the name of the query; one that is not known is kept in `unknown` and refused."""
import base64
import binascii
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
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

KEY = "0123456789" * 4  # a key of 40 characters, as W&B's are


def md5_hex(digest): return binascii.hexlify(base64.standard_b64decode(digest)).decode()


@dataclass
class Artifact:
    "One version of an artifact."
    id: str
    place: tuple[str, str, str]  # Entity, project and name
    about: dict                  # What the client said when it made it
    index: int = 0
    state: str = "PENDING"
    aliases: set[str] = field(default_factory=set)
    manifest: bytes = b""        # W&B's own list of the files

    @property
    def entries(self): return json.loads(self.manifest)["contents"]


@dataclass
class Server:
    artifacts: list[Artifact] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)      # Content by its MD5
    runs: dict[str, dict] = field(default_factory=dict)        # What the client said of each
    used: list[tuple[str, str]] = field(default_factory=list)  # Run and artifact
    asked: list[str] = field(default_factory=list)             # Names of queries, and methods with paths
    unknown: list[str] = field(default_factory=list)
    faults: dict[str, tuple] = field(default_factory=dict)     # What befalls a query or a path: a status, or "garble"
    address: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def versions(self, place): return [a for a in self.artifacts if a.place == place and a.state == "COMMITTED"]

    def find(self, entity, project, name):
        collection, _, alias = name.partition(":")
        found = self.versions((entity, project, collection))
        return next((a for a in found if (alias or "latest") in a.aliases | {f"v{a.index}"}), None)

    def by_id(self, id): return next((a for a in self.artifacts if a.id == id), None)

    def add(self, place, contents, aliases=("latest",), **about):
        "An artifact that is there from the beginning; `about` may hold `extra` entries of its manifest."
        extra = about.pop("extra", {})
        digests = {name: base64.b64encode(hashlib.md5(data).digest()).decode() for name, data in contents.items()}
        self.files |= {md5_hex(digests[name]): data for name, data in contents.items()}
        entries = {name: {"digest": digests[name], "size": len(data)} for name, data in contents.items()} | extra
        manifest = {"version": 1, "storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}, "contents": entries}
        artifact = Artifact(f"id{len(self.artifacts)}", place, {"artifactTypeName": "model", "digest": "0" * 32, **about}, len(self.versions(place)),
                            "COMMITTED", set(aliases), json.dumps(manifest).encode())
        self.artifacts.append(artifact)
        return artifact

    def shown(self, a):
        "An artifact, as queries show it."
        aliases = [{"__typename": "ArtifactAlias", "id": alias, "alias": alias, "artifactCollection": self.collection(a)}
                   for alias in sorted(a.aliases)]
        return {"__typename": "Artifact", "id": a.id, "artifactSequence": self.collection(a), "versionIndex": a.index, "state": a.state,
                "artifactType": {"name": a.about["artifactTypeName"]}, "description": a.about.get("description"), "metadata": a.about.get("metadata"),
                "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [], "historyStep": None, "digest": a.about["digest"], "commitHash": None,
                "size": sum(e.get("size", 0) for e in a.entries.values()) if a.manifest else 0, "digestAlgorithm": "MANIFEST_MD5", "fileCount": 1,
                "createdAt": "2026-01-01T00:00:00Z", "updatedAt": None, "aliases": aliases}

    def collection(self, a):
        entity, project, name = a.place
        return {"__typename": "ArtifactSequence", "id": "s1", "name": name,
                "project": {"id": "p1", "internalId": "p1", "name": project, "entity": {"id": "e1", "name": entity}}}

    def answer(self, query, given):
        "The data that answers a query, by its name; None for one that is not known."
        name = re.search(r"(?:query|mutation)\s+(\w+)", query)[1]
        with self.lock:
            self.asked.append(name)
            known = getattr(self, f"on_{name}", None)
            if known is None: self.unknown.append(query)
            try: return known and known(given, given.get("input", {}))
            except (KeyError, TypeError) as e: self.unknown.append(f"{e!r} in {given} for {query}")

    def on_ServerFeaturesQuery(self, given, input): return {"serverInfo": {"features": []}}
    def on_XXHashDigestsEnabled(self, given, input): return {"entity": {"xxhashDigestsEnabled": False}}
    def on_OrganizationCoreWeaveOrganizationID(self, given, input): return {"entity": {"organization": None}}
    def on_FetchArtifactDigestAlgorithm(self, given, input): return {"project": None}
    def on_RunResumeStatus(self, given, input): return {"model": None}
    def on_MarkRunFilesUploaded(self, given, input): return {"markRunFilesUploaded": {"success": True}}
    def on_Viewer(self, given, input):
        return {"viewer": {"id": "u1", "entity": "lab", "username": "ada", "email": "", "admin": False, "flags": "{}", "teams": {"edges": []}}}
    def on_GetDefaultEntity(self, given, input): return {"viewer": {"id": "u1", "entity": "lab"}}

    def on_UpsertBucket(self, given, input):
        run = self.runs.setdefault(given["name"], {}) | {k: v for k, v in given.items() if v is not None}
        self.runs[given["name"]] = run
        project = {"id": "p1", "name": run["project"], "entity": {"id": "e1", "name": run.get("entity") or "lab"}}
        about = {"id": given["name"], "name": given["name"], "displayName": run.get("displayName") or "", "description": "", "sweepName": ""}
        about |= {"config": run.get("config") or "{}", "project": project, "historyLineCount": 0}
        return {"upsertBucket": {"inserted": True, "bucket": about}}

    def on_CreateRunFiles(self, given, input):
        files = [{"name": name, "uploadUrl": f"{self.address}/storage/run/{given['run']}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def on_CreateArtifact(self, given, input):
        place = input["entityName"], input["projectName"], input["artifactCollectionName"]
        before = next((a for a in self.versions(place) if a.about["digest"] == input["digest"]), None)
        made = before or Artifact(f"id{len(self.artifacts)}", place, input)
        if before: before.aliases |= self.move(place, input)
        else: self.artifacts.append(made)
        latest = next((a for a in self.versions(place) if "latest" in a.aliases), None)
        sequence = {"latestArtifact": latest and {"id": latest.id}}
        return {"createArtifact": {"artifact": {"id": made.id, "state": made.state, "artifactSequence": sequence}}}

    def move(self, place, input):
        "The aliases that a new version gets; its neighbours lose them."
        aliases = {a["alias"] for a in input.get("aliases") or ()}
        for a in self.versions(place): a.aliases -= aliases
        return aliases

    def on_CreateArtifactManifest(self, given, input):
        file = {"id": "f1", "uploadUrl": f"{self.address}/storage/manifest/{given['artifactID']}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": given["artifactID"], "file": file}}}

    def on_UpdateArtifactManifest(self, given, input):
        file = {"id": "f1", "uploadUrl": f"{self.address}/storage/manifest/{given['artifactManifestID']}", "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": given["artifactManifestID"], "file": file}}}

    def on_CreateArtifactFiles(self, given, input):
        def node(file):
            digest = md5_hex(file["md5"])
            url = None if digest in self.files else f"{self.address}/storage/file/{digest}"
            return {"node": {"storagePath": f"files/{digest}", "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None,
                             "artifact": {"id": file["artifactID"]}}}
        return {"createArtifactFiles": {"files": {"edges": [node(file) for file in input["artifactFiles"]]}}}

    def on_CommitArtifact(self, given, input):
        artifact = self.by_id(given["artifactID"])
        if any(md5_hex(e["digest"]) not in self.files for e in artifact.entries.values()): return None
        artifact.index = len(self.versions(artifact.place))
        artifact.aliases = self.move(artifact.place, artifact.about)
        artifact.state = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.about["digest"]}}}

    def on_UseArtifact(self, given, input):
        said = input or given
        self.used.append((said["runName"], said["artifactID"]))
        return {"useArtifact": {"artifact": {"id": said["artifactID"]}}}

    def on_ArtifactByID(self, given, input): return {"artifact": self.shown(self.by_id(given["id"]))}

    def on_ArtifactType(self, given, input):
        found = next((a for a in self.artifacts if a.place == (given["entity"], given["project"], given["name"].partition(":")[0])), None)
        return {"project": {"artifact": found and {"artifactType": {"name": found.about["artifactTypeName"]}}}}

    def on_ArtifactMembershipByName(self, given, input):
        if not any(a.place[:2] == (given["entity"], given["project"]) for a in self.artifacts): return {"project": None}
        found = self.find(given["entity"], given["project"], given["name"])
        return {"project": {"artifactCollectionMembership": found and {
            "__typename": "ArtifactCollectionMembership", "id": f"m{found.id}", "versionIndex": found.index, "createdAt": "2026-01-01T00:00:00Z",
            "aliases": [{"__typename": "ArtifactAlias", "id": alias, "alias": alias} for alias in sorted(found.aliases)],
            "artifactCollection": self.collection(found), "artifact": self.shown(found)}}}

    def on_FetchArtifactManifest(self, given, input):
        return {"artifact": {"currentManifest": {"file": {"directUrl": f"{self.address}/storage/manifest/{given['id']}"}}}}


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server, *args):
        self.state = server
        super().__init__(*args)

    def do_GET(self):
        given = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if path == "/graphql": return self.graphql(json.loads(given))
        self.state.asked.append(f"{self.command} {path}")
        if "file_stream" in path: return self.tell(b"{}")
        fault = next((f for part, f in self.state.faults.items() if part in path), None)
        if fault and fault[0] == "status": return self.tell(b"", fault[1])
        kind, _, name = path.removeprefix("/storage/").partition("/")
        if self.command == "PUT": return self.put(kind, name, given)
        held = self.state.by_id(name) if kind == "manifest" else None
        digest = next((part for part in path.split("/") if re.fullmatch("[0-9a-f]{32}", part)), "")
        content = held.manifest if held else self.state.files.get(digest)
        if not held and not self.allowed(): return self.tell(b"", 401)
        if content is None: return self.tell(b"", 404)
        if fault and fault[0] == "garble": content = bytes([content[0] ^ 1]) + content[1:]
        if fault and fault[0] == "short": content = content[:len(content) // 2]
        self.tell(content)

    do_POST = do_PUT = do_HEAD = do_GET

    def put(self, kind, name, given):
        with self.state.lock:
            if kind == "manifest": self.state.by_id(name).manifest = given
            elif kind == "file" and hashlib.md5(given).hexdigest() != name: return self.tell(b"", 400)
            elif kind == "file": self.state.files[name] = given
        self.tell(b"")

    def allowed(self): return self.headers.get("Authorization") == "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()

    def graphql(self, asked):
        if not self.allowed(): return self.tell(json.dumps({"errors": [{"message": "user is not logged in"}]}).encode(), 401)
        name = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]
        if fault := self.state.faults.get(name): return self.tell(json.dumps({"errors": [{"message": fault[2]}]}).encode(), fault[1])
        data = self.state.answer(asked["query"], asked.get("variables") or {})
        said = {"data": data} if data is not None else {"errors": [{"message": f"cannot answer {name}"}]}
        self.tell(json.dumps(said).encode())

    def tell(self, content, status=200):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(content)

    def log_message(self, *args): pass


@contextmanager
def loopback_wandb():
    "Serve runs and artifacts to the real client."
    state = Server()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Answer, state))
    state.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try: yield state
    finally: server.shutdown(); server.server_close()


def environment(home, server=None, key=KEY, **more):
    "The environment of a process whose W&B client has folders and settings of its own; without a server nobody answers it."
    env = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "NETRC"))}
    home.mkdir(parents=True, exist_ok=True)
    env |= {f"WANDB_{kind}DIR": str(home) for kind in ("", "CACHE_", "CONFIG_", "DATA_", "ARTIFACT_")}
    env |= {"HOME": str(home), "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "NO_PROXY": "*", "OMP_NUM_THREADS": "1"}
    env |= {"WANDB_BASE_URL": server.address if server else "http://127.0.0.1:9"} | ({"WANDB_API_KEY": key} if key else {}) | more
    return env


def client(code, home, server=None, *arguments, key=KEY, timeout=120, **more):
    "What such a process prints: the last line as JSON, or all of it where the code is a command line."
    begun, env = time.monotonic(), environment(home, server, key, **more)
    command = [*code, *map(str, arguments)] if isinstance(code, list) else [sys.executable, "-c", f"import json, sys\n{code}", *map(str, arguments)]
    done = subprocess.run(command, env=env, cwd=home, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout)
    assert done.returncode == 0, f"after {time.monotonic() - begun:.0f} s:\n{done.stderr[-4000:]}"
    return done.stdout if isinstance(code, list) else json.loads(done.stdout.strip().splitlines()[-1])
