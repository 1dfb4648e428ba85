"What the pages on checkpoints cannot show: killed processes, full disks, damaged and hostile files, a training that goes on."
import builtins
import functools
import inspect
import os
import pathlib
import pickle
import random
import subprocess
import zipfile
from functools import partial
from pathlib import Path

import faults
import numpy as np
import pytest
import timm.optim
import timm.scheduler
import timm.utils
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2

from flame_vision.core.errors import CheckpointError, MissingPathError
from flame_vision.models import resnet18
from flame_vision.versioning import content_digest, load_checkpoint, loading, read_checkpoint, save_checkpoint
from flame_vision.versioning.checkpoint import FORMAT, rng_states
from flame_vision.versioning.files import plain_values

freely = inspect.unwrap  # a function as users have it: without the checks of types that tests add



in_process = partial(faults.in_process, "checkpoint_faults.py")


def network(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def training(dtype=torch.float32, optimizer=torch.optim.AdamW, **options):
    "A network after one step, and its optimizer."
    model = network().to(dtype)
    optimizer = optimizer(model.parameters(), lr=0.01, **options)
    model(torch.randn(4, 1, 4, 4, dtype=dtype)).square().mean().backward()
    optimizer.step()
    return model, optimizer


def fingerprint(*things): return content_digest(plain_values([t.state_dict() for t in things], {}, "things"))


@pytest.fixture
def saved(tmp_path):
    "A checkpoint on the disk, and another training to load it into."
    save_checkpoint(*training(), epoch=3, path=tmp_path / "model.pt", metrics={"accuracy": 0.5}, class_names=["a", "b", "c"])
    return tmp_path / "model.pt", *training()


def refuses(path, model, optimizer=None, error=CheckpointError, **options):
    "Loading fails in one line, and nothing has moved."
    things = [t for t in (model, optimizer) if t is not None]
    before = fingerprint(*things)
    with pytest.raises(error) as caught: load_checkpoint(path, model, optimizer, **options)
    assert fingerprint(*things) == before
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


# Processes

@pytest.mark.parametrize("times", [10, pytest.param(70, marks=pytest.mark.slow)])
def test_killed_while_saving(tmp_path, times):
    found = in_process("kill_saves", tmp_path, times)
    assert found["reads"] >= 2 * times and found["epoch"] > 0
    assert found["leftovers"] > 0, "no process was killed in the middle of a write: the test tests nothing"


def test_full_disk(tmp_path):
    found = in_process("full_disk", tmp_path)
    assert "File too large" in found["error"] and "untouched" in found["error"]
    assert (found["epoch"], found["files"]) == (7, ["model.pt"])


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 1 MB."
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_file_system(small_disk):
    save_checkpoint(nn.Linear(4, 4), epoch=7, path=small_disk / "model.pt")
    with pytest.raises(CheckpointError, match="No space left on device.*untouched"):
        save_checkpoint(nn.Linear(512, 1024), epoch=8, path=small_disk / "model.pt")
    assert load_checkpoint(small_disk / "model.pt", nn.Linear(4, 4)).epoch == 7 and os.listdir(small_disk) == ["model.pt"]


def test_read_only_file_system(small_disk):
    model = nn.Linear(4, 4)
    save_checkpoint(model, epoch=7, path=small_disk / "model.pt")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for name in ("model.pt", "other.pt", "deeper/model.pt"):
        with pytest.raises(CheckpointError, match="Read-only file system.*untouched"): save_checkpoint(model, epoch=8, path=small_disk / name)
    assert load_checkpoint(small_disk / "model.pt", model).epoch == 7


# Checkpoints

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("optimizer, options", [
    (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.AdamW, {"amsgrad": True}), (torch.optim.RMSprop, {"centered": True}),
    (torch.optim.Adagrad, {})], ids=lambda o: getattr(o, "__name__", ""))
def test_training_goes_on_in_the_same_bits(tmp_path, dtype, optimizer, options):
    def step(model, optimizer, x):
        def closure():
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss
        optimizer.step(closure)

    batches = torch.randn(4, 4, 1, 4, 4, dtype=dtype)
    runs = [(model := network().to(dtype), optimizer(model.parameters(), lr=0.01, **options)) for _ in range(2)]
    for x in batches[:2]: step(*runs[0], x)
    save_checkpoint(*runs[0], epoch=2, path=tmp_path / "m.pt")
    assert load_checkpoint(tmp_path / "m.pt", *runs[1]).epoch == 2
    for x in batches[2:]:
        for run in runs: step(*run, x)
    assert fingerprint(*runs[0]) == fingerprint(*runs[1])


def generators():
    "Digest of the random states but Python's own, from which the checks of declared types in this suite draw too."
    return content_digest({k: v for k, v in rng_states().items() if k != "python"})


def rates(optimizer): return [group["lr"] for group in optimizer.param_groups]


LR = torch.optim.lr_scheduler
SCHEDULERS = {
    "lambda": lambda o: LR.LambdaLR(o, lambda e: 0.9 ** e), "multiplicative": lambda o: LR.MultiplicativeLR(o, lambda e: 0.9),
    "step": lambda o: LR.StepLR(o, 2), "multistep": lambda o: LR.MultiStepLR(o, [2, 5]), "constant": lambda o: LR.ConstantLR(o, total_iters=6),
    "linear": lambda o: LR.LinearLR(o), "exponential": lambda o: LR.ExponentialLR(o, 0.9), "polynomial": lambda o: LR.PolynomialLR(o, 8, 2.0),
    "cosine": lambda o: LR.CosineAnnealingLR(o, 8), "restarts": lambda o: LR.CosineAnnealingWarmRestarts(o, 3),
    "cyclic": lambda o: LR.CyclicLR(o, 0.01, 0.1, 2), "own cycle": lambda o: LR.CyclicLR(o, 0.01, 0.1, 2, scale_fn=lambda x: 0.5),
    "onecycle": lambda o: LR.OneCycleLR(o, 0.1, 10), "plateau": lambda o: LR.ReduceLROnPlateau(o, patience=0),
    "swa": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, anneal_epochs=9),
    "sequential": lambda o: LR.SequentialLR(o, [LR.LinearLR(o), LR.LambdaLR(o, lambda e: 0.9 ** e)], [2]),
    "chained": lambda o: LR.ChainedScheduler([LR.ConstantLR(o, total_iters=4), LR.ExponentialLR(o, 0.9)]),
    "timm": lambda o: timm.scheduler.CosineLRScheduler(o, 8, warmup_t=2)}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers(tmp_path, kind):
    def go(run, step):
        run[1].step()
        run[2].step(*{"plateau": [1.0 + step], "timm": [step]}.get(kind, []))
    runs = [(model := network(), o := torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), SCHEDULERS[kind](o)) for _ in range(2)]
    for step in range(3): go(runs[0], step)
    save_checkpoint(*runs[0][:2], path=tmp_path / "m.pt", scheduler=runs[0][2])
    load_checkpoint(tmp_path / "m.pt", *runs[1][:2], scheduler=runs[1][2])
    seen = []
    for step in range(3, 8):
        for run in runs: go(run, step)
        assert rates(runs[0][1]) == rates(runs[1][1])
        seen.append(rates(runs[0][1])[0])
    assert len(set(seen)) > 1 or kind == "own cycle", "the rate never moved: the test tests nothing"
    with pytest.raises(CheckpointError, match="the scheduler is"):
        load_checkpoint(tmp_path / "m.pt", runs[1][0], scheduler=LR.StepLR(runs[1][1], 1) if kind != "step" else LR.ExponentialLR(runs[1][1], 0.9))


