"The catalogue of models: figures that timm and torchvision publish, costs that they have too, and the command that lists them."
import csv
import json
import os
import subprocess
import sys
from importlib.resources import files

import pytest
import timm
import torch
import torchvision
from timm.models import get_pretrained_cfg, list_pretrained

from flame_vision.catalogue import ORDERS, TIMM_RESULTS, count_cost, fitting, model_row, read_table, search_models, table_lines, write_costs
from flame_vision.cli import main
from flame_vision.core import ConfigError, UnknownNameError
from flame_vision.models import PUBLISHED, create_model, list_models

ACCURACIES = read_table("accuracies.csv")
COSTS = read_table("costs.csv", keys=3)


def classifiers(): return [full for full in list_models(pretrained=True) if full.partition(".")[0] in PUBLISHED]


def test_accuracies_are_of_timms_trainings():
    lines = (files("flame_vision") / "accuracies.csv").read_text().splitlines()
    assert lines[1].split("commit ")[1][:40] in TIMM_RESULTS and "(2024)" in lines[1]
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert len(rows) == len(ACCURACIES) == len({row["model"] for row in rows})
    assert {row["model"] for row in rows} <= set(list_pretrained())
    top1 = [float(row["top1"]) for row in rows]
    assert top1 == sorted(top1, reverse=True) and 55 < top1[-1] and top1[0] < 91, "in the order of timm's table"
    assert all(float(row["top1"]) < float(row["top5"]) < 99.1 for row in rows)


def test_accuracies_were_measured_as_timm_configures_tests():
    for (full,), row in ACCURACIES.items():
        cfg = get_pretrained_cfg(full)
        measured = int(row["image_size"]), float(row["crop_pct"]), row["interpolation"]
        assert measured == ((cfg.test_input_size or cfg.input_size)[-1], cfg.test_crop_pct or cfg.crop_pct, cfg.interpolation), full


def test_all_of_ours_but_two_have_an_accuracy():
    thousand = {full for full in classifiers() if get_pretrained_cfg(full).num_classes == 1000}
    missing = {full for full in thousand if (full,) not in ACCURACIES}
    assert len(thousand) > 250 and {"mobilenetv3_large_100.ra4_e3600_r224_in1k", "resnet34.ra4_e3600_r224_in1k"} >= missing


@pytest.mark.parametrize("full, top1, top5", [  # read from timm's table a second time
    ("resnet50.a1_in1k", 81.240, 95.112), ("convnext_tiny.fb_in1k", 82.694, 96.144), ("swin_tiny_patch4_window7_224.ms_in1k", 81.388, 95.540),
    ("vit_base_patch16_224.augreg2_in21k_ft_in1k", 85.110, 97.538), ("mobilenetv3_small_050.lamb_in1k", 57.924, 80.142)])
def test_figures(full, top1, top5):
    row = search_models(full)[0]
    assert (row.full, row.top1, row.top5) == (full, top1, top5)


TORCHVISIONS = search_models("*.tv*_in1k")


@pytest.mark.parametrize("row", [pytest.param(row, id=row.full) for row in TORCHVISIONS])
def test_torchvision_says_the_same(row):
    name = next(word for word in (*row.aliases, row.name) if word in torchvision.models.list_models())
    meta = torchvision.models.get_model_weights(name)["IMAGENET1K_V2" if "tv2" in row.tag else "IMAGENET1K_V1"].meta
    assert row.macs / 1e9 == pytest.approx(meta["_ops"], abs=1e-3)
    assert row.parameters == meta["num_params"]
    assert row.top1 == pytest.approx(meta["_metrics"]["ImageNet-1K"]["acc@1"], abs=0.3)
    assert row.top5 == pytest.approx(meta["_metrics"]["ImageNet-1K"]["acc@5"], abs=0.3)


