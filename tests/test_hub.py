"Weights by the real hub client, in processes of its own, from a hub on loopback that has good days and bad ones."
import json
import os
import pty
import re
import signal
import termios
import threading
import time
from io import BytesIO

import pytest
import timm
import torch
from loopback_hub import MEMBER, STRANGER, Repo, client, loopback_hub, sha256, start
from safetensors.torch import save

SMALL, LARGE = "mobilenetv3_small_050", "resnet18"  # 6.4 MB; 47 MB, of which the client can resume
VIT = "vit_tiny_patch16_224"
REPO = {name: timm.get_pretrained_cfg(name).hf_hub_id for name in (SMALL, LARGE, VIT)}


def seeded_weights(name, **arguments):
    torch.manual_seed(0)
    return save(timm.create_model(name, **arguments).state_dict())


@pytest.fixture(scope="module")
def small(): return seeded_weights(SMALL)


@pytest.fixture(scope="module")
def large(): return seeded_weights(LARGE)


def blobs(home, kind="*"): return sorted(home.glob(f"hub/models--*/blobs/{kind}"))


LOOK = """
from flame_vision.models import create_model
model = create_model(sys.argv[1], pretrained=True).eval()
x = torch.linspace(-1, 1, 3 * 64 * 80).reshape(1, 3, 64, 80)
with torch.inference_mode(): scores = model(x)[0].tolist()
told = dict(scores=scores, **model.provenance.to_dict())
"""
PEER = """
import tempfile, timm
with tempfile.TemporaryDirectory() as cache: peer = timm.create_model(sys.argv[1], pretrained=True, cache_dir=cache).eval()
with torch.inference_mode(): told["peer"] = peer(x)[0].tolist()
print(json.dumps(told))
"""
UNKNOWN = """
from flame_vision.core import WeightsError
for which in (True, "lab/flowers"):
    try: create_model("resnet18", pretrained=which)
    except WeightsError as e: told[str(which)] = str(e)
print(json.dumps(told))
"""


def in_a_terminal(code, home, hub, *arguments):
    "What a process prints, and what a terminal shows of its standard error."
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    process, shown = start(code, home, hub, *arguments, stderr=theirs), []
    os.close(theirs)

    def read():
        try:
            while part := os.read(ours, 65536): shown.append(part)
        except OSError: pass  # how a terminal says that nobody writes to it any more
    reader = threading.Thread(target=read)
    reader.start()
    told = process.stdout.read()
    process.wait()
    reader.join()
    os.close(ours)
    return told, b"".join(shown).decode()


def test_a_first_download_shows_a_bar_and_later_ones_are_none(small, tmp_path):
    with loopback_hub({REPO[SMALL]: small}) as hub:
        told, shown = in_a_terminal(LOOK + PEER, tmp_path, hub, SMALL)
        assert told, shown
        first = json.loads(told.splitlines()[-1])
        assert re.search(r"model\.safetensors: 100%\|█+\| 6\.\d+M/6\.\d+M", shown), shown
        ours, theirs = hub.asked("GET")
        assert ours.sent == theirs.sent == len(small) and ours.token is None
        again = client(LOOK + "print(json.dumps(told))", tmp_path, hub, SMALL)
        assert len(hub.asked("GET")) == 2 and len(hub.asked("HEAD")) == 3, "the second use only asks whether there is something new"
    offline = client(LOOK + UNKNOWN, tmp_path, None, SMALL)
    assert first["scores"] == again["scores"] == offline["scores"]
    assert torch.allclose(torch.tensor(first["scores"]), torch.tensor(first["peer"]), atol=1e-5)
    assert (first["source"], first["tag"], first["license"], first["digest"]) == (REPO[SMALL], "lamb_in1k", "apache-2.0", sha256(small))
    assert (first["input_size"], first["crop_pct"], first["interpolation"]) == ([3, 224, 224], 0.875, "bicubic")
    for which, repo in (("True", REPO[LARGE]), ("lab/flowers", "lab/flowers")):
        assert repo in offline[which] and "HF_HUB_OFFLINE" in offline[which] and "cache" in offline[which], offline[which]


def test_a_killed_download_starts_again_and_a_cut_one_goes_on_where_it_was(large, tmp_path):
    with loopback_hub({REPO[LARGE]: large}) as hub:
        hub.order("stall", 24 << 20)
        process = start(LOOK, tmp_path, hub, LARGE)
        until = time.monotonic() + 60
        def written(): return sum(p.stat().st_size for p in blobs(tmp_path, "*.incomplete"))
        def stalled(): return hub.asked() and hub.asked()[0].sent == 24 << 20 and written() >= 20 << 20
        while not stalled() and time.monotonic() < until: time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL and hub.asked()[0].sent == 24 << 20
        hub.order("cut", 36 << 20)
        told = client(LOOK + "print(json.dumps(told))", tmp_path, hub, LARGE)
        assert told["digest"] == sha256(large) == blobs(tmp_path)[0].name
        _, cut, resumed = hub.asked()
        assert (cut.range, cut.sent) == (None, 36 << 20), "the client can use nothing of a download that was killed"
        assert (resumed.range, resumed.sent) == (f"bytes={30 << 20}-", len(large) - (30 << 20)), "but within a call it asks for the rest"


