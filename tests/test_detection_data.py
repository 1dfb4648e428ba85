"Boxes that must follow their picture, annotations with everything wrong, and the peers that read the same files."
import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from torchvision import datasets, tv_tensors
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from flame_vision.core.errors import ConfigError, DataError, MissingPathError
from flame_vision.data import (
    BoxPairs,
    CocoDataModule,
    DetectionDataModule,
    ResizeShortest,
    SanitizeBoxes,
    SegmentationDataModule,
    Shapes,
    ShapesDetectionDataModule,
    VOCDetectionDataModule,
    coco_splits,
    create_datamodule,
    detection_transforms,
    list_datasets,
    pad_boxes,
    wrap_dataset,
)
from flame_vision.data.boxes import RandomIoUCrop, RandomShortestSize, ScaleJitter, check_target, fault_of_box, plain_target
from flame_vision.data.coco import read_annotation, scan_coco
from flame_vision.data.datamodules import first_samples
from flame_vision.data.detection import with_boxes
from flame_vision.data.voc_boxes import scan_voc
from flame_vision.segmentations import class_colors
from flame_vision.transforms import IMAGENET_MEAN, IMAGENET_STD, build_transforms


def plain(x): return x.as_subclass(torch.Tensor)


def sample(boxes, size, labels=None):
    h, w = size
    target = check_target({"boxes": boxes, "labels": labels or [1] * len(boxes)}, 100, size)
    return tv_tensors.Image(torch.zeros(3, h, w, dtype=torch.uint8)), target


# Transforms

@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(5, 200), st.integers(5, 200), st.integers(20, 160), st.integers(20, 240), st.integers(0, 2**30))
def test_evaluation_is_torchvisions_own(h, w, size, most, seed):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=rng)
    corners = (torch.rand(4, 2, 2, generator=rng).sort(1).values * torch.tensor([w, h])).flatten(1)
    transform = detection_transforms(size, most, train=False)
    if min(int(side * min(size / min(h, w), most / max(h, w))) for side in (h, w)) < 1: return  # torchvision fails there
    theirs, (moved,) = GeneralizedRCNNTransform(size, most, IMAGENET_MEAN, IMAGENET_STD).eval()([x / 255], [{"boxes": corners}])
    boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(h, w))
    ours, target = transform(tv_tensors.Image(x), {"boxes": boxes})
    assert tuple(ours.shape[1:]) == theirs.image_sizes[0] and transform.get_output_shape([3, h, w]) == list(ours.shape)
    assert torch.equal(plain(ours), theirs.tensors[0, :, :ours.shape[1], :ours.shape[2]])
    torch.testing.assert_close(plain(target["boxes"]), moved["boxes"], rtol=1e-6, atol=1e-6)
    from_pillow = transform(PIL.Image.fromarray(x.permute(1, 2, 0).numpy()))
    assert torch.equal(plain(from_pillow), plain(ours))


def test_a_whole_batch_is_torchvisions_own():
    pictures = [torch.randint(0, 256, size, dtype=torch.uint8) for size in ((3, 97, 131), (3, 211, 60), (3, 77, 101))]
    theirs, _ = GeneralizedRCNNTransform(160, 266, IMAGENET_MEAN, IMAGENET_STD).eval()([x / 255 for x in pictures])
    transform = detection_transforms(160, 266, train=False)
    images, targets = pad_boxes([(transform(x), {"image_id": torch.tensor(i)}) for i, x in enumerate(pictures)])
    assert torch.equal(images, theirs.tensors) and [t["image_id"] for t in targets] == [0, 1, 2]


RECIPES = {augment: dict(augment=augment, scale=(0.4, 1.0)) for augment in ("multiscale", "ssd", "jitter")} | {
    "flip": dict(flip=1.0, scale=(1.0, 1.0))}


@pytest.mark.parametrize("recipe", RECIPES)
def test_boxes_follow_their_picture(recipe):
    "A white rectangle on black is found again where its box says that it is, to the pixel that bilinear edges are wide."
    transform = detection_transforms(90, 150, mean=[0.0] * 3, std=[1.0] * 3, **RECIPES[recipe])
    seen, places, rng = 0, set(), np.random.default_rng(0)
    for seed in range(60):
        h, w = rng.integers(60, 140, 2).tolist()
        x1, y1 = int(rng.integers(0, w - 30)), int(rng.integers(0, h - 30))
        x2, y2 = int(rng.integers(x1 + 20, w + 1)), int(rng.integers(y1 + 20, h + 1))
        image, target = sample([[x1, y1, x2, y2]], (h, w))
        plain(image)[:, y1:y2, x1:x2] = 255
        torch.manual_seed(seed)
        moved, found = transform(image, target)
        assert list(moved.shape[1:]) == list(found["boxes"].canvas_size)
        assert build_transforms(transform.config).config == transform.config
        if not len(found["boxes"]): continue
        view = plain(moved).mean(0)
        inside = view > (view.max() + view.min()) / 2 if view.max() - view.min() > 0.2 else torch.ones_like(view, dtype=torch.bool)
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        extent = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
        assert (extent - plain(found["boxes"])[0]).abs().max() <= 1.01, (seed, extent, found["boxes"])
        seen += 1
        places.add(tuple(plain(found["boxes"])[0].tolist()))
    assert seen >= 40 and len(places) >= 40


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_belongs_to_a_box_goes_with_it(recipe):
    transform, lost = detection_transforms(64, None, **RECIPES[recipe]), 0
    corners = [[8 * i, 6 * i, 8 * i + 30, 6 * i + 24] for i in range(9)]
    for seed in range(25):
        image, target = sample(corners, (80, 100), list(range(1, 10)))
        target |= {"area": torch.arange(1.0, 10) * 10, "iscrowd": torch.arange(1, 10) % 2}
        torch.manual_seed(seed)
        moved, found = transform(image, target)
        result = plain_target(found, moved.shape[-2:])
        lost += 9 - len(result["boxes"])
        assert torch.equal(result["area"], result["labels"] * 10.0) and torch.equal(result["iscrowd"], result["labels"] % 2)
        assert (result["boxes"][:, 2:] - result["boxes"][:, :2] >= 1).all() and (result["boxes"] >= 0).all()
        assert (result["boxes"][:, 2:] <= result["size"].flip(0)).all() and result["original_size"].tolist() == [80, 100]
        assert not any(isinstance(x, tv_tensors.TVTensor) for x in result.values())
    assert (lost > 0) == (recipe in ("ssd", "jitter"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_pictures_without_objects(recipe):
    transform = detection_transforms(64, 100, **RECIPES[recipe])
    for seed in range(8):
        torch.manual_seed(seed)
        image, target = transform(*sample([], (70, 90)))
        assert plain_target(target, image.shape[-2:])["boxes"].shape == (0, 4) and len(target["labels"]) == 0
    assert transform(torch.zeros(3, 70, 90)).ndim == 3  # a picture alone


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("size", [(1, 200), (200, 1), (2, 90), (20, 2000)])
def test_thin_pictures_keep_a_row(recipe, size):
    "torchvision's own would resize them to nothing."
    transform = detection_transforms(32, 64, **RECIPES[recipe])
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = transform(*sample([[0, 0, size[1], size[0]]], size))
        assert image.numel() and plain_target(target, image.shape[-2:])["size"].tolist() == list(image.shape[-2:])


@pytest.mark.parametrize("augment", ["ssd", "jitter"])
def test_the_ground_is_the_mean_whatever_pixels_are_made_of(augment):
    "What is put around a picture in training is 0 after the normalisation; for floating-point pixels it was 123 times white."
    transform, grounds = detection_transforms(64, 64, augment=augment), 0
    for seed in range(12):
        image, target = sample([[0, 0, 60, 40]], (40, 60))
        seen = []
        for pixels in (torch.full((3, 40, 60), 255, dtype=torch.uint8), torch.ones(3, 40, 60)):
            torch.manual_seed(seed)
            seen.append(plain(transform(tv_tensors.Image(pixels), dict(target))[0]))
        assert torch.equal(*seen) and seen[0].max() < 2.7
        grounds += bool((seen[0] == 0).all(0).any())
    assert grounds > 2


def test_transforms_say_what_they_cannot_take():
    with pytest.raises(DataError, match="put ToTensor before it"): ResizeShortest(20)(PIL.Image.new("RGB", (9, 9)))
    for wrong in (dict(size=0), dict(max_size=-1), dict(scale=(1.0, 0.5)), dict(augment="mosaic")):
        with pytest.raises(ConfigError): detection_transforms(**wrong)
    for step in (ResizeShortest(20, None), RandomShortestSize([20, 30], 50), RandomIoUCrop(trials=7), ScaleJitter((20, 30)), SanitizeBoxes(2.0)):
        assert build_transforms(step.config).config == step.config
    assert ResizeShortest(20, None)(torch.zeros(3, 10, 100)).shape == (3, 20, 200)
    assert ResizeShortest(20, 100)(torch.zeros(3, 1, 1000)).shape == (3, 1, 100)
    assert ScaleJitter((100, 300), (1.0, 1.0))(torch.zeros(3, 50, 200)).shape == (3, 75, 300)  # height and width, in this order
    image, target = sample([[0, 0, 5, 5]], (40, 40))
    pairs = BoxPairs([(plain(image), {"boxes": [[0, 0, 5, 5]], "labels": [1]})], 2, v2.CenterCrop(10))
    with pytest.raises(DataError, match="end them with SanitizeBoxes"): pairs[0]


# Targets

@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*[st.floats(-50, 150, width=32)] * 4), max_size=6), st.sampled_from(["list", "tensor", "array", "tv", "xywh"]))
def test_a_target_is_sound_or_refused(corners, form):
    "Whatever the form: with `skip` just the boxes without a fault stay, cut to the picture; with `raise` the first fault is named."
    size = (60, 90)
    boxes, labels = torch.tensor(corners).reshape(-1, 4), list(range(1, len(corners) + 1))
    wh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    forms = {"list": boxes.tolist(), "tensor": boxes, "array": boxes.numpy(), "tv": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
             "xywh": tv_tensors.BoundingBoxes(wh, format="XYWH", canvas_size=size)}
    if form == "xywh": boxes = torch.cat([wh[:, :2], wh[:, :2] + wh[:, 2:]], 1)
    good = [not fault_of_box(box, size) for box in boxes.tolist()]
    target = {"boxes": forms[form], "labels": np.array(labels, int) if form == "array" else labels}
    kept = check_target(target, 10, size, on_error="skip")
    assert kept["labels"].tolist() == [n for n, ok in zip(labels, good) if ok]
    inside = plain(kept["boxes"])
    assert (inside >= 0).all() and (inside <= torch.tensor([90, 60, 90, 60])).all() and (inside[:, 2:] > inside[:, :2]).all()
    assert ((inside - boxes[torch.tensor(good, dtype=torch.bool)]).abs() <= 1.0001).all()
    if all(good): assert torch.equal(plain(check_target(target, 10, size)["boxes"]), inside)
    else:
        with pytest.raises(DataError, match=f"^box {good.index(False)}, "): check_target(target, 10, size)