AUGMENT = v2.Compose([v2.RandomCrop(4, padding=2), v2.RandomHorizontalFlip(), v2.ColorJitter(0.5), v2.RandomErasing(0.5)])
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True), "adamw": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01), "rprop": lambda p: torch.optim.Rprop(p, 0.01), "adadelta": lambda p: torch.optim.Adadelta(p),
    "lamb": lambda p: timm.optim.Lamb(p, 0.01), "lion": lambda p: timm.optim.create_optimizer_v2(p, "lion", lr=0.01)}
AVERAGES = {
    "torch": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True), "mean": AveragedModel,
    "timm": lambda m: timm.utils.ModelEmaV3(m, 0.9), "none": lambda m: None}


class Run:
    "A training in which everything draws random numbers, in half precision with a scaler."
    def __init__(self, optimizer, average, seed):
        torch.manual_seed(seed); random.seed(seed); np.random.seed(seed)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout2d(0.3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3))
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler, self.ema = LR.OneCycleLR(self.optimizer, 0.02, 12, cycle_momentum=False), AVERAGES[average](self.model)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=3)
        self.order = Order(40)

    def train(self, steps):
        for _ in range(steps):
            picked = torch.tensor([next(self.order) for _ in range(4)])
            x = AUGMENT(torch.rand(4, 3, 4, 4)) + picked[:, None, None, None] / 40 + random.gauss(0, 0.1) + np.random.normal()
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16): loss = self.model(x).float().square().mean()
            self.scaler.scale(loss * (float("inf") if random.random() < 0.2 else 1)).backward()
            self.scaler.step(self.optimizer); self.scaler.update(); self.scheduler.step()
            if self.ema is not None: self.ema.update(self.model) if hasattr(self.ema, "update") else self.ema.update_parameters(self.model)

    @property
    def parts(self): return dict(scheduler=self.scheduler, scaler=self.scaler, ema=self.ema, loader=self.order)
    def digest(self): return fingerprint(self.model, self.optimizer, *(part for part in self.parts.values() if part is not None))


