"`create_backbone` and weights: names, arguments, adaptation by timm's rule, what is drawn at random, what is held in memory."
import subprocess
import sys
import warnings

import pytest
import timm
import torch
from peers import fill
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from flame_vision.backbones import BaseBackbone, create_backbone, families_with, list_backbones
from flame_vision.backbones.base import BACKBONES
from flame_vision.core import ConfigError, UnknownArgumentError, UnknownNameError, WeightsError
from flame_vision.models import create_model

FAMILIES = ["resnet", "regnet", "convnext", "efficientnet", "mobilenetv2", "mobilenetv3", "swin", "vit", "hybrid"]
SMALL = ["resnet18", "regnety_002", "convnext_tiny", "efficientnet_b0", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224",
         "vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224"]
"A small member of each family that has its own kind of first convolution."


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_stands_for_a_stated_default_that_timm_publishes(family):
    backbone = create_backbone(family, device="meta")
    assert backbone._name == type(backbone).default_variant and timm.is_model(backbone._name)
    assert timm.list_pretrained(f"{backbone._name}.*"), "weights for pretrained=True"
    assert backbone.config == create_backbone(backbone._name, device="meta").config


@pytest.mark.parametrize("said, meant", [
    (("efficient_net", "b0"), "efficientnet_b0"), (("efficient_net",), "efficientnet_b0"), (("vit",), "vit_base_patch16_224"),
    (("vit", "large"), "vit_large_patch16_224"), (("vit", "tiny_patch16_384"), "vit_tiny_patch16_384"),
    (("swin", "small"), "swin_small_patch4_window7_224"),
    (("resnet", "34"), "resnet34"), (("convnext", "base"), "convnext_base"), (("mobilenetv3", "small_100"), "mobilenetv3_small_100"),
    (("mobilenetv3", "small"), "mobilenetv3_small_100"), (("mobilenet_v3", "small"), "mobilenetv3_small_100"), (("resnet", ""), "resnet50"),
    (("regnet", "y_016"), "regnety_016"), (("mobilenet",), "mobilenetv3_large_100"), (("vision_transformer", "small"), "vit_small_patch16_224")])
def test_spellings(said, meant): assert create_backbone(*said, device="meta")._name == meant


def test_published_patches_are_taken_and_others_are_made():
    assert create_backbone("vit", "base", patch_size=32, device="meta")._name == "vit_base_patch32_224"
    other = create_backbone("vit", "base", patch_size=8, device="meta")
    assert other._name == "vit_base_patch8_224"
    odd = create_backbone("vit", "tiny", patch_size=20, img_size=240, device="meta")
    assert odd._name == "vit_tiny_patch16_224" and odd.feature_info[-1].stride == 20


def test_the_seeds_use_cases():
    classification = create_backbone("resnet50", output_stride=32, device="meta")
    assert [info.stride for info in classification.feature_info] == [2, 4, 8, 16, 32]
    detection = create_backbone("efficient_net", output_indices=(2, 3, 4), features_only=True, device="meta")
    assert [info.stride for info in detection.feature_info] == [8, 16, 32]
    segmentation = create_backbone("vit", patch_size=16, hierarchical=True, device="meta")
    assert [info.stride for info in segmentation.feature_info] == [4, 8, 16, 32]


ARGUMENTS = {"output_stride": 16, "patch_size": 20, "hierarchical": True, "img_size": 256, "in_channels": 1, "drop_path_rate": 0.1,
             "gradient_checkpointing": True, "features_only": True, "output_indices": (-1,)}


@pytest.mark.parametrize("argument, value", ARGUMENTS.items())
@pytest.mark.parametrize("family", FAMILIES)
def test_an_argument_works_or_says_where_it_does(family, argument, value):
    able = families_with(argument)
    if family not in able:
        advice = f"the families that have it are {', '.join(able)}"
        with pytest.raises(UnknownArgumentError, match=advice): create_backbone(family, device="meta", **{argument: value})
        return
    if argument == "patch_size" and family != "vit": value = 2
    backbone = create_backbone(family, device="meta", **{argument: value})
    plain = create_backbone(family, device="meta")
    assert backbone.config.arguments[argument] in (value, list(value) if isinstance(value, tuple) else value)
    assert backbone.config != plain.config
    def strides(b): return [info.stride for info in b.feature_info]
    effect = {"output_stride": lambda: max(strides(backbone)) == 16, "patch_size": lambda: strides(backbone) != strides(plain),
              "hierarchical": lambda: strides(backbone) == [4, 8, 16, 32], "output_indices": lambda: len(strides(backbone)) == 1,
              "in_channels": lambda: backbone.get_output_shape([1, 1, 224, 224]) == plain.get_output_shape([1, 3, 224, 224]),
              "gradient_checkpointing": lambda: len(backbone.checkpointed_stages) >= 4 and not plain.checkpointed_stages}
    assert effect.get(argument, lambda: True)(), (strides(backbone), strides(plain))


