"What tests of killed writers share: children that acknowledge what they have done, and are killed at a random moment."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from torch import nn


def in_process(script, task, *arguments, timeout=300):
    "Run a task of a script beside this one in a fresh process, and give what it reports."
    asked = [sys.executable, "-W", "ignore", Path(__file__).with_name(script), task, *map(str, arguments)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0 and "writer:" not in done.stderr, done.stderr
    return json.loads(done.stdout)


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
    "Watch until the time is over that began with the child's first word, kill the child, and give what it had acknowledged."
    while not (said := pipe.read()): time.sleep(0.001)
    end = time.monotonic() + seconds
    while time.monotonic() < end: watch()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return (said + (pipe.read() or b"")).decode().split("\n")[:-1]