class Order:
    "A sampler that knows where it is."
    def __init__(self, length): self.length, self.left = length, []
    def __next__(self):
        if not self.left: self.left = torch.randperm(self.length).tolist()
        return self.left.pop()
    def state_dict(self): return {"left": self.left}
    def load_state_dict(self, state): self.left = list(state["left"])


@pytest.mark.parametrize("optimizer, average", [(o, a) for i, o in enumerate(OPTIMIZERS) for j, a in enumerate(AVERAGES) if i % 4 == j])
def test_a_run_goes_on_in_the_same_bits(tmp_path, optimizer, average):
    whole = Run(optimizer, average, 0)
    whole.train(5)
    save_checkpoint(whole.model, whole.optimizer, 1, tmp_path / "m.pt", step=5, **whole.parts)
    scale = whole.scaler.get_scale()
    whole.train(6)
    resumed = Run(optimizer, average, 1)
    resumed.train(1)
    loaded = load_checkpoint(tmp_path / "m.pt", resumed.model, resumed.optimizer, **resumed.parts, rng=True)
    assert loaded.step == 5 and resumed.scaler.get_scale() == scale != 2.0**14
    assert {k for k, v in loaded.report.sections.items() if v == "loaded"} >= {"optimizer", "scheduler", "scaler", "loader", "rng"}
    resumed.train(6)
    assert resumed.digest() == whole.digest()
    blind = Run(optimizer, average, 1)
    load_checkpoint(tmp_path / "m.pt", blind.model, blind.optimizer, **blind.parts)
    blind.train(6)
    assert blind.digest() != whole.digest(), "without the random states it is another run: else the test tests nothing"


def test_states_of_every_device(tmp_path, monkeypatch):
    "Four devices, of which two are there when it goes on."
    states = [torch.full((16,), i, dtype=torch.uint8) for i in range(4)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    save_checkpoint(network(), path=tmp_path / "m.pt")
    found = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: found.update({device: state.tolist()}))
    report = load_checkpoint(tmp_path / "m.pt", network(), rng=True).report
    assert found == {0: states[0].tolist(), 1: states[1].tolist()} and report.notes == ["random states of 4 CUDA devices were saved, there are 2"]


@pytest.mark.gpu
def test_a_device_goes_on(tmp_path):
    torch.manual_seed(0)
    model = network().cuda()
    save_checkpoint(model, path=tmp_path / "m.pt")
    drawn = torch.rand(5, device="cuda")
    loaded = load_checkpoint(tmp_path / "m.pt", network().cuda(), rng=True, map_location="cuda")
    assert torch.rand(5, device="cuda").equal(drawn) and fingerprint(loaded.model) == fingerprint(model)