def test_slips():
    for wrong, error, said in [
        (dict(name="resnet51"), UnknownNameError, "did you mean"), (dict(name="vit", variant="gigantic"), UnknownNameError, "no variant"),
        (dict(name="resnet18.a1_in2k"), UnknownNameError, "did you mean"), (dict(name="resnet18", chanels=1), UnknownArgumentError, "takes"),
        (dict(name="resnet18", device="gpu"), ConfigError, "take 'cpu'"), (dict(name="resnet18", pretrained=""), ConfigError, "give True"),
        (dict(name="timm/resnet18", variant="b0"), ConfigError, "is a whole name"),
        (dict(name="resnet18", pretrained="./none"), FileNotFoundError, "no weights at"),
    ]:
        with pytest.raises(error, match=said): create_backbone(**wrong)


def test_a_class_of_ones_own_is_not_taken_for_its_parents_default():
    from flame_vision.backbones import ResNetBackbone, register_backbone

    @register_backbone("test_create_mine")
    class Mine(ResNetBackbone): pass
    try:
        assert create_backbone("test_create_mine", device="meta", block_type="basic", layers=(1, 1, 1, 1))._name == "test_create_mine"
        with pytest.raises(UnknownArgumentError): create_backbone("test_create_mine", device="meta")
    finally: del BACKBONES.entries["test_create_mine"]


NAMED = "'timm/test_resnet.r160_in1k'"


