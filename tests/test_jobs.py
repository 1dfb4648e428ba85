"Whole jobs of every task: a folder or a data module in, a registered model, pictures and a record out."
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from wandb_record import read_records

from flame_vision.cli import main
from flame_vision.core import ConfigError, ShapeError, UnknownNameError
from flame_vision.data import DigitsDataModule, SegmentationDataModule, Shapes, ShapesDataModule
from flame_vision.data.datamodules import ImageDataModule
from flame_vision.models import create_model
from flame_vision.training import ClassificationModule, SegmentationModule, fit, list_tasks, top_losses
from flame_vision.training.hardest import examples_at, losses_of
from flame_vision.versioning import ModelRegistry, load_checkpoint

QUICK = ["--backbone=mobilenetv3_small_050", "--head=unet", "--image_size=40", "--epochs=3", "--batch_size=4", "--workers=0", "--accelerator=cpu",
         "--no_progress", "--learning_rate=2e-3"]


def draw_marked(root, count=24, size=(40, 48)):
    "Pictures with a bright stripe, and masks of it."
    rng = np.random.default_rng(0)
    for part in ("images", "masks"): (root / part).mkdir(parents=True)
    for i in range(count):
        mask = np.zeros(size, np.uint8)
        mask[:, i:i + 12] = 1
        Image.fromarray((mask * 120 + rng.integers(0, 90, mask.shape)).astype(np.uint8)).save(root / "images" / f"{i:02}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i:02}.png")
    (root / "classes.txt").write_text("ground\nstripe\n")
    return root


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    "The job of segmentation, run once from the command line."
    root = tmp_path_factory.mktemp("segmented")
    folder = draw_marked(root / "marked")
    words = ["fit", "--task=segmentation", f"--data={folder}", f"--registry={root / 'registry'}", f"--runs={root / 'runs'}", *QUICK,
             "--loss.cross_entropy=1", "--loss.dice=0.5"]
    assert main(words) == 0
    return root


