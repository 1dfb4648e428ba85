"`flame-vision registry …` as a user and a script meet it: tables, JSON, exit codes, one line for everything that goes wrong."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from flame_vision.cli import EVERY, command_parser, main
from flame_vision.models import create_model
from flame_vision.registry_commands import REGISTRY, aligned
from flame_vision.versioning import ModelRegistry, save_checkpoint

NET = "mobilenetv3_small_050"


def tiny(): return create_model(NET, num_classes=3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "A checkpoint, bare weights, a configuration and class names."
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    model = tiny()
    save_checkpoint(model, path=folder / "m.pt", metrics={"val/accuracy": 0.5}, class_names=["cat", "dog", "owl"])
    save_file(model.state_dict(), folder / "w.safetensors")
    torch.save(model.state_dict(), folder / "w.pt")
    (folder / "config.yaml").write_text(model.config.to_yaml())
    (folder / "labels.txt").write_text("cat\ndog\nowl\n")
    (folder / "cut.pt").write_bytes((folder / "m.pt").read_bytes()[:9000])
    return folder


@pytest.fixture(scope="module")
def filled(files, tmp_path_factory):
    "A registry with two versions and an alias, made by the commands themselves; tests that change it take a copy."
    root = tmp_path_factory.mktemp("filled") / "models"
    assert main(["registry", "register", "pets", str(files / "m.pt"), "--tags=demo,ocr", "--input-shape=[1,3,64,64]", "--alias=champion",
        f"--registry={root}"]) == 0
    words = ["--architecture", NET, "--arguments.num_classes", "3", "--class-names=dog,cat,owl", "--metrics.val/accuracy", "0.75",
        "--parents=pets@1.0.0"]
    more = [f"--files={files / 'labels.txt'}", "--license=apache-2.0", "--description=Seen from above."]
    assert main(["registry", "register", "pets", str(files / "w.safetensors"), *words, *more, f"--registry={root}"]) == 0
    return root


@pytest.fixture
def registry(filled, tmp_path, monkeypatch):
    "A copy of it, which the commands use by default."
    import shutil
    shutil.copytree(filled, tmp_path / "models")
    monkeypatch.setenv("FLAME_VISION_REGISTRY", str(tmp_path / "models"))
    monkeypatch.setenv("FLAME_VISION_AUTHOR", "ada")
    monkeypatch.chdir(tmp_path)
    return ModelRegistry(tmp_path / "models")


@pytest.fixture
def run(capsys):
    def run(*words, code=0):
        capsys.readouterr()
        assert main(["registry", *words]) == code
        said = capsys.readouterr()
        assert bool(said.err) == bool(code) and said.err.count("\n") == bool(code)
        return said.err if code else said.out
    return run


def test_what_register_writes_is_what_python_writes(registry, files):
    one, two = registry.get("pets", "1.0.0"), registry.get("pets", "1.1.0")
    assert (one.class_names, one.metrics, one.tags, one.output_shape) == (["cat", "dog", "owl"], {"val/accuracy": 0.5}, ["demo", "ocr"], [1, 3])
    assert (two.class_names, two.metrics, two.parents, two.license) == (["dog", "cat", "owl"], {"val/accuracy": 0.75}, ["pets@1.0.0"], "apache-2.0")
    assert two.read("labels.txt") == b"cat\ndog\nowl\n" and registry.aliases("pets") == {"champion": "1.0.0"}
    x = torch.randn(2, 3, 64, 64)
    model = tiny().eval()
    model.load_state_dict(load_file(files / "w.safetensors"))
    for version in ("1.0.0", "1.1.0"): assert torch.equal(registry.load("pets", version)(x), model(x))


@pytest.mark.parametrize("words", [["w.pt", f"--architecture={NET}", "--arguments.num_classes=3"], ["w.safetensors", "--config=config.yaml"],
    ["m.pt", "--version=3.0"],
                                   ["m.pt", "--class-names=labels.txt", "--metrics.val/accuracy=0.9"]], ids=str)
def test_every_way_to_register(registry, files, words, run, monkeypatch):
    monkeypatch.chdir(files)
    assert re.search(rf"^architecture +{NET}$", run("register", "more", *words), re.M)
    assert registry.verify() == {} and registry.get("more").parameters == sum(p.numel() for p in tiny().parameters())


def test_list_and_search(registry, run):
    head, row = run("list").splitlines()
    assert head.split() == ["model", "versions", "latest", "aliases", "architecture", "parameters", "metrics"]
    assert row.split()[:5] == ["pets", "2", "1.1.0", "champion", "1.0.0"]
    said = json.loads(run("list", "p*", "--json"))
    assert said[0]["aliases"] == {"champion": "1.0.0"} and said[0]["metrics"] == {"val/accuracy": 0.75} and said[0]["error"] == ""
    assert run("search", "--metrics", "val/accuracy>=0.6").splitlines()[1].startswith("pets@1.1.0")
    assert [v["version"] for v in json.loads(run("search", "--sort=val/accuracy", "--json"))] == ["1.1.0", "1.0.0"]
    assert [v["version"] for v in json.loads(run("search", "--tags=ocr,demo", "--architecture=mobile*", "--json"))] == ["1.0.0"]
    assert run("search", "--tags=nothing") == "no version is like that\n"


@pytest.mark.parametrize("words", [["list"], ["search"], ["gc"], ["verify"], ["show", "pets"], ["load", "pets"], ["history", "champion"],
    ["delete", "a@1"], ["diff", "a@1", "2"], ["lineage", "a"], ["export", "a"], ["push", "a", "b"], ["alias", "a"]], ids=str)
def test_a_mistyped_place_is_no_empty_registry(registry, run, words, files):
    assert f"no registry at {Path('no/typo')}; flame-vision registry register makes one" in run(*words, "--registry=no/typo", code=1)
    assert not Path("no").exists(), "asking makes nothing"
    assert "no registry at memory://typo/models" in run(*words, "--registry=memory://typo/models", code=1)
    Path("passwd").write_text("root")
    for word in (words, ["register", "pets", str(files / "m.pt")], ["import", "a.tar"]):
        assert "passwd is no folder, so it is no registry" in run(*word, "--registry=passwd", code=1)
    assert "--registry is empty" in run(*words, "--registry=", code=2)


def test_the_users_own_registry_before_the_first_model(run, tmp_path, monkeypatch, files, capsys):
    monkeypatch.setenv("FLAME_VISION_REGISTRY", str(tmp_path / "new"))
    assert run("list") == f"no models yet at {tmp_path / 'new'}\n" == run("search") and run("gc") == "0 leftovers removed\n"
    assert json.loads(run("list", "--json")) == []
    assert "nothing to verify: no models yet" in run("verify", code=1) and not (tmp_path / "new").exists()
    for words in (["predict", "pets", "x.png"], ["summary", "pets"]):
        assert main([*words, f"--registry={tmp_path / 'typo'}"]) == 1 and "no registry at" in capsys.readouterr().err
    (tmp_path / "bare").mkdir()
    assert "nothing to verify" in run("verify", f"--registry={tmp_path / 'bare'}", code=1)
    run("register", "pets", str(files / "m.pt"), f"--registry={tmp_path / 'made'}")
    assert run("verify", f"--registry={tmp_path / 'made'}").startswith("1 version,")


def lightning_file(path, name, **more):
    "What Lightning's trainer writes of a module that holds a network under a name, with a loss beside it and an object in its settings."
    state = {f"{name}.{k}" if name else k: t for k, t in tiny().state_dict().items()} | ({"loss.weight": torch.ones(3)} if name else {})
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.5.0", "epoch": 1, "global_step": 9, "optimizer_states": [], "lr_schedulers": [],
        "hyper_parameters": {"net": Path("x")}, **more}, path)
    return {k.removeprefix(f"{name}."): t for k, t in state.items()}


