"What a type checker sees of the installed package, through its lazy `__init__` files."
import subprocess
import sys

import pytest

USER = """
from flame_vision import create_backbone, summary
from flame_vision.blocks import ConvBlock
from flame_vision.models import resnet50
from flame_vision.versioning import ModelRegistry
reveal_type(create_backbone("resnet50"))
reveal_type(resnet50().num_features())
reveal_type(ModelRegistry().list())
ConvBlock(3, 8, strid=2)
"""


@pytest.mark.slow
def test_mypy_sees_types_and_finds_mistakes(tmp_path):
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", f"--cache-dir={tmp_path / 'cache'}", "user.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    for revealed in ('"flame_vision.backbones.base.BaseBackbone"', '"int"', '"list[str]"'): assert f"Revealed type is {revealed}" in said, said
    assert 'Unexpected keyword argument "strid" for "ConvBlock"; did you mean "stride"?' in said
    assert "Found 1 error in 1 file" in said
