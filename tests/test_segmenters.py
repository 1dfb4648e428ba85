"Segmenters put together from parts: equal to torchvision's, exported at any size, and every backbone with every head."
import copy
import functools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from loopback_hub import client, loopback_hub
from peers import FAMILIES, assert_same, fill
from torch import nn
from torchvision.models import segmentation as tv

from flame_vision.architectures import Segmenter
from flame_vision.backbones import create_backbone
from flame_vision.core import ConfigError, DataError, ShapeError, UnknownNameError, WeightsError
from flame_vision.core.weights import export_weights, load_weights
from flame_vision.heads import SegmentationHead, create_head, list_heads
from flame_vision.models import create_model, list_models
from flame_vision.necks import FPN
from flame_vision.preprocessing import whole_image_transforms

PUBLISHED = ["fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large",
             *[pytest.param(name, marks=pytest.mark.slow) for name in ("fcn_resnet101", "deeplabv3_resnet101")]]
HEADS = ["deeplabv3", "deeplabv3plus", "fcn", "segformer", "unet", "upernet"]


@functools.cache
def peer(name):
    with torch.device("meta"): empty = getattr(tv, name)(weights=None, weights_backbone=None, aux_loss=True)
    return fill(empty)


@pytest.mark.parametrize("name", PUBLISHED)
def test_torchvisions_segmenters_load_strictly_and_give_torchvisions_scores(name):
    theirs, own = peer(name), "resnet" in name
    model = create_model(name, auxiliary="fcn" if own else None).eval()
    report = load_weights(model, theirs.state_dict(), layout="torchvision")
    assert not report.reinitialised and len(report.loaded) == len(model.state_dict())
    assert bool(report.skipped) != own, "the auxiliary head is read where it is there"
    for size in ((2, 3, 70, 90), (1, 3, 97, 64)):
        x = torch.randn(size)
        with torch.no_grad():
            assert_same(model(x), (expected := theirs(x))["out"], name)
            if own: check_auxiliary(model, x, expected)
    if own:
        back = export_weights(model, "torchvision")
        assert {k: tuple(t.shape) for k, t in back.items()} == {k: tuple(t.shape) for k, t in theirs.state_dict().items()}
        assert all(torch.equal(t, back[k]) for k, t in theirs.state_dict().items())


def check_auxiliary(model, x, expected):
    "In training the auxiliary scores come beside; the norms stay in evaluation, so that the numbers can be compared."
    model.training = True
    try: ours = model(x)
    finally: model.training = False
    assert set(ours) == {"out", "aux"}
    assert_same(ours["aux"], expected["aux"], "auxiliary")
    assert torch.equal(ours["out"], model(x))


CACHED = "deeplabv3_mobilenet_v3_large"


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory):
    "Weights of a seed where torchvision keeps those that it has fetched."
    home = tmp_path_factory.mktemp("torch")
    place = home / "hub" / "checkpoints" / Path(tv.DeepLabV3_MobileNet_V3_Large_Weights.DEFAULT.url).name
    place.parent.mkdir(parents=True)
    torch.save(peer(CACHED).state_dict(), place)
    return home


@pytest.mark.parametrize("call", [lambda: create_model(CACHED, pretrained="coco"), lambda: create_model(f"{CACHED}.coco", pretrained=True),
                                  lambda: create_model(CACHED, weights="COCO_WITH_VOC_LABELS_V1"), lambda: create_model(CACHED, pretrained=True)])
def test_published_weights_bring_classes_and_preprocessing(call, torch_home, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    model, published = call().eval(), tv.DeepLabV3_MobileNet_V3_Large_Weights.DEFAULT
    assert model.class_names == published.meta["categories"] and model.provenance.source == published.url
    photo = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 130, 3), np.uint8))
    prepared = published.transforms()(photo)
    assert torch.equal(model.transforms()(photo), prepared)
    with torch.no_grad(): scores = peer(CACHED)(prepared[None])["out"]
    expected = nn.functional.interpolate(scores, (90, 130), mode="bilinear")[0].argmax(0)
    answer = model.predict(photo)[0]
    assert answer.labels.shape == (90, 130) and (answer.labels == expected).float().mean() > 0.999
    assert create_model(config=model.config).config == model.config


