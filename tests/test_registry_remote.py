"The registry in an S3 bucket: moto's server on loopback through the real client, with 500s, silence and lost connections."
import importlib
import json
import os
import sys
import threading
import time
import warnings
from contextlib import suppress

import faults
import fsspec
import pytest
import torch
from loopback_s3 import BUCKET, loopback_s3
from torch import nn

from flame_vision.core.errors import (
    ConfigError,
    MissingExtraError,
    RegistryError,
    StoreError,
    TamperedError,
    VersionExistsError,
    VersionNotFoundError,
)
from flame_vision.models import resnet18
from flame_vision.versioning import ModelRegistry
from flame_vision.versioning.remote_stores import RemoteStore, open_store
from flame_vision.versioning.stores import token_name

pytestmark = pytest.mark.filterwarnings("ignore:.*no configuration builds")
FILES = ["README.md", "manifest.json", "model.safetensors"]


@pytest.fixture(scope="module")
def server():
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    with loopback_s3() as opened: yield opened


@pytest.fixture
def place(server, request):
    "The server without faults, and a prefix of the bucket that is this test's."
    faulty, options = server
    faulty.chance, faulty.kinds, faulty.ignores = 0.0, ("500", "503", "after", "lost", "silent"), False
    yield faulty, f"s3://{BUCKET}/{request.node.name}", options
    faulty.chance, faulty.ignores = 0.0, False


@pytest.fixture
def registry(place): return ModelRegistry(place[1], **place[2])


def small(value=0.0):
    model = nn.Linear(3, 2)
    for p in model.parameters(): nn.init.constant_(p, value)
    return model


def in_process(task, root, options, *arguments, timeout=300):
    return faults.in_process("versioning_faults.py", task, json.dumps({"root": root, **options}), *arguments, timeout=timeout)


def live(registry):
    "The same life in any place."
    first = registry.register("net", model=small(1.0), metrics={"accuracy": 0.5}, files={"notes.md": b"# Notes\n"}, tags=["a"])
    second = registry.register("net", model=small(2.0), metrics={"accuracy": 0.7}, parents=[first])
    registry.register("net", "1.0.1", model=small(3.0))
    registry.register("bird", model=resnet18(num_classes=3), class_names=["a", "b", "c"], input_shape=[1, 3, 32, 32])
    registry.alias("net", "champion", "1.0.0", why="first")
    registry.alias("net", "champion", ">=1.1", why="better")
    registry.alias("net", "canary", "1.0.1")
    registry.alias("net", "canary", None)
    registry.delete("net", "1.0.1", why="wrong data")
    return second


def answers(registry):
    return {
        "list": registry.list(), "versions": registry.versions("net"), "aliases": registry.aliases("net"),
        "champion": registry.get("net@champion").version,
        "history": [(m.from_version, m.to_version, m.why) for m in registry.history("champion")], "verify": registry.verify(),
        "search": [str(v) for v in registry.search(metrics="accuracy>0.1", sort="accuracy")], "lineage": str(registry.lineage("net@1.1.0")),
        "diff": registry.diff("net@1.0.0", "1.1.0").to_dict()["changes"]["metrics"], "deleted": [str(v) for v in registry.found(deleted=True)],
        "classes": registry.load("bird").class_names, "weight": float(registry.load("net", "1.0", model=small()).weight[0, 0]),
        "keys": sorted(k for k in registry.store.files() if k != ".first")}


def test_the_same_life_in_a_bucket_and_in_a_folder(registry, tmp_path):
    local = ModelRegistry(tmp_path / "local")
    live(registry), live(local)
    assert answers(registry) == answers(local)
    assert [k for k in registry.store.files() if k.startswith("net/1.0.1/")] == ["net/1.0.1/manifest.json", "net/1.0.1/tombstone.json"]


def test_copying_the_files_copies_the_registry(registry, tmp_path):
    live(registry)
    registry.store.fs.get(registry.store.root + "/", str(tmp_path / "copy") + "/", recursive=True)
    assert answers(ModelRegistry(tmp_path / "copy")) == answers(registry)