def test_a_folder_of_masks_becomes_a_registered_segmenter_that_paints(segmented, capsys, tmp_path):
    version = ModelRegistry(segmented / "registry").get("marked")
    assert version.manifest.class_names == ["ground", "stripe"]
    assert {"val/miou", "test/miou", "val/iou/stripe", "test/iou/stripe", "test/dice/ground", "test/loss_dice"} <= set(version.metrics)
    model = ModelRegistry(segmented / "registry").load("marked")
    assert type(model).__name__ == "Segmenter" and model.head.num_classes == 2
    picture = Image.open(segmented / "marked" / "images" / "07.png")
    answer, = model.predict(picture)
    assert answer.labels.shape == (40, 48) and list(answer.names) == ["ground", "stripe"]
    capsys.readouterr()
    words = ["predict", "marked", str(segmented / "marked" / "images" / "07.png"), f"--registry={segmented / 'registry'}"]
    assert main([*words, f"--out={tmp_path}", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)[0]
    shares = {c["name"]: c["share"] for c in said["classes"]}
    assert shares == {name: pytest.approx(share, abs=1e-6) for name, share in answer.shares().items()}
    with Image.open(said["painted"]) as painted: assert painted.size == (48, 40)


def test_the_best_epoch_is_that_of_the_best_mean_iou(segmented):
    run = next((segmented / "runs").iterdir())
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("val/miou")
    reached = [float(row[column]) for row in rows[1:] if row[column]]
    assert len(reached) == 3
    assert ModelRegistry(segmented / "registry").get("marked").metrics["val/miou"] == pytest.approx(max(reached), abs=1e-5)
    model = ModelRegistry(segmented / "registry").load("marked")
    _, _, epoch = load_checkpoint(path=run / "best.pt", model=model)
    assert epoch == int(np.argmax(reached))


def test_metrics_of_training_are_those_of_the_same_epoch(segmented):
    "A callback that asked too early would keep those of the epoch before."
    run = next((segmented / "runs").iterdir())
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    epoch, ious = rows[0].index("epoch"), rows[0].index("train/miou")
    by_epoch = {int(row[epoch]): float(row[ious]) for row in rows[1:] if row[ious]}
    model = create_model(backbone="mobilenetv3_small_050", head="unet", num_classes=2)
    best = load_checkpoint(path=run / "best.pt", model=model)
    kept = ModelRegistry(segmented / "registry").get("marked").metrics["train/miou"]
    assert sorted(by_epoch) == [0, 1, 2] and kept == pytest.approx(by_epoch[best[2]], abs=1e-5)


def test_the_run_holds_pictures_of_every_epoch(segmented):
    run = next((segmented / "runs").iterdir())
    assert sorted(os.listdir(run / "pictures")) == ["epoch_000.png", "epoch_001.png", "epoch_002.png"]
    with Image.open(run / "pictures" / "epoch_002.png") as drawn: assert drawn.width > 100
    with Image.open(run / "results.png") as drawn: assert drawn.height > 300
    history, config, pictures = set(), {}, list((run / "wandb").rglob("*.png"))
    for record in read_records(next(run.glob("wandb/offline-run-*/*.wandb"))):
        for item in [*record.run.config.update, *record.config.update]: config[item.key or item.nested_key[0]] = json.loads(item.value_json)
        history |= {item.key or item.nested_key[0] for item in record.history.item}
    assert {"val/predictions", "test/predictions", "test/confusion", "val/miou", "train/loss_dice"} <= history
    assert len(pictures) == 5 and config["loss"] == {"cross_entropy": 1, "dice": 0.5} and config["ignore_index"] == 255


@pytest.mark.parametrize("words, says", [
    (["--data={marked}"], "--task segmentation"),
    (["--task=segmentation", "--data={marked}", "--head=classifier"], "it may lack a head, or have that of another task"),
    (["--task=segmentation", "--data={marked}", "--head=unett"], "did you mean 'unet'"),
    (["--task=segmentation", "--data={marked}", "--neck=fpnn"], "did you mean 'fpn'"),
    (["--task=segmentation", "--data={marked}", "--loss=dise"], "did you mean 'dice'"),
    (["--task=segmentation", "--data={marked}", "--loss.dise=1"], "did you mean 'dice'"),
    (["--task=segmentation", "--data={marked}", "--loss=dice", "--label_smoothing=0.1"], "cross entropy"),
    (["--task=segmentation", "--data={marked}", "--class_names=[a]"], "class"),
    (["--task=segmentation", "--data={nowhere}"], "nowhere"),
    (["--task=detektion", "--data={marked}"], "choose one of classification, segmentation"),
    (["--task=classification", "--data={plain}", "--class_names=[a,b]"], "--class_names is for masks and boxes"),
])
def test_mistakes_are_one_line_and_write_nothing(words, says, segmented, tmp_path, capsys):
    (tmp_path / "plain" / "a").mkdir(parents=True)
    words = [w.format(marked=segmented / "marked", plain=tmp_path / "plain", nowhere=tmp_path / "nowhere") for w in words]
    capsys.readouterr()
    quick = [w for w in QUICK if not any(w.split("=")[0] == given.split("=")[0] for given in words)]
    code = main(["fit", *words, *quick, f"--registry={tmp_path / 'registry'}", f"--runs={tmp_path / 'runs'}"])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code != 0 and len(lines) == 1 and lines[0].startswith("flame-vision: error: ") and says in lines[0], lines
    assert os.listdir(tmp_path) == ["plain"]


class Several(Dataset):
    "Digits in pairs side by side: an image is of two classes, or of one."
    transform = None

    def __init__(self, data): self.data = data
    def __len__(self): return len(self.data) - 1

    def __getitem__(self, i):
        pair = [(self.transform or torch.as_tensor)(self.data.images[j]) for j in (i, i + 1)]
        target = torch.zeros(10)
        target[[int(self.data.targets[j]) for j in (i, i + 1)]] = 1
        return torch.cat(pair, -1), target


class SeveralDataModule(DigitsDataModule):
    def use_transforms(self, train, evaluate):
        self.datasets = {split: Several(data) for split, data in self.datasets.items()}
        super().use_transforms(train, evaluate)
        self.train_shape = self.input_shape = [3, self.train_shape[1], 2 * self.train_shape[2]]


def test_a_model_of_several_labels_goes_all_the_way(tmp_path):
    data = SeveralDataModule(image_size=8, train_transforms=None)
    small = {"name": "resnet", "arguments": {"block_type": "basic", "layers": [1, 1, 1, 1]}}
    model = {"name": "custom", "arguments": {"backbone": small, "head": {"name": "classifier", "arguments": {"multi_label": True}}}}
    result = fit(data, model, "several", epochs=1, runs=tmp_path / "runs", registry=tmp_path / "registry", accelerator="cpu", progress=False)
    assert result.module.headline == ("map", "mean average precision") and 0 < result.metrics["test/map"] <= 1
    assert result.picture.exists() and result.proved == 64 * 10


def worst_by_hand(module, data, split):
    "The loss of each picture of a split, one by one, with PyTorch's own functions."
    found = []
    for i in range(len(data.datasets[split])):
        chosen = data.datasets[split]
        before, chosen.transform = chosen.transform, data.eval_transforms
        image, target = chosen[i]
        chosen.transform = before
        with torch.no_grad(): scores = module.model(image[None])
        found.append(F.cross_entropy(scores, torch.as_tensor(target)[None], ignore_index=255))
    return torch.stack(found)


@pytest.mark.parametrize("split", ["train", "val"])
def test_top_losses_of_a_classifier_are_pytorchs(split):
    data = DigitsDataModule(image_size=8, in_channels=1, fractions=(0.1, 0.1, 0.8), batch_size=50)
    torch.manual_seed(0)
    module = ClassificationModule(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 10, label_smoothing=0.0).train()
    by_hand = worst_by_hand(module, data, split)
    found = top_losses(module, data, split, count=5)
    torch.testing.assert_close(found.losses, by_hand, rtol=0, atol=1e-5 * by_hand.max().item())
    assert found.indices == by_hand.argsort(descending=True)[:5].tolist() and module.training
    assert [e.loss for e in found.examples] == pytest.approx(by_hand[found.indices].tolist(), abs=1e-5)


class Uneven(Dataset):
    "Shapes of several sizes, with a border that does not count."
    class_names = Shapes().class_names

    def __len__(self): return 9

    def __getitem__(self, i):
        image, mask = Shapes(9, 32)[i]
        mask[:, :3] = 255
        return image[:, :, :32 - 4 * (i % 3)], mask[:, :32 - 4 * (i % 3)]


class Pointwise(nn.Module):
    "A segmenter without neighbours, so that a batch's padding cannot matter."
    num_classes = 4

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, x): return self.layers(x)


