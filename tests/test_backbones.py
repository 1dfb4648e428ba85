"Every variant of every family against timm and torchvision: keys, tensors, outputs, maps, costs, and what a user can ask of it."
import os
import subprocess
import sys
import time
from copy import deepcopy

import pytest
import timm
import torch
from peers import LARGE, assert_same, count, empty, fill, from_timm, from_torchvision
from timm.models._efficientnet_blocks import ConvBnAct
from torchvision import models as tv

from flame_vision.architectures.base import ARCHITECTURES
from flame_vision.backbones import create_backbone, list_backbones
from flame_vision.core import ConfigError, ShapeError, WeightsError, summary
from flame_vision.core.weights import export_weights, load_weights
from flame_vision.models import CONVOLUTIONAL, PUBLISHED, create_model, torchvision_name

NAMES = list(CONVOLUTIONAL)
SIZES = ((64, 64), (97, 65))


def layout_of(model, name): return next(m for m in model.key_maps if m.layout == name)


def check_keys(name, theirs, layout):
    "Keys and shapes, there and back, without a number computed."
    ours = empty(create_model, name)
    shapes = {k: v.shape for k, v in ours.state_dict().items()}
    moved = layout_of(ours, layout).convert(theirs.state_dict())
    assert {k: v.shape for k, v in moved.items()} == shapes
    back = layout_of(ours, layout).convert(moved, to="theirs")
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert count(ours) == count(theirs)


def check_outputs(name, theirs, layout):
    "Strict load, the way back, and equal outputs at a small and at a non-square size. Gives our model."
    ours = empty(create_model, name).to_empty(device="cpu").eval()
    state = theirs.state_dict()
    report = load_weights(ours, state)
    assert report.layout == layout or "res" in name  # timm and torchvision agree on a ResNet's names
    assert len(report.loaded) == len(state) == len(ours.state_dict())
    assert not (report.skipped or report.absent or report.reinitialised or report.derived or report.zero)
    back = export_weights(ours, layout)
    assert back.keys() == state.keys() and all(torch.equal(back[k], v) for k, v in state.items())
    assert count(ours) == count(theirs)
    for size in SIZES:
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode(): assert_same(ours(x), theirs(x), f"{name}, {layout}, {size}")
    return ours


@pytest.mark.parametrize("name", NAMES)
def test_equals_timm(name):
    theirs = from_timm(name)
    check_keys(name, theirs, "timm")
    if count(theirs) > LARGE: return
    ours = check_outputs(name, fill(theirs), "timm")
    backbone = create_backbone(name).eval()
    report = load_weights(backbone, theirs.state_dict())
    assert len(report.loaded) + len(report.skipped) == len(theirs.state_dict()) and len(report.skipped) == 2, "weight and bias of the classifier"
    x = torch.randn(1, 3, *SIZES[1], generator=torch.Generator().manual_seed(2))
    with torch.inference_mode(): features, maps = backbone(x), theirs.forward_intermediates(x, intermediates_only=True)
    for info, m in zip(backbone.feature_info[-len(maps):], maps, strict=True): assert_same(features[info.stage], m, f"{name}, stage {info.stage}")
    with torch.inference_mode():
        a, b = [net.forward_head(net.forward_features(x), pre_logits=True) for net in (ours, theirs)]
    assert_same(a, b, f"{name}, pre-logits")


@pytest.mark.parametrize("name", [name for name in NAMES if torchvision_name(name) in tv.list_models()])
def test_equals_torchvision(name):
    other = torchvision_name(name)
    theirs = from_torchvision(other)
    check_keys(name, theirs, "torchvision")
    costs = {}  # by size: several weights were trained at the same one
    for weights in tv.get_model_weights(other):
        side = weights.transforms().crop_size[0]
        if side not in costs: costs[side] = summary(empty(create_model, name), [1, 3, side, side], depth=0)
        cost = costs[side]
        assert cost.parameters == weights.meta["num_params"] and round(cost.macs / 1e9, 3) == weights.meta["_ops"], weights
    if count(theirs) <= LARGE: check_outputs(name, fill(theirs), "torchvision")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_large_ones_give_equal_outputs_too(name):
    "What `make test` compares by keys and shapes alone."
    theirs = from_timm(name)
    if count(theirs) <= LARGE: pytest.skip("compared in make test")
    check_outputs(name, fill(theirs), "timm")
    other = torchvision_name(name)
    if other in tv.list_models(): check_outputs(name, fill(from_torchvision(other)), "torchvision")


