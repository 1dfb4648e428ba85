"COCO's evaluation by its own code and by ours, on the same boxes; curves, mistakes, and several processes."
import contextlib
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_convert, box_iou

from flame_vision.core.errors import ConfigError, ShapeError
from flame_vision.training.average_precision import (
    MISTAKES,
    SUMMARY,
    AveragePrecision,
    best_threshold,
    box_mistakes,
    plot_precision_recall,
)


def drawn(count, seed, classes=5, things=8, answers=14, crowd=0.2, decimals=1, blur=0.12, unseen=0.2):
    "Targets, and predictions of which some are right, some moved, some repeated, some of another class; rounded scores are often equal."
    g, predictions, targets = np.random.default_rng(seed), [], []
    for number in range(count):
        n = 0 if g.uniform() < unseen else int(g.integers(1, things + 1))
        corner, side = g.uniform(0, 300, (n, 2)), np.exp(g.uniform(1.5, 5.2, (n, 2)))
        boxes, labels = np.hstack([corner, corner + side]), g.integers(1, classes, n)
        k = int(g.integers(0, answers + 1))
        again = g.integers(0, n, k) if n else np.zeros(0, int)
        moved = boxes[again] + g.normal(0, blur, (len(again), 4)) * np.hstack([side, side])[again]
        stray = g.uniform(0, 200, (k // 4, 2))
        moved = np.vstack([moved, np.hstack([stray, stray + g.uniform(2, 90, stray.shape)])])
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 0.5)
        said = np.concatenate([np.where(g.uniform(size=len(again)) < 0.8, labels[again], g.integers(1, classes, len(again))),
                               g.integers(1, classes, len(stray))])
        targets.append({"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels, dtype=torch.int64),
                        "iscrowd": torch.tensor(g.uniform(size=n) < crowd).long(), "image_id": torch.tensor(number),
                        "area": torch.tensor(side.prod(1) * g.uniform(0.3, 1, n)).float()})
        predictions.append({"boxes": torch.tensor(moved).float(), "labels": torch.tensor(said, dtype=torch.int64),
                            "scores": torch.tensor(g.uniform(0.05, 1, len(said)).round(decimals)).float()})
    return predictions, targets


def judged(predictions, targets):
    "COCO's twelve numbers, its precision and recall, and the classes that they are of, by pycocotools."
    coco, rows, answers = COCO(), [], []
    for i, (said, target) in enumerate(zip(predictions, targets)):
        for box, label, crowd, area in zip(box_convert(target["boxes"].double(), "xyxy", "xywh").tolist(), target["labels"].tolist(),
                                           target["iscrowd"].tolist(), target["area"].tolist()):
            rows.append(dict(id=len(rows) + 1, image_id=i, bbox=box, category_id=label, iscrowd=crowd, area=area))
        for box, score, label in zip(box_convert(said["boxes"].double(), "xyxy", "xywh").tolist(), said["scores"].tolist(), said["labels"].tolist()):
            answers.append(dict(image_id=i, bbox=box, category_id=label, score=score))
    kinds = sorted({row["category_id"] for row in rows + answers})
    coco.dataset = dict(info={}, images=[{"id": i} for i in range(len(targets))], annotations=rows, categories=[{"id": k} for k in kinds])
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(answers), "bbox")
        judge.evaluate(); judge.accumulate(); judge.summarize()
    return judge.stats, judge.eval["precision"], kinds


def measured(predictions, targets, num_classes, batch=7, **settings):
    metric = AveragePrecision(num_classes, **settings)
    for i in range(0, len(targets), batch): metric.update(predictions[i:i + batch], targets[i:i + batch])
    return metric.compute()


CASES = {"crowds and ties": {}, "no crowds": dict(crowd=0), "mostly crowds": dict(crowd=0.8), "one class": dict(classes=2),
         "all empty but some": dict(unseen=0.9), "scores of their own": dict(decimals=9), "exact boxes": dict(blur=0),
         "more than a hundred answers": dict(answers=260, count=12), "many classes": dict(classes=60), "no answers nearly": dict(answers=1)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(4))
