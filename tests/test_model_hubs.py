"Versions on the Hugging Face Hub and at Weights & Biases: the real clients, in processes of their own, against servers on loopback."
import json
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from loopback_hub import MEMBER, STRANGER, Repo, environment, loopback_hub, sha256, start
from loopback_wandb import KEY, loopback_wandb
from loopback_wandb import client as wandb_client
from loopback_wandb import environment as wandb_environment
from safetensors.torch import save
from wandb_record import read_records
from warm_processes import warm_processes

from flame_vision.versioning.manifest import Manifest, file_entry, manifest_text, parse_manifest, sealed

CARD = "---\nlicense: apache-2.0\nlibrary_name: flame-vision\ntags: [digits]\n---\n# digits\n"


def write_version(folder, version="1.0.0", seed=0, name="digits", files=(), **facts):
    "A version's folder, as a registry has it."
    torch.manual_seed(seed)
    contents = {"model.safetensors": save({"weight": torch.randn(200, 128)}), "config.yaml": b"name: tiny\n", "README.md": CARD.encode()}
    contents |= dict(files)
    (place := folder / f"of-{seed}" / name / version).mkdir(parents=True)
    for file, content in contents.items(): (place / file).write_bytes(content)
    entries = {file: file_entry(place / file) for file in contents}
    created = "2026-01-01T00:00:00+00:00"
    manifest = sealed(Manifest(name=name, version=version, created=created, architecture="tiny", parameters=25600, files=entries, **facts))
    (place / "manifest.json").write_text(manifest_text(manifest), encoding="utf-8", newline="\n")
    return place


def contents(folder): return {path.name: path.read_bytes() for path in folder.iterdir()}


COMMON = """
import contextlib, json, os, shutil, sys, warnings
from pathlib import Path
from flame_vision.core import FlameVisionError
from flame_vision.versioning import hub_models, wandb_artifacts
from flame_vision.versioning.stores import LocalStore
from flame_vision.versioning.versions import read_version
warnings.simplefilter("error")
warnings.simplefilter("ignore", DeprecationWarning)  # the clients' own

def stored(folder): return read_version(LocalStore(Path(folder).parents[1]), Path(folder).parent.name, Path(folder).name)

def pulled(fetched, into=None):
    with fetched as folder:
        if into: shutil.copytree(folder, into)
        told = f"{folder.parent.name}@{folder.name}"
    assert not folder.exists()
    return told

def ask(what, *arguments, environment=(), **options):
    before = dict(os.environ)
    os.environ.update(environment)
    try: return globals()[what](*arguments, **options)
    except FlameVisionError as e: return f"{type(e).__name__}: {e}"
    finally:
        if environment: os.environ.clear(); os.environ.update(before)
"""
ASK = COMMON + """
def push(folder, repo, **options): return hub_models.push_to_hub(stored(folder), repo, **options)
def pull(address, into=None, **options): return pulled(hub_models.pull_from_hub(address, **options), into)
"""
ONE_BY_ONE = ASK + "print(json.dumps([ask(*q, **o) for q, o in json.loads(sys.argv[1])]))"
AT_ONCE = ASK + """
from concurrent.futures import ThreadPoolExecutor
questions = json.loads(sys.argv[1])
with ThreadPoolExecutor(len(questions)) as pool: print(json.dumps(list(pool.map(lambda q: ask(*q[0], **q[1]), questions))))
"""


@pytest.fixture(scope="module")
def run():
    "Runs code in a process of its own, without the seconds that importing torch takes."
    checked = ["flame_vision.versioning.hub_models", "flame_vision.versioning.wandb_artifacts"]
    with warm_processes("flame_vision.versioning.registry", *checked, checked=checked) as run: yield run


@pytest.fixture
def ask(run):
    "What becomes of pushes and pulls, `(what, *arguments, {options})`, in one process: an address or a version, or an error."
    def ask(home, hub, *questions, code=ONE_BY_ONE, token=MEMBER):
        env = environment(home, hub, HF_HUB_DISABLE_PROGRESS_BARS="1", **({"HF_TOKEN": token} if token else {}))
        return run(code, home, env, json.dumps(split(questions)))
    return ask


