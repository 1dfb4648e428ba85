"Detectors put together from parts: equal to torchvision's, exported at any size, and every backbone with every head."
import copy
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from peers import FAMILIES, fill
from torch import nn
from torchvision.models import detection as tv

from flame_vision.architectures import Detector
from flame_vision.core import ConfigError, DataError, ShapeError, UnknownNameError, WeightsError
from flame_vision.core.weights import export_weights, load_weights
from flame_vision.heads import create_head, list_heads
from flame_vision.models import create_model, list_models

MEAN, STD = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
PUBLISHED = {"retinanet_resnet50_fpn": tv.RetinaNet_ResNet50_FPN_Weights, "retinanet_resnet50_fpn_v2": tv.RetinaNet_ResNet50_FPN_V2_Weights,
             "fcos_resnet50_fpn": tv.FCOS_ResNet50_FPN_Weights}
NARROW = {"fcos": {"depth": 1, "hidden_channels": 32}, "retinanet": {"depth": 1, "hidden_channels": 32},
          "detr": {"hidden_channels": 32, "num_queries": 10, "encoder_layers": 1, "decoder_layers": 2, "num_heads": 4, "feed_forward_channels": 64}}


@functools.cache
def peer(name):
    "torchvision's detector with seeded weights and statistics, sure enough of itself to answer."
    with torch.device("meta"): empty = getattr(tv, name)(weights=None, weights_backbone=None, min_size=160, max_size=288)
    theirs = fill(empty)
    theirs.anchor_generator = getattr(tv, "retinanet" if "retina" in name else "fcos").RetinaNet(Bare(), 91).anchor_generator if "retina" in name \
        else tv.FCOS(Bare(), 91).anchor_generator  # its anchors are numbers that the meta device lost
    theirs.head.classification_head.cls_logits.bias.data.fill_(-1.0)
    return theirs


class Bare(nn.Module):
    out_channels = 32


def compare(found, wanted):
    for mine, its in zip(found, wanted, strict=True):
        assert len(its["labels"]) >= 50 and torch.equal(mine["labels"], its["labels"])
        torch.testing.assert_close(mine["boxes"], its["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(mine["scores"], its["scores"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_torchvisions_detectors_load_strictly_and_find_the_same_boxes(name):
    theirs, model = peer(name), create_model(name).eval()
    report = load_weights(model, theirs.state_dict(), layout="torchvision")
    assert not report.reinitialised and not report.skipped and len(report.loaded) == len(model.state_dict())
    back = export_weights(model, "torchvision")
    assert back.keys() == theirs.state_dict().keys() and all(torch.equal(t, back[k]) for k, t in theirs.state_dict().items())
    for h, w in ((160, 224), (160, 288)):
        images = torch.rand(2, 3, h, w)
        with torch.no_grad(): compare(model.postprocess(model((images - MEAN) / STD), [(h, w)] * 2), theirs(list(images)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_losses_are_torchvisions(name):
    "In training, where torchvision's forward gives the losses; norms stay still on both sides, so that the maps are the same."
    theirs, model = copy.deepcopy(peer(name)).train(), create_model(name)
    load_weights(model, theirs.state_dict())
    for part in (theirs.backbone, model.backbone): part.eval()
    images = torch.rand(3, 3, 160, 224)
    corner = torch.rand(9, 2) * torch.tensor([170., 110])
    boxes = torch.cat((corner, corner + 3 + torch.rand(9, 2) * 45), 1)
    targets = [{"boxes": boxes[:8], "labels": torch.randint(1, 91, (8,))}, {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64)},
               {"boxes": boxes[8:], "labels": torch.tensor([7])}]
    wanted = theirs(list(images), copy.deepcopy(targets))
    ours = model.losses(model((images - MEAN) / STD), targets)
    for key, its in {"classification": "classification", "boxes": "bbox_regression", "centerness": "bbox_ctrness"}.items():
        if its in wanted: torch.testing.assert_close(ours[key], wanted[its], rtol=1e-5, atol=1e-6)
    assert len(ours) == len(wanted)
    sum(ours.values()).backward()
    sum(wanted.values()).backward()
    mine, its = model.head.classification.logits.weight.grad, theirs.head.classification_head.cls_logits.weight.grad
    torch.testing.assert_close(mine, its, rtol=0, atol=1e-5 * float(its.abs().max()))


def published_file(name):
    "A state dict as torchvision publishes it: norms that stand still, and in the oldest one towers that are spelled otherwise."
    state = {k: v for k, v in peer(name).state_dict().items() if name.endswith("v2") or "num_batches" not in k}
    if name == "retinanet_resnet50_fpn":
        state = {re.sub(r"_head\.conv\.(\d)\.0\.", lambda m: f"_head.conv.{2 * int(m[1])}.", k): v for k, v in state.items()}
    return state


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory):
    "Weights of a seed where torchvision keeps those that it has fetched."
    home = tmp_path_factory.mktemp("torch")
    for name, weights in PUBLISHED.items():
        place = home / "hub" / "checkpoints" / Path(weights.DEFAULT.url).name
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.save(published_file(name), place)
    return home


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_answer_as_torchvisions(name, torch_home, monkeypatch):
    "The file through torchvision's own constructor and through ours: a photo of odd size, resized, padded, and answered in its own pixels."
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    theirs = getattr(tv, name)(weights="DEFAULT").eval()
    photo = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (75, 130, 3), np.uint8))
    model = create_model(name, pretrained="coco").eval()
    assert model.class_names == PUBLISHED[name].DEFAULT.meta["categories"] and model.num_classes == 91
    with torch.no_grad(): wanted = theirs([PUBLISHED[name].DEFAULT.transforms()(photo)])[0]
    found = model.predict(photo)[0]
    assert len(wanted["labels"]) >= 50 and found.labels.tolist() == wanted["labels"].tolist()
    torch.testing.assert_close(found.boxes, wanted["boxes"], rtol=0, atol=1e-3)
    assert create_model(config=model.config).config == model.config


