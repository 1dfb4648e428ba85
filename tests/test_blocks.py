"What every block keeps, whatever it computes: its shape answers, its configuration, its words when a shape is wrong, its being traced."
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import flame_vision.backbones.regnet  # noqa: F401  its block stands with its family
from flame_vision.blocks import block_summary, create_block, list_blocks
from flame_vision.core import ConfigError, ShapeError, get_output_shape
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


IN_TEST_TRANSFORMERS = {"tokens"}
IN_TEST_PYRAMID_SEGMENTERS = {"grid_pool"}


def test_every_block_is_tested(): assert set(list_blocks()) <= set(CASES) | IN_TEST_ATTENTION | IN_TEST_TRANSFORMERS | IN_TEST_PYRAMID_SEGMENTERS


VARIANTS = {  # what else a block can be, beside the case of its name
    "conv 1 × 1, SAME, stride 2": ("conv", dict(in_channels=32, out_channels=16, kernel_size=1, stride=2, padding="same")),
    "conv, even kernel, SAME, stride 3": ("conv", dict(in_channels=32, out_channels=16, kernel_size=4, stride=3, padding="same")),
    "conv, standardised, grouped, dilated": ("conv", dict(in_channels=32, out_channels=32, groups=4, dilation=2, standardise=1e-6, norm="group")),
    "pre_activation without norm": ("pre_activation", dict(in_channels=32, norm=None)),
    "pre_activation, SAME": ("pre_activation", dict(in_channels=32, out_channels=64, stride=2, padding="same", standardise=1e-6)),
    "mbconv without expansion": ("inverted_residual", dict(in_channels=32, out_channels=32, drop_path=0.5)),
    "fused without expansion": ("fused_inverted_residual", dict(in_channels=32, out_channels=32)),
}


@pytest.mark.parametrize("name", [*CASES, *VARIANTS])
def test_the_input_stays_as_it_was(name):
    kind, arguments = VARIANTS.get(name, (name, CASES.get(name, ({},))[0]))
    block, x = create_block(kind, **arguments), torch.randn(MAPS)
    before = x.clone()
    for mode in (True, False): block.train(mode)(x)
    assert torch.equal(x, before)
    assert block.get_output_shape(MAPS) == list(block(x).shape)


@pytest.mark.parametrize("name, wrong", [
    ("conv", dict(in_channels=32, out_channels=8, stride=0)), ("conv", dict(in_channels=32, out_channels=8, kernel_size=0)),
    ("conv", dict(in_channels=0, out_channels=8)), ("conv", dict(in_channels=32, out_channels=8, padding=True)),
    ("inverted_residual", dict(in_channels=16, out_channels=16, kernel_size=4)),
    ("inverted_residual", dict(in_channels=16, out_channels=16, padding=0)),
    ("fused_inverted_residual", dict(in_channels=16, out_channels=16, padding=0)), ("convnext", dict(channels=16, kernel_size=4)),
    ("convnext", dict(channels=16, mlp_ratio=0)), ("squeeze_excitation", dict(channels=16, reduction=0)),
    ("squeeze_excitation", dict(channels=16, hidden_channels=0)), ("efficient_channel_attention", dict(channels=0)),
    ("efficient_channel_attention", dict(channels=16, kernel_size=-1)), ("pre_activation", dict(in_channels=2, bottleneck=True)),
    ("drop_path", dict(p=1.0)), ("residual", dict(in_channels=16, attention="cbam"))])
def test_arguments_that_cannot_work_are_refused(name, wrong):
    with pytest.raises(ConfigError): create_block(name, **wrong)


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
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(block))
    with pytest.raises(ShapeError, match=rf"{kind}: axis 1 \(c\) must be 32, got 24.*\(at 'body.0'\)"): get_output_shape(model, [2, 24, 14, 9])


@pytest.mark.parametrize("name", names())
def test_a_gradient_reaches_every_parameter(name):
    block, (x,) = made(name)
    block.train()(x.requires_grad_()).square().sum().backward()
    assert x.grad.isfinite().all() and all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in block.parameters())


TRACE = """
import sys, torch
sys.path.insert(0, "tests")
from test_blocks import CASES, CHANNELS_FREE, VARIANTS, ShapeError, create_block, made
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
    grads = []
    for run in (block.train(), torch.compile(block, fullgraph=True, backend="eager")):
        torch.manual_seed(1)
        a = x.clone().requires_grad_()
        run(a).square().sum().backward()
        grads.append(a.grad)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)
    if name not in CHANNELS_FREE | {"attention"}:  # which takes three axes for tokens
        try: block(x[0])
        except ShapeError as e: assert str(e).startswith(f"{type(block).__name__} takes 4 axes"), e
        else: raise AssertionError(name)
    print(name)
for kind, arguments in VARIANTS.values():
    block = create_block(kind, **arguments).eval()
    x, y = torch.randn(2, 32, 14, 9), torch.randn(3, 32, 7, 20)
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(block, (x,), dynamic_shapes=[{0: free, 2: free, 3: free}]).module()
    with torch.no_grad():
        torch.testing.assert_close(program(y), block(y), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="eager")(x), block(x), rtol=1e-4, atol=1e-5)
"""


def test_all_compile_and_export():
    "In a process of its own: the suite's run-time shape checks are no part of what a user compiles."
    ran = subprocess.run([sys.executable, "-c", TRACE], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.split() == sorted(CASES)