def split(questions): return [(list(map(str, q[:-1])), q[-1]) if isinstance(q[-1], dict) else (list(map(str, q)), {}) for q in questions]
def says(answer, kind, *parts): return answer.startswith(f"{kind}: ") and "\n" not in answer and all(part in answer for part in parts)
def puts(hub): return [r for r in hub.requests if r.method == "PUT"]
def commits(hub): return [r for r in hub.requests if r.method == "POST" and "/commit/" in r.path]


def whole(repo):
    "Whether every commit of a repository that holds a manifest holds all that it lists, as it lists it."
    for commit, files in repo.commits.values():
        if "manifest.json" not in files: continue
        for name, entry in parse_manifest(files["manifest.json"], commit).files.items():
            if sha256(files[name]) != entry.sha256: return False
    return True


def test_a_version_goes_up_once_and_comes_down_the_same(ask, tmp_path):
    first, second = write_version(tmp_path / "here", files={"notes.md": b"of the first"}), write_version(tmp_path / "here", "1.1.0", 1)
    with loopback_hub() as hub:
        better = ("push", second, "hf://lab/digits", {"message": "Better"})
        told = ask(tmp_path / "ada", hub, ("push", first, "lab/digits", {"private": True}), better,
                   *(("push", version, "lab/digits") for version in (first, second)))
        assert told == ["hf://lab/digits@1.0.0", "hf://lab/digits@1.1.0"] * 2
        repo = hub.repos["lab/digits"]
        assert (repo.log, repo.tags, len(commits(hub)), len(puts(hub))) == ([("main", "digits@1.0.0"), ("main", "Better")], {"1.0.0", "1.1.0"}, 2, 2)
        assert repo.commits["1.0.0"][1] == contents(first) and repo.commits["main"][1] == repo.commits["1.1.0"][1] == contents(second)
        assert repo.access == "private" and {r.token for r in puts(hub)} == {None}, "the token stays with the hub"
        repo.commits["main"][1]["stray.bin"] = b"x" * 100
        into = {revision: tmp_path / f"pulled-{i}" for i, revision in enumerate(("@1.0.0", "@1.1.0", "", "@" + repo.commits["1.0.0"][0]))}
        told = ask(tmp_path / "grace", hub, *(("pull", f"hf://lab/digits{revision}", folder) for revision, folder in into.items()))
        assert told == ["digits@1.0.0", "digits@1.1.0", "digits@1.1.0", "digits@1.0.0"]
        assert [contents(folder) for folder in into.values()] == [contents(first), contents(second), contents(second), contents(first)]
        assert not hub.asked(name="stray.bin") and not hub.asked("HEAD", name="stray.bin"), "what no manifest lists is left alone"
        assert not list((tmp_path / "grace").glob("hub/models--*")), "the registry keeps the files; the client's cache need not"


def test_another_content_another_model_and_a_late_version(ask, tmp_path):
    first, other, newer = (write_version(tmp_path / "here", version, seed) for version, seed in (("1.0.0", 0), ("1.0.0", 1), ("2.0.0", 2)))
    late, branch = (write_version(tmp_path / "there", version, 3) for version in ("1.0.1", "3.0.0"))
    letters = write_version(tmp_path / "there", "5.0.0", name="letters")
    with loopback_hub({"lab/words": {"README.md": b"# Mine"}}) as hub:
        told = ask(tmp_path, hub, *(("push", v, "lab/digits") for v in (first, other, newer, letters, late)), ("push", branch, "lab/digits@try"),
                   ("push", letters, "lab/words"))
        addresses = ["lab/digits@1.0.0", "lab/digits@2.0.0", "lab/digits@1.0.1", "lab/digits@3.0.0", "lab/words@5.0.0"]
        assert [told[i] for i in (0, 2, 4, 5, 6)] == [f"hf://{address}" for address in addresses]
        assert says(told[1], "VersionExistsError", "lab/digits", "1.0.0", "never changes"), told[1]
        assert says(told[3], "RegistryError", "lab/digits", "letters"), told[3]
        repo = hub.repos["lab/digits"]
        held = {name: sha256(repo.commits[name][1]["model.safetensors"]) for name in repo.commits if len(name) < 40}
        assert held == {name: sha256((folder / "model.safetensors").read_bytes()) for name, folder in {
            "1.0.0": first, "2.0.0": newer, "main": newer, "1.0.1": late, "v1.0.1": late, "3.0.0": branch, "try": branch}.items()}