@pytest.mark.parametrize("call", [lambda n: create_model(f"{n}.coco", pretrained=True), lambda n: create_model(n, weights="COCO_V1"),
                                  lambda n: create_model(n, pretrained=True)])
def test_ways_to_the_published_weights(call, torch_home, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    name = "fcos_resnet50_fpn"
    model, other = call(name), create_model(name)
    assert model.provenance.source == PUBLISHED[name].DEFAULT.url
    assert name in list_models("fcos*") and f"{name}.coco" in list_models("fcos*", pretrained=True)
    assert not [k for k in model.state_dict() if "num_batches" in k] and [k for k in other.state_dict() if "num_batches" in k]
    other.load_pretrained("coco")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_that_are_loaded_afterwards_leave_a_model_that_can_be_made_again(name, torch_home, monkeypatch):
    "The first RetinaNet was trained without an epsilon: its configuration says so, and an equal model follows from it."
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    model = create_model(name)
    model.load_pretrained("coco")
    again, x = create_model(config=model.config).eval(), torch.randn(1, 3, 64, 96)
    again.load_state_dict(model.eval().state_dict())
    assert again.config == model.config and model.config.arguments["norm_eps"] == (0.0 if name == "retinanet_resnet50_fpn" else 1e-5)
    with torch.no_grad(): assert torch.equal(again(x)["boxes"], model(x)["boxes"])


def test_other_classes_start_at_random_and_say_so(torch_home, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    with pytest.warns(UserWarning, match="head.classification.logits.weight.*start at random"):
        model = create_model("fcos_resnet50_fpn", pretrained="coco", num_classes=4)
    assert model.num_classes == 4 and model.class_names is None
    with pytest.raises(UnknownNameError, match="there is 'coco'"): create_model("fcos_resnet50_fpn.voc")
    with pytest.raises(WeightsError): load_weights(create_model("fcos_resnet50_fpn"), published_file("retinanet_resnet50_fpn"))


def described(family, head, neck):
    neck = neck and {"name": neck, "arguments": {"out_channels": 32}}
    return dict(backbone=FAMILIES[family], neck=neck, head={"name": head, "arguments": NARROW[head]})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_learns_on_every_backbone(family):
    "Shape inference, losses, and a backward pass that reaches every parameter, on a grid that no stride divides; one picture has no objects."
    targets = [{"boxes": torch.tensor([[5., 8, 60, 50], [40, 20, 88, 68]]), "labels": torch.tensor([1, 4])},
               {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]
    for head, neck in (("fcos", "fpn"), ("retinanet", "pan"), ("detr", None), ("fcos", None)):
        torch.manual_seed(0)
        model = create_model(**described(family, head, neck), num_classes=5).train()
        outputs = model(torch.randn(2, 3, 70, 90))
        shapes = {k: list(v.shape) for k, v in outputs.items() if not k.startswith("auxiliary")}  # which only training has
        assert shapes == model.get_output_shape([2, 3, 70, 90]), (family, head)
        assert outputs["boxes"].shape[-1] == 4 and all(len(v) == 2 for v in outputs.values())
        losses = model.losses(outputs, targets)
        assert losses.keys() == model.loss_weights.keys() and all(v.dtype == torch.float32 for v in losses.values())
        sum(model.loss_weights[k] * v for k, v in losses.items()).backward()
        bad = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not bad, (family, head, neck, bad[:5])
        assert create_model(config=model.config).config == model.config


@pytest.mark.slow
@pytest.mark.parametrize("neck", [None, "fpn", "pan"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["fcos", "retinanet", "detr"])
def test_pictures_without_objects_reach_every_parameter(head, family, neck):
    "Also where no picture of the batch has an object: processes that train together wait for the same gradients."
    model = create_model(**described(family, head, neck), num_classes=5).train()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = model.losses(model(torch.randn(2, 3, 96, 128)), [empty] * 2)
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_the_catalogue_knows_them():
    assert list_heads(task="detection") == sorted(NARROW)


def run_export(folder, backbone, neck, head):
    for module in ("onnx", "onnxscript", "onnxruntime"): pytest.importorskip(module)
    script = str(Path(__file__).with_name("export_detectors.py"))
    ran = subprocess.run([sys.executable, script, str(folder), backbone, neck, head], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert {"logits", "boxes", "answers"} <= found.keys() and all(len(off) == 6 for name, off in found.items() if name != "answers")
    assert {name: off for name, off in found.items() if name != "answers" and max(off) > 1e-5} == {}
    assert max(found["answers"]) <= 1e-4  # scores of what is answered, in ONNX Runtime and here


@pytest.mark.parametrize("backbone, neck, head", [("resnet", "fpn", "fcos"), ("mobilenet", "pan", "retinanet"), ("swin", "none", "detr")])
def test_exports_run_at_every_size(backbone, neck, head, tmp_path): run_export(tmp_path, backbone, neck, head)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet50", "efficientnet_b0", "convnext_tiny", "regnety_002", "mobilenetv2_100", "vit",
                                      "swin_tiny_patch4_window7_224", "timm/edgenext_xx_small"])
@pytest.mark.parametrize("neck, head", [("fpn", "fcos"), ("fpn", "retinanet"), ("none", "detr"), ("pan", "detr")])
def test_each_detector_exports(backbone, neck, head, tmp_path): run_export(tmp_path, backbone, neck, head)


@pytest.mark.parametrize("head", ["fcos", "retinanet", "detr"])
def test_low_precision_learns_in_float32(head):
    "Under autocast the layers run in bfloat16; boxes, matching and losses do not, and come near those of float32."
    torch.manual_seed(0)
    model = create_model(**described("resnet", head, None if head == "detr" else "fpn"), num_classes=5).eval()
    x, target = torch.randn(1, 3, 128, 160), [{"boxes": torch.tensor([[10., 12, 90, 100]]), "labels": torch.tensor([2])}]
    exact = model.losses(model(x), target)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(x)
        losses = model.losses(outputs, target)
    assert outputs["logits"].dtype == torch.bfloat16 and outputs["boxes"].dtype == torch.float32
    for key, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[key], rtol=0.05, atol=0.02)


def test_slips_say_what_to_do():
    model = create_model(backbone="resnet18", neck="fpn", head={"name": "fcos", "arguments": {"depth": 0}}, num_classes=3)
    outputs, box = model(torch.randn(1, 3, 64, 64)), torch.tensor([[1., 2, 9, 9]])
    for wrong, error, words in (([{"boxes": box, "labels": torch.tensor([3])}], DataError, "labels lie between 1 and 2"),
                                ([{"boxes": box, "labels": torch.tensor([0])}], DataError, "0 is the background"),
                                ([{"boxes": box[:, [2, 1, 0, 3]], "labels": torch.tensor([1])}], DataError, "x1 < x2"),
                                ([{"boxes": box * torch.nan, "labels": torch.tensor([1])}], DataError, "box 0"),
                                ([{"boxes": box}], DataError, "lacks 'labels'"), ([], ShapeError, "1 pictures"),
                                ([{"boxes": box[0], "labels": torch.tensor([1])}], ShapeError, r"\(n, 4\)")):
        with pytest.raises(error, match=words): model.losses(outputs, wrong)
    with pytest.raises(ConfigError, match="between 0 and 1"): model.postprocess(outputs, score_threshold=30)
    with pytest.raises(ConfigError, match="at least 1"): model.postprocess(outputs, max_detections=0)
    with pytest.raises(ShapeError, match="each of 1 pictures"): model.postprocess(outputs, [(64, 64)] * 2)
    with pytest.raises(ShapeError, match="give sizes too"): model.postprocess(outputs, None, [(64, 64)])
    with pytest.raises(ConfigError, match="did you mean 'giou'"): create_head("fcos", in_channels=8, num_classes=3, box_loss="iou")
    with pytest.raises(ConfigError, match="give the model a neck"):
        create_model(backbone="resnet18", head={"name": "fcos", "arguments": {"stages": [3, 4]}})
    with pytest.raises(ConfigError, match="is a head for detection"): create_model("classifier", backbone="resnet18", head="fcos")
    with pytest.raises(ConfigError, match="num_classes=2"): Detector("resnet18", num_classes=1)
    with pytest.raises(DataError, match="whole numbers"): model.losses(outputs, [{"boxes": box, "labels": torch.tensor([1.0])}])
    for head, arguments, words in (("fcos", {"radius": 0.0}, "above 0"), ("fcos", {"depth": -1}, "depth"),
                                   ("fcos", {"score_threshold": float("nan")}, "between 0 and 1"),
                                   ("retinanet", {"octaves": 0}, "at least 1 octave"), ("retinanet", {"aspect_ratios": []}, "heights by widths"),
                                   ("retinanet", {"below": 0.6}, "below"), ("retinanet", {"candidates": 0}, "at least 1")):
        with pytest.raises(ConfigError, match=words): create_head(head, in_channels=8, num_classes=3, **arguments)
    with pytest.raises(ConfigError, match="head 'fcos' has no dropout"): create_model(backbone="resnet18", head="fcos", dropout=0.1)


def test_a_head_made_by_hand_says_its_strides():
    "Anchors follow the strides that a head was made for; other levels would have anchors of a wrong size, in silence."
    head = create_head("fcos", in_channels=[256] * 3, num_classes=3)
    with pytest.raises(ConfigError, match=r"strides \(8, 16, 32\), and stages \(4, 5, 6\) have \(32, 64, 128\)"):
        create_model(backbone="resnet18", neck="fpn", head=head)
    model = create_model(backbone="resnet18", neck="fpn", head=create_head("fcos", in_channels=[256] * 5, num_classes=3)).eval()
    again, x = create_model(config=model.config).eval(), torch.randn(1, 3, 64, 96)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config and torch.equal(again(x)["boxes"], model(x)["boxes"])


def test_thin_towers_see_a_map_of_one_place():
    "A group norm of one channel a group would refuse it."
    model = create_model(**described("resnet", "fcos", "fpn"), num_classes=3)
    for training in (True, False):
        outputs = model.train(training)(torch.randn(2, 3, 64, 64))
        assert all(v.isfinite().all() for v in outputs.values())


def test_another_last_layer_keeps_the_rest():
    for head in ("fcos", "retinanet", "detr"):
        model = create_model(**described("resnet", head, None if head == "detr" else "fpn"), num_classes=5)
        before = {k: t.clone() for k, t in model.state_dict().items()}
        model.reset_classifier(7)
        after = model.state_dict()
        assert {k for k, t in after.items() if t.shape != before[k].shape} == {f"head.{model.head.classifier}{p}" for p in ("weight", "bias")}
        assert all(torch.equal(t, before[k]) for k, t in after.items() if not k.startswith(f"head.{model.head.classifier}"))
        assert create_model(config=model.config).num_classes == 7
        model(torch.randn(1, 3, 160, 160))