@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny", "regnetx_002", "regnety_040"])
def test_equals_transformers_on_disk(name, tmp_path):
    from safetensors.torch import load_file
    from transformers import (
        ConvNextConfig,
        ConvNextForImageClassification,
        ConvNextModel,
        RegNetConfig,
        RegNetForImageClassification,
        RegNetModel,
        ResNetConfig,
        ResNetForImageClassification,
        ResNetModel,
    )
    regnet = dict(layer_type="x", depths=[1, 1, 4, 7], hidden_sizes=[24, 56, 152, 368], groups_width=8)
    gated = dict(layer_type="y", depths=[2, 6, 12, 2], hidden_sizes=[128, 192, 512, 1088], groups_width=64)
    whole, body, config = {
        "regnetx_002": (RegNetForImageClassification, RegNetModel, RegNetConfig(num_labels=10, **regnet)),
        "regnety_040": (RegNetForImageClassification, RegNetModel, RegNetConfig(num_labels=10, **gated)),
        "resnet50": (ResNetForImageClassification, ResNetModel, ResNetConfig(num_labels=10)),
        "convnext_tiny": (ConvNextForImageClassification, ConvNextModel, ConvNextConfig(num_labels=10)),
    }[name]
    theirs = fill(whole(config))
    theirs.save_pretrained(tmp_path / "whole")
    ours = create_model(name, num_classes=10).eval()
    report = load_weights(ours, tmp_path / "whole" / "model.safetensors")
    assert report.layout == "transformers" and len(report.loaded) == len(ours.state_dict())
    on_disk, back = load_file(tmp_path / "whole" / "model.safetensors"), export_weights(ours, "transformers")
    assert back.keys() == on_disk.keys() and all(torch.equal(back[k], v) for k, v in on_disk.items())
    for size in SIZES:
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode(): assert_same(ours(x), theirs(x).logits, f"{name}, {size}")
    theirs = fill(body(config))
    theirs.save_pretrained(tmp_path / "body")
    backbone = create_backbone(name).eval()
    load_weights(backbone, tmp_path / "body" / "model.safetensors")
    with torch.inference_mode(): assert_same(backbone(x)[4], theirs(x).last_hidden_state, f"{name}, deepest map")


ONE_EACH = ["resnet18", "efficientnet_b0", "efficientnetv2_s", "mobilenetv2_100", "mobilenetv3_small_100", "regnetx_002", "regnety_004",
            "convnext_tiny"]


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", [name for name in ONE_EACH if "mobilenetv3" not in name])  # timm's MobileNetV3 has no output_stride
def test_dilation_equals_timms(name, output_stride):
    theirs = fill(from_timm(name, features_only=True, output_stride=output_stride))
    ours = create_backbone(name, output_stride=output_stride, features_only=True).eval()
    flat = {k.replace("stages_", "stages.").replace("stem_", "stem."): v for k, v in theirs.state_dict().items()}  # timm's ConvNeXt is flattened
    report = load_weights(ours, flat, layout="timm")
    assert len(report.loaded) == len(ours.state_dict())
    x = torch.randn(1, 3, 64, 97, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode(): a, b = ours(x), theirs(x)
    strides = [info.stride for info in ours.feature_info][-len(b):]
    assert strides == theirs.feature_info.reduction() and max(strides) == output_stride
    for (stage, ours_map), theirs_map in zip(list(a.items())[-len(b):], b, strict=True): assert_same(ours_map, theirs_map, f"{name}, stage {stage}")


@pytest.mark.parametrize("name", ONE_EACH)
def test_checkpointing_changes_nothing(name):
    torch.manual_seed(0)
    plain = create_backbone(name, features_only=True, drop_path_rate=0.3).train()
    spared = deepcopy(plain)
    spared.set_gradient_checkpointing(True)
    x, runs = torch.randn(4, 3, 48, 64), {}
    for net in (plain, spared):
        for s, stage in net.stages.items():
            stage.register_forward_pre_hook(lambda *_, key=(net is spared, s): runs.update({key: runs.get(key, 0) + 1}))
        torch.manual_seed(1)
        sum(m.square().mean() for m in net(x).values()).backward()
    assert runs == {(twice, s): 1 + twice for twice in (False, True) for s in plain.stages}, "a checkpointed stage runs twice"
    assert spared.checkpointed_stages == {int(s) for s in spared.stages}
    for (key, p), q in zip(plain.named_parameters(), spared.parameters(), strict=True): assert torch.equal(p.grad, q.grad), key
    for (key, a), b in zip(plain.named_buffers(), spared.named_buffers(), strict=True): assert torch.equal(a, b[1]), key


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("tf_")])
def test_stochastic_depth_is_timms(name):
    from flame_vision.blocks import DropPath
    ours, theirs = empty(create_backbone, name, drop_path_rate=0.2), from_timm(name, drop_path_rate=0.2)
    a = [m.p for m in ours.modules() if isinstance(m, DropPath)]
    idle = {id(m.drop_path) for m in theirs.modules() if isinstance(m, ConvBnAct) and not m.has_skip}  # it has no shortcut to fall back on
    b = [m.drop_prob for m in theirs.modules() if isinstance(m, timm.layers.DropPath) and m.drop_prob and id(m) not in idle]
    assert len(a) == len(b) and all(abs(p - q) < 1e-6 for p, q in zip(a, b))


