"Whole jobs of detection: boxes in a folder in, a registered detector that draws out; and the training module, part by part."
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from flame_vision.answers import said_of
from flame_vision.cli import main
from flame_vision.core.errors import ConfigError, ShapeError
from flame_vision.data import DetectionDataModule, DigitsDataModule, Shapes, ShapesDetectionDataModule
from flame_vision.jobs import described_model, folder_data, tasks_of
from flame_vision.models import create_model
from flame_vision.training import AveragePrecision, DetectionModule, fit, top_losses
from flame_vision.training.detection import sizes_of, view_of
from flame_vision.training.hardest import examples_at
from flame_vision.versioning import ModelRegistry, load_checkpoint

QUICK = ["--backbone=mobilenetv3_small_050", "--image_size=64", "--epochs=2", "--batch_size=4", "--workers=0", "--accelerator=cpu", "--no_progress",
         "--no_prove", "--learning_rate=2e-3"]
QUIET = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
SMALL = {"name": "resnet", "arguments": {"block_type": "basic", "layers": [1, 1, 1, 1]}}
THIN = {"backbone": SMALL, "neck": {"name": "fpn", "arguments": {"out_channels": 32, "extra_levels": None}}}


def detector(num_classes=4, head="fcos", **arguments):
    "A small detector of shapes."
    settings = {"fcos": dict(depth=1, score_threshold=0.05), "retinanet": dict(depth=1),
                "detr": dict(hidden_channels=32, num_queries=10, encoder_layers=1, decoder_layers=2, num_heads=4, feed_forward_channels=64)}[head]
    parts = THIN if head != "detr" else {"backbone": SMALL}
    return create_model(**parts, head={"name": head, "arguments": {**settings, **arguments}}, num_classes=num_classes)


def shapes(**arguments): return ShapesDetectionDataModule(**{"image_size": 64, "batch_size": 4, "lengths": (12, 4, 6), "max_shapes": 2, **arguments})


def draw_coco(root, counts=(("train", 16), ("val", 6), ("test", 6)), names=("circle", "square", "triangle")):
    "Shapes with their boxes as COCO has them: numbers with gaps, a crowd now and then, a picture without objects, sizes that differ."
    (root / "annotations").mkdir(parents=True)
    for seed, (part, count) in enumerate(counts):
        (root / part).mkdir()
        rows, images = [], []
        for i, (image, target) in enumerate(Shapes(count, 64, 2, seed=seed, task="detection")):
            wide = np.pad(image.permute(1, 2, 0).numpy(), ((0, 0), (0, 16 * (i % 3)), (0, 0)))
            Image.fromarray(wide).save(root / part / f"{i}.png")
            images.append({"id": 10 * i + 1, "file_name": f"{i}.png", "height": 64, "width": wide.shape[1]})
            for (x, y, u, v), label in zip(target["boxes"].tolist() if i != 1 else (), target["labels"].tolist()):
                rows.append({"id": len(rows) + 1, "image_id": 10 * i + 1, "category_id": 5 * label, "iscrowd": int(len(rows) % 6 == 5),
                             "bbox": [x, y, u - x, v - y], "area": 0.8 * (u - x) * (v - y)})
        categories = [{"id": 5 * i, "name": name} for i, name in enumerate(names, start=1)]
        whole = {"images": images, "annotations": rows, "categories": categories}
        (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(whole))
    return root


@pytest.fixture(scope="module")
def detected(tmp_path_factory):
    "The job of detection, run once from the command line."
    root = tmp_path_factory.mktemp("detected")
    folder = draw_coco(root / "drawn")
    words = ["fit", "--task=detection", f"--data={folder}", f"--registry={root / 'registry'}", f"--runs={root / 'runs'}", *QUICK, "--loss.boxes=2"]
    assert main(words) == 0
    return root