FETCH = """
from flame_vision.core.hub import digest_of, fetch
print(json.dumps(digest_of(fetch(sys.argv[1]))))
"""


def test_of_two_processes_that_start_together_one_downloads_and_both_get_it(large, tmp_path):
    with loopback_hub({REPO[LARGE]: large}) as hub:
        hub.order("wait", 1.5)
        ranks = [start(FETCH, tmp_path, hub, REPO[LARGE]) for _ in range(2)]
        assert [json.loads(rank.communicate(timeout=300)[0]) for rank in ranks] == [sha256(large)] * 2
        assert len(hub.asked()) == 1


ASK = """
import os, warnings, huggingface_hub
from flame_vision.backbones import create_backbone
from flame_vision.core import FlameVisionError
warnings.simplefilter("error")
def ask(which, name="mobilenetv3_small_050", token="", user="", **arguments):
    os.environ["HF_TOKEN"] = token
    if user: huggingface_hub.login(user)
    try: return "sha256 " + create_backbone(name, pretrained=which, **arguments).provenance.digest
    except FlameVisionError as e: return f"{type(e).__name__}: {e}"
print(json.dumps([ask(which, **arguments) for which, arguments in json.loads(sys.argv[1])]))
"""


def ask(home, hub, *questions):
    "What becomes of each `pretrained=…`, or `(…, further arguments)`, one after the other in one process: a digest, or an error."
    return client(ASK, home, hub, json.dumps([q if isinstance(q, tuple) else (q, {}) for q in questions]))


def says(answer, kind, *parts): return answer.startswith(f"{kind}: ") and all(part in answer for part in parts)


def pickled(things):
    torch.save(things, file := BytesIO())
    return file.getvalue()


class Mischief:
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), "w")


def test_what_is_not_as_it_should_be_is_refused_and_never_kept(small, tmp_path):
    repos = {f"lab/{name}": small for name in ("short", "garbled", "always-garbled", "busy", "down")}
    with loopback_hub(repos) as hub:
        hub.order("short", 1 << 20, repo="lab/short")
        hub.order("garble", 2 << 20, repo="lab/garbled")
        hub.order("garble", 2 << 20, repo="lab/always", times=9)
        hub.order("status", 429, repo="lab/busy")
        hub.order("status", 503, repo="lab/busy", method="HEAD")
        hub.order("status", 503, repo="lab/down")
        short, then, garbled, healthy, bad, busy, down = ask(
            tmp_path, hub, "lab/short", "lab/short", "lab/garbled", "lab/garbled", "lab/always-garbled", "lab/busy", "lab/down")
        assert says(short, "WeightsError", "lab/short", "again"), short
        assert says(garbled, "WeightsError", "lab/garbled", "SHA-256", "again"), garbled
        assert says(bad, "WeightsError", "lab/always-garbled", "SHA-256"), bad
        assert says(down, "WeightsError", "lab/down", "503", "again"), down
        assert then == healthy == busy == f"sha256 {sha256(small)}", "the next call, from a hub that is well again, gets the right ones"
        assert not blobs(tmp_path, "*.incomplete") and not list(tmp_path.glob("hub/models--lab--always-garbled/*/**/model.safetensors"))
        hub.faults.clear()
        assert ask(tmp_path, hub, "lab/always-garbled", "lab/down") == [f"sha256 {sha256(small)}"] * 2


@pytest.mark.slow  # the client tries for five seconds, and for half a minute
def test_a_file_that_always_ends_too_early_and_a_hub_that_cannot_be_reached(small, tmp_path):
    with loopback_hub({"lab/cut": small}) as hub:
        hub.order("cut", 1 << 20, times=99)
        cut, = ask(tmp_path, hub, "lab/cut")
        assert says(cut, "WeightsError", "lab/cut", "again") and len(hub.asked()) == 6, cut
        hub.faults.clear()
        assert ask(tmp_path, hub, "lab/cut") == [f"sha256 {sha256(small)}"]
    gone, cached = ask(tmp_path, hub, "lab/gone", "lab/cut")
    assert says(gone, "WeightsError", "lab/gone", "go online") and cached == f"sha256 {sha256(small)}", gone


