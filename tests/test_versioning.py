"What the notebooks of `versioning` cannot show: killed and crowded processes, full disks, damaged and hostile files."
import builtins
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from safetensors.torch import load_file
from torch import nn

from flame_vision.architectures.base import ARCHITECTURES, BaseArchitecture, register_architecture
from flame_vision.core.errors import (
    CheckpointError,
    MissingPathError,
    RegistryError,
    TamperedError,
    VersionExistsError,
    VersionNotFoundError,
)
from flame_vision.models import resnet18
from flame_vision.versioning import ModelRegistry, content_digest, load_checkpoint, read_checkpoint, save_checkpoint
from flame_vision.versioning.checkpoint import FORMAT
from flame_vision.versioning.files import plain_values
from flame_vision.versioning.manifest import Manifest, file_entry, manifest_text, parse_manifest, sealed
from flame_vision.versioning.names import canonical_version, check_name
from flame_vision.versioning.rebuild import Fields

FAULTS = Path(__file__).with_name("versioning_faults.py")


def in_process(task, *arguments):
    "Run a task of `versioning_faults.py` in a fresh process, and give what it reports."
    done = subprocess.run([sys.executable, FAULTS, task, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "writer:" not in done.stderr, done.stderr
    return json.loads(done.stdout)


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

def test_killed_while_saving(tmp_path):
    found = in_process("kill_saves", tmp_path, 12)
    assert found["reads"] >= 24 and found["epoch"] > 0
    assert found["leftovers"] > 0, "no process was killed in the middle of a write: the test tests nothing"


def test_killed_while_registering(tmp_path):
    found = in_process("kill_registrations", tmp_path, 12)
    assert found["versions"] > 0 and found["listed"] == ["m"]
    assert found["leftovers"] > 0, "no process was killed in the middle of a write: the test tests nothing"


def test_four_processes_at_once(tmp_path):
    found = in_process("crowd", tmp_path, 4, 8)
    assert found["made"] == found["there"] and len(set(found["made"])) == 32


def test_full_disk(tmp_path):
    found = in_process("full_disk", tmp_path)
    assert len(found["errors"]) == 2 and all("File too large" in e and "untouched" in e for e in found["errors"])
    assert (found["epoch"], found["versions"], found["wrong"]) == (7, ["1.0.0"], {})
    assert found["files"] == ["model.pt", "registry/m/1.0.0/manifest.json", "registry/m/1.0.0/model.safetensors"]


def test_new_process_gives_equal_outputs(tmp_path):
    model, x = resnet18(num_classes=3).eval(), torch.randn(2, 3, 32, 32)
    ModelRegistry(tmp_path / "registry").register("net", model=model)
    torch.save(x, tmp_path / "x.pt")
    assert torch.tensor(in_process("load_again", tmp_path / "registry", "net", tmp_path / "x.pt")).equal(model(x))


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


@pytest.mark.parametrize("make", [
    lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 4]), lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 10),
    lambda o: torch.optim.lr_scheduler.SequentialLR(
        o, [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.CosineAnnealingLR(o, 8)], [2])],
    ids=["multistep", "onecycle", "sequential"])
def test_schedulers(tmp_path, make):
    runs = [(model := network(), o := torch.optim.SGD(model.parameters(), 0.1), make(o)) for _ in range(2)]
    for _ in range(3): runs[0][1].step(); runs[0][2].step()
    save_checkpoint(*runs[0][:2], path=tmp_path / "m.pt", scheduler=runs[0][2])
    load_checkpoint(tmp_path / "m.pt", *runs[1][:2], scheduler=runs[1][2])
    for _ in range(4):
        for run in runs: run[1].step(); run[2].step()
        assert runs[0][1].param_groups[0]["lr"] == runs[1][1].param_groups[0]["lr"]
    model, o = network(), torch.optim.SGD(network().parameters(), 0.1)
    with pytest.raises(CheckpointError, match="scheduler is StepLR"):
        load_checkpoint(tmp_path / "m.pt", model, scheduler=torch.optim.lr_scheduler.StepLR(o, 1))


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
    {"model": 5}, {"model": {"0.weight": "text"}}, {"optimizer": {}}, {"optimizer": {"class": "AdamW"}},
    {"optimizer": 3}, {"epoch": "three"},
    {"metadata": None}, {"version": 2}, {"format": "other"}, {"metrics": [1]}], ids=str)