def test_a_coco_folder_becomes_a_registered_detector_that_draws(detected, capsys, tmp_path):
    version = ModelRegistry(detected / "registry").get("drawn")
    assert version.manifest.class_names == ["background", "circle", "square", "triangle"]
    logged = {"val/map", "val/map_50", "test/map", "test/ap/circle", "train/loss_boxes", "test/loss_centerness"}
    assert logged <= set(version.metrics)
    model, path = ModelRegistry(detected / "registry").load("drawn"), str(detected / "drawn" / "test" / "2.png")
    assert type(model).__name__ == "Detector" and model.num_classes == 4
    answer, = model.predict(path, score_threshold=0.001)
    assert len(answer) and (answer.boxes >= 0).all() and (answer.boxes <= torch.tensor([96., 64, 96, 64])).all() and answer.scores.diff().le(0).all()
    capsys.readouterr()
    words = ["predict", "drawn", path, f"--registry={detected / 'registry'}", "--threshold=0.001", f"--out={tmp_path / 'out'}"]
    assert main([*words, "--json", "--top=5"]) == 0
    said, = json.loads(capsys.readouterr().out)
    assert [o["name"] for o in said["objects"]] == [name for name, _, _ in answer.found[:5]] and len(answer) > 5
    np.testing.assert_allclose([o["box"] for o in said["objects"]], answer.boxes[:5], atol=0.006)
    with Image.open(said["painted"]) as drawn: assert drawn.size == (384, 256)      # 96 × 64, four times
    assert main([*words[:-2], "--threshold=1", words[-1]]) == 0
    assert re.fullmatch(r"\S+2\.png  nothing  → \S+2-1\.png\n", capsys.readouterr().out)
    assert main([*words[:-2], "--json", words[-1]]) == 0     # nothing was sure enough in its validation to set a threshold by
    usual = version.metrics.get("val/threshold", 0.5)
    said, = json.loads(capsys.readouterr().out)
    assert usual > 0 and len(said["objects"]) == int((model.predict(path, score_threshold=usual)[0].scores >= usual).sum()) < 5


def test_the_run_holds_the_best_epoch_and_pictures_of_each(detected):
    run = next((detected / "runs").iterdir())
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("val/map")
    reached = [float(row[column]) for row in rows[1:] if row[column]]
    assert len(reached) == 2 and ModelRegistry(detected / "registry").get("drawn").metrics["val/map"] == pytest.approx(max(reached), abs=1e-5)
    assert load_checkpoint(path=run / "best.pt", model=ModelRegistry(detected / "registry").load("drawn"))[2] == int(np.argmax(reached))
    assert sorted(os.listdir(run / "pictures")) == ["epoch_000.png", "epoch_001.png"]
    with Image.open(run / "results.png") as drawn: assert drawn.width > 800 and drawn.height > 600
    assert json.loads((run / "result.json").read_text())["registered"] == "drawn@1.0.0"


def test_a_registered_detector_answers_in_a_process_of_its_own(detected):
    "Its preprocessing is found by name, by one that imports nothing of the data."
    code = (f"from flame_vision.versioning import ModelRegistry\nmodel = ModelRegistry({str(detected / 'registry')!r}).load('drawn')\n"
            f"print(len(model.predict({str(detected / 'drawn' / 'test' / '2.png')!r}, score_threshold=0.001)[0]))")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0 and int(ran.stdout) > 5, ran.stderr[-1500:]