class Items(torch.utils.data.Dataset):
    "What is given, one after another."
    def __init__(self, *items): self.items = items
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]


GOOD = {"boxes": [[1, 1, 5, 5]], "labels": [1]}


@pytest.mark.parametrize("item, reason", [
    ((torch.zeros(3, 8, 8), {**GOOD, "labels": [0]}), "label 0; there are 1 to 1, and 0 is the background"),
    ((torch.zeros(3, 8, 8), {**GOOD, "labels": [2]}), "label 2; there are 1 to 1"),
    ((torch.zeros(3, 8, 8), {**GOOD, "labels": [1, 1]}), "1 box and labels of the shape"),
    ((torch.zeros(3, 8, 8), {**GOOD, "labels": ["dog"]}), "labels: a number for each box is expected"),
    ((torch.zeros(3, 8, 8), {**GOOD, "boxes": [[1, 1, 1, 5]]}), r"box 0, \[1.0, 1.0, 1.0, 5.0\], has no area"),
    ((torch.zeros(3, 8, 8), {**GOOD, "boxes": [[1, 1, float("nan"), 5]]}), "no number"),
    ((torch.zeros(3, 8, 8), {**GOOD, "boxes": [[9, 1, 12, 5]]}), "outside of the picture of 8 × 8"),
    ((torch.zeros(3, 8, 8), {**GOOD, "boxes": [[1, 1, 12, 5]]}), "reaches 4 pixels beyond"),
    ((torch.zeros(3, 8, 8), {**GOOD, "area": [1, 2]}), "area of the shape"),
    ((torch.zeros(3, 8, 8), {**GOOD, "boxes": [1, 2, 3, 4]}), r"boxes have the shape \[n, 4\], got \[4\]"),
    ((torch.zeros(3, 8, 8), {**GOOD, "boxes": [[0.1, 0.2, 0.5, 1.0]]}), "lies within the first pixel; .* not in parts of the picture"),
    ((torch.zeros(3, 8, 8), {**GOOD, "image_id": "p.jpg"}), "image_id is a whole number, got 'p.jpg'; leave it out"),
    ((torch.zeros(3, 8, 8), {**GOOD, "image_id": 7.5}), "image_id is a whole number, got 7.5"),
    ((torch.zeros(3, 0, 8), GOOD), "a picture of 0 × 8 pixels shows nothing"),
    ((torch.zeros(3, 8, 8), [{"bbox": [1, 1, 4, 4]}]), "got a list; that is how torchvision reads a file, and without class_names"),
    ((torch.zeros(3, 8, 8), {"annotation": {}}), "got one with 'annotation'; that is how torchvision"),
    ((torch.zeros(3, 8, 8), [GOOD]), "dictionary with 'boxes' and 'labels', got a list"),
    ((torch.zeros(3, 8, 8), {"bbox": []}), "got one with 'bbox'"),
    ((torch.full((3, 8, 8), 200.0), GOOD), "pixels from 0 to 1"),
    ((torch.zeros(3, 8, 8), GOOD, 3), r"expected is \(picture, dictionary\), got a tuple of 3"),
])
def test_what_is_no_pair_is_named(item, reason):
    data = DetectionDataModule(Items(item), Items((torch.zeros(3, 8, 8), GOOD)), class_names=["background", "b"], image_size=8, num_workers=0)
    with pytest.raises(DataError, match=f"^picture 0: .*{reason}"): data.datasets["train"][0]
    assert data.datasets["val"][0][0].shape == (3, 8, 8)


def test_a_number_that_is_none_is_the_place():
    data = BoxPairs(Items(*[(torch.zeros(3, 8, 8), {**GOOD, "image_id": number}) for number in (None, 7.0, torch.tensor([5]))]), 2)
    assert [data.pair(i)[1]["image_id"].item() for i in range(3)] == [0, 7, 5]
    one_row = BoxPairs(Items((torch.zeros(3, 1, 8), {"boxes": [[0, 0, 1, 1]], "labels": [1]})), 2)
    assert len(one_row.pair(0)[1]["boxes"]) == 1


READY = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]


