"""Execute the project's notebooks, each in a fresh process, and honour nbdev's directives.

    .ci/notebooks.py test [--flags "slow gpu"] [--only slow] [paths]   fail when a cell fails, or when nothing ran
    .ci/notebooks.py save [--flags slow] [paths]                       and keep the outputs, cleaned

Cells with `#| eval: false`, and those whose flag was not given, are skipped; `save` leaves them their outputs.
"""
import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
DONE = "\nnotebook run to its end: {}\n"


def find(paths: list[str]) -> list[Path]:
    "The notebooks that `paths` name, all without one; a path that names none ends the program."
    found = []
    for path in [Path(p).resolve() for p in paths] or [NBS]:
        if not path.is_relative_to(NBS): sys.exit(f"notebooks: {path} does not lie in {NBS}")
        some = sorted(path.rglob("*.ipynb")) if path.is_dir() else [path] if path.suffix == ".ipynb" and path.is_file() else []
        some = [p for p in some if not any(part[0] in "._" for part in p.relative_to(NBS).parts)]
        if not some: sys.exit(f"notebooks: {path} is no notebook and holds none")
        found += [p for p in some if p not in found]
    return found


def has_flag(path: Path, flag: str) -> bool:
    return re.search(rf'"#\| *{flag}\b', path.read_text(encoding="utf-8")) is not None


def environment(scratch: Path) -> dict[str, str]:
    "Offline, quiet, and nothing written into the user's home."
    cache = ROOT / ".venv" / ".cache" if (ROOT / ".venv").is_dir() else scratch
    return os.environ | {
        "IN_TEST": "1", "MPLBACKEND": "agg", "WANDB_MODE": "offline", "WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1", "MPLCONFIGDIR": str(cache / "matplotlib"),
        "FLAME_VISION_REGISTRY": str(scratch / "registry"), "IPYTHONDIR": str(scratch / "ipython"), "TMPDIR": str(scratch),
        **{f"WANDB_{kind}DIR": str(scratch) for kind in ("", "CACHE_", "CONFIG_", "DATA_")},
    }


def execute(path: Path, skip: set[str], save: bool) -> bool:
    "Run one notebook in this process; with `save`, write it back when something changed. Is it changed?"
    from execnb.nbio import nb2str, write_nb
    from execnb.shell import CaptureShell
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    from nbdev.frontmatter import FrontmatterProc
    from nbdev.process import NBProcessor

    front = getattr(NBProcessor(path, procs=FrontmatterProc, process=True).nb, "frontmatter_", {})
    if str(front.get("skip_exec", "false")).lower() == "true": return False

    def skipped(cell):
        directives = getattr(cell, "directives_", None) or {}
        return cell.cell_type != "code" or directives.get("eval:", [""])[0].lower() == "false" or bool(skip & directives.keys())

    sys.path.insert(0, str(ROOT))
    nb, shell = NBProcessor(path, rm_directives=False).nb, CaptureShell(path)
    os.chdir(path.parent)
    try: shell.run_all(nb, exc_stop=True, preproc=skipped)
    except BaseException: sys.exit(shell.prettytb(fname=path))
    if not save: return False
    for cell in nb.cells:  # a widget's view has a random id and cannot be shown without its kernel
        for output in cell.get("outputs", []): output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    cfg = get_config()
    clean_nb(nb, cfg.clear_all, cfg.allowed_metadata_keys.split(), cfg.allowed_cell_metadata_keys.split(), cfg.clean_ids)
    changed = nb2str(nb) != path.read_text(encoding="utf-8")
    if changed: write_nb(nb, path)
    return changed


class Runner:
    "Notebooks in child processes: a crash, a hang or a full memory in one is its own failure only."
    def __init__(self, save: bool, skip: set[str], limit: float):
        self.save, self.skip, self.limit, self.running = save, skip, limit, set()

    def __call__(self, path: Path) -> tuple[Path, bool, float]:
        start, scratch = time.monotonic(), Path(tempfile.mkdtemp(prefix="flame-vision-"))
        command = [sys.executable, __file__, "save" if self.save else "test", "--here", "--skip", " ".join(self.skip), str(path)]
        with tempfile.TemporaryFile() as file:  # no pipe: a process that the notebook leaves behind would keep it open
            child = subprocess.Popen(command, cwd=ROOT, env=environment(scratch), start_new_session=True, stdout=file,
                                     stderr=subprocess.STDOUT)
            self.running.add(child)
            try:
                why = f"exit status {child.wait(self.limit)}"
            except subprocess.TimeoutExpired:
                why = f"stopped after {self.limit:.0f} s"
            finally:
                self.kill(child)  # and what it left behind
                child.wait()
                self.running.discard(child)
                shutil.rmtree(scratch, ignore_errors=True)
            file.seek(0)
            log = file.read().decode(errors="replace")
        done = re.search(DONE.format("(ok|changed)"), log)  # a status of 0 is not enough: a cell may have ended the process
        ok, seconds = child.returncode == 0 and done is not None, time.monotonic() - start
        print(f"  {done[1] if ok else 'FAILED':<8}{seconds:6.1f} s  {path.relative_to(ROOT)}" + ("" if ok else f" ({why})\n{log.rstrip()}"),
              flush=True)
        return path, ok, seconds

    @staticmethod
    def kill(child):
        try: os.killpg(child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError): pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["test", "save"])
    parser.add_argument("paths", nargs="*", help="notebooks or folders (default: all of nbs/)")
    parser.add_argument("--flags", default="", help="run the cells with these flags too")
    parser.add_argument("--only", help="only the notebooks that have a cell with this flag")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, help="seconds for one notebook (default: 600, with flags 3600)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--skip", default="", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    if args.here:
        changed = execute(Path(args.paths[0]), set(args.skip.split()), args.mode == "save")
        return print(DONE.format("changed" if changed else "ok"))

    from nbdev.config import get_config
    paths = find(args.paths)
    os.chdir(ROOT)  # where nbdev looks for settings.ini
    known, flags = set(get_config().tst_flags.split()), set(args.flags.split())
    if flags - known: sys.exit(f"notebooks: unknown flag {' '.join(sorted(flags - known))}; settings.ini has {' '.join(sorted(known))}")
    if args.only:
        paths = [p for p in paths if has_flag(p, args.only)]
        if not paths: return print(f"notebooks: no cell is marked `{args.only}`")

    runner, start = Runner(args.mode == "save", known - flags, args.limit or (3600 if flags else 600)), time.monotonic()
    pool = ThreadPoolExecutor(args.workers)
    try:
        results = list(pool.map(runner, paths))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in list(runner.running): runner.kill(child)
        raise
    failed = [path.relative_to(ROOT) for path, ok, _ in results if not ok]
    print(f"notebooks: {len(results)} executed in {time.monotonic() - start:.0f} s, {len(failed)} failed", *failed, sep="\n  ")
    sys.exit(bool(failed))


if __name__ == "__main__": main()
