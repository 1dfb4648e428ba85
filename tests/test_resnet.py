"The ResNet family against torchvision's and timm's: names, tensors, outputs, costs, in both directions."
import pytest
import timm
import torch
from peers import assert_same, jitter
from torchvision import models as tv

from flame_vision.backbones import create_backbone
from flame_vision.backbones.resnet import RESNETS
from flame_vision.core import summary
from flame_vision.core.weights import export_weights, load_weights
from flame_vision.models import create_model

LARGE = {"resnet152", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"}  # above 60 M parameters


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in RESNETS])
def test_equals_its_references(name):
    torch.manual_seed(0)
    published = tv.get_model_weights(name).DEFAULT.meta
    theirs = jitter(tv.get_model(name))
    ours = create_model(name).eval()
    report = load_weights(ours, theirs.state_dict(), layout="torchvision")
    assert len(report.loaded) == len(theirs.state_dict()) and not (report.skipped or report.absent or report.reinitialised)

    out = export_weights(ours, "torchvision")
    assert out.keys() == theirs.state_dict().keys()
    assert all(torch.equal(out[k], v) for k, v in theirs.state_dict().items())
    timms = timm.create_model(name).eval()
    timms.load_state_dict(export_weights(ours, "timm"), strict=True)
    again = create_model(name).eval()
    load_weights(again, timms.state_dict(), layout="timm")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), ours.state_dict().values()))

    cost = summary(ours, [1, 3, 224, 224])
    assert cost.parameters == published["num_params"] == sum(p.numel() for p in timms.parameters())
    assert round(cost.macs / 1e9, 3) == published["_ops"]

    for height, width in ((224, 224), (97, 165)):
        x = torch.randn(2, 3, height, width)
        with torch.inference_mode():
            a, b, c = ours(x), theirs(x), timms(x)
        assert_same(a, b, f"{name} against torchvision at {height} × {width}")
        assert_same(a, c, f"{name} against timm at {height} × {width}")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_features_equal_timms_at_every_stride(name, output_stride):
    theirs = jitter(timm.create_model(name, features_only=True, output_stride=output_stride))
    ours = create_backbone(name, output_stride=output_stride).eval()
    load_weights(ours, theirs.state_dict())
    assert [info.stride for info in ours.feature_info] == theirs.feature_info.reduction()
    assert [info.channels for info in ours.feature_info] == theirs.feature_info.channels()
    x = torch.randn(2, 3, 97, 65)
    with torch.inference_mode():
        for stage, (a, b) in enumerate(zip(ours(x).values(), theirs(x))): assert_same(a, b, f"stage {stage}")


def test_a_full_checkpoint_loads_into_a_truncated_backbone():
    full = tv.resnet18()
    ours = create_backbone("resnet18", output_indices=(1, 2), features_only=True)
    report = load_weights(ours, full.state_dict())
    assert len(report.loaded) + len(report.skipped) == len(full.state_dict())
    assert not any(k.startswith(("stages.3", "stages.4")) for k in ours.state_dict())


def test_a_state_dict_of_another_depth_is_refused_and_changes_nothing():
    model = create_model("resnet18")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="closest to the 'torchvision' layout"): load_weights(model, tv.resnet34().state_dict())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_squeeze_excitation_equals_timms():
    theirs = jitter(timm.create_model("seresnet50", features_only=True))
    ours = create_backbone("resnet50", attention="se").eval()
    load_weights(ours, theirs.state_dict())
    x = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        for stage, (a, b) in enumerate(zip(ours(x).values(), theirs(x))): assert_same(a, b, f"stage {stage}")
