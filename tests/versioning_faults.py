"Processes that are killed, crowd each other, or run out of disk; `test_versioning.py` starts them and reads what they found."
import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from flame_vision.core.errors import CheckpointError, RegistryError
from flame_vision.versioning import ModelRegistry, load_checkpoint, read_checkpoint, save_checkpoint


def forked(work):
    "Run `work(acknowledge)` in a child; gives its process id and the pipe that the acknowledgements come through."
    out, into = os.pipe()
    if child := os.fork():
        os.close(into)
        os.set_blocking(out, False)
        return child, open(out, "rb")
    try: work(lambda said: os.write(into, f"{said}\n".encode()))
    except BaseException as e: os.write(2, f"writer: {e!r}\n".encode())
    finally: os._exit(0)


def filled(number):
    "A network of 2 MB, all of whose weights are one number."
    model = nn.Linear(512, 1024)
    for p in model.parameters(): nn.init.constant_(p, number)
    return model


def kill_after(child, pipe, seconds, watch):
    "Watch until the time is over, kill the child, and give what it had acknowledged."
    end = time.monotonic() + seconds
    while time.monotonic() < end: watch()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return (pipe.read() or b"").decode().split("\n")[:-1]


def kill_saves(folder, times):
    path, leftovers, reads = Path(folder, "model.pt"), 0, 0
    save_checkpoint(filled(0), epoch=0, path=path)

    def check():
        nonlocal reads
        content = read_checkpoint(path)
        assert all((t == content["epoch"]).all() for t in content["model"].values()), "weights and epoch of two different saves"
        reads += 1
        return content["epoch"]

    for _ in range(times):
        start = check() + 1
        def write(acknowledge, start=start):
            for epoch in range(start, start + 10_000):
                save_checkpoint(filled(epoch), epoch=epoch, path=path)
                acknowledge(epoch)
        done = kill_after(*forked(write), random.uniform(0.01, 0.12), check)
        assert check() >= max(map(int, done), default=start - 1), "a finished save was lost"
        left = list(Path(folder).glob(".*.tmp"))
        leftovers += len(left)
        for file in left: file.unlink()
    return {"leftovers": leftovers, "reads": reads, "epoch": check()}


def kill_registrations(folder, times):
    registry, acknowledged = ModelRegistry(folder), set()

    def watch():
        if "m" in registry: assert registry.get("m").metrics["number"] >= 0
        time.sleep(0.002)

    for _ in range(times):
        def write(acknowledge):
            for number in range(10_000): acknowledge(registry.register("m", model=filled(number), metrics={"number": number}).version)
        acknowledged |= set(kill_after(*forked(write), random.uniform(0.02, 0.25), watch))
    assert acknowledged <= set(registry.versions("m")), "a finished registration was lost"
    assert registry.verify() == {}
    for version in registry.versions("m")[-3:]:
        model = registry.load("m", version, model=nn.Linear(512, 1024))
        assert (model.weight == model.version.metrics["number"]).all()
    return {"leftovers": len(list(Path(folder, "m").glob(".tmp-*"))), "versions": len(registry.versions("m")), "listed": registry.list()}


def crowd(folder, writers, each):
    def write(acknowledge):
        for _ in range(each): acknowledge(ModelRegistry(folder).register("m", model=nn.Linear(2, 2)).version)
    children, made = [forked(write) for _ in range(writers)], []
    for child, pipe in children:
        os.waitpid(child, 0)
        made += pipe.read().decode().split()
    registry = ModelRegistry(folder)
    assert registry.verify() == {}
    return {"made": sorted(made), "there": sorted(registry.versions("m"))}


def full_disk(folder):
    "Nothing longer than 1 MB can be written here; the checkpoint and the model have 2."
    os.chdir(folder)
    small, registry = nn.Linear(4, 4), ModelRegistry("registry")
    save_checkpoint(small, epoch=7, path="model.pt")
    registry.register("m", model=small)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    errors = []
    try: save_checkpoint(filled(1), epoch=8, path="model.pt")
    except CheckpointError as e: errors.append(str(e))
    try: registry.register("m", model=filled(1))
    except RegistryError as e: errors.append(str(e))
    epoch = load_checkpoint("model.pt", nn.Linear(4, 4)).epoch
    files = sorted(str(p) for p in Path(".").rglob("*") if p.is_file())
    return {"errors": errors, "epoch": epoch, "files": files, "versions": registry.versions("m"), "wrong": registry.verify()}


def load_again(root, name, inputs):
    return ModelRegistry(root).load(name)(torch.load(inputs)).tolist()


if __name__ == "__main__":
    torch.set_num_threads(1)
    task, *arguments = sys.argv[1:]
    random.seed(0)
    print(json.dumps(globals()[task](*(json.loads(a) if a.isdigit() else a for a in arguments))))
