"""Segmenters in a process of their own, where nothing looks at shapes at run time: exported once, run at several sizes.

    python export_segmenters.py FOLDER BACKBONE HEAD[,HEAD...]   several heads share one backbone in one program
"""
import json
import sys

import onnxruntime
import torch
from torch import nn

from flame_vision.backbones import create_backbone
from flame_vision.heads.segmenter import resize
from flame_vision.models import create_model

SMALL = {
    "resnet": dict(name="resnet", block_type="basic", layers=[1, 1, 1, 1]),
    "mobilenet": dict(name="mobilenetv3_small_100"),
    "swin": dict(name="swin", embed_dim=24, depths=[2, 2, 1, 1], num_heads=[1, 2, 4, 8], window_size=4),
    "vit": dict(name="vit", embed_dim=48, depth=4, num_heads=3, img_size=64),
}
NARROW = {"unet": {"decoder_channels": [64, 48, 32, 16, 16]}}
LEAST = {"convnext_tiny": 64}           # sides: its norms ask for strides that PyTorch can only tell for maps of two pixels and more; else 33
DEFERRED = {"timm/edgenext_xx_small"}   # asks what is true for every size, and more than PyTorch can prove: it is checked when the program runs
SIZES = (1, 64, 96), (2, 70, 90), (3, 101, 67)


class Segmenters(nn.Module):
    "Several segmenters on one backbone, which is computed once."
    def __init__(self, backbone, heads):
        super().__init__()
        self.backbone = create_backbone(**SMALL.get(backbone, {"name": backbone}), features_only=True)
        parts = {head: {"name": head, "arguments": NARROW.get(head, {"hidden_channels": 32})} for head in heads}
        self.models = nn.ModuleDict({head: create_model(backbone=self.backbone, head=part, num_classes=5) for head, part in parts.items()})

    def forward(self, x):
        if len(self.models) == 1: return tuple(model(x) for model in self.models.values())
        features = self.backbone(x)
        return tuple(resize(model.head(features), x) for model in self.models.values())


def prepared(backbone, heads):
    torch.manual_seed(0)
    model = Segmenters(backbone, heads)
    for module in model.modules():  # norms unlike those of the start
        if isinstance(module, nn.BatchNorm2d): module.running_mean.uniform_(-0.2, 0.2); module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def largest_differences(backbone, heads, folder):
    "Of the exported program, and of what ONNX Runtime makes of it, at each size; relative to the largest score."
    model, found = prepared(backbone, heads), {head: [] for head in heads}
    dim = torch.export.Dim
    least = LEAST.get(backbone, 33)
    dynamic = {0: dim("batch", min=1, max=8), 2: dim("height", min=least, max=1024), 3: dim("width", min=least, max=1024)}
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(2, 3, 80, 112),), dynamic_shapes=(dynamic,), strict=False,
                                      prefer_deferred_runtime_asserts_over_guards=backbone in DEFERRED)
        path = f"{folder}/{backbone.replace('/', '_')}.onnx"
        torch.onnx.export(program, (), path, dynamo=True, verbose=False, external_data=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for b, h, w in SIZES:
            x = torch.randn(b, 3, h, w)
            again, ran = program.module()(x), session.run(None, {session.get_inputs()[0].name: x.numpy()})
            for head, expected, *others in zip(heads, model(x), again, map(torch.from_numpy, ran)):
                assert [list(t.shape) for t in (expected, *others)] == [[b, 5, h, w]] * 3, (head, expected.shape, [t.shape for t in others])
                found[head] += [((out - expected).abs().max() / expected.abs().max()).item() for out in others]
    return found


if __name__ == "__main__":
    folder, backbone, heads = sys.argv[1:]
    print(json.dumps(largest_differences(backbone, heads.split(","), folder)))