def test_top_losses_of_a_segmenter_are_pytorchs_whatever_the_sizes():
    data = SegmentationDataModule(Uneven(), Uneven(), image_size=32, batch_size=4, num_workers=0)
    torch.manual_seed(0)
    module = SegmentationModule(Pointwise())
    by_hand = worst_by_hand(module, data, "val")
    found = top_losses(module, data, count=4)
    torch.testing.assert_close(found.losses, by_hand, rtol=0, atol=1e-5 * by_hand.max().item())
    assert found.indices == by_hand.argsort(descending=True)[:4].tolist()
    assert found.plot().axes and losses_of(module.model, data).tolist() == pytest.approx(found.losses.tolist(), abs=1e-6)
    assert [tuple(e.output.shape[1:]) for e in found.examples] == [(4, *e.target.shape) for e in found.examples]


def test_a_loss_that_is_no_number_comes_first():
    data = DigitsDataModule(image_size=8, in_channels=1, fractions=(0.8, 0.1, 0.1))

    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.worst = nn.Linear(64, 10), data.datasets["val"][7][0]

        def forward(self, x): return self.fc(x.flatten(1)) + torch.where((x == self.worst).flatten(1).all(1), torch.nan, 0.0)[:, None]
    found = top_losses(ClassificationModule(Broken(), 10), data, count=3)
    assert found.indices[0] == 7 and torch.isnan(found.losses).sum() == 1


