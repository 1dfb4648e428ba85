"Pooling to a fixed grid against PyTorch's, UPerNet and SegFormer against transformers' and segmentation_models_pytorch's on loaded weights."
import os
import subprocess
import sys

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import transformers as hf
from peers import fill, jitter
from torch import nn
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead
from transformers.models.upernet.modeling_upernet import UperNetHead

from flame_vision.backbones import create_backbone
from flame_vision.blocks import GridPool, create_block
from flame_vision.core.errors import ConfigError, ShapeError, WeightsError
from flame_vision.core.weights import export_weights, load_weights
from flame_vision.heads import PyramidPooling, SegFormerHead, UPerNetHead, create_head

CHANNELS = (6, 10, 14, 18)
HEADS = {"upernet": {"hidden_channels": 12}, "segformer": {"hidden_channels": 20}}
GRIDS = [((25, 31), (13, 16), (7, 8), (4, 4)), ((8, 8), (4, 4), (2, 2), (1, 1)), ((9, 20), (9, 20), (9, 20), (9, 20)),
         ((11, 3), (6, 2), (3, 1), (2, 1)), ((33, 5), (17, 3), (9, 2), (13, 7))]
both = pytest.mark.parametrize("name", HEADS)


def same(ours, peer, what=""):
    assert ours.shape == peer.shape, f"{what}: {list(ours.shape)}, not {list(peer.shape)}"
    assert peer.abs().max() > 1e-3, f"{what}: the peer says nothing"
    torch.testing.assert_close(ours, peer, rtol=0, atol=1e-5 * peer.abs().max().item(), msg=lambda m: f"{what}: {m}")


def features(grids, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {s: torch.randn(batch, c, *grid, generator=generator) for s, (c, grid) in enumerate(zip(CHANNELS, grids), 1)}


def made(name, **more): return create_head(name, in_channels=CHANNELS, num_classes=5, **{**HEADS[name], **more})


def transformers_upernet(): return UperNetHead(hf.UperNetConfig(hidden_size=12, num_labels=5), list(CHANNELS))


def transformers_segformer():
    return SegformerDecodeHead(hf.SegformerConfig(hidden_sizes=list(CHANNELS), decoder_hidden_size=20, num_labels=5))


PEERS = {"upernet": transformers_upernet, "segformer": transformers_segformer}


@pytest.mark.parametrize("cells", [1, 2, 3, 6, 7, (2, 5), (7, 1)])
def test_grid_pool_is_adaptive_average_pooling(cells):
    pool = GridPool(cells)
    for h in range(1, 21):
        for w in (h, 21 - h, 13):
            x = torch.randn(2, 3, h, w, requires_grad=True)
            ours, peer = pool(x), F.adaptive_avg_pool2d(x, cells)
            weights = torch.randn_like(peer)
            gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (ours, peer)]
            same(ours, peer, f"{h} × {w}")
            same(*gradients, f"gradient of {h} × {w}")
    assert pool.get_output_shape([2, 3, 13, 4]) == list(ours.shape)


