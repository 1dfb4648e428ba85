"What every block keeps, whatever it computes: its shape answers, its configuration, its words when a shape is wrong, its being traced."
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import flame_vision.backbones.regnet  # noqa: F401  its block stands with its family
from flame_vision.blocks import block_summary, create_block, list_blocks
from flame_vision.core import ShapeError, get_output_shape
from flame_vision.schemas import PartConfig

MAPS, TOKENS = [2, 32, 14, 9], [2, 12, 32]

CASES = {  # arguments, and the shape of each input
    "attention": (dict(out_channels=32), [MAPS]),
    "conv": (dict(in_channels=32, out_channels=16), [MAPS]),
    "convnext": (dict(channels=32), [MAPS]),
    "bottleneck": (dict(in_channels=32, stride=2), [MAPS]),
    "depthwise_separable": (dict(in_channels=32, out_channels=16, stride=2), [MAPS]),
    "drop_path": (dict(p=0.1), [MAPS]),
    "efficient_channel_attention": (dict(channels=32), [MAPS]),
    "fused_inverted_residual": (dict(in_channels=32, out_channels=32, expand_channels=64), [MAPS]),
    "inverted_residual": (dict(in_channels=32, out_channels=32, expand_channels=64, squeeze_channels=8, padding="same", stride=2), [MAPS]),
    "pre_activation": (dict(in_channels=32, out_channels=64, stride=2, bottleneck=True, norm="group", standardise=1e-6), [MAPS]),
    "regnet": (dict(in_channels=32, out_channels=64, stride=2, se_ratio=0.25), [MAPS]),
    "residual": (dict(in_channels=32, attention="eca"), [MAPS]),
    "squeeze_excitation": (dict(channels=32), [MAPS]),
}
CHANNELS_FREE = {"drop_path"}


def names(): return sorted(CASES)


IN_TEST_ATTENTION = {"multi_head_attention", "cross_attention", "feed_forward", "layer_scale", "transformer", "self_attention",
                     "window_attention", "cosine_window_attention", "shifted_window", "patch_embed"}


def test_every_block_is_tested(): assert set(list_blocks()) <= set(CASES) | IN_TEST_ATTENTION


def made(name):
    torch.manual_seed(0)
    arguments, shapes = CASES[name]
    return create_block(name, **arguments).eval(), [torch.randn(s) for s in shapes]


@pytest.mark.parametrize("name", names())
def test_shapes_configuration_and_summary(name):
    block, inputs = made(name)
    out = block(*inputs)
    assert block.get_output_shape(*[list(x.shape) for x in inputs]) == list(out.shape)
    again = create_block(name, **block.config.arguments)
    assert again.config == block.config == PartConfig(name=name, arguments=block.config.arguments)
    assert type(block).from_config(block.config).config.arguments == block.config.arguments
    again.load_state_dict(block.state_dict())
    assert torch.equal(again.eval()(*inputs), out)
    line = block_summary(block, *[list(x.shape) for x in inputs])
    assert "\n" not in line and " × ".join(map(str, out.shape)) in line and "parameters" in line and "MACs" in line and "activations" in line


@pytest.mark.parametrize("name", names())
def test_any_batch_type_and_memory(name):
    block, (x,) = made(name)
    want = block(x)
    for batch in (1, 3): assert block(x[:1].expand(batch, -1, -1, -1)).shape[0] == batch
    torch.testing.assert_close(block(x.contiguous(memory_format=torch.channels_last)), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block.double()(x.double()).float(), want, rtol=1e-3, atol=1e-4)
    half = block.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


@pytest.mark.parametrize("name", [n for n in names() if n not in CHANNELS_FREE])
def test_a_wrong_shape_names_block_axis_and_sizes(name):
    block, (x,) = made(name)
    kind = type(block).__name__
    words = rf"^{kind}: axis 1 \(c\) must be 32, got 24; it takes \(b, 32, h, w\), got \[2, 24, 14, 9\]"
    with pytest.raises(ShapeError, match=words): block(x[:, :24])
    with pytest.raises(ShapeError, match=rf"^{kind} takes 4 axes"): block(x[0])
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(block))
    with pytest.raises(ShapeError, match=rf"{kind}: axis 1 \(c\) must be 32, got 24.*\(at 'body.0'\)"): get_output_shape(model, [2, 24, 14, 9])


@pytest.mark.parametrize("name", names())
def test_a_gradient_reaches_every_parameter(name):
    block, (x,) = made(name)
    block.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in block.parameters())


TRACE = """
import sys, torch
sys.path.insert(0, "tests")
from test_blocks import CASES, made
import flame_vision.backbones.regnet
for name in sorted(CASES):
    block, (x,) = made(name)
    with torch.no_grad():
        want = block(x)
        torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="eager")(x), want, rtol=1e-4, atol=1e-5)
        free = torch.export.Dim.DYNAMIC
        exported = torch.export.export(block, (x,), dynamic_shapes=[{0: free, 2: free, 3: free}]).module()
        for shape in ((2, 32, 14, 9), (3, 32, 7, 20)):
            y = torch.randn(shape)
            torch.testing.assert_close(exported(y), block(y), rtol=1e-4, atol=1e-5)
    torch.compile(block.train(), fullgraph=True, backend="eager")(x).sum().backward()
    print(name)
"""


def test_all_compile_and_export():
    "In a process of its own: the suite's run-time shape checks are no part of what a user compiles."
    ran = subprocess.run([sys.executable, "-c", TRACE], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.split() == sorted(CASES)