@pytest.mark.parametrize("option, says", [
    (dict(train_transforms=lambda picture: picture), "take a picture and its target, and give both"),
    (dict(train_transforms=lambda picture, target: picture), "take a picture and its target, and give both"),
    (dict(train_transforms=v2.RandomHorizontalFlip()), "make a tensor of uint8 .* ToTensor"),
    (dict(eval_transforms=[v2.CenterCrop(8), *READY]), r"cut pictures \(CenterCrop\)"),
    (dict(eval_transforms=[v2.RandomHorizontalFlip(), *READY]), r"at random \(RandomHorizontalFlip\)"),
    (dict(flip=2), "from 0 to 1, got 2"), (dict(tolerance=-1), "how many pixels .* got -1"),
    (dict(class_names="background"), "a list of names, got 'background'"),
    (dict(class_names=["background", "b", "_Background_"]), "leave the other out"),
])
def test_what_cannot_train_is_told_when_it_is_made(option, says):
    pairs = Items((torch.zeros(3, 8, 8), GOOD))
    with pytest.raises(ConfigError, match=says): DetectionDataModule(pairs, pairs, **{"class_names": ["background", "b"], "num_workers": 0, **option})


def test_transforms_that_look_at_pixels_are_welcome():
    def halved(picture, target): return torch.from_numpy(np.asarray(picture)).float() / 510, target
    pairs = Items((torch.full((3, 8, 8), 102, dtype=torch.uint8), GOOD))
    data = DetectionDataModule(pairs, pairs, class_names=["background", "b"], train_transforms=halved, num_workers=0)
    assert data.train_shape == [3, 480, 640] and data.datasets["train"][0][0].unique().tolist() == [pytest.approx(0.2)]
    pil = Items((PIL.Image.new("RGB", (8, 8)), GOOD))
    lazy = DetectionDataModule(pil, pil, class_names=["background", "b"], train_transforms=v2.ToDtype(torch.float32, scale=True), num_workers=0)
    with pytest.raises(DataError, match="picture 0 leaves the transforms as Image, not as a tensor"): lazy.datasets["train"][0]


# Batches

def batches(data, split="train", epochs=2): return [b for loader in [data.loader(split)] for _ in range(epochs) for b in loader]


def same(a, b): return torch.equal(a[0], b[0]) and all(s.keys() == t.keys() and all(torch.equal(s[k], t[k]) for k in s) for s, t in zip(a[1], b[1]))


def test_the_same_batches_with_workers_and_without():
    make = lambda n, seed=0: ShapesDetectionDataModule(40, 4, (12, 4, 4), scale=(0.5, 1.0), num_workers=n, seed=seed)  # noqa: E731
    alone, two = batches(make(0)), batches(make(2))
    assert len(alone) == 6 and all(same(a, b) for a, b in zip(alone, two, strict=True))
    assert not same(alone[0], alone[3]) and not same(alone[0], batches(make(0, 1))[0])


def test_items_and_batches_are_as_promised():
    data = create_datamodule("shapes_detection", image_size=64, batch_size=4, lengths=(8, 4, 4))
    assert data.task == "detection" and data.class_names[0] == "background" and data.train_shape == data.input_shape == [3, 64, 64]
    images, targets = next(iter(data.val_dataloader()))
    assert images.shape == (4, 3, 64, 64) and images.dtype == torch.float32 and type(images) is torch.Tensor
    kinds = dict(boxes=torch.float32, labels=torch.int64, iscrowd=torch.int64, area=torch.float32, image_id=torch.int64, size=torch.int64,
                 original_size=torch.int64)
    for i, target in enumerate(targets):
        assert {key: value.dtype for key, value in target.items()} == kinds and all(type(value) is torch.Tensor for value in target.values())
        there = Shapes(4, 64, seed=1, task="detection")[i][1]
        assert torch.equal(target["boxes"], plain(there["boxes"])) and torch.equal(target["labels"], there["labels"])
        assert target["image_id"].item() == i and target["size"].tolist() == target["original_size"].tolist() == [64, 64]
    pixels = len({plain(data.datasets[s].pair(i)[0]).numpy().tobytes() for s in ("train", "val", "test") for i in range(4)})
    again = ShapesDetectionDataModule.from_config(data.config)
    assert pixels == 12 and data.held_out and again.config == data.config and again.fingerprint() == data.fingerprint()
    assert data.fingerprint() != create_datamodule("shapes_detection", image_size=64, lengths=(8, 4, 4), seed=1).fingerprint()
    assert {"shapes_detection", "coco", "voc_detection"} <= set(list_datasets()) and data.show_batch(count=2).axes
    data.datasets["train"].transform = data.eval_transforms
    assert torch.equal(data.datasets["train"][3][0], data.datasets["train"][3][0])


@pytest.mark.parametrize("divisibility", [1, 32, 50])
def test_borders_are_black_and_multiples(divisibility):
    pictures = [torch.rand(3, h, w) + 1 for h, w in ((33, 70), (64, 20), (50, 50))]
    images, _ = pad_boxes([(x, {}) for x in pictures], divisibility)
    assert all(side % divisibility == 0 for side in images.shape[2:]) and images.shape[2] - 64 < divisibility > images.shape[3] - 70
    for image, x in zip(images, pictures):
        assert torch.equal(image[:, :x.shape[1], :x.shape[2]], x) and image.count_nonzero() == x.numel()


@pytest.mark.parametrize("image", [torch.full((1, 8, 8), 102, dtype=torch.uint8), torch.full((8, 8), 0.4), np.full((8, 8, 3), 102, np.uint8),
                                   PIL.Image.new("L", (8, 8), 102), PIL.Image.new("RGB", (8, 8), (102,) * 3)])
@pytest.mark.parametrize("mode, channels", [("RGB", 3), ("L", 1)])
def test_pictures_of_any_form(image, mode, channels):
    options = dict(class_names=["background", "b"], image_size=16, mean=[0.5] * channels, std=[0.2] * channels, num_workers=0)
    data = DetectionDataModule(Items((image, GOOD)), Items((image, GOOD)), mode=mode, **options)
    images, (target,) = next(iter(data.val_dataloader()))
    torch.testing.assert_close(images[:, :, :16, :16], torch.full((1, channels, 16, 16), -0.5))
    assert images.shape == (1, channels, 32, 32) and target["boxes"].tolist() == [[2, 2, 10, 10]] and target["size"].tolist() == [16, 16]
    assert data.input_shape[0] == channels and data.show_batch().axes


def test_names_begin_with_the_background():
    pairs = Items((torch.zeros(3, 8, 8), GOOD))
    with pytest.raises(ConfigError, match=r"give class_names=\['background', 'dog', 'cat', …\]"):
        DetectionDataModule(pairs, pairs, class_names=["dog", "cat"])
    published = FCOS_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    data = DetectionDataModule(pairs, pairs, class_names=published, num_workers=0)
    assert data.num_classes == 91 and data.class_names == ("background", *published[1:])
    with pytest.raises(ConfigError, match="'dog' twice"): DetectionDataModule(pairs, pairs, class_names=["background", "dog", "dog"])
    with pytest.raises(ConfigError, match="on_error is"): DetectionDataModule(pairs, pairs, class_names=["background", "a"], on_error="ignore")


# COCO

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}, {"id": 90, "name": "brush"}]


