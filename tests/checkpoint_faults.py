"Processes that are killed or run out of disk while they save; `test_checkpoints.py` starts them and reads what they found."
import json
import os
import random
import resource
import sys
from pathlib import Path

import torch
from faults import filled, forked, kill_after
from torch import nn

from flame_vision.core.errors import CheckpointError
from flame_vision.versioning import load_checkpoint, read_checkpoint, save_checkpoint


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
            acknowledge(start - 1)
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