def test_training_with_stochastic_depth_equals_timms():
    "The same draws in the same order: the loss of a training step is timm's."
    theirs = fill(from_timm("efficientnet_b0", drop_path_rate=0.5)).train()
    ours = create_model("efficientnet_b0", drop_path_rate=0.5, dropout=0.0).train()
    load_weights(ours, theirs.state_dict())
    x, losses = torch.randn(8, 3, 48, 48), []
    for net in (ours, theirs):
        torch.manual_seed(3)
        loss = net(x).square().mean()
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)
    a, b = ours.backbone.stem.conv.weight.grad, theirs.conv_stem.weight.grad
    torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize("name", ONE_EACH)
def test_any_number_of_channels(name):
    net = create_backbone(name, in_channels=5, features_only=True).eval()
    assert {s: list(m.shape) for s, m in net(torch.randn(1, 5, 64, 64)).items()} == net.get_output_shape([1, 5, 64, 64])
    with pytest.raises(ShapeError, match=r"axis 1 \(c\) must be 5, got 3"): net(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ShapeError, match=r"axis 1 \(c\) must be 5, got 3"): net.get_output_shape([1, 3, 64, 64])


@pytest.mark.parametrize("name", NAMES)
def test_made_on_the_meta_device_in_no_time_and_no_memory(name):
    with torch.device("meta"):
        create_backbone(name)  # what is imported and compiled at first use
        start = time.process_time()
        net = create_backbone(name)
        taken = time.process_time() - start
    assert all(t.is_meta for t in [*net.parameters(), *net.buffers()])
    assert taken < 1, f"{taken:.2f} s"


@pytest.mark.parametrize("name", ONE_EACH)
def test_configuration_makes_an_equal_model(name):
    model = empty(create_model, name, num_classes=7, in_channels=1, drop_path_rate=0.1, gradient_checkpointing=(3,))
    again = empty(create_model, config=model.config)
    assert again.config == model.config and again.backbone.checkpointed_stages == {3}
    assert [(k, v.shape) for k, v in again.state_dict().items()] == [(k, v.shape) for k, v in model.state_dict().items()]


def test_what_weights_were_trained_with_goes_into_the_configuration():
    theirs = fill(from_torchvision("efficientnet_b5"))
    ours = create_model("efficientnet_b5")
    assert ours.config.arguments["norm_eps"] == 1e-5
    report = load_weights(ours, theirs.state_dict())
    assert report.adopted == {"norm_eps": 1e-3} and "norm_eps is now 0.001" in str(report)
    again = create_model(config=ours.config).eval()
    again.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode(): assert_same(again(x), theirs(x), "rebuilt from its configuration")
    with pytest.warns(UserWarning, match="timm's EfficientNet has {'norm_eps': 1e-05}, which are others here"): export_weights(ours, "timm")
    assert load_weights(again, fill(from_timm("efficientnet_b5")).state_dict()).adopted == {"norm_eps": 1e-5}


