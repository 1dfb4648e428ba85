"What `import` costs, what the packages hand on, and that declared shapes are checked."
import importlib
import pkgutil
import subprocess
import sys

import pytest

import flame_vision

PACKAGES = ["flame_vision", *(m.name for m in pkgutil.walk_packages(flame_vision.__path__, "flame_vision.") if m.ispkg)]


def python(code): return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"torch", "torchvision", "lightning", "timm", "numpy", "matplotlib", "wandb", "sklearn", "pydantic"}
    code = f"import sys, {', '.join(PACKAGES)}; print(sorted({heavy!r} & set(sys.modules)))"
    assert python(code) == "[]"


def test_optional_libraries_wait_until_they_are_used():
    "Training is left out: torchmetrics, which it needs, imports matplotlib and transformers where they are installed."
    code = ("import sys, flame_vision.models, flame_vision.plots, flame_vision.data.datasets, flame_vision.versioning.registry, flame_vision.cli;"
            "print(sorted({'wandb', 'timm', 'matplotlib', 'ipywidgets', 'transformers', 'ray', 'onnx', 'lightning'} & set(sys.modules)))")
    assert python(code) == "[]"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_resolves(package):
    module = importlib.import_module(package)
    for name in module.__all__: assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"): _ = module.no_such_name


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_name_is_hidden_by_a_module(package):
    "Importing `package.name` sets the attribute `name`, which would take the place of a function of that name."
    module = importlib.import_module(package)
    for name in {m.name for m in pkgutil.iter_modules(module.__path__)} & set(module.__all__):
        assert getattr(module, name) is importlib.import_module(f"{package}.{name}")


def test_declared_shapes_are_checked_in_this_suite():
    import torch
    from jaxtyping import TypeCheckError

    from flame_vision.blocks import ConvBlock, list_blocks
    assert ConvBlock(3, 8)(torch.zeros(1, 3, 8, 8)).shape == (1, 8, 8, 8)
    with pytest.raises(TypeCheckError): ConvBlock(3, 8)(torch.zeros(3, 8, 8))
    with pytest.raises(TypeCheckError): list_blocks(3)  # an annotation without a shape


def test_declared_shapes_cost_nothing_outside_it():
    code = ("import sys, torch; from flame_vision.blocks.conv import standardised;"  # declared for four axes
            "print(standardised(torch.zeros(8, 3), 1e-6).shape[0], 'beartype' in sys.modules)")
    assert python(code) == "8 False"