@pytest.mark.parametrize("words, says", [
    (["--data={boxes}"], "pictures and boxes, which are learned with --task detection"),
    (["--data={boxes}", "--task=segmentation"], "--task detection"),
    (["--data={masks}", "--task=detection"], "pictures and masks, which are learned with --task segmentation"),
    (["--data={plain}", "--task=detection"], "no COCO annotations"),
    (["--data={nowhere}", "--task=detection"], "nowhere"),
    (["--data={boxes}", "--task=detection", "--head=unet"], "this Segmenter has no losses"),
    (["--data={boxes}", "--task=detection", "--head=fcoss"], "did you mean 'fcos'"),
    (["--data={boxes}", "--task=detection", "--neck=fpnn"], "did you mean 'fpn'"),
    (["--data={boxes}", "--task=detection", "--loss=focal"], "gives their weights by name"),
    (["--data={boxes}", "--task=detection", "--loss.boxs=1"], "did you mean 'boxes'"),
    (["--data={boxes}", "--task=detection", "--loss.boxes=-1"], "0 or more"),
    (["--data={boxes}", "--task=detection", "--label_smoothing=0.1"], "nothing to smooth"),
    (["--data={boxes}", "--task=detection", "--class_names=[circle]"], "the first class is the background"),
    (["--data={boxes}", "--task=detection", "--image_size=0"], "got 0"),
    (["--data={broken}", "--task=detection"], "no area"),
])
def test_mistakes_are_one_line_and_write_nothing(words, says, detected, tmp_path, capsys):
    (tmp_path / "plain" / "a").mkdir(parents=True)
    for part in ("images", "masks"): (tmp_path / "masks" / part).mkdir(parents=True)
    broken = draw_coco(tmp_path / "broken", (("train", 2), ("val", 2)))
    file = broken / "annotations" / "instances_train2017.json"
    file.write_text(re.sub(r'"bbox": \[([\d.]+), ([\d.]+), [\d.]+,', r'"bbox": [\1, \2, 0,', file.read_text(), count=1))
    places = dict(boxes=detected / "drawn", broken=broken, plain=tmp_path / "plain", masks=tmp_path / "masks", nowhere=tmp_path / "nowhere")
    words = [word.format(**places) for word in words]
    capsys.readouterr()
    quick = [word for word in QUICK if not any(word.split("=")[0] == given.split("=")[0] for given in words)]
    code = main(["fit", *words, *quick, f"--registry={tmp_path / 'registry'}", f"--runs={tmp_path / 'runs'}"])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code != 0 and len(lines) == 1 and lines[0].startswith("flame-vision: error: ") and says in lines[0], lines
    assert sorted(os.listdir(tmp_path)) == ["broken", "masks", "plain"]


@pytest.mark.parametrize("words, says", [(["drawn", "--threshold=30"], "between 0 and 1, got 30"), (["drawn", "--top=0"], "at least 1")])
def test_predict_refuses_what_makes_no_sense(words, says, detected, capsys):
    assert main(["predict", *words, str(detected / "drawn" / "test" / "2.png"), f"--registry={detected / 'registry'}"]) == 2
    assert says in capsys.readouterr().err


def test_what_a_folder_is_for(tmp_path, detected):
    for inside, wanted in ((["a", "b"], ("classification",)), (["images", "masks"], ("segmentation",)), (["train/a", "val/a"], ("classification",)),
                           (["JPEGImages", "SegmentationClass"], ("segmentation",)), (["JPEGImages", "Annotations"], ("detection",)),
                           (["JPEGImages", "Annotations", "SegmentationClass"], ("segmentation", "detection")),
                           (["VOCdevkit"], ("segmentation", "detection"))):
        root = tmp_path / "-".join(inside).replace("/", "_")
        for folder in inside: (root / folder).mkdir(parents=True)
        assert tasks_of(root) == wanted, inside
    assert tasks_of(detected / "drawn") == ("detection",)
    (tmp_path / "robo" / "train").mkdir(parents=True)
    (tmp_path / "robo" / "train" / "_annotations.coco.json").write_text("{}")
    assert tasks_of(tmp_path / "robo") == ("detection",)
    data = folder_data("detection", str(detected / "drawn"), 400, 2, 0, "raise", 0, ["background", "square", "triangle", "circle"])
    words = folder_data("detection", str(detected / "drawn"), 400, 2, 0, "raise", 0, "background, square, triangle,circle")
    assert words.class_names == data.class_names == ("background", "square", "triangle", "circle") and data.config.arguments["max_size"] == 666
    assert described_model("detection", "resnet18", None, "fcos").arguments["neck"] == "fpn"
    assert "neck" not in described_model("detection", "resnet18", None, "detr").arguments


def batch_of(data, count=4, split="train"): return data.loader(split).collate_fn([data.datasets[split][i] for i in range(count)])


