"""Processes that need not import torch again: one that did is forked for each, and gets an environment, a folder and code of its own.
Declared shapes and types of the modules under test are checked in them, and of the others not, which would take its time.

What reads its environment when it is imported (the hub's client, W&B's) must not be imported before the fork, and is not."""
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

PARENT = """
import atexit, importlib, json, os, signal, sys, time, traceback
sys.path.append(sys.argv[2])
import typechecker
if os.environ.get("FLAME_VISION_NO_TYPECHECK") != "1":
    for module in sys.argv[3:]: typechecker.install(module)
for module in json.loads(sys.argv[1]): importlib.import_module(module)
assert not {"huggingface_hub", "wandb"} & set(sys.modules), "imported too early"
print("warm", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setsid()
            for number, path in enumerate((os.devnull, job["out"], job["err"])):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
            sys.stdin = open(0)
            os.environ.clear()
            os.environ.update(job["env"])
            os.chdir(job["cwd"])
            sys.argv = ["-c", *job["arguments"]]
            exec(compile(job["code"], "job", "exec"), {"__name__": "__main__"})
            status = 0
        except BaseException: traceback.print_exc()
        finally:
            atexit._run_exitfuncs()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    until, ended = time.monotonic() + job["timeout"], (0, 0)
    while not ended[0] and time.monotonic() < until:
        ended = os.waitpid(child, os.WNOHANG)
        if not ended[0]: time.sleep(0.01)
    if not ended[0]: os.killpg(child, signal.SIGKILL); ended = os.waitpid(child, 0)
    print(json.dumps(os.waitstatus_to_exitcode(ended[1])), flush=True)
"""


class Warm:
    def __init__(self, process): self.process = process

    def __call__(self, code, home, env, *arguments, timeout=120):
        "What a process prints last, as JSON."
        home.mkdir(parents=True, exist_ok=True)
        out, err = home / "out.txt", home / "err.txt"
        job = dict(code=code, env=env, cwd=str(home), arguments=[str(a) for a in arguments], out=str(out), err=str(err), timeout=timeout)
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        status = json.loads(self.process.stdout.readline())
        assert status == 0, f"exit status {status}: {err.read_text()[-4000:]}"
        return json.loads(out.read_text().strip().splitlines()[-1])


@contextmanager
def warm_processes(*modules, checked=()):
    "A function that runs code in a process of its own that has these modules already; of those that are `checked`, annotations are."
    command = [sys.executable, "-c", PARENT, json.dumps(modules), str(Path(__file__).parent), *checked]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "warm\n"
        try: yield Warm(process)
        finally: process.stdin.close()