@pytest.mark.parametrize("full", [
    "resnet18.a1_in1k", "resnext50_32x4d.tv_in1k", "tf_efficientnetv2_s.in21k", "mobilenetv2_110d.ra_in1k", "regnety_004.tv2_in1k",
    "convnext_tiny.dinov3_lvd1689m", "convnext_base.clip_laion2b", "vit_base_patch16_224.mae", "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_tiny_patch16_224.augreg_in21k", "swinv2_tiny_window8_256.ms_in1k", "swin_tiny_patch4_window7_224.ms_in22k",
    "vit_tiny_r_s16_p8_384.augreg_in21k_ft_in1k", "resnet50.bamboo"])
def test_rows_are_timms(full):
    row, cfg = search_models(full)[0], get_pretrained_cfg(full)
    with torch.device("meta"): theirs = timm.create_model(row.name, num_classes=cfg.num_classes)
    assert row.parameters == sum(p.numel() for p in theirs.parameters())
    assert (row.license, row.source, row.input_size, row.num_classes) == (cfg.license, cfg.hf_hub_id, cfg.input_size[-1], cfg.num_classes)
    assert row.image_size == (cfg.test_input_size or cfg.input_size)[-1]


def test_default_training_is_what_pretrained_takes():
    for row in search_models(): assert row.tag == (get_pretrained_cfg(row.name).tag if list_pretrained(f"{row.name}.*") else None)
    assert {row.name for row in search_models()} == set(PUBLISHED)
    assert sorted(row.full for row in search_models(tags=True) if row.tag) == sorted(classifiers())


def test_every_row_is_in_the_table_of_costs():
    asked = set()
    def note(*key): asked.add(tuple(map(str, key))); return None, None
    for tags in (False, True):
        for row in search_models(tags=tags): model_row(row.name, row.tag, note)
    assert asked == set(COSTS), "run: python -c 'from flame_vision.catalogue import write_costs; write_costs()'"


@pytest.mark.parametrize("key", [pytest.param(key, id="-".join(key)) for key in sorted(COSTS)[::30]])
def test_costs_are_counted_right(key):
    name, size, classes = key[0], int(key[1]), int(key[2])
    assert count_cost(name, size, classes) == (int(COSTS[key]["parameters"]), int(COSTS[key]["macs"]))


@pytest.mark.slow  # a minute
def test_all_costs(tmp_path):
    assert write_costs(tmp_path / "costs.csv") == len(COSTS)
    assert (tmp_path / "costs.csv").read_text() == (files("flame_vision") / "costs.csv").read_text()


def names(pattern, **options): return [row.full for row in search_models(pattern, **options)]


def test_patterns():
    assert names("resnet50") == ["resnet50.a1_in1k"], "a whole name is that network"
    assert {"resnet18.a1_in1k", "wide_resnet50_2.racm_in1k"} <= set(names("resnet")), "a part of a name is all that have it"
    assert names("*b0*") == ["efficientnet_b0.ra_in1k", "tf_efficientnet_b0.ns_jft_in1k"]
    assert names("convnext?tiny") == ["convnext_tiny.in12k_ft_in1k"] == names("ConvNeXt_Tiny")
    assert names("vit_b_16") == names("vit_base_patch16_224"), "torchvision's names are known"
    assert names("resnet50.tv2_in1k") == ["resnet50.tv2_in1k"], "a dot asks for trainings"
    assert len(names("resnet50", tags=True)) == len(list_pretrained("resnet50.*"))
    assert names("efficientnetv2_s") == ["efficientnetv2_s"] and search_models("efficientnetv2_s")[0].license is None


def test_what_is_not_counted_comes_last():
    counted, unknown = model_row("resnet50", "a1_in1k"), model_row("resnet18", "a1_in1k", lambda *_: (None, None))
    free = model_row("resnet34", "a1_in1k", lambda *_: (0, 0))
    for sort in ("parameters", "macs"): assert sorted([unknown, counted, free], key=ORDERS[sort]) == [free, counted, unknown]
    none = model_row("efficientnetv2_s", None)
    assert sorted([none, unknown, counted], key=ORDERS["top1"]) == [counted, unknown, none]


def test_names_lead_to_models():
    with torch.device("meta"):
        for full in names("*", tags=True)[::60]: assert create_model(full, num_classes=2)