def test_other_classes_start_at_random_and_say_so(torch_home, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    with pytest.warns(UserWarning, match="head.logits.weight.*start at random"):
        model = create_model(CACHED, pretrained="coco", num_classes=4)
    assert model.num_classes == 4 and model.class_names is None
    assert model.get_output_shape([1, 3, 64, 64]) == [1, 4, 64, 64]
    with pytest.raises(UnknownNameError, match="there is 'coco'"): create_model("fcn_resnet50.voc")
    assert "fcn_resnet50.coco" in list_models("fcn*", pretrained=True) and CACHED in list_models("deeplab*")


FETCH = """
import functools
from torchvision.models import Weights
from torchvision.transforms._presets import SemanticSegmentation
from flame_vision.models import deeplabv3_mobilenet_v3_large
prepare = functools.partial(SemanticSegmentation, resize_size=64)
weights = Weights(url=sys.argv[1], transforms=prepare, meta={"categories": [str(i) for i in range(21)]})
model = deeplabv3_mobilenet_v3_large(weights=weights).eval()
with torch.inference_mode(): scores = model(torch.linspace(-1, 1, 3 * 64 * 80).reshape(1, 3, 64, 80))
print(json.dumps([scores[0, :, 30, 40].tolist(), model.transforms().get_output_shape([3, 100, 200]), model.provenance.crop_mode]))
"""


def test_the_real_client_fetches_a_segmenter(torch_home, tmp_path):
    content = next((torch_home / "hub" / "checkpoints").iterdir()).read_bytes()
    name = f"/segmenter-{sha256(content).hexdigest()[:8]}.pth"
    with loopback_hub(pages={name: content}) as hub:
        scores, shape, mode = client(FETCH, tmp_path, hub, hub.address + name, TORCH_HOME=str(tmp_path / "torch"))
    with torch.inference_mode(): expected = peer(CACHED)(torch.linspace(-1, 1, 3 * 64 * 80).reshape(1, 3, 64, 80))["out"][0, :, 30, 40]
    assert_same(torch.tensor(scores), expected, "fetched")
    assert (shape, mode) == ([3, 64, 128], "whole")


NARROW = {"unet": {"decoder_channels": [32, 32, 16, 16, 8]}, "classifier": {}, "mlp": {}}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_learns_on_every_backbone(family):
    "Forward, shape inference, and a backward pass in which every parameter gets a finite gradient, on a grid that no stride divides."
    for head in [*list_heads(task="classification"), *list_heads(task="segmentation")]:
        torch.manual_seed(0)
        model = create_model(backbone=FAMILIES[family], head={"name": head, "arguments": NARROW.get(head, {"hidden_channels": 32})}, num_classes=5)
        x, dense = torch.randn(2, 3, 70, 90), model.head.task == "segmentation"
        scores = model.train()(x)
        assert list(scores.shape) == model.get_output_shape([2, 3, 70, 90]) == ([2, 5, 70, 90] if dense else [2, 5]), head
        nn.functional.cross_entropy(scores, torch.randint(0, 5, (2, 70, 90) if dense else (2,))).backward()
        bad = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not bad, (family, head, bad[:5])
        assert create_model(config=model.config).config == model.config


def run_export(folder, backbone, heads):
    for module in ("onnx", "onnxscript", "onnxruntime"): pytest.importorskip(module)
    ran = subprocess.run([sys.executable, str(Path(__file__).with_name("export_segmenters.py")), str(folder), backbone, ",".join(heads)],
                         capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert sorted(found) == sorted(heads) and all(len(off) == 6 for off in found.values())
    assert {head: off for head, off in found.items() if max(off) > 1e-5} == {}


@pytest.mark.parametrize("backbone", ["resnet", "mobilenet", "swin"])
def test_exports_run_at_every_size(backbone, tmp_path):
    "torch.export and ONNX Runtime, with dynamic batch, height and width, at three sizes: all heads behind one backbone."
    run_export(tmp_path, backbone, HEADS)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet50", "efficientnet_b0", "convnext_tiny", "regnety_002", "mobilenetv2_100", "vit",
                                      "swin_tiny_patch4_window7_224", "timm/edgenext_xx_small"])
@pytest.mark.parametrize("head", HEADS)
def test_each_segmenter_exports(head, backbone, tmp_path): run_export(tmp_path, backbone, [head])


class Colours(SegmentationHead):
    "A head that is right by construction: each class is a channel of the image."
    def __init__(self, in_channels, num_classes, stages=None):
        super().__init__(in_channels, num_classes, stages=stages)
        self.logits = nn.Conv2d(3, num_classes, 1)
        self.logits.weight.data.copy_(100 * torch.eye(3)[:, :, None, None])
        self.logits.bias.data.zero_()

    def decode(self, maps): return maps[0]


