"Fine-tuning from published weights, weights in files, torchvision's, and names with tags; tests/test_hub.py looks into the hub itself."

import numpy as np
import pytest
import timm
import torch
import torchvision
from loopback_hub import client, loopback_hub, sha256
from PIL import Image
from safetensors.torch import save, save_file

from flame_vision.versioning import ModelRegistry

REPO = "timm/resnet18.a1_in1k"  # where timm's own table says that its default weights are


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return timm.create_model("resnet18").eval()


def test_fine_tuning_prepares_pictures_as_the_weights_want_them(weights, tmp_path):
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 120)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6): Image.fromarray(rng.integers(low, low + 130, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
    code = f"""
from flame_vision.cli import main
code = main(["fit", "--data={tmp_path / 'data'}", "--backbone=resnet18", "--pretrained=true", "--image_size=32", "--epochs=1", "--batch_size=4",
             "--workers=0", "--accelerator=cpu", "--no_progress", "--no_prove", "--registry={tmp_path / 'registry'}", "--runs={tmp_path / 'runs'}"])
print(json.dumps(code))
"""
    with loopback_hub({REPO: save(weights.state_dict())}) as hub: assert client(code, tmp_path, hub) == 0
    found = ModelRegistry(tmp_path / "registry").get("data").manifest
    steps = {step.name: step.arguments for step in found.preprocessing}
    assert found.provenance["source"] == REPO and found.provenance["license"] == "apache-2.0"
    assert (steps["resize"]["size"], steps["resize"]["interpolation"]) == (int(32 / 0.95), "bicubic"), "timm's crop of these weights is 0.95"


def test_a_file_and_another_number_of_classes(weights, tmp_path):
    from flame_vision.models import create_model, resnet18
    path = tmp_path / "weights.safetensors"
    save_file(weights.state_dict(), path)
    with pytest.warns(UserWarning, match="have other classes"): model = resnet18(num_classes=7, pretrained=str(path))
    assert torch.equal(model.backbone.stem.conv.weight, weights.conv1.weight)
    assert model.get_output_shape([1, 3, 64, 64]) == [1, 7] and model.provenance.source == "weights.safetensors"
    parts = create_model(backbone="resnet18", head="classifier", num_classes=3, pretrained=str(path))
    assert torch.equal(parts.backbone.stem.conv.weight, weights.conv1.weight) and parts.provenance.source == "weights.safetensors"


TORCHVISION = """
import functools
from torchvision.models import Weights
from torchvision.transforms._presets import ImageClassification
from flame_vision.core import WeightsError
from flame_vision.models import resnet18
prepare = functools.partial(ImageClassification, crop_size=96, resize_size=128)
x = torch.linspace(-1, 1, 3 * 64 * 80).reshape(1, 3, 64, 80)
def ask(url):
    weights = Weights(url=url, transforms=prepare, meta={"categories": [f"c{i}" for i in range(1000)]})
    try: model = resnet18(weights=weights).eval()
    except WeightsError as e: return str(e)
    with torch.inference_mode(): scores = model(x)[0, :5].tolist()
    origin = model.provenance
    return scores, model.class_names[:2], origin.source, origin.crop_pct, model.transforms().get_output_shape([3, 300, 400])
print(json.dumps([ask(url) for url in sys.argv[1:]]))
"""


def test_torchvisions_weights_are_fetched_and_checked(tmp_path):
    "PyTorch's own client, against a server on loopback; the file's name holds the digest of what it should hold."
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    content = (tmp_path / "weights.pth").read_bytes()
    name = f"/resnet18-{sha256(content)[:8]}.pth"
    with loopback_hub(pages={name: content, "/resnet18-deadbeef.pth": content}) as hub:
        urls = [hub.address + path for path in (name, name, "/resnet18-deadbeef.pth", "/resnet18-00000000.pth")]
        first, second, wrong, missing = client(TORCHVISION, tmp_path, hub, *urls, TORCH_HOME=str(tmp_path / "torch"))
        assert first == second and len(hub.asked(name=name)) == 1, (first, "the second use comes from the cache")
        assert "cannot get" in wrong and "cannot get" in missing, (wrong, missing)
        scores, classes, source, crop, shape = first
    x = torch.linspace(-1, 1, 3 * 64 * 80).reshape(1, 3, 64, 80)
    with torch.inference_mode(): assert torch.allclose(torch.tensor(scores), theirs(x)[0, :5], atol=1e-5)
    assert (classes, source, crop, shape) == (["c0", "c1"], hub.address + name, 0.75, [3, 96, 96])


def test_names_with_tags_and_words_that_do_not_go_together():
    from flame_vision.core import ConfigError, UnknownNameError
    from flame_vision.models import create_model, list_models, resnet18
    assert "efficientnet_b0.ra_in1k" in list_models("efficientnet_b0*", pretrained=True) and "efficientnet_b0" in list_models("efficientnet*")
    assert create_model("resnet18.a1_in1k").num_classes == 1000
    with pytest.raises(UnknownNameError, match="no weights of resnet18 are tagged 'a1_in2k'; did you mean 'a1_in1k'"):
        create_model("resnet18.a1_in2k", pretrained=True)
    with pytest.raises(ConfigError, match="give one of them"): resnet18(pretrained=True, weights="DEFAULT")
    with pytest.raises(ConfigError, match="torchvision's of a whole network"): create_model(backbone="resnet18", head="classifier", weights="DEFAULT")