def save_coco(json_path, folder, count=5, seed=0, prefix="p", categories=CATEGORIES, sizes=True):
    "Pictures of two sizes with floats for boxes; the second is empty, every third object is a crowd."
    for path in (json_path.parent, folder): path.mkdir(parents=True, exist_ok=True)
    found, rng = {"info": {}, "images": [], "annotations": [], "categories": categories}, np.random.default_rng(seed)
    for i in range(count):
        w, h = (50, 34) if i % 2 else (41, 60)
        PIL.Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)).save(folder / f"{prefix}{i}.png")
        record = {"id": 500 - 3 * i, "file_name": f"{prefix}{i}.png"} | ({"height": h, "width": w} if sizes else {})
        found["images"].append(record)
        for _ in range(0 if i == 1 else rng.integers(1, 5)):
            n, (x, y) = len(found["annotations"]), (rng.uniform(0, 0.6, 2) * (w, h)).round(2).tolist()
            box = [x, y, *(rng.uniform(2, 12, 2)).round(2).tolist()]
            number = int(rng.choice([c["id"] for c in categories]))
            found["annotations"].append({"id": n + 1, "image_id": record["id"], "category_id": number, "bbox": box, "segmentation": [[1.0] * 6],
                                         "area": round(box[2] * box[3] * 0.6, 2), "iscrowd": int(n % 3 == 2)})
    json_path.write_text(json.dumps(found), encoding="utf-8")
    return found


def edit(path, change):
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@pytest.fixture
def coco(tmp_path):
    for part, count in (("train", 7), ("val", 4)):
        save_coco(tmp_path / "annotations" / f"instances_{part}2017.json", tmp_path / f"{part}2017", count, len(part), part)
    return tmp_path


def quiet(make):
    with contextlib.redirect_stdout(io.StringIO()): return make()


@pytest.mark.parametrize("part", ["train", "val"])
def test_coco_is_read_as_pycocotools_and_torchvision_do(coco, part):
    data = coco_splits(coco)[part]
    file, folder = coco / "annotations" / f"instances_{part}2017.json", coco / f"{part}2017"
    theirs, peer = quiet(lambda: COCO(file)), quiet(lambda: datasets.CocoDetection(folder, file))
    wrapped = datasets.wrap_dataset_for_transforms_v2(peer, ("boxes", "labels", "iscrowd", "area", "image_id"))
    rows, objects = {number: i for i, number in enumerate(peer.ids)}, 0
    assert sorted(theirs.imgs) == sorted(data.table.image_ids) and data.class_names == ("background", "car", "dog", "brush")
    for image, target in data:
        there = theirs.loadAnns(theirs.getAnnIds(target["image_id"]))
        corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in there)], dtype=torch.float64).reshape(-1, 4)
        torch.testing.assert_close(plain(target["boxes"]).double(), corners, rtol=0, atol=1e-5)
        assert [data.class_names[n] for n in target["labels"]] == [theirs.cats[a["category_id"]]["name"] for a in there]
        assert target["area"].tolist() == torch.tensor([a["area"] for a in there]).tolist()
        assert target["iscrowd"].tolist() == [a["iscrowd"] for a in there]
        picture, w = wrapped[rows[target["image_id"]]]
        assert np.array_equal(np.asarray(image), np.asarray(picture))
        if not there: continue
        torch.testing.assert_close(plain(target["boxes"]), plain(w["boxes"]), rtol=0, atol=1e-5)
        assert w["iscrowd"] == target["iscrowd"].tolist()
        objects += len(there)
    assert objects > 6


def test_torchvisions_coco_class_gives_the_same_batches(coco):
    train, val = (quiet(lambda part=part: datasets.CocoDetection(coco / f"{part}2017", coco / "annotations" / f"instances_{part}2017.json"))
                  for part in ("train", "val"))
    options = dict(image_size=64, max_size=100, batch_size=4, num_workers=0)
    theirs, ours = DetectionDataModule(train, val, **options), CocoDataModule(coco, **options)
    assert theirs.class_names == ours.class_names and "CocoDetection" in str(theirs.config.arguments["train"])
    by_id = {t["image_id"].item(): (x, t) for x, t in (theirs.datasets["val"][i] for i in range(4))}
    for i in range(4):
        x, t = ours.datasets["val"][i]
        same_x, same_t = by_id[t["image_id"].item()]
        assert torch.equal(x, same_x) and all(torch.equal(t[key], same_t[key]) for key in t)
    with pytest.raises(ConfigError, match="for detection, and this is segmentation"): SegmentationDataModule(train, val)
    with pytest.raises(DataError, match="got a list"): DetectionDataModule(train, val, class_names=theirs.class_names, **options).datasets["val"][0]
    with pytest.raises(ConfigError, match="wrap_dataset_for_transforms_v2; give the data set as it was"):
        DetectionDataModule(datasets.wrap_dataset_for_transforms_v2(train), val, **options)
    halves = torch.utils.data.ConcatDataset([torch.utils.data.Subset(val, [2, 0]), train])
    assert [wrap_dataset(halves)[i][1]["image_id"] for i in range(3)] == [val.ids[2], val.ids[0], train.ids[0]]


def test_a_category_called_background_is_no_class(coco, tmp_path):
    "Some tools write it; torchvision's class then gives the same names and boxes as ours, without its objects."
    file, folder = tmp_path / "train.json", coco / "train2017"
    content = json.loads((coco / "annotations" / "instances_train2017.json").read_text())
    content["categories"][0]["name"] = "_background_"
    file.write_text(json.dumps(content))
    files = file, coco / "annotations" / "instances_train2017.json"
    wrapped, plain = (wrap_dataset(quiet(lambda f=f: datasets.CocoDetection(folder, f))) for f in files)
    assert wrapped.class_names[0] == "background" and "_background_" not in wrapped.class_names
    assert len(wrapped.class_names) == len(plain.class_names) - 1
    names = [[wrapped.class_names[n] for n in wrapped[i][1]["labels"]] for i in range(len(wrapped))]
    dropped = next(name for name in plain.class_names if name not in wrapped.class_names)
    assert names == [[plain.class_names[n] for n in plain[i][1]["labels"] if plain.class_names[n] != dropped] for i in range(len(plain))]


@pytest.mark.parametrize("layout", ["coco", "images", "plain", "roboflow", "single", "cvat", "fiftyone", "beside", "label studio"])
def test_layouts(tmp_path, layout):
    files = {"coco": [("annotations/instances_train2017.json", "train2017"), ("annotations/instances_val2017.json", "val2017")],
        "images": [("annotations/instances_train2014.json", "images/train2014"), ("annotations/instances_val2014.json", "images/val2014")],
        "plain": [("train.json", "train"), ("val.json", "val"), ("test.json", "test")],
        "roboflow": [("train/_annotations.coco.json", "train"), ("valid/_annotations.coco.json", "valid"), ("test/_annotations.coco.json", "test")],
        "single": [("annotations.json", "images")], "cvat": [("annotations/instances_default.json", "images/default")],
        "fiftyone": [("train/labels.json", "train/data"), ("validation/labels.json", "validation/data")],
        "beside": [("coco.json", ".")], "label studio": [("result.json", "images")]}[layout]
    for i, (file, folder) in enumerate(files): save_coco(tmp_path / file, tmp_path / folder, 10, i, f"s{i}_")
    if layout == "label studio": edit(tmp_path / "result.json", lambda f: [i.update(file_name=f"images/{i['file_name']}") for i in f["images"]])
    if layout == "coco": (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    found = coco_splits(tmp_path, fractions=(0.6, 0.2, 0.2))
    sizes = {split: len(data) for split, data in found.items()}
    alone = dict(train=6, val=2, test=2)
    assert sizes == (dict.fromkeys(("train", "val", "test")[:len(files)], 10) if len(files) > 1 else alone)
    names = {(split, file) for split, data in found.items() for file in data.table.files}
    assert len({file for _, file in names}) == sum(sizes.values()) and all((tmp_path / file).is_file() for _, file in names)
    if len(files) > 1: assert all(file.rpartition("/")[2].startswith(f"s{list(sizes).index(split)}_") for split, file in names)
    other = coco_splits(tmp_path, fractions=(0.6, 0.2, 0.2), seed=1)["val"].table.files
    assert (other == found["val"].table.files) == (len(files) > 1)


@pytest.mark.parametrize("name", ["pics\\{}", "pics/day/{}", "C:\\Users\\me\\{}", "/home/me/pics/{}", "\\\\disk\\{}", "http://host/upload/{}",
                                  "back\\slash{}"])
def test_pictures_are_found_as_other_machines_name_them(tmp_path, name):
    "Separators of Windows, and whole paths of a machine that is not this one; a file that is really called so comes first."
    save_coco(tmp_path / "one.json", tmp_path / "made", 10)
    named = json.loads((tmp_path / "one.json").read_text())["images"]
    for image in named:
        straight = name.replace("\\", "/") if name.startswith("pics") else name if name.startswith("back") else "images/{}"
        (tmp_path / straight.format(image["file_name"])).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "made" / image["file_name"], tmp_path / straight.format(image["file_name"]))
    shutil.rmtree(tmp_path / "made")
    edit(tmp_path / "one.json", lambda f: [i.update(file_name=name.format(i["file_name"])) for i in f["images"]])
    found = coco_splits(tmp_path)
    assert sum(map(len, found.values())) == 10 and len({file for data in found.values() for file in data.table.files}) == 10
    assert all(len(data[0]) == 2 for data in found.values())
    edit(tmp_path / "one.json", lambda f: f["images"].append({**f["images"][0], "id": 9999}))
    with pytest.raises(DataError, match="has 1 problem: .*as id 500 does"): coco_splits(tmp_path)