def test_a_push_that_was_cut_off_is_taken_up_where_it_was(ask, tmp_path):
    folder, other = write_version(tmp_path / "here"), write_version(tmp_path / "here", seed=1)
    steps = ("lab/uploads", "lab/commits", "lab/tags")
    with loopback_hub() as hub:
        for repo in steps: hub.repos[repo] = Repo({})
        hub.order("status", 400, method="PUT", repo="lab/uploads", name="")
        hub.order("lose", method="POST", repo="lab/commits", name="commit/main")  # it was done, and the client never heard of it
        hub.order("lose", method="POST", repo="lab/tags/tag", name="")
        broken = ask(tmp_path, hub, *(("push", folder, repo) for repo in steps), ("push", other, "lab/commits"), ("push", other, "lab/tags"))
        assert all(says(answer, "RegistryError", repo) for answer, repo in zip(broken, steps, strict=False)), broken
        assert all(says(answer, "VersionExistsError", "1.0.0") for answer in broken[3:]), "its number is taken, tagged or not"
        assert not hub.repos["lab/uploads"].log and not hub.repos["lab/commits"].tags and hub.repos["lab/tags"].tags == {"1.0.0"}
        held = hub.repos["lab/commits"].commits
        held["main"] = held["e" * 40] = ("e" * 40, held["main"][1] | {"config.yaml": b"name: tinY\n"})  # and somebody was at it meanwhile
        again = ask(tmp_path, hub, *(("push", folder, repo) for repo in steps))
        assert again == [f"hf://{repo}@1.0.0" for repo in steps]
        assert [len(hub.repos[repo].log) for repo in steps] == [1, 2, 1]
        for repo in steps: assert hub.repos[repo].commits["1.0.0"][1] == contents(folder)


def kill_at(home, hub, folder, repo, method, part):
    "Push, and kill the process as soon as the hub was asked for something."
    hub.order("wait", 1, method=method, repo=part, name="")
    process = start(ASK + "ask('push', sys.argv[1], sys.argv[2])", home, hub, str(folder), repo, HF_TOKEN=MEMBER)
    until = time.monotonic() + 60
    while not any(r.method == method and part in r.path for r in hub.requests) and time.monotonic() < until: time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_push_that_was_killed_leaves_nothing_half_done(ask, tmp_path):
    first, second = write_version(tmp_path / "here"), write_version(tmp_path / "here", "1.1.0", 1)
    with loopback_hub() as hub:
        steps = {"preupload": "POST", "batch": "POST", "/lfs/": "PUT", "verify": "POST", "/commit/": "POST", "/tag/": "POST", "/refs": "GET"}
        for i, (part, method) in enumerate(steps.items()):
            assert ask(tmp_path, hub, ("push", first, f"lab/m{i}")) == [f"hf://lab/m{i}@1.0.0"]
            hub.requests.clear()
            kill_at(tmp_path, hub, second, f"lab/m{i}", method, part)
            time.sleep(1.2)  # what was asked for before the process died is still done
            repo = hub.repos[f"lab/m{i}"]
            assert whole(repo) and repo.tags - {"1.1.0"} == {"1.0.0"}
            assert ask(tmp_path, hub, ("push", second, f"lab/m{i}"), ("pull", f"lab/m{i}@1.0.0")) == [f"hf://lab/m{i}@1.1.0", "digits@1.0.0"]
            assert repo.commits["1.1.0"][1] == contents(second) and len(repo.log) == 2