@pytest.mark.parametrize("name", ["model", "net", "model._orig_mod", ""])
def test_lightnings_own_checkpoint(registry, run, name):
    state = lightning_file("last.ckpt", name)
    assert "'last.ckpt' is a checkpoint of Lightning, and does not say how its model is built: give --" in run("register", "x", "last.ckpt", code=2)
    words = ["register", "lit", "last.ckpt", f"--architecture={NET}"]
    assert "give --arguments.num_classes 3" in run(*words, code=1)
    run(*words, "--arguments.num_classes=3", "--class-names=cat,dog,owl")
    there = registry.load("lit").state_dict()
    assert all(torch.equal(there[k], state[k]) for k in there) and registry.get("lit").class_names == ["cat", "dog", "owl"]


class Evil:
    def __reduce__(self): return os.mkdir, ("ran",)


def test_what_a_checkpoint_of_lightning_names_is_not_run(registry, run):
    lightning_file("evil.ckpt", "model", callbacks={"x": Evil()})
    run("register", "evil", "evil.ckpt", f"--architecture={NET}", "--arguments.num_classes=3")
    assert not Path("ran").exists() and "evil" in registry


@pytest.mark.filterwarnings("ignore:lin. no configuration")
def test_a_class_that_only_python_knows(registry, run, capsys):
    registry.register("lin", model=torch.nn.Linear(3, 2))
    for words in (["registry", "load", "lin"], ["predict", "lin", "x.png"], ["summary", "lin"]):
        assert main(words) == 1
        said = capsys.readouterr().err
        assert "lin@1.0.0 is a 'Linear' of module 'torch.nn" in said and "flame-vision registry verify lin" in said and "model=" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux'")
