"Trainings of Lightning that are killed and go on, in our format; and its own files, honest and hostile, read without running them."
import builtins
import collections
import functools
import logging
import operator
import os
import subprocess
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from flame_vision.core.errors import CheckpointError, ConfigError, MissingPathError
from flame_vision.training import SafeCheckpoint, SafeCheckpointIO, import_lightning_checkpoint, read_lightning_checkpoint
from flame_vision.training.callbacks import BestCheckpoint
from flame_vision.training.lightning_files import lightning_dict, lightning_sections, plain_part
from flame_vision.versioning import load_checkpoint, read_checkpoint, save_checkpoint
from flame_vision.versioning.checkpoint import write_checkpoint

QUIET = dict(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    for name in ("lightning.pytorch", "lightning.fabric"): monkeypatch.setattr(logging.getLogger(name), "level", logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(lightning|torchmetrics)\b")
        yield


def network(drop=0.5): return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(drop), nn.Linear(16, 3))


class Module(LightningModule):
    def __init__(self, schedule="step", drop=0.5, plan=None):
        super().__init__()
        self.save_hyperparameters()
        self.model, self.seen = network(drop), MeanMetric()
        self.seen.persistent(True)

    def training_step(self, batch, index):
        loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
        self.seen.update(loss.detach())
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, index): self.log("val/loss", nn.functional.cross_entropy(self.model(batch[0]), batch[1]))
    def test_step(self, batch, index): self.log("test/loss", nn.functional.cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer, lr, kind = torch.optim.AdamW(self.parameters(), 0.05), torch.optim.lr_scheduler, self.hparams.schedule
        if kind == "plateau":
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": lr.ReduceLROnPlateau(optimizer, patience=0), "monitor": "val/loss"}}
        scheduler = lr.StepLR(optimizer, 1, 0.7) if kind == "epoch" else lr.LambdaLR(optimizer, lambda step: 0.95**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": kind}}


class Kill(Callback):
    "What a killed process leaves: nothing more after this step."
    def __init__(self, step): self.step = step
    def on_train_batch_start(self, trainer, pl_module, batch, index):
        if trainer.global_step == self.step: raise ConnectionAbortedError


DATA = [TensorDataset(torch.randn(48, 4, generator=g), torch.randint(3, (48,), generator=g)) for g in [torch.Generator().manual_seed(0)]][0]


def train(*callbacks, kill=None, seed=0, validate=True, make=Module, workers=0, shuffle=True, ckpt_path=None, weights_only=None, **options):
    torch.manual_seed(seed)
    module = make()
    trainer = Trainer(callbacks=[*callbacks, *([Kill(kill)] if kill else [])], **{**QUIET, "max_epochs": 4, **options})
    loaders = DataLoader(DATA, 8, shuffle=shuffle, num_workers=workers), DataLoader(DATA, 16) if validate else None
    try: trainer.fit(module, *loaders, ckpt_path=ckpt_path, weights_only=weights_only)
    except ConnectionAbortedError: pass
    return module, trainer


def same(a, b): return list(a) == list(b) and all(x.equal(y) for x, y in zip(a.values(), b.values()))


def goes_on(folder, kill, schedule="step", validate=True, keep=SafeCheckpoint, more=list, **options):
    "Whether a training that was killed and goes on in another trainer ends as one that was not."
    def run(name, **how):
        callbacks = keep(folder / name, save_last=True, save_top_k=-1, **options), *more()
        return train(*callbacks, make=lambda: Module(schedule), validate=validate, **how)
    (whole, first), _ = run("whole"), run("killed", kill=kill)
    last = folder / "killed" / "last.pt"
    if not last.exists(): last = max((folder / "killed").glob("*.pt"), key=os.path.getmtime)
    assert 0 < read_checkpoint(last)["step"] <= kill
    resumed, second = run("resumed", seed=1, ckpt_path=last)
    assert first.global_step == second.global_step == 24
    rates = [t.optimizers[0].param_groups[0]["lr"] for t in (first, second)]
    moments = [list(t.optimizers[0].state_dict()["state"].values()) for t in (first, second)]
    return same(whole.state_dict(), resumed.state_dict()) and rates[0] == rates[1] and all(map(same, *moments))


EVERY = [{}, {"save_on_train_epoch_end": False}, {"every_n_train_steps": 4}, {"every_n_train_steps": 6}, {"every_n_train_steps": 1}]


@pytest.mark.parametrize("kill, schedule, validate, options", [
    (15, "step", True, {}), (9, "epoch", True, {"save_on_train_epoch_end": False}), (15, "plateau", True, {"every_n_train_steps": 4}),
    (9, "step", False, {"every_n_train_steps": 4}), (13, "plateau", True, {"save_on_train_epoch_end": False}),
    (17, "epoch", True, {"every_n_train_steps": 1}), (4, "step", True, {"every_n_train_steps": 1})])
def test_a_killed_training_goes_on_in_the_same_bits(tmp_path, kill, schedule, validate, options):
    assert goes_on(tmp_path, kill, schedule, validate, **options)


@pytest.mark.slow
@pytest.mark.parametrize("options", EVERY, ids=str)
@pytest.mark.parametrize("schedule", ["step", "epoch", "plateau"])
def test_whenever_it_was_killed(tmp_path, schedule, options):
    for kill in range(7, 24, 2): assert goes_on(tmp_path / str(kill), kill, schedule, **options), kill


class Blind(SafeCheckpoint):
    def on_load_checkpoint(self, trainer, pl_module, checkpoint): checkpoint.clear()


def test_it_takes_what_we_add(tmp_path):
    "Without the random states it is another run, as with Lightning alone; else these tests test nothing."
    assert not goes_on(tmp_path, 15, keep=Blind, every_n_train_steps=4)


def test_workers_draw_the_same_again(tmp_path):
    runs = {}
    for name, how in {"whole": {}, "killed": {"kill": 9}, "resumed": {"seed": 1, "ckpt_path": tmp_path / "killed" / "last.pt"}}.items():
        runs[name], _ = train(SafeCheckpoint(tmp_path / name, save_last=True, every_n_train_steps=4), workers=1, max_epochs=2, **how)
    assert same(runs["whole"].state_dict(), runs["resumed"].state_dict())


class Position:
    "A loader that knows where it is."
    def __init__(self): self.order, self.at = [], 0
    def __len__(self): return 6
    def __iter__(self):
        if self.at in (0, 6): self.order, self.at = torch.randperm(48).view(6, 8).tolist(), 0
        while self.at < 6:
            self.at += 1
            yield [t[self.order[self.at - 1]] for t in DATA.tensors]
    def state_dict(self): return {"order": self.order, "at": self.at}
    def load_state_dict(self, state): self.order, self.at = state["order"], state["at"]


@pytest.mark.parametrize("kill", [9, 15])
def test_loaders_that_know_their_position(tmp_path, kill):
    def run(name, seed=0, kill=None, **how):
        torch.manual_seed(seed)
        module, keep = Module(), SafeCheckpoint(tmp_path / name, save_last=True, every_n_train_steps=4)
        try: Trainer(callbacks=[keep, Kill(kill)], max_epochs=4, **QUIET).fit(module, Position(), **how)
        except ConnectionAbortedError: pass
        return module.state_dict()
    whole, _ = run("whole"), run("killed", kill=kill)
    assert same(run("resumed", seed=1, ckpt_path=tmp_path / "killed" / "last.pt"), whole)


def test_averages_go_on(tmp_path):
    assert goes_on(tmp_path, 15, more=lambda: [EMAWeightAveraging(decay=0.9)], every_n_train_steps=4)
    content = read_checkpoint(tmp_path / "killed" / "last.pt")
    assert "current_model_state" in content["trainer"]["lightning"]


def test_scalers_go_on(tmp_path):
    def run(name, **how):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
        done = train(SafeCheckpoint(tmp_path / name, save_last=True), plugins=[MixedPrecision("16-mixed", "cpu", scaler)], max_epochs=2, **how)
        return *done, scaler
    (whole, _, scale), _ = run("whole"), run("killed", kill=9)
    last = tmp_path / "killed" / "last.pt"
    resumed, _, again = run("resumed", seed=1, ckpt_path=last)
    assert same(whole.state_dict(), resumed.state_dict()) and scale.state_dict() == again.state_dict()
    fresh = torch.amp.GradScaler("cpu")
    load_checkpoint(last, network(), scaler=fresh)
    assert fresh.get_scale() == 2.0**15


def test_lightnings_own_resume_ends_the_same(tmp_path):
    "Where nothing is random, theirs and ours are one training; a file of theirs can be continued as it is, or as a file of ours."
    def run(keep, **how): return train(keep, make=lambda: Module("epoch", drop=0), shuffle=False, **how)[0].state_dict()
    run(ModelCheckpoint(tmp_path / "theirs", save_last=True), kill=15)
    run(SafeCheckpoint(tmp_path / "ours", save_last=True), kill=15)
    wanted = run(ModelCheckpoint(tmp_path / "a"), seed=2, ckpt_path=tmp_path / "theirs" / "last.ckpt", weights_only=False)
    import_lightning_checkpoint(tmp_path / "theirs" / "last.ckpt", tmp_path / "taken.pt")
    for i, path in enumerate((tmp_path / "ours" / "last.pt", tmp_path / "taken.pt", tmp_path / "theirs" / "last.ckpt")):
        assert same(run(SafeCheckpoint(tmp_path / str(i)), seed=3, ckpt_path=path), wanted)


# What it writes

def test_the_network_alone(tmp_path):
    module, trainer = train(SafeCheckpoint(tmp_path, filename="m"), max_epochs=1)
    other, optimizer = network(), torch.optim.AdamW(network().parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.95**step)
    loaded = load_checkpoint(tmp_path / "m.pt", other, optimizer, scheduler=schedule, rng=True)
    assert same(module.model.state_dict(), other.state_dict()) and (loaded.epoch, loaded.step, schedule.last_epoch) == (0, 6, 6)
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    assert content["architecture"] == "Sequential" and set(content["trainer"]["module"]) == {"seen.mean_value", "seen.weight"}
    assert set(content["metrics"]) >= {"loss", "val/loss"} and content["optimizers"][0]["class"] == "AdamW"
    with pytest.raises(CheckpointError, match="the optimizer is SGD"): load_checkpoint(tmp_path / "m.pt", other, torch.optim.SGD(other.parameters()))


def test_options_are_lightnings(tmp_path):
    best = SafeCheckpoint(tmp_path / "top", monitor="val/loss", save_top_k=2, filename="{epoch}", save_last="link")
    timed = SafeCheckpoint(tmp_path / "timed", train_time_interval=timedelta(0), save_top_k=-1)
    light = SafeCheckpoint(tmp_path / "light", save_weights_only=True, every_n_epochs=2, save_top_k=-1)
    _, trainer = train(best, timed, light, EarlyStopping("val/loss", patience=9))
    assert len(best.best_k_models) == 2 and {p.suffix for p in (tmp_path / "top").iterdir()} == {".pt"}
    assert (tmp_path / "top" / "last.pt").is_symlink()
    assert len(list((tmp_path / "timed").iterdir())) == 24 and len(list((tmp_path / "light").iterdir())) == 2
    score = trainer.test(dataloaders=DataLoader(DATA, 16), ckpt_path="best", verbose=False)[0]["test/loss"]
    assert score == pytest.approx(float(best.best_model_score), abs=1e-6)
    other = Trainer(callbacks=[SafeCheckpoint(tmp_path / "new")], **QUIET)
    weights = next((tmp_path / "light").iterdir())
    for path in (best.best_model_path, weights):
        assert other.test(Module(), DataLoader(DATA, 16), ckpt_path=path, verbose=False)[0]["test/loss"] > 0
    with pytest.raises(KeyError, match="contains only the model"): train(SafeCheckpoint(tmp_path / "x"), ckpt_path=weights)


def test_the_plugin_alone(tmp_path):
    plugin = SafeCheckpointIO(prefix="model.3.")
    _, trainer = train(ModelCheckpoint(tmp_path, filename="m"), plugins=[plugin], max_epochs=1)
    content = read_checkpoint(tmp_path / "m.ckpt")
    assert list(content["model"]) == ["weight", "bias"] and "model.0.weight" in content["trainer"]["module"]
    resumed, trainer = train(ModelCheckpoint(tmp_path / "b"), plugins=[plugin], max_epochs=2, ckpt_path=tmp_path / "m.ckpt")
    assert trainer.global_step == 12
    with pytest.raises(CheckpointError, match="local"): plugin.save_checkpoint({"state_dict": {}}, "s3://bucket/m.pt")
    with pytest.raises(MissingPathError): plugin.load_checkpoint(tmp_path / "none.pt")
    save_checkpoint(network(), path=tmp_path / "plain.pt")
    with pytest.raises(CheckpointError, match="use load_checkpoint"): plugin.load_checkpoint(tmp_path / "plain.pt")


def test_states_that_are_no_plain_values(tmp_path):
    class Odd(Callback):
        def state_dict(self): return {"thing": object(), "list": [1, object()], "curve": np.arange(3.0), "best": np.float32(0.5)}
        def on_save_checkpoint(self, trainer, module, checkpoint): checkpoint["own"] = print
    class Names(Module):
        class_names = {"a", "b", "c"}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _, trainer = train(SafeCheckpoint(tmp_path / "a", filename="m", save_last=True), Odd(), make=Names, max_epochs=3)
    assert trainer.global_step == 18
    left = [str(w.message) for w in said if "plain values" in str(w.message)]
    assert len(left) == 4 and all(sum(name in text for text in left) == 1 for name in ("Odd.thing", "Odd.list", "own", "class_names"))
    content = read_checkpoint(tmp_path / "a" / "m.pt")
    state = next(s for name, s in content["trainer"]["lightning"]["callbacks"].items() if name.endswith("Odd"))
    assert state["curve"].equal(torch.arange(3.0).double()) and state["best"] == 0.5 and "thing" not in state and content["class_names"] is None
    _, trainer = train(SafeCheckpoint(tmp_path / "c"), max_epochs=4, ckpt_path=tmp_path / "a" / "m.pt")
    assert trainer.global_step == 24


def test_parts_that_can_be_written():
    me = {"n": np.int64(1), "at": collections.Counter([3, 3])}
    me["me"] = me
    left = []
    part = plain_part({"a": me, "b": [{"x": 1, "y": print}], object(): 1, "grey": np.zeros((2, 0)), "odd": np.array([None])}, "s", left)
    assert part["a"] == {"n": 1, "at": {3: 2}} and type(part["a"]["n"]) is int and type(part["a"]["at"]) is collections.Counter
    assert part["b"] == [{"x": 1}] and part["grey"].shape == (2, 0) and set(part) == {"a", "b", "grey"}
    assert sorted(left) == ["s.a.me (dict)", "s.b.0.y (builtin_function_or_method)", "s.odd (ndarray)", "s: a key (object)"]


def test_weights_are_never_left_out(tmp_path):
    said = {"state_dict": {"model.w": torch.ones(2).to_sparse(), "model._extra_state": object()}, "epoch": 0, "global_step": 0}
    sections = lightning_sections(said)
    assert list(sections["model"]) == ["w"] and sections["trainer"]["left_out"] == ["state_dict.model._extra_state (object)"]
    with pytest.raises(CheckpointError, match="dense"): write_checkpoint(sections, tmp_path / "m.pt")


def test_a_trainer_without_the_callback_is_told(tmp_path):
    train(SafeCheckpoint(tmp_path, filename="m"), max_epochs=1)
    for how in (dict(callbacks=[ModelCheckpoint(tmp_path / "b")]), dict(enable_checkpointing=False)):
        with pytest.raises(Exception, match=r"SafeCheckpoint\(.*SafeCheckpointIO\(") as caught:
            Trainer(**{**QUIET, **how}).fit(Module(), DataLoader(DATA, 8), ckpt_path=tmp_path / "m.pt")
        assert not isinstance(caught.value, KeyError) and "\n" not in str(caught.value)


def test_addresses_are_refused_before_the_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keep = SafeCheckpoint("memory://bucket")
    with pytest.raises(ConfigError, match="dirpath"): train(keep, max_epochs=1)
    with pytest.raises(CheckpointError, match="address"): import_lightning_checkpoint("s3://b/m.ckpt")
    (tmp_path / "m.ckpt").touch()
    def denied(*args, **kwargs): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(builtins, "open", denied)
    with pytest.raises(CheckpointError, match="Permission denied"): read_lightning_checkpoint("m.ckpt")


def test_hyperparameters_that_are_no_plain_values(tmp_path):
    with pytest.warns(UserWarning, match="hyper_parameters.plan"):
        train(SafeCheckpoint(tmp_path / "b", filename="m"), make=lambda: Module(plan=Plan()), max_epochs=1)
    trainer = read_checkpoint(tmp_path / "b" / "m.pt")["trainer"]
    assert trainer["left_out"] == ["hyper_parameters.plan (Plan)"] and trainer["lightning"]["hyper_parameters"] == {"schedule": "step", "drop": 0.5}


def test_compiled_networks_keep_their_names():
    module = Module()
    module.model = torch.compile(module.model)
    said = {"state_dict": module.state_dict(), "epoch": 1, "global_step": 2}
    sections = lightning_sections(said)
    assert list(sections["model"]) == list(network().state_dict()) and sections["metadata"]["1"] == {"version": 2}
    back = lightning_dict(sections, "m")
    assert set(back["state_dict"]) == set(module.state_dict()) and back["state_dict"]._metadata == module.state_dict()._metadata
    assert "optimizer_states" not in back


def test_the_best_goes_on_being_the_best(tmp_path):
    def run(**how): return train(keep := BestCheckpoint(tmp_path / "best.pt", "score"), make=Scored, **how), keep
    _, first = run(max_epochs=2)
    assert first.best == 1.0
    _, second = run(max_epochs=3, ckpt_path=tmp_path / "best.pt")
    assert second.best == 1.0 and os.listdir(tmp_path) == ["best.pt"] and read_checkpoint(tmp_path / "best.pt")["epoch"] == 1


class Scored(Module):
    def on_train_epoch_end(self): self.log("score", [0.5, 1.0, 0.7][self.current_epoch])


def test_other_plugins_are_refused(tmp_path):
    class Own(SafeCheckpointIO.__mro__[1]):
        def save_checkpoint(self, *args, **kwargs): pass
        def load_checkpoint(self, *args, **kwargs): pass
        def remove_checkpoint(self, *args, **kwargs): pass
    with pytest.raises(ConfigError, match="Own"): train(SafeCheckpoint(tmp_path), plugins=[Own()])


# Lightning's own files

class Plan:
    "A class that only its author has."


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    module, _ = train(ModelCheckpoint(folder, filename="m"), EarlyStopping("val/loss"), make=lambda: Module("epoch", plan=Plan()), max_epochs=2)
    return folder / "m.ckpt", module


def test_import(theirs, tmp_path):
    path, module = theirs
    with pytest.raises(Exception, match="weights_only"): torch.load(path, weights_only=True)
    taken = import_lightning_checkpoint(path, tmp_path / "m.pt", class_names=["a", "b", "c"], metrics={"val/loss": 0.5})
    assert taken.left_out == [f"hyper_parameters.plan ({__name__}.Plan)"] and taken.keys == 9 and taken.module == ["seen.mean_value", "seen.weight"]
    other = network()
    optimizer = torch.optim.AdamW(other.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    loaded = load_checkpoint(taken.path, other, optimizer, scheduler=scheduler)
    real = torch.load(path, weights_only=False)
    assert same(other.state_dict(), module.model.state_dict()) and (loaded.epoch, loaded.step) == (real["epoch"], real["global_step"])
    ours = optimizer.state_dict()["state"]
    assert all(same(ours[i], s) for i, s in real["optimizer_states"][0]["state"].items())
    assert scheduler.last_epoch == real["lr_schedulers"][0]["last_epoch"] == 2
    assert loaded.class_names == ["a", "b", "c"] and loaded.metrics == {"val/loss": 0.5}
    content, left = read_lightning_checkpoint(path)
    assert content["callbacks"].keys() == real["callbacks"].keys() and content["loops"] == real["loops"] and len(left) == 1


def test_an_import_in_a_process_that_lacks_the_class(theirs, tmp_path):
    code = (f"from flame_vision.training.lightning_files import import_lightning_checkpoint as take\n"
            f"print(take({str(theirs[0])!r}, {str(tmp_path / 'm.pt')!r}).keys)\n"
            f"import sys; print({__name__!r} in sys.modules, 'lightning' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["9", "False", "False"], done.stderr


class Malice:
    def __init__(self, call, *arguments, state=None): self.call, self.arguments, self.state = call, arguments, state
    def __call__(self): raise AssertionError
    def __reduce__(self): return (self.call, self.arguments) if self.state is None else (self.call, self.arguments, self.state)


ATTACKS = {
    "system": lambda mark: Malice(os.system, f"touch {mark}"), "eval": lambda mark: Malice(builtins.eval, f"open({mark!r}, 'w')"),
    "exec": lambda mark: Malice(builtins.exec, f"open({mark!r}, 'w')"), "open": lambda mark: Malice(open, mark, "w"),
    "chain": lambda mark: Malice(Malice(getattr, Malice(__import__, "os"), "system"), f"touch {mark}"),
    "getter": lambda mark: Malice(operator.attrgetter("system"), Malice(__import__, "os")),
    "partial": lambda mark: Malice(functools.partial(os.system, f"touch {mark}")),
    "nested": lambda mark: Malice(list, [Malice(subprocess.check_call, ["touch", mark])]),
    "load": lambda mark: Malice(torch.load, mark), "hub": lambda mark: Malice(torch.hub.load, mark, "x"),
    "state": lambda mark: Malice(Plan, state={"__class__": Malice(os.system, f"touch {mark}")}),
    "slots": lambda mark: Malice(Plan, state=(None, {"__setstate__": Malice(eval, f"open({mark!r}, 'w')")})),
    "module": lambda mark: nn.Linear(1, 1), "key": lambda mark: {Malice(os.system, f"touch {mark}"): 1}}


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_run(tmp_path, attack):
    mark = str(tmp_path / "mark")
    state, honest = network().state_dict(), {"pytorch-lightning_version": "2.6.6", "epoch": 0, "global_step": 0}
    made = ATTACKS[attack](mark)
    torch.save({**honest, "state_dict": state, "hyper_parameters": {"x": made, "lr": 0.5}, "callbacks": {"C": [made]}}, tmp_path / "a.ckpt")
    try:
        taken = import_lightning_checkpoint(tmp_path / "a.ckpt")
        assert taken.left_out or attack == "key"
        assert read_checkpoint(taken.path)["trainer"]["lightning"]["hyper_parameters"]["lr"] == 0.5
    except CheckpointError: assert attack in ("slots", "key")
    torch.save({**honest, "state_dict": {"0.weight": made}}, tmp_path / "b.ckpt")
    torch.save(made, tmp_path / "c.ckpt")
    torch.save({**honest, "state_dict": state, "x": made}, tmp_path / "d.ckpt", _use_new_zipfile_serialization=False)
    for name in "bcd":
        with pytest.raises(CheckpointError): import_lightning_checkpoint(tmp_path / f"{name}.ckpt")
    assert not os.path.exists(mark)


def test_damaged_files(theirs, tmp_path):
    whole = Path(theirs[0]).read_bytes()
    for name, data in {"cut": whole[:len(whole) // 2], "empty": b"", "text": b"text", "flip": whole.replace(b"state_dict", b"state_dixt", 1)}.items():
        (tmp_path / f"{name}.ckpt").write_bytes(data)
        with pytest.raises(CheckpointError): read_lightning_checkpoint(tmp_path / f"{name}.ckpt")
    with pytest.raises(MissingPathError): read_lightning_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="no section"): import_lightning_checkpoint(theirs[0], tmp_path / "m.pt", classnames=["a"])
    assert not (tmp_path / "m.pt").exists()


@pytest.mark.parametrize("view", [
    (0, (5,), (1,)), (4, (1,), (1,)), (0, (2, 2), (3, 1)), (0, (10**12,), (0,)), (-1, (1,), (1,)), (0, (2,), (1, 1)), (0, (-1,), (1,))], ids=str)
def test_tensors_beyond_their_storage(tmp_path, view):
    offset, size, stride = view
    class Beyond:
        def __reduce__(self): return torch._utils._rebuild_tensor_v2, (torch.zeros(4).storage(), offset, size, stride, False, None)
    torch.save({"pytorch-lightning_version": "2", "epoch": 0, "global_step": 0, "state_dict": {"a": Beyond()}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError): read_lightning_checkpoint(tmp_path / "a.ckpt")
