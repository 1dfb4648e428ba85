"Necks: equal to torchvision's, to the same written out in torch, and to themselves however they learn their widths."
import copy
import io
import os
import pickle
import re
import subprocess
import sys
import threading
from collections import OrderedDict

import pytest
import torch
from peers import assert_same, fill
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from flame_vision.backbones import create_backbone
from flame_vision.backbones.base import FeatureInfo
from flame_vision.core.errors import ConfigError, ShapeError, UnknownArgumentError, WeightsError
from flame_vision.core.weights import export_weights, load_weights
from flame_vision.necks import FPN, PAN, FeaturePyramid, build_fpn, create_neck, list_necks
from flame_vision.necks.base import maps_of
from flame_vision.necks.lazy import LazyNeck, pyramid_conv, read_maps, widths_by_stage
from flame_vision.necks.pan import MeetingConv2d

CHANNELS = (8, 12, 20)
GRIDS = [((41, 30), (21, 15), (11, 8)), ((37, 50), (10, 13), (9, 12)), ((5, 9), (5, 9), (5, 9)), ((3, 1), (2, 1), (1, 1))]


def maps(channels=CHANNELS, stages=(1, 2, 3), grids=GRIDS[0], batch=2):
    return {s: torch.randn(batch, c, *grid) for s, c, grid in zip(stages, channels, grids)}


def same_levels(ours, theirs, what):
    assert len(ours) == len(theirs)
    for (level, x), y in zip(ours.items(), theirs.values()): assert_same(x, y, f"{what}, level {level}")


EXTRAS = {"none": (None, "output", None), "pool": ("pool", "output", LastLevelMaxPool), "p6p7": ("p6p7", "output", lambda: LastLevelP6P7(16, 16)),
          "p6p7 from the input": ("p6p7", "input", lambda: LastLevelP6P7(20, 16))}


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("extra", EXTRAS)
def test_fpn_equals_torchvision(extra, norm):
    levels, begin, block = EXTRAS[extra]
    theirs = fill(FeaturePyramidNetwork(list(CHANNELS), 16, block and block(), nn.BatchNorm2d if norm else None))
    for stages in ((1, 2, 3), (0, 2, 4)):
        ours = FPN(CHANNELS, 16, levels, begin, norm, stages=stages).eval()
        report = load_weights(ours, theirs.state_dict())
        assert report.layout == "torchvision" and len(report.loaded) == len(ours.state_dict()) == len(theirs.state_dict())
        other = FeaturePyramidNetwork(list(CHANNELS), 16, block and block(), nn.BatchNorm2d if norm else None)
        other.load_state_dict(export_weights(ours, "torchvision"))
        for grids in GRIDS:
            x = maps(stages=stages, grids=grids)
            expected = theirs(OrderedDict((str(s), m) for s, m in x.items()))
            same_levels(ours(x), expected, extra)
            same_levels(other.eval()(OrderedDict((str(s), m) for s, m in x.items())), expected, "the way back")
        assert list(ours(x)) == [*stages, *range(stages[-1] + 1, stages[-1] + 1 + len(expected) - 3)]


def test_fpn_reads_torchvisions_older_spelling_and_writes_the_new_one():
    theirs = fill(FeaturePyramidNetwork(list(CHANNELS), 16, LastLevelP6P7(16, 16)))
    old = {re.sub(r"(blocks\.\d)\.0\.", r"\1.", key): t for key, t in theirs.state_dict().items()}
    assert "inner_blocks.0.weight" in old and "layer_blocks.2.bias" in old and "extra_blocks.p6.weight" in old
    ours = FPN(CHANNELS, 16, "p6p7", stages=(1, 2, 3))
    assert load_weights(ours, old).layout == "torchvision"
    assert list(export_weights(ours, "torchvision")) and set(export_weights(ours, "torchvision")) == set(theirs.state_dict())
    x = maps()
    same_levels(ours(x), theirs(OrderedDict((str(s), m) for s, m in x.items())), "older spelling")


def test_weights_that_do_not_fit_are_refused_and_change_nothing():
    theirs = FeaturePyramidNetwork(list(CHANNELS), 16)
    ours = FPN(CHANNELS[:2], 16, stages=(1, 2))
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(WeightsError, match="unexpected 4"): load_weights(ours, theirs.state_dict())
    assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items())