def test_a_place_that_cannot_be_written_is_named(registry, run):
    assert re.search(r"could not write '/proc/x': \w", said := run("load", "pets", "--out=/proc/x", code=1)) and ".tmp" not in said


def test_names_of_classes_from_a_file(registry, run, files):
    Path("spaced.txt").write_text("\ufeffcat\n dog \n\nowl\n", encoding="utf-8")
    run("register", "spaced", str(files / "m.pt"), "--class-names=spaced.txt")
    assert registry.get("spaced").class_names == ["cat", "dog", "owl"]
    run("register", "whole", str(files / "m.pt"), "--metrics.epochs=3", "--metrics.loss=1e-3")
    assert registry.get("whole").metrics == {"epochs": 3, "loss": 0.001}


def test_a_damaged_version_does_not_hide_the_others(registry, run, files):
    run("register", "birds", str(files / "m.pt"))
    Path("models/pets/1.1.0/manifest.json").write_text("{}")
    lines = run("list").splitlines()
    assert lines[1].startswith("birds") and lines[2].startswith("pets") and "manifest.json was changed" in lines[2]


def test_show(registry, run):
    said = run("show", "pets")
    assert "pets@1.1.0" in said and "1.1.0, 1.0.0 (champion)" in said and "Seen from above." in said and "by ada" not in said
    assert "pets@1.0.0" in run("show", "pets@champion") and "pets@1.0.0" in run("show", "pets@<1.1")
    manifest = json.loads(run("show", "pets@1.0", "--json"))
    assert manifest["digest"] == registry.get("pets", "1.0.0").digest and manifest["aliases"] == ["champion"]
    card = ModelCard(run("show", "pets", "--card")).data
    assert card.license == "apache-2.0" and card.pipeline_tag == "image-classification" and card.eval_results[0].metric_value == 0.75


def test_diff_and_lineage(registry, run):
    for words in (("pets@1.0.0", "pets@1.1.0"), ("pets@champion", "1.1.0")):
        said = run("diff", *words)
        assert "equal weights" in said and "↕ dog" in said and "0.5 → 0.75  (+0.25, +50.0%)" in said
    found = json.loads(run("diff", "pets@1.0.0", "1.1.0", "--json"))
    assert found["weights_equal"] and found["changes"]["metrics"]["val/accuracy"]["difference"] == 0.25
    assert run("lineage", "pets@1.0.0").count("pets@1.1.0") == 1
    assert run("lineage", "pets", "--format=mermaid").startswith("graph TD") and run("lineage", "pets", "--format=svg").startswith("<svg")
    assert json.loads(run("lineage", "pets", "--format=json"))["edges"] == [["pets@1.0.0", "pets@1.1.0"]]