@pytest.mark.parametrize("call", [f"create_backbone({NAMED}, device='meta')", f"create_model(backbone={NAMED})"])
def test_the_first_thing_that_is_asked_for_may_be_anybodys(call):
    "In a process of its own, where nothing has looked into the catalogue yet."
    ran = subprocess.run([sys.executable, "-c", f"from flame_vision import create_backbone, create_model; {call}"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]


class Draws(TorchDispatchMode):
    "Counts the numbers that are drawn at random."
    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in ("aten::uniform_", "aten::normal_"): self.numbers += args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    "A file of timm's weights for each small network, made when it is first asked for."
    folder, made = tmp_path_factory.mktemp("weights"), {}
    def file(name):
        if name not in made:
            theirs = fill(timm.create_model(name))
            save_file(theirs.state_dict(), folder / f"{name}.safetensors")
            made[name] = folder / f"{name}.safetensors"
        return made[name]
    return file


@pytest.mark.parametrize("name", SMALL)
def test_what_is_loaded_is_not_drawn_first(name, published):
    path = str(published(name))
    with Draws() as draws: create_model(name, pretrained=path)
    assert draws.numbers == 0
    with Draws() as draws, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = create_model(name, pretrained=path, num_classes=3)
    head = sum(p.numel() for k, p in model.named_parameters() if k.startswith(model.classifier) and p.ndim > 1)
    assert head <= draws.numbers <= 2 * head + 10 and model.get_classifier().weight.std() > 0


def both(name, published, in_channels, **arguments):
    "Our backbone and timm's network, with the same file of weights and the same other inputs."
    path = str(published(name))
    with pytest.warns(UserWarning, match="was adapted from"):
        ours = create_backbone(name, pretrained=path, in_channels=in_channels, output_indices=(-1,), **arguments).eval()
    theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": path}, in_chans=in_channels, num_classes=0, **arguments).eval()
    return ours, theirs


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("in_channels", [1, 4])
def test_other_channels_by_timms_rule(name, in_channels, published):
    ours, theirs = both(name, published, in_channels)
    x = torch.randn(1, in_channels, 224, 224)
    model = create_model(backbone=ours, num_classes=0)
    with torch.inference_mode(): a, b = model.forward_head(model.forward_features(x), pre_logits=True), theirs(x)
    assert torch.allclose(a, b, atol=1e-5 * b.abs().max())
    assert ours.get_output_shape([1, in_channels, 224, 224]).keys() == {4}


def test_other_patches_by_timms_rule(published):
    ours, theirs = both("vit_tiny_patch16_224", published, 1, patch_size=8)
    x = torch.randn(1, 1, 224, 224)
    with torch.inference_mode(): a, b = ours.finish(ours.forward_tokens(x)), theirs.forward_features(x)
    assert torch.allclose(a, b, atol=1e-5 * b.abs().max())


def test_a_users_own_file_promises_nothing_by_its_name(published, tmp_path):
    for digits in (40, 64):
        own = tmp_path / ("a" * digits)
        torch.save(create_model("resnet18").state_dict(), own)
        link = tmp_path / f"link{digits}.pth"
        link.symlink_to(own)
        for path in (own, link): assert create_model("resnet18", pretrained=path).provenance.revision is None and own.exists() and link.exists()


def test_a_model_takes_over_what_its_backbone_knows(published):
    backbone = create_backbone("resnet18", pretrained=published("resnet18"))
    model = create_model(backbone=backbone, head="classifier", num_classes=3)
    assert model.provenance is backbone.provenance is not None
    whole = create_model("resnet18")
    report = whole.load_pretrained(published("resnet18"))
    assert torch.equal(whole.backbone.stem.conv.weight, backbone.stem.conv.weight) and whole.provenance.digest == backbone.provenance.digest
    parts = create_model(backbone="resnet18", head="classifier", num_classes=3)
    parts.load_pretrained(published("resnet18"))
    assert torch.equal(parts.backbone.stem.conv.weight, backbone.stem.conv.weight) and not report.reinitialised


def test_warnings_point_at_the_users_line(published):
    for make in (create_backbone, create_model):
        with pytest.warns(UserWarning, match="adapted") as caught: make("resnet18", pretrained=published("resnet18"), in_channels=1)
        assert {w.filename for w in caught} == {__file__}


def test_what_cannot_be_adapted_is_refused(published):
    path = str(published("resnet18"))
    odd = create_backbone("resnet18", in_channels=5)
    save_file(odd.state_dict(), published("resnet18").with_name("five.safetensors"))
    five = path.replace("resnet18.", "five.")
    with pytest.raises(WeightsError, match="kernels for 5 channels cannot"): create_backbone("resnet18", in_channels=7, pretrained=five)
    with pytest.raises(WeightsError, match="does not fit"): create_backbone("resnet34", pretrained=path)


def test_names_of_classes_are_imagenets_and_only_where_they_are():
    from flame_vision.core import pretrained
    origin = pretrained.find_pretrained("convnext_tiny", "fb_in22k")
    names = pretrained.class_names_of(origin)
    assert origin.num_classes == len(names) == 21841 and len(set(names)) == 21841
    assert pretrained.class_names_of(pretrained.find_pretrained("resnet50"))[207] == "golden retriever"
    assert pretrained.class_names_of(pretrained.Provenance("mine", num_classes=1000)) is None, "a thousand classes of one's own are not ImageNet's"


MEMORY = """
import sys
from flame_vision.local_hub import Peak
from flame_vision.models import create_model
create_model("mobilenetv3_small_050", pretrained=sys.argv[2])  # what is imported and compiled at first use
with Peak() as peak: model = create_model(sys.argv[1], pretrained=sys.argv[3])
print(peak.bytes / sum(t.numel() * t.element_size() for t in model.state_dict().values()))
"""


SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50", "swin_tiny_patch4_window7_224")]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux tells it")
@pytest.mark.parametrize("name", ["vit_base_patch16_224", *SLOWER])
def test_there_is_never_a_second_copy_of_the_weights(name, published):
    ran = subprocess.run([sys.executable, "-c", MEMORY, name, published("mobilenetv3_small_050"), published(name)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert float(ran.stdout) <= 1.2


def test_every_backbone_can_be_asked_for_its_transforms():
    from flame_vision.core.pretrained import find_pretrained
    backbone = create_backbone("resnet18", in_channels=1, device="meta")
    with pytest.raises(ConfigError, match="does not know how"): backbone.transforms()
    backbone.provenance = find_pretrained("resnet18")
    assert backbone.transforms().get_output_shape([3, 300, 400]) == [1, 224, 224]
    assert isinstance(backbone, BaseBackbone) and "resnet18" in list_backbones()
