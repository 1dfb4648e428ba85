"Processes that are killed, crowd each other, or run out of disk, for `test_versioning.py` and `test_registry_remote.py`."
import json
import os
import random
import resource
import signal
import sys
import time
from contextlib import suppress

import torch
from faults import filled, forked, kill_after
from torch import nn

import flame_vision.versioning.rebuild  # noqa: F401  (once, and not in each child)
from flame_vision.core.errors import RegistryError, StoreError
from flame_vision.versioning import ModelRegistry


def opened(place):
    "A registry, from a folder or from an address with its options, as JSON."
    if not place.startswith("{"): return ModelRegistry(place)
    said = json.loads(place)
    return ModelRegistry(said.pop("root"), **said)


def kill_registrations(place, times, longest=25):
    """Kill writers that register and move an alias, and watch as a reader meanwhile.

    `longest` is the longest life of a writer, in hundredths of a second.
    """
    registry, versions, moves, reads = opened(place), {"1.0.0"}, 0, 0
    registry.register("m", model=filled(0), metrics={"number": 0})

    def watch():
        nonlocal reads
        for version in registry.found("m")[-1:]:
            assert version.metrics["number"] >= 0 and len(version.files) == 2
            assert len(version.read("README.md")) > 100
            reads += 1
        if registry.store.folders("m/aliases"):
            with suppress(RegistryError): assert registry.get("m@champion").metrics["number"] >= 0
        time.sleep(0.002)

    for _ in range(times):
        def write(acknowledge):
            mine = opened(place)
            acknowledge("ready 0")
            for number in range(10_000):
                version = mine.register("m", model=filled(number), metrics={"number": number}).version
                acknowledge(f"version {version}")
                acknowledge(f"move {mine.alias('m', 'champion', version, why='newest').number}")
        said = [line.split() for line in kill_after(*forked(write), random.uniform(0.02, longest / 100), watch)]
        versions |= {word for kind, word in said if kind == "version"}
        moves = max([moves, *(int(word) for kind, word in said if kind == "move")])
    there = registry.versions("m")
    assert versions <= set(there), "a finished registration was lost"
    assert registry.verify() == {}
    history = registry.history("champion")
    assert len(history) >= moves, "a finished move was lost"
    assert all(a.to_version == b.from_version for a, b in zip(history, history[1:]))
    for version in there[-3:]:
        model = registry.load("m", version, model=nn.Linear(512, 1024))
        assert (model.weight == model.version.metrics["number"]).all()
    left = registry.gc(older_than=-60)
    assert registry.gc(older_than=-60) == [] and registry.versions("m") == there and registry.verify() == {}
    needed = {f"m/{v}/{file}" for v in there for file in ("README.md", "manifest.json", "model.safetensors")}
    strange = {k for k in registry.store.files() if not k.startswith("m/aliases/") and k != ".first"} - needed
    return {"leftovers": left, "versions": len(there), "moves": len(history), "reads": reads, "strange": sorted(strange)}


def crowd(place, writers, each):
    "Writers register with `auto` and move one alias, while a reader loads."
    def write(acknowledge):
        registry = opened(place)
        for _ in range(each):
            version = registry.register("m", model=nn.Linear(2, 2)).version
            registry.alias("m", "champion", version)
            acknowledge(version)

    def read(acknowledge):
        registry, model, end = opened(place), nn.Linear(2, 2), time.monotonic() + 600
        acknowledge("ready")
        while time.monotonic() < end:
            if "m@champion" in registry:
                registry.load("m", "champion", model=model)
                acknowledge("read")

    reader, pipe = forked(read)
    while not pipe.read(): time.sleep(0.001)
    children = [forked(write) for _ in range(writers)]
    made = []
    for child, said in children:
        os.waitpid(child, 0)
        made += said.read().decode().split()
    os.kill(reader, signal.SIGKILL)
    os.waitpid(reader, 0)
    registry = opened(place)
    assert registry.verify() == {}
    history = registry.history("champion")
    assert all(a.to_version == b.from_version for a, b in zip(history, history[1:])), "the history is no line"
    return {"made": sorted(made), "there": sorted(registry.versions("m")), "moves": len(history), "reads": (pipe.read() or b"").count(b"read"),
            "leftovers": registry.gc(older_than=-60)}


def full_disk(folder):
    "Nothing longer than 1 MB can be written here; the model has 2."
    os.chdir(folder)
    registry = ModelRegistry("registry")
    registry.register("m", model=nn.Linear(4, 4))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    return full(registry)


def full(registry):
    "What a registry says when it is full, and what is left of it."
    try: registry.register("m", model=filled(1)); error = None
    except RegistryError as e: error = str(e)
    with suppress(StoreError): registry.load("m", model=nn.Linear(4, 4))
    return {"error": error, "files": sorted(registry.store.files()), "versions": registry.versions("m"), "wrong": registry.verify()}


def small_disk(folder):
    "The registry lies on a disk of 1 MB."
    registry = ModelRegistry(folder)
    registry.register("m", model=nn.Linear(4, 4))
    return full(registry)


def memory(roots, name):
    "Bytes of memory that loading from all of these registries takes at most, beside what the process had."
    before, errors = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for root in json.loads(roots):
        try: ModelRegistry(root).load(name); errors.append("")
        except RegistryError as e: errors.append(f"{type(e).__name__}: {e}")
    return {"bytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, "errors": errors}


def load_again(root, name, inputs):
    return ModelRegistry(root).load(name)(torch.load(inputs)).tolist()


if __name__ == "__main__":
    torch.set_num_threads(1)
    task, *arguments = sys.argv[1:]
    random.seed(0)
    print(json.dumps(globals()[task](*(json.loads(a) if a.isdigit() else a for a in arguments))))