def test_aliases_and_their_history(registry, run):
    assert "1.0.0 → 1.1.0  ada: better" in run("alias", "pets@latest", "champion", "--why=better", "--expected=1.0.0")
    assert "somebody has moved it" in run("alias", "pets@1.0.0", "champion", "--expected=1.0.0", code=1)
    assert json.loads(run("alias", "pets", "--json")) == {"champion": "1.1.0"}
    run("alias", "pets", "champion", "--remove", "--why=bad")
    moves = json.loads(run("history", "champion", "--json"))
    assert [(m["from"], m["to"], m["why"]) for m in moves] == [(None, "1.0.0", ""), ("1.0.0", "1.1.0", "better"), ("1.1.0", None, "bad")]
    assert run("history", "pets@champion").splitlines()[-1].split()[2:] == ["1.1.0", "–", "ada", "bad"]
    assert run("alias", "pets") == "pets has no aliases\n"


def test_load_proves_and_writes(registry, run, files):
    said = run("load", "pets@champion", "--out=deep/out.safetensors")
    written, wanted = load_file("deep/out.safetensors"), load_file(files / "w.safetensors")
    assert "every file verified" in said and all(torch.equal(written[k], v) for k, v in wanted.items())


def test_verify_tells_scripts(registry, run, capsys):
    assert run("verify") == "2 versions, and every file is what was registered\n" == run("verify", "pets") and run("verify", "--json") == "{}\n"
    path = Path("models/pets/1.0.0/config.yaml")
    path.write_bytes(path.read_bytes().replace(b"num", b"nun", 1))
    assert main(["registry", "verify", "--json"]) == 1
    said = capsys.readouterr()
    assert list(json.loads(said.out)) == ["pets@1.0.0"] and said.err.count("\n") == 1 and "is damaged: pets@1.0.0" in said.err
    assert main(["registry", "load", "pets@1.0.0"]) == 1 and "config.yaml was changed" in capsys.readouterr().err


def test_gc_and_delete(registry, run):
    Path("models/pets/.tmp-0123456789ab").mkdir()
    Path("models/pets/.tmp-0123456789ab/model.safetensors").write_bytes(b"half")
    assert run("gc") == "0 leftovers removed\n" and "1 leftover would go" in run("gc", "--older-than=0", "--dry-run")
    assert json.loads(run("gc", "--older-than=0", "--json")) == ["pets/.tmp-0123456789ab"] and registry.verify() == {}
    assert "move the alias" in run("delete", "pets@1.0.0", code=1)
    for words in ("pets", "pets@latest", "pets@champion", "pets@>=1", "pets@"): assert "exact version" in run("delete", words, code=2)
    assert registry.versions("pets") == ["1.0.0", "1.1.0"]
    assert run("delete", "pets@1.1", "--why=old") == "pets@1.1.0 deleted\n" and registry.versions("pets") == ["1.0.0"]
    assert "was deleted by ada" in run("show", "pets@1.1.0", code=1)


def test_away_and_back(registry, run, tmp_path):
    assert run("export", "pets@champion") == "pets-1.0.0.tar\n" and run("export", "pets", "there.tar") == "there.tar\n"
    assert run("import", "pets-1.0.0.tar", "--registry=other") == "pets@1.0.0\n" == run("import", "pets-1.0.0.tar", "--registry=other")
    other = ModelRegistry(tmp_path / "other")
    assert other.get("pets").manifest == registry.get("pets", "1.0.0").manifest and other.verify() == {}
    run("push", "pets@1.1.0", str(tmp_path / "other"))
    assert other.versions("pets") == ["1.0.0", "1.1.0"]
    whole = Path("there.tar").read_bytes()
    Path("there.tar").write_bytes(whole[:-600])
    assert "copy it again" in run("import", "there.tar", code=1) and "no archive at 'nowhere.tar'" in run("import", "nowhere.tar", code=1)


