"A notebook imports only from lower numbers, whatever way the import is spelled; and this test can fail."
import json
from pathlib import Path

import pytest
from literate import Project

TOP = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def project(): return Project(TOP)


def none(problems): assert not (found := list(problems)), "\n" + "\n".join(found)


def test_there_are_notebooks(project): assert project.numbered
def test_numbers_and_names(project): none(project.check_names())
def test_notebooks_import_downhill(project): none(project.check_notebooks())
def test_modules_import_downhill(project): none(project.check_modules())
def test_unnumbered_notebooks_use_the_public_package(project): none(project.check_readers())


# Below: a project of four floors in a temporary folder, and every spelling that should or should not be reported.

def notebook(path: Path, *cells: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[
        dict(cell_type="code", id=f"c{i}", metadata={}, execution_count=None, outputs=[], source=source.splitlines(True))
        for i, source in enumerate(cells)])), encoding="utf-8")


@pytest.fixture
def small(tmp_path):
    "core.shapes (010), blocks.conv (100), blocks.residual (120), models (450); the writer of a test adds to blocks.conv."
    lazy = ("from typing import TYPE_CHECKING\n__version__ = '0'\nif TYPE_CHECKING:\n    {}\n"
            "__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)\n")
    for folder, line in {"": "from .models import create_model as create_model",
                         "core": "from .shapes import TensorSpec as TensorSpec",
                         "blocks": "from .conv import ConvBlock as ConvBlock; from .residual import Residual as Residual; "
                                   "from ..models import create_model as create_model"}.items():
        (tmp_path / "flame_vision" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "flame_vision" / folder / "__init__.py").write_text(lazy.format(line))

    def build(cell="", kind="#| export", at="blocks/100_conv", **more):
        books = {"core/010_shapes": "", "blocks/100_conv": "", "blocks/120_residual": "", "450_models": "", at: f"{kind}\n{cell}"}
        for path, source in (books | more).items():
            module = path.replace("/", ".").replace("".join(c for c in path if c.isdigit()) + "_", "")
            notebook(tmp_path / "nbs" / f"{path}.ipynb", f"#| default_exp {module}", source)
        return Project(tmp_path)
    return build


UPHILL = [
    "import flame_vision.models",
    "import flame_vision.models as m",
    "import flame_vision",
    "import flame_vision as fv\nx = fv.models",
    "import flame_vision.core.shapes\nx = flame_vision.models.create_model",
    "import flame_vision.core.shapes\nx = flame_vision.create_model",
    "import flame_vision.core.shapes\nx = getattr(flame_vision, 'models')",
    "from flame_vision import models",
    "from flame_vision import create_model",
    "from flame_vision import models as m, core",
    "from flame_vision import *",
    "from flame_vision import blocks",
    "from flame_vision.models import create_model",
    "from flame_vision.models import *",
    "from flame_vision.blocks import Residual",
    "from flame_vision.blocks import Residual as R, ConvBlock",
    "from flame_vision.blocks import create_model",
    "from flame_vision.blocks import residual",
    "from flame_vision.blocks import *",
    "from flame_vision.blocks.residual import Residual",
    "from flame_vision.blocks.conv import ConvBlock",
    "from ..models import create_model",
    "from .. import models",
    "from .. import create_model",
    "from .residual import Residual",
    "from . import residual",
    "from . import Residual",
    "def f():\n    from flame_vision.models import create_model",
    "class C:\n    def f(self):\n        import flame_vision.models as m",
    "if TYPE_CHECKING:\n    from flame_vision.models import create_model",
    "try: from flame_vision.models import create_model\nexcept ImportError: pass",
    "import importlib\nimportlib.import_module('flame_vision.models')",
    "from importlib import import_module\nimport_module('..models', 'flame_vision.blocks')",
    "__import__('flame_vision.models')",
    "import pkgutil\npkgutil.resolve_name('flame_vision.models:create_model')",
    "from flame_vision.blocks import Unheard",
    "from fastcore.basics import patch",
    "import nbdev",
    "%matplotlib inline\nfrom flame_vision import models",
]
DOWNHILL = [
    "import torch, os.path\nfrom torch import nn",
    "import flame_vision.core.shapes",
    "import flame_vision.core.shapes\nx = flame_vision.core.shapes.TensorSpec",
    "import flame_vision.core.shapes as s\nx = s.models",
    "from flame_vision.core.shapes import TensorSpec",
    "from flame_vision.core import TensorSpec\nx = TensorSpec.models",
    "from flame_vision import core, __version__",
    "from ..core.shapes import TensorSpec",
    "from ..core import *",
    "import importlib\nimportlib.import_module('flame_vision.core.shapes')",
    "x = 'flame_vision.models'",
]


@pytest.mark.parametrize("cell", UPHILL)
def test_uphill_is_reported(small, cell): assert list(small(cell).check_notebooks())


@pytest.mark.parametrize("cell", DOWNHILL)
def test_downhill_is_not(small, cell): none(small(cell).check_notebooks())


@pytest.mark.parametrize("cell", [c for c in UPHILL if not c.startswith("%")])
def test_uphill_is_reported_in_the_export(small, cell):
    project = small()
    (project.lib / "blocks" / "conv.py").write_text(cell)
    assert list(project.check_modules())


def test_a_name_bound_in_one_cell_is_followed_into_the_next(small):
    project = small("import flame_vision.core.shapes")
    notebook(project.nbs / "blocks/100_conv.ipynb", "#| default_exp blocks.conv", "#| export\nimport flame_vision.core.shapes",
             "#| export\nmake = flame_vision.models.create_model")
    assert list(Project(project.top).check_notebooks())


def test_a_lesson_may_use_its_own_module_but_none_above(small):
    none(small("from flame_vision.blocks import ConvBlock", kind="#| hide").check_notebooks())
    assert list(small("from flame_vision.blocks import Residual", kind="#| hide").check_notebooks())
    none(small("from fastcore.test import test_eq", kind="#| hide").check_notebooks())


def test_numbers_and_default_exp_are_reported(small):
    none(small().check_names())
    assert any("number 100" in p for p in small(**{"necks/100_fpn": ""}).check_names())
    project = small()
    notebook(project.nbs / "blocks/130_other.ipynb", "#| default_exp blocks.another")
    assert any("blocks.another" in p for p in Project(project.top).check_names())
    notebook(project.nbs / "blocks/130_other.ipynb", "x = 1")
    assert any("130_other" in p for p in Project(project.top).check_names())
    notebook(project.nbs / "blocks/130_other.ipynb", "#| default_exp blocks.other", "#| export core.shapes\nx = 1")
    assert any("one notebook is one module" in p for p in Project(project.top).check_names())
    notebook(project.nbs / "blocks/130_other.ipynb", "#| default_exp blocks.other")
    notebook(project.nbs / "guides/choosing.ipynb", "#| default_exp guides.choosing")
    assert any("has no number" in p for p in Project(project.top).check_names())


@pytest.mark.parametrize("cell, fine", [
    ("from flame_vision.blocks import ConvBlock", True), ("import flame_vision.models as models", True), ("import flame_vision", True),
    ("from flame_vision.blocks.conv import ConvBlock", False), ("import flame_vision._modidx", False), ("from .conv import x", False)])
def test_tutorials_use_the_public_package(small, cell, fine):
    project = small()
    notebook(project.nbs / "tutorials/first.ipynb", cell)
    assert (not list(Project(project.top).check_readers())) == fine