class Same(nn.Module):
    def forward(self, x): return {0: x}


@pytest.fixture
def colours():
    model = Segmenter(Same(), Colours(3, 3))
    model.class_names = ["red", "green", "blue"]
    model.preprocessing = whole_image_transforms(50, (0, 0, 0), (1, 1, 1))
    return model


def test_predictions_lie_in_the_pictures_own_pixels(colours, tmp_path):
    "Four fields of pure colour: away from the borders every pixel must be right, whatever form and size the picture has."
    def fields(h, w):
        picture = np.zeros((h, w, 3), np.uint8)
        for rows, columns, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 0)):
            picture[rows * (h // 2):(rows + 1) * (h // 2) or h, columns * (w // 2):(columns + 1) * (w // 2), channel] = 255
        return picture
    arrays = [fields(100, 150), fields(80, 60), fields(300, 200)]
    path = tmp_path / "picture.png"
    PIL.Image.fromarray(arrays[2]).save(path)
    given = [arrays[0], torch.from_numpy(arrays[1]).permute(2, 0, 1), path, PIL.Image.fromarray(arrays[0])]
    for training in (True, False):
        answers = colours.train(training).predict(given)
        assert colours.training is training
        for picture, answer in zip((*arrays, arrays[0]), answers):
            h, w, _ = picture.shape
            inside = np.ones((h, w), bool)
            inside[h // 2 - h // 20:h // 2 + h // 20] = inside[:, w // 2 - w // 20:w // 2 + w // 20] = False
            assert answer.labels.shape == (h, w) and (answer.labels.numpy() == picture.argmax(2))[inside].all()
    assert answers[0].shares().keys() == {"red", "green", "blue"} and abs(answers[0].shares()["red"] - 0.5) < 0.05
    assert colours.predict(arrays[0])[0].mask("red").sum() > 6000


def test_slips_say_what_to_do(colours):
    from flame_vision.transforms import classification_transforms
    with pytest.raises(ConfigError, match="whole_image_transforms"):
        colours.predict(np.zeros((9, 9, 3), np.uint8), transforms=classification_transforms(32))
    with pytest.raises(ConfigError, match="does not know how its images are prepared"): create_model(backbone="resnet18", head="fcn").predict("x.png")
    with pytest.raises(ConfigError, match="is a head for segmentation"): create_model("classifier", backbone="resnet18", head="fcn")
    with pytest.raises(ConfigError, match="cannot be written"): print(colours.config)
    with pytest.raises(ShapeError): create_model(backbone="resnet18", head="fcn").get_output_shape([1, 4, 64, 64])


NECKS = {"fpn": {"norm": "batch"}, "pan": {}, "fpn with P6 and P7": {"extra_levels": "p6p7"}, "pan with P6": {"extra_levels": "pool"}}


QUICK = ("fpn", "convnext"), ("pan with P6", "swin")


@pytest.mark.parametrize("neck, family", [pytest.param(neck, family, marks=() if (neck, family) in QUICK else pytest.mark.slow)
                                          for neck in NECKS for family in ("convnext", "swin", "pyramid", "resnet", "vit")])
def test_every_head_learns_behind_every_neck(neck, family):
    "A neck by name gives what its head reads: no parameter of backbone, neck or head is left without a gradient."
    neck = {"name": neck.split()[0], "arguments": {"out_channels": 16, **NECKS[neck]}}
    for head in [*list_heads(task="classification"), *list_heads(task="segmentation")]:
        torch.manual_seed(0)
        more = {"unet": {"decoder_channels": [16] * 7}, "classifier": {}, "mlp": {}}.get(head, {"hidden_channels": 16})
        model = create_model(backbone=FAMILIES[family], neck=neck, head={"name": head, "arguments": more}, num_classes=5).train()
        x, dense = torch.randn(2, 3, 70, 90), model.head.task == "segmentation"
        scores = model(x)
        assert list(scores.shape) == model.get_output_shape([2, 3, 70, 90]) == ([2, 5, 70, 90] if dense else [2, 5]), head
        nn.functional.cross_entropy(scores, torch.randint(0, 5, (2, 70, 90) if dense else (2,))).backward()
        bad = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not bad, (family, head, bad[:5])
        assert model.neck.levels == (model.head.stages if dense else model.neck.levels[-1:])
        again = create_model(config=model.config)
        assert again.config == model.config and again.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("neck", ["fpn", "pan"])
def test_a_neck_between(neck):
    described = {"name": neck, "arguments": {"out_channels": 32}}
    model = create_model(backbone="resnet18", neck=described, head="fcn", auxiliary="fcn", num_classes=4)
    assert model.head.in_channels == (32,) and model.head.stages == model.neck.levels == (1,) and model.auxiliary.in_channels == (256,)
    out = model.train()(torch.randn(2, 3, 70, 90))
    (out["out"].square().mean() + out["aux"].square().mean()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert create_model(config=model.config).config == model.config


def test_who_says_which_levels_come_out():
    "Nobody: the head does. The configuration, null included, or an object: they stay as they are."
    def levels(neck, head="fcn"): return create_model(backbone="resnet18", neck=neck, head=head, num_classes=3).neck.levels
    def said(levels): return {"name": "fpn", "arguments": {"out_channels": 8, "levels": levels}}
    assert levels("fpn") == (1,) and levels("pan", {"name": "fcn", "arguments": {"stages": [3]}}) == (3,)
    assert levels(said([1, 2])) == (1, 2) and levels(said(None)) == levels(FPN(out_channels=8)) == (1, 2, 3, 4)
    assert levels("fpn", "upernet") == (1, 2, 3, 4) and levels("fpn", "deeplabv3plus") == (1, 4) and levels("fpn", "classifier") == (4,)
    assert levels("fpn", Own()) == (1, 2, 3, 4)
    with pytest.raises(ConfigError, match=r"levels=\[1, 6\], and there is no level 6; there are \(1, 2, 3, 4\)"): levels(said([1, 6]))
    with pytest.raises(ConfigError, match="head 'fcn' wants stage 7, and there are"): levels("fpn", {"name": "fcn", "arguments": {"stages": [7]}})
    with pytest.raises(ConfigError, match="head 'fcn' wants stage 1, and there are"): levels(said([2]), {"name": "fcn", "arguments": {"stages": [1]}})
    whole = FPN([64, 128, 256, 512], 8, stages=(1, 2, 3, 4), levels=(3,))
    model = create_model(backbone="resnet18", neck=whole, head="fcn", num_classes=3)
    assert model.neck is whole and [m.stage for m in model.feature_info] == [3, 4]
    again = create_model(config=model.config)
    assert again.config == model.config and again.state_dict().keys() == model.state_dict().keys()


def test_another_last_layer_keeps_the_rest():
    model = create_model(backbone="resnet18", head="segformer", auxiliary="fcn", num_classes=5)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    model.reset_classifier(7)
    changed = [k for k, t in model.state_dict().items() if t.shape != before[k].shape]
    assert sorted(changed) == ["auxiliary.logits.bias", "auxiliary.logits.weight", "head.logits.bias", "head.logits.weight"]
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items() if k not in changed)
    assert create_model(config=model.config).num_classes == 7


@pytest.mark.parametrize("head", [
    lambda: create_head("fcn", in_channels=512, num_classes=4),
    lambda: create_head("segformer", in_channels=[256, 512], num_classes=4, hidden_channels=16),
    lambda: create_head("upernet", in_channels=[64, 128, 256, 512], num_classes=4, hidden_channels=24),
    lambda: create_head("unet", in_channels=[128, 256, 512], strides=[8, 16, 32], num_classes=4)])
def test_a_head_made_by_hand_is_made_again(head):
    "The configuration says which maps it reads, so that the same model comes back: equal outputs with equal weights."
    model, x = create_model(backbone="resnet18", head=head()).eval(), torch.randn(1, 3, 70, 90)
    again = create_model(config=model.config).eval()
    again.load_state_dict(model.state_dict())
    assert again.config == model.config and torch.equal(again(x), model(x))
    with pytest.raises(ConfigError, match="was made for maps of"): create_model(backbone="mobilenetv3_small_050", head=head())


@pytest.mark.parametrize("neck", [lambda: FPN(out_channels=16), lambda: {"name": "fpn", "arguments": {"out_channels": 16}}])
def test_a_neck_made_by_hand_is_told_its_widths(neck):
    model = create_model(backbone="resnet18", neck=neck(), head=create_head("fcn", in_channels=16, num_classes=3)).eval()
    assert sum(p.numel() for p in model.neck.parameters()) and model.neck.stages == ((4,) if isinstance(neck(), dict) else (1, 2, 3, 4))
    again, x = create_model(config=model.config).eval(), torch.randn(1, 3, 64, 64)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("head", ["classifier", "fcn"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_gray_picture_is_gray_in_every_form(channels, head, tmp_path):
    "One answer for a picture however it comes, with transforms of one's own that say nothing of colours."
    model = create_model(backbone="resnet18", head=head, num_classes=3, in_channels=channels).eval()
    model.preprocessing = whole_image_transforms(None, [0.5] * channels, [0.2] * channels)
    gray = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    PIL.Image.fromarray(gray).save(tmp_path / "gray.png")
    forms = [PIL.Image.fromarray(gray), gray, gray[..., None], torch.from_numpy(gray), torch.from_numpy(gray)[None], tmp_path / "gray.png",
             PIL.Image.fromarray(gray.astype(np.uint16) * 257), PIL.Image.fromarray(gray).convert("RGB"), np.repeat(gray[..., None], 3, 2)]
    first, *others = model.predict(forms, batch_size=1)
    assert all(torch.equal(first.scores, other.scores) for other in others) and first.scores.std() > 1e-3
    colours = torch.from_numpy(np.random.default_rng(1).integers(0, 255, (3, 40, 50), np.uint8))
    a, b = model.predict([colours, PIL.Image.fromarray(colours.permute(1, 2, 0).numpy())])
    torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-2)  # torchvision rounds gray down, Pillow to the nearest
    for wrong in (torch.zeros(40, 50, 3), torch.zeros(1, 1, 3, 40, 50), torch.zeros(3), torch.zeros(3, 0, 4)):
        with pytest.raises(DataError, match=r"picture 1 is a tensor \[.*\[height, width\] for a gray one"): model.predict([gray, wrong])


@pytest.mark.parametrize("head", HEADS)
def test_one_number_per_channel_is_refused_in_our_words(head):
    "A training batch of one picture that ends as one pixel, whichever part meets it."
    swin, narrow = FAMILIES["swin"], {"unet": {"decoder_channels": [8] * 4}}.get(head, {"hidden_channels": 8})
    fpn = {"name": "fpn", "arguments": {"out_channels": 16, "norm": "batch"}}
    for backbone, neck, where in (("resnet18", None, "cannot be trained"), (swin, fpn, "FPN.laterals.4.norm is a norm that cannot be trained")):
        model = create_model(backbone=backbone, neck=neck, head={"name": head, "arguments": narrow}, num_classes=3).train()
        with pytest.raises(ShapeError, match=f"{where}.*drop_last=True"): model(torch.randn(1, 3, 8, 8))
        model.eval()(torch.randn(1, 3, 8, 8))
    stages = (4,) if head in ("fcn", "deeplabv3") else (3, 4)
    strides = {"strides": [32] * 2, "decoder_channels": [8] * 5} if head == "unet" else {}
    alone = create_head(head, in_channels=[8] * len(stages), num_classes=3, **{**narrow, **strides})
    maps = {s: torch.randn(1, 8, 1, 1) for s in stages}
    with pytest.raises(ShapeError, match="cannot be trained with"): alone.train()(maps)


@pytest.mark.parametrize("published", ["deeplabv3_resnet50", "fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_the_file_of_another_head_is_called_by_its_name(published):
    with torch.device("meta"): theirs = getattr(tv, published)(weights=None, weights_backbone=None).state_dict()
    theirs = {k: torch.zeros(t.shape) for k, t in theirs.items()}
    backbone = "mobilenetv3_large_100" if "mobilenet" in published else "resnet50"
    says = "nothing here takes them" if "lraspp" in published else rf"create_model\('{published}'\) takes them"
    with torch.device("meta"): models = {head: create_model(backbone=backbone, head=head) for head in HEADS if head != published.split("_")[0]}
    whole = f"torchvision's {published}, and this model's head is a .*Head; {says}"
    for model in models.values():
        for given in (theirs, {f"module.{k}": t for k, t in theirs.items()}):
            with pytest.raises(WeightsError, match=whole): load_weights(model, given)
        with pytest.raises(WeightsError, match=says): load_weights(model, theirs, layout="torchvision")
    with pytest.raises(WeightsError, match="torchvision has no segmenter with a UNetHead"): export_weights(models["unet"], "torchvision")


def test_several_threads_ask_a_model_in_training():
    "The first sets the modes, the last sets them back; nothing is learnt meanwhile, and what was frozen stays frozen."
    model = create_model(backbone="resnet18", head="fcn", num_classes=3)
    model.preprocessing = whole_image_transforms(64)
    model.backbone.eval()
    modes, before = [part.training for part in model.modules()], {k: t.clone() for k, t in model.state_dict().items()}
    pictures = [np.random.default_rng(i).integers(0, 255, (64, 80, 3), np.uint8) for i in range(6)]
    expected = [copy.deepcopy(model).eval().predict(picture)[0].labels for picture in pictures]
    with ThreadPoolExecutor(6) as pool: answers = list(pool.map(lambda i: model.predict(pictures[i % 6])[0].labels, range(24)))
    assert all(torch.equal(answer, expected[i % 6]) for i, answer in enumerate(answers))
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_what_contradicts_itself_is_refused():
    backbone = create_backbone("resnet18")
    with pytest.raises(ConfigError, match="in_channels=4, and the backbone"): create_model(backbone=backbone, head="fcn", in_channels=4)
    with pytest.raises(ConfigError, match="dropout=0.5 is for a head that is given by name"):
        create_model(backbone="resnet18", head=create_head("fcn", in_channels=512, num_classes=3), dropout=0.5)
    model = create_model("fcn_resnet50", num_classes=3)
    model.head = create_head("segformer", in_channels=[2048], num_classes=3)
    with pytest.raises(ConfigError, match="is not the head that fcn_resnet50 stands for"): print(model.config)
    model = create_model(backbone="resnet18", head="fcn", auxiliary=Own(), num_classes=3)
    with pytest.raises(ConfigError, match="a head of your own"): model.reset_classifier(5)
    assert model.num_classes == 3
    model.class_names, model.preprocessing = ["a"], whole_image_transforms(64)
    with pytest.raises(ConfigError, match="1 class names for 3 classes"): model.predict(np.zeros((64, 64, 3), np.uint8))


class Own(nn.Module):
    task = "segmentation"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(512, 3, 1)

    def forward(self, features): return self.conv(features[4])


def test_a_head_of_ones_own_reads_what_it_likes():
    model = create_model("segmenter", backbone="resnet18", head=Own())
    assert model.get_output_shape([1, 3, 70, 90]) == [1, 3, 70, 90] and len(model.backbone.feature_info) == 5


def test_the_command_paints_what_a_registered_segmenter_sees(tmp_path, monkeypatch, capsys):
    from flame_vision.cli import main
    from flame_vision.versioning import ModelRegistry
    model = create_model(backbone="resnet18", head="fcn", num_classes=2)
    with torch.no_grad(): model.head.logits.bias.copy_(torch.tensor([-50.0, 50.0]))
    ModelRegistry(tmp_path / "registry").register("fields", "1.0.0", model, class_names=["sky", "ground"], preprocessing=whole_image_transforms(64))
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (90, 70), "white").save("a.png")
    command = ["predict", "fields", "a.png", f"--registry={tmp_path / 'registry'}"]
    assert main(command) == 0 and main([*command, "--json", "--out=elsewhere"]) == 0 and main(command) == 0
    line, *rest = capsys.readouterr().out.splitlines()
    assert line.split() == ["a.png", "ground", "100.0%", "→", "painted/a.png"] and rest[-1].endswith("painted/a-1.png")
    assert json.loads("\n".join(rest[:-1])) == [{"image": "a.png", "classes": [{"name": "ground", "share": 1.0}], "painted": "elsewhere/a.png"}]
    painted = np.asarray(PIL.Image.open("painted/a.png"))
    assert painted.shape == (70, 90, 3) and len(np.unique(painted.reshape(-1, 3), axis=0)) == 1 and painted.min() < 250


def test_the_benchmark_of_segmenters_measures_both():
    from flame_vision.benchmarks import run_suite
    answer, step = run_suite("segmenters", names=["deeplabv3_mobilenet_v3_large"], rounds=2, image_size=48)
    assert (answer["what"], step["what"]) == ("forward", "training step") and min(answer["ours"], step["theirs"]) > 0
    assert answer["memory"] is None and 0.5 < step["memory"] < 2
    with pytest.raises(UnknownNameError, match="did you mean 'fcn_resnet50'"): run_suite("segmenters", names=["fcn_resnet5"])