def test_who_push_at_once_all_get_there_and_of_one_number_one(ask, tmp_path):
    versions = [write_version(tmp_path / "here", f"1.{i}.0", i) for i in range(3)]
    same, another = write_version(tmp_path / "here", "9.0.0", 8), write_version(tmp_path / "here", "9.0.0", 9)
    with loopback_hub({"lab/digits": {}, "lab/nine": {}, "lab/busy": {}}) as hub:
        hub.order("status", 412, method="POST", repo="lab/busy", name="commit/main", times=2)
        told = ask(tmp_path, hub, *(("push", v, "lab/digits") for v in versions), *(("push", v, "lab/nine") for v in (same, another, same)),
                   ("push", same, "lab/busy"), code=AT_ONCE)
        repo = hub.repos["lab/digits"]
        assert told[:3] == [f"hf://lab/digits@1.{i}.0" for i in range(3)] and told[6] == "hf://lab/busy@9.0.0"
        assert whole(repo) and [repo.commits[f"1.{i}.0"][1] for i in range(3)] == [contents(v) for v in versions]
        nine = hub.repos["lab/nine"]
        won = contents(same) if told[3].startswith("hf://") else contents(another)
        assert nine.commits["9.0.0"][1] == nine.commits["main"][1] == won and len(nine.log) == 1, "one of two contents, and the branch holds the same"
        lost = [t for t in told[3:6] if not t.startswith("hf://")]
        assert len(lost) in (1, 2) and all(says(t, "VersionExistsError", "lab/nine") for t in lost), told


def spoiled(good):
    "What may be wrong with a version that comes from elsewhere: its files, the error, and words of the message."
    manifest = parse_manifest(good["manifest.json"], "here")
    entry, weights = manifest.files["config.yaml"], good["model.safetensors"]
    def less(file): return {k: v for k, v in good.items() if k != file}
    def flipped(file): return good | {file: good[file][:-9] + bytes([good[file][-9] ^ 1]) + good[file][-8:]}
    def resealed(**changes): return good | {"manifest.json": manifest_text(sealed(manifest.model_copy(update=changes))).encode()}
    newer = re.sub(rb'"schema_version": \d+', b'"schema_version": 99', good["manifest.json"])
    wrong = {f"flipped-{file}": (flipped(file), "TamperedError", file) for file in good}
    wrong |= {f"lacks-{file}": (less(file), "TamperedError", file) for file in good if file != "manifest.json"}
    return wrong | {
        "shorter": (good | {"model.safetensors": weights[:-1]}, "TamperedError", "model.safetensors"),
        "longer": (good | {"model.safetensors": weights + b"x"}, "TamperedError", "model.safetensors"),
        "plain": (less("manifest.json"), "RegistryError", "no manifest.json"),
        "outside": (resealed(files={**manifest.files, "../evil": entry}), "RegistryError", "../evil"),
        "itself": (resealed(files={**manifest.files, "Manifest.json": entry}), "TamperedError", "itself"),
        "name": (resealed(name="../evil"), "RegistryError", "../evil"), "version": (resealed(version="1"), "TamperedError", "'1'"),
        "newer": (good | {"manifest.json": newer}, "RegistryError", "99"),
        "list": (good | {"manifest.json": b"[1, 2]"}, "TamperedError", "manifest.json"),
        "deep": (good | {"manifest.json": b"[" * 99999}, "TamperedError", "manifest.json"),
        "empty": (good | {"manifest.json": b""}, "RegistryError", "0 bytes"),
        "huge": (good | {"manifest.json": b" " * (1 << 25) + b"{}"}, "RegistryError", "33,554,434")}


def test_what_is_not_as_its_manifest_says_is_refused(ask, tmp_path):
    good = contents(write_version(tmp_path / "here"))
    wrong, well = spoiled(good), ("short", "garbled", "down")
    with loopback_hub({f"lab/{name}": files for name, (files, *_) in wrong.items()} | {f"lab/{name}": good for name in well}) as hub:
        hub.order("short", 1000, repo="lab/short")
        hub.order("garble", 1000, repo="lab/garbled")
        hub.order("status", 503, repo="api/models/lab/down", name="")
        *told, short, garbled, down = ask(tmp_path, hub, *(("pull", f"hf://lab/{name}", tmp_path / "never") for name in (*wrong, *well)))
        for (name, (_, *wanted)), answer in zip(wrong.items(), told, strict=True): assert says(answer, *wanted), (name, answer)
        assert says(short, "RegistryError", "lab/short", "again"), short
        assert says(garbled, "TamperedError", "lab/garbled", "model.safetensors"), garbled
        assert says(down, "RegistryError", "lab/down", "503") and not (tmp_path / "never").exists()
        other = ("shorter", "longer", "flipped-model.safetensors")
        assert not any(hub.asked(repo=f"cdn/lab/{name}") for name in other), "what the hub itself says is other is not fetched"
        assert not hub.asked(repo="lab/huge", name="manifest.json")
        assert ask(tmp_path, hub, *(("pull", f"hf://lab/{name}") for name in well)) == ["digits@1.0.0"] * 3, "all is well again"


