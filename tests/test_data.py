"Data sets with everything wrong that a user's folder can have, workers, processes, and repeatability."
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import LightningModule, Trainer
from torch.utils.data import RandomSampler, SequentialSampler, TensorDataset
from torchvision.datasets import ImageFolder as TorchvisionFolder

from flame_vision.core.errors import ConfigError, DataError, MissingPathError, UnknownArgumentError, UnknownNameError
from flame_vision.data import (
    Digits,
    DigitsDataModule,
    ImageFolder,
    ImageFolderDataModule,
    create_datamodule,
    list_datasets,
    load_image,
    scan_folder,
    stratified_split,
)
from flame_vision.data.datamodules import EpochSeeded, first_samples, seeded_loader
from flame_vision.transforms import Compose, Resize, ToTensor

CLASSES = {"cat": 12, "dog": 9, "Ünïcode 猫": 6}


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in CLASSES.items():
        (tmp_path / "root" / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / "root" / name / f"{i} é.{('jpg', 'png', 'webp')[i % 3]}")
    return tmp_path / "root"


def reasons(report): return {problem.path: problem.reason for problem in report.problems}


def cut(path):
    path.write_bytes(path.read_bytes()[:-60])


def test_a_clean_folder_is_torchvisions(root):
    theirs, report = TorchvisionFolder(root), scan_folder(root)
    assert list(report.class_names) == theirs.classes and not report.problems
    assert sorted((str(root / file), label) for file, label, _ in report.files) == sorted(theirs.samples)
    assert report.counts == CLASSES