def test_first_weights_are_drawn_as_torchvision_draws_them():
    torch.manual_seed(0)
    eager, lazy = FPN((64, 128), 64, "p6p7"), FPN(None, 64, "p6p7", "input")
    lazy(maps((64, 128), (3, 4)))
    theirs = FeaturePyramidNetwork([64, 128], 64, LastLevelP6P7(64, 64))
    bounds = {w.shape: w.abs().max() for w in theirs.state_dict().values() if w.ndim == 4}
    for neck in (eager, lazy):
        for name, p in neck.named_parameters():
            if name.endswith("bias"): assert not p.any()
            elif p.shape in bounds: assert 0.95 < p.abs().max() / bounds[p.shape] < 1.05, name
    assert 0.95 < lazy.extra.p6.weight.abs().max() / (3 / (128 * 9)) ** 0.5 < 1.05


def written_out(pan, x, steps, mend=False):
    "The paper's figure 1 (a, b) in plain torch; each step has one stride per axis."
    w, stages = pan.state_dict(), list(x)
    def layer(x, name, **more): return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **more)
    known, p = None, {}
    for s in reversed(stages):
        known = layer(x[s], f"laterals.{s}.conv") + (0 if known is None else F.interpolate(known, x[s].shape[2:]))
        p[s] = layer(known, f"outputs.{s}.conv", padding=1)
    n = {stages[0]: p[stages[0]]}
    for before, s in zip(stages, stages[1:]):
        down = layer(n[before], f"ways.{s}.down", stride=steps, padding=1)
        if mend: down = F.interpolate(down, p[s].shape[2:])
        assert down.shape == p[s].shape
        n[s] = layer(down + p[s], f"ways.{s}.smooth.conv", padding=1)
    return n


@pytest.mark.parametrize("grids, steps", [(GRIDS[0], 2), (GRIDS[2], 1), (GRIDS[3], 2), (((9, 8), (5, 8), (3, 8)), (2, 1))])
def test_pan_equals_the_same_written_out(grids, steps):
    pan, x = fill(PAN(CHANNELS, 16, stages=(1, 2, 3))), maps(grids=grids)
    same_levels(pan(x), written_out(pan, x, steps), "PAN")