def test_grid_pool_takes_views_and_differentiates_twice():
    x = torch.randn(2, 5, 9, 7, dtype=torch.float64)
    for view in (x.to(memory_format=torch.channels_last), x.mT, x[:, ::2], x[..., 1:, ::3], x[:1].expand(2, 5, 9, 7)):
        same(GridPool(3)(view), F.adaptive_avg_pool2d(view, 3))
    assert torch.autograd.gradcheck(GridPool((2, 3)), x[:, :1].clone().requires_grad_())
    assert torch.autograd.gradgradcheck(lambda t: GridPool(2)(t) ** 2, x[:1, :1].clone().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_grid_pool_rounds_once(dtype):
    "In half precision it is as exact as the dtype can say, and autocast does not touch it."
    x = (torch.rand(1, 4, 57, 43) + 8).to(dtype)
    exact = F.adaptive_avg_pool2d(x.double(), 6)
    ours = GridPool(6)(x)
    assert ours.dtype == dtype and (ours.double() - exact).abs().max() <= 0.501 * torch.finfo(dtype).eps * 8
    with torch.autocast("cpu", dtype):
        wide, ours = GridPool(6)(x.float().requires_grad_()), GridPool(6)(x)
        assert wide.dtype == torch.float32 and ours.dtype == dtype
    same(wide.double(), exact)
    assert (wide.double() - exact).abs().max() < 1e-5 and (ours.double() - exact).abs().max() <= 0.501 * torch.finfo(dtype).eps * 8
    (gradient,) = torch.autograd.grad(GridPool(3)(y := torch.randn(1, 2, 7, 5, dtype=dtype).requires_grad_()).sum(), y)
    assert gradient.dtype == dtype and gradient.isfinite().all()


def test_grid_pool_by_name_and_what_it_refuses():
    block = create_block("grid_pool", output_size=(2, 3))
    assert block.config.arguments == {"output_size": [2, 3]} and GridPool.from_config(block.config).output_size == (2, 3)
    for wrong in (0, -1, (2, 0), (1, 2, 3), (), True):
        with pytest.raises(ConfigError): GridPool(wrong)


@both
@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_equals_transformers(name, grids):
    peer = jitter(fill(PEERS[name]()))
    head = made(name).eval()
    report = load_weights(head, peer.state_dict(), layout="transformers")
    assert len(report.loaded) == len(head.state_dict()) == len(peer.state_dict())
    maps = features(grids)
    with torch.no_grad(): same(head(maps), peer(list(maps.values())))


@both
def test_the_layout_is_recognised_and_written_back(name):
    peer, head = fill(PEERS[name](), seed=3), made(name)
    state = peer.state_dict()
    on_disk = {k.replace("linear_projections", "linear_c"): v for k, v in state.items()}  # as published files have it
    for given in (state, on_disk): assert load_weights(head, given).layout == "transformers"
    back = export_weights(head, "transformers")
    assert back.keys() == on_disk.keys() and all(torch.equal(back[k], v) for k, v in on_disk.items())
    less = {k: v for k, v in on_disk.items() if k not in ("bottleneck.conv.weight", "linear_fuse.weight")}
    with pytest.raises(WeightsError): load_weights(head, less)
    with pytest.raises(WeightsError): load_weights(head, {**on_disk, "stray.weight": torch.zeros(1)})


SMP = {"psp.blocks.": "pyramid.branches.", "psp.out_conv.": "pyramid.fuse.", "fusion_block.": "fuse."}


def test_upernet_equals_segmentation_models_pytorch():
    "Its decoder without the layer norms that it puts before everything."
    peer = jitter(fill(smp.decoders.upernet.decoder.UPerNetDecoder([3, 4, *CHANNELS], decoder_channels=12)))
    peer.feature_norms = nn.ModuleList(nn.Identity() for _ in CHANNELS)
    head, state = made("upernet").eval(), {}
    for key, tensor in peer.state_dict().items():
        for theirs, ours in SMP.items(): key = key.replace(theirs, ours)
        for i in range(3):  # theirs are counted from the deepest
            key = key.replace(f"fpn_lateral_blocks.{i}.conv_norm_relu.", f"laterals.{2 - i}.").replace(f"fpn_conv_blocks.{i}.", f"outputs.{2 - i}.")
        path, parameter = key.rsplit(".", 1)
        steps = path.split(".")
        if steps[1] == "branches": del steps[3]
        steps[-1] = {"0": "conv", "1": "norm"}[steps[-1]]
        state[".".join([*steps, parameter])] = tensor
    head.load_state_dict({**state, "logits.weight": head.logits.weight, "logits.bias": head.logits.bias})
    for grids in GRIDS[:2]:
        maps = features(grids)
        with torch.no_grad(): same(head.decode(list(maps.values())), peer([None, None, *maps.values()]))


SEGFORMER = dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_attention_heads=[1, 2, 2, 4], mlp_ratios=[2] * 4,
                 decoder_hidden_size=20, num_labels=5)


def test_a_whole_segformer_equals_transformers(tmp_path):
    "Encoder and decoder from one folder that transformers wrote."
    peer = jitter(hf.SegformerForSemanticSegmentation(hf.SegformerConfig(**SEGFORMER)))
    peer.save_pretrained(tmp_path)
    backbone = create_backbone(f"hf/{tmp_path}", pretrained=True).eval()
    stages = SegFormerHead.choose([i.stage for i in backbone.feature_info])
    channels = [i.channels for i in backbone.feature_info if i.stage in stages]
    head = SegFormerHead(channels, 5, hidden_channels=20, stages=stages).eval()
    published = {k: v for k, v in hf_file(tmp_path).items() if k.startswith("decode_head.")}
    assert any(k.startswith("decode_head.linear_c.0.proj") for k in published)
    load_weights(head, {k.removeprefix("decode_head."): v for k, v in published.items()})
    for size in ((64, 64), (97, 130), (75, 33)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad(): same(head(backbone(x)), peer(x).logits, str(size))


def hf_file(folder):
    from safetensors.torch import load_file
    return load_file(folder / "model.safetensors")


@both
@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_shapes_are_known_and_every_parameter_learns(name, grids):
    head, maps = made(name, stages=(1, 2, 3, 4)), features(grids)
    out = head(maps)
    assert list(out.shape) == [2, 5, *grids[0]] == head.get_output_shape({s: list(m.shape) for s, m in maps.items()})
    (out * torch.randn_like(out)).sum().backward()
    for key, p in head.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), key
        assert p.grad.abs().max() > 0, key


@both
def test_reads_the_stages_from_one_on(name):
    cls = {"upernet": UPerNetHead, "segformer": SegFormerHead}[name]
    assert cls.choose([0, 1, 2, 3, 4]) == cls.choose([1, 2, 3, 4], neck=True) == (1, 2, 3, 4)
    assert cls.choose([2, 3]) == (2, 3) and cls.choose([0]) == (0,)
    head, maps = made(name, stages=(1, 2, 3, 4)).eval(), features(GRIDS[0])
    more = {0: torch.randn(2, 3, 50, 62), **dict(reversed(maps.items()))}
    assert torch.equal(head(maps), head(more))
    with pytest.raises(ShapeError, match="stage 2"): head({**maps, 2: maps[1]})
    one = create_head(name, in_channels=7, num_classes=3, **HEADS[name]).eval()
    assert list(one(torch.randn(2, 7, 5, 9)).shape) == [2, 3, 5, 9]
    assert made(name, dropout=0.3).config.arguments["dropout"] == 0.3 and made(name).dropout.p == 0.1


