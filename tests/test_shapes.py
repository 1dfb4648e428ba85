"Shape inference on models that others wrote, from many threads, and on what compilers make of ours."
import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from torch import nn
from torch.utils._pytree import tree_map

from flame_vision.core import ShapeError, get_output_shape
from flame_vision.models import resnet18


def shape_of(output): return [shape_of(o) for o in output] if isinstance(output, (list, tuple)) else list(output.shape)


@pytest.mark.parametrize("name, options, size", [
    ("mobilenetv3_small_050", {}, (97, 65)),
    ("convnext_atto", {"features_only": True}, (96, 64)),
    ("vit_tiny_patch16_224", {"dynamic_img_size": True}, (64, 96)),
    ("swin_tiny_patch4_window7_224", {"num_classes": 3, "embed_dim": 24}, (224, 224)),
])
def test_equals_what_timms_models_give(name, options, size):
    model = timm.create_model(name, **options).eval()
    with torch.inference_mode(): real = model(torch.zeros(1, 3, *size))
    assert get_output_shape(model, [1, 3, *size]) == shape_of(real)


def test_a_forward_that_reads_values():
    "transformers' DETR, which measures its masks."
    transformers = pytest.importorskip("transformers")
    trunk = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage4"])
    halves = dict(encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16)
    config = transformers.DetrConfig(use_timm_backbone=False, backbone_config=trunk, d_model=16, num_queries=5, **halves)
    model = transformers.DetrForObjectDetection(config).eval()
    with torch.inference_mode(): real = model(torch.zeros(1, 3, 64, 96))
    asked = get_output_shape(model, [1, 3, 64, 96])
    assert asked["logits"] == list(real.logits.shape) and asked["pred_boxes"] == list(real.pred_boxes.shape)


def test_sixteen_threads_ask_while_the_model_is_used():
    model, x = resnet18(num_classes=3).eval(), torch.randn(1, 3, 64, 64)
    before, expected = {k: v.clone() for k, v in model.state_dict().items()}, model(x)

    def ask(i):
        if i % 4 == 0:
            with torch.inference_mode(): return torch.equal(model(x), expected)
        return model.backbone.get_output_shape([1, 3, 32 * i, 64])[4] == [1, 512, i, 2] and model.get_output_shape([i, 3, 64, 64]) == [i, 3]
    with ThreadPoolExecutor(16) as pool: assert all(pool.map(ask, list(range(1, 17)) * 4))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()) and not model.training


def test_compiled_and_exported_without_a_break():
    "In a process of its own, where declared shapes are not checked: a compiler would trace the checks."
    code = """
import torch
from flame_vision.models import resnet18
model, x = resnet18(num_classes=3).eval(), torch.randn(2, 3, 64, 96)
with torch.no_grad():
    expected = model(x)
    compiled = torch.compile(model, backend="eager", fullgraph=True)(x)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    exported = program.module()(torch.cat([x, x, x]))[:2]
for name, found in (("compiled", compiled), ("exported", exported)): torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=name)
print("equal")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "equal", ran.stderr


class OwnCopy(nn.Module):
    "Copies itself in a way of its own, and looks at its children while it does."
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 5)

    def __deepcopy__(self, memo):
        made = OwnCopy()
        made.inner = copy.deepcopy(self.inner, memo)
        assert made.inner.weight.shape == (5, 4)
        return made

    def forward(self, x): return self.inner(x)


def test_modules_that_copy_themselves_and_shared_ones():
    shared = nn.Linear(5, 5)
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 5), nn.ReLU()))
    for module in (OwnCopy(), nn.Sequential(OwnCopy(), shared, shared), nn.Sequential(traced, shared), nn.Sequential(nn.LSTM(4, 5))):
        before = {k: v.clone() for k, v in module.state_dict().items()}
        assert get_output_shape(module, [2, 4]) == tree_map(lambda t: list(t.shape), module(torch.randn(2, 4)))
        assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_answers_follow_hooks_and_buffers():
    net = nn.Sequential(nn.Linear(4, 2))
    first = net.register_forward_hook(lambda m, a, out: out[:, :1])
    assert get_output_shape(net, [1, 4]) == [1, 1]
    first.remove()
    net.register_forward_hook(lambda m, a, out: torch.cat([out, out], 1))
    assert get_output_shape(net, [1, 4]) == [1, 4]


def test_lazy_modules_answer_and_keep_waiting():
    def build(): return nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))
    net = build()
    shapes = [2, 4, 8, 9], [3, 7, 5, 5]
    answers = [get_output_shape(net, shape) for shape in shapes]
    assert all(isinstance(p, nn.UninitializedParameter) for p in net.parameters())
    assert answers == [list(build()(torch.randn(shape)).shape) for shape in shapes]
    net(torch.randn(shapes[0]))
    assert get_output_shape(net, shapes[0]) == answers[0]
    with pytest.raises(ShapeError, match=r"Conv2d\(4, 8"): get_output_shape(net, shapes[1])


def test_inputs_in_dicts_and_lists():
    class Sum(nn.Module):
        def forward(self, maps, scales): return {k: m.sum(1) + scales[0] * scales[1] for k, m in maps.items()}
    assert get_output_shape(Sum(), {1: [2, 3, 4], 2: [2, 5, 4]}, [[4], [1]]) == {1: [2, 4], 2: [2, 4]}
    with pytest.raises(ShapeError, match="a list of ints"): get_output_shape(Sum(), {1: "3x4"}, [4])