def test_it_is_pycocotools(case, seed):
    asked = {"count": 40, **CASES[case]}
    predictions, targets = drawn(seed=seed, **asked)
    classes = asked.get("classes", 5)
    found = measured(predictions, targets, classes)
    stats, precision, kinds = judged(predictions, targets)
    ours = np.array([found[k].item() for k in SUMMARY])
    np.testing.assert_allclose(np.nan_to_num(ours, nan=-1), stats, rtol=0, atol=1e-6)
    theirs = np.where(precision > -1, precision, np.nan)[:, :, :, 0, 2]
    np.testing.assert_allclose(found["precision"][:, :, kinds], theirs, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["ap"][kinds], theirs.mean((0, 1)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["ap_50"][kinds], theirs[0].mean(0), rtol=0, atol=1e-6)
    others = sorted(set(range(classes)) - set(kinds))
    assert found["ap"][others].isnan().all() and found["ap"].shape == (classes,)


def test_the_thresholds_are_not_rounded():
    "torchmetrics' own are float32, which moves recalls such as 1/10 to the next step; a metric that takes them is not COCO's."
    from torchmetrics.detection import MeanAveragePrecision
    predictions, targets = drawn(60, 0)
    theirs = MeanAveragePrecision(backend="faster_coco_eval")
    theirs.update(predictions, targets)
    stats = judged(predictions, targets)[0]
    assert abs(theirs.compute()["map_50"].item() - stats[1]) > 5e-5
    assert abs(measured(predictions, targets, 5)["map_50"].item() - stats[1]) < 1e-6


def test_what_does_not_matter():
    predictions, targets = drawn(30, 3)
    whole = measured(predictions, targets, 5)
    for other in (measured(predictions, targets, 5, batch=1), measured(predictions, targets, 9)):
        for key in SUMMARY: torch.testing.assert_close(other[key], whole[key], rtol=0, atol=0, equal_nan=True)
    bare = [{k: t[k] for k in ("boxes", "labels")} for t in targets]
    full = [{**t, "iscrowd": torch.zeros_like(t["labels"]), "area": (t["boxes"][:, 2:] - t["boxes"][:, :2]).prod(1)} for t in targets]
    ours, theirs = measured(predictions, bare, 5), judged(predictions, full)[0]
    np.testing.assert_allclose([ours[k].item() for k in SUMMARY], theirs, rtol=0, atol=1e-6)


def test_nothing_to_find_and_nothing_said():
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    silent, thing = {**none, "scores": torch.zeros(0)}, {"boxes": torch.tensor([[1., 1, 9, 9]]), "labels": torch.tensor([1])}
    said = {**thing, "scores": torch.tensor([0.5])}
    assert measured([silent, said], [none, none], 3)["map"].isnan()
    with pytest.warns(UserWarning, match="before the ``update``"): assert AveragePrecision(3).compute()["map"].isnan()
    assert measured([silent], [thing], 3)["map"] == 0 and measured([silent], [thing], 3)["ap"][1] == 0
    perfect = measured([said, silent], [thing, none], 3, mistakes=True)
    assert perfect["map"] == 1 and perfect["ap"].isnan().tolist() == [True, False, True] and perfect["right"] == 1
    assert sum(measured([silent], [none], 3, mistakes=True)["mistakes"].values()) == 0
    metric = AveragePrecision(3)
    metric.update([said], [thing]); metric.reset(); metric.update([said], [none])
    assert metric.compute()["map"].isnan()


def test_what_does_not_fit_is_refused():
    thing = {"boxes": torch.tensor([[1., 1, 9, 9]]), "labels": torch.tensor([1])}
    with pytest.raises(ConfigError, match="at least one class"): AveragePrecision(1)
    with pytest.raises(ShapeError, match="0 pictures for 1 targets"): AveragePrecision(3).update([], [thing])
    with pytest.raises(ShapeError, match=r"differ in number: \[1, 2, 1\]"): AveragePrecision(3).update([{**thing, "scores": torch.ones(2)}], [thing])
    for label in (3, -1):
        strange, said = {**thing, "labels": torch.tensor([label])}, {**thing, "scores": torch.ones(1)}
        with pytest.raises(ConfigError, match=f"an object has the label {label}; there are 3 classes"): AveragePrecision(3).update([said], [strange])
        with pytest.raises(ConfigError, match=f"a detection has the label {label}"): AveragePrecision(3).update([{**said, **strange}], [thing])
    with pytest.raises(ConfigError, match="one of 0.5"): plot_precision_recall(torch.ones(10, 101, 3), overlap=0.97)


def test_curves_show_the_worst_classes():
    figure = plot_precision_recall(torch.linspace(0, 1, 30).expand(10, 101, 30), [f"class {i}" for i in range(30)], most=4)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [label.rsplit(" ", 1)[0] for label in labels] == [f"class {i}" for i in range(4)]
    assert "the worst 4 of 30 classes" in figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize("seed", range(5))
def test_mistakes_add_up(seed):
    "Every answer that is believed is right, one kind of wrong, or in a crowd; what is right at half an overlap is what pycocotools calls so."
    predictions, targets = drawn(40, seed, crowd=0, decimals=9)
    found = measured(predictions, targets, 5, mistakes=True)
    believed = sum(int((p["scores"] >= found["threshold"]).sum()) for p in predictions)
    wrong = {k: v for k, v in found["mistakes"].items() if k != "missed"}
    assert set(found["mistakes"]) == set(MISTAKES) and found["right"] + sum(wrong.values()) == believed
    sure = [{k: v[p["scores"] >= found["threshold"]] for k, v in p.items()} for p in predictions]
    with contextlib.redirect_stdout(io.StringIO()): stats, precision, kinds = judged(sure, targets)
    right = 0
    for said, target in zip(sure, targets):
        for kind in kinds:
            boxes, scores = said["boxes"][said["labels"] == kind], said["scores"][said["labels"] == kind]
            things = target["boxes"][target["labels"] == kind]
            overlaps, free = box_iou(boxes, things), set(range(len(things)))
            for i in scores.argsort(descending=True):
                best = max(free, key=lambda j: overlaps[i, j], default=None)
                if best is not None and overlaps[i, best] >= 0.5: free.remove(best); right += 1
    assert found["right"] == right


def test_each_kind_of_mistake():
    thing = torch.tensor([[10., 10, 50, 50, 1, 0, 1600]])
    def kind(*answers): return {k: v for k, v in box_mistakes([torch.tensor(answers).float().reshape(-1, 6)], [thing])["mistakes"].items() if v}
    right = (10, 10, 50, 50, 0.9, 1)
    assert kind(right) == {} and kind() == {"missed": 1}
    assert kind(right, (11, 10, 50, 50, 0.9, 1)) == {"twice": 1}
    assert kind((10, 10, 50, 50, 0.9, 2)) == {"wrong class": 1}
    assert kind((30, 10, 70, 50, 0.9, 1)) == {"wrong place": 1}
    assert kind((30, 10, 70, 50, 0.9, 2)) == {"both": 1, "missed": 1}
    assert kind((60, 60, 80, 80, 0.9, 1)) == {"nothing there": 1, "missed": 1}
    crowd = torch.tensor([[10., 10, 50, 50, 1, 1, 1600]])
    inside = torch.tensor([[12., 12, 20, 20, 0.9, 1], [30, 30, 44, 44, 0.8, 1]])
    assert not any(box_mistakes([inside], [crowd])["mistakes"].values())


def f1(threshold, scores, right, things=25): return 2 * int(right[scores >= threshold].sum()) / (int((scores >= threshold).sum()) + things)


def test_the_threshold_is_where_f1_is_best():
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        scores = torch.rand(30, generator=g).mul(10).round() / 10
        right = torch.rand(30, generator=g) < scores
        assert f1(best_threshold(scores, right, 25), scores, right) == max(f1(t, scores, right) for t in scores.tolist())
    assert best_threshold(torch.zeros(0), torch.zeros(0, dtype=torch.bool), 3) == 0


PART = """
import os, sys, torch, torch.distributed as dist
sys.path.insert(0, {tests!r})
from test_average_precision import drawn, measured, SUMMARY, AveragePrecision
rank = int(os.environ["RANK"])
dist.init_process_group("gloo")
predictions, targets = drawn(31, 5)
one = measured(predictions, targets, 5, mistakes=True)
mine = [*range(rank, 31, 2), *([0] if rank else [])]      # as a DistributedSampler has it: the second process sees the first image again
if {uneven}: mine = [i for i in range(31) if (i < 24) == (rank == 0)]
metric = AveragePrecision(5, mistakes=True)
for i in range(0, len(mine), 4): metric.update([predictions[j] for j in mine[i:i + 4]], [targets[j] for j in mine[i:i + 4]])
found = metric.compute()
for key in SUMMARY: torch.testing.assert_close(found[key], one[key], rtol=0, atol=1e-6, equal_nan=True)
torch.testing.assert_close(found["precision"], one["precision"], rtol=0, atol=1e-6, equal_nan=True)
assert (found["mistakes"], found["right"]) == (one["mistakes"], one["right"])
assert len(metric.tables()[0]) == len(mine)               # unsynced again
print("equal", flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("uneven", [False, True])
def test_two_processes_count_as_one(uneven, tmp_path):
    "Also where one has more pictures than the other, and where a sampler repeats one. Equal scores come in the order of the pictures' numbers."
    script = tmp_path / "part.py"
    script.write_text(PART.format(tests=os.path.dirname(os.path.abspath(__file__)), uneven=uneven))
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29700 + os.getpid() % 200 + uneven), "WORLD_SIZE": "2"}
    parts = [subprocess.Popen([sys.executable, str(script)], env={**shared, "RANK": str(rank)}, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True) for rank in range(2)]
    for part in parts:
        said, _ = part.communicate(timeout=240)
        assert part.returncode == 0 and "equal" in said, said[-3000:]


@pytest.mark.slow
def test_it_needs_no_pycocotools():
    "The package that users install does not bring it."
    code = """
import sys, importlib.metadata
class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "pycocotools": raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import torch
from flame_vision.training.average_precision import AveragePrecision
metric, thing = AveragePrecision(2), {"boxes": torch.tensor([[1., 1, 9, 9]]), "labels": torch.tensor([1])}
metric.update([{**thing, "scores": torch.ones(1)}], [thing])
assert metric.compute()["map"] == 1 and "pycocotools" not in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