def test_who_may_not_who_is_nobody_and_what_is_not_there(ask, tmp_path):
    folder, badly = write_version(tmp_path / "here", "1.1.0", 1), write_version(tmp_path, files={"README.md": b"---\nlicense: [1\n---\n"})
    good = contents(write_version(tmp_path / "here"))
    repos = {"lab/private": Repo(good, "private"), "lab/gated": Repo(good, "gated"), "lab/ignores": Repo({}, ignored={"model.safetensors"}),
             "lab/open": Repo(good, revisions={"1.0.0": good}, tags={"1.0.0"})}
    member, stranger, stale = ({"token": token} for token in (MEMBER, STRANGER, "hf_stale"))
    cases = [(("pull", "lab/private"), "VersionNotFoundError", "lab/private", "hf auth login"),
             (("pull", "lab/private", stranger), "VersionNotFoundError", "lab/private"),
             (("pull", "lab/private", stale), "RegistryError", "token"), (("pull", "lab/gated"), "RegistryError", "lab/gated", "terms"),
             (("pull", "lab/gated", stranger), "RegistryError", "lab/gated", "terms"),
             (("pull", "lab/nothing"), "VersionNotFoundError", "lab/nothing"),
             (("pull", "lab/open@1.0"), "VersionNotFoundError", "'1.0'", "did you mean '1.0.0'"),
             (("push", folder, "lab/open"), "RegistryError", "nobody is logged in", "HF_TOKEN"),
             (("push", folder, "lab/open", stranger), "RegistryError", "403", "lab/open"),
             (("push", folder, "other/new", member), "RegistryError", "403", "other/new"),
             (("push", folder, "lab/ignores", member), "RegistryError", "model.safetensors", ".gitignore"),
             (("push", badly, "lab/cards", member), "RegistryError", "lab/cards", "Invalid metadata in README.md"),
             (("push", folder, "digits"), "RegistryError", "'digits'", "hf://owner/name"),
             (("pull", "hf://lab/../etc"), "RegistryError", "lab/../etc"),
             (("pull", "hf://lab/open@a@b"), "RegistryError", "a@b"), (("pull", "lab/open@1.0.0", {"revision": "2.0.0"}), "RegistryError", "2.0.0"),
             (("pull", "wandb://a/b/c"), "RegistryError", "wandb://a/b/c")]
    with loopback_hub(repos) as hub:
        told = ask(tmp_path, hub, *(question for question, *_ in cases), token=None)
        for (question, *wanted), answer in zip(cases, told, strict=True): assert says(answer, *wanted) and "hf_" not in answer, (question, answer)
        assert not hub.repos["lab/ignores"].tags and "other/new" not in hub.repos
        assert ask(tmp_path, hub, ("pull", "lab/private"), ("pull", "lab/gated", {"token": MEMBER})) == ["digits@1.0.0"] * 2
    offline = ask(tmp_path, None, ("pull", "lab/open"), ("push", folder, "lab/open"))
    gone = ask(tmp_path, hub, ("pull", "lab/open"), ("push", folder, "lab/open"))
    for answer in offline: assert says(answer, "RegistryError", "lab/open", "HF_HUB_OFFLINE"), offline
    for answer in gone: assert says(answer, "RegistryError", "lab/open", "cannot be reached", "again"), gone