@pytest.mark.parametrize("words, code, says", [
    (["lst"], 1, "did you mean 'list'?"), (["registr"], 1, "no command is called 'registry registr'"), (["--registry=x"], 1, "no command"),
    (["list", "pest"], 1, "did you mean 'pets'?"), (["list", "--jsn"], 2, "did you mean '--json'"), (["list", "a", "b"], 2, "has no use for 'b'"),
    (["show"], 2, "model"), (["show", "pest"], 1, "did you mean 'pets'?"), (["show", "pets@9"], 1, "there is 1.1.0, 1.0.0"),
    (["show", "pets@hero"], 1, "hero"),
    (["show", "../pets"], 1, "cannot name a model"), (["show", "pets@1.0.0", "--json=maybe"], 2, "--json: expected yes or no"),
    (["search", "--metrics=good"], 1, "is no condition"), (["search", "--limit=many"], 2, "--limit: expected an int, got many"),
    (["search", "--limit=-1"], 2, "--limit must be at least 1, got -1"), (["search", "--limit=0"], 2, "at least 1"),
    (["search", "--sort=val/acuracy"], 1, "val/accuracy"),
    (["gc", "--older-than=-1"], 2, "--older_than must be 0 or more, got -1"), (["gc", "--older-than=.nan"], 2, "--older_than"),
    (["history", "hero"], 1, "no alias is called 'hero'; make one: flame-vision registry alias NAME@VERSION hero"),
    (["history", "pets@hero"], 1, "no alias of pets is called 'hero'; make one: flame-vision registry alias pets@VERSION hero"),
    (["history", "pest@hero"], 1, "did you mean 'pets'"), (["diff", "pets@1.0.0"], 2, "after"), (["diff", "pets@1.0.0", "dogs@1"], 1, "dogs"),
    (["lineage", "pets", "--format=dot"], 2, "choose one of tree, mermaid, svg, json; got dot"),
    (["alias", "pets", "champion"], 2, "to which version?"),
    (["alias", "pets@1.0.0"], 2, "which alias?"), (["alias", "pets@1.0.0", "1.0"], 1, "1.0"),
    (["alias", "pets", "hero", "--remove"], 1, "make one: flame-vision"),
    (["register", "pets", "w.safetensors"], 2, "give --architecture NAME, or --config FILE"),
    (["register", "pets", "w.pt"], 2, "give --architecture NAME"),
    (["register", "pets", "m.pt", "--alias=bad!"], 1, "'bad!' cannot name a"),
    (["register", "pets", "m.pt", "--alias=latest"], 1, "cannot be an alias"),
    (["register", "pets", "m.pt", "--class-names=nofile.txt"], 1, "no list of names at 'nofile.txt'"),
    (["register", "pets", "m.pt", "--class-names=no.json"], 1, "no.json"), (["register", "pets", "m.pt", "--class-names=,"], 2, "holds no name"),
    (["register", "pets", "m.pt", "--class-names=config.yaml"], 2, "a text file with a name in each line"),
    (["register", "pets", "m.pt", "--metrics.acc=abc"], 2, "--metrics.acc: expected a number"),
    (["register", "pets", "m.pt", "--metrics.acc=true"], 2, "got true"),
    (["register", "pets", "m.pt", "--metrics={a: x}"], 2, "expected a number"),
    (["register", "pets", "cut.pt"], 1, "cut.pt"), (["register", "pets", "nowhere.pt"], 1, "no checkpoint at 'nowhere.pt'"),
    (["register", "a/b", "m.pt"], 1, "cannot name a model"),
    (["register", "pets", "m.pt", "--version=1.0.0"], 1, "a version never changes"),
    (["register", "pets", "m.pt", "--version=best"], 1, "is no version"),
    (["register", "pets", "w.pt", "--architecture=mobilnet"], 1, "no architecture is called 'mobilnet'"),
    (["register", "pets", "w.safetensors", f"--architecture={NET}"], 1, "give --arguments.num_classes 3"),
    (["register", "pets", "m.pt", "--files=nowhere.txt"], 1, "nowhere.txt"),
    (["register", "pets", "w.pt", "--config=nowhere.yaml"], 1, "nowhere.yaml"),
    (["register", "pets", "w.pt", "--config=labels.txt"], 2, "PartConfig"),
    (["register", "pets", "m.pt", "--arguments.num_clases=3"], 2, "did you mean 'num_classes'"), (["load", "pets", "--out=/dev/null/x"], 1, ""),
    (["export", "pets", "/dev/null/x.tar"], 1, "could not write"), (["pull", "https://example.org"], 2, "is no hub"),
    (["gc", "--older-than=a"], 2, "expected a number"),
    (["verify", "pest"], 1, "pest")], ids=str)