def test_all_that_is_wrong_is_reported_at_once(root):
    cut(root / "cat" / "0 é.jpg")
    cut(root / "dog" / "1 é.png")
    (root / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0" + b"garbage" * 50)
    (root / "cat" / "zero.jpg").touch()
    (root / "cat" / "text.jpg").write_text("I am a text")
    (root / "dog" / "labels.csv").write_text("a,b")
    (root / "dog" / ".hidden.jpg").write_text("x")
    (root / "dog" / "Thumbs.db").write_text("x")
    (root / "README.md").write_text("about")
    (root / "stray.png").write_bytes((root / "cat" / "1 é.png").read_bytes())
    (root / "hamster").mkdir()
    (root / ".git").mkdir()
    (root / "cat" / "loop").symlink_to(root, target_is_directory=True)
    (root / "cat" / "self").symlink_to(root / "cat" / "self")
    (root / "circle").symlink_to(root / "circle")
    (root / "cat" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "dog" / "linked.jpg").symlink_to(root / "cat" / "3 é.jpg")
    report = scan_folder(root)
    found = reasons(report)
    assert set(found) == {"cat/0 é.jpg", "dog/1 é.png", "cat/broken.jpg", "cat/zero.jpg", "cat/text.jpg", "dog/labels.csv", "stray.png",
                          "hamster", "cat/loop", "cat/self", "cat/gone.jpg"}
    assert "truncated" in found["dog/1 é.png"].lower() and found["cat/zero.jpg"] == "an empty file" and "lies in" in found["cat/loop"]
    assert found["cat/text.jpg"] == "not a picture that Pillow knows" and "broken link" in found["cat/gone.jpg"]
    assert report.counts == {"cat": 11, "dog": 9, "Ünïcode 猫": 6}
    with pytest.raises(DataError, match="has 11 problems.*and 6 more"): ImageFolder(root)
    with pytest.warns(UserWarning, match="left out 11 problems") as caught: data = ImageFolder(root, on_error="skip")
    assert len(caught) == 1 and data.class_names == tuple(report.class_names) and "hamster" not in data.class_names
    for i in range(len(data)): data[i]


def test_header_and_none_find_less(root):
    cut(root / "cat" / "0 é.jpg")
    (root / "cat" / "text.jpg").write_text("I am a text")
    assert [len(scan_folder(root, verify).problems) for verify in ("decode", "header", "none")] == [2, 1, 0]
    with pytest.raises(ConfigError, match="verify is one of"): scan_folder(root, "all")
    with pytest.raises(DataError, match="0 é.jpg"):
        data = ImageFolder(root, verify="none", fractions=(1, 0, 0))
        for i in range(len(data)): data[i]


@pytest.mark.parametrize("damage, message", [
    (lambda r: [p.unlink() for p in r.rglob("*.*")], "empty class"),
    (lambda r: [p.rename(r / p.parent.name / (p.stem + ".txt")) for p in list(r.rglob("*.*"))], "not a picture"),
])
def test_folders_of_nothing(root, damage, message):
    damage(root)
    with pytest.raises(DataError, match=message): ImageFolder(root)
    with pytest.raises(DataError, match="no class with pictures"): ImageFolder(root, on_error="skip")


def test_no_folder_no_classes_one_class(root, tmp_path):
    with pytest.raises(MissingPathError, match="no folder at"): ImageFolder(tmp_path / "missing")
    with pytest.raises(FileNotFoundError): create_datamodule("folder", root=str(tmp_path / "missing"))
    with pytest.raises(DataError, match="is a file"): ImageFolder(root / "cat" / "1 é.png")
    with pytest.raises(DataError, match="no class folders.*found 12 files"): ImageFolder(root / "cat")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found nothing"): ImageFolder(tmp_path / "empty")
    (tmp_path / "one").mkdir()
    (root / "cat").rename(tmp_path / "one" / "cat")
    with pytest.raises(DataError, match="only the class 'cat'"): ImageFolder(tmp_path / "one")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_is_named(root):
    (root / "cat" / "1 é.png").chmod(0)
    (root / "dog").chmod(0)
    found = reasons(scan_folder(root))
    (root / "dog").chmod(0o755)
    assert found["cat/1 é.png"] == "no permission to read it" and "cannot be listed" in found["dog"]


def test_permission_is_named_also_for_root(root, monkeypatch):
    target, scandir, opened = str(root / "dog"), os.scandir, PIL.Image.open
    def no_list(path): return scandir(path) if str(path) != target else (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    def no_open(path, *a, **k):
        if str(path).endswith("1 é.png"): raise PermissionError(13, "Permission denied")
        return opened(path, *a, **k)
    monkeypatch.setattr(os, "scandir", no_list)
    monkeypatch.setattr(PIL.Image, "open", no_open)
    found = reasons(scan_folder(root))
    assert found["dog"].startswith("cannot be listed") or found["dog"].startswith("an empty class")
    assert found["cat/1 é.png"] == "no permission to read it"


def test_split_folders(root, tmp_path):
    import shutil
    ready = tmp_path / "ready"
    for split in ("train", "valid", "test"): shutil.copytree(root, ready / split)
    assert [len(ImageFolder(ready, s)) for s in ("train", "val", "test")] == [27, 27, 27]
    shutil.rmtree(ready / "test" / "dog")
    (ready / "test" / "axolotl").mkdir()
    found = reasons(scan_folder(ready))
    assert found == {"test": "no folder for the class 'dog'", "test/axolotl": "a class that the training pictures do not have"}
    shutil.rmtree(ready / "test")
    train, val, test = (ImageFolder(ready, s) for s in ("train", "val", "test"))
    assert (len(train), len(val)) == (27, 27) and test.files == val.files
    shutil.rmtree(ready / "valid")
    train, val = ImageFolder(ready, "train"), ImageFolder(ready, "val")
    assert len(train) + len(val) == 27 and not {*train.files} & {*val.files}


def test_classes_called_train_and_test_are_classes(root):
    (root / "cat").rename(root / "train")
    (root / "dog").rename(root / "test")
    assert scan_folder(root).class_names == ("test", "train", "Ünïcode 猫")


def test_a_picture_that_vanishes_is_named(root):
    data = ImageFolder(root)
    (root / data.files[0]).unlink()
    with pytest.raises(MissingPathError, match="no picture at"): data[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
def test_every_mode_becomes_rgb_and_gray(tmp_path, mode):
    gray = np.linspace(0, 255, 40).astype(np.uint8)[None].repeat(30, 0)
    if mode == "I;16": image = PIL.Image.fromarray(gray.astype(np.uint16) * 257)
    elif mode == "I": image = PIL.Image.fromarray(gray.astype(np.int32) * 257)
    else: image = PIL.Image.fromarray(gray).convert(mode)
    image.save(tmp_path / "x.tif")
    for wanted in ("RGB", "L"):
        read = load_image(tmp_path / "x.tif", wanted)
        assert read.mode == wanted and read.size == (40, 30)
        if mode != "1": assert np.abs(np.asarray(read.convert("L")).astype(int) - gray).max() <= 2, mode


def test_transparent_is_white_and_floating_point_is_refused(tmp_path):
    clear = PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)
    PIL.Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match="floating-point"): load_image(tmp_path / "f.tif")


def test_every_orientation(tmp_path):
    upright = np.zeros((20, 32), np.uint8)
    upright[:10, :16] = 255
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
            6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1)}
    for orientation, store in undo.items():
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        PIL.Image.fromarray(np.ascontiguousarray(store(upright))).save(tmp_path / "o.png", exif=exif)
        assert (np.asarray(load_image(tmp_path / "o.png", "L")) == upright).all(), orientation


