"The segmentation module against numpy and torchmetrics, and a training that learns."
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassJaccardIndex

from flame_vision.core.errors import ConfigError, ShapeError, UnknownNameError
from flame_vision.data import SegmentationDataModule, Shapes
from flame_vision.training import SegmentationModule
from flame_vision.training.segmentation import segmentation_scores

QUIET = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)


def numpy_iou(said, true, classes):
    "IoU of each class over all pixels that count; NaN for a class that is nowhere."
    counted = true != 255
    said, true, found = said[counted], true[counted], []
    for c in range(classes):
        union = ((said == c) | (true == c)).sum()
        found.append(((said == c) & (true == c)).sum() / union if union else np.nan)
    return np.array(found)


class Answers(nn.Module):
    "Gives back the scores that it is shown."
    def forward(self, x): return x


class Heads(nn.Module):
    "Two heads in training, one afterwards."
    def __init__(self):
        super().__init__()
        self.out, self.aux = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x): return {"out": self.out(x), "aux": self.aux(x)} if self.training else self.out(x)


@pytest.mark.parametrize("absent", [(), (4,), (2, 4)])
def test_mean_iou_is_numpys(absent):
    "Class 4 neither predicted nor true does not count; one that is only predicted counts as 0; 255 is left out; batches of different sizes."
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for n, h, w in ((3, 9, 7), (1, 5, 5), (2, 4, 11)):
        scores, masks = torch.randn(n, 5, h, w, generator=generator), torch.randint(5, (n, h, w), generator=generator)
        for c in absent:
            masks[masks == c] = 0
            if c == 4: scores[:, c] = -9.0
        masks[torch.rand(masks.shape, generator=generator) < 0.2] = 255
        pairs.append((scores, masks))
    module = SegmentationModule(Answers(), num_classes=5, class_names="abcde")
    measured = Trainer(**QUIET).test(module, DataLoader(pairs, batch_size=None), verbose=False)[0]
    said, true = (np.concatenate([x.numpy().ravel() for x in part]) for part in ([s.argmax(1) for s, _ in pairs], [m for _, m in pairs]))
    wanted = numpy_iou(said, true, 5)
    assert np.isnan(wanted).sum() == (4 in absent) and (2 not in absent or wanted[2] == 0)
    np.testing.assert_allclose(measured["test/miou"], np.nanmean(wanted), rtol=0, atol=1e-6)
    np.testing.assert_allclose(list(module.class_scores.values()), wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(measured["test/accuracy"], (said == true)[true != 255].mean(), rtol=0, atol=1e-6)
    theirs = MulticlassJaccardIndex(5, ignore_index=255)(torch.from_numpy(said), torch.from_numpy(true))
    np.testing.assert_allclose(measured["test/miou"], theirs, rtol=0, atol=1e-6)
    dice = 2 * wanted / (1 + wanted)
    np.testing.assert_allclose(measured["test/mdice"], np.nanmean(dice), rtol=0, atol=1e-6)
    assert ("test/iou/e" in measured) == (4 not in absent) and module.confusion.compute().sum() == (true != 255).sum()


def test_counts_of_a_large_data_set_are_exact():
    counts = torch.tensor([[2**26 + 1, 0], [1, 2**26 - 1]])
    assert segmentation_scores(counts)["iou"][0].item() == (2**26 + 1) / (2**26 + 2)


def test_an_epoch_begins_anew():
    scores, right, wrong = F.one_hot(torch.zeros(2, 4, 4, dtype=torch.int64), 3).movedim(-1, 1).float(), *(torch.full((2, 4, 4), c) for c in (0, 1))
    module, trainer = SegmentationModule(Answers(), num_classes=3), Trainer(**QUIET)
    def accuracy(masks): return trainer.validate(module, DataLoader([(scores, masks)], batch_size=None), verbose=False)[0]["val/accuracy"]
    assert [accuracy(masks) for masks in (wrong, right, wrong)] == [0, 1, 0]


def test_the_loss_and_the_second_head():
    images, masks = torch.randn(2, 3, 8, 8), torch.randint(4, (2, 8, 8))
    masks[:, :2] = 255
    module = SegmentationModule(Heads(), num_classes=4)
    out, aux = (F.cross_entropy(head(images), masks, ignore_index=255) for head in (module.model.out, module.model.aux))
    torch.testing.assert_close(module.measure(module(images), masks), out + 0.5 * aux, rtol=0, atol=1e-6)
    module.measure(module(images), masks).backward()
    assert all(p.grad.abs().max() > 0 for p in module.parameters())
    torch.testing.assert_close(module.eval().measure(module(images), masks), out, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", [
    "cross_entropy", "focal", "dice", {"cross_entropy": 1.0, "dice": 0.5}, {"name": "focal", "arguments": {"gamma": 1.0}}])