@both
def test_a_dropped_feature_is_dropped_in_training_only(name):
    head, maps = made(name), features(GRIDS[0])
    head.dropout.p = 0.5
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d): module.momentum = 0.0
    assert not torch.equal(head(maps), head(maps))
    head.eval()
    assert torch.equal(head(maps), head(maps))


def test_one_image_is_refused_where_a_batch_norm_would_learn_from_one_value():
    maps = features(GRIDS[0], batch=1)
    head = made("upernet")
    with pytest.raises(ShapeError, match="PyramidPooling .*batches of 2 or more .*norm='layer', or 'group'"): head(maps)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d): module.eval()
    head(maps).sum().backward()
    for norm, hidden in (("group", 64), ("group", 48), ("layer", 12), ("none", 12)):
        made("upernet", norm=norm, hidden_channels=hidden)(maps).sum().backward()
    made("upernet", pool_scales=(2, 3))(maps).sum().backward()
    with pytest.raises(ShapeError, match="a batch of 1"): made("upernet", pool_scales=(2, 1))(maps)
    with pytest.raises(ConfigError, match="PyramidPooling: .*'layer'"): made("upernet", norm="instance", hidden_channels=8)
    for norm, channels in (("instance", 16), ("group", 1)):
        with pytest.raises(ConfigError, match="two channels in a group"): PyramidPooling(4, channels, pool_scales=(2, 1), norm=norm)
    made("upernet", norm="group", hidden_channels=8)(maps).sum().backward()
    made("upernet", norm="instance", pool_scales=(2, 3))(maps).sum().backward()
    with pytest.raises(ConfigError, match="pool_scales"): PyramidPooling(4, 4, pool_scales=(1, 0))


EXPORT = """
import sys
import torch
from torch import nn
from torch.export import Dim
from flame_vision.blocks import GridPool
from flame_vision.heads import create_head

class Whole(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.trunk = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 6), (6, 10), (10, 14), (14, 18)))
        self.head = head
    def forward(self, x):
        maps = {}
        for stage, conv in enumerate(self.trunk, 1): maps[stage] = x = conv(x).relu()
        return self.head(maps)

def made(name):
    torch.manual_seed(0)
    if name.startswith("grid_pool"): return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), GridPool((2, int(name[-1])))).eval()
    return Whole(create_head(name, in_channels=(6, 10, 14, 18), num_classes=5, hidden_channels=12, stages=(1, 2, 3, 4))).eval()

def same(model, found, x):
    with torch.no_grad(): wanted = model(x)
    assert found.shape == wanted.shape and (found - wanted).abs().max() <= 1e-5 * wanted.abs().max(), tuple(x.shape)

sizes = [(2, 3, 49, 75), (1, 3, 64, 64), (3, 3, 33, 130), (2, 3, 97, 40)]
"""
ONNX = EXPORT + """
import onnxruntime
path, *names = sys.argv[1:]
any_size = {0: Dim("b", min=1, max=64), 2: Dim("h", min=17, max=1024), 3: Dim("w", min=17, max=1024)}
for model in map(made, names):
    program = torch.export.export(model, (torch.randn(sizes[0]),), dynamic_shapes=(any_size,))
    for size in sizes: same(model, program.module()(x := torch.randn(size)), x)
    torch.onnx.export(program, (), path, dynamo=True, verbose=False, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in sizes: same(model, torch.tensor(session.run(None, {session.get_inputs()[0].name: (x := torch.randn(size)).numpy()})[0]), x)
print("equal")
"""
COMPILED = EXPORT + """
for model in map(made, sys.argv[1:]):
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for size in sizes: same(model, compiled(x := torch.randn(size)), x)
    with torch.autocast("cpu", torch.bfloat16): same(model, torch.compile(model, backend="eager", fullgraph=True)(x), x)
print("equal")
"""


def run(code, *arguments):
    "In a process of its own: the suite's run-time shape checks are no part of what a user exports."
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True,
                         env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0 and ran.stdout.strip().endswith("equal"), ran.stderr[-3000:]


@pytest.mark.slow  # both heads, behind real backbones, are exported quickly in test_segmenters
@pytest.mark.parametrize("names", [("upernet", "segformer"), ("grid_pool_1", "grid_pool_3", "grid_pool_7")], ids=str)
def test_exports_for_every_size(names, tmp_path):
    for module in ("onnx", "onnxscript", "onnxruntime"): pytest.importorskip(module)
    run(ONNX, str(tmp_path / "net.onnx"), *names)


@pytest.mark.slow
def test_compiles_for_every_size_and_under_autocast(): run(COMPILED, "grid_pool_3", "upernet", "segformer")
