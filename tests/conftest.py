"The suite runs offline, seeded, writes nothing into the user's home, and checks every declared shape."
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

# Workers share the cores; the number must be known before torch is imported.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if workers > 1:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"): os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // workers)))

scratch = Path(tempfile.mkdtemp(prefix="flame-vision-tests-"))
venv = Path(__file__).parent.parent / ".venv"
os.environ |= {
    "MPLBACKEND": "agg", "WANDB_MODE": "offline", "WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    "MPLCONFIGDIR": str((venv / ".cache" if venv.is_dir() else scratch) / "matplotlib"), "FLAME_VISION_REGISTRY": str(scratch / "registry"),
    **{f"WANDB_{kind}DIR": str(scratch / "wandb") for kind in ("", "CACHE_", "CONFIG_", "DATA_")},
}
(scratch / "wandb").mkdir()

if os.environ.get("FLAME_VISION_NO_TYPECHECK") != "1":
    import typechecker
    typechecker.install("flame_vision")


def pytest_addoption(parser): parser.addoption("--slow", action="store_true", help="run the tests marked `slow` too")


def pytest_unconfigure(config): shutil.rmtree(scratch, ignore_errors=True)


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow") and "slow" not in config.option.markexpr:
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        if slow: config.hook.pytest_deselected(items=slow)
    if any(item.get_closest_marker("gpu") for item in items):
        import torch
        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"): item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def seeded():
    "The generators start alike in every test; a test that needs no torch does not pay for its import."
    random.seed(0)
    if "numpy" in sys.modules: sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules: sys.modules["torch"].manual_seed(0)
