"Processes that are killed or run out of disk while they save; `test_checkpoints.py` starts them and reads what they found."
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

from flame_vision.core.errors import CheckpointError
from flame_vision.versioning import load_checkpoint, read_checkpoint, save_checkpoint


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


def full_disk(folder):
    "Nothing longer than 1 MB can be written here; the checkpoint has 2."
    os.chdir(folder)
    save_checkpoint(nn.Linear(4, 4), epoch=7, path="model.pt")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try: save_checkpoint(filled(1), epoch=8, path="model.pt")
    except CheckpointError as e: error = str(e)
    return {"error": error, "epoch": load_checkpoint("model.pt", nn.Linear(4, 4)).epoch, "files": sorted(os.listdir("."))}


def read_all(folder):
    "Read every file there is; gives the errors by name, and by how many MB the process grew meanwhile."
    def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    errors, before = {}, peak()
    for path in sorted(Path(folder).iterdir()):
        try: read_checkpoint(path)
        except Exception as e: errors[path.name] = type(e).__name__
    return {"errors": errors, "grown": peak() - before}


if __name__ == "__main__":
    torch.set_num_threads(1)
    task, *arguments = sys.argv[1:]
    random.seed(0)
    print(json.dumps(globals()[task](*(json.loads(a) if a.isdigit() else a for a in arguments))))
