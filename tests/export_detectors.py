"""A detector in a process of its own, where nothing looks at shapes at run time: exported once, run at several sizes.

    python export_detectors.py FOLDER BACKBONE NECK HEAD
"""
import json
import sys

import onnxruntime
import torch
from export_segmenters import DEFERRED, SMALL
from peers import fill

from flame_vision.models import create_model

HEADS = {"fcos": {"depth": 1}, "retinanet": {"depth": 1}, "detr": {"num_queries": 20, "encoder_layers": 1, "decoder_layers": 2, "hidden_channels": 32,
                                                                   "feed_forward_channels": 64}}
SIZES = (1, 160, 192), (3, 171, 203), (2, 257, 161)
LEAST = {"convnext_tiny": 160}  # sides: the coarsest level, stride 128, has two places; ConvNeXt's patches leave out what no patch fills. Else 129


def largest_differences(backbone, neck, head, folder):
    "Of the exported program, and of what ONNX Runtime makes of it, by output: at each size, relative to the largest value."
    torch.manual_seed(0)
    arguments = SMALL.get(backbone, {"name": backbone})
    backbone_config = {"name": arguments["name"], "arguments": {k: v for k, v in arguments.items() if k != "name"}}
    neck = None if neck == "none" else {"name": neck, "arguments": {"out_channels": 32}}
    model = fill(create_model(backbone=backbone_config, neck=neck, head={"name": head, "arguments": HEADS[head]}, num_classes=5))
    dim, found = torch.export.Dim, {}
    least = LEAST.get(backbone, 129)
    dynamic = {0: dim("batch", min=1, max=8), 2: dim("height", min=least, max=2048), 3: dim("width", min=least, max=2048)}
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(2, 3, 192, 224),), dynamic_shapes=(dynamic,), strict=False,
                                      prefer_deferred_runtime_asserts_over_guards=backbone in DEFERRED)
        path = f"{folder}/detector.onnx"
        torch.onnx.export(program, (), path, dynamo=True, verbose=False, external_data=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for b, h, w in SIZES:
            x = torch.randn(b, 3, h, w)
            expected, again, ran = model(x), program.module()(x), session.run(None, {session.get_inputs()[0].name: x.numpy()})
            for (name, value), *others in zip(expected.items(), again.values(), map(torch.from_numpy, ran)):
                kinds = [(list(t.shape), t.dtype) for t in (value, *others)]
                assert kinds.count(kinds[0]) == 3, (name, kinds)
                found.setdefault(name, []).extend([((out - value).abs().max() / value.abs().max().clamp(min=1e-9)).item() for out in others])
            both = expected, dict(zip(expected, map(torch.from_numpy, ran)))
            answers = [model.postprocess(outputs, [(h, w)] * b, score_threshold=0.0) for outputs in both]
            for mine, its in zip(*answers):  # scores best first; boxes of equal scores may change places
                assert len(mine["scores"]) == len(its["scores"]) > 0
                found.setdefault("answers", []).append((mine["scores"] - its["scores"]).abs().max().item())
    return found


if __name__ == "__main__": print(json.dumps(largest_differences(*sys.argv[2:], sys.argv[1])))