@pytest.mark.parametrize("head, weighted", [("fcos", "boxes"), ("retinanet", "boxes"), ("detr", "giou")])
def test_the_loss_is_the_weighted_sum_of_the_heads_without_crowds_in_float32(head, weighted):
    data = shapes()
    module = DetectionModule(detector(head=head), loss={weighted: 2.5}).eval()
    images, targets = batch_of(data)
    outputs = module.outputs_of(images, targets)
    parts = module.model.losses(outputs, targets)
    found = module.losses(outputs, targets)
    assert {f"loss_{name}" for name in parts} | {"loss"} == set(found)
    total = sum((2.5 if name == weighted else module.model.loss_weights[name]) * part for name, part in parts.items())
    torch.testing.assert_close(found["loss"], total, rtol=0, atol=1e-5 * total.item())
    crowd = {"boxes": torch.tensor([[0., 0, 60, 60]]), "labels": torch.tensor([1]), "iscrowd": torch.tensor([1]), "area": torch.tensor([3600.])}
    crowded = [{**t, **{k: torch.cat([crowd[k], t[k]]) for k in crowd}} for t in targets]
    assert torch.equal(module.losses(outputs, crowded)["loss"], found["loss"])
    with torch.autocast("cpu", torch.bfloat16): half = module.losses(outputs, targets)
    assert {v.dtype for v in half.values()} == {torch.float32} and torch.equal(half["loss"], found["loss"])
    alone = module.losses_of_each(outputs, targets)
    pair = module.losses({k: v[2:3] for k, v in outputs.items()}, targets[2:3])["loss"]
    assert alone.shape == (4,) and torch.equal(alone[2], pair)