def test_a_bomb_is_an_error(root, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="decompression bomb"): load_image(root / "cat" / "1 é.png")
    assert len(scan_folder(root, "header").problems) >= sum(CLASSES.values())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 5),
       st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5), (1.0, 0.0, 0.0), (0.34, 0.33, 0.33)]))
def test_a_split_is_a_partition(labels, seed, fractions):
    parts = stratified_split(labels, fractions, seed)
    assert sorted(sum(parts, [])) == list(range(len(labels)))
    assert parts == stratified_split(np.array(labels), fractions, seed)
    for label in set(labels):
        counts = [sum(labels[i] == label for i in part) for part in parts]
        assert counts[0] > 0
        assert all(abs(c - f * sum(counts)) <= len(fractions) for c, f in zip(counts, fractions))
        assert all(c == 0 for c, f in zip(counts, fractions) if f == 0)


DIGITS = """
from flame_vision.data import DigitsDataModule
data = DigitsDataModule(batch_size=64)
x, y = next(iter(data.train_dataloader()))
print(data.fingerprint(), x.double().sum().item(), y.tolist())
"""


def test_another_process_sees_the_same():
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    told = subprocess.run([sys.executable, "-c", DIGITS], capture_output=True, text=True, check=True, env=environment).stdout
    data = DigitsDataModule(batch_size=64)
    x, y = next(iter(data.train_dataloader()))
    assert told == f"{data.fingerprint()} {x.double().sum().item()} {y.tolist()}\n"


def test_workers_change_nothing(root):
    def epochs(workers):
        loader = ImageFolderDataModule(root, image_size=24, batch_size=8, num_workers=workers).train_dataloader()
        return [batch for _ in range(3) for batch in loader]
    alone, helped = epochs(0), epochs(2)
    assert len(alone) == len(helped) == 9
    for (a, la), (b, lb) in zip(alone, helped): assert torch.equal(a, b) and torch.equal(la, lb)
    assert not torch.equal(alone[0][0], alone[3][0])
    assert alone[0][0].shape == (8, 3, 24, 24) and alone[0][1].dtype == torch.int64


def test_an_epoch_left_early_still_counts():
    loader = DigitsDataModule(batch_size=32).train_dataloader()
    first, second = next(iter(loader))[0], next(iter(loader))[0]
    assert not torch.equal(first, second)


class Listener(LightningModule):
    "Learns nothing, and writes down what it is shown."
    def __init__(self):
        super().__init__()
        self.weight, self.automatic_optimization = torch.nn.Parameter(torch.zeros(())), False
        self.seen = [[]]

    def training_step(self, batch, index): self.seen[-1].append(batch[0].tolist())
    def on_train_epoch_end(self): self.seen.append([])
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), 1.0)


def shown(count, workers, epochs=3, **options):
    "The numbers that a training by Lightning sees: epochs of batches of four."
    data = TensorDataset(torch.arange(count))
    loader, module = seeded_loader(data, 4, workers, seed=3, training=True), Listener()
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(max_epochs=epochs, **quiet, **options).fit(module, loader)
    return module.seen[:-1]


@pytest.mark.parametrize("count", [12, 14, 13])
def test_lightning_sees_one_order_with_workers_and_without(count):
    "Lightning reads a loader without workers no further than its last batch, and one with workers to its end."
    alone = shown(count, 0)
    assert alone == shown(count, 2) and len({str(epoch) for epoch in alone}) == 3
    for epoch in alone: assert len(sum(epoch, [])) == len(set(sum(epoch, []))) == (12 if count == 13 else count)
    assert alone[:2] == shown(count, 0, 2, limit_train_batches=3)[:2] or count == 14
    loader = seeded_loader(TensorDataset(torch.arange(count)), 4, seed=3, training=True)
    assert [[batch[0].tolist() for batch in loader] for _ in range(3)] == alone  # read to its end
    loader.passes = 1
    assert [batch[0].tolist() for batch in loader] == alone[1]  # an epoch needs none of those before it


