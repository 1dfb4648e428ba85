"`pretrained=` through the real hub client, against a hub on loopback that serves seeded weights."
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer

import numpy as np
import pytest
import timm
import torch
import torchvision
from loopback_hub import handler, loopback_hub
from PIL import Image
from safetensors.torch import save, save_file

from flame_vision.versioning import ModelRegistry

REPO = "timm/resnet18.a1_in1k"  # where timm's own table says that its default weights are


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return timm.create_model("resnet18").eval()


def client(code, folder, **environment):
    "Run code in a process whose hub client has a cache of its own; what it prints last, as JSON."
    env = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*",
           "HF_HUB_DOWNLOAD_TIMEOUT": "5", "HF_HUB_ETAG_TIMEOUT": "5", **environment}
    ran = subprocess.run([sys.executable, "-c", f"import json, torch\n{code}"], capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.strip().splitlines()[-1])


LOOK = """
from flame_vision.models import resnet18
model = resnet18(pretrained=True).eval()
x = torch.linspace(-1, 1, 3 * 64 * 80).reshape(1, 3, 64, 80)
with torch.inference_mode(): scores = model(x)[0, :5].tolist()
origin = model.provenance
print(json.dumps([scores, origin.source, origin.tag, origin.license, model.transforms().get_output_shape([3, 300, 400])]))
"""


def test_downloaded_once_then_from_the_cache(weights, tmp_path):
    with loopback_hub({REPO: save(weights.state_dict())}) as (address, requests):
        scores, source, tag, license, shape = client(LOOK, tmp_path, HF_ENDPOINT=address)
        assert [method for method, _ in requests].count("GET") == 1
        assert client(LOOK, tmp_path, HF_ENDPOINT=address)[0] == scores
        assert [method for method, _ in requests].count("GET") == 1, "the second use comes from the cache"
    assert client(LOOK, tmp_path, HF_HUB_OFFLINE="1")[0] == scores, "and needs no network"
    x = torch.linspace(-1, 1, 3 * 64 * 80).reshape(1, 3, 64, 80)
    with torch.inference_mode(): assert torch.allclose(torch.tensor(scores), weights(x)[0, :5], atol=1e-5)
    assert (source, tag, license, shape) == (REPO, "a1_in1k", "apache-2.0", [3, 224, 224])


REFUSED = """
from flame_vision.backbones import create_backbone
from flame_vision.core import WeightsError
try: create_backbone("resnet18", pretrained=True)
except WeightsError as e: print(json.dumps(str(e)))
"""


def test_what_the_hub_does_not_have_is_one_typed_error(tmp_path):
    with loopback_hub({}) as (address, _): assert REPO in client(REFUSED, tmp_path, HF_ENDPOINT=address)


@pytest.mark.slow  # the client tries for half a minute
def test_a_hub_that_cannot_be_reached(tmp_path):
    assert "go online once" in client(REFUSED, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")


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
    with loopback_hub({REPO: save(weights.state_dict())}) as (address, _): assert client(code, tmp_path, HF_ENDPOINT=address) == 0
    found = ModelRegistry(tmp_path / "registry").get("data").manifest
    steps = {step.name: step.arguments for step in found.preprocessing}
    assert found.provenance["source"] == REPO and found.provenance["license"] == "apache-2.0"
    assert (steps["resize"]["size"], steps["resize"]["interpolation"]) == (int(32 / 0.95), "bicubic"), "timm's crop of these weights is 0.95"


def test_a_file_and_another_number_of_classes(weights, tmp_path):
    from flame_vision.models import create_model, resnet18
    path = tmp_path / "weights.safetensors"
    save_file(weights.state_dict(), path)
    with pytest.warns(UserWarning, match="has other classes"): model = resnet18(num_classes=7, pretrained=str(path))
    assert torch.equal(model.backbone.stem.conv.weight, weights.conv1.weight)
    assert model.get_output_shape([1, 3, 64, 64]) == [1, 7] and model.provenance.source == "weights.safetensors"
    parts = create_model(backbone="resnet18", head="classifier", num_classes=3, pretrained=str(path))
    assert torch.equal(parts.backbone.stem.conv.weight, weights.conv1.weight) and parts.provenance.source == "weights.safetensors"


TORCHVISION = """
import functools, sys
from torchvision.models import Weights
from torchvision.transforms._presets import ImageClassification
from flame_vision.core import WeightsError
from flame_vision.models import resnet18
prepare = functools.partial(ImageClassification, crop_size=96, resize_size=128)
weights = Weights(url=sys.argv[1], transforms=prepare, meta={"categories": [f"c{i}" for i in range(1000)]})
try: model = resnet18(weights=weights).eval()
except WeightsError as e: print(json.dumps(str(e))); sys.exit()
x = torch.linspace(-1, 1, 3 * 64 * 80).reshape(1, 3, 64, 80)
with torch.inference_mode(): scores = model(x)[0, :5].tolist()
origin = model.provenance
print(json.dumps([scores, model.class_names[:2], origin.source, origin.crop_pct, model.transforms().get_output_shape([3, 300, 400])]))
"""


def test_torchvisions_weights_are_fetched_and_checked(tmp_path):
    "PyTorch's own client, against a server on loopback; the file's name holds the digest of what it should hold."
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    content = (tmp_path / "weights.pth").read_bytes()
    name = f"/resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler({name: content, "/resnet18-deadbeef.pth": content}, requests := []))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        def ask(path):
            env = {**os.environ, "TORCH_HOME": str(tmp_path / "torch"), "NO_PROXY": "*"}
            code = f"import json, torch\n{TORCHVISION}"
            ran = subprocess.run([sys.executable, "-c", code, address + path], capture_output=True, text=True, env=env)
            assert ran.returncode == 0, ran.stderr
            return json.loads(ran.stdout.strip().splitlines()[-1])
        scores, classes, source, crop, shape = ask(name)
        assert ask(name)[0] == scores and [p for _, p in requests].count(name) == 1, "the second use comes from the cache"
        assert "cannot get" in ask("/resnet18-deadbeef.pth") and "cannot get" in ask("/resnet18-00000000.pth")
    finally:
        server.shutdown()
        server.server_close()
    x = torch.linspace(-1, 1, 3 * 64 * 80).reshape(1, 3, 64, 80)
    with torch.inference_mode(): assert torch.allclose(torch.tensor(scores), theirs(x)[0, :5], atol=1e-5)
    assert (classes, source, crop, shape) == (["c0", "c1"], address + name, 0.75, [3, 96, 96])


def test_names_with_tags_and_words_that_do_not_go_together():
    from flame_vision.core import ConfigError, UnknownNameError
    from flame_vision.models import create_model, list_models, resnet18
    assert "efficientnet_b0.ra_in1k" in list_models("efficientnet_b0*", pretrained=True) and "efficientnet_b0" in list_models("efficientnet*")
    assert create_model("resnet18.a1_in1k").num_classes == 1000
    with pytest.raises(UnknownNameError, match="no weights of resnet18 are tagged 'a1_in2k'; did you mean 'a1_in1k'"):
        create_model("resnet18.a1_in2k", pretrained=True)
    with pytest.raises(ConfigError, match="give one of them"): resnet18(pretrained=True, weights="DEFAULT")
    with pytest.raises(ConfigError, match="torchvision's of a whole network"): create_model(backbone="resnet18", head="classifier", weights="DEFAULT")
