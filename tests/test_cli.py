"The command line as a user meets it: the main job on a folder of pictures, and one clear line for everything that goes wrong."
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from wandb_record import read_records

from flame_vision.backbones import create_backbone
from flame_vision.benchmarks import check_device
from flame_vision.cli import COMMANDS, command_parser, main, parse, quantity
from flame_vision.core import ConfigError, FlameVisionError
from flame_vision.data import ImageFolderDataModule
from flame_vision.jobs import described_model, pretrained_model
from flame_vision.models import create_model
from flame_vision.versioning import ModelRegistry, load_checkpoint


def draw(path, kind, seed):
    "A small picture of one of two textures, with noise."
    rng = np.random.default_rng(seed)
    stripes = (np.arange(40) // 4 % 2 * 180)[None, :].repeat(32, 0)
    pixels = (stripes if kind == "stripes" else stripes[:, :32].T.repeat(2, 1)[:32, :40]) + rng.integers(0, 60, (32, 40))
    Image.fromarray(pixels.astype(np.uint8)).convert("RGB").save(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("textures")
    for kind in ("stripes", "bars"):
        (root / kind).mkdir()
        for i in range(20): draw(root / kind / f"{i}.png", kind, i)
    return root


QUICK = ["--backbone=resnet18", "--epochs=3", "--image_size=32", "--batch_size=8", "--workers=0", "--accelerator=cpu", "--no_progress", "--no_prove"]


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    "The main job, run once: a folder in, a registered model out."
    root = tmp_path_factory.mktemp("trained")
    words = ["fit", f"--data={pictures}", f"--registry={root / 'registry'}", f"--runs={root / 'runs'}", "--name=textures"]
    assert main([*words, *QUICK, "--prove"]) == 0
    return root


def failing(capsys, words):
    "Run a command that must fail; its one line on the error stream."
    capsys.readouterr()
    code = main(words)
    lines = capsys.readouterr().err.strip().splitlines()
    assert code != 0 and len(lines) == 1 and lines[0].startswith("flame-vision: error: "), (code, lines)
    return lines[0]


def test_fit_leaves_a_model_that_predicts_in_words(trained, pictures, capsys):
    model = ModelRegistry(trained / "registry").load("textures")
    assert model.class_names == ["bars", "stripes"]
    assert model.version.metrics["test/accuracy"] == 1.0
    assert model.version.data["fingerprint"] and model.version.seed == 0
    answers = model.predict([pictures / "bars" / "3.png", pictures / "stripes" / "3.png"])
    assert [a.name for a in answers] == ["bars", "stripes"]

    capsys.readouterr()
    assert main(["predict", "textures@1.0.0", str(pictures / "bars" / "3.png"), f"--registry={trained / 'registry'}", "--json", "--top=2"]) == 0
    said = json.loads(capsys.readouterr().out)[0]["classes"]
    assert said[0]["name"] == "bars" and said[0]["score"] == pytest.approx(answers[0].score, abs=1e-6) and len(said) == 2


def test_fit_leaves_a_complete_record(trained):
    run = next((trained / "runs").iterdir())
    assert {"best.pt", "hparams.yaml", "metrics.csv", "result.json", "results.png", "wandb"} <= set(os.listdir(run))
    assert json.loads((run / "result.json").read_text())["registered"] == "textures@1.0.0"
    with Image.open(run / "results.png") as picture: assert picture.width > 300
    assert next((run / "wandb").glob("offline-run-*/*.wandb")).stat().st_size > 1000


def test_the_offline_run_holds_config_metrics_pictures_and_the_version(trained):
    path = next(next((trained / "runs").iterdir()).glob("wandb/offline-run-*/*.wandb"))
    config, history, summary = {}, set(), {}
    for record in read_records(path):
        for item in [*record.run.config.update, *record.config.update]: config[item.key or item.nested_key[0]] = json.loads(item.value_json)
        history |= {item.key or item.nested_key[0] for item in record.history.item}
        summary |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.summary.update}
    assert config["class_names"] == ["bars", "stripes"] and len(config["data_fingerprint"]) == 64
    assert {"train/loss_step", "val/accuracy", "test/predictions", "test/confusion"} <= history
    assert summary["registered"] == "textures@1.0.0"
    assert summary["digest"] == ModelRegistry(trained / "registry").get("textures").manifest.digest


def test_a_second_fit_registers_a_second_version(trained, pictures):
    words = ["fit", f"--data={pictures}", f"--registry={trained / 'registry'}", f"--runs={trained / 'again'}", "--name=again", *QUICK, "--epochs=1"]
    assert main(words) == 0 and main(words) == 0
    registry = ModelRegistry(trained / "registry")
    assert registry.versions("again") == ["1.0.0", "1.1.0"] and registry.verify() == {}
    first, second = (registry.load("again", version).state_dict() for version in ("1.0.0", "1.1.0"))
    assert all(torch.equal(first[k], second[k]) for k in first), "the same seed gives the same weights"


def broken_folder(tmp_path, kind):
    "A folder with two good classes, and something wrong."
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4): draw(tmp_path / name / f"{i}.png", "stripes", i)
    if kind == "empty class": (tmp_path / "c").mkdir()
    if kind == "broken JPEG":
        Image.new("RGB", (64, 64), "red").save(tmp_path / "a" / "cut.jpg")
        whole = (tmp_path / "a" / "cut.jpg").read_bytes()
        (tmp_path / "a" / "cut.jpg").write_bytes(whole[:len(whole) // 2])
    if kind == "text files":
        for name in ("a", "b"):
            for i in range(4): (tmp_path / name / f"{i}.png").unlink(); (tmp_path / name / f"{i}.txt").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize("kind, says", [("empty class", "c: an empty class"), ("broken JPEG", "a/cut.jpg: "), ("text files", "0.txt: not a picture")])
def test_a_folder_that_cannot_be_used_is_refused_by_name(tmp_path, capsys, kind, says):
    (tmp_path / "data").mkdir()
    folder = broken_folder(tmp_path / "data", kind)
    error = failing(capsys, ["fit", f"--data={folder}", f"--registry={tmp_path / 'registry'}", f"--runs={tmp_path / 'runs'}", *QUICK])
    assert says in error
    assert os.listdir(tmp_path) == ["data"], "nothing was written"


def test_broken_files_can_be_skipped(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    folder = broken_folder(tmp_path / "data", "broken JPEG")
    words = ["fit", f"--data={folder}", f"--registry={tmp_path / 'registry'}", f"--runs={tmp_path / 'runs'}", *QUICK, "--epochs=1", "--on_error=skip"]
    capsys.readouterr()
    assert main(words) == 0
    said = capsys.readouterr()
    assert "a/cut.jpg" in said.err and said.err.count("\n") == 1
    assert ModelRegistry(tmp_path / "registry").versions("data") == ["1.0.0"]


@pytest.mark.parametrize("words, says", [
    (["fit", "--data=/no/such/folder"], "/no/such/folder"),
    (["fit"], "data"),
    (["fit", "--data={pictures}", "--backbone=resnet51"], "did you mean 'resnet50'"),
    (["fit", "--data={pictures}", "--bacbone=resnet50"], "did you mean '--backbone'"),
    (["fit", "--data={pictures}", "--epochs=many"], "--epochs: expected an int"),
    (["fit", "--data={pictures}", "--name=a/b"], "'a/b' cannot name a model"),
    (["fit", "--data={pictures}", "--precision=bogus"], "Precision 'bogus'"),
    (["fit", "--data={pictures}", "--devices=0"], "Trainer refuses its arguments"),
    (["fit", "--data={pictures}", "--workers=-1"], "num_workers is 0 or more"),
    (["fit", "--data={pictures}", "--seed=-1"], "a seed lies between"),
    (["fit", "--data={pictures}", "--project=a/b"], "a W&B project"),
    (["fit", "--data={pictures}", "--trainer.gradient_clip=1"], "gradient_clip"),
    (["fit", "--config={cut}"], "--config is no YAML"),
    (["summary", "classifier"], "backbone"),
    (["models", ""], "no model matches"),
    (["models", "--sort=acc"], "--sort: choose one of name, parameters, macs, top1; got acc"),
    (["models", "--max-parameters=five"], "written as 5M, 25.6M or 1e6, got 'five'"),
    (["models", "--max_parameters=-5"], "got -5"),
    (["models", "--zzz"], "no option --zzz; there is --help, --json, --max_parameters, --no_json, --no_tags, --sort, --tags"),
    (["models", "a", "b"], "has no use for 'b'"),
    (["summary", "resnet18", "--shape=[1,a]"], "--shape: expected ints, as in [1,3,224,224], got [1, 'a']"),
    (["fit", "--data={pictures}", "--on-error=no"], "--on_error: choose one of raise, skip; got no"),
    (["fit", "--data={pictures}", "--trainer=3"], "--trainer: expected names and values"),
    (["fit", "--data={pictures}", "--progress=maybe"], "--progress: expected yes or no, got 'maybe'"),
    (["fit", "--data={pictures}", "--workers=a"], "--workers: expected an int, got a"),
    (["fit", "--data={pictures}", "--learning-rate=a"], "--learning_rate: expected a number, got a"),
    (["fit", "--config={slip}"], "did you mean 'image_size'"),
    (["fit", "--data={pictures}", "--epochs=0"], "epochs must be at least 1"),
    (["fit", "--data={pictures}", "--learning_rate=-1"], "learning_rate must be above 0"),
    (["fit", "--data={pictures}", "--backbone=resnet18", "--pretrained={cut}"], "cut.pt is damaged"),
    (["fit", "--data={pictures}", "--backbone=resnet18", "--pretrained=no_such_tag"], "no weights of resnet18 are tagged"),
    (["fit", "--data={pictures}", "--backbone=resnet18", "--pretrained=true"], "go online once"),
    (["predict", "textuers", "x.png"], "did you mean 'textures'"),
    (["predict", "textures@9.0.0", "x.png"], "9.0.0"),
    (["predict", "textures", "nowhere.png"], "nowhere.png"),
    (["summary", "resnet51"], "did you mean 'resnet50'"),
    (["summary", "resnet50", "--shape=[1,4,64,64]"], "ResNetBackbone: axis 1 (c) must be 3, got 4"),
    (["models", "vgg*"], "no model matches"),
    (["demmo"], "did you mean 'demo'"),
])
def test_mistakes_are_one_line(words, says, trained, pictures, tmp_path, capsys):
    cut = tmp_path / "cut.pt"
    torch.save(create_model("resnet18", num_classes=2).state_dict(), cut)
    cut.write_bytes(cut.read_bytes()[:cut.stat().st_size // 2])
    slip = tmp_path / "slip.yaml"
    slip.write_text(f"data: {pictures}\nimage-size: 32\n")
    words = [w.format(pictures=pictures, cut=cut, slip=slip) for w in words]
    if words[0] in ("fit", "predict", "summary"): words.append(f"--registry={trained / 'registry'}")
    if words[0] == "fit": words.append(f"--runs={tmp_path / 'runs'}")
    before = sorted(p for p in (trained / "registry").rglob("*"))
    assert says in failing(capsys, words)
    assert not (tmp_path / "runs").exists() and sorted((trained / "registry").rglob("*")) == before


def test_a_registered_file_cut_in_half_is_not_loaded(trained, pictures, tmp_path, capsys):
    import shutil
    shutil.copytree(trained / "registry", tmp_path / "registry")
    weights = tmp_path / "registry" / "textures" / "1.0.0" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:weights.stat().st_size // 2])
    error = failing(capsys, ["predict", "textures", str(pictures / "bars" / "0.png"), f"--registry={tmp_path / 'registry'}"])
    assert "model.safetensors was changed" in error
    with pytest.raises(FlameVisionError, match="model.safetensors"): ModelRegistry(tmp_path / "registry").load("textures")


def test_options_from_a_file(trained, pictures, tmp_path):
    (tmp_path / "fit.yaml").write_text(f"data: {pictures}\nbackbone: resnet18\nepochs: 1\nimage_size: 32\nworkers: 0\naccelerator: cpu\n"
                                       "progress: false\nprove: false\nprecision: bf16-mixed\n"
                                       "trainer:\n  gradient_clip_val: 1.0\n  log_every_n_steps: 2\n  enable_model_summary: false\n")
    words = ["fit", f"--config={tmp_path / 'fit.yaml'}", f"--registry={tmp_path / 'registry'}", f"--runs={tmp_path / 'runs'}"]
    assert main([*words, "--name=filed"]) == 0
    record = (next((tmp_path / "runs").iterdir()) / "hparams.yaml").read_text()
    assert "gradient_clip_val: 1.0" in record and "log_every_n_steps: 2" in record and "precision: bf16-mixed" in record
    weights = ModelRegistry(tmp_path / "registry").load("filed").state_dict().values()
    assert {w.dtype for w in weights if w.is_floating_point()} == {torch.float32}, "mixed precision keeps the weights in float32"


def test_a_folder_without_test_pictures_reports_no_test(pictures, tmp_path, capsys):
    import shutil
    for split in ("train", "val"): shutil.copytree(pictures, tmp_path / "data" / split)
    words = ["fit", f"--data={tmp_path / 'data'}", f"--registry={tmp_path / 'registry'}", f"--runs={tmp_path / 'runs'}"]
    assert main([*words, *QUICK, "--epochs=1"]) == 0
    assert "test accuracy        none" in capsys.readouterr().out
    assert not any(k.startswith("test/") for k in ModelRegistry(tmp_path / "registry").get("data").metrics)


def test_a_traceback_is_for_those_who_ask(capsys):
    with pytest.raises(KeyError): main(["summary", "resnet51", "--debug"])


def test_the_installed_command():
    "Exit codes and streams of the real process."
    command = [os.path.join(os.path.dirname(sys.executable), "flame-vision")]
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert helped.returncode == 0 and "flame-vision demo" in helped.stdout and not helped.stderr
    wrong = subprocess.run([*command, "summary", "resnet51"], capture_output=True, text=True)
    assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1 and not wrong.stdout
    assert "did you mean 'resnet50'" in wrong.stderr


def started(pictures, root, *words, **environment):
    "A real process in the middle of a training that would take long."
    command = [os.path.join(os.path.dirname(sys.executable), "flame-vision"), "fit", f"--data={pictures}", f"--registry={root / 'registry'}",
               f"--runs={root / 'runs'}", *QUICK, "--epochs=1000", *words]
    def heeds(): signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell starts behind its back ignores Ctrl-C, and so do its children
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeds,
                               env={**os.environ, **environment})
    deadline = time.monotonic() + 90
    while not list((root / "runs").glob("*/best.pt")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    return process


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_training_that_is_stopped_says_what_it_kept(pictures, tmp_path, sent, code):
    process = started(pictures, tmp_path)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert err.count("\n") == 1 and "the best weights are in" in err
    model = create_model("classifier", backbone="resnet18", num_classes=2)
    load_checkpoint(path=next((tmp_path / "runs").glob("*/best.pt")), model=model)
    assert ModelRegistry(tmp_path / "registry").list() == []


def test_a_terminal_that_knows_ascii_only(trained, pictures):
    command = [os.path.join(os.path.dirname(sys.executable), "flame-vision"), "summary", "resnet18", "--depth=1"]
    ran = subprocess.run(command, capture_output=True, env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert ran.returncode == 0 and b"ResNet" in ran.stdout, ran.stderr


@pytest.mark.slow
def test_two_processes_train_one_model(pictures, tmp_path):
    command = [os.path.join(os.path.dirname(sys.executable), "flame-vision"), "fit", f"--data={pictures}", f"--registry={tmp_path / 'registry'}",
               f"--runs={tmp_path / 'runs'}", "--name=two", *QUICK, "--devices=2"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ModelRegistry(tmp_path / "registry").versions("two") == ["1.0.0"] and len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.slow  # the client waits for half a minute
def test_a_wandb_server_that_cannot_be_reached_costs_the_run_nothing(pictures, tmp_path):
    command = [os.path.join(os.path.dirname(sys.executable), "flame-vision"), "fit", f"--data={pictures}", f"--registry={tmp_path / 'registry'}",
               f"--runs={tmp_path / 'runs'}", "--name=alone", *QUICK, "--epochs=1"]
    environment = {**{k: v for k, v in os.environ.items() if k != "WANDB_MODE"}, "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, stdin=subprocess.DEVNULL)
    assert ran.returncode == 0, ran.stderr
    assert "this run is recorded offline" in ran.stderr and ran.stderr.count("\n") == 1
    assert list(next((tmp_path / "runs").iterdir()).glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize("suite, keys", [("backbones", {"ours", "theirs", "ratio", "spread"}), ("shapes", {"forward", "first", "remembered"})])
def test_bench_prints_a_table_and_writes_what_it_measured(suite, keys, tmp_path, capsys):
    path = tmp_path / "bench.json"
    words = ["bench", suite, "--names=mobilenetv3_small_050,resnet18", "--rounds=2", "--image_size=32", f"--json={path}"]
    assert main(words) == 0
    written, shown = json.loads(path.read_text()), capsys.readouterr().out.splitlines()
    assert len(shown) == 2 + len(written["results"]) and "threads" in shown[0] and shown[1].startswith("network")
    assert {r["name"] for r in written["results"]} == {"mobilenetv3_small_050", "resnet18"} and written["machine"]["cores"] >= 1
    assert all(keys <= set(r) and min(v for v in r.values() if isinstance(v, float)) > 0 for r in written["results"])


@pytest.mark.parametrize("words, says", [
    (["backbonez"], "there is backbones, shapes, loading, segmenters"),
    (["--names=resnet18,resnet51"], "did you mean 'resnet50'"),
    (["shapes", "--names=resnet51"], "did you mean 'resnet50'"),
    (["loading", "--names=resnet51"], "did you mean 'resnet50'"),
    (["--names=classifier"], "no published network is called 'classifier'"),
    (["loading", "--names=efficientnetv2_s"], "publishes no weights of 'efficientnetv2_s'"),
    (["loading", "--names=resnet50.tv9_in1k"], "did you mean 'tv"),
    (["--names=,"], "names holds no network"),
    (["--device=gpu"], "device must be cpu or cuda, got 'gpu'"),
    (["--device=meta"], "device must be cpu or cuda, got 'meta'"),
    (["shapes", "--device=cuda"], "'shapes' has no argument 'device'; it takes names, image_size, rounds"),
    (["loading", "--channels-last"], "'loading' has no argument 'channels_last'"),
    (["--rounds=0"], "rounds must be at least 1"),
    (["--batch-size=0"], "batch_size must be at least 1"),
    (["--image-size=-3"], "image_size must be at least 1"),
    (["--threads=0"], "threads must be at least 1"),
    (["--threads=x"], "--threads: expected an int, got x"),
    (["--json={tmp}/nowhere/bench.json"], "no folder to write"),
])
def test_bench_refuses_before_it_measures(words, says, tmp_path, capsys):
    code = main(["bench", *[w.format(tmp=tmp_path) for w in words]])
    said = capsys.readouterr()
    assert code != 0 and not said.out and said.err.count("\n") == 1
    assert said.err.startswith("flame-vision: error: ") and says in said.err


@pytest.mark.parametrize("suite, name, size", [
    ("backbones", "convnext_tiny", 2), ("shapes", "convnext_tiny", 2), ("backbones", "vit_tiny_patch16_224", 64)])
def test_bench_of_a_size_that_a_network_cannot_take(suite, name, size, capsys):
    assert main(["bench", suite, f"--names={name}", f"--image-size={size}", "--rounds=1"]) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith("flame-vision: error: ") and said.count("\n") == 1


@pytest.mark.parametrize("devices, device, says", [
    (0, "cuda", "finds no GPU"), (0, "cuda:0", "finds no GPU"), (2, "cuda:2", "the last of 2 is 'cuda:1'")])
def test_a_device_that_is_not_there(devices, device, says, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    assert main(["bench", f"--device={device}"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("flame-vision: error: ") and says in said.err and not said.out
    if devices: assert [check_device(d) for d in ("cpu", "cuda", "cuda:1")] == [None] * 3


def test_bench_writes_all_settings(tmp_path):
    path = tmp_path / "bench.json"
    assert main(["bench", "shapes", "--names= mobilenetv3_small_050 ,", "--rounds=1", "--image-size=32", f"--json={path}"]) == 0
    assert json.loads(path.read_text())["settings"] == {"names": ["mobilenetv3_small_050"], "image_size": 32, "rounds": 1}


def test_hyphens_and_underscores_are_one():
    typed = ["--data", "a-b_c", "--image-size", "64", "--learning-rate=1e-4", "--no-progress", "--on-error=skip", "--trainer.gradient-clip-val=1"]
    plain = ["--data", "a-b_c", "--image_size", "64", "--learning_rate=1e-4", "--no_progress", "--on_error=skip", "--trainer.gradient_clip_val=1"]
    read = parse(command_parser("fit"), typed)
    assert read == parse(command_parser("fit"), plain)
    assert (read["data"], read["image_size"], read["progress"], read["on_error"]) == ("a-b_c", 64, False, "skip")
    assert read["trainer"] == {"gradient_clip_val": 1}


def test_numbers_as_tables_print_them(capsys):
    assert [quantity(v) for v in ("5M", "25.6M", "25.6 m", "1e6", "3e+6", 3e6, "12k", "1G", 7)] == [5e6, 25.6e6, 25.6e6, 1e6, 3e6, 3e6, 12e3, 1e9, 7]
    for wrong in ("", "M", "5X", "1.2.3", "nan", "-5", "5 M M"):
        with pytest.raises(ConfigError, match="a number is written as"): quantity(wrong)
    said = []
    for typed in ("5M", "5e6", "5000000"):
        assert main(["models", f"--max-parameters={typed}"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2] and "mobilenetv3_small" in said[0] and "resnet18" not in said[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_what_there_is(name, capsys):
    with pytest.raises(SystemExit) as left: main([name, "--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0 and "shtab" not in said and f"usage: flame-vision {name}" in said
    assert said.count(COMMANDS[name].__doc__[:20]) == 1, "once"


SQUASHED = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "input_size": [3, 224, 224], "crop_pct": 0.9,
            "interpolation": "bilinear", "crop_mode": "squash"}


def weights_in(folder, **said):
    "Weights of a ResNet-18 in a folder, with what a configuration says of them."
    folder.mkdir()
    save_file(create_backbone("resnet18").state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": said}))
    return str(folder)


@pytest.mark.filterwarnings("ignore:weights of")
def test_pictures_are_prepared_as_those_of_the_weights_at_the_size_of_the_data(pictures, tmp_path):
    from dataclasses import replace

    from flame_vision.preprocessing import transforms_for
    data = ImageFolderDataModule(pictures, (32, 48), num_workers=0)
    model = pretrained_model(described_model("classification", "resnet18", None, "classifier"), weights_in(tmp_path / "w", **SQUASHED), data, 0)
    assert data.eval_transforms.config == transforms_for(replace(model.provenance, input_size=(3, 32, 48))).config
    resize = next(step for step in data.eval_transforms.transforms if type(step).__name__ == "Resize")
    assert list(resize.size) == [35, 53] and data.input_shape == data.train_shape == [3, 32, 48], "squashed, at the user's size"
    for pipeline in (data.train_transforms, data.eval_transforms):
        normalize = pipeline.transforms[-1]
        assert (list(normalize.mean), list(normalize.std)) == (SQUASHED["mean"], SQUASHED["std"])
    assert data.train_transforms.transforms[0].interpolation.value == "bilinear"


@pytest.mark.filterwarnings("ignore:weights of")
def test_weights_that_do_not_say_how_pictures_were_prepared(pictures, tmp_path):
    data = ImageFolderDataModule(pictures, 32, mean=[0.1] * 3, std=[0.9] * 3, num_workers=0)
    with pytest.warns(UserWarning, match="does not say how its images were prepared: ImageNet's mean and deviation are used"):
        pretrained_model(described_model("classification", "resnet18", None, "classifier"), weights_in(tmp_path / "w"), data, 0)
    for pipeline in (data.train_transforms, data.eval_transforms): assert list(pipeline.transforms[-1].mean) == [0.485, 0.456, 0.406]


def test_weights_whose_pictures_had_a_border_are_refused_in_one_line(pictures, tmp_path, capsys):
    weights = weights_in(tmp_path / "w", **SQUASHED | {"crop_mode": "border"})
    capsys.readouterr()
    words = ["fit", f"--data={pictures}", f"--pretrained={weights}", f"--registry={tmp_path / 'registry'}", f"--runs={tmp_path / 'runs'}"]
    assert main([*words, *QUICK]) == 2 and "images with a border" in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "runs").exists()