@pytest.mark.parametrize("wrong, error", [(dict(split="valid"), ConfigError), (dict(count=0), ConfigError)])
def test_top_losses_refuse(wrong, error):
    data = DigitsDataModule(image_size=8, in_channels=1)
    with pytest.raises(error): top_losses(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data, **wrong)


def test_a_model_of_another_task_is_refused_before_anything_is_written(tmp_path):
    here = dict(runs=tmp_path / "runs", registry=tmp_path / "registry", accelerator="cpu", progress=False)
    shapes = ShapesDataModule(image_size=32, lengths=(8, 4, 4))
    with pytest.raises(ShapeError, match="for segmentation a model gives.*deeplabv3plus"): fit(shapes, "resnet18", **here)
    with pytest.raises(ConfigError, match="num_classes=4"): fit(shapes, create_model(backbone="resnet18", head="fcn", num_classes=3), **here)
    fcn = create_model(backbone="resnet18", head="fcn", num_classes=10)
    with pytest.raises(ShapeError, match="for classification"): fit(DigitsDataModule(), fcn, **here)

    class Odd(ImageDataModule):
        task = "poetry"
    odd = DigitsDataModule(image_size=8)
    odd.__class__ = type("OddDigits", (DigitsDataModule,), {"task": Odd.task})
    with pytest.raises(UnknownNameError, match="poetry"): fit(odd, "resnet18", **here)
    assert not os.listdir(tmp_path) and list_tasks() == ["classification", "detection", "segmentation"]


def test_examples_are_what_evaluation_sees():
    data = ShapesDataModule(image_size=32, lengths=(8, 4, 4))
    model = create_model(backbone="mobilenetv3_small_050", head="fcn", num_classes=4)
    example, = examples_at(model, data, "train", [3])
    image, mask = Shapes(8, 32, seed=0, max_shapes=4)[3]
    torch.testing.assert_close(example.image, data.eval_transforms(image).as_subclass(torch.Tensor), rtol=0, atol=0)
    assert torch.equal(example.target, mask.as_subclass(torch.Tensor)) and example.output.shape == (1, 4, 32, 32)


def test_several_labels_and_a_head_of_one_are_refused_before_anything_is_written(tmp_path):
    data = DigitsDataModule(image_size=8)
    data.multi_label = True
    with pytest.raises(ConfigError, match="the data have a target for every class"):
        fit(data, "resnet18", runs=tmp_path / "runs", registry=tmp_path / "registry", accelerator="cpu", progress=False)
    assert not os.listdir(tmp_path)


SMALL = {"name": "resnet", "arguments": {"block_type": "basic", "layers": [1, 1, 1, 1]}}


@pytest.fixture
def here(tmp_path):
    return dict(epochs=1, runs=tmp_path / "runs", registry=tmp_path / "registry", accelerator="cpu", progress=False, prove=False)


def shapes(**arguments): return ShapesDataModule(**{"image_size": 32, "batch_size": 4, "lengths": (12, 4, 4), **arguments})


def segmenter(**arguments): return create_model(backbone=SMALL, head={"name": "fcn", "arguments": {"hidden_channels": 8}}, num_classes=4, **arguments)


def test_a_model_that_comes_in_evaluation_mode_is_trained(here):
    model = segmenter(auxiliary={"name": "fcn", "arguments": {"hidden_channels": 8}}).eval()
    before = model.backbone.stem.norm.running_mean.clone()
    result = fit(shapes(), model, **here)
    assert not torch.equal(result.model.backbone.stem.norm.running_mean, before) and "train/loss_aux" in result.metrics


def test_a_norm_that_was_set_to_evaluation_stays_so(here):
    model = segmenter().train()
    frozen = model.backbone.stem.norm.eval()
    before = frozen.running_mean.clone()
    result = fit(shapes(), model, **here)
    assert torch.equal(result.model.backbone.stem.norm.running_mean, before)


