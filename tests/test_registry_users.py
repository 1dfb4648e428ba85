"What users do with a registry, rightly and wrongly: answers are right or refused in one line, never wrong in silence."
import copy
import math
import os
import pickle
import warnings

import pytest
import torch
from torch import nn

from flame_vision.core.errors import ConfigError, FlameVisionError, RegistryError, StoreError, VersionNotFoundError
from flame_vision.models import create_model
from flame_vision.versioning import ModelRegistry
from flame_vision.versioning.remote_stores import RemoteStore

pytestmark = pytest.mark.filterwarnings("ignore:.*no configuration builds")
CONFIG = {"in_features": 2, "out_features": 2}


def linear(): return nn.Linear(2, 2)


@pytest.fixture
def registry(tmp_path): return ModelRegistry(tmp_path / "models")


@pytest.fixture
def one(registry):
    registry.register("m", model=linear(), config=CONFIG, metrics={"acc": 0.9, "loss": float("nan")}, tags={"stage": "dev"})
    return registry


def test_no_password_goes_into_a_pickle(one):
    address = "memory://secrets/models"
    one.push("m@1.0.0", to=ModelRegistry(address))
    version = ModelRegistry(address).get("m")
    version.store.options.update(secret="SUPERSECRET")
    model = linear()
    model.version = version
    for thing in (model, version, version.store): assert b"SUPERSECRET" not in pickle.dumps(thing)
    again = pickle.loads(pickle.dumps(model)).version
    assert again == version and again.read("README.md") == version.read("README.md") and hash(again) == hash(version)
    assert isinstance(again.store, RemoteStore) and copy.deepcopy(model).version.store.options == {"secret": "SUPERSECRET"}


class Busy(nn.Module):
    "Has a parameter, a property and a class attribute of its own where the registry would set something."
    preprocessing = "centre crop"
    def __init__(self):
        super().__init__()
        self.version, self.scale = nn.Parameter(torch.ones(2)), 2
    @property
    def class_names(self): return ["a", "b"]
    def forward(self, x): return x * self.version * (2 if self.preprocessing == "centre crop" else 0)


def test_attributes_of_the_class_stay(registry):
    registry.register("busy", model=Busy, config={})
    model = registry.load("busy")
    assert model(torch.ones(2)).tolist() == [2.0, 2.0] and model.class_names == ["a", "b"]


def test_parents_are_versions(one, tmp_path):
    one.alias("m", "champion")
    elsewhere = ModelRegistry(tmp_path / "other").register("far", model=linear(), config=CONFIG)
    good = [("m@1.0", ["m@1.0.0"]), ("m", ["m@1.0.0"]), (["m@champion", elsewhere], ["m@1.0.0", "far@1.0.0"]), (one.get("m"), ["m@1.0.0"])]
    for given, meant in good:
        assert one.register("child", model=linear(), config=CONFIG, parents=given).parents == meant
    assert "m@1.0.0" in one.lineage("child").ancestors
    for wrong in ("zz@1", ["m@7"], [1], [one], 5):
        with pytest.raises((RegistryError, TypeError)): one.register("child", model=linear(), config=CONFIG, parents=wrong)
    one.alias("m", "champion", None)
    one.delete("m", "1.0.0")
    assert one.register("child", model=linear(), config=CONFIG, parents="m@1.0.0").parents == ["m@1.0.0"]


class Outer:
    class Net(nn.Module):
        def __init__(self, n): super().__init__(); self.fc = nn.Linear(n, n)
        def forward(self, x): return self.fc(x)


class Other:
    class Net(Outer.Net):
        def forward(self, x): return -self.fc(x)


def made(sign):
    class Net(Outer.Net):
        def forward(self, x): return sign * self.fc(x)
    return Net