def test_no_folder_and_no_seed(coco):
    file = coco / "annotations/instances_train2017.json"
    with pytest.raises(ConfigError, match="is a file; give the folder of the data set, and annotations='instances_train2017.json'"): coco_splits(file)
    with pytest.raises(ConfigError, match="0 or more, got -1"): coco_splits(coco, str(file), seed=-1)
    with pytest.raises(ConfigError, match="tolerance is how many pixels"): coco_splits(coco, tolerance=-1.0)
    with pytest.raises(DataError, match="7 pictures are too few .* with fractions"): coco_splits(coco, str(file), fractions=(1, 0, 0))


def test_parts_of_a_picture_are_no_pixels(coco):
    "Corners from 0 to 1 would be dropped as too small, one by one and without a word."
    edit(coco / "annotations/instances_train2017.json", lambda f: [a.update(bbox=[0.1, 0.2, 0.5, 0.6], iscrowd=None) for a in f["annotations"]])
    with pytest.raises(DataError, match="within the first pixel; corners are counted in pixels"): coco_splits(coco)


@pytest.mark.parametrize("name", ["background", "_background_", "Background"])
def test_a_category_for_the_background_gets_no_label(coco, name):
    for part in ("train", "val"):
        edit(coco / f"annotations/instances_{part}2017.json", lambda f: f["categories"].insert(0, {"id": 0, "name": name}))
    data = coco_splits(coco)["train"]
    assert data.class_names == ("background", "car", "dog", "brush") and set(data.table.labels) <= {1, 2, 3}
    edit(coco / "annotations/instances_train2017.json", lambda f: f["annotations"][0].update(category_id=0))
    with pytest.raises(DataError, match=rf"category '{name}' \(id 0\) is what is no object; 1 object of it"): coco_splits(coco)


def test_iscrowd_that_is_null_is_none(coco):
    edit(coco / "annotations/instances_train2017.json", lambda f: [a.update(iscrowd=None) for a in f["annotations"]])
    assert not coco_splits(coco)["train"].table.crowds.any()


def test_a_split_without_a_file_is_drawn_from_training(coco):
    (coco / "annotations" / "instances_val2017.json").unlink()
    found = coco_splits(coco, fractions=(0.5, 0.25, 0.25))
    assert [len(found[s]) for s in ("train", "val")] == [5, 2] and "test" not in found
    assert not {*found["train"].table.files} & {*found["val"].table.files}
    data = CocoDataModule(coco, fractions=(0.5, 0.25, 0.25), num_workers=0)
    assert not data.held_out and data.datasets["test"].data is data.datasets["val"].data


def test_where_it_cannot_be_found(coco, tmp_path):
    with pytest.raises(MissingPathError, match="no folder at"): coco_splits(coco / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingPathError, match="no COCO annotations at .*_annotations.coco.json"): coco_splits(tmp_path / "empty")
    shutil.copy(coco / "annotations/instances_train2017.json", coco / "annotations/instances_train2014.json")
    with pytest.raises(ConfigError, match="instances_train2014.json and instances_train2017.json"): coco_splits(coco)
    files = {part: f"annotations/instances_{part}2017.json" for part in ("train", "val")}
    assert len(coco_splits(coco, files)["train"]) == len(coco_splits(coco, {s: str(coco / f) for s, f in files.items()})["train"]) == 7
    assert len(coco_splits(coco, files["val"], fractions=(0.5, 0.5, 0.0))["val"]) == 2
    with pytest.raises(ConfigError, match="no file for 'train'"): coco_splits(coco, {"val": files["val"]})
    with pytest.raises(ConfigError, match="got 'valid'"): coco_splits(coco, {"train": files["train"], "valid": files["val"]})
    with pytest.raises(MissingPathError, match="no folder of pictures at .*pictures"): coco_splits(coco, files, "pictures")
    with pytest.raises(DataError, match="no such file"): coco_splits(coco, {"train": files["train"], "val": "annotations/lost.json"})
    with pytest.raises(ConfigError, match="verify is one of"): coco_splits(coco, files, verify="all")
    with pytest.raises(ConfigError, match="add up to 1"): coco_splits(coco, files["train"], fractions=(0.8, 0.1, 0.2))
    for path in (coco / "annotations").glob("*.json"): path.rename(coco / f"my_{path.name}")
    with pytest.raises(ConfigError, match="say what is for what"): coco_splits(coco)


def told(root, **options): return {(p.path, p.reason) for p in scan_coco(root, **options)[2]}