@pytest.mark.parametrize("way", ["class", "factory", "parts", "backbone"])
def test_a_registered_model_is_what_it_was_after_weights_changed_it(way, tmp_path):
    from flame_vision.models import MobileNetV3
    from flame_vision.versioning import ModelRegistry
    theirs = fill(from_torchvision("mobilenet_v3_small"))
    model = {"class": lambda: MobileNetV3("mobilenetv3_small_100"),
             "parts": lambda: create_model(backbone="mobilenetv3_small_100", head="classifier"),
             "factory": lambda: create_model("mobilenet_v3_small"), "backbone": lambda: create_model("mobilenet_v3_small")}[way]().eval()
    report = load_weights(model.backbone if way == "backbone" else model, theirs.state_dict())
    assert report.adopted == {"norm_eps": 1e-3}
    registry = ModelRegistry(tmp_path)
    registry.register("adopted", model=model)
    again, x = registry.load("adopted").eval(), torch.randn(2, 3, 64, 64)
    with torch.inference_mode(): assert torch.equal(again(x), model(x))
    model.set_grad_checkpointing()
    assert create_model(config=model.config).backbone.checkpointed_stages == {1, 2, 3, 4}


def test_padding_comes_with_weights_too():
    theirs = fill(from_torchvision("efficientnet_b0"))
    ours = create_model("tf_efficientnet_b0").eval()
    assert load_weights(ours, theirs.state_dict()).adopted == {"norm_eps": 1e-5, "padding": None}
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode(): assert_same(ours(x), theirs(x), "torchvision's weights in TensorFlow's variant")


def test_weights_of_another_family_are_refused_with_counts():
    ours = create_model("efficientnet_b0")
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    other = from_timm("mobilenetv2_100").to_empty(device="cpu").state_dict()
    with pytest.raises(WeightsError, match=r"closest to the 'timm' layout, \d+ of 360 tensors found; missing \d+"): load_weights(ours, other)
    assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items())


def test_numbers_that_are_none_are_told():
    theirs = fill(from_timm("mobilenetv3_small_100")).state_dict()
    theirs["blocks.1.0.conv_dw.weight"][0, 0, 0, 0] = float("nan")
    ours = create_model("mobilenetv3_small_100")
    with pytest.warns(UserWarning, match="NaN or infinite numbers in 'blocks.1.0.conv_dw.weight'"): load_weights(ours, theirs)


WRONG = {"output_stride": [4], "output_indices": [(7,), "4", (True,)], "drop_path_rate": [1.0, None], "gradient_checkpointing": [(9,), 3],
         "in_channels": [0, -1, "3"], "norm_eps": [-1.0]}


@pytest.mark.parametrize("name", ONE_EACH)
def test_what_is_refused(name):
    for argument, values in WRONG.items():
        for value in [v for v in values if not isinstance(v, str) and v is not None and v != 3]:
            with pytest.raises(ConfigError, match="there is no stage|must|numbers"): empty_backbone(name, **{argument: value})
    with pytest.raises(ConfigError, match="num_classes must be 0"): empty(create_model, name, num_classes=-1)


REFUSE = """
import sys, torch
sys.path.insert(0, "tests")
from test_backbones import ONE_EACH, WRONG, ConfigError, create_model
from flame_vision.backbones.base import BACKBONES
for name in ONE_EACH:
    wrong = [(BACKBONES.create, {k: v}) for k, values in WRONG.items() for v in values]
    wrong += [(create_model, {"num_classes": n}) for n in ("5", 2.5, True)]
    for make, arguments in wrong:
        try:
            with torch.device("meta"): make(name, **arguments)
        except ConfigError: continue
        raise AssertionError((name, arguments))
"""


def test_values_of_a_wrong_type_are_refused_in_our_own_words():
    "In a process of its own: in this suite the run-time type checks would be faster."
    ran = subprocess.run([sys.executable, "-c", REFUSE], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]


def empty_backbone(name, **arguments):
    with torch.device("meta"): return create_backbone(name, **arguments)


def test_a_grid_too_small_for_the_strides():
    net = create_backbone("convnext_tiny", features_only=True)
    for ask in (net.get_output_shape, lambda shape: net(torch.zeros(shape))):
        with pytest.raises(ShapeError, match="the smallest image that its strides leave something of is 32 × 32"): ask([1, 3, 31, 64])
    assert create_backbone("resnet18").get_output_shape([1, 3, 8, 8])[4] == [1, 512, 1, 1], "padded convolutions take any grid"