def test_classes_of_one_name_are_told_apart(registry):
    x, models = torch.ones(1, 2), {}
    for name, cls in (("a", Outer.Net), ("b", Other.Net)):
        models[name] = cls(2)
        registry.register(name, model=models[name], config={"n": 2})
    for name, model in models.items(): assert torch.equal(registry.load(name)(x), model(x))
    for name, cls in (("c", made(1)), ("d", made(-1))): registry.register(name, model=cls(2), config={"n": 2})
    with pytest.raises(RegistryError, match="which this process does not know"): registry.load("c")


def test_class_names_fit_the_outputs(registry):
    model = create_model("resnet18", num_classes=3)
    for wrong in (["a", "b"], "abc", {"a", "b", "c"}, {1: "a", 2: "b", 3: "c"}):
        with pytest.raises(RegistryError): registry.register("net", model=model, class_names=wrong)
    assert registry.register("net", model=model, class_names={0: "cat", 1: "dog", 2: "owl"}).class_names == ["cat", "dog", "owl"]
    with pytest.raises(RegistryError, match="2 class names for a model of 3 classes"):
        registry.register("own", model=nn.Linear(2, 3), class_names=["a", "b"], input_shape=[1, 2])
    registry.register("binary", model=nn.Linear(2, 1), class_names=["no", "yes"], input_shape=[1, 2])