@pytest.mark.parametrize("options", [dict(limit_val_batches=0), dict(check_val_every_n_epoch=5)])
def test_without_validation_the_last_weights_are_kept(options, here, tmp_path):
    result = fit(shapes(), segmenter(), **{**here, "epochs": 3}, **options)
    *_, epoch = load_checkpoint(path=next((tmp_path / "runs").glob("*/best.pt")), model=segmenter())
    assert epoch == 2 and not any(k.startswith("val/") for k in result.metrics) and "test/miou" in result.metrics


def test_a_job_without_a_test_is_registered_all_the_same(here):
    result = fit(shapes(), segmenter(), **here, limit_test_batches=0)
    assert result.picture is None and str(result.version) == "segmenter@1.0.0" and not any(k.startswith("test/") for k in result.metrics)


def test_callbacks_as_lightning_takes_them(here, tmp_path):
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
    kept = ModelCheckpoint(tmp_path / "own")
    for callbacks in (None, kept, [LearningRateMonitor()]): fit(shapes(), segmenter(), **here, callbacks=callbacks)
    assert list((tmp_path / "own").glob("*.ckpt"))


def test_pictures_of_masks_whose_border_has_any_number(here, tmp_path):
    class Marked(Shapes):
        def __getitem__(self, i):
            image, mask = super().__getitem__(i)
            mask[:4] = 254
            return image, mask
    data = SegmentationDataModule(*(Marked(8, 32, seed=i) for i in range(2)), image_size=32, batch_size=4, ignore_index=254, num_workers=0)
    result = fit(data, segmenter(), **here)
    assert list((result.run_dir / "pictures").iterdir()) and result.picture.exists()


def test_a_class_called_as_a_step_is_measured_too(here):
    class Named(Shapes):
        class_names = ("ground", "foot_step", "last_epoch", "triangle")
    data = SegmentationDataModule(*(Named(8, 32, seed=i) for i in range(2)), Named(12, 32, seed=2), image_size=32, batch_size=4, num_workers=0)
    result = fit(data, segmenter(), **here)
    assert {"test/iou/foot_step", "test/iou/last_epoch", "train/loss"} <= set(result.metrics) and "train/loss_step" not in result.metrics


class Torchvisions(nn.Module):
    "A segmenter of torchvision's kind: a dict also in evaluation."
    num_classes = 4

    def __init__(self):
        super().__init__()
        self.inner = segmenter()

    def forward(self, x): return {"out": self.inner(x)}


def test_a_model_that_gives_a_dict_is_trained_and_drawn(here):
    result = fit(shapes(), Torchvisions(), **here)
    assert result.picture.exists() and "test/miou" in result.metrics


@pytest.mark.parametrize("wrong, says", [
    (dict(precision="bf16-true"), "bf16-mixed"), (dict(loss=nn.CrossEntropyLoss()), "ignore_index=255"),
    (dict(loss={}), "a sum of losses is a mapping"), (dict(loss={"cross_entropy": 0}), "a weight above 0"), (dict(callbacks=3), "Trainer refuses")])
def test_what_cannot_train_is_refused_before_anything_is_written(wrong, says, here, tmp_path):
    with pytest.raises(ConfigError, match=says): fit(shapes(), segmenter(), **here, **wrong)
    assert not os.listdir(tmp_path)


def test_pictures_say_what_they_need(tmp_path):
    from lightning.pytorch import Trainer

    from flame_vision.training import Pictures
    quiet = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    data = shapes()
    with pytest.raises(ConfigError, match="datamodule="):
        trainer = Trainer(max_epochs=1, callbacks=[Pictures(tmp_path)], **quiet)
        trainer.fit(SegmentationModule(segmenter()), data.train_dataloader(), data.val_dataloader())
    with pytest.raises(ConfigError, match="at least 1"): Pictures(tmp_path, count=0)