def test_who_may_not_and_what_is_not_there(small, tmp_path):
    files, safe, mischief = {"model.safetensors": small}, pickled(timm.create_model(SMALL).state_dict()), tmp_path / "mischief"
    pinned = Repo({"model.safetensors": b"of today"}, revisions={"v1": files})
    repos = {REPO[SMALL]: small, "lab/private": Repo(files, "private"), "lab/private-too": Repo(files, "private"), "lab/gated": Repo(files, "gated"),
             "lab/pickle": {"pytorch_model.bin": safe}, "lab/mischief": {"pytorch_model.bin": (unsafe := pickled({"weight": Mischief(mischief)}))},
             "lab/empty": {"README.md": b"# Nothing yet"}, "lab/pinned": pinned}
    whoami = json.dumps({"name": "ada", "auth": {"accessToken": {"displayName": "laptop", "role": "read"}}}).encode()
    with loopback_hub(repos, {"/api/whoami-v2": whoami}) as hub:
        cases = {
            "lab/nothing": ("WeightsError", "no repository lab/nothing", "hf auth login"),
            "timm/mobilenetv3_small_050.lamb_in1": ("WeightsError", "did you mean", REPO[SMALL]),
            "not a/repository/at all": ("WeightsError", "'not a/repository/at all'", "owner/name"),
            "lamb_in2k": ("UnknownNameError", "lamb_in2k", "did you mean 'lamb_in1k'"),
            "lab/private": ("WeightsError", "lab/private", "hf auth login", "HF_TOKEN"),
            "lab/gated": ("WeightsError", "lab/gated", "terms", "hf auth login"),
            "lab/empty": ("WeightsError", "lab/empty", "model.safetensors"),
            "lab/pickle": ("WeightsError", "lab/pickle", "allow_pickle=True"),
            "lab/pinned@v2": ("WeightsError", "lab/pinned", "v2"),
            3: ("ConfigError", "pretrained=3", "a tag, a file, a folder or a hub repository"),
        }
        refused = [(True, {"name": "mobilenetv3_smal_050"}), ("lab/private", {"token": STRANGER}), ("lab/gated", {"token": STRANGER}),
                   ("lab/private", {"token": "hf_stale"}), ("lab/mischief", {"allow_pickle": True})]
        welcome = [("lab/private", {"token": MEMBER}), ("lab/gated", {"token": MEMBER}), ("lab/private-too", {"user": MEMBER}),
                   ("lab/pickle", {"allow_pickle": True}), f"lab/pinned@{pinned.commits['v1'][0]}", "lab/pinned@v1"]
        answers = ask(tmp_path, hub, *cases, *refused, *welcome)
        for (which, wanted), answer in zip(cases.items(), answers, strict=False): assert says(answer, *wanted), (which, answer)
        typo, private, gated, stale, bad, *good = answers[len(cases):]
        assert says(typo, "UnknownNameError", "did you mean", SMALL), typo
        assert says(private, "WeightsError", "no repository lab/private") and says(gated, "WeightsError", "accept", "lab/gated"), (private, gated)
        assert says(stale, "WeightsError", "token"), stale
        assert says(bad, "WeightsError", "more than tensors") and not mischief.exists(), bad
        assert torch.load(BytesIO(unsafe), weights_only=False) and mischief.exists(), "code would have run"
        assert good == [f"sha256 {sha256(c)}" for c in (small, small, small, safe, small, small)]
        assert {r.token for r in hub.requests if r.path.startswith("/cdn")} == {None}, "the token stays with the hub"
    offline = ask(tmp_path, None, "lab/private", "lab/pinned@v1", ("lab/pickle", {"allow_pickle": True}))
    assert offline == [f"sha256 {sha256(c)}" for c in (small, small, safe)], "what a repository lacks is not asked for again"


FLOWERS = """
import hashlib, os, tempfile, timm, warnings
import numpy as np
from PIL import Image
from flame_vision.models import create_model
folder = sys.argv[1]
image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (150, 200, 3), dtype=np.uint8))
peer = timm.create_model("hf-hub:lab/flowers", pretrained=True).eval()
prepare = timm.data.create_transform(**timm.data.resolve_data_config({}, model=peer))
with torch.inference_mode(): theirs = peer(prepare(image)[None])
told = {}
for which in ("lab/flowers", "hf-hub:lab/flowers", "lab/flowers@main", folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = create_model("mobilenetv3_small_050", pretrained=which, **({"num_classes": 5} if which == folder else {})).eval()
    x = model.transforms()(image)
    with torch.inference_mode(): ours = model(x[None])
    told[which] = dict(pixels=(x - prepare(image)).abs().max().item(), scores=(ours - theirs).abs().max().item() / theirs.abs().max().item(),
                       warnings=[str(w.message) for w in caught], **model.provenance.to_dict())
print(json.dumps(told))
"""