def test_all_problems_at_once(coco):
    file = coco / "annotations/instances_train2017.json"
    before = json.loads(file.read_text())
    first, second, third, fourth = (image["id"] for image in before["images"][:4])
    n = len(before["annotations"])

    def change(found):
        bad = [dict(bbox=[1, 1, 0, 5]), dict(bbox=[1, 1, 5, -5]), dict(bbox=[90, 1, 5, 5]), dict(bbox=[30, 1, 30, 5]),
               dict(bbox=[1, float("nan"), 5, 5]), dict(bbox=[1, 1, 5]), dict(bbox=["1", 1, 5, 5]), dict(bbox=None), dict(bbox=[1, 1, True, 5]),
               dict(category_id=4), dict(category_id="dog"),
               dict(image_id=9999), dict(image_id=None), dict(id=1), dict(area=-1), dict(area="9"), dict(iscrowd=2), dict(bbox=[1, 1, 1e400, 5])]
        good = dict(image_id=first, category_id=18, bbox=[1, 1, 5, 5])
        found["annotations"] += [{"id": 1000 + i, **good, **wrong} for i, wrong in enumerate(bad)] + ["text", {"id": 2000, **good}]
        found["images"] += [dict(id=first, file_name="x.png", height=4, width=4), dict(id=1, file_name="train0.png", height=60, width=41),
                            dict(id=2, file_name="lost.png", height=4, width=4), dict(id="3", file_name="y.png"), dict(id=4),
                            dict(id=5, file_name="z.png", height=0, width=3)]
        found["categories"] += [{"id": 18, "name": "wolf"}, {"id": 7, "name": "dog"}, {"id": None, "name": "x"}]
        found["images"][3]["height"] = 35
    edit(file, change)
    (coco / "train2017/train4.png").write_bytes(b"no picture")
    (coco / "val2017/val0.png").write_bytes((coco / "val2017/val0.png").read_bytes()[:-300])
    found = told(coco)
    reasons = sorted(reason for path, reason in found if path == "annotations/instances_train2017.json")
    assert len(found) == 3 + 5 + 19 + 3, sorted(found)
    for i in range(19): assert sum(reason.startswith(f"annotations[{n + i}]") for reason in reasons) == 1, (i, reasons)
    assert not any(reason.startswith(f"annotations[{n + 19}]") for reason in reasons)
    words = {0: "has no area (0 × 5", 1: "has no area (5 × -5", 2: "outside of the picture of 41 × 60", 3: "reaches 19 pixels beyond", 4: "no number",
             5: "no box", 6: 'no box [x, y, width, height], but ["1"', 7: "but null", 8: "but [1, 1, true", 9: "category 4, which",
             10: "category 'dog'", 11: "picture 9999", 12: "picture None", 13: "has the id of annotations[0]",
             14: "area -1", 15: 'area "9"', 16: "iscrowd 2", 17: "no box", 18: "is a str"}
    for i, word in words.items(): assert any(reason.startswith(f"annotations[{n + i}]") and word in reason for reason in reasons), (word, reasons)
    unlike = {path for path, _ in found} - {"annotations/instances_train2017.json"}
    assert unlike == {f"train2017/{name}.png" for name in ("train3", "train4", "lost")}
    assert ("train2017/train3.png", "50 × 34 pixels, its record says 50 × 35") in found
    assert "val2017/val0.png" in {path for path, _ in told(coco, verify="decode")}  # it breaks off in the middle
    with pytest.raises(DataError, match="has 30 problems: .*and 20 more .on_error='skip' leaves them out"): CocoDataModule(coco)
    with pytest.warns(UserWarning, match="left out: .* has 30 problems"): rest = coco_splits(coco, on_error="skip")["train"]
    assert len(rest) == 5 and len(rest.problems) == 30 and rest.class_names == ("background", "car", "dog", "brush")
    was = {a["image_id"]: 0 for a in before["annotations"]}
    for a in before["annotations"]: was[a["image_id"]] += 1
    assert len(rest.target(rest.table.image_ids.tolist().index(first))["labels"]) == was[first] + 1
    with pytest.raises(ConfigError, match="on_error is 'raise' or 'skip'"): coco_splits(coco, on_error="drop")


@pytest.mark.parametrize("text, reason", [
    ('{"images": [],\n "annotations": [}', "malformed JSON at line 2, column 18"), ("", "malformed JSON at line 1, column 1"),
    ("[]", "it holds a list"), ('{"images": [], "annotations": {}, "categories": []}', "no list 'annotations'"), ("[" * 200_000, "cannot be read"),
    ('{"images": [], "annotations": []}', "no list 'categories'"), ("\udcff", "no text in UTF-8")])
def test_files_that_are_no_coco(coco, text, reason):
    for part in ("train", "val"): (coco / "annotations" / f"instances_{part}2017.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match="has 2 problems: .*train2017.json: .*val2017.json: ") as caught: coco_splits(coco)
    assert str(caught.value).count(reason) == 2
    with pytest.raises(DataError, match="no picture"): coco_splits(coco, on_error="skip")


VALUES = st.recursive(st.none() | st.booleans() | st.integers(-5, 120) | st.integers(10**300, 10**310) | st.floats() | st.text(max_size=3),
                      lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=2), inner, max_size=2), max_leaves=6)
BOXES = st.lists(st.integers(-20, 120) | st.floats(-20, 120), min_size=4, max_size=4)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.fixed_dictionaries({}, optional={"image_id": st.sampled_from([1, 2, 1.0]) | VALUES, "category_id": st.sampled_from([3, 4]) | VALUES,
                                           "bbox": BOXES | VALUES, "area": st.just(5) | VALUES,
                                           "iscrowd": st.sampled_from([0, 1]) | VALUES}) | VALUES)
def test_whatever_json_holds_is_an_object_or_a_reason(annotation):
    found = read_annotation(annotation, {3: 1, 4: None}, {1: (50, 100), 2: None}, 1.0)
    if isinstance(found, str):
        assert found or annotation["image_id"] == 2 or annotation["category_id"] == 4  # of what is left out nothing is said
        return
    x1, y1, x2, y2, label, area, crowd = found
    assert -1 <= x1 < x2 <= 101 and -1 <= y1 < y2 <= 51 and label == 1 and 0 <= area < 1e30 and crowd in (0, 1)


def rename(path, **names): edit(path, lambda f: f.update(categories=[{"id": int(number[1:]), "name": name} for number, name in names.items()]))


def test_categories_go_by_name(coco):
    rename(coco / "annotations/instances_val2017.json", _90="dog", _18="brush", _3="car")
    found = coco_splits(coco)
    assert found["train"].class_names == found["val"].class_names == ("background", "car", "dog", "brush")
    raw = json.loads((coco / "annotations/instances_val2017.json").read_text())
    for _, target in found["val"]:
        wanted = [{90: 2, 18: 3, 3: 1}[a["category_id"]] for a in raw["annotations"] if a["image_id"] == target["image_id"]]
        assert target["labels"].tolist() == wanted
    published = FCOS_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    rename(coco / "annotations/instances_val2017.json", _90="toothbrush", _18="dog", _3="car")
    shutil.copy(coco / "annotations/instances_val2017.json", coco / "one.json")
    named = coco_splits(coco, "one.json", "val2017", published, fractions=(0.5, 0.5, 0.0))
    labels = [n for data in named.values() for i in range(len(data)) for n in data.target(i)["labels"].tolist()]
    assert sorted(labels) == sorted(a["category_id"] for a in raw["annotations"]) and len(named["train"].class_names) == 91
    with pytest.raises(DataError, match=r"category 'toothbrush' \(id 90\) is not among the training categories; \d+ object"): coco_splits(coco)
    given = coco, "one.json", "val2017", ["background", "car", "toothbrush"]
    with pytest.raises(DataError, match="category 'dog' .*is not among class_names"): coco_splits(*given)
    with pytest.warns(UserWarning, match="left out"): few = coco_splits(*given, on_error="skip", fractions=(0.5, 0.5, 0.0))
    kept = sum(len(data.table.boxes) for data in few.values())
    assert kept == sum(a["category_id"] != 18 for a in raw["annotations"])
    with pytest.raises(ConfigError, match="none of class_names is a category"): coco_splits(coco, class_names=["background", "x"])
    with pytest.raises(ConfigError, match="first class is the background"): coco_splits(coco, class_names=["car", "dog"])


def test_roboflows_first_category_is_the_projects_name(tmp_path):
    categories = [{"id": i, "name": name, "supercategory": "pets" if i else "none"} for i, name in enumerate(("pets", "cat", "dog"))]
    for i, part in enumerate(("train", "valid")):
        save_coco(tmp_path / part / "_annotations.coco.json", tmp_path / part, 6, i, part, categories[1:])
        edit(tmp_path / part / "_annotations.coco.json", lambda f: f.update(categories=categories))
    assert coco_splits(tmp_path)["val"].class_names == ("background", "cat", "dog")
    edit(tmp_path / "valid/_annotations.coco.json", lambda f: f["annotations"][0].update(category_id=0))  # now something is called so
    assert coco_splits(tmp_path)["val"].class_names == ("background", "pets", "cat", "dog")


