"torchvision's labelled data sets from files that are written here, labels of every form, and both kinds of training to their end."
import copy
import hashlib
import json
import pickle
import struct

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset, random_split
from torchvision import datasets
from torchvision.transforms import v2

from flame_vision.core.errors import ConfigError, DataError
from flame_vision.data import ClassificationDataModule, Digits, ImageFolderDataModule, SegmentationDataModule, Shapes, wrap_dataset
from flame_vision.training import fit
from flame_vision.transforms import Compose, Normalize, Resize, ToTensor

PLAIN = dict(num_workers=0, image_size=16, batch_size=4)


def batches(data, split="train", epochs=1): return [b for loader in [data.loader(split)] for _ in range(epochs) for b in loader]


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True): assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def unchanged(mode="RGB", size=16):
    "Transforms that leave the pixels of a picture of this size as they are."
    return dict(mode=mode, train_transforms=[Resize((size, size)), ToTensor()], eval_transforms=[Resize((size, size)), ToTensor()])


# torchvision's data sets, from their own formats

def write_idx(root, train=10, test=5):
    "FashionMNIST's four files: a magic number, sizes, bytes."
    folder, rng, found = root / "FashionMNIST" / "raw", np.random.default_rng(0), {}
    folder.mkdir(parents=True)
    for name, count in (("train", train), ("t10k", test)):
        images, labels = rng.integers(0, 256, (count, 28, 28), np.uint8), rng.permutation(count).astype(np.uint8) % 10
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, *images.shape) + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
        found[name] = images, labels
    return found


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_fashion_mnist_is_what_its_bytes_say(tmp_path, mode):
    files = write_idx(tmp_path)
    train, val = (datasets.FashionMNIST(tmp_path, train=part) for part in (True, False))
    data = ClassificationDataModule(train, val, num_workers=0, batch_size=4, **unchanged(mode, 28))
    assert data.class_names == tuple(train.classes) and data.num_classes == 10 and data.class_names[9] == "Ankle boot"
    assert data.input_shape == [len(mode), 28, 28] and not data.held_out and not data.multi_label
    images, labels = (torch.cat(some) for some in zip(*batches(data, "val")))
    pixels, numbers = files["t10k"]
    assert torch.equal(images, torch.from_numpy(pixels)[:, None].expand(-1, len(mode), -1, -1) / 255) and labels.tolist() == numbers.tolist()
    assert labels.dtype == torch.int64
    both = ClassificationDataModule(ConcatDataset([train, val]), val, **PLAIN)
    assert len(both.datasets["train"]) == 15 and both.datasets["train"][12][1] == numbers[2] and both.class_names == data.class_names


class SmallCIFAR10(datasets.CIFAR10):
    "CIFAR-10 with the sums of other files, as torchvision makes CIFAR-100 of it."


def write_cifar(root, train=6, test=4):
    "CIFAR-10's pickled batches, rows of 3072 bytes, and the names of three classes."
    folder, rng, found = root / "cifar-10-batches-py", np.random.default_rng(1), {}
    folder.mkdir(parents=True)
    def write(name, content):
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()
    for name, count in (("data_batch_1", train), ("data_batch_2", train), ("test_batch", test)):
        rows, labels = rng.integers(0, 256, (count, 3072), np.uint8), rng.integers(0, 3, count).tolist()
        found[name] = rows, labels, write(name, {"data": rows, "labels": labels})
    class Small(SmallCIFAR10):
        train_list, test_list = [[[n, found[n][2]] for n in names] for names in (("data_batch_1", "data_batch_2"), ("test_batch",))]
        meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", {"label_names": ["cat", "dog", "ship"]})}
    return Small, found


def test_cifar_is_what_its_rows_say(tmp_path):
    small, found = write_cifar(tmp_path)
    train, test = small(tmp_path, train=True), small(tmp_path, train=False)
    data = ClassificationDataModule(train, test, test, num_workers=0, batch_size=16, **unchanged(size=32))
    assert data.class_names == ("cat", "dog", "ship") and data.held_out
    for (image, label), row, number in zip((data.datasets["test"][i] for i in range(4)), *found["test_batch"][:2], strict=True):
        assert torch.equal(image, torch.from_numpy(row.reshape(3, 32, 32)) / 255) and label == number
    (images, labels), rows = batches(data)[0], np.concatenate([found[n][0] for n in ("data_batch_1", "data_batch_2")])
    assert {x.mul(255).round().byte().numpy().tobytes() for x in images} == {row.tobytes() for row in rows} and len(labels) == 12