def test_a_hub_id_or_a_folder_that_timm_saved_tells_how_images_are_prepared(tmp_path):
    torch.manual_seed(0)
    peer = timm.create_model(SMALL, num_classes=5)
    config = {"mean": (0.5, 0.4, 0.3), "std": (0.3, 0.2, 0.1), "input_size": (3, 96, 128), "crop_pct": 0.8, "interpolation": "bilinear"}
    timm.models.save_for_hf(peer, tmp_path / "flowers", safe_serialization=True, data_config=config,
                            model_config={"pretrained_cfg": {"license": "cc-by-4.0"}})
    files = {path.name: path.read_bytes() for path in (tmp_path / "flowers").iterdir()}
    with loopback_hub({"lab/flowers": files}) as hub:
        commit, digest = hub.repos["lab/flowers"].commits["main"][0], sha256(files["model.safetensors"])
        for which, told in client(FLOWERS, tmp_path, hub, str(tmp_path / "flowers")).items():
            assert told["pixels"] < 1e-5 and told["scores"] < 1e-5 and not told["warnings"], (which, told)
            assert (told["mean"], told["std"], told["input_size"]) == ([0.5, 0.4, 0.3], [0.3, 0.2, 0.1], [3, 96, 128])
            assert (told["crop_pct"], told["interpolation"], told["license"]) == (0.8, "bilinear", "cc-by-4.0")
            assert (told["num_classes"], told["architecture"], told["digest"]) == (5, SMALL, digest)
            assert told["revision"] == (None if which.startswith("/") else commit)
        assert len(hub.asked()) == len(hub.asked(name="config.json")) == 1, "three names of one repository"


ADAPTED = """
import timm, warnings
from flame_vision.backbones import create_backbone
from flame_vision.models import create_model
SMALL, VIT = "mobilenetv3_small_050", "vit_tiny_patch16_224"
told = {}
def compare(name, build, theirs, x, part=lambda model: model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = build().eval()
    with torch.inference_mode(): a, b = part(ours)(x), theirs(x)
    a, b = (list(m.values()) if isinstance(m, dict) else list(m) if isinstance(m, (list, tuple)) else [m] for m in (a, b))
    told[name] = dict(wrong=max((i - j).abs().max().item() / j.abs().max().item() for i, j in zip(a, b, strict=True)),
                      warned=[str(w.message) for w in caught], digest=ours.provenance.digest)
for channels in (1, 2, 6):
    x = torch.randn(1, channels, 64, 96)
    compare(f"{channels} channels", lambda: create_model(SMALL, in_channels=channels, pretrained=True),
            timm.create_model(SMALL, in_chans=channels, pretrained=True).eval(), x)
x = torch.randn(1, 3, 64, 96)
peer = timm.create_model(SMALL, pretrained=True, features_only=True, out_indices=(1, 2, 4)).eval()
compare("features", lambda: create_backbone(SMALL, pretrained=True, features_only=True, output_indices=(1, 2, 4)), peer, x)
peer = timm.create_model(SMALL, pretrained=True, num_classes=0).eval()
compare("7 classes", lambda: create_model(SMALL, num_classes=7, pretrained=True), peer.forward_features, x, lambda model: model.backbone)
compare("gray features", lambda: create_backbone(SMALL, pretrained=True, in_channels=1, features_only=True),
        timm.create_model(SMALL, pretrained=True, in_chans=1, features_only=True).eval(), x[:, :1])
x = torch.randn(1, 3, 96, 96)
compare("patches of 8", lambda: create_model(VIT, img_size=96, patch_size=8, pretrained=True),
        timm.create_model(VIT, img_size=96, patch_size=8, pretrained=True).eval(), x)
print(json.dumps(told))
"""


def test_other_classes_channels_and_patches_are_made_from_what_was_published_as_timm_does(small, tmp_path):
    vit = seeded_weights(VIT)
    with loopback_hub({REPO[SMALL]: small, REPO[VIT]: vit}) as hub:
        told = client(ADAPTED, tmp_path, hub)
        assert len(hub.asked()) == 2
    for name, (wrong, warned, digest) in ((name, t.values()) for name, t in told.items()):
        assert wrong < 1e-5 and digest == sha256(vit if "patch" in name else small), (name, wrong)
        assert len(warned) == (name != "features"), (name, warned)
    said = {name: " ".join(t["warned"]) for name, t in told.items()}
    assert "other classes" in said["7 classes"] and "[16, 3, 3, 3] to [16, 1, 3, 3]" in said["1 channels"]
    assert "[192, 3, 16, 16] to [192, 3, 8, 8]" in said["patches of 8"] and "another grid" in said["patches of 8"]