def test_several_optimizers(tmp_path):
    runs = [[network(), network()] for _ in range(2)]
    steps = [[torch.optim.Adam(g.parameters()), torch.optim.SGD(d.parameters(), 0.1, momentum=0.9)] for g, d in runs]
    for model, optimizer in zip(runs[0], steps[0]): model(torch.randn(4, 1, 4, 4)).sum().backward(); optimizer.step()
    save_checkpoint(nn.ModuleList(runs[0]), steps[0], path=tmp_path / "gan.pt")
    assert load_checkpoint(tmp_path / "gan.pt", nn.ModuleList(runs[1]), steps[1]).optimizer == steps[1]
    assert fingerprint(*runs[0], *steps[0]) == fingerprint(*runs[1], *steps[1])
    refuses(tmp_path / "gan.pt", nn.ModuleList(runs[1]), steps[1][0])
    with pytest.raises(CheckpointError, match="optimizer is SGD"): load_checkpoint(tmp_path / "gan.pt", nn.ModuleList(runs[1]), steps[1][::-1])


@pytest.mark.parametrize("culprit", ["model", "optimizer", "scheduler", "scaler", "ema", "loader", "rng"])
def test_all_or_nothing(tmp_path, monkeypatch, culprit):
    "Whichever fails, after it has taken what is new: everything is as it was."
    whole, other = Run("adamw", "torch", 0), Run("adamw", "torch", 1)
    whole.train(3); other.train(4)
    save_checkpoint(whole.model, whole.optimizer, 1, tmp_path / "m.pt", **whole.parts)
    things = {**vars(other), "loader": other.order}
    owner, name = (loading, "set_rng_states") if culprit == "rng" else (type(things[culprit]), "load_state_dict")
    once, original = [], getattr(owner, name)
    def failing(*args, **kwargs):
        original(*args, **kwargs)
        if not once: once.append(1); raise RuntimeError("half-way")
    monkeypatch.setattr(owner, name, failing)
    before = other.digest(), generators()
    with pytest.raises(CheckpointError, match="half-way; everything is as it was"):
        load_checkpoint(tmp_path / "m.pt", other.model, other.optimizer, **other.parts, rng=True)
    assert (other.digest(), generators()) == before and once
    load_checkpoint(tmp_path / "m.pt", other.model, other.optimizer, **other.parts, rng=True)
    assert other.digest() == whole.digest()


def test_the_first_format(tmp_path):
    "As version 1 of the format was written."
    model, optimizer = training()
    content = {"format": FORMAT, "version": 1, "architecture": "Sequential", "model": dict(model.state_dict()), "metadata": {},
               "optimizer": {"class": "AdamW", "shapes": [[list(p.shape) for p in model.parameters()]], "state": optimizer.state_dict()},
               "scheduler": None, "epoch": 3, "metrics": {"a": 1.0}, "config": None, "class_names": ["a", "b", "c"], "extra": {}}
    content = plain_values(content, {}, "old")
    torch.save({**content, "digest": content_digest(content)}, tmp_path / "old.pt")
    fresh = training()
    loaded = load_checkpoint(tmp_path / "old.pt", *fresh)
    assert fingerprint(model, optimizer) == fingerprint(*fresh) and (loaded.epoch, loaded.step, loaded.class_names) == (3, 0, ["a", "b", "c"])
    assert "holds no random states" in refuses(tmp_path / "old.pt", *fresh, rng=True)
    assert "holds no scheduler" in refuses(tmp_path / "old.pt", *fresh, scheduler=LR.StepLR(fresh[1], 1))


def test_pytorch_reads_our_files(saved):
    content = torch.load(saved[0], weights_only=True)
    other = network()
    other.load_state_dict(content["model"])
    loaded = load_checkpoint(saved[0], network())
    assert fingerprint(other) == fingerprint(loaded.model)
    again = torch.optim.AdamW(other.parameters())
    again.load_state_dict(content["optimizers"][0]["state"])
    assert fingerprint(again) == fingerprint(load_checkpoint(saved[0], *saved[1:]).optimizer)


# A part of it

class Named(nn.Module):
    def __init__(self, names, backbone=4):
        super().__init__()
        self.class_names, self.num_classes = names, len(names)
        self.backbone, self.head = nn.Linear(3, backbone), nn.Linear(backbone, len(names))