def test_versions_travel_between_places(registry, tmp_path):
    local = ModelRegistry(tmp_path / "local")
    second = live(local)
    address = local.push("net@champion", to=registry)
    assert address == f"{registry.root}/net/1.1.0" and registry.get("net").manifest == second.manifest
    assert local.push("net@champion", to=registry) == address and registry.versions("net") == ["1.1.0"]
    registry.register("net", "1.0.0", model=small(9.0))
    with pytest.raises(VersionExistsError): local.push("net@1.0.0", to=registry)
    back = ModelRegistry(tmp_path / "back")
    registry.push("net@1.0.0", to=back)
    assert float(back.load("net", "1.0.0", model=small()).bias[0]) == 9.0


@pytest.mark.parametrize("kind", ["500", "after", "lost", *(pytest.param(k, marks=pytest.mark.slow) for k in ("503", "silent"))])
def test_faults_change_nothing(place, kind):
    "Every tenth request fails in one way; what was asked for happens once, and a reader sees whole versions only."
    faulty, root, options = place
    registry, reader, stop, seen = ModelRegistry(root, **options), ModelRegistry(root, **options), threading.Event(), []

    def read():
        while not stop.is_set():
            for version in reader.found("net"):
                with suppress(VersionNotFoundError):  # one is deleted meanwhile
                    seen.append(len(version.read("README.md")) > 0 and len(version.files) == 2)
            time.sleep(0.05)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        faulty.injected.clear()
        faulty.kinds, faulty.chance = (kind,), 0.1
        made = [registry.register("net", model=small(i)).version for i in range(3)]
        for version in made: registry.alias("net", "champion", version)
        with pytest.raises(VersionExistsError): registry.register("net", "1.1.0", model=small())
        registry.delete("net", "1.0.0")
        weights = [float(registry.load("net", v, model=small()).bias[0]) for v in made[1:]]
        faulty.chance, end = 0.0, time.monotonic() + 20
        while not seen and time.monotonic() < end: time.sleep(0.05)
    finally: stop.set(); thread.join(60); faulty.chance = 0.0
    assert made == ["1.0.0", "1.1.0", "1.2.0"] and weights == [1.0, 2.0] and registry.versions("net") == made[1:]
    assert [m.to_version for m in registry.history("champion")] == made and registry.verify() == {}
    assert seen and all(seen) and len(faulty.injected) > 5
    registry.gc(older_than=-60)
    assert {k.rpartition("/")[2] for k in registry.store.files("net/1.2.0")} == {
        "manifest.json", *(f for f in FILES if f"net/1.2.0/{f}" in registry.store.files()),
        *(token_name(f, registry.get("net").id) for f in FILES if f"net/1.2.0/{f}" not in registry.store.files())}


