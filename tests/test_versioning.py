"What the notebooks of `versioning` cannot show: killed and crowded processes, full disks, damaged and hostile files."
import hashlib
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import faults
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from safetensors.torch import load_file
from torch import nn

from flame_vision.architectures.base import ARCHITECTURES, BaseArchitecture, register_architecture
from flame_vision.core.errors import (
    MissingPathError,
    RegistryError,
    TamperedError,
    VersionExistsError,
    VersionNotFoundError,
)
from flame_vision.models import resnet18
from flame_vision.versioning import ModelRegistry
from flame_vision.versioning.manifest import Manifest, file_entry, manifest_text, parse_manifest, sealed
from flame_vision.versioning.names import canonical_version, check_name
from flame_vision.versioning.rebuild import Fields

pytestmark = pytest.mark.filterwarnings("ignore:.*no configuration builds")


in_process = partial(faults.in_process, "versioning_faults.py")


# Processes

@pytest.mark.parametrize("times", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_while_registering(tmp_path, times):
    found = in_process("kill_registrations", tmp_path, times)
    assert found["versions"] > times / 2 and found["moves"] > 0 and found["reads"] > times
    assert found["leftovers"], "no process was killed in the middle of a write: the test tests nothing"
    assert found["strange"] == [], "gc left something behind"


@pytest.mark.parametrize("writers, each", [(8, 6), pytest.param(8, 50, marks=pytest.mark.slow)])
def test_crowded(tmp_path, writers, each):
    found = in_process("crowd", tmp_path, writers, each)
    assert found["made"] == found["there"] and len(set(found["made"])) == writers * each == found["moves"]
    assert found["reads"] > 0 and found["leftovers"] == []


def test_full_disk(tmp_path):
    found = in_process("full_disk", tmp_path)
    assert "File too large" in found["error"] and "untouched" in found["error"]
    assert (found["versions"], found["wrong"]) == (["1.0.0"], {})
    assert found["files"] == ["m/1.0.0/README.md", "m/1.0.0/manifest.json", "m/1.0.0/model.safetensors"]


@pytest.fixture
def mounted(tmp_path):
    "Mount a small file system, where that is permitted."
    places = []
    def mount(*options):
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        asked = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", place]
        if subprocess.run(asked, capture_output=True).returncode: pytest.skip("mounting is not permitted here")
        places.append(place)
        return place
    yield mount
    for place in places: subprocess.run(["umount", "-l", place], check=True)


def test_small_disk(mounted):
    place = mounted("size=1m")
    found = in_process("small_disk", place / "registry")
    assert "No space left" in found["error"] and "untouched" in found["error"]
    assert (found["versions"], found["wrong"], len(found["files"])) == (["1.0.0"], {}, 3)


def test_read_only_disk(mounted):
    place = mounted("size=1m")
    ModelRegistry(place).register("m", model=nn.Linear(4, 4))
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    registry = ModelRegistry(place)
    for call in (lambda: registry.register("m", model=nn.Linear(4, 4)), lambda: registry.alias("m", "champion"), lambda: registry.check_ready("m"),
                 lambda: registry.delete("m@1.0.0")):
        with pytest.raises(RegistryError, match="Read-only file system"): call()
    assert registry.verify() == {} and registry.versions("m") == ["1.0.0"] and registry.gc(older_than=-60) == []
    registry.load("m", model=nn.Linear(4, 4))


def test_new_process_gives_equal_outputs(tmp_path):
    model, x = resnet18(num_classes=3).eval(), torch.randn(2, 3, 32, 32)
    ModelRegistry(tmp_path / "registry").register("net", model=model)
    torch.save(x, tmp_path / "x.pt")
    assert torch.tensor(in_process("load_again", tmp_path / "registry", "net", tmp_path / "x.pt")).equal(model(x))


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
    assert [f.name for f in files] == ["README.md", "config.yaml", "manifest.json", "model.safetensors", "notes.md"]
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


def forged(version, **said):
    "A version whose manifest was changed and sealed anew by somebody who knows how."
    (version.path / "manifest.json").write_text(manifest_text(sealed(Manifest(**{**version.manifest.model_dump(mode="json"), **said}))))


def test_a_named_class_is_never_imported(registered, tmp_path, monkeypatch):
    (tmp_path / "attacker.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Net: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry, version = registered
    for module in ("attacker", "antigravity", "os", "builtins"):
        forged(version, module=module, architecture="Net", config={"name": "Net", "arguments": {}})
        with pytest.raises(RegistryError, match="which this process does not know"): registry.load("net")
    assert "attacker" not in sys.modules and "antigravity" not in sys.modules and not (tmp_path / "mark").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json", "README.md"])
def test_devices_pipes_and_folders_in_place_of_files(registered, file):
    registry, version = registered
    path = version.path / file
    for make in (lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"), lambda: path.mkdir(), lambda: path.symlink_to("/etc/hostname")):
        path.rename(path.with_name(".kept"))
        make()
        with pytest.raises(TamperedError, match=file): registry.load("net")
        assert list(registry.verify()) == ["net@1.0.0"]
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        path.with_name(".kept").rename(path)
    registry.load("net")


def test_huge_files_take_no_memory(registered, tmp_path):
    "A file of a terabyte, without any bytes, stands in for each of a version's; and a manifest says that the weights have a terabyte."
    registry, version = registered
    roots = [str(tmp_path / f"copy{i}") for i in range(5)]
    for root in roots: shutil.copytree(registry.root, root)
    files = ["model.safetensors", "README.md", "manifest.json", "config.yaml"]
    for root, file in zip(roots, files): os.truncate(Path(root, "net", "1.0.0", file), 1 << 40)
    table = json.dumps({"a": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}).encode()
    liar = ModelRegistry(roots[-1]).get("net")
    (liar.path / "model.safetensors").write_bytes(len(table).to_bytes(8, "little") + table)
    forged(liar, files={**version.manifest.model_dump()["files"], "model.safetensors": {"size": (1 << 40) + 8 + len(table), "sha256": "0" * 64}})
    found = in_process("memory", json.dumps(roots), "net")
    assert all(e.startswith("TamperedError") and file in e for e, file in zip(found["errors"], [*files, "model.safetensors"])), found
    assert found["bytes"] < 200e6


@pytest.mark.parametrize("alias", [*HOSTILE, "latest", "auto", "1.0", "v2", "2.0rc1"], ids=lambda n: ascii(n[:12]))
def test_hostile_aliases(registered, alias):
    registry, _ = registered
    before = registry.store.files()
    with pytest.raises(RegistryError) as caught: registry.alias("net", alias, "1.0.0")
    assert len(str(caught.value)) < 300 and registry.store.files() == before


def test_hostile_histories(registered, tmp_path):
    registry, _ = registered
    for version in ("1.0.0", None, "1.0.0"): registry.alias("net", "champion", version)
    folder = registry.root / "net" / "aliases" / "champion"
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for at in range(len(whole)):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
            with pytest.raises(TamperedError, match=file.name): registry.history("champion")
        file.write_bytes(b"[" * 100_000)
        with pytest.raises(TamperedError, match=file.name): registry.get("net@champion")
        assert "net@champion" in registry.verify()
        file.write_bytes(whole)
    (tmp_path / "elsewhere").mkdir()
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    assert registry.aliases("net") == {}
    with pytest.raises(RegistryError): registry.alias("net", "champion", "1.0.0")
    assert len(list((tmp_path / "moved").iterdir())) == 3


def test_tombstones_are_sealed(registered):
    registry, version = registered
    registry.delete("net", "1.0.0", why="wrong data")
    stone = version.path / "tombstone.json"
    whole = stone.read_bytes()
    for changed in (whole.replace(b"wrong", b"right"), b"", whole[:-2]):
        stone.write_bytes(changed)
        assert list(registry.verify()) == ["net@1.0.0"] and registry.list() == []
        with pytest.raises(RegistryError): registry.load("net", "1.0.0")
        with pytest.raises(VersionExistsError): registry.register("net", "1.0.0", model=nn.Linear(1, 1))
    stone.write_bytes(whole)
    assert registry.verify() == {}
    with pytest.raises(VersionNotFoundError, match="wrong data"): registry.load("net", "1.0.0")


def test_versions_of_the_first_schema_are_read(tmp_path):
    "What version 0.1.0 wrote, byte for byte: no card, no id, other fields."
    ModelRegistry(tmp_path / "new").register("net", model=nn.Linear(2, 2), metrics={"accuracy": 0.5})
    new = ModelRegistry(tmp_path / "new").get("net")
    later = ("id", "author", "description", "license", "architecture_digest", "macs")
    fields = {k: v for k, v in new.manifest.model_dump(mode="json").items() if k not in later}
    fields |= {"schema_version": 1, "files": {"model.safetensors": fields["files"]["model.safetensors"]}, "digest": ""}
    text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    text = text.replace('"digest": ""', f'"digest": "{hashlib.sha256(text.encode()).hexdigest()}"')
    place = tmp_path / "old" / "net" / "1.0.0"
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(text)
    (place / "model.safetensors").write_bytes(new.read("model.safetensors"))
    old, model = ModelRegistry(tmp_path / "old"), nn.Linear(2, 2)
    assert old.verify() == {} and old.get("net").metrics == {"accuracy": 0.5} and old.load("net", model=model).version.schema_version == 1
    path = old.export("net", path=tmp_path / "net.tar")
    assert ModelRegistry(tmp_path / "third").import_(path).manifest == old.get("net").manifest
    assert (tmp_path / "third" / "net" / "1.0.0" / "manifest.json").read_text() == text
    old.register("net", model=model, parents=[old.get("net")])
    assert old.versions("net") == ["1.0.0", "1.1.0"] and old.verify() == {}
