"FCN, DeepLab and U-Net heads against torchvision and segmentation_models_pytorch, on any grid, and exported."
import copy
import subprocess
import sys

import pytest
import segmentation_models_pytorch as smp
import torch
from peers import assert_same, jitter
from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead as TorchvisionFCNHead

from flame_vision.core import ConfigError, ShapeError, WeightsError
from flame_vision.core.weights import export_weights, load_weights
from flame_vision.heads import ASPP, DeepLabV3Head, DeepLabV3PlusHead, FCNHead, UNetHead, create_head, list_heads

GRIDS = ((7, 11), (33, 9), (1, 1), (40, 41))
CHANNELS, STRIDES = [8, 12, 16, 20, 24], [2, 4, 8, 16, 32]
HEADS = {  # arguments, and the stages that are read
    "fcn": (dict(in_channels=24), (4,)),
    "deeplabv3": (dict(in_channels=24, hidden_channels=40), (4,)),
    "deeplabv3plus": (dict(in_channels=[12, 24], hidden_channels=40, stages=(1, 4)), (1, 4)),
    "unet": (dict(in_channels=CHANNELS, strides=STRIDES, decoder_channels=(40, 36)), (0, 1, 2, 3, 4)),
}


def pyramid(stages, height, width, batch=2, strides=STRIDES):
    return {s: torch.randn(batch, CHANNELS[s], -(-height // strides[s]), -(-width // strides[s])) for s in stages}


def loaded(ours, theirs):
    "Their weights in our head, every one of them, and back again unchanged. `theirs` is a state dict."
    layout = ours.key_maps[0].layout
    report = load_weights(ours, theirs)
    assert report.layout == layout and len(report.loaded) == len(theirs) == len(ours.state_dict())
    assert not (report.skipped or report.absent or report.reinitialised or report.derived or report.zero)
    back = export_weights(ours, layout)
    assert back.keys() == theirs.keys() and all(torch.equal(back[k], v) for k, v in theirs.items())
    return ours.eval()


def without_encoder(peer): return {k: v for k, v in peer.state_dict().items() if not k.startswith("encoder.")}


TORCHVISION = {
    "fcn": (lambda: FCNHead(36, 7), lambda: TorchvisionFCNHead(36, 7)),
    "deeplabv3": (lambda: DeepLabV3Head(36, 7), lambda: DeepLabHead(36, 7)),
    "deeplabv3, other rates": (lambda: DeepLabV3Head(36, 7, rates=(6, 12, 18)), lambda: DeepLabHead(36, 7, (6, 12, 18))),
    "deeplabv3, four rates": (lambda: DeepLabV3Head(36, 7, rates=(1, 3, 5, 7)), lambda: DeepLabHead(36, 7, (1, 3, 5, 7))),
    "deeplabv3, one rate": (lambda: DeepLabV3Head(36, 7, rates=(3,)), lambda: DeepLabHead(36, 7, (3,))),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_equals_torchvision(name):
    ours, theirs = (make() for make in TORCHVISION[name])
    ours = loaded(ours, jitter(theirs).state_dict())
    with torch.inference_mode():
        for grid in GRIDS:
            x = torch.randn(2, 36, *grid)
            assert_same(ours({4: x}), theirs(x), f"{name}, {grid}")
            assert torch.equal(ours(x), ours({2: torch.zeros(2, 5, 1, 1), 4: x}))


@pytest.mark.parametrize("name", ["fcn", "deeplabv3"])
def test_trains_as_torchvision_does(name):
    "The same features are dropped, the same gradients come back, the same statistics are remembered."
    ours, theirs = (make() for make in TORCHVISION[name])
    ours, x = loaded(ours, jitter(theirs).state_dict()).train(), torch.randn(3, 36, 9, 13)
    outs, inputs = [], []
    for head in (ours, theirs.train()):
        torch.manual_seed(5)
        inputs.append(x.clone().requires_grad_())
        outs.append(head(inputs[-1]))
        outs[-1].square().sum().backward()
    assert_same(outs[0], outs[1], "training scores")
    assert_same(inputs[0].grad, inputs[1].grad, "gradient of the map")
    torch.manual_seed(6)
    assert not torch.allclose(ours(x), outs[0])  # something is dropped at all
    back = export_weights(copy.deepcopy(ours).eval(), "torchvision")
    torch.manual_seed(6)
    with torch.no_grad(): theirs(x)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(back[key].float(), value.float(), rtol=0, atol=1e-5 * value.abs().max().item(), msg=key)


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("stride", [16, 8])
def test_deeplabv3plus_equals_its_peer(separable, stride):
    "Theirs grows with pinned corners; that one module, and the growth to the image, are exchanged, everything else is theirs."
    rates = (6, 12, 18) if stride == 16 else (12, 24, 36)
    peer = jitter(smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=7, decoder_channels=64, encoder_output_stride=stride,
                                    decoder_aspp_separable=separable, decoder_atrous_rates=rates))
    peer.decoder.up = nn.Upsample(scale_factor=peer.decoder.up.scale_factor, mode="bilinear", align_corners=False)
    peer.segmentation_head[1] = nn.Identity()
    ours = loaded(DeepLabV3PlusHead([64, 512], 7, hidden_channels=64, rates=rates, separable=separable), without_encoder(peer))
    with torch.inference_mode():
        maps = peer.encoder(torch.randn(2, 3, 96, 160))
        assert maps[-1].shape[2:] == (96 // stride, 160 // stride)
        assert_same(ours({1: maps[2], 4: maps[5]}), peer.segmentation_head(peer.decoder(maps)), "deeplabv3plus")


def test_weights_of_another_aspp_are_refused():
    state = DeepLabV3PlusHead([8, 24], 7, hidden_channels=40).state_dict()
    with pytest.raises(WeightsError): load_weights(DeepLabV3PlusHead([8, 24], 7, hidden_channels=40, separable=False), state)
    with pytest.raises(WeightsError): load_weights(DeepLabV3Head(36, 7, rates=(1, 2)), DeepLabHead(36, 7).state_dict())
    with pytest.raises(WeightsError): load_weights(DeepLabV3Head(36, 7), DeepLabHead(36, 7, (1, 2)).state_dict())


@pytest.mark.parametrize("depth", [5, 3])
def test_unet_equals_its_peer(depth):
    peer = jitter(smp.Unet("resnet18", encoder_weights=None, classes=7, encoder_depth=depth, decoder_channels=(64, 48, 32, 24, 16)[:depth]))
    channels, strides = peer.encoder.out_channels[1:], STRIDES[:depth]
    ours = loaded(UNetHead(channels, 7, strides, decoder_channels=(64, 48, 32, 24, 16)), without_encoder(peer))
    with torch.inference_mode():
        for size in ((64, 96), (96, 64)):
            x = torch.randn(2, 3, *size)
            assert_same(ours(dict(enumerate(peer.encoder(x)[1:]))), peer(x), f"unet, {size}")
        maps = peer.encoder(torch.randn(2, 3, 101, 75))  # their decoder takes odd grids too; the last one is told by the image, here twice the finest
        whole = torch.zeros(2, 3, *(2 * side for side in maps[1].shape[2:]))
        assert_same(ours(dict(enumerate(maps[1:]))), peer.segmentation_head(peer.decoder([whole, *maps[1:]])), "unet, odd")


@pytest.mark.parametrize("name", HEADS)
def test_any_grid(name):
    arguments, stages = HEADS[name]
    head = create_head(name, num_classes=5, **arguments).eval()
    for height, width in ((201, 155), (33, 500), (7, 5), (64, 64)):
        features = pyramid(stages, height, width)
        with torch.inference_mode(): out = head(features)
        finest = features[stages[0]].shape[2:]
        assert out.shape == (2, 5, *(side * (2 if name == "unet" else 1) for side in finest)) and out.isfinite().all()
        assert head.get_output_shape({s: list(m.shape) for s, m in features.items()}) == list(out.shape)


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_learns(name):
    arguments, stages = HEADS[name]
    for norm, batch in (("batch", 2), ("layer", 1)):
        head = create_head(name, num_classes=5, norm=norm, **arguments).train()
        features = {s: m.requires_grad_() for s, m in pyramid(stages, 97, 65, batch).items()}
        head(features).square().mean().backward()
        for key, p in head.named_parameters(): assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, key
        for stage, m in features.items(): assert m.grad.abs().sum() > 0, f"stage {stage} is not read"


@pytest.mark.parametrize("name", HEADS)
def test_made_again_from_its_configuration(name):
    arguments, _ = HEADS[name]
    head = create_head(name, num_classes=5, **arguments)
    again = create_head(name, **head.config.arguments)
    assert again.config == head.config and {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in head.state_dict().items()}
    assert name in list_heads(task="segmentation")
    head.reset_classifier(9)
    assert head.config.arguments["num_classes"] == 9 == head.logits.out_channels
    assert head.logits.kernel_size == again.logits.kernel_size


def test_which_maps_they_read():
    all_of_them = (0, 1, 2, 3, 4)
    assert FCNHead.choose(all_of_them) == DeepLabV3Head.choose(all_of_them) == (4,)
    assert DeepLabV3PlusHead.choose(all_of_them) == (1, 4) and DeepLabV3PlusHead.choose((2, 3)) == (2, 3)
    assert DeepLabV3PlusHead.choose((0,)) == (0,) and DeepLabV3PlusHead.choose((4,)) == (4,)
    assert UNetHead.choose(all_of_them) == all_of_them and UNetHead.choose((1, 2, 3, 4)) == (1, 2, 3, 4)
    assert FCNHead.wishes == DeepLabV3Head.wishes == {"output_stride": 8} and DeepLabV3PlusHead.wishes == {"output_stride": 16}


def test_one_map_may_be_fine_and_deep():
    head, x = DeepLabV3PlusHead([24], 5, hidden_channels=40).eval(), torch.randn(2, 24, 5, 7)
    assert head(x).shape == (2, 5, 5, 7)


def test_what_an_aspp_sees():
    "The middle pixel of a dilated branch was made from nine pixels, a rate apart; that of the pooled one from all."
    aspp = ASPP(4, 6, rates=(2, 5)).eval()
    for p in aspp.parameters(): nn.init.constant_(p, 0.1)
    for view, expected in ((aspp.branches[1], 2), (aspp.branches[2], 5), (aspp.look_around, None)):
        x = torch.ones(1, 4, 15, 17, requires_grad=True)
        view(x)[0, :, 7, 8].sum().backward()
        seen = {tuple(i.tolist()) for i in x.grad[0].abs().sum(0).nonzero()}
        ring = {(7 + i * expected, 8 + j * expected) for i in (-1, 0, 1) for j in (-1, 0, 1)} if expected else None
        assert seen == (ring or {(i, j) for i in range(15) for j in range(17)})


@pytest.mark.parametrize("head", [DeepLabV3Head(24, 5, hidden_channels=40), DeepLabV3PlusHead([24], 5, hidden_channels=40)], ids=["v3", "v3plus"])
def test_a_batch_norm_is_not_trained_on_one_image(head):
    x = torch.randn(1, 24, 9, 9)
    with pytest.raises(ShapeError, match="ASPP .*batches of 2 or more .*norm='layer', or 'group' .*eval mode"): head.train()(x)
    head.aspp.pool.norm.eval()  # frozen statistics are no trouble
    assert head(x).isfinite().all()
    assert head.eval()(x).isfinite().all()


def test_norms_that_would_see_one_number():
    for norm, channels in (("instance", 64), ("group", 1)):
        with pytest.raises(ConfigError, match="ASPP: .* one number at a time .* two channels in a group"): ASPP(24, channels, norm=norm)
    for norm, channels in (("group", 64), ("group", 48), ("group", 33), ("group", 32), ("group", 2), ("layer", 32), ("none", 16)):
        assert ASPP(24, channels, norm=norm).train()(torch.randn(1, 24, 5, 5)).isfinite().all()


VIT = [24] * 4, [16] * 4


@pytest.mark.parametrize("channels, strides, grids, expected", [
    (*VIT, [(5, 7)] * 4, (80, 112)),                                    # equal grids do not grow between each other
    ([24] * 4, [14] * 4, [(5, 7)] * 4, (80, 112)),                      # up to a pixel for each of the image's
    ([8, 12, 24], [4, 8, 8], [(9, 5), (5, 3), (5, 3)], (36, 20)),       # a dilated backbone
    ([8, 24], [4, 32], [(17, 21), (3, 3)], (68, 84)),                   # stages left out
    ([24], [8], [(3, 5)], (24, 40)),                                    # no skip
    ([8, 24], [1, 2], [(9, 7), (5, 4)], (9, 7)),                        # a map as fine as the image
    ([24], [1], [(3, 5)], (3, 5)),                                      # nothing to grow at all
])
def test_unet_of_any_backbone(channels, strides, grids, expected):
    head = UNetHead(channels, 5, strides, decoder_channels=(40, 36)).eval()
    features = {s: torch.randn(2, c, *grid) for s, (c, grid) in enumerate(zip(channels, grids))}
    with torch.inference_mode(): assert head(features).shape == (2, 5, *expected)
    widths = [block.conv2.conv.out_channels for block in head.blocks]
    assert widths == [40, *[36] * (len(widths) - 1)][:len(widths)]


def test_unet_reads_every_skip_where_it_belongs():
    "A change of one pixel of the finest map reaches the scores around it, and no others."
    head = UNetHead([4, 4], 3, [2, 4], decoder_channels=(8,)).eval()
    features = {0: torch.randn(1, 4, 20, 20), 1: torch.randn(1, 4, 10, 10)}
    with torch.no_grad():
        before = head(features)
        features[0][0, :, 3, 15] += 1
        changed = (head(features) != before).any(1)[0].nonzero()
    assert changed.numel() and (changed[:, 0] - 6).abs().max() <= 8 and (changed[:, 1] - 30).abs().max() <= 8


@pytest.mark.parametrize("make, error, message", [
    (lambda: FCNHead([8, 24], 5), ConfigError, r"FCNHead reads one map"),
    (lambda: DeepLabV3Head([8, 24], 5), ConfigError, "DeepLabV3Head reads one map"),
    (lambda: DeepLabV3PlusHead([8, 12, 24], 5), ConfigError, "reads a fine and a deep map"),
    (lambda: DeepLabV3Head(24, 5, rates=(6, 0)), ConfigError, "rates: each must be a whole number of at least 1, got 0"),
    (lambda: FCNHead(24, 5, hidden_channels=0), ConfigError, "out_channels must be a whole number"),
    (lambda: FCNHead(24, 0), ConfigError, "num_classes must be at least 1"),
    (lambda: DeepLabV3Head(24, 5, dropout=1.5), ConfigError, r"DeepLabV3Head: dropout must lie in \[0, 1\), got 1.5"),
    (lambda: DeepLabV3PlusHead([24], 5, dropout=-0.1), ConfigError, r"DeepLabV3PlusHead: dropout must lie in \[0, 1\), got -0.1"),
    (lambda: UNetHead([8, 24], 5, [4]), ConfigError, "1 strides for 2 maps"),
    (lambda: UNetHead([8, 24], 5, [8, 4]), ConfigError, "from fine to coarse"),
    (lambda: UNetHead([8, 24], 5, [0, 4]), ConfigError, "strides: each must be a whole number"),
    (lambda: UNetHead([8, 24], 5, [4, 8], decoder_channels=()), ConfigError, "decoder_channels must be a list of whole numbers"),
    (lambda: UNetHead([8, 24], 5, [4, 8], decoder_channels=(0,)), ConfigError, "whole number of at least 1"),
    (lambda: UNetHead([8, 24], 5, [4, 8]).get_output_shape({1: [2, 8, 4, 4], 2: [2, 20, 2, 2]}), ShapeError, "map of stage 2 must be .b, 24, h, w"),
    (lambda: DeepLabV3PlusHead([8, 24], 5, stages=(1, 4)).get_output_shape({4: [2, 24, 2, 2]}), ShapeError, "1 is missing"),
])
def test_what_does_not_fit_is_named(make, error, message):
    with pytest.raises(error, match=message): make()


EXPORT = """
import sys, torch
from torch import nn
from flame_vision.heads import create_head
torch.manual_seed(0)

class Trunk(nn.Module):
    def __init__(self, head, stages):
        super().__init__()
        self.steps = nn.ModuleList(nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.ReLU()) for i, o in zip((3, 8, 12, 16), (8, 12, 16, 24)))
        self.head, self.stages = head, stages
    def forward(self, x):
        maps = {}
        for stage, step in enumerate(self.steps): maps[stage] = x = step(x)
        return self.head({s: maps[s] for s in self.stages})

def same(a, b): torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * b.abs().max().item())
heads = {"fcn": (dict(in_channels=24), (3,)), "deeplabv3": (dict(in_channels=24, hidden_channels=40), (3,)),
         "deeplabv3plus": (dict(in_channels=[12, 24], hidden_channels=40), (1, 3)),
         "unet": (dict(in_channels=[8, 12, 16, 24], strides=[2, 4, 8, 16], decoder_channels=(24, 16)), (0, 1, 2, 3))}
free, sizes = torch.export.Dim.DYNAMIC, ((2, 3, 64, 96), (1, 3, 101, 75), (3, 3, 33, 130))
for name in sys.argv[2:]:
    arguments, stages = heads[name]
    model, x = Trunk(create_head(name, num_classes=5, **arguments), stages).eval(), torch.randn(2, 3, 69, 50)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d): module.running_mean.uniform_(-0.2, 0.2); module.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        shapes = ({0: free, 2: free, 3: free},)
        if sys.argv[1] == "export": run = torch.export.export(model, (x,), dynamic_shapes=shapes).module()
        else:
            import onnxruntime
            program = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=shapes, verbose=False)
            program.save(sys.argv[1])
            session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
            run = lambda y: torch.tensor(session.run(None, {session.get_inputs()[0].name: y.numpy()})[0])
        for size in sizes: y = torch.randn(size); same(run(y), model(y))
        if name == "deeplabv3":
            same(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
            torch.compile(model.train(), backend="eager", fullgraph=True)(x)
print("equal")
"""


def run(*arguments):
    "In a process of its own: the suite's run-time shape checks are no part of what a user exports."
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", EXPORT, *arguments], capture_output=True, text=True)
    assert ran.stdout.strip().endswith("equal"), ran.stderr[-3000:]


@pytest.mark.slow  # each of them, behind real backbones, is exported quickly in test_segmenters
def test_exported_for_every_size(): run("export", *HEADS)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_onnx_runtime_takes_every_size(name, tmp_path):
    for module in ("onnx", "onnxscript", "onnxruntime"): pytest.importorskip(module)
    run(str(tmp_path / "head.onnx"), name)