def test_forged_sections(saved, sections): refuses(forged(saved[0], **sections), *saved[1:])


def test_forged_optimizer_state(saved):
    path, model, optimizer = saved
    section = read_checkpoint(path)["optimizer"]
    for state in ({}, {"state": {}, "param_groups": []}, {"state": {0: 1}, "param_groups": section["state"]["param_groups"]}, 5):
        refuses(forged(path, optimizer={**section, "state": state}), model, optimizer)


def test_bombs(saved, tmp_path):
    path, model, _ = saved
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as z: z.writestr("model/data.pkl", b"\0" * 50_000_000)
    assert "claims more bytes" in refuses(tmp_path / "bomb.pt", model)
    content = {k: v for k, v in read_checkpoint(path).items() if k != "digest"}
    torch.save({**content, "model": {"0.weight": torch.zeros(1).expand(10**12)}, "digest": ""}, tmp_path / "huge.pt")
    assert "storage" in refuses(tmp_path / "huge.pt", model)


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


def test_untied_file_into_tied_model(tmp_path):
    def pair(tie):
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        if tie: model[1].weight = model[0].weight
        return model
    save_checkpoint(pair(False), path=tmp_path / "m.pt")
    assert "one parameter in the model" in refuses(tmp_path / "m.pt", pair(True))
    save_checkpoint(pair(True), path=tmp_path / "m.pt")
    load_checkpoint(tmp_path / "m.pt", pair(False))


# The registry

HOSTILE = [
    "", ".", "..", "/abs", "a/b", "a\\b", "../up", "con", "Aux.pt", "LPT1", "\0", "a\0", "-x", ".x", "x.", "a b", "é", "x" * 10_000, "a\n"]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda n: ascii(n[:12]))
def test_hostile_names(tmp_path, name):
    registry = ModelRegistry(tmp_path / "root")
    for call in (lambda: registry.register(name, model=nn.Linear(1, 1)), lambda: registry.load(name), lambda: registry.get(name),
                 lambda: registry.versions(name), lambda: registry.verify(name or "."),
                 lambda: registry.register("m", model=nn.Linear(1, 1), files={name: b"x"})):
        with pytest.raises(RegistryError) as caught: call()
        assert len(str(caught.value)) < 300
    assert name not in registry and os.listdir(tmp_path) == []


@pytest.mark.parametrize("version", ["..", "/abs", "1/2", "../1.0", "", "one", "1" * 10_000, "1.0\0"], ids=lambda n: ascii(n[:12]))
def test_hostile_versions(tmp_path, version):
    registry = ModelRegistry(tmp_path)
    with pytest.raises(RegistryError): registry.register("m", version, model=nn.Linear(1, 1))
    registry.register("m", model=nn.Linear(1, 1))
    if version:
        with pytest.raises(RegistryError): registry.load("m", version)


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=120))
def test_accepted_names_are_one_plain_entry(name):
    try: check_name(name)
    except RegistryError: return
    assert os.path.basename(name) == name and name not in (".", "..") and os.path.normpath(name) == name


versions = st.builds(lambda release, pre: ".".join(map(str, release)) + pre, st.lists(st.integers(0, 3), min_size=1, max_size=5),
                     st.sampled_from(["", "rc1", ".dev2", "a1.post2", "+local.1"]))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(versions, versions)