def test_weights_without_a_classifier_leave_a_fresh_one():
    theirs = fill(from_timm("convnext_tiny", num_classes=0))
    ours = create_model("convnext_tiny", num_classes=10)
    report = load_weights(ours, theirs.state_dict())
    assert report.reinitialised == ["head.fc.weight", "head.fc.bias"] and torch.equal(ours.backbone.stem.conv.weight, theirs.stem[0].weight)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv3_small_100", "convnext_tiny", "resnet18"])
@pytest.mark.parametrize("given", ["name", "module"])
def test_any_head_goes_on_any_backbone(name, given):
    "A head of one's own takes the maps by stage, and leaves nothing without a gradient."
    from flame_vision.architectures import Classifier
    from flame_vision.heads import register_head
    from flame_vision.parts import Part

    @register_head("deepest_mean")
    class DeepestMean(Part):
        def __init__(self, in_features: int, num_classes: int):
            super().__init__()
            self.fc = torch.nn.Linear(in_features, num_classes)

        def forward(self, maps): return self.fc(maps[max(maps)].mean((2, 3)))

    head = "deepest_mean" if given == "name" else DeepestMean(create_backbone(name).num_features, 3)
    model = Classifier(backbone=name, head=head, num_classes=3 if given == "name" else None)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_shallower_map_is_classified_without_what_belongs_behind_the_deepest():
    for name in ("efficientnet_b0", "convnext_tiny"):
        model = create_model(backbone={"name": name, "arguments": {"output_indices": [2]}}, head="classifier", num_classes=3)
        assert model.get_output_shape([1, 3, 64, 64]) == [1, 3] and model.num_features() == model.backbone.num_features
        assert count(model.backbone) == count(create_backbone(name)), "its parameters are the peer's all the same"


def test_timms_and_torchvisions_ways_to_ask():
    import inspect

    import flame_vision.models as models
    assert models.list_models("mobilenet_v2") == ["mobilenetv2_100"]
    assert models.list_models(["resnet18", "regnet_y_8gf"]) == ["regnety_080_tv", "resnet18"]
    tagged = models.list_models("resnet50.a1*", pretrained=True)
    assert tagged and all(n.startswith("resnet50.a1") for n in tagged)
    assert "efficientnet_v2_s" in dir(models) and "efficientnet_v2_s" in models.__all__
    assert "drop_path_rate" in inspect.signature(models.efficientnet_b0).parameters
    model = models.mobilenet_v3_small(num_classes=4)
    assert model.get_classifier().out_features == 4
    model.reset_classifier(6)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 6) and model.config.arguments["num_classes"] == 6
    with pytest.raises(AttributeError, match="did you mean 'efficientnet_b0'"): _ = models.eficientnet_b0


def test_every_published_network_is_a_backbone_too():
    assert set(PUBLISHED) <= set(list_backbones()) and set(PUBLISHED) <= set(ARCHITECTURES)


TRACE = """
import sys, torch
from flame_vision.models import create_model

def check(name):
    torch.compiler.reset()
    torch.manual_seed(0)
    model = create_model(name, num_classes=5).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        scores = model(x)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), scores, rtol=1e-4, atol=1e-5)
        batch, height, width = (torch.export.Dim.DYNAMIC,) * 3
        exported = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch, 2: height, 3: width}}).module()
        for shape in ((2, 3, 64, 96), (3, 3, 97, 65)):
            y = torch.randn(shape)
            torch.testing.assert_close(exported(y), model(y), rtol=1e-4, atol=1e-5)
    spared = create_model(name, num_classes=5, gradient_checkpointing=True).train()
    torch.compile(spared, fullgraph=True, backend="aot_eager")(x).sum().backward()
    assert all(p.grad is not None for p in spared.parameters())

for name in sys.argv[1:]:
    try: check(name)
    except BaseException as e: e.add_note(f"while tracing {name}"); raise
"""


TRACED = ["resnet18", "mobilenetv2_050", "tf_efficientnet_b0", "mobilenetv3_small_100", "regnety_002", "convnext_tiny"]


@pytest.mark.parametrize("names", [TRACED[::2], TRACED[1::2], pytest.param(["efficientnet_b0", "efficientnetv2_s"], marks=pytest.mark.slow)])
def test_compiles_and_exports(names):
    "In processes of their own: the suite's run-time shape checks are no part of what a user compiles."
    ran = subprocess.run([sys.executable, "-c", TRACE, *names], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr[-3000:]