def write_folder(root, counts=None, size=(20, 24)):
    for name, count in (counts or {"ant": 5, "bee": 7, "wasp": 4}).items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng([len(name), i]).integers(0, 256, (*size, 3), np.uint8)
            PIL.Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def test_an_image_folder_gives_the_batches_of_ours(tmp_path):
    for split, count in (("train", 6), ("val", 5), ("test", 3)): write_folder(tmp_path / split, dict(ant=count, bee=4, wasp=3))
    theirs = ImageFolderDataModule(tmp_path, seed=5, **PLAIN)
    parts = [datasets.ImageFolder(tmp_path / split) for split in ("train", "val", "test")]
    ours = ClassificationDataModule(*parts, seed=5, **PLAIN)
    assert ours.class_names == theirs.class_names and ours.held_out and ours.input_shape == theirs.input_shape
    for split in ("train", "val", "test"): same(batches(ours, split, 2), batches(theirs, split, 2))


def test_parts_of_a_folder_have_transforms_of_their_own(tmp_path):
    whole = datasets.ImageFolder(write_folder(tmp_path))
    train, val = random_split(whole, [10, 6], torch.Generator().manual_seed(0))
    data = ClassificationDataModule(train, val, **PLAIN)
    for place, index in enumerate(val.indices):
        image, label = data.datasets["val"][place]
        assert torch.equal(image, data.eval_transforms(PIL.Image.open(whole.samples[index][0]))) and label == whole.samples[index][1]
    assert data.class_names == ("ant", "bee", "wasp") and not torch.equal(data.datasets["train"][0][0], data.datasets["train"][0][0])
    fewer = write_folder(tmp_path / "fewer", dict(bee=3, wasp=2))
    with pytest.raises(ConfigError, match="'val' calls its classes bee, wasp, and 'train' ant, bee, wasp"):
        ClassificationDataModule(whole, datasets.ImageFolder(fewer), **PLAIN)