def test_orders():
    rows = search_models("resnet*", sort="name")
    assert [row.name for row in rows] == ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"], "numbers by their value"
    for sort in ("parameters", "macs"):
        values = [getattr(row, sort) for row in search_models(tags=True, sort=sort)]
        assert values == sorted(values)
    values = [row.top1 or 0 for row in search_models(tags=True, sort="top1")]
    assert values == sorted(values, reverse=True)
    with pytest.raises(ConfigError, match="sorted by name, parameters, macs, top1"): search_models(sort="size")
    small = search_models(max_parameters=5e6)
    assert small and all(row.parameters <= 5e6 for row in small) and len(small) == sum(row.parameters <= 5e6 for row in search_models())


def test_timms_names():
    rows = search_models("timm/*dinov3*", tags=True)
    assert len(rows) == len(list_pretrained("*dinov3*")) and all(row.name.startswith("timm/") and row.macs is None for row in rows)
    for row in rows:
        cfg = get_pretrained_cfg(row.full.removeprefix("timm/"))
        assert (row.license, row.input_size, row.source) == (cfg.license, cfg.input_size[-1], cfg.hf_hub_id)
    alone = search_models("timm/vgg11")[0]
    assert (alone.parameters, round(alone.macs / 1e9, 3)) == (132_863_336, torchvision.models.VGG11_Weights.DEFAULT.meta["_ops"])
    assert search_models("timm/vgg19_bn")[0].top1 == 74.236
    assert search_models("timm/resnet50.a1_in1k")[0].macs == search_models("resnet50.a1_in1k")[0].macs


@pytest.mark.parametrize("pattern, says", [
    ("resnet51", "did you mean 'resnet50'"), ("vgg*", "timm has 8: 'timm/vgg*'"), ("timm/resnt50", "did you mean 'timm/resnet50'"),
    ("", "there is"), ("resnet50.a9_in1k", "did you mean 'resnet50."), ("[", "there is")])
def test_unknown_names(pattern, says):
    with pytest.raises(UnknownNameError) as caught: search_models(pattern)
    assert says in str(caught.value)


def test_nothing_is_small_enough():
    with pytest.raises(UnknownNameError, match="at most 1,000 parameters"): search_models("resnet*", max_parameters=1000)


def test_fitting_prefers_the_whole_word():
    entries = [("a", None, ("a",)), ("ab", None, ("ab", "x"))]
    assert fitting("a", entries) == entries[:1] and fitting("a*", entries) == entries
    assert fitting("x", entries) == fitting("B", entries) == entries[1:]


@pytest.mark.parametrize("pattern, tags", [("*", False), ("*", True), ("timm/*", False), ("timm/*", True)])
def test_tables_fit_a_terminal(pattern, tags):
    lines = table_lines(search_models(pattern, tags=tags))
    assert max(map(len, lines)) <= 120 and lines[-1].startswith("top-1: ")


def test_the_command(capsys):
    assert main(["models", "resne*", "--sort=macs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "params", "MACs", "image", "top-1", "license", "also", "called"]
    assert lines[1].split()[:3] == ["resnet18.a1_in1k", "11.7", "M"] and "results-imagenet.csv" in lines[-1]
    assert main(["models", "resnet50", "--tags", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["tag"]: row for row in rows}["tv_in1k"]["top1"] == 76.156 and rows[0]["accuracy_source"] == TIMM_RESULTS
    assert main(["models", "timm/*dinov3*"]) == 0 and "dinov3-license" in capsys.readouterr().out
    assert main(["models", "--sort=size"]) == 2 and "--sort" in capsys.readouterr().err
    assert main(["models", "--max_parameters=3e6"]) == 0 and "resnet" not in capsys.readouterr().out.split("top-1:")[0]


def test_a_reader_that_leaves():
    command = f"{os.path.dirname(sys.executable)}/flame-vision models 'timm/*' --tags --json | head -2; echo ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ran.stdout.splitlines() == ["[", " {", "0"] and not ran.stderr