def test_mistakes_are_one_line(filled, files, run, words, code, says, monkeypatch):
    monkeypatch.chdir(files)
    monkeypatch.setenv("FLAME_VISION_REGISTRY", str(filled))
    before = sorted(str(p) for p in filled.rglob("*"))
    message = run(*words, code=code)
    assert message.startswith("flame-vision: error: ") and says in message and len(message) < 900
    assert sorted(str(p) for p in filled.rglob("*")) == before, "nothing was left"


@pytest.mark.parametrize("name", REGISTRY)
def test_help(name, capsys):
    with pytest.raises(SystemExit) as left: main(["registry", name, "--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0 and f"usage: flame-vision registry {name} " in said and "shtab" not in said
    words = set(EVERY[f"registry {name}"].__annotations__) - {"return"}
    known = {action.dest: action.help for action in command_parser(f"registry {name}")._actions}
    assert words <= set(known) and all(known[word] for word in words) and "registry" in words, "every option is explained"


def test_usage_lists_all(capsys):
    for words in (["registry"], ["registry", "--help"], ["registry", "-h"]):
        assert main(words) == 0
        said = capsys.readouterr().out
        assert all(f"flame-vision registry {name} " in said for name in REGISTRY) and max(map(len, said.splitlines())) <= 100
    assert main([]) == 0 and "flame-vision registry" in capsys.readouterr().out
    assert main(["regstry"]) == 1 and "did you mean 'registry'" in capsys.readouterr().err


def test_what_others_wrote_does_not_reach_the_terminal(registry, run, files):
    evil = "\x1b[31mred\x1b]0;title\x07\r\n\u202eback"
    registry.register("evil", model=tiny(), metrics={evil: 0.5}, tags=[evil], description=evil, class_names=[evil + str(i) for i in range(3)])
    registry.alias("evil", "hero", "1.0.0", why=evil)
    for words in (["list"], ["search"], ["show", "evil"], ["show", "evil", "--card"], ["history", "hero"], ["diff", "evil", "pets@1.0.0"],
        ["lineage", "evil"],
                  ["lineage", "evil", "--format=mermaid"]):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", run(*words)), words


def test_tables():
    assert aligned(("a", "b"), []) == ["a  b"] and aligned(("", ""), [("k", 1), ("long", None)]) == ["k     1", "long"]
    assert aligned(("a", "b", "c"), [("x", "", 3)]) == ["a  c", "x  3"]


def test_a_pipe_that_closes_and_a_process_of_its_own(registry):
    "As a user runs it: the exit code reaches the shell, and `head` may leave early."
    command = [sys.executable, "-c", "import sys; from flame_vision.cli import main; sys.exit(main())", "registry"]
    script = f"set -o pipefail; {' '.join(map(json.dumps, command))} show pets --json | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=os.environ)
    assert done.stdout.splitlines() == ["{", "0"] and done.stderr == ""