def test_the_order_is_lightnings_to_replace():
    "Under several processes Lightning replaces a RandomSampler; where it overfits on purpose, it does so in one."
    loader = seeded_loader(TensorDataset(torch.arange(12)), 4, training=True)
    assert isinstance(loader.sampler, RandomSampler) and len(loader.sampler) == 12
    assert shown(12, 0, 2, overfit_batches=2) == [[[0, 1, 2, 3], [4, 5, 6, 7]]] * 2
    evaluation = seeded_loader(TensorDataset(torch.arange(12)), 4)
    assert isinstance(evaluation.sampler, SequentialSampler) and not isinstance(evaluation.dataset, EpochSeeded)


def test_loading_draws_nothing_from_the_global_generator():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for _ in DigitsDataModule(batch_size=256).train_dataloader(): pass
    assert torch.equal(torch.get_rng_state(), state)


def test_no_training_batch_of_one():
    data = DigitsDataModule(batch_size=1256)
    assert [len(y) for _, y in data.train_dataloader()] == [1256]
    assert sum(len(y) for _, y in data.test_dataloader()) == 361


def test_digits_splits_and_configuration():
    sets = [Digits(s) for s in ("train", "val", "test")]
    assert [len(s) for s in sets] == [1257, 179, 361]
    assert all(min(np.bincount(s.targets)) > 15 for s in sets)
    assert sets[0][0][0].size == (8, 8) and pickle.loads(pickle.dumps(sets[0])).targets.tolist() == sets[0].targets.tolist()
    steps = ["rgb", {"name": "resize", "arguments": {"size": [9, 9]}}, "to_tensor"]
    for made in (DigitsDataModule(image_size=20, in_channels=1, seed=3), DigitsDataModule(eval_transforms=steps)):
        again = create_datamodule(made.config.name, **made.config.arguments)
        assert again.config == made.config and again.input_shape == made.input_shape
        assert create_datamodule(made.config).config == made.config == create_datamodule(made.config.model_dump()).config
        assert create_datamodule(made.config, seed=4).seed == 4
        assert torch.equal(next(iter(again.train_dataloader()))[0], next(iter(made.train_dataloader()))[0])
    with pytest.raises(ConfigError, match="a split is one of"): Digits("training")
    with pytest.raises(ConfigError, match="in_channels"): DigitsDataModule(in_channels=2)


def test_folder_module(root):
    data = create_datamodule("folder", root=root, image_size=(24, 32), batch_size=4, num_workers=0, seed=5)
    assert data.input_shape == [3, 24, 32] and data.class_names == ("cat", "dog", "Ünïcode 猫") and data.num_classes == 3
    again = ImageFolderDataModule.from_config(data.config)
    assert again.config == data.config and again.fingerprint() == data.fingerprint()
    assert data.datasets["val"].files == again.datasets["val"].files
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        images, labels = next(iter(loader))
        assert list(images.shape[1:]) == data.input_shape and len(images) == len(labels)
    assert pickle.loads(pickle.dumps(data)).input_shape == data.input_shape
    gray = ImageFolderDataModule(root, image_size=24, mode="L", mean=[0.5], std=[0.5], num_workers=0)
    assert next(iter(gray.train_dataloader()))[0].shape[1:] == (1, 24, 24)
    assert data.show_batch(count=4).axes
    first, _ = next(iter(data.train_dataloader()))
    for (image, _), same in zip(first_samples(data.datasets, "train", 4, data.seed), first, strict=True): assert torch.equal(image, same)
    with pytest.raises(ConfigError, match="a split is 'train' or 'val' or 'test', got 'valid'"): data.show_batch("valid")
    with pytest.raises(ConfigError, match="make no batch"): ImageFolderDataModule(root, eval_transforms=Compose([Resize(9), ToTensor()]))


def test_fingerprints_know_one_pixel_and_one_label(root):
    before = ImageFolderDataModule(root, num_workers=0).fingerprint()
    assert before == ImageFolderDataModule(root, num_workers=0, seed=1).fingerprint()
    (root / "cat" / "1 é.png").rename(root / "dog" / "cat é.png")
    moved = ImageFolderDataModule(root, num_workers=0).fingerprint()
    picture = PIL.Image.open(root / "dog" / "cat é.png").copy()
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(root / "dog" / "cat é.png")
    assert len({before, moved, ImageFolderDataModule(root, num_workers=0).fingerprint()}) == 3


def test_names():
    assert {"digits", "folder"} <= set(list_datasets())
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"): create_datamodule("digit")
    with pytest.raises(UnknownArgumentError, match="did you mean 'batch_size'"): create_datamodule("digits", batchsize=3)


def test_clean_data_warns_of_nothing(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageFolder(root, on_error="skip")