def test_odd_grids_meet_by_themselves():
    "Where a backbone rounds up, a step of 2 gives what its next stage has, and nothing is resized."
    conv = MeetingConv2d(2)
    for size in range(1, 70):
        half = -(-size // 2)
        x = torch.randn(1, 2, size, 4)
        assert torch.equal(conv(x, torch.zeros(1, 2, half, 2)), F.conv2d(x, conv.weight, conv.bias, 2, 1))
    assert conv(torch.randn(1, 2, 41, 30), torch.zeros(1, 2, 11, 7)).shape[2:] == (11, 7)
    assert torch.equal(conv(x, x), F.conv2d(x, conv.weight, conv.bias, 1, 1))


def test_grids_of_a_backbone_that_rounds_down():
    backbone = create_backbone("convnext", depths=[1] * 4, dims=[8, 12, 16, 20], output_indices=(1, 2, 3, 4)).eval()
    with torch.no_grad(): x = backbone(torch.randn(2, 3, 100, 76))
    assert [m.shape[2:] for m in x.values()] == [(25, 19), (12, 9), (6, 4), (3, 2)]
    pan, fpn = fill(PAN((8, 12, 16, 20), 16)), FPN((8, 12, 16, 20), 16, "p6p7")
    same_levels(pan(x), written_out(pan, x, 2, mend=True), "PAN")
    assert [m.shape[2:] for m in fpn(x).values()] == [(25, 19), (12, 9), (6, 4), (3, 2), (2, 1), (1, 1)]


class Plain(nn.Module):
    "Two maps of one grid, 14 pixels to a side: half of a level of 7 is not 4."
    probe_shape = [1, 3, 224, 224]

    def __init__(self):
        super().__init__()
        self.patches = nn.ModuleDict({s: nn.Conv2d(3, 32, 16, 16) for s in ("4", "2")})

    def forward(self, x): return {int(s): conv(x) for s, conv in self.patches.items()}


def test_what_comes_out_of_backbone_and_neck():
    backbone = Plain()
    assert maps_of(backbone, None) == (FeatureInfo(2, 32, 16), FeatureInfo(4, 32, 16))
    strides = {None: {2: 16, 4: 16, 5: 32, 6: 64}, (2,): {2: 16, 3: 32, 4: 64}}
    for stages, expected in strides.items():
        neck = FPN(out_channels=16, extra_levels="p6p7", stages=stages)
        assert maps_of(backbone, neck) == tuple(FeatureInfo(s, 16, stride) for s, stride in expected.items())
        assert neck.in_channels is None and FeaturePyramid(backbone, 16, stages, extra_levels="p6p7").feature_info == maps_of(backbone, neck)
        assert neck.get_output_shape({s: [1, 32, 14, 14] for s in (2, 4)})[max(expected)][2] == 4
    resnet = create_backbone("resnet18", features_only=True, output_indices=(1, 4))
    assert maps_of(resnet) == resnet.feature_info
    with pytest.raises(ConfigError, match=r"Flatten must give feature maps \(b, c, h, w\) by stage"): maps_of(nn.Flatten())
    with pytest.raises(ShapeError, match="3 is missing"): maps_of(backbone, PAN(stages=(2, 3)))


class Equal(LazyNeck):
    "The base alone: layers by another name than FPN's, one more that reads the deepest map, and nothing that has its size from the beginning."
    reader = "narrow.{stage}"

    def __init__(self, in_channels=None, out_channels=16, stages=None):
        super().__init__()
        widths, self.out_channels = widths_by_stage("Equal", in_channels, stages), out_channels
        self.tell(widths, in_channels is not None or stages is not None)
        self.narrow = nn.ModuleDict({str(s): pyramid_conv(c, out_channels) for s, c in widths.items()})
        self.further = pyramid_conv(widths[max(widths)], out_channels, 3, 2)

    def forward(self, features):
        maps = read_maps(self, features)
        return {s: self.narrow[str(s)](x) for s, x in maps.items()} | {max(maps) + 1: self.further(maps[max(maps)])}


def test_a_lazy_neck_of_ones_own():
    x, eager = maps(), fill(Equal(CHANNELS, stages=(1, 2, 3)))
    waiting, ran = Equal(), Equal()
    held = {id(p) for p in ran.parameters()}
    with torch.inference_mode(): ran(x)
    sum(m.square().mean() for m in ran(x).values()).backward()
    assert all(id(p) in held and p.grad.any() for p in ran.parameters() if p.ndim == 4) and ran.stages == (1, 2, 3)
    for neck in (waiting, ran): neck.load_state_dict(eager.state_dict())
    for neck in (waiting, ran, copy.deepcopy(ran)):
        assert neck.in_channels == CHANNELS and all(torch.equal(a, b) for a, b in zip(neck(x).values(), eager(x).values()))


@pytest.mark.parametrize("kind", ["fpn", "pan"])
@pytest.mark.parametrize("more", [{}, {"extra_levels": "p6p7", "extra_from": "input"}, {"norm": "batch", "act": "relu", "extra_levels": "pool"}])
def test_every_parameter_gets_a_gradient_and_shapes_are_known(kind, more):
    for grids in (GRIDS[0], GRIDS[2]):
        neck, x = create_neck(kind, in_channels=CHANNELS, out_channels=16, stages=(1, 2, 3), **more), maps(grids=grids)
        out = neck(x)
        assert neck.get_output_shape({s: list(m.shape) for s, m in x.items()}) == {s: list(m.shape) for s, m in out.items()}
        sum(m.square().mean() for m in out.values()).backward()
        unused = [n for n, p in neck.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not unused and sum(not p.grad.any() for p in neck.parameters()) == 0


CHOSEN = [((1,), (1, 2, 3), (1, 2, 3)), ((2,), (2, 3), (1, 2, 3)), ((3,), (3,), (1, 2, 3)), ((1, 3), (1, 2, 3), (1, 2, 3)),
          ((4,), (3,), (1, 2, 3)), ((2, 5), (2, 3), (1, 2, 3)), ((1, 2, 3, 4, 5), (1, 2, 3), (1, 2, 3))]  # levels, what FPN reads, what PAN reads


@pytest.mark.parametrize("begin", ["output", "input"])
@pytest.mark.parametrize("kind", [FPN, PAN])
def test_chosen_levels_are_those_of_the_whole_neck_and_have_no_idle_layer(kind, begin):
    "Same numbers from fewer layers, however the neck learns its widths; every layer that is left gets a gradient."
    more, x = dict(out_channels=16, extra_levels="p6p7", extra_from=begin, norm="batch"), maps()
    whole = fill(kind(CHANNELS, stages=(1, 2, 3), **more))
    with torch.no_grad(): expected = whole(x)
    assert whole.levels == (1, 2, 3, 4, 5) == tuple(expected) and not whole.dropped
    for levels, fpn_reads, pan_reads in CHOSEN:
        reads = fpn_reads if kind is FPN else pan_reads
        if begin == "input" and min(levels) > 3: reads = (3,)
        eager, ran = kind(CHANNELS, stages=(1, 2, 3), levels=levels, **more), kind(levels=levels, **more)
        told, waiting = kind(stages=(1, 2, 3), levels=list(levels), **more), kind(stages=(1, 2, 3), levels=levels, **more)
        ran({s: x[s] for s in reads} if reads[0] == 1 else x)
        told({s: x[s] for s in reads})
        report = load_weights(eager, whole.state_dict())
        assert len(report.loaded) == len(eager.state_dict()) == len(whole.state_dict()) - len(report.skipped)
        everything = len(levels) == 5 or kind is PAN and begin == "output" and 5 in levels
        assert bool(report.skipped) != everything, levels
        for neck in (ran, told, waiting): assert not any(neck.load_state_dict(eager.state_dict()))
        for neck in (eager, ran, told, waiting, copy.deepcopy(ran), kind.from_config(eager.config), kind.from_config(ran.config)):
            neck.load_state_dict(eager.state_dict())
            out = neck.train(False)(x)
            assert neck.levels == tuple(out) == levels and neck.reads(neck.stages) == reads
            assert all(torch.equal(m, expected[level]) for level, m in out.items())
            assert torch.equal(neck({s: x[s] for s in reads})[levels[0]], expected[levels[0]])
            assert neck.get_output_shape({s: list(m.shape) for s, m in x.items()}) == {s: list(m.shape) for s, m in out.items()}
        sum(m.square().mean() for m in eager.train()(x).values()).backward()
        assert not [n for n, p in eager.named_parameters() if p.grad is None or not p.grad.isfinite().all()], levels


@pytest.mark.parametrize("levels", [(1,), (2, 3), (3, 4), (5,)])
def test_torchvisions_pyramid_loads_into_fewer_levels(levels):
    "The report says what was left out, and nothing else is."
    theirs = fill(FeaturePyramidNetwork(list(CHANNELS), 16, LastLevelP6P7(16, 16)))
    ours, x = FPN(CHANNELS, 16, "p6p7", stages=(1, 2, 3), levels=levels).eval(), maps()
    report = load_weights(ours, theirs.state_dict())
    assert report.layout == "torchvision" and len(report.loaded) + len(report.skipped) == len(theirs.state_dict()) and report.skipped
    numbers = {f"inner_blocks.{i}": 1 + i >= min(*levels, 3) for i in range(3)}
    assert all(needed != any(k.startswith(name) for k in report.skipped) for name, needed in numbers.items())
    expected = dict(zip(range(1, 6), theirs(OrderedDict((str(s), m) for s, m in x.items())).values()))
    for level, m in ours(x).items(): assert_same(m, expected[level], f"level {level}")
    part = FPN(CHANNELS, 16, stages=(1, 2, 3), levels=(3,))
    with pytest.raises(WeightsError, match="unexpected 4: .*extra_blocks"): load_weights(part, theirs.state_dict())
    with pytest.raises(WeightsError, match="missing"): load_weights(FPN(CHANNELS, 16, stages=(1, 2, 3)), part.state_dict())


def test_levels_that_there_are_not():
    for make in (lambda: FPN(CHANNELS, stages=(1, 2, 3), levels=[2, 4]), lambda: PAN(CHANNELS, stages=(1, 2, 3), levels=[2, 4])):
        with pytest.raises(ConfigError, match=r"levels=\[2, 4\], and there is no level 4; there are \(1, 2, 3\)"): make()
    with pytest.raises(ConfigError, match=r"no level 7; there are \(0, 1, 2, 3, 4, 5, 6\)"): FPN(extra_levels="p6p7", levels=[7])
    lazy = FPN(extra_levels="pool", levels=[5], out_channels=4)
    with pytest.raises(ConfigError, match=r"no level 5; there are \(1, 2, 3, 4\)"): lazy(maps())
    assert lazy.stages is None and len(lazy.laterals) == 5 and list(lazy(maps(stages=(2, 3, 4)))) == [5]
    for wrong in ([], [2, 1], [1, 1], [-1]):
        with pytest.raises(ConfigError, match="levels is a list of numbers, each once and ascending"): FPN(CHANNELS, levels=wrong)
    with pytest.raises(WeightsError, match=r"these weights are for stages \(1, 2, 3\), this FPN reads \(2, 3\)"):
        FPN(out_channels=16, stages=(1, 2, 3), levels=[2]).load_state_dict(FPN(CHANNELS, 16, stages=(1, 2, 3)).state_dict())


def test_what_comes_out_of_fewer_levels_has_its_strides():
    backbone = create_backbone("resnet18", features_only=True, output_indices=(2, 3, 4))
    for kind in (FPN, PAN):
        whole = {m.stage: m for m in maps_of(backbone, kind(out_channels=16, extra_levels="p6p7"))}
        assert [m.stride for m in whole.values()] == [8, 16, 32, 64, 128]
        for levels in ((2,), (4,), (6,), (3, 6)):
            assert maps_of(backbone, kind(out_channels=16, extra_levels="p6p7", levels=levels)) == tuple(whole[level] for level in levels)


DDP = """
import os, sys, torch
from torch import distributed, nn
from flame_vision.models import create_model
from flame_vision.necks import FPN
rank, meeting = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
torch.manual_seed(rank)
backbone = {"name": "convnext", "arguments": {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8]}}

def train(neck, head, more={}):
    torch.manual_seed(0)
    model = create_model(backbone=backbone, neck=neck, head={"name": head, "arguments": more}, num_classes=3)
    ddp = nn.parallel.DistributedDataParallel(model.train(), find_unused_parameters=False)
    optimizer = torch.optim.SGD(ddp.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        ddp(torch.randn(2, 3, 70, 90)).square().mean().backward()
        optimizer.step()
    return sum(p.double().sum().item() for p in model.parameters())

def named(name, extra=None): return {"name": name, "arguments": {"out_channels": 8, "extra_levels": extra}}
wide = {"hidden_channels": 8}
for name, extra, head, more in (("fpn", None, "fcn", {}), ("pan", "p6p7", "fcn", {}), ("pan", None, "deeplabv3plus", wide),
                                ("fpn", "p6p7", "classifier", {})):
    same = [None, None]
    distributed.all_gather_object(same, train(named(name, extra), head, more))
    assert same[0] == same[1], same
try: train(FPN(out_channels=8), "fcn")
except RuntimeError as e: assert "parameters that were not used" in str(e), e
else: raise AssertionError("a whole pyramid behind a head that reads one level should have been noticed")
print("trained")
os._exit(0)
"""


def test_two_processes_train_a_neck_whose_head_reads_one_level(tmp_path):
    "DistributedDataParallel without find_unused_parameters; a neck with levels that nobody reads shows that it would complain."
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([sys.executable, "-c", DDP, str(rank), str(tmp_path / "meeting")], env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE) for rank in range(2)]
    try: ended = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started: process.kill()
    assert all(out.strip().endswith("trained") for out, _ in ended), [error[-1500:] for _, error in ended]


def test_maps_of_a_plain_vit():
    backbone = create_backbone("vit", embed_dim=32, depth=4, num_heads=2, patch_size=8, img_size=64, output_indices=(1, 2, 3, 4)).eval()
    x = backbone(torch.randn(2, 3, 64, 64))
    assert {m.shape[2:] for m in x.values()} == {(8, 8)}
    for kind in ("fpn", "pan"):
        out = create_neck(kind, out_channels=16, extra_levels="pool")(x)
        assert [tuple(m.shape[1:]) for m in out.values()] == [(16, 8, 8)] * 4 + [(16, 4, 4)]


LAZY = pytest.mark.parametrize("kind", [FPN, PAN])
MORE = dict(out_channels=16, extra_levels="p6p7", extra_from="input", norm="batch")


@LAZY
def test_an_optimizer_made_before_the_first_forward_trains_every_parameter(kind):
    neck, x = kind(**MORE), maps()
    optimizer = torch.optim.AdamW(neck.parameters(), lr=0.1)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    out = neck(x)
    assert all(id(p) in held for p in neck.parameters()) and set(neck.laterals) == {"1", "2", "3"}
    before = copy.deepcopy(dict(neck.named_parameters()))
    sum(m.square().mean() for m in out.values()).backward()
    optimizer.step()
    optimizer.zero_grad()
    assert all((p != before[name]).any() for name, p in neck.named_parameters())
    assert type(neck.laterals["1"].conv) is nn.Conv2d and not neck.laterals["1"].conv._forward_pre_hooks


@LAZY
def test_lazy_and_eager_are_the_same_neck(kind):
    eager, x = fill(kind(CHANNELS, stages=(1, 2, 3), **MORE)), maps()
    ran, waiting, told = kind(**MORE), kind(**MORE), kind(stages=(1, 2, 3), **MORE)
    ran(maps())
    for lazy in (ran, waiting, told):
        assert not any(lazy.load_state_dict(eager.state_dict()))
        assert (lazy.in_channels, lazy.stages) == (CHANNELS, (1, 2, 3)) and lazy.config == eager.config
        for (level, a), b in zip(lazy.eval()(x).items(), eager(x).values()): assert torch.equal(a, b), level
        assert not any(kind(CHANNELS, stages=(1, 2, 3), **MORE).load_state_dict(lazy.state_dict()))
        assert kind.from_config(lazy.config).state_dict().keys() == eager.state_dict().keys()


@LAZY
def test_a_lazy_neck_inside_a_model_takes_a_state_dict(kind):
    def model(): return nn.ModuleDict({"a": nn.ModuleDict({"neck": kind(**MORE)}), "other": kind(out_channels=4)})
    ran = model()
    ran["a"]["neck"](maps())
    ran["other"](maps((5, 6), (3, 4)))
    waiting = model()
    waiting.load_state_dict(ran.state_dict())
    assert waiting["a"]["neck"].in_channels == CHANNELS and waiting["other"].stages == (3, 4)


@LAZY
def test_what_has_not_run_can_be_copied_asked_and_saved(kind):
    neck, x = kind(**MORE), maps()
    shapes = {s: list(m.shape) for s, m in x.items()}
    assert neck.get_output_shape(shapes)[4] == [2, 16, 6, 4] and neck.in_channels is None and neck.config.arguments["in_channels"] is None
    assert neck.get_output_shape({s: [1, 7, 8, 8] for s in (3, 4)})[6] == [1, 16, 2, 2] and len(neck.laterals) == 5
    state = neck.state_dict()
    assert all(isinstance(t, nn.UninitializedParameter) for key, t in state.items() if re.match(r"laterals\.\d\.conv|extra.p6", key))
    assert not any(kind(**MORE).load_state_dict(state))
    for other in (copy.deepcopy(neck), pickle.loads(pickle.dumps(neck))):
        assert [other(x)[1].shape for _ in range(2)] == [(2, 16, 41, 30)] * 2 and other.in_channels == CHANNELS
    assert neck.in_channels is None
    neck(x)
    file = io.BytesIO()
    torch.save(neck.eval(), file)
    file.seek(0)
    for other in (copy.deepcopy(neck), pickle.loads(pickle.dumps(neck)), torch.load(file, weights_only=False)):
        assert all(torch.equal(a, b) for a, b in zip(other(x).values(), neck(x).values()))


@LAZY
def test_a_prediction_first_does_not_keep_it_from_training(kind):
    neck = kind(**MORE)
    with torch.inference_mode(): neck(maps())
    sum(m.sum() for m in neck(maps()).values()).backward()
    with torch.inference_mode(): assert len(kind(**MORE)(maps())) == 5
    half = kind(**MORE).to(torch.bfloat16)
    assert half({s: m.bfloat16() for s, m in maps().items()})[1].dtype == torch.bfloat16


@LAZY
def test_a_second_forward_with_other_maps_is_refused(kind):
    neck = kind(**MORE)
    neck(maps())
    with pytest.raises(ShapeError, match=r"stage 3 must be \(b, 20, h, w\), got \[2, 21, 11, 8\]"): neck(maps((8, 12, 21)))
    with pytest.raises(ShapeError, match="learnt stages"): neck({0: torch.randn(2, 4, 50, 50), **maps()})
    with pytest.raises(ShapeError, match="3 is missing"): neck(maps(CHANNELS[:2], (1, 2)))
    chooses = kind(stages=(1, 2), out_channels=16)
    assert list(chooses(maps())) == [1, 2] == list(chooses(maps(CHANNELS[:2], (1, 2))))
    eager = kind(CHANNELS[:2], 16, stages=(1, 2))
    assert list(eager(maps())) == [1, 2]


@LAZY
def test_refused_maps_settle_nothing(kind):
    neck = kind(**MORE)
    for wrong in ({1: torch.randn(2, 8, 4, 4), 9: torch.randn(2, 8, 2, 2)},):
        with pytest.raises(ShapeError, match=r"stages=\(1, 9\) prepares"): neck(wrong)
    with pytest.raises(ShapeError, match="2 is missing"): kind(stages=(1, 2), **MORE)({1: torch.randn(2, 8, 4, 4)})
    with pytest.raises(WeightsError, match="its width is out_channels=16"): neck.load_state_dict(fill(kind(CHANNELS, 8)).state_dict())
    told = kind(stages=(2, 3), **MORE)
    with pytest.raises(WeightsError, match=r"for stages \(1, 2, 3\)"): told.load_state_dict(kind(CHANNELS, stages=(1, 2, 3), **MORE).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"): neck.load_state_dict({})
    assert neck.in_channels is told.in_channels is None and len(neck.laterals) == 5 and len(neck(maps())) == 5


@LAZY
def test_many_threads_may_come_first(kind):
    x, failed = maps((4, 4, 4)), []
    for _ in range(8):
        neck, gate, out = kind(out_channels=4).eval(), threading.Barrier(8), [None] * 8

        def first(i, neck=neck, gate=gate, out=out):
            gate.wait()
            try: out[i] = neck(x)[1]
            except Exception as e: failed.append(e)
        threads = [threading.Thread(target=first, args=(i,)) for i in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert not failed and all(torch.equal(o, out[0]) for o in out)


WRONG = [(dict(out_channels=0), "out_channels must be a whole number of at least 1"), (dict(in_channels=()), "leave it out"),
         (dict(in_channels=(8, 0)), "each of in_channels"), (dict(in_channels=(8,) * 6), "stages="), (dict(stages=()), "ascending"),
         (dict(stages=(2, 1)), "ascending"), (dict(in_channels=(8, 8), stages=(1,)), "1 stages for the channels of 2 maps"),
         (dict(extra_levels="p6-p7"), "did you mean 'p6p7'"), (dict(extra_levels="pool", extra_from="input"), "goes with 'p6p7'"),
         (dict(extra_from="inputs"), "extra_from='inputs'"), (dict(norm="bach"), "did you mean 'batch'"), (dict(act="rely"), "did you mean 'relu'")]


@pytest.mark.parametrize("wrong, says", WRONG, ids=str)
def test_bad_arguments_are_refused(wrong, says):
    for kind in (FPN, PAN):
        with pytest.raises(ConfigError, match=re.escape(says)): kind(**wrong)


def test_names_and_functions():
    assert list_necks("*an") == ["pan"] and "fpn" in list_necks()
    assert type(build_fpn(8)) is FPN and build_fpn(8).config == create_neck("fpn", out_channels=8).config
    assert build_fpn(8, [4, 5], extra_levels="pool").in_channels == (4, 5) and build_fpn(8, [4, 5]).stages == (3, 4)
    with pytest.raises(UnknownArgumentError, match="extra_levels"): build_fpn(8, extra_level="pool")
    with pytest.raises(ConfigError, match="at least 1"): build_fpn(0)


def test_feature_pyramid():
    backbone = create_backbone("resnet18", features_only=True, output_indices=(1, 3, 4)).eval()
    pyramid = FeaturePyramid(backbone, 16, extra_levels="p6p7", extra_from="input").eval()
    x = torch.randn(1, 3, 100, 75)
    assert pyramid.fpn.in_channels == (64, 256, 512)
    assert [(i.stage, i.channels, i.stride) for i in pyramid.feature_info] == [(1, 16, 4), (3, 16, 16), (4, 16, 32), (5, 16, 64), (6, 16, 128)]
    again = FeaturePyramid.from_config(pyramid.config).eval()
    again.load_state_dict(pyramid.state_dict())
    assert again.config == pyramid.config and all(torch.equal(a, b) for a, b in zip(again(x).values(), pyramid(x).values()))
    assert pyramid.get_output_shape([1, 3, 100, 75]) == {s: list(m.shape) for s, m in pyramid(x).items()}
    assert list(FeaturePyramid(backbone, 16, stages=(3, 4))(x)) == [3, 4]
    with pytest.raises(ConfigError, match="not 2"): FeaturePyramid(backbone, 16, stages=(2, 3))
    with pytest.raises(UnknownArgumentError): FeaturePyramid(backbone, 16, extras="pool")


TRACE = """
import sys, torch
from flame_vision.backbones import create_backbone
from flame_vision.necks import create_neck
torch.manual_seed(0)
kind, more, stages, least, onnx = eval(sys.argv[1])
if kind == "vit": backbone = create_backbone("vit", embed_dim=32, depth=4, num_heads=2, patch_size=8, img_size=64, output_indices=stages)
else: backbone = create_backbone("resnet18", features_only=True, output_indices=stages)
neck = create_neck("pan" if kind == "vit" else kind, in_channels=[i.channels for i in backbone.feature_info], stages=stages, out_channels=16, **more)
net = torch.nn.Sequential(backbone, neck).eval()
x = torch.randn(2, 3, least + 31, 2 * least)
sizes = {0: torch.export.Dim("b", max=64), 2: torch.export.Dim("h", min=least, max=1024), 3: torch.export.Dim("w", min=least, max=1024)}
program = torch.export.export(net, (x,), dynamic_shapes=(sizes,)).module()
if onnx:
    import onnxruntime
    made = torch.onnx.export(net, (x,), dynamo=True, dynamic_shapes=(sizes,), verbose=False).model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
for shape in ((2, 3, 96, 70), (1, 3, 65, 97), (3, 3, 100, 75)):
    if least > 65: shape = (*shape[:2], shape[2] + least - 65, shape[3] + least - 65)
    y = torch.randn(shape)
    with torch.no_grad(): expected, got = net(y), program(y)
    answers = [list(got.values())]
    if onnx: answers.append([torch.from_numpy(a) for a in session.run(None, {session.get_inputs()[0].name: y.numpy()})])
    for answer in answers:
        for a, e in zip(answer, expected.values(), strict=True): assert (a - e).abs().max() <= 1e-5 * e.abs().max(), (shape, a.shape, e.shape)
if not onnx:
    compiled = torch.compile(net, backend="eager", fullgraph=True, dynamic=True)
    for level, e in expected.items(): assert torch.allclose(compiled(y)[level], e, atol=1e-5)
"""
# Every level has two pixels at least: for `torch.export` a side of one pixel is another program.
SLOW = pytest.mark.slow
TRACES = [("pan", {"extra_levels": "p6p7", "norm": "batch"}, (1, 2), 33, True),
          pytest.param(("fpn", {"extra_levels": "pool"}, (1, 2, 3), 33, True), marks=SLOW),
          pytest.param(("fpn", {"extra_levels": "p6p7", "extra_from": "input"}, (1, 2, 3), 65, True), marks=SLOW),
          pytest.param(("fpn", {"extra_levels": "p6p7"}, (1, 2, 3, 4), 129, True), marks=SLOW),
          pytest.param(("pan", {}, (1, 3), 33, True), marks=SLOW),
          pytest.param(("pan", {"extra_levels": "p6p7"}, (1, 2, 3, 4), 129, False), marks=SLOW),
          pytest.param(("vit", {}, (1, 2, 3, 4), 33, True), marks=SLOW)]


@pytest.mark.parametrize("case", TRACES, ids=lambda case: f"{case[0]}-{case[2]}-{case[1]}")
def test_exports_with_free_sizes(case):
    "In a process of its own: the suite's run-time shape checks are no part of what a user exports."
    for module in ("onnx", "onnxscript", "onnxruntime"): pytest.importorskip(module)
    command = [sys.executable, "-c", TRACE, repr(case)]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr[-3000:]