def test_a_head_is_never_left_in_silence(tmp_path):
    save_checkpoint(Named(["cat", "dog"]), path=tmp_path / "m.pt")
    three, turned = Named(["cat", "dog", "owl"]), Named(["dog", "cat"])
    for options in ({}, {"strict": False}):
        said = refuses(tmp_path / "m.pt", three, **options)
        assert "'head.weight' is float32 [2, 4], the model has float32 [3, 4]" in said
        assert "2 classes ('cat', 'dog')" in said and "skip=('head.*',)" in said
    with pytest.warns(UserWarning, match="tells 3 apart"): report = load_checkpoint(tmp_path / "m.pt", three, skip="head.*").report
    assert report.kept == report.skipped == ["head.weight", "head.bias"] and report.why["head.bias"] == "skip='head.*'"
    assert "classes are 'cat', 'dog', the model's 'cat', 'dog', 'owl'" in str(report) and "tells 3 apart" in str(report)
    with pytest.warns(UserWarning, match="classes are 'cat', 'dog', the model's 'dog', 'cat'"):
        assert "'dog', 'cat'" in str(load_checkpoint(tmp_path / "m.pt", turned).report)
    assert str(load_checkpoint(tmp_path / "m.pt", Named(["cat", "dog"])).report).startswith("loaded 4 tensors from m.pt")


def test_patterns(tmp_path):
    whole, other = Named(["cat", "dog"]), Named(["cat", "dog"])
    save_checkpoint(whole, path=tmp_path / "m.pt")
    old = other.head.weight.clone()
    report = load_checkpoint(tmp_path / "m.pt", other, only=["backbone.*", "head.bias"]).report
    assert report.loaded == ["backbone.weight", "backbone.bias", "head.bias"] and report.kept == ["head.weight"]
    assert other.head.weight.equal(old) and other.head.bias.equal(whole.head.bias) and other.backbone.weight.equal(whole.backbone.weight)
    assert "'backbone.*'" in refuses(tmp_path / "m.pt", other, only="bakbone.*")
    refuses(tmp_path / "m.pt", other, skip=("head.*", "haed.*"))
    report = load_checkpoint(tmp_path / "m.pt", other, only="*.weight", skip="head.*").report
    assert report.loaded == ["backbone.weight"]
    assert "backbone" in refuses(tmp_path / "m.pt", Named(["cat", "dog"], backbone=5), only="backbone.*")


@pytest.mark.parametrize("where", ["meta", "cuda:7", torch.device("cuda", 9), "nowhere"])
def test_locations(saved, where):
    if torch.cuda.is_available() and torch.cuda.device_count() > 9: pytest.skip("there are these devices")
    assert "map_location" in refuses(*saved, map_location=where)


def test_wrapped_models(tmp_path):
    model = network()
    save_checkpoint(nn.DataParallel(model), path=tmp_path / "m.pt")
    fresh = network()
    load_checkpoint(tmp_path / "m.pt", torch.compile(fresh))
    assert fingerprint(fresh) == fingerprint(model)


def test_everything_comes_back(tmp_path):
    extra = {"rng": torch.get_rng_state(), "nested": [1, (2.5, None), {"a": True}], "nan": float("inf")}
    save_checkpoint(resnet18(num_classes=3), epoch=4, path=tmp_path / "deep" / "er" / "m.pt", class_names=("x", "y", "z"), extra=extra)
    loaded = load_checkpoint(tmp_path / "deep" / "er" / "m.pt", resnet18(num_classes=3))
    assert loaded.class_names == ["x", "y", "z"] and loaded.config == resnet18(num_classes=3).config
    assert loaded.extra["nested"] == extra["nested"] and loaded.extra["rng"].equal(extra["rng"])
    assert len(loaded) == 3 and (tmp_path / "deep" / "er" / "m.pt").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    now = os.umask(0)
    os.umask(now)
    return now