def test_what_loads_as_something_else_is_told(registry):
    model = create_model("resnet18", num_classes=3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d): module.eps = 0.5
    with pytest.warns(UserWarning, match="loads as what the configuration builds"): registry.register("net", model=model)
    hooked = linear()
    hooked.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="hooks are not registered"): registry.register("hook", model=hooked, config=CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.register("good", model=create_model("resnet18", num_classes=3))
        registry.register("good", model=linear(), config=CONFIG)


class Keywords(nn.Module):
    def __init__(self, a, **more): super().__init__(); self.fc, self.scale = nn.Linear(a, a), more.get("scale", 1)
    def forward(self, x): return self.fc(x) * self.scale


def test_no_argument_is_dropped_in_silence(registry):
    config = {"a": 2, "scale": 10}
    model = Keywords(**config)
    registry.register("kw", model=model, config=config)
    assert torch.equal(registry.load("kw")(torch.ones(1, 2)), model(torch.ones(1, 2)))
    with pytest.warns(UserWarning, match="has no argument 'lr'"): registry.register("lin", model=linear(), config={**CONFIG, "lr": 0.1})
    net = create_model("resnet18", num_classes=3)
    with pytest.warns(UserWarning, match="num_classes"): registry.register("net", model=net, config={"num_classes": 99})


@pytest.mark.filterwarnings("default:.*no configuration builds")
def test_a_model_without_configuration_says_so(registry):
    with pytest.warns(UserWarning, match="no configuration builds this Linear"): version = registry.register("lin", model=linear())
    assert "without a configuration" in str(repr(version))


def test_places_that_are_no_registry(tmp_path):
    for call in (lambda r: r.verify(), lambda r: r.gc()):
        with pytest.raises(StoreError, match="there is no registry at"): call(ModelRegistry(tmp_path / "typo"))
        with pytest.raises(StoreError, match="there is no registry at"): call(ModelRegistry("/etc/passwd"))
    for wrong in ("", " ", "a\0b"):
        with pytest.raises(ConfigError): ModelRegistry(wrong)


@pytest.mark.skipif(not hasattr(os, "fork") or os.getuid() != 0, reason="needs root to become somebody else")
def test_folders_that_one_may_not_read(one, tmp_path):
    "As another user: what is closed is named, what is open is still there."
    one.register("closed", model=linear(), config=CONFIG)
    for path in (tmp_path, *tmp_path.parents): os.chmod(path, path.stat().st_mode | 0o055)
    os.chmod(one.root / "closed", 0o700)
    os.chmod(one.root / "m" / "1.0.0" / "README.md", 0o600)
    if not (child := os.fork()):
        code = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            wrong = one.verify()
            assert set(wrong) == {"closed", "m@1.0.0"} and all("ermission denied" in said and "restore" not in said for said in wrong.values())
            for call in (one.list, one.search, lambda: one.get("closed"), lambda: one.versions("closed")):
                with pytest.raises(RegistryError, match="closed|ermission"): call()
            assert one.versions("m") == ["1.0.0"]
            code = 0
        except BaseException as e: os.write(2, f"{type(e).__name__}: {e}\n".encode())
        finally: os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("said", [
    {"sort": "acuracy"}, {"metrics": "acuracy > 0.5"}, {"metrics": "acc=>0.9"}, {"metrics": "acc>0.5 and loss>2"}, {"limit": -1},
    {"tags": [None]}], ids=str)
def test_slips_in_a_search(one, said):
    with pytest.raises(RegistryError): one.search(**said)


def test_searches(one):
    one.register("m", model=linear(), config=CONFIG, metrics={"acc": 0.5, "loss": 0.1}, tags=["stage=prod", "rain"])
    assert [v.version for v in one.search(metrics="acc>0.1,loss<1")] == ["1.1.0"]
    assert [v.version for v in one.search(tags={"stage": "dev"})] == ["1.0.0"]
    assert [v.version for v in one.search(tags="rain")] == ["1.1.0"]
    assert [v.version for v in one.search(sort="-acc")] == ["1.1.0", "1.0.0"]
    assert math.isnan(one.get("m", "1.0").metrics["loss"])


@pytest.mark.parametrize("said", [
    {"version": 1.10}, {"version": ""}, {"tags": 5}, {"tags": [""]}, {"files": ["x"]}, {"files": {"a": b"", "A": b""}}, {"input_shape": 5},
    {"input_shape": "1,2"}, {"input_shape": ["N", 2]}, {"input_shape": [1.5, 2]}, {"input_shape": [1, 3]},
    {"metrics": {"a": 10**400}}, {"metrics": [1]},
    {"preprocessing": {"size": 3}}, {"class_names": len}, {"config": {"in_features": 2}}, {"model": nn.Linear, "config": {}},
    {"model": nn.Linear, "config": {"in_features": "x", "out_features": 2}}], ids=str)
def test_wrong_registrations(registry, said):
    with pytest.raises((FlameVisionError, TypeError)) as caught: registry.register("m", **{"model": linear(), "config": CONFIG, **said})
    assert isinstance(caught.value, FlameVisionError) or "TypeCheckError" in type(caught.value).__name__
    assert registry.list() == []


def test_wrong_questions(one):
    for call in (lambda: one.load("m", device="cuda:99"), lambda: one.load("m", device="gpu"), lambda: one.load("m", device="meta"),
                 lambda: one.load("m", model=nn.Linear(2, 2, device="meta")), lambda: one.load("m", model=int), lambda: one.get("m", ""),
                 lambda: one.delete("m"), lambda: one.delete("m", ">=0"), lambda: one.delete("m", "latest"), lambda: one.push("m", to=""),
                 lambda: one.push("m"), lambda: one.pull("nowhere"), lambda: one.aliases("zz"), lambda: one.alias("m", "champion", None),
                 lambda: one.history("champion"), lambda: one.diff("m@1.0.0", "")):
        with pytest.raises(RegistryError) as caught: call()
        assert "\n" not in str(caught.value) and str(caught.value)
    assert one.versions("m") == ["1.0.0"] and one.verify() == {}


def test_small_kindnesses(one):
    move = one.alias("m@1.0", "champion", why="\ud800 first")
    assert move.to_version == "1.0.0" and one.alias("m", "champion", "latest", expected="1.0").from_version == "1.0.0"
    one.alias("m", "champion", None)
    with pytest.raises(RegistryError, match="means nothing already"): one.alias("m", "champion", None)
    wrapped = nn.DataParallel(linear())
    one.load("m", model=wrapped)
    assert torch.equal(wrapped.module.weight, one.load("m").weight)
    with pytest.raises(VersionNotFoundError): one.get("m", "7.0")