def test_a_picture_belongs_to_one_split(coco):
    files = {part: f"annotations/instances_{part}2017.json" for part in ("train", "val")}
    train = json.loads((coco / files["train"]).read_text())
    few = [a for a in train["annotations"] if a["image_id"] == 500]
    (coco / files["val"]).write_text(json.dumps({**train, "images": train["images"][:2], "annotations": few}))
    with pytest.raises(DataError, match="has 2 problems: .*train0.png, which is in 'val' too"): coco_splits(coco, files, "train2017")
    with pytest.warns(UserWarning): found = coco_splits(coco, files, "train2017", on_error="skip")
    assert len(found["val"]) == 2 and len(found["train"]) == 5 and not {*found["val"].table.files} & {*found["train"].table.files}


def test_pictures_without_objects_stay(coco):
    data = coco_splits(coco)["train"]
    empty = [i for i in range(len(data)) if not len(data.target(i)["labels"])]
    assert empty == [1] and data[1][1]["boxes"].shape == (0, 4) and data[1][1]["image_id"] == 497
    edit(coco / "annotations/instances_train2017.json", lambda f: f.update(annotations=[]))
    with pytest.raises(DataError, match="no object to learn from"): coco_splits(coco)


def test_records_without_sizes_and_a_byte_order_mark(tmp_path):
    save_coco(tmp_path / "a.json", tmp_path / "images", 5, sizes=False)
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.json").read_bytes())
    assert {tuple(row) for row in scan_coco(tmp_path)[1][""].sizes.tolist()} == {(34, 50), (60, 41)}
    assert all("no height and width" in reason for _, reason in told(tmp_path, verify="none")) and len(told(tmp_path, verify="none")) == 5
    edit_floats = lambda f: [a.update(image_id=float(a["image_id"]), category_id=float(a["category_id"])) for a in f["annotations"]]  # noqa: E731
    raw = json.loads((tmp_path / "a.json").read_text(encoding="utf-8-sig"))
    edit_floats(raw)
    (tmp_path / "a.json").write_text(json.dumps(raw))
    assert not told(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("record", ["lying", "upright", None])
def test_exif_is_followed_where_the_record_says_so(tmp_path, orientation, record):
    "A white rectangle, boxed as the annotator saw the picture, is under its box in the picture that is given."
    lying = PIL.Image.new("RGB", (40, 24))
    lying.paste((255, 255, 255), (4, 2, 14, 18))
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "images").mkdir()
    lying.save(tmp_path / "images/a.png", exif=exif)
    lying.save(tmp_path / "images/b.png", exif=exif)
    as_shown = PIL.ImageOps.exif_transpose(PIL.Image.open(tmp_path / "images/a.png"))
    seen = lying if record == "lying" or record == "upright" and orientation <= 4 else as_shown
    x1, y1, x2, y2 = seen.getbbox()
    size = {} if record is None else dict(height=seen.height, width=seen.width)
    found = dict(images=[dict(id=i, file_name=f"{'ab'[i]}.png", **size) for i in range(2)], categories=CATEGORIES,
                 annotations=[dict(id=i, image_id=i, category_id=18, bbox=[x1, y1, x2 - x1, y2 - y1]) for i in range(2)])
    (tmp_path / "a.json").write_text(json.dumps(found))
    image, target = coco_splits(tmp_path, fractions=(0.5, 0.5, 0.0))["train"][0]
    assert list(image.getbbox()) == target["boxes"][0].tolist() == [x1, y1, x2, y2] and image.size == seen.size
    assert (orientation == 1 or record == "lying" or record == "upright" and orientation <= 4) or seen.getbbox() != lying.getbbox()


def test_boxes_that_reach_out(coco):
    file = coco / "annotations/instances_train2017.json"
    number = json.loads(file.read_text())["images"][0]["id"]
    edit(file, lambda f: f["annotations"].append(dict(id=900, image_id=number, category_id=3, bbox=[-0.6, 50, 42.5, 10.9])))
    boxes = coco_splits(coco)["train"].target(0)["boxes"]
    assert boxes[-1].tolist() == [0, 50, 41, 60]  # rounded outwards: cut
    edit(file, lambda f: f["annotations"].append(dict(id=901, image_id=number, category_id=3, bbox=[20, 50, 41, 60])))  # corners, most likely
    with pytest.raises(DataError, match="reaches 50 pixels beyond the picture of 41 × 60"): coco_splits(coco)
    assert coco_splits(coco, tolerance=float("inf"))["train"].target(0)["boxes"][-1].tolist() == [20, 50, 41, 60]


def test_the_coco_module(coco):
    options = dict(image_size=64, max_size=100, batch_size=3, num_workers=0)
    data = create_datamodule("coco", root=str(coco), **options)
    images, targets = next(iter(data.train_dataloader()))
    assert images.shape[2] % 32 == images.shape[3] % 32 == 0 and len(targets) == 3 and not data.held_out
    for x, target in (data.datasets["val"][i] for i in range(4)):
        scale = target["size"] / target["original_size"]
        assert (scale[0] - scale[1]).abs() < 0.03 and min(x.shape[1:]) <= 64 and list(x.shape[1:]) == target["size"].tolist()  # the aspect is kept
    again = create_datamodule(data.config)
    assert again.config == data.config and again.fingerprint() == data.fingerprint()
    edit(coco / "annotations/instances_train2017.json", lambda f: f["annotations"][0]["bbox"].__setitem__(0, 0.125))
    assert create_datamodule("coco", root=str(coco), **options).fingerprint() != data.fingerprint()
    (coco / "val2017/val2.png").unlink()
    with pytest.raises(MissingPathError, match="val2.png"): data.datasets["val"][2]


# VOC

CALLED = {1: "car", 2: "dog", 3: "person"}