def test_losses_by_name_ignore_what_does_not_count_and_are_fp32(loss):
    scores, masks = torch.randn(2, 4, 6, 6), torch.randint(4, (2, 6, 6))
    masks[0, :3] = 7
    module = SegmentationModule(Answers(), num_classes=4, loss=loss, ignore_index=7)
    other = scores.clone()
    other[0, :, :3] += 5.0
    exact = module.measure(scores, masks)
    torch.testing.assert_close(module.measure(other, masks), exact, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16): found = module.measure(scores, masks)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0, atol=0)
    half = scores.bfloat16()
    torch.testing.assert_close(module.measure(half, masks), module.measure(half.float(), masks), rtol=0, atol=0)


def test_a_loss_of_ones_own():
    class Constant(nn.Module):
        def forward(self, scores, masks): return scores.mean() * 0 + 3.0
    module = SegmentationModule(Answers(), num_classes=4, loss=Constant())
    assert module.measure(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)) == 3 and "loss" not in module.hparams


def test_what_cannot_train_is_refused():
    for wrong in (dict(num_classes=1), dict(learning_rate=0.0), dict(auxiliary_weight=-1.0), dict(class_names=["sky"]), dict(warmup=2.0),
                  dict(loss="binary_cross_entropy")):
        with pytest.raises(ConfigError): SegmentationModule(Heads(), **{"num_classes": 4, **wrong})
    with pytest.raises(UnknownNameError): SegmentationModule(Heads(), num_classes=4, loss="cross_entrpy")
    module = SegmentationModule(Heads(), num_classes=4)
    with pytest.raises(ShapeError, match="expected"): module.measure(torch.rand(2, 4, 5, 5), torch.zeros(2, 9, 9, dtype=torch.int64))
    with pytest.raises(ShapeError, match="expected"): module.measure(torch.rand(2, 3, 9, 9), torch.zeros(2, 9, 9, dtype=torch.int64))


class Where(Shapes):
    "Whether there is a shape."
    class_names = ("ground", "shape")

    def __getitem__(self, i):
        image, mask = super().__getitem__(i)
        return image, (mask > 0).long()


class Small(nn.Module):
    "A quarter of the grid, wide views, and a second head."
    num_classes = 2

    def __init__(self, c=32):
        super().__init__()
        def conv(i, o, stride=1, dilation=1):
            return nn.Sequential(nn.Conv2d(i, o, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(o), nn.ReLU())
        self.stem, self.body = nn.Sequential(conv(3, 24, 2), conv(24, c, 2)), nn.ModuleList([conv(c, c, 1, d) for d in (1, 2, 4)])
        self.out, self.aux = nn.Conv2d(c, 2, 1), nn.Conv2d(c, 2, 1)

    def forward(self, x):
        y = first = self.stem(x)
        for block in self.body: y = y + block(y)
        out, aux = (F.interpolate(head(z), x.shape[-2:], mode="bilinear") for head, z in ((self.out, y), (self.aux, first)))
        return {"out": out, "aux": aux} if self.training else out


def test_a_short_training_finds_shapes():
    seed_everything(0, verbose=False)
    train, val, test = (Where(length, 48, seed=seed) for seed, length in enumerate((256, 32, 48)))
    data = SegmentationDataModule(train, val, test, image_size=48, batch_size=16, scale=(0.9, 1.2), num_workers=0)
    module = SegmentationModule(Small(), learning_rate=1e-2, class_names=data.class_names, loss={"cross_entropy": 1.0, "dice": 1.0})
    trainer = Trainer(max_epochs=10, **QUIET)
    before = trainer.validate(module, data, verbose=False)[0]
    trainer.fit(module, data)
    after = trainer.test(module, data, verbose=False)[0]
    assert after["test/loss"] < 0.6 * before["val/loss"] and after["test/miou"] > 0.7 > before["val/miou"] + 0.2
    said = torch.cat(trainer.predict(module, data.test_dataloader())).numpy()
    true = torch.cat([masks for _, masks in data.test_dataloader()]).numpy()
    np.testing.assert_allclose(after["test/miou"], np.nanmean(numpy_iou(said, true, 2)), rtol=0, atol=1e-6)