REGISTRY = COMMON + """
import torch
from flame_vision.versioning import ModelRegistry
here, there = ModelRegistry("here"), ModelRegistry("there")
torch.manual_seed(0)
here.register("m", model=torch.nn.Linear(3, 2), config={"in_features": 3, "out_features": 2}, license="mit", metrics={"accuracy": 0.5})
here.register("m", model=torch.nn.Linear(3, 2), config={"in_features": 3, "out_features": 2}, tags=["a: b", "'"], parents=["m@1.0.0"])
addresses = [here.push("m", "1.0.0", to=sys.argv[1]), here.push("m", to=sys.argv[1])]
pulled = [there.pull(address) for address in (*addresses, addresses[0])]
with open(here.get("m").path / "config.yaml", "a") as file: file.write("# changed")
def again(): return here.push("m", to=sys.argv[2])
told = [ask("again"), there.verify()]
same = [torch.equal(here.load("m", "1.0.0").weight, there.load("m", "1.0.0").weight), here.get("m").manifest == there.get("m").manifest]
print(json.dumps([addresses, [str(v) for v in pulled], told, same]))
"""


@pytest.mark.parametrize("address", ["hf://lab/m", "wandb://lab/vision"])
def test_a_registry_pushes_and_another_pulls(run, tmp_path, address):
    with loopback_hub() as hub, loopback_wandb() as server:
        env = {k: v for k, v in environment(tmp_path, hub, HF_TOKEN=MEMBER, HF_HUB_DISABLE_PROGRESS_BARS="1").items() if not k.startswith("WANDB_")}
        env |= {k: v for k, v in wandb_environment(tmp_path, server).items() if k.startswith("WANDB_")}
        addresses, pulled, (tampered, wrong), same = run(REGISTRY, tmp_path, env, address, address + "2")
        assert addresses == [f"hf://lab/m@1.{i}.0" if address.startswith("hf") else f"wandb://lab/vision/m:1.{i}.0" for i in range(2)]
        assert pulled == ["m@1.0.0", "m@1.1.0", "m@1.0.0"] and same == [True, True] and wrong == {}
        assert says(tampered, "TamperedError", "m@1.1.0", "config.yaml") and not any("2" in repo for repo in hub.repos)


# Weights & Biases

WANDB = COMMON + """
import wandb
def push(folder, project=None, **options): return wandb_artifacts.push_to_wandb(stored(folder), project, **options)
def pull(address, into=None, **options): return pulled(wandb_artifacts.pull_from_wandb(address, **options), into)

def push_from_run(folder, **options):
    with wandb.init(project="vision", entity="lab", settings=wandb.Settings(silent=True, console="off", init_timeout=30)) as run:
        told = [ask("push", folder, **options), ask("push", folder, "elsewhere", run=run)]
        run.log({"still": 1})  # it goes on
    return told

print(json.dumps([ask(*q, **o) for q, o in json.loads(sys.argv[1])]))
"""


@pytest.fixture
def ask_wandb(run):
    def ask(home, server, *questions, **more): return run(WANDB, home, wandb_environment(home, server, **more), json.dumps(split(questions)))
    return ask