@pytest.fixture
def pets(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    for folder in ("images", "annotations/trimaps"): (base / folder).mkdir(parents=True)
    breeds = [("Abyssinian", 1, 1), ("great_pyrenees", 2, 2), ("Bombay", 3, 1)]
    for split, numbers in (("trainval", (1, 2, 3)), ("test", (8, 9))):
        lines = [(f"{breed}_{n}", label, kind) for n in numbers for breed, label, kind in breeds]
        (base / "annotations" / f"{split}.txt").write_text("".join(f"{name} {label} {kind} 1\n" for name, label, kind in lines))
        for i, (name, *_) in enumerate(lines):
            PIL.Image.fromarray(np.full((20, 18 + i, 3), 20 * i + len(split), np.uint8)).save(base / "images" / f"{name}.jpg", quality=95)
    return tmp_path


def test_pets_by_breed_and_by_kind(pets):
    make = lambda kind: [datasets.OxfordIIITPet(pets, split=s, target_types=kind) for s in ("trainval", "test")]  # noqa: E731
    for kind, names, numbers in (("category", ("Abyssinian", "Great Pyrenees", "Bombay"), [0, 1, 2]), ("binary-category", ("Cat", "Dog"), [0, 1, 0])):
        data = ClassificationDataModule(*make(kind), **PLAIN)
        lines = (pets / "oxford-iiit-pet" / "annotations" / "test.txt").read_text().splitlines()
        assert data.class_names == names and [data.datasets["val"][i][1] for i in range(6)] == 2 * numbers
        for i, line in enumerate(lines):
            pixels = PIL.Image.open(pets / "oxford-iiit-pet" / "images" / f"{line.split()[0]}.jpg")
            assert torch.equal(data.datasets["val"][i][0], data.eval_transforms(pixels))
    with pytest.raises(ConfigError, match="OxfordIIITPet is for classification, and this is segmentation"): SegmentationDataModule(*make("category"))
    with pytest.raises(ConfigError, match="OxfordIIITPet is for segmentation, and this is classification"):
        ClassificationDataModule(*make("segmentation"))
    with pytest.raises(ConfigError, match="make it with target_types='segmentation' or 'category' or 'binary-category'"):
        ClassificationDataModule(*make(["category", "binary-category"]))


def test_several_words_of_one_class_stay_together(tmp_path):
    folder = datasets.ImageFolder(write_folder(tmp_path, dict(n1=2, n2=2)))
    folder.classes = [("crane",), ("crane", "machine")]  # as torchvision's ImageNet has them
    assert wrap_dataset(folder).class_names == ("crane", "crane, machine")


# Any other data set

class Pairs(Dataset):
    "Images and labels as they are given."
    def __init__(self, images, labels): self.images, self.labels = images, labels
    def __len__(self): return len(self.labels)
    def __getitem__(self, i): return self.images[i], self.labels[i]


GRAY = np.random.default_rng(2).integers(0, 256, (5, 16, 16), np.uint8)
COLOURS = np.random.default_rng(3).integers(0, 256, (5, 16, 16, 3), np.uint8)
FORMS = {"PIL": [PIL.Image.fromarray(a) for a in GRAY], "array": GRAY, "array hw1": GRAY[..., None], "array 16 bit": GRAY.astype(np.uint16) << 8,
         "tensor": torch.from_numpy(GRAY), "tensor 1hw": torch.from_numpy(GRAY)[:, None], "float": torch.from_numpy(GRAY)[:, None] / 255}
COLOURED = {"PIL": [PIL.Image.fromarray(a) for a in COLOURS], "array": COLOURS, "tensor": torch.from_numpy(COLOURS).permute(0, 3, 1, 2),
            "alpha": [PIL.Image.fromarray(a).convert("RGBA") for a in COLOURS]}


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_form_of_an_image_is_the_same(mode):
    for forms, gray in ((FORMS, True), (COLOURED, False)):
        for name, images in forms.items():
            pairs = Pairs(images, [0, 1, 2, 1, 0])
            data = ClassificationDataModule(pairs, pairs, class_names="abc", num_workers=0, **unchanged(mode))
            found = torch.cat([x for x, _ in batches(data, "val")])
            if gray: wanted = torch.from_numpy(GRAY)[:, None].expand(-1, len(mode), -1, -1) / 255
            elif mode == "RGB": wanted = torch.from_numpy(COLOURS).permute(0, 3, 1, 2) / 255
            else: wanted = torch.from_numpy(COLOURS @ np.array([0.299, 0.587, 0.114]))[:, None].float() / 255
            assert found.shape == wanted.shape and found.dtype == torch.float32, name
            assert (found - wanted).abs().max() <= (1.5 / 255 if mode == "L" and not gray else 0), name


def test_gray_is_normalised_by_the_mean_of_the_colours():
    data = ClassificationDataModule(Pairs(COLOURS, [0, 1, 0, 1, 0]), Pairs(GRAY, [0, 1, 0, 1, 0]), class_names="ab", mode="L", **PLAIN)
    assert np.allclose(data.normalization, [[np.mean([0.485, 0.456, 0.406])], [np.mean([0.229, 0.224, 0.225])]])
    assert batches(data)[0][0].shape == (4, 1, 16, 16) and data.train_shape == data.input_shape == [1, 16, 16]
    with pytest.raises(ConfigError, match="mode is 'RGB' or 'L'"): ClassificationDataModule(Pairs(GRAY, [0] * 5), Pairs(GRAY, [0] * 5), mode="CMYK")


@pytest.mark.parametrize("label", [2, True, np.int64(2), np.uint8(1), np.array([2]), torch.tensor(0), torch.tensor([1], dtype=torch.uint8)])
def test_labels_of_every_form(label):
    data = ClassificationDataModule(Pairs(GRAY, [label] * 5), Pairs(GRAY, [0] * 5), class_names="abc", **PLAIN)
    found, number = data.datasets["train"][3][1], np.asarray(label).item()
    assert type(found) is int and found == number and batches(data)[0][1].tolist() == [number] * 4


@pytest.mark.parametrize("label, says", [
    (3, "image 4: the label 3, where there are 3 classes, from 0 to 2"), (-1, "image 4: the label -1"), (255, "the label 255"),
    (1.0, "image 4: 1.0 is no label; expected is an int from 0 to 2"), ("cat", "'cat' is no label"), (None, "None is no label"),
    ({"label": 1}, "is no label"), (float("nan"), "nan is no label"), (torch.zeros(3, 3), "is no label"), ([1, 0], "is no label"),
    (2**70, "is no label"), ([0, 1, 2], "a target of 2 for class 2"), ([0.0, float("nan"), 1], "a target of nan for class 1"),
    ([0, 1, 1], "image 4 has a target for each class, and image 0 one label")])
def test_a_label_that_is_none_is_named(label, says):
    data = ClassificationDataModule(Pairs(GRAY, [0, 1, 2, 0, label]), Pairs(GRAY, [0] * 5), class_names="abc", **PLAIN)
    for read in (lambda: data.datasets["train"][4], lambda: batches(data), data.fingerprint):
        with pytest.raises(DataError) as caught: read()
        assert says in str(caught.value) and "image 4" in str(caught.value)
    with pytest.raises((DataError, ConfigError)):  # first of its split, it is found when the data module is made
        ClassificationDataModule(Pairs(GRAY, [0] * 5), Pairs(GRAY[::-1], [label, 2, 1, 0, 0]), class_names="abc", **PLAIN)


@pytest.mark.parametrize("image, says", [
    ("a.png", "a str is no image"), (None, "a NoneType is no image"), (torch.zeros(3, 4, 4, dtype=torch.int64), "uint8, or floating-point"),
    (torch.zeros(16), "[channels, height, width], got [16]"), (torch.zeros(5, 4, 4), "1 or 3 channels"), (np.zeros((4, 4, 7), np.uint8), "image 0: "),
    (np.zeros((4, 4), np.float32), "in uint8, got [4, 4] in float32"),
    (np.zeros((3, 4, 5), np.uint8), "(height, width, channels) in uint8, got [3, 4, 5]"),
    (torch.full((3, 4, 4), 200.0), "from 0 to 1, got 200 to 200"),
    (torch.full((4, 4), torch.nan), "from 0 to 1, got nan to nan")])
def test_an_image_that_is_none_is_named(image, says):
    with pytest.raises(DataError) as caught: ClassificationDataModule(Pairs([image], [0]), Pairs(GRAY, [0]), class_names="ab", **PLAIN)
    assert says in str(caught.value) and str(caught.value).startswith("image 0: ")


def test_what_cannot_be_used_is_refused(tmp_path):
    good, folder = Pairs(GRAY, [0, 1, 0, 1, 0]), write_folder(tmp_path)
    flip = v2.RandomHorizontalFlip()
    class Endless(IterableDataset):
        def __iter__(self): yield 0, 0
    class Triples(Pairs):
        def __getitem__(self, i): return 1, 2, 3
    for args, names, says in [
            ((good, good), None, "Pairs does not say what its classes are called; give class_names"),
            ((good, []), "ab", "no pictures for 'val'"), ((good, good, Subset(good, [])), "ab", "no pictures for 'test'"),
            ((good, good), "a", "at least two classes"), ((good, good), "aba", "class_names has 'a' twice"),
            ((Endless(), good), "ab", "train is a data set with a length"),
            ((good, "folder"), None, "val is a data set with a length and an item for each number, got a str"),
            ((good, 3), "ab", "val is a data set"),
            ((datasets.ImageFolder(folder, flip),) * 2, None, "has transforms of its own"),
            ((good, Subset(datasets.ImageFolder(folder, flip), [0])), "ab", "ImageFolder for 'val' has transforms of its own"),
            ((datasets.ImageFolder(folder, target_transform=int),) * 2, None, "has transforms of its own"),
            ((Shapes(4, 32, task="classification", transforms=flip), good), "abc", "Shapes for 'train' has transforms of its own"),
            ((good, Pairs(GRAY, [[0, 1]] * 5)), "ab", "'val' has a target for each class, and 'train' has one label for an image"),
            ((Pairs(GRAY, [[0, 1]] * 5), good), "ab", "'val' has one label for an image, and 'train' has a target for each class")]:
        with pytest.raises(ConfigError) as caught: ClassificationDataModule(*args, class_names=names, **PLAIN)
        assert says in str(caught.value), str(caught.value)
    with pytest.raises(DataError, match=r"image 0: expected is \(image, label\), got a tuple of 3"):
        ClassificationDataModule(Triples(GRAY, [0]), good, class_names="ab", **PLAIN)
    with pytest.raises(ConfigError, match="make no batch"):
        ClassificationDataModule(good, good, class_names="ab", eval_transforms=[Resize(16), ToTensor()], num_workers=0)
    renamed = datasets.ImageFolder(folder, target_transform=lambda n: 2 - n)
    assert ClassificationDataModule(renamed, renamed, class_names=["wasp", "bee", "ant"], **PLAIN).datasets["train"][0][1] == 2
    broken = datasets.ImageFolder(folder)
    (folder / "bee" / "2.png").write_bytes(b"lost")
    with pytest.raises(DataError, match="picture 7 of ImageFolder cannot be used: not a picture"):
        ClassificationDataModule(broken, broken, **PLAIN).datasets["train"][7]


def test_our_own_data_sets_and_parts_of_them():
    shapes = Shapes(9, 32, task="classification")
    data = ClassificationDataModule(Subset(shapes, range(6)), Subset(shapes, range(6, 9)), **PLAIN)
    assert data.class_names == shapes.class_names and [data.datasets["val"][i][1] for i in range(3)] == [shapes[i][1] for i in range(6, 9)]
    digits = ClassificationDataModule(Digits("train"), Digits("val"), Digits("test"), mode="L", image_size=8, num_workers=0)
    assert digits.class_names == tuple(Digits.class_names) and batches(digits, "val")[0][0].shape == (32, 1, 8, 8)


# Order, identity, configuration

def test_the_same_batches_with_workers_and_without():
    data = Pairs(COLOURS.repeat(2, 0), [0, 1, 2, 1, 0] * 2)
    make = lambda n, seed=0: ClassificationDataModule(data, data, class_names="abc", seed=seed, **{**PLAIN, "num_workers": n})  # noqa: E731
    alone = batches(make(0), epochs=2)
    torch.manual_seed(9)
    same(alone, batches(make(2), epochs=2))
    assert len(alone) == 6 and not torch.equal(alone[0][0], alone[3][0]) and not torch.equal(batches(make(0, 1))[0][0], alone[0][0])


def test_the_fingerprint_is_that_of_pixels_labels_and_names():
    def made(images=GRAY, labels=(0, 1, 0, 1, 0), names="ab", val=GRAY):
        return ClassificationDataModule(Pairs(images, labels), Pairs(val, (0, 1, 1, 1, 0)), class_names=names, **PLAIN).fingerprint()
    changed = copy.deepcopy(GRAY)
    changed[3, 2, 1] ^= 1
    found = [made(), made(changed), made(labels=(0, 1, 0, 1, 1)), made(names="ac"), made(val=changed), made(GRAY.reshape(5, 8, 32))]
    assert len(set(found)) == len(found) and made() == found[0] == made([PIL.Image.fromarray(a) for a in GRAY])


def test_a_configuration_describes_what_it_cannot_make(tmp_path):
    whole = datasets.ImageFolder(write_folder(tmp_path))
    data = ClassificationDataModule(Subset(whole, range(10)), whole, **PLAIN, train_transforms=[Resize((16, 16)), ToTensor()])
    found = data.config
    assert found == data.config and json.loads(json.dumps(found.model_dump())) == found.model_dump() and found.name == "ClassificationDataModule"
    assert found.arguments["train"] == {"data_set": "ImageFolder", "pictures": 10} and found.arguments["test"] is None
    with pytest.raises(ConfigError, match="train was a data set .data_set: ImageFolder, pictures: 10.*give it"):
        ClassificationDataModule.from_config(found)
    again = ClassificationDataModule(**{**found.arguments, "train": Subset(whole, range(10)), "val": whole})
    same(batches(again), batches(data))
    assert again.config == found and pickle.loads(pickle.dumps(data)).fingerprint() == data.fingerprint()
    foreign = ClassificationDataModule(whole, whole, num_workers=0, eval_transforms=v2.Compose([v2.Resize((9, 9)), v2.ToImage()]))
    with pytest.raises(ConfigError, match="cannot be written"): foreign.config  # noqa: B018


def test_segmentation_data_is_described_too():
    data = SegmentationDataModule(Shapes(4, 32), ConcatDataset([Shapes(2, 32), Shapes(3, 32)]), image_size=24, num_workers=0)
    assert data.class_names == Shapes().class_names
    assert data.config.arguments["val"] == {"data_set": "Shapes", "pictures": 5} and json.dumps(data.config.model_dump())
    with pytest.raises(ConfigError, match="train was a data set"): SegmentationDataModule.from_config(data.config)


# Both kinds of training

def several(length=24, seed=0):
    "Which of three shapes are to be seen, as a vector of truths."
    found = [(image, (mask == torch.arange(1, 4)[:, None, None]).flatten(1).any(1)) for image, mask in Shapes(length, 32, 3, seed)]
    return Pairs(*zip(*found))


def test_titles_are_the_names_that_are_there():
    data = ClassificationDataModule(TensorDataset(torch.rand(4, 3, 16, 16), torch.tensor([[1.0, 0, 1], [0, 0, 0], [0.2, 0.9, 0], [1, 1, 1]])),
                                    several(4), class_names=["circle", "square", "triangle"], num_workers=0, **unchanged())
    assert data.multi_label and data.datasets["train"][2][1].tolist() == pytest.approx([0.2, 0.9, 0])
    order = list(data.train_dataloader().sampler)
    wanted = ["circle, triangle", "none", "square", "circle, square,\ntriangle"]
    assert [ax.get_title() for ax in data.show_batch().axes] == [wanted[i] for i in order]
    images, targets = batches(data, "val")[0]
    assert targets.shape == (4, 3) and targets.dtype == torch.float32 and set(targets.unique().tolist()) <= {0, 1}
    plain = ClassificationDataModule(Pairs(GRAY, [2, 0, 1, 1, 0]), Pairs(GRAY, [0] * 5), class_names="abc", **PLAIN)
    assert sorted(ax.get_title() for ax in plain.show_batch().axes) == sorted("cabba") and len(plain.show_batch("val", 3).axes) == 3


def network(**head):
    "A residual network that is done in a second."
    backbone = {"name": "resnet", "arguments": {"block_type": "basic", "layers": [1, 1, 1, 1]}}
    return {"name": "custom", "arguments": {"backbone": backbone, "head": {"name": "classifier", "arguments": head}}}


@pytest.mark.parametrize("kind", ["one", "several"])
def test_fit_goes_all_the_way(tmp_path, kind):
    small, _ = write_cifar(tmp_path / "cifar", 12, 10)
    if kind == "one": splits, names = [small(tmp_path / "cifar", train=part) for part in (True, False, False)], None
    else: splits, names = [several(seed=seed) for seed in range(3)], ["circle", "square", "triangle"]
    steps = Compose([Resize((32, 32)), ToTensor(), Normalize([0.5] * 3, [0.25] * 3)])
    data = ClassificationDataModule(*splits, class_names=names, batch_size=8, num_workers=0, train_transforms=steps, eval_transforms=steps)
    result = fit(data, network(multi_label=kind == "several"), epochs=1, runs=tmp_path / "runs", registry=tmp_path / "registry",
                 accelerator="cpu", progress=False, prove=False)
    assert result.module.headline[0] == ("accuracy" if kind == "one" else "map") and 0 <= result.metrics[f"test/{result.module.headline[0]}"] <= 1
    assert result.picture.exists() and result.version.manifest.data["fingerprint"] == data.fingerprint()
    record = result.version.manifest
    assert record.data["name"] == "ClassificationDataModule" and list(record.class_names) == list(data.class_names)