@pytest.mark.parametrize("head", ["fcos", "retinanet", "detr"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_pictures_without_objects_train_every_parameter(precision, head):
    data, module = shapes(), DetectionModule(detector(head=head))
    images, targets = batch_of(data)
    bare = [{k: v[:0] if k in ("boxes", "labels", "iscrowd", "area") else v for k, v in t.items()} for t in targets]
    only_crowds = [{**t, "iscrowd": torch.ones_like(t["iscrowd"])} for t in targets]
    for empty in (bare, only_crowds):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"): outputs = module.outputs_of(images, empty)
        loss = module.measure(outputs, empty)
        loss.backward()
        assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


class Wide(Dataset):
    "Shapes in pictures of several sizes, some without objects, each with a number."
    class_names = Shapes(task="detection").class_names

    def __init__(self, count=9, empty=(), seed=0): self.shapes, self.empty = Shapes(count, 64, 2, seed=seed, task="detection"), empty
    def __len__(self): return len(self.shapes)

    def __getitem__(self, i):
        image, target = self.shapes[i]
        wide = torch.cat([image, image[:, :, :24 * (i % 3)]], 2).as_subclass(torch.Tensor)
        kept = slice(0, 0) if self.empty is True or i in self.empty else slice(None)
        return wide, {"boxes": target["boxes"].as_subclass(torch.Tensor)[kept], "labels": target["labels"][kept], "image_id": 7 * i + 3}


class Knows(nn.Module):
    "Answers what is true, moved by some share of each box, with random scores, the same for a picture in every batch; `shown` are the targets."
    num_classes, shown = 4, ()

    def __init__(self, blur=0.0):
        super().__init__()
        self.blur, self.layer = blur, nn.Linear(1, 4)

    def forward(self, x, sizes=None): return {"logits": self.layer(torch.ones(len(x), 1, 1)), "boxes": torch.zeros(len(x), 1, 4)}
    def losses(self, outputs, targets): return {"boxes": outputs["logits"].square().mean()}

    def postprocess(self, outputs, sizes=None, original_sizes=None, *_):
        found = []
        for t, size, original in zip(self.shown, sizes, original_sizes):
            sides = (t["boxes"][:, 2:] - t["boxes"][:, :2]).repeat(1, 2)
            noise = torch.Generator().manual_seed(int(t["image_id"]))
            moved = t["boxes"] + self.blur * sides * torch.randn(sides.shape, generator=noise)
            scores = torch.rand(len(moved), generator=noise) if self.blur else torch.ones(len(moved))
            found.append({"boxes": moved * (original / size).flip(0).repeat(2), "labels": t["labels"], "scores": scores})
        return found


class KnowsModule(DetectionModule):
    def outputs_of(self, images, targets):
        self.model.shown = targets
        return self(images)


def test_the_metric_is_in_the_pixels_of_the_original_pictures():
    "A model that answers what is true is perfect, by size too, whatever the pictures were resized to; areas are those of the originals."
    data = DetectionDataModule(Wide(), Wide(), image_size=32, max_size=40, batch_size=4, num_workers=0)
    found = Trainer(**QUIET).validate(KnowsModule(Knows()), data, verbose=False)[0]
    assert found["val/map"] == pytest.approx(1) and found["val/map_small"] == pytest.approx(1)
    image, target = data.datasets["val"][1]
    assert target["original_size"].tolist() == [64, 88] and target["size"].tolist() == list(image.shape[1:]) and image.shape[1] < 40
    areas = torch.cat([data.datasets["val"][i][1]["area"] for i in range(9)])
    assert (areas > 32**2).any() == ("val/map_medium" in found)


def test_what_is_measured_is_what_is_predicted_compared_with_the_annotations():
    pictures = Wide(9, (2, 5), seed=2)
    data = DetectionDataModule(Wide(), Wide(6, seed=1), pictures, image_size=32, max_size=56, batch_size=4, num_workers=0)
    module, trainer = KnowsModule(Knows(0.1), class_names=data.class_names), Trainer(**QUIET)
    measured = trainer.test(module, data, verbose=False)[0]
    metric = AveragePrecision(4)
    for found, (_, targets) in zip(trainer.predict(module, data.test_dataloader()), data.test_dataloader()):
        metric.update(found, [pictures[(int(t["image_id"]) - 3) // 7][1] for t in targets])
    assert 0.1 < measured["test/map"] < 0.9 and measured["test/map_50"] > measured["test/map"]
    np.testing.assert_allclose(metric.compute()["map"], measured["test/map"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.mean(list(module.class_scores.values())), measured["test/map"], rtol=0, atol=1e-6)
    assert set(module.figures()) == {"precision_recall", "mistakes"} and torch.cat(module.tested).shape == (9,)


@pytest.fixture
def here(tmp_path): return dict(runs=tmp_path / "runs", registry=tmp_path / "registry", accelerator="cpu", progress=False)


def test_data_without_any_object_is_trained_measured_and_registered(here):
    data = DetectionDataModule(Wide(4, True), Wide(4, True), class_names=Wide.class_names, image_size=64, batch_size=2, num_workers=0)
    with pytest.warns(UserWarning, match="no object to be found"):
        result = fit(data, detector(), epochs=1, **here, prove=False)
    assert "val/map" not in result.metrics and result.metrics["train/loss"] > 0
    assert result.picture.exists() and str(result.version) == "detector@1.0.0"


@pytest.mark.parametrize("precision", ["bf16-mixed", pytest.param("32-true", marks=pytest.mark.slow)])
def test_a_job_from_python_with_every_proof(precision, here):
    head, prove = ("retinanet", True) if precision == "32-true" else ("fcos", False)
    result = fit(shapes(), detector(head=head), epochs=1, precision=precision, **here, prove=prove)
    assert result.metrics["test/loss"] > 0 and result.module.headline == ("map", "mAP") and (precision == "bf16-mixed" or result.proved > 1000)
    assert result.version.output_shape["logits"][2] == 4


def test_a_model_of_another_kind_is_refused_before_anything_is_written(here, tmp_path):
    classifier, digits = create_model(SMALL, num_classes=4), DigitsDataModule(image_size=32)
    with pytest.raises(ConfigError, match=r"ResNet has no losses; heads for detection are .*fcos"): fit(shapes(), classifier, **here)
    with pytest.raises(ConfigError, match="build it with num_classes=4"): fit(shapes(), detector(num_classes=3), **here)
    with pytest.raises(ShapeError, match=r"for classification a model gives \[2, 10\]"): fit(digits, detector(num_classes=10), **here)

    class Odd(nn.Module):
        "Says that it is a detector."
        num_classes = 4
        def __init__(self): super().__init__(); self.layer = nn.Conv2d(3, 4, 1)
        def forward(self, x, sizes=None): return self.layer(x)
        def losses(self, outputs, targets): return {}
        def postprocess(self, outputs, *settings): return []
    with pytest.raises(ShapeError, match=r"for detection a model gives \[2, n, n\].*fcos"): fit(shapes(), Odd(), **here)
    for wrong in (dict(num_classes=1), dict(learning_rate=0), dict(class_names=["a"]), dict(score_threshold=2), dict(label_smoothing=0.1),
                  dict(loss={"boxes": "2"})):
        with pytest.raises(ConfigError): DetectionModule(detector(), **wrong)
    assert not os.listdir(tmp_path)


class ByHand(nn.Module):
    "A detector of one's own, as small as one can be."
    num_classes = 4

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 16, 16)

    def forward(self, x, sizes=None):
        found = self.layer(x).flatten(2).transpose(1, 2)
        return {"logits": found[..., :4], "boxes": found[..., 4:].exp().cumsum(-1) * 4}

    def losses(self, outputs, targets): return {"size": outputs["boxes"].mean()}

    def postprocess(self, outputs, sizes=None, original_sizes=None, score_threshold=None, nms_threshold=None, max_detections=None):
        return [{"boxes": b, "scores": s.sigmoid().amax(1), "labels": s[:, 1:].argmax(1) + 1} for b, s in zip(outputs["boxes"], outputs["logits"])]


@pytest.mark.parametrize("wrong, says", [
    (dict(forward=lambda self, x: ByHand.forward(self, x)), r"called as forward\(images, sizes\), and that of this Hand takes \(x\)"),
    (dict(postprocess=lambda self, outputs: []), r"called as postprocess\(outputs, sizes, original_sizes, score_threshold\), .* takes \(outputs\)"),
    (dict(losses=lambda self, outputs: {}), r"called as losses\(outputs, targets\)"),
    (dict(losses=lambda self, outputs, targets: outputs["boxes"].mean()), "losses by their names.* gives tensor"),
    (dict(losses=lambda self, outputs, targets: {}), "gives {}"), ({}, "")])
def test_a_detector_made_by_hand(wrong, says, here):
    model = type("Hand", (ByHand,), wrong)()
    if not wrong: assert fit(shapes(lengths=(8, 4, 4)), model, epochs=1, prove=False, **here).metrics["test/loss"] > 0
    else:
        with pytest.raises(ConfigError, match=says): fit(shapes(lengths=(8, 4, 4)), model, epochs=1, prove=False, **here)


@pytest.mark.parametrize("weights, says", [(dict(boxes=0, classification=0, centerness=0), "nothing would be learned"),
                                           (dict(boxes=float("inf")), "got inf")])
def test_weights_that_cannot_teach_are_refused(weights, says):
    with pytest.raises(ConfigError, match=says): DetectionModule(detector(), loss=weights)


def test_a_validation_without_objects_sets_no_threshold(here):
    "Its threshold of 0 would make a registered detector draw all that it has."
    data = DetectionDataModule(Wide(4), Wide(4, tuple(range(4))), class_names=Wide.class_names, image_size=64, batch_size=2, num_workers=0)
    with pytest.warns(UserWarning, match="pictures have no object") as told:
        result = fit(data, detector(), epochs=1, **here, prove=False)
    assert "val/threshold" not in result.metrics and result.module.threshold == 0.3
    assert sum("the val pictures" in str(w.message) for w in told) == 1     # two batches beforehand tell nothing
    old = type("Old", (nn.Module,), {"postprocess": None, "version": type("V", (), {"metrics": {"val/threshold": 0.0}}),
                                     "predict": lambda self, images, score_threshold: [score_threshold]})()
    assert said_of(old, ["p.png"]) == [0.5]


@pytest.mark.parametrize("shape", [(3, 1, 30), (1, 1, 30), (3, 30, 1), (1, 9, 9)])
def test_pictures_of_any_shape_are_shown(shape):
    picture, factor = view_of(torch.rand(shape), None, None, 90)
    assert picture.size == (round(shape[2] * factor), round(shape[1] * factor)) and max(picture.size) == 90


def test_norms_of_published_weights_keep_their_statistics():
    data = shapes()
    for given, provenance, frozen in ((None, None, False), (None, "published", True), (True, None, True), (False, "published", False)):
        model = detector()
        model.provenance = provenance
        module = DetectionModule(model, freeze_norms=given)
        before = model.backbone.stem.norm.running_mean.clone()
        Trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=1, **QUIET).fit(module, data)
        assert torch.equal(before, model.backbone.stem.norm.running_mean) == frozen and model.backbone.stem.norm.training != frozen


def test_the_hardest_pictures_are_found_and_drawn():
    data = DetectionDataModule(Wide(), Wide(7, (3,)), image_size=64, max_size=112, batch_size=3, num_workers=0)
    module = DetectionModule(detector(), class_names=data.class_names)
    found = top_losses(module, data, count=4)
    assert found.losses.shape == (7,) and found.losses.argmax() == found.indices[0]
    example, = examples_at(module, data, "val", [found.indices[0]])
    alone = module.losses_of_each(example.output, [example.target])
    assert example.loss == pytest.approx(alone.item(), abs=1e-5) and example.image.shape[1:] == tuple(example.target["size"].tolist())
    assert len(found.plot(columns=3).axes) == 12     # two rows of three, for what is true and for what was said
    module.threshold = 0.0
    assert len(module.draw(found.examples, *data.normalization).axes) == 8


def test_sizes_are_told_where_they_are_known():
    target = {"size": torch.tensor([3, 4])}
    assert sizes_of([target, target]).tolist() == [[3, 4]] * 2 and sizes_of([target, {}]) is None and sizes_of([]) is None


PART = """
import os, sys, torch
sys.path.insert(0, {tests!r})
from test_detection_jobs import *
torch.manual_seed(0)
data = DetectionDataModule(Wide(12, range(9)), Wide(7), Wide(7, (2,), seed=2), image_size=64, max_size=112, batch_size=2, num_workers=0)
kind, model = (DetectionModule, detector(head=sys.argv[2])) if "train" in sys.argv and sys.argv[2] != "knows" else (KnowsModule, Knows(0.1))
module = kind(model, class_names=data.class_names)
devices = int(sys.argv[1])
trainer = Trainer(**{{**QUIET, "devices": devices, "strategy": "ddp" if devices > 1 else "auto", "max_epochs": 1}})
if "train" in sys.argv: trainer.fit(module, data)
found = trainer.test(module, data, verbose=False)[0]
if trainer.is_global_zero: print("FOUND", json.dumps({{k: v for k, v in found.items() if "map" in k or "ap/" in k or "mar" in k}}), flush=True)
"""


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    "Seven pictures for two processes: the sampler repeats one of them, which counts once; also behind a training."
    script = tmp_path / "part.py"
    script.write_text(PART.format(tests=os.path.dirname(os.path.abspath(__file__))))
    found = []
    for words in (["1"], ["2"], ["2", "knows", "train"]):
        ran = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, timeout=300, cwd=tmp_path)
        line = next((line for line in ran.stdout.splitlines() if line.startswith("FOUND")), None)
        assert ran.returncode == 0 and line, ran.stderr[-3000:]
        found.append(json.loads(line.removeprefix("FOUND ")))
    assert 0.1 < found[0]["test/map"] < 0.9 and found[0].keys() == found[1].keys() == found[2].keys()
    for key, value in found[0].items(): assert [other[key] for other in found[1:]] == pytest.approx([value] * 2, abs=1e-6), key


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fcos", "retinanet"])
def test_two_processes_train_a_detector_where_one_sees_no_object(head, tmp_path):
    "Most of the pictures are empty, so that a process often has nothing to learn boxes from; gradients are there all the same, or it would hang."
    script = tmp_path / "part.py"
    script.write_text(PART.format(tests=os.path.dirname(os.path.abspath(__file__))))
    ran = subprocess.run([sys.executable, str(script), "2", head, "train"], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert ran.returncode == 0 and "FOUND" in ran.stdout, ran.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("head, least", [("fcos", 0.3), ("retinanet", 0.08)])
def test_a_short_training_finds_shapes(head, least):
    "What knows nothing finds nothing; RetinaNet's smallest anchors are larger than many of these shapes."
    from lightning.pytorch import seed_everything
    seed_everything(0, verbose=False)
    data = shapes(lengths=(384, 48, 64), batch_size=16)
    module = DetectionModule(detector(head=head, score_threshold=0.05), learning_rate=3e-3, class_names=data.class_names)
    trainer = Trainer(max_epochs=8, **QUIET)
    before = trainer.validate(module, data, verbose=False)[0]
    trainer.fit(module, data)
    after = trainer.test(module, data, verbose=False)[0]
    assert after["test/loss"] < 0.75 * before["val/loss"] and after["test/map_50"] > least > 4 * before["val/map_50"]


@pytest.mark.slow
def test_the_demo_learns_to_find_shapes(tmp_path, capsys):
    "The whole command; what is asked of it is 80 % within ten minutes on two cores."
    assert main(["demo", "--task=detection", f"--registry={tmp_path / 'registry'}", f"--runs={tmp_path / 'runs'}", "--no_progress"]) == 0
    said = capsys.readouterr().out
    assert float(re.search(r"test mAP@50 +([\d.]+)%", said)[1]) >= 80 and "equal bit for bit" in said