def save_voc(base, count=6, lists=True):
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"): (base / folder).mkdir(parents=True)
    for i, (image, target) in enumerate(Shapes(count, 48, seed=2, task="detection")):
        v2.functional.to_pil_image(image).save(base / "JPEGImages" / f"{i:03}.jpg")
        things = zip(target["boxes"].tolist(), target["labels"].tolist()) if i != 1 else ()
        text = "".join(f"<object><name>{CALLED[n]}</name><difficult>{int(n == 3)}</difficult><bndbox><xmax>{u:g}</xmax><xmin>{x + 1}</xmin>"
                       f"<ymin>{y + 1:g}</ymin><ymax>{v:g}</ymax></bndbox></object>" for (x, y, u, v), n in things)
        size = "<size><width>48</width><height>48</height><depth>3</depth></size>"
        (base / "Annotations" / f"{i:03}.xml").write_text(f"<annotation><filename>{i:03}.png</filename>{size}{text}</annotation>")
    for name, part in {"train": (3, 0, 5, 1), "val": (4, 2)}.items() if lists else ():
        (base / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{i:03}\n" for i in part))
    return base


def test_voc_boxes_are_the_extents_that_were_written(tmp_path):
    save_voc(tmp_path / "VOCdevkit/VOC2012")
    data = VOCDetectionDataModule(tmp_path, image_size=48, max_size=48, batch_size=2, num_workers=0)
    drawn = Shapes(6, 48, seed=2, task="detection")
    assert [Path(f).stem for f in data.datasets["train"].data.table.files] == ["003", "000", "005", "001"] and data.num_classes == 21
    difficult = 0
    for split, order in (("train", (3, 0, 5, 1)), ("val", (4, 2))):
        for i, (image, target) in zip(order, data.datasets[split].data):
            boxes, labels = (plain(drawn[i][1][key]) if i != 1 else plain(drawn[i][1][key])[:0] for key in ("boxes", "labels"))
            assert torch.equal(plain(target["boxes"]), boxes) and list(image.size) == [48, 48]
            assert [data.class_names[n] for n in target["labels"]] == [CALLED[n] for n in labels.tolist()]
            assert target["iscrowd"].tolist() == [int(n == 3) for n in labels.tolist()]
            assert target["area"].tolist() == (boxes[:, 2:] - boxes[:, :2]).prod(1).tolist() and target["image_id"] == i
            difficult += sum(target["iscrowd"].tolist())
    assert difficult
    assert create_datamodule(data.config).fingerprint() == data.fingerprint()
    train, val = (datasets.VOCDetection(tmp_path, image_set=part) for part in ("train", "val"))
    theirs = DetectionDataModule(train, val, image_size=48, max_size=48, batch_size=2, num_workers=0)
    for i in range(2):
        (x, t), (same_x, same_t) = theirs.datasets["val"][i], data.datasets["val"][i]
        assert torch.equal(x, same_x) and all(torch.equal(t[key], same_t[key]) for key in t if key != "image_id")


def test_all_problems_of_a_voc(tmp_path):
    base = save_voc(tmp_path / "VOC2012", 9)
    notes, pictures = base / "Annotations", base / "JPEGImages"
    (base / "ImageSets/Main/train.txt").write_text("\n".join(f"{i:03}" for i in range(9)) + "\n004\n077\n")
    (notes / "000.xml").write_text("<annotation>\n <object></annotation>")
    (notes / "001.xml").write_text("<html></html>")
    (notes / "002.xml").unlink()
    (pictures / "003.jpg").unlink()
    (pictures / "005.jpg").write_bytes(b"")
    (pictures / "006.jpg").write_bytes(b"no picture")
    box = "<bndbox><xmin>{}</xmin><ymin>5</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox>"
    things = [("wolf", box.format(3, 9)), ("dog", box.format(9, 3)), ("dog", box.format(3, "x")), ("dog", ""), ("dog", box.format(60, 70)),
              ("dog", box.format(30, 60)), ("dog", box.format("nan", 9)),
              ("dog", box.format(3, 9) + "<difficult>2</difficult>"), ("dog", box.format(3, 9))]
    (notes / "007.xml").write_text(f"<annotation>{''.join(f'<object><name>{n}</name>{b}</object>' for n, b in things)}</annotation>")
    (notes / "008.xml").write_text("<annotation><size><width>48</width><height>47</height></size></annotation>")
    tables, problems = scan_voc(base)
    found = [(p.path, p.reason) for p in problems]
    wanted = [("train.txt", "lists '004' 2 times"), ("train.txt", "'004', which val.txt"), ("train.txt", "'002', which val.txt"),
              ("000.xml", "malformed XML at line 2, column 12"), ("001.xml", "it holds <html>"), ("002.xml", "no such annotation"),
              ("Annotations/003.xml", "no picture"), ("JPEGImages/005.jpg", "an empty file"), ("JPEGImages/006.jpg", "not a picture"),
              ("Annotations/077.xml", "no picture"), ("JPEGImages/008.jpg", "48 × 48 pixels, its record says 48 × 47")]
    whys = ["is called 'wolf'", "has the box 9 5 3 9, which has no area", "has no box, but xmin '3'", "has no box, but xmin ''",
            "has the box 60 5 70 9, which lies outside", "has the box 30 5 60 9, which reaches 12", "has the box nan", "has difficult '2'"]
    wanted += [("007.xml", f"object {i} {why}") for i, why in enumerate(whys, 1)]
    for path, why in wanted: assert any(p.endswith(path) and why in reason for p, reason in found), (path, why, found)
    assert len(found) == len(wanted) and [len(tables[s]) for s in ("train", "val")] == [1, 1] and len(tables["train"].boxes) == 1
    with pytest.raises(DataError, match=f"has {len(wanted)} problems"): VOCDetectionDataModule(tmp_path)
    with pytest.warns(UserWarning, match="left out"): rest = VOCDetectionDataModule(tmp_path, on_error="skip", num_workers=0)
    assert rest.datasets["train"].data.target(0)["boxes"].tolist() == [[2, 4, 9, 9]]


def test_a_voc_of_ones_own(tmp_path):
    save_voc(tmp_path / "mine", 10, lists=False)
    names = ["background", "person", "dog", "car"]
    data = VOCDetectionDataModule(tmp_path / "mine", names, fractions=(0.6, 0.2, 0.2), image_size=48, num_workers=0)
    assert [len(data.datasets[s]) for s in ("train", "val", "test")] == [6, 2, 2] and data.held_out and data.class_names == tuple(names)
    files = [f for s in ("train", "val", "test") for f in data.datasets[s].data.table.files]
    assert len({*files}) == 10 and next(iter(data.train_dataloader()))[0].shape[1:] == (3, 64, 64)
    with pytest.raises(DataError, match="is called 'car', which is no class"): VOCDetectionDataModule(tmp_path / "mine", names[:3])
    with pytest.raises(MissingPathError, match="no folder of lists"): VOCDetectionDataModule(tmp_path / "mine", names, lists="ImageSets/Other")
    (tmp_path / "mine/JPEGImages/stray.png").write_bytes(b"")
    with pytest.raises(DataError, match="stray.png: an empty file"): VOCDetectionDataModule(tmp_path / "mine", names)


# What is seen of a batch

MODULES = {"shapes_detection": lambda coco, path: create_datamodule("shapes_detection", image_size=32, lengths=(9, 5, 5)),
           "coco": lambda coco, path: create_datamodule("coco", root=coco, image_size=48, max_size=90, num_workers=0),
           "voc_detection": lambda coco, path: create_datamodule("voc_detection", root=save_voc(path / "VOC2012"), image_size=40, num_workers=0)}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("split", ["train", "val"])
def test_show_batch(name, split, coco, tmp_path):
    "Each frame has the colour of its class, or white for what does not count; far from frames and words the picture is untouched."
    data = MODULES[name](coco, tmp_path)
    count = min(4, len(data.datasets[split]))
    frames = [np.asarray(ax.images[0].get_array()) for ax in data.show_batch(split, count).axes if ax.images]
    items, table, boxes = first_samples(data.datasets, split, count, data.seed), class_colors(data.num_classes) / 255, 0
    assert len(frames) == count
    for frame, (image, target) in zip(frames, items):
        nothing = {key: target[key][:0] for key in ("boxes", "labels", "iscrowd")}
        bare = np.asarray(with_boxes(image, nothing, data.class_names, *data.normalization)) / 255
        factor = frame.shape[0] // image.shape[1]
        assert frame.shape == bare.shape == (image.shape[1] * factor, image.shape[2] * factor, 3) and max(frame.shape) >= 220
        colors = [np.ones(3) if crowd else table[n] for n, crowd in zip(target["labels"].tolist(), target["iscrowd"].tolist())]
        for (x1, y1, x2, y2), color in zip((target["boxes"] * factor).round().int().tolist(), colors):
            edge = np.concatenate([frame[y1, x1:x2], frame[y2 - 1, x1:x2], frame[y1:y2, x1], frame[y1:y2, x2 - 1]])
            mixed = np.abs(edge - color).max(1) > 0.01
            assert mixed.mean() < 0.75, (name, mixed.mean())  # another's frame or word may lie on it
            boxes += 1
        changed, inside = np.abs(frame - bare).max(2) > 1e-6, np.zeros(frame.shape[:2], bool)
        for x1, y1, x2, y2 in (target["boxes"] * factor).round().int().tolist(): inside[max(0, y1 - 22):y2 + 22, max(0, x1 - 2):x2 + 60] = True
        assert changed.any() == bool(len(colors)) and not changed[~inside].any()
    assert boxes