def test_equal_versions_have_one_spelling(a, b):
    assert (Version(a) == Version(b)) == (canonical_version(a) == canonical_version(b))
    assert Version(canonical_version(a)) == Version(a)


@pytest.fixture
def registered(tmp_path):
    registry = ModelRegistry(tmp_path / "root")
    registry.register("net", model=resnet18(num_classes=3, width_per_group=64), files={"notes.md": b"# Notes\n"}, metrics={"accuracy": 0.5})
    return registry, registry.get("net")


def test_every_file_tampered(registered):
    registry, version = registered
    files = sorted(version.path.iterdir())
    assert [f.name for f in files] == ["config.yaml", "manifest.json", "model.safetensors", "notes.md"]
    for file in files:
        whole = file.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
            with pytest.raises(TamperedError, match=file.name): registry.load("net")
        for changed in (whole[:-1], whole[:len(whole) // 2], b"", whole + b"\0"):
            file.write_bytes(changed)
            with pytest.raises(TamperedError, match=file.name): registry.load("net")
        file.write_bytes(whole)
    assert registry.verify() == {}


def test_swapped_files(registered):
    registry, first = registered
    second = registry.register("net", model=resnet18(num_classes=3))
    for file in ("model.safetensors", "manifest.json"):
        paths = [v.path / file for v in (first, second)]
        a, b = [p.read_bytes() for p in paths]
        paths[0].write_bytes(b); paths[1].write_bytes(a)
        for version in ("1.0.0", "1.1.0"):
            with pytest.raises(TamperedError, match=file): registry.load("net", version)
        paths[0].write_bytes(a); paths[1].write_bytes(b)


def test_links_lead_nowhere(registered, tmp_path):
    registry, version = registered
    (version.path.parent / "2.0.0").symlink_to(version.path)
    (registry.root / "alias").symlink_to(version.path.parent)
    assert registry.versions("net") == ["1.0.0"] and registry.list() == ["net"]
    with pytest.raises(RegistryError): registry.load("alias")
    with pytest.raises(RegistryError): registry.register("alias", model=nn.Linear(1, 1))
    with pytest.raises(VersionNotFoundError): registry.load("net", "2.0.0")
    with pytest.raises(VersionExistsError): registry.register("net", "2.0.0", model=nn.Linear(1, 1))
    outside = tmp_path / "outside"
    outside.write_bytes((version.path / "notes.md").read_bytes())
    (version.path / "notes.md").unlink()
    (version.path / "notes.md").symlink_to(outside)
    with pytest.raises(TamperedError, match="notes.md"): registry.load("net")


@pytest.mark.parametrize("said", [
    {"files": {"../../outside": {"size": 1, "sha256": ""}}}, {"files": {"/etc/passwd": {"size": 1, "sha256": ""}}}, {"files": {}},
    {"module": "os", "architecture": "system"}, {"config": {"name": "os.system", "arguments": {"command": "true"}}},
    {"config": None}, {"schema_version": 9}, {"preprocessing": [{"name": "x"}], "name": "other"}], ids=lambda s: next(iter(s)))
def test_sealed_but_hostile_manifests(registered, said):
    registry, version = registered
    fields = {**version.manifest.model_dump(mode="json"), **said}
    (version.path / "manifest.json").write_text(manifest_text(sealed(Manifest(**fields))))
    with pytest.raises(RegistryError): registry.load("net")


def test_lying_safetensors(registered):
    "A header that claims more than the file has, in a version sealed by its forger."
    registry, version = registered
    for weights in (b"\xff" * 8 + b"{}", (2**40).to_bytes(8, "little") + b"{}", b"", b"\0" * 100):
        (version.path / "model.safetensors").write_bytes(weights)
        files = {**version.manifest.files, "model.safetensors": file_entry(version.path / "model.safetensors")}
        (version.path / "manifest.json").write_text(manifest_text(sealed(version.manifest.model_copy(update={"files": files}))))
        with pytest.raises(RegistryError, match="model.safetensors is damaged"): registry.load("net")


def test_manifest_nested_too_deep():
    with pytest.raises(TamperedError): parse_manifest(b'{"a": ' * 50_000, "m 1.0.0")


class Configured(nn.Module):
    "What the seed shows: a class of one's own, made with one configuration."
    def __init__(self, config):
        super().__init__()
        self.fc = nn.Linear(config.features, config.classes)
    def forward(self, x): return self.fc(x)


class Named(BaseArchitecture):
    def __init__(self, config):
        super().__init__(head=None)
        self.head = nn.Linear(config.features, config.classes)


def test_architectures_of_ones_own(tmp_path, monkeypatch):
    "By class and by instance, before and after the class is in the catalogue, from an object and from a mapping."
    monkeypatch.setattr(ARCHITECTURES, "entries", {**ARCHITECTURES.entries})
    registry, config = ModelRegistry(tmp_path), SimpleNamespace(features=4, classes=2)
    for name in ("Named", "named"):
        if name == "named": register_architecture("named")(Named)
        for model, cfg in ((Named, config), (Named, vars(config)), (Named(config), config), (Named(Fields(vars(config))), None)):
            version = registry.register("m", model=model, config=cfg)
            assert (version.architecture, version.module) == (name, None if name == "named" else __name__)
            assert registry.load("m").head.weight.shape == (2, 4)
    with pytest.raises(RegistryError, match="cannot be written"): registry.register("m", model=Named(config))


def test_half_precision_and_buffers_come_back(tmp_path):
    registry, model = ModelRegistry(tmp_path), Configured(type("C", (), {"features": 4, "classes": 2})).to(torch.bfloat16)
    registry.register("half", model=model, config={"features": 4, "classes": 2})
    again = registry.load("half")
    assert again.fc.weight.dtype == torch.bfloat16 and again.fc.weight.equal(model.fc.weight) and not again.training


def test_loading_moves_no_random_numbers(registered):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    registered[0].load("net")
    assert torch.get_rng_state().equal(before)


def test_failed_registrations_leave_nothing(tmp_path):
    registry = ModelRegistry(tmp_path / "root")
    for wrong in ({"model": None}, {"model": int}, {"model": nn.Linear(1, 1, device="meta")},
                  {"model": Configured, "config": {"features": object()}},
                  {"model": nn.Linear(1, 1), "metrics": {"a": object()}}, {"model": nn.Linear(1, 1), "files": {"manifest.json": b""}},
                  {"model": nn.Linear(1, 1), "preprocessing": object()}):
        with pytest.raises(RegistryError): registry.register("m", **wrong)
    with pytest.raises(MissingPathError): registry.register("m", model=nn.Linear(1, 1), files={"a.txt": tmp_path / "none"})
    assert registry.list() == [] and not [p for p in tmp_path.rglob("*") if p.is_file()]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RegistryError, match="could not write"): ModelRegistry(tmp_path / "file").register("m", model=nn.Linear(1, 1))


def test_root_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAME_VISION_REGISTRY", str(tmp_path / "here"))
    ModelRegistry().register("m", model=nn.Linear(1, 1))
    assert (tmp_path / "here" / "m" / "1.0.0" / "manifest.json").is_file()


def test_nothing_in_a_table_is_markup(tmp_path):
    registry = ModelRegistry(tmp_path)
    version = registry.register("m", model=nn.Linear(1, 1), tags=["<script>alert(1)</script>"], metrics={"<b>": 1.0})
    assert "<script>" not in version._repr_html_() + registry._repr_html_() and "<b>" not in registry._repr_html_()
    (version.path / "manifest.json").write_bytes(b"{")
    assert "changed" in registry._repr_html_() and "m (1)" in repr(registry)


def test_safetensors_reads_our_weights(registered):
    registry, version = registered
    state = load_file(version.path / "model.safetensors")
    assert set(state) == set(registry.load("net").state_dict())