def test_an_artifact_goes_up_once_with_its_parents_and_comes_down_the_same(ask_wandb, tmp_path):
    first, second = write_version(tmp_path / "here"), write_version(tmp_path / "here", "1.1.0", 1, parents=["digits@1.0.0", "gone@1.0.0", "odd"])
    other, third = write_version(tmp_path / "here", seed=2), write_version(tmp_path / "here", "1.2.0", 3)
    with loopback_wandb() as server:
        told = ask_wandb(tmp_path / "ada", server, ("push", first, "wandb://lab/vision"), ("push", second, "vision", {"aliases": ["champion"]}),
                         ("push", first, "vision"), ("push", other, "vision"), ("push", first, "wandb://team/other/renamed"),
                         ("push_from_run", third))
        assert told[:3] == ["wandb://lab/vision/digits:1.0.0", "wandb://lab/vision/digits:1.1.0", "wandb://lab/vision/digits:1.0.0"]
        assert says(told[3], "VersionExistsError", "digits:1.0.0", "never changes") and told[4] == "wandb://team/other/renamed:1.0.0", told
        assert told[5][0] == "wandb://lab/vision/digits:1.2.0" and says(told[5][1], "RegistryError", "lab/vision", "elsewhere"), told
        assert not server.unknown, server.unknown
        digits = [a for a in server.artifacts if a.place == ("lab", "vision", "digits")]
        assert [a.aliases for a in digits] == [{"1.0.0"}, {"1.1.0", "champion"}, {"1.2.0", "latest"}]
        assert [(run in server.runs, server.by_id(artifact)) for run, artifact in server.used] == [(True, digits[0])], "the parent that is there"
        assert len(server.runs) == 4, "what is there already needs no run"
        metadata, said = json.loads(digits[1].about["metadata"]), parse_manifest((second / "manifest.json").read_bytes(), "here")
        assert metadata == said.model_dump(mode="json", exclude={"files"}) and digits[1].about["description"] == CARD
        into = {alias: tmp_path / f"pulled-{i}" for i, alias in enumerate((":1.0.0", ":champion", "", ":v0"))}
        told = ask_wandb(tmp_path / "grace", server, *(("pull", f"wandb://lab/vision/digits{alias}", folder) for alias, folder in into.items()),
                         ("pull", "wandb://team/other/renamed:1.0.0"))
        assert told == ["digits@1.0.0", "digits@1.1.0", "digits@1.2.0", "digits@1.0.0", "digits@1.0.0"]
        assert [contents(folder) for folder in into.values()] == [contents(folder) for folder in (first, second, third, first)]
        assert len(list((tmp_path / "ada").glob("**/run-*/*.wandb"))) == 1, "of the runs, only the user's own is kept on this machine"


def test_an_artifact_waits_offline_and_is_sent_later(ask_wandb, tmp_path):
    folder, home = write_version(tmp_path / "here", parents=["digits@0.9.0"]), tmp_path / "ada"
    told, = ask_wandb(home, None, ("push", folder, "wandb://lab/vision", {"aliases": ["champion"]}), key=None)
    run, = home.glob("**/offline-run-*")
    assert told == f"kept offline as digits:1.0.0, to be sent with: wandb sync {run}"
    record, = (r.artifact for r in read_records(next(run.glob("*.wandb"))) if r.HasField("artifact"))
    assert (record.name, record.type, record.project, record.entity) == ("digits", "model", "vision", "lab")
    assert sorted(record.aliases) == ["1.0.0", "champion", "latest"]
    assert json.loads(record.metadata)["parents"] == ["digits@0.9.0"] and record.description == CARD
    good = contents(folder)
    for path in folder.iterdir(): path.write_bytes(b"gone")
    assert {e.path: Path(e.local_path).read_bytes() for e in record.manifest.contents} == good, "W&B keeps a copy of its own"
    with loopback_wandb() as server:
        wandb_client([sys.executable, "-m", "wandb", "sync", str(run)], home, server)
        assert not server.unknown and [sorted(a.aliases) for a in server.artifacts] == [["1.0.0", "champion", "latest"]]
        assert ask_wandb(tmp_path / "grace", server, ("pull", "wandb://lab/vision/digits:1.0.0", tmp_path / "pulled")) == ["digits@1.0.0"]
    assert contents(tmp_path / "pulled") == good