def test_a_server_that_is_down_is_one_line(place):
    faulty, root, options = place
    quick = {**options, "config_kwargs": {"read_timeout": 1, "connect_timeout": 1, "retries": {"max_attempts": 0}}}
    registry = ModelRegistry(root, **quick)
    registry.register("net", model=small())
    faulty.kinds, faulty.chance = ("500",), 1.0
    calls = {"register": lambda: registry.register("net", model=small()), "load": lambda: registry.load("net", model=small()), "list": registry.list,
             "alias": lambda: registry.alias("net", "champion"), "verify": registry.verify, "gc": registry.gc,
             "delete": lambda: registry.delete("net@1.0.0")}
    for name, call in calls.items():
        with pytest.raises(RegistryError) as caught: call()
        assert not isinstance(caught.value, TamperedError) and "\n" not in str(caught.value) and root in str(caught.value), (name, caught.value)
    faulty.chance = 0.0
    assert registry.versions("net") == ["1.0.0"] and registry.verify() == {} and registry.aliases("net") == {}
    gone = ModelRegistry(root, **{**quick, "endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(StoreError): gone.list()
    assert "127.0.0.1:9" in repr(gone)


def test_a_writer_that_died_is_in_nobodys_way(registry):
    "Its files stay under their names; the next writer of the same number takes others, and is read rightly."
    fs, at = registry.store.fs, registry.store.at
    for file in ("model.safetensors", "README.md"): fs.pipe_file(at(f"net/1.0.0/{file}"), b"of a dead writer")
    fs.pipe_file(at("net/1.1.0/.claim"), b"of a dead writer")
    assert registry.list() == [] and "net" not in registry
    version = registry.register("net", "1.0.0", model=small(4.0))
    assert float(registry.load("net", "1.0.0", model=small()).bias[0]) == 4.0
    assert registry.register("net", model=small()).version == "1.2.0"
    assert registry.gc() == []
    assert registry.gc(older_than=-60) == ["net/1.0.0/README.md", "net/1.0.0/model.safetensors", "net/1.1.0/.claim"]
    assert registry.verify() == {} and b"# net" in version.read("README.md")
    assert float(registry.load("net", "1.0.0", model=small()).bias[0]) == 4.0


def test_tampered_objects(registry):
    version = live(registry)
    fs = registry.store.fs
    for file in (*FILES,):
        path = registry.store.at(f"net/1.1.0/{file}")
        whole = fs.cat_file(path)
        for changed in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1], b"", whole + b"\0"):
            fs.pipe_file(path, changed)
            with pytest.raises(TamperedError, match=file): registry.load("net", "1.1.0", model=small())
        fs.rm_file(path)
        with pytest.raises((TamperedError, VersionNotFoundError)): registry.load("net", "1.1.0", model=small())
        fs.pipe_file(path, whole)
    assert registry.verify() == {} and float(registry.load(str(version), model=small()).bias[0]) == 2.0


def test_a_place_without_conditional_writes_is_pointed_out(place):
    faulty, root, options = place
    faulty.ignores = True
    with pytest.warns(UserWarning, match="ignores conditional writes"): ModelRegistry(root, **options).register("net", model=small())
    faulty.ignores = False
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*conditional writes")
        ModelRegistry(root + "-other", **options).register("net", model=small())


def test_addresses(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="nowhere"): open_store("nowhere://bucket")
    with pytest.raises(ConfigError, match="takes no options"): ModelRegistry(tmp_path, key="x")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr(fsspec.core, "get_filesystem_class", lambda protocol: importlib.import_module(f"{protocol}fs"))
    with pytest.raises(MissingExtraError, match=r"flame-vision\[s3\]"): open_store("s3://bucket/models")


def test_large_files_go_up_in_parts(registry, monkeypatch):
    "A file of several parts is created once too."
    put = registry.store.fs.put_file
    monkeypatch.setattr(registry.store.fs, "put_file", lambda *a, **k: put(*a, chunksize=5 << 20, **k))
    model = nn.Linear(2048, 2048)
    registry.register("net", "1.0.0", model=model)
    other = RemoteStore(registry.store.address, **registry.store.options)
    assert torch.equal(ModelRegistry(other.address, **other.options).load("net", model=nn.Linear(2048, 2048)).weight, model.weight)
    with pytest.raises(VersionExistsError): registry.register("net", "1.0.0", model=model)


@pytest.mark.parametrize("times", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_while_registering(place, times):
    found = in_process("kill_registrations", place[1], place[2], times, 250, timeout=900)
    assert found["versions"] > 1 and found["moves"] > 0 and found["reads"] > 0 and found["strange"] == []
    assert times < 10 or found["leftovers"], "no process was killed in the middle of a write: the test tests nothing"


@pytest.mark.parametrize("writers, each", [(3, 4), pytest.param(8, 50, marks=pytest.mark.slow)])
def test_crowded(place, writers, each):
    found = in_process("crowd", place[1], place[2], writers, each, timeout=1800)
    assert found["made"] == found["there"] and len(set(found["made"])) == writers * each == found["moves"]
    assert found["reads"] > 0
