"Models of other libraries with seeded weights, and what it means to equal them."
import re

import timm
import torch
from torch import nn
from torchvision import models as tv

FAMILIES = {  # a small backbone of each family, as `create_model` takes it
    "resnet": "resnet18", "efficientnet": "efficientnet_b0", "regnet": "regnetx_002",
    "mobilenetv2": "mobilenetv2_050", "mobilenetv3": "mobilenetv3_small_050",
    "convnext": {"name": "convnext", "arguments": {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]}},
    "vit": {"name": "vit", "arguments": {"embed_dim": 48, "depth": 4, "num_heads": 3, "img_size": 64}},
    "pyramid": {"name": "vit", "arguments": {"embed_dim": 48, "depth": 4, "num_heads": 3, "img_size": 64, "hierarchical": True}},
    "swin": {"name": "swin", "arguments": {"embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "window_size": 4}},
    "swinv2": {"name": "swin", "arguments": {"version": 2, "embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "window_size": 4}},
    "hybrid": "vit_tiny_r_s16_p8_224",
    "edgenext": "timm/edgenext_xx_small", "pvt": "timm/pvt_v2_b0", "lcnet": "timm/lcnet_050",
}

LARGE = 60e6  # parameters above which only keys and shapes are compared


def fill(model, seed=0):
    "Weights of a seed in an empty model: kernels that keep the signal's scale, norms unlike those of the start. What is computed stays."
    generator = torch.Generator().manual_seed(seed)
    computed = {k: b.clone() for k, b in model.named_buffers() if not b.is_meta and not re.search(r"running_|num_batches", k)}
    model.to_empty(device="cpu")
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if not t.is_floating_point(): t.data.zero_()
        elif t.ndim > 1 and t[0].numel() > 1: t.data.normal_(0, (1 / t[0].numel()) ** 0.5, generator=generator)
        elif re.search(r"bias|running_mean", name): t.data.uniform_(-0.2, 0.2, generator=generator)
        else: t.data.uniform_(0.5, 1.5, generator=generator)
    for name, b in model.named_buffers():
        if name in computed: b.copy_(computed[name])
    for module in model.modules():
        if hasattr(module, "init_non_persistent_buffers"): module.init_non_persistent_buffers()  # timm's, of a model made on the meta device
    return model.eval()


def empty(make, *args, **kwargs):
    "A model without memory, where its constructor allows that."
    try:
        with torch.device("meta"): return make(*args, **kwargs)
    except (RuntimeError, NotImplementedError): return make(*args, **kwargs)  # torchvision's RegNet computes its widths with torch


def from_timm(name, **arguments): return empty(timm.create_model, name, **arguments)
def from_torchvision(name, **arguments):
    if "swin" in name: return tv.get_model(name, **arguments)  # it computes indices, which the meta device would lose
    return empty(tv.get_model, name, **arguments)


def count(model): return sum(p.numel() for p in model.parameters())


def assert_same(ours, theirs, what):
    off = (ours - theirs).abs().max() / theirs.abs().max()
    assert theirs.abs().max() > 1e-3 and off <= 1e-5, f"{what}: off by {off:.2e} of the largest output, which is {theirs.abs().max():.2e}"


def jitter(model, seed=0):
    "Batch norms whose statistics and scales are not those of the start."
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if not isinstance(module, nn.BatchNorm2d): continue
        for tensor in (module.weight, module.running_var): tensor.data.uniform_(0.5, 1.5, generator=generator)
        for tensor in (module.bias, module.running_mean): tensor.data.uniform_(-0.2, 0.2, generator=generator)
    return model.eval()