def test_an_artifact_that_is_not_as_its_manifest_says_is_refused(ask_wandb, tmp_path):
    good = contents(write_version(tmp_path / "here"))
    kinds = [*(f"flipped-{file}" for file in good), "lacks-config.yaml", "shorter", "plain", "outside", "name", "empty"]
    wrong, well = {name: case for name, case in spoiled(good).items() if name in kinds}, ("garbled", "cut")
    size = parse_manifest(good["manifest.json"], "here").files["config.yaml"].size
    wrong["reference"] = ({k: v for k, v in good.items() if k != "config.yaml"}, "TamperedError", "file:///etc/hostname")
    with loopback_wandb() as server:
        for name, (files, *_) in wrong.items():
            extra = {"config.yaml": {"digest": "x", "ref": "file:///etc/hostname", "size": size}} if name == "reference" else {}
            server.add(("lab", "vision", name), files, extra=extra)
        for name in well: server.add(("lab", "vision", name), good)
        server.faults |= {"/garbled/": ("garble",), "/cut/": ("short",)}
        questions = [("pull", f"wandb://lab/vision/{name}", tmp_path / "never") for name in (*wrong, *well)]
        *told, garbled, cut = ask_wandb(tmp_path / "ada", server, *questions)
        for (name, (_, *wanted)), answer in zip(wrong.items(), told, strict=True): assert says(answer, *wanted), (name, answer)
        assert says(garbled, "TamperedError", "lab/vision/garbled") and says(cut, "TamperedError", "lab/vision/cut"), (garbled, cut)
        assert not (tmp_path / "never").exists()
        server.faults.clear()
        assert ask_wandb(tmp_path / "ada", server, *(question[:2] for question in questions[-2:])) == ["digits@1.0.0"] * 2


def test_nobody_is_asked_for_a_login_and_every_refusal_is_one_line(ask_wandb, tmp_path):
    folder = write_version(tmp_path / "here")
    with loopback_wandb() as server:
        server.add(("lab", "vision", "digits"), contents(folder))
        pulls = [("pull", f"wandb://lab/vision/{name}") for name in ("digits:3.0.0", "letters", "digits")]
        wrong = [("pull", "wandb://lab/vision"), ("pull", "hf://a/b"), ("push", folder, "a/b/c/d"), ("push", folder, "vi?sion")]
        told = ask_wandb(tmp_path / "a", server, *pulls, ("pull", "wandb://lab/elsewhere/digits"), *wrong)
        assert told[2] == "digits@1.0.0"
        for i, part in {0: "digits:3.0.0", 1: "letters:latest", 3: "lab/elsewhere"}.items(): assert says(told[i], "VersionNotFoundError", part), told
        for answer in told[4:]: assert says(answer, "RegistryError", "wandb://"), told
        stranger = ask_wandb(tmp_path / "c", server, pulls[2], ("push", folder, "vision"), key="f" * 40)
        def under(mode): return {"environment": {"WANDB_MODE": mode}}
        nobody = ask_wandb(tmp_path / "b", server, pulls[2], (*pulls[2], under("online")), ("push", folder, "vision", under("online")),
                           (*pulls[2], {"environment": {"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}}),
                           *(("push", folder, "vision", under(mode)) for mode in ("disabled", "sometimes")), key=None)
        (tmp_path / "netrc").write_text(f"machine {server.address.removeprefix('http://')} login user password {KEY}\n")
        (tmp_path / "netrc").chmod(0o600)
        by_file = ask_wandb(tmp_path / "g", server, pulls[2], key=None, NETRC=str(tmp_path / "netrc"))
        assert by_file == ["digits@1.0.0"]
        for answer in (*stranger, *nobody[:3]): assert says(answer, "RegistryError", "wandb login") and "f" * 40 not in answer, answer
        for answer, mode in zip(nobody[3:5], ("offline", "disabled"), strict=True): assert says(answer, "RegistryError", f"WANDB_MODE={mode}"), answer
        assert says(nobody[5], "ConfigError", "sometimes"), nobody


@pytest.mark.slow  # the client tries again for as long as it may
def test_a_server_that_breaks_down_or_cannot_be_reached(ask_wandb, tmp_path):
    folder = write_version(tmp_path / "here")
    with loopback_wandb() as server:
        server.faults["CommitArtifact"] = ("status", 400, "no room left")
        refused = ask_wandb(tmp_path / "a", server, ("push", folder, "vision", {"timeout": 20}))
        assert says(refused[0], "RegistryError", "vision") and not server.versions(("lab", "vision", "digits")), refused
        server.faults.clear()
        assert ask_wandb(tmp_path / "a", server, ("push", folder, "vision")) == ["wandb://lab/vision/digits:1.0.0"]
    gone = ask_wandb(tmp_path / "b", None, ("pull", "wandb://lab/vision/digits", {"timeout": 5}), ("push", folder, "vision", {"timeout": 5}))
    for answer in gone: assert says(answer, "RegistryError", "vision"), gone