def test_cut_at_many_lengths(saved, tmp_path):
    path, model, optimizer = saved
    whole = path.read_bytes()
    for length in {*range(0, len(whole), len(whole) // 60), *range(len(whole) - 30, len(whole)), 1, 2, 3}:
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        refuses(tmp_path / "cut.pt", model, optimizer)


def test_flipped_bytes(saved, tmp_path):
    "Either the flip is noticed, or it hit padding and the content is the same to the last bit."
    path, model, optimizer = saved
    whole, content, noticed = path.read_bytes(), content_digest(read_checkpoint(path)), 0
    for at in random.sample(range(len(whole)), 150):
        (tmp_path / "flipped.pt").write_bytes(whole[:at] + bytes([whole[at] ^ (1 << random.randrange(8))]) + whole[at + 1:])
        try: assert content_digest(read_checkpoint(tmp_path / "flipped.pt")) == content
        except CheckpointError: noticed += 1; refuses(tmp_path / "flipped.pt", model, optimizer)
    assert noticed > 20


def test_every_flip_in_the_weights_is_noticed(saved, tmp_path):
    path, model, optimizer = saved
    whole, bytes_ = path.read_bytes(), read_checkpoint(path)["model"]["3.weight"].numpy().tobytes()
    start = whole.index(bytes_)
    for at in range(start, start + len(bytes_), 7):
        (tmp_path / "flipped.pt").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        assert "damaged" in refuses(tmp_path / "flipped.pt", model, optimizer)


class Malice:
    def __init__(self, call, *arguments): self.call, self.arguments = call, arguments
    def __reduce__(self): return self.call, self.arguments


@pytest.mark.parametrize("attack", [
    lambda mark: Malice(os.system, f"touch {mark}"), lambda mark: Malice(builtins.eval, f"open({str(mark)!r}, 'w')"),
    lambda mark: Malice(builtins.exec, f"open({str(mark)!r}, 'w')"), lambda mark: Malice(getattr, Malice(__import__, "os"), "getcwd"),
    lambda mark: Malice(list, [Malice(subprocess.check_call, ["touch", str(mark)])]),
    lambda mark: Malice(torch.load, str(mark)), lambda mark: Malice(torch.hub.load, str(mark), "x"), lambda mark: nn.Linear(1, 1)])
def test_malicious_pickles(tmp_path, attack):
    mark, model = tmp_path / "mark", network()
    content = {"format": FORMAT, "version": 1, "digest": "", "model": {"0.weight": attack(mark)}}
    torch.save(content, tmp_path / "zip.pt")
    torch.save(content, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(attack(mark)))
    assert "refused" in refuses(tmp_path / "zip.pt", model)
    for name in ("legacy", "plain"): refuses(tmp_path / f"{name}.pt", model)
    assert not mark.exists()


def forged(path, **sections):
    "A checkpoint with a right digest and wrong sections."
    content = {k: v for k, v in read_checkpoint(path).items() if k != "digest"} | sections
    torch.save({**content, "digest": content_digest(content)}, path)
    return path


@pytest.mark.parametrize("sections", [
    {"model": 5}, {"model": {"0.weight": "text"}}, {"optimizers": {}}, {"optimizers": [{"class": "AdamW"}]}, {"optimizers": [3]}, {"optimizers": 3},
    {"epoch": "three"}, {"metadata": None}, {"version": 3}, {"version": [2]}, {"version": True}, {"format": "other"}, {"metrics": [1]},
    {"schedulers": None}, {"scaler": 1}, {"rng": "x"}, {"step": None}, {"trainer": []}], ids=str)
def test_forged_sections(saved, sections): refuses(forged(saved[0], **sections), *saved[1:])


def test_forged_optimizer_state(saved):
    path, model, optimizer = saved
    section = read_checkpoint(path)["optimizers"][0]
    groups = section["state"]["param_groups"]
    for state in ({}, {"state": {}, "param_groups": []}, {"state": {0: 1}, "param_groups": groups}, 5, {"state": {}, "param_groups": [3]},
                  {"state": 7, "param_groups": groups}):
        refuses(forged(path, optimizers=[{**section, "state": state}]), model, optimizer)


@pytest.mark.parametrize("change", [
    {"python": [3, torch.zeros(4, dtype=torch.int64), None]}, {"python": 1}, {"numpy": {}}, {"torch": torch.zeros(3, dtype=torch.uint8)},
    {"torch": torch.zeros(5056)}], ids=["python", "number", "numpy", "short", "float"])
def test_forged_random_states(saved, change):
    path, model, optimizer = saved
    before = generators()
    refuses(forged(path, rng={**read_checkpoint(path)["rng"], **change}), model, optimizer, rng=True)
    assert before == generators()


def archive(path, program, **records):
    "A file as `torch.save` writes it, with a pickle of one's own."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as z:
        for name, data in {"data.pkl": program, "version": b"3\n", "byteorder": b"little", **records}.items(): z.writestr(f"x/{name}", data)
    return path


def bombs(folder):
    "Files of a few kilobytes that ask for gigabytes, for ever, or for the end of the process."
    with zipfile.ZipFile(folder / "zip.pt", "w", zipfile.ZIP_DEFLATED) as z: z.writestr("x/data.pkl", b"\0" * 500_000_000)
    laughs, loop = ["ha"], []
    for _ in range(60): laughs = [laughs, laughs]
    loop.append(loop)
    for name, content in {"laughs": laughs, "loop": loop, "huge": {"a": torch.zeros(1).expand(10**12)}}.items():
        torch.save({"format": FORMAT, "version": 2, "digest": "", "model": content}, folder / f"{name}.pt")
    nested = [1]
    for _ in range(300): nested = [nested]
    torch.save({"format": FORMAT, "version": 2, "model": nested}, folder / "lists.pt")
    archive(folder / "tuples.pt", b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.")  # hashing that key ends the process
    archive(folder / "memo.pt", b"\x80\x02Nr\xff\xff\xff\x7f.")
    archive(folder / "long.pt", b"\x80\x02X\xff\xff\xff\x7fabc.")
    archive(folder / "bytearray.pt", b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.")
    archive(folder / "tensor.pt", b"\x80\x02ctorch\nTensor\n\x8a\x05\x00\x00\x00\x00\x10\x85R.")
    torch.save({"a": torch.arange(1000.0)}, folder / "honest.pt")
    with zipfile.ZipFile(folder / "honest.pt") as z: program, numbers = z.read("honest/data.pkl"), z.read("honest/data/0")
    archive(folder / "lying.pt", program.replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f"), **{"data/0": numbers})
    (folder / "honest.pt").unlink()


def test_bombs(tmp_path):
    bombs(tmp_path)
    found = in_process("read_all", tmp_path)
    assert set(found["errors"].values()) == {"CheckpointError"} and len(found["errors"]) == 11
    assert found["grown"] < 100, f"{found['grown']} MB for files of a few kB"


def test_links(saved, tmp_path):
    path, model, optimizer = saved
    (tmp_path / "link.pt").symlink_to(path)
    assert load_checkpoint(tmp_path / "link.pt", model, optimizer).epoch == 3
    save_checkpoint(model, epoch=9, path=tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink() and read_checkpoint(path)["epoch"] == 9
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    refuses(tmp_path / "loop.pt", model)
    (tmp_path / "gone.pt").symlink_to(tmp_path / "nowhere.pt")
    refuses(tmp_path / "gone.pt", model, error=MissingPathError)


def test_paths_that_are_no_checkpoints(saved, tmp_path):
    path, model, optimizer = saved
    assert "folder" in refuses(tmp_path, model)
    refuses(tmp_path / "none.pt", model, error=MissingPathError)
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    assert "load_weights" in refuses(tmp_path / "bare.pt", model)
    with pytest.raises(CheckpointError, match="could not write"): save_checkpoint(model, path=tmp_path / "model.pt" / "below.pt")
    with pytest.raises(CheckpointError, match="could not write"): save_checkpoint(model, path=tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["bare.pt", "model.pt"]


def test_nothing_is_written_for_what_cannot_be_saved(tmp_path):
    for model in (network().to("meta"), nn.Sequential(nn.LazyLinear(3))):
        with pytest.raises(CheckpointError): save_checkpoint(model, path=tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="metrics"): save_checkpoint(network(), path=tmp_path / "m.pt", metrics={"a": object()})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["s3://bucket/x.pt", Path("s3://bucket/x.pt"), "file:///x.pt", "a\0b.pt", "", None, 3])
def test_paths_that_lead_to_no_file(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="path="): freely(save_checkpoint)(network(), path=path)
    with pytest.raises(CheckpointError, match="path="): freely(load_checkpoint)(path, network())
    assert not os.listdir(tmp_path)


DEEP, ROUND = functools.reduce(lambda inner, _: {"d": inner}, range(200), {}), {}
ROUND["me"] = ROUND


@pytest.mark.parametrize("given, said", [
    ({"model": None}, "NoneType"), ({"model": network().state_dict()}, "OrderedDict.*nn.Module"), ({"metrics": [1]}, "metrics is a list"),
    ({"extra": [1]}, "extra is a list"), ({"epoch": 1.7}, "epoch=1.7"), ({"step": float("nan")}, "step=nan"), ({"epoch": "3"}, "epoch='3'"),
    ({"extra": ROUND}, "extra holds itself"), ({"extra": DEEP}, "nested too deep"),
    ({"class_names": "cat"}, "one string"), ({"class_names": {"a", "b"}}, "set"), ({"class_names": {"cat": 0, "dog": 1}}, "keys 'cat'"),
    ({"class_names": {1: "cat", 2: "dog"}}, "keys"), ({"class_names": 5}, "int")],
    ids=lambda value: value if isinstance(value, str) else "")
def test_arguments_that_make_no_sense(tmp_path, given, said):
    with pytest.raises(CheckpointError, match=said) as caught: freely(save_checkpoint)(**{"model": network(), "path": tmp_path / "m.pt", **given})
    assert "\n" not in str(caught.value) and not os.listdir(tmp_path)


@pytest.mark.parametrize("names", [{0: "a", 1: "b", 2: "c"}, {"2": "c", "0": "a", "1": "b"}, ("a", "b", "c"), np.array(["a", "b", "c"])], ids=str)
def test_class_names_in_order(tmp_path, names):
    model = network()
    freely(save_checkpoint)(model, epoch=np.int64(2), path=tmp_path / "m.pt", class_names=names)
    model.class_names = names
    save_checkpoint(model, path=tmp_path / "own.pt")
    for name in ("m.pt", "own.pt"): assert load_checkpoint(tmp_path / name, model).class_names == ["a", "b", "c"]  # and no warning of other names


def test_a_config_with_attributes_of_its_class(tmp_path):
    class Cfg: width = 8
    for config in (Cfg, Cfg()):
        save_checkpoint(network(), path=tmp_path / "m.pt", config=config)
        assert load_checkpoint(tmp_path / "m.pt", network()).config == {"width": 8}


@pytest.mark.parametrize("where", [5, ["cpu"], {"cpu": 5}, lambda: "cpu", lambda storage, location: "cpu", lambda storage, location: 1 / 0])
def test_a_wrong_location_is_not_the_files_fault(saved, where):
    said = refuses(*saved, map_location=where)
    assert "map_location" in said and "damaged" not in said


def test_right_locations(saved):
    for where in (None, "cpu", {"cpu": "cpu"}, lambda storage, location: storage, lambda storage, location: None):
        assert load_checkpoint(*saved, map_location=where).epoch == 3


def test_swapped_and_missing_arguments(saved):
    path, model, _ = saved
    for wrong in (model, {"model": model}):
        with pytest.raises(CheckpointError, match="path"): freely(load_checkpoint)(wrong, str(path))
    with pytest.raises(CheckpointError, match="the nn.Module itself"): freely(load_checkpoint)(path, model.state_dict())


def test_a_file_that_may_not_be_read(saved, monkeypatch):
    def denied(*args, **kwargs): raise PermissionError(13, "Permission denied")
    for name in ("torch.load", "builtins.open"):
        with monkeypatch.context() as patch:
            patch.setattr(name, denied)
            said = refuses(*saved)
        assert "Permission denied" in said and "damaged" not in said


@pytest.mark.parametrize("plan", [None, pathlib.PurePosixPath("x")], ids=["plain", "with objects"])
def test_lightnings_files_are_known(tmp_path, plan):
    torch.save({"state_dict": network().state_dict(), "pytorch-lightning_version": "2.5", "hyper_parameters": plan}, tmp_path / "last.ckpt")
    said = refuses(tmp_path / "last.ckpt", network())
    assert f"import_lightning_checkpoint({str(tmp_path / 'last.ckpt')!r}, {str(tmp_path / 'last.pt')!r})" in said


def test_untied_file_into_tied_model(tmp_path):
    def pair(tie):
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        if tie: model[1].weight = model[0].weight
        return model
    save_checkpoint(pair(False), path=tmp_path / "m.pt")
    assert "one parameter in the model" in refuses(tmp_path / "m.pt", pair(True))
    save_checkpoint(pair(True), path=tmp_path / "m.pt")
    load_checkpoint(tmp_path / "m.pt", pair(False))
