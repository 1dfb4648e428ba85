"Pictures that we draw, folders of masks with everything wrong, and pairs that must stay pairs."
import os
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision import datasets, tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from flame_vision.core.errors import ConfigError, DataError, MissingPathError
from flame_vision.data import (
    MaskFolder,
    MaskFolderDataModule,
    SegmentationDataModule,
    Shapes,
    ShapesDataModule,
    VOCSegmentationDataModule,
    create_datamodule,
    list_datasets,
    scan_masks,
    segmentation_transforms,
    wrap_dataset,
)
from flame_vision.segmentations import class_colors
from flame_vision.transforms import build_transforms


def plain(x): return x.as_subclass(torch.Tensor)


def test_shapes_are_the_same_in_another_process():
    tasks = "segmentation", "detection", "classification"
    code = f"from flame_vision.data.shapes import Shapes; print(*[Shapes(5, 64, seed=3, task=t).fingerprint() for t in {tasks}])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": "1"})
    for task, digest in zip(tasks, found.stdout.split(), strict=True):
        assert digest == Shapes(5, 64, seed=3, task=task).fingerprint() != Shapes(5, 64, seed=4, task=task).fingerprint()


def test_an_item_depends_on_seed_and_index_alone():
    short, long = Shapes(4, 48, seed=1), Shapes(400, 48, seed=1)
    np.random.seed(7)
    for i in (3, 0, 2):
        for a, b in zip(short[i], long[i]): assert torch.equal(plain(a), plain(b))
    assert torch.equal(plain(short[-1][0]), plain(short[3][0])) and not torch.equal(plain(short[0][0]), plain(short[1][0]))
    with pytest.raises(IndexError): short[4]
    assert len(list(short)) == 4


@pytest.mark.parametrize("size, most", [(16, 1), (33, 4), (96, 4), (64, 12)])
def test_boxes_are_the_extents_of_masks(size, most):
    segmentation, detection = Shapes(40, size, most), Shapes(40, size, most, task="detection")
    counts = set()
    for (image, mask), (same, target) in zip(segmentation, detection):
        assert torch.equal(plain(image), plain(same)) and image.shape == (3, size, size) and image.dtype == torch.uint8
        masks, labels, boxes = plain(target["masks"]), target["labels"], plain(target["boxes"])
        assert boxes.dtype == torch.float32 and labels.dtype == torch.int64 and mask.dtype == torch.int64
        assert torch.equal(boxes, masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0]))
        assert masks.sum(0).max() <= 1 and masks.flatten(1).sum(1).min() > 0  # what is hidden belongs to the one in front
        assert torch.equal(plain(mask), (masks * labels[:, None, None]).sum(0)) and labels.min() >= 1 and labels.max() <= 3
        counts.add(len(labels))
    assert max(counts) <= most and (most == 1 or len(counts) > 1)


def test_the_picture_shows_what_the_mask_says():
    "Pixels well inside a circle have its colour, which the ground has not: what is told apart by the mask is told apart in the picture."
    apart = []
    for image, target in Shapes(60, 64, 1, task="detection"):
        where, x = plain(target["masks"])[0].bool(), plain(image).float()
        apart.append((x[:, where].mean(1) - x[:, ~where].mean(1)).abs().max())
    assert torch.stack(apart).min() > 20


def test_shapes_of_every_kind_and_joint_transforms():
    data = Shapes(60, 48, task="classification")
    assert {data[i][1] for i in range(60)} == {0, 1, 2} and data.class_names == ("circle", "square", "triangle")
    assert Shapes().class_names == ("background", "circle", "square", "triangle") == Shapes(task="detection").class_names
    flipped = Shapes(5, 48, task="detection", transforms=v2.RandomHorizontalFlip(1.0))
    for (image, target), (x, t) in zip(Shapes(5, 48, task="detection"), flipped):
        assert torch.equal(plain(x), plain(image).flip(-1)) and torch.equal(plain(t["masks"]), plain(target["masks"]).flip(-1))
        assert torch.equal(plain(t["boxes"]), masks_to_boxes(plain(t["masks"])) + torch.tensor([0.0, 0.0, 1.0, 1.0]))
    for wrong in (dict(task="pose"), dict(size=8), dict(max_shapes=-1), dict(radius=(0.3, 0.1)), dict(length=0), dict(seed=-1)):
        with pytest.raises(ConfigError): Shapes(**wrong)


# Masks in folders

@pytest.fixture
def root(tmp_path):
    for folder in ("images/a", "masks/a"): (tmp_path / folder).mkdir(parents=True)
    for i, (image, mask) in enumerate(Shapes(8, 32)):
        name = f"a/{i} é" if i % 2 else str(i)
        v2.functional.to_pil_image(image).save(tmp_path / "images" / f"{name}.{('jpg', 'png', 'bmp')[i % 3]}")
        saved = PIL.Image.fromarray(mask.numpy().astype(np.uint8))
        if i % 2: saved.putpalette(list(range(255, -1, -1)) * 3)
        saved.save(tmp_path / "masks" / f"{name}.png")
    return tmp_path


def reasons(report): return {problem.path: problem.reason for problem in report.problems}


def test_a_clean_folder(root):
    data = MaskFolder(root, class_names=Shapes().class_names)
    assert len(data) == 8 and not data.problems
    by_name = {os.path.basename(image)[0]: i for i, (image, _) in enumerate(data.files)}
    for i, (_, mask) in enumerate(Shapes(8, 32)):  # the palette turns colours round, and no numbers
        image, found = data[by_name[str(i)]]
        assert torch.equal(plain(found), plain(mask)) and isinstance(found, tv_tensors.Mask) and image.size == (32, 32) and image.mode == "RGB"
    assert MaskFolder(root).class_names == ("0", "1", "2", "3")
    assert data.fingerprint() == MaskFolder(root, class_names=Shapes().class_names).fingerprint()


def test_all_problems_at_once(root):
    (root / "masks" / "0.png").unlink()
    (root / "images" / "a" / "1 é.png").unlink()
    PIL.Image.new("L", (32, 31)).save(root / "masks" / "2.png")
    PIL.Image.new("L", (32, 32), 200).save(root / "masks" / "a" / "3 é.png")
    PIL.Image.new("RGB", (32, 32)).save(root / "masks" / "4.png")
    (root / "images" / "a" / "5 é.bmp").write_bytes(b"BM not really")
    (root / "masks" / "6.png").write_bytes((root / "masks" / "6.png").read_bytes()[:60])
    (root / "images" / "notes.txt").write_text("x")
    PIL.Image.new("RGB", (32, 32)).save(root / "images" / "a" / "7 é.webp")
    PIL.Image.new("L", (9, 9)).save(root / "images" / "lossy.png")
    PIL.Image.new("L", (9, 9)).save(root / "masks" / "lossy.jpg")
    found = reasons(report := scan_masks(root, class_names=Shapes().class_names))
    assert set(found) == {"images/0.jpg", "masks/a/1 é.png", "masks/2.png", "masks/a/3 é.png", "masks/4.png", "images/a/5 é.bmp", "masks/6.png",
                          "images/notes.txt", "images/a/7 é.webp", "masks/lossy.jpg"}
    assert found["masks/2.png"] == "32 × 31 pixels, its picture has 32 × 32" and "class 200" in found["masks/a/3 é.png"]
    assert "no mask" in found["images/0.jpg"] and "no picture" in found["masks/a/1 é.png"] and "'RGB'" in found["masks/4.png"]
    assert len(report.files) == 1
    with pytest.raises(DataError, match="has 10 problems") as caught: MaskFolder(root, class_names=Shapes().class_names)
    assert all(name in str(caught.value) for name in found)
    with pytest.warns(UserWarning, match="left out"): rest = MaskFolder(root, class_names=Shapes().class_names, on_error="skip")
    assert len(rest) == 1 and rest[0][1].max() <= 3


def test_folders_that_teach_nothing(root, tmp_path):
    with pytest.raises(MissingPathError, match="no folder at"): MaskFolder(tmp_path / "nowhere")
    with pytest.raises(MissingPathError, match="no folder at"): MaskFolder(root, masks="labels")
    with pytest.raises(ConfigError, match="on_error is"): MaskFolder(root, on_error="ignore")
    with pytest.raises(ConfigError, match="class_names must be given"): MaskFolder(root, verify="none")
    assert len(MaskFolder(root, class_names=list("abcd"), verify="none")) == len(MaskFolder(root, class_names=list("abcd"), verify="header")) == 8
    for path in (root / "masks").rglob("*.png"): PIL.Image.fromarray(np.uint8(np.asarray(PIL.Image.open(path)) > 0) * 255).save(path)
    with pytest.raises(DataError, match="only 0 and 255"): MaskFolder(root)
    assert MaskFolder(root, ignore_index=None, class_names=[str(i) for i in range(256)])[0][1].max() == 255


def test_a_photo_that_is_turned_has_a_mask_that_is_turned(tmp_path):
    for folder in ("images", "masks"): (tmp_path / folder).mkdir()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (20, 10)).save(tmp_path / "images" / "a.jpg", exif=exif)
    PIL.Image.fromarray(np.eye(20, 10, dtype=np.uint8)).save(tmp_path / "masks" / "a.png")
    for verify in ("decode", "header"): assert not scan_masks(tmp_path, class_names=["a", "b"], verify=verify).problems
    image, mask = MaskFolder(tmp_path)[0]
    assert image.size == (10, 20) and mask.shape == (20, 10)
    PIL.Image.fromarray(np.eye(10, 20, dtype=np.uint8)).save(tmp_path / "masks" / "a.png")
    for verify in ("decode", "header"): assert len(scan_masks(tmp_path, class_names=["a", "b"], verify=verify).problems) == 1


def test_voc_lists(root):
    (root / "train.txt").write_text("0\na/1 é\n\n2\n")
    data = MaskFolder(root, names="train.txt")
    assert [os.path.basename(mask) for _, mask in data.files] == ["0.png", "1 é.png", "2.png"]
    assert MaskFolder(root, names=["2"]).files == [data.files[2]]
    (root / "masks" / "4.png").unlink()
    assert not MaskFolder(root, names="train.txt").problems
    with pytest.raises(DataError, match="no mask of this name"): MaskFolder(root, names=["4"])
    with pytest.raises(MissingPathError, match="no list of names"): MaskFolder(root, names="val.txt")


# Pairs in batches

@pytest.mark.parametrize("size", [40, (32, 56)])
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (20, 33), (64, 64)])
def test_picture_and_mask_stay_together(size, shape):
    "The picture is its mask, in blocks; wherever the mask says a number well inside of a block, the picture has it."
    y, x = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    numbers = 10 * (y * 3 // shape[0]) + 40 * (x * 3 // shape[1])  # nine blocks, none like its mirror image
    transform = segmentation_transforms(size, mean=[0] * 3, std=[1] * 3, scale=(0.6, 1.8))
    flips = 0
    for seed in range(12):
        torch.manual_seed(seed)
        image, mask = transform(tv_tensors.Image(numbers.expand(3, -1, -1).to(torch.uint8)), tv_tensors.Mask(numbers))
        wanted = [size, size] if isinstance(size, int) else list(size)
        assert list(image.shape) == [3, *wanted] and list(mask.shape) == wanted and mask.dtype == torch.int64
        hidden = plain(mask) == 255
        pixels = plain(image)[0] * 255
        assert (pixels[hidden] == 0).all() and not hidden.all()
        around = torch.nn.functional.max_pool2d(plain(mask)[None].float(), 5, 1, 2)[0]
        below = -torch.nn.functional.max_pool2d(-plain(mask)[None].float(), 5, 1, 2)[0]
        rim = torch.nn.functional.pad(torch.ones(wanted[0] - 6, wanted[1] - 6, dtype=torch.bool), (3, 3, 3, 3))
        inside = (around == below) & ~hidden & rim  # bilinear pixels and nearest ones differ at edges alone, also at those just outside
        assert inside.sum() > 30 and (pixels - plain(mask))[inside].abs().max() <= 1
        row = plain(mask)[0][~hidden[0]]
        flips += bool(len(row) and row[0] > row[-1])
    assert 0 < flips < 12
    assert transform.get_output_shape([3, *shape]) == [3, *wanted]
    assert build_transforms(transform.config).config == transform.config


def test_evaluation_keeps_the_whole_picture():
    transform = segmentation_transforms(32, train=False, mean=[0] * 3, std=[1] * 3)
    image, mask = transform(tv_tensors.Image(torch.zeros(3, 50, 100, dtype=torch.uint8)), tv_tensors.Mask(torch.ones(50, 100, dtype=torch.int64)))
    assert image.shape == (3, 32, 64) and mask.shape == (32, 64) and (mask == 1).all()


def test_random_scale_crop_draws_all_scales():
    from flame_vision.data.segmentation import RandomScaleCrop
    crop = RandomScaleCrop(40, (0.5, 2.0))
    sizes = [crop.make_params([torch.zeros(3, 60, 90)])["grown"] for _ in range(300)]
    assert min(h for h, _ in sizes) < 24 and max(h for h, _ in sizes) > 76 and all(abs(w - 1.5 * h) <= 1 for h, w in sizes)
    for wrong in ((2.0, 0.5), (0, 1), (1,)):
        with pytest.raises(ConfigError): RandomScaleCrop(40, wrong)
    with pytest.raises(ValueError, match="one size"): crop(tv_tensors.Image(torch.zeros(3, 60, 90)), tv_tensors.Mask(torch.zeros(60, 91)))


def batches(data, split="train", epochs=2): return [b for loader in [data.loader(split)] for _ in range(epochs) for b in loader]


def test_the_same_batches_with_workers_and_without():
    make = lambda n, seed=0: ShapesDataModule(32, 4, (12, 4, 4), num_workers=n, seed=seed)  # noqa: E731
    alone, two = batches(make(0)), batches(make(2))
    assert len(alone) == 6 and not torch.equal(alone[0][0], alone[3][0])
    for a, b in zip(alone, two): assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert not torch.equal(batches(make(0, 1))[0][0], alone[0][0])


def test_splits_hold_different_pictures():
    data = ShapesDataModule(32, 4, (6, 6, 6))
    images = [plain(data.datasets[s].pair(i)[0]) for s in ("train", "val", "test") for i in range(6)]
    assert len({x.numpy().tobytes() for x in images}) == 18 and data.held_out
    assert ShapesDataModule.from_config(data.config).fingerprint() == data.fingerprint() != ShapesDataModule(32, 4, (6, 6, 6), seed=1).fingerprint()
    assert {"shapes", "masks"} <= set(list_datasets()) and isinstance(create_datamodule("shapes"), ShapesDataModule)


def test_a_mask_folder_in_batches(root):
    data = MaskFolderDataModule(root, class_names=Shapes().class_names, image_size=24, batch_size=3, fractions=(0.5, 0.25, 0.25), num_workers=0)
    parts = [data.datasets[s].data.files for s in ("train", "val", "test")]
    assert [len(p) for p in parts] == [4, 2, 2] and len({f for p in parts for f in p}) == 8 and data.input_shape == [3, 24, 24]
    images, masks = next(iter(data.train_dataloader()))
    assert images.shape == (3, 3, 24, 24) and masks.shape == (3, 24, 24) and masks.dtype == torch.int64
    PIL.Image.new("L", (5, 5)).save(root / "masks" / "0.png")
    with pytest.raises(DataError, match="masks/0.png"): MaskFolderDataModule(root, num_workers=0)


def test_split_folders_are_kept(root, tmp_path):
    for split in ("train", "val"):
        for folder in ("images", "masks"): shutil.copytree(root / folder, tmp_path / "ready" / split / folder)
    data = MaskFolderDataModule(tmp_path / "ready", image_size=24, num_workers=0)
    assert [len(data.datasets[s]) for s in ("train", "val", "test")] == [8, 8, 8] and not data.held_out and data.num_classes == 4


def parted(root, target, folders=("train", "val"), masks=None):
    "The pairs of a folder below split folders: images/train, masks/train."
    for kind, names in (("images", folders), ("masks", masks or folders)):
        for name in names: shutil.copytree(root / kind, target / kind / name)
    return target


def in_splits(root, **options):
    data = MaskFolderDataModule(root, image_size=24, num_workers=0, **options)
    return {split: set(pairs.data.files) for split, pairs in data.datasets.items()}


def test_split_folders_below_those_of_pictures_are_kept(root, tmp_path):
    nested = parted(root, tmp_path / "nested", ("train", "Valid", "test"), ("train", "val", "test"))
    (nested / "images" / "test" / "0.jpg").unlink(); (nested / "masks" / "test" / "0.png").unlink()
    found = in_splits(nested)
    assert [len(found[s]) for s in ("train", "val", "test")] == [8, 8, 7]
    assert {(image.split("/")[1], mask.split("/")[1]) for image, mask in found["val"]} == {("Valid", "val")}
    shutil.copy(root / "images" / "0.jpg", nested / "images" / "stray.jpg")
    with pytest.raises(DataError, match="images/stray.jpg: lies outside of the split folders"): in_splits(nested)
    with pytest.warns(UserWarning, match="stray"): assert in_splits(nested, on_error="skip") == found
    shutil.rmtree(nested / "masks" / "val")
    with pytest.raises(DataError, match="masks' has 'test' and 'train', and no folder 'val'"): in_splits(nested, on_error="skip")


def test_a_split_folder_that_is_missing_is_not_made_up(root, tmp_path):
    with pytest.raises(DataError, match="has 'test' and 'train', and no folder 'val'"): in_splits(parted(root, tmp_path / "below", ("train", "test")))
    for split in ("train", "test"):
        for folder in ("images", "masks"): shutil.copytree(root / folder, tmp_path / "above" / split / folder)
    with pytest.raises(DataError, match="above' has 'test' and 'train', and no folder 'val'"): in_splits(tmp_path / "above")
    with pytest.raises(DataError, match="two of them mean the same"): in_splits(parted(root, tmp_path / "twice", ("train", "val", "valid")))
    (root / "test").mkdir()  # pictures without masks beside those with them
    assert sum(map(len, in_splits(root, fractions=(0.5, 0.25, 0.25)).values())) == 8


@pytest.mark.parametrize("below", [True, False])
def test_a_split_in_which_no_pixel_counts(root, tmp_path, below):
    for split in ("train", "val"):
        for kind in ("images", "masks"): shutil.copytree(root / kind, tmp_path / "own" / (f"{kind}/{split}" if below else f"{split}/{kind}"))
    masks = sorted((tmp_path / "own" / ("masks/val" if below else "val/masks")).rglob("*.png"))
    for path in masks[1:]: PIL.Image.new("L", (32, 32), 255).save(path)
    names = dict(class_names=Shapes().class_names)
    assert len(in_splits(tmp_path / "own", **names)["val"]) == 8  # some pixels count
    PIL.Image.new("L", (32, 32), 255).save(masks[0])
    with pytest.raises(DataError, match="in no mask of 'val' is there a pixel that counts"): in_splits(tmp_path / "own", **names)
    assert len(in_splits(tmp_path / "own", verify="header", **names)["val"]) == 8  # nobody has looked
    for path in (root / "masks").rglob("*.png"): PIL.Image.new("L", (32, 32), 255).save(path)
    with pytest.raises(DataError, match="in no mask is there a pixel that counts"): MaskFolder(root, **names)


def test_class_names_stand_for_one_class_each(root):
    for make in (MaskFolder, lambda root, class_names: MaskFolderDataModule(root, class_names=class_names, num_workers=0),
                 lambda root, class_names: SegmentationDataModule(Pairs(), Pairs(), class_names=class_names)):
        with pytest.raises(ConfigError, match="class_names has 'a' twice"): make(root, class_names=["a", "b", "a", "c"])


class Pairs(torch.utils.data.Dataset):
    "PIL pictures and masks of several sizes, as torchvision's VOCSegmentation gives them, with a border of 255."
    def __init__(self, wrong=None): self.wrong = wrong
    def __len__(self): return 5

    def __getitem__(self, i):
        mask = np.full((20 + 4 * i, 30), 1, np.uint8)
        mask[0], mask[1:6] = 255, i % 3
        if self.wrong == i: mask[3, 3] = 9
        return PIL.Image.new("L", (30, 20 + 4 * i), 50), PIL.Image.fromarray(mask).convert("P")


def test_torchvisions_pairs():
    data = SegmentationDataModule(Pairs(), Pairs(), class_names="abc", image_size=20, batch_size=5, num_workers=0)
    images, masks = next(iter(data.val_dataloader()))
    assert images.shape[0] == 5 and images.shape[1] == 3 and images.shape[2:] == masks.shape[1:] and set(masks.unique().tolist()) == {0, 1, 2, 255}
    for (_, mask), whole in zip(Pairs(), masks):  # one after another on one grid, the rest does not count
        h, w = (round(20 * n / min(mask.size)) for n in mask.size[::-1])
        assert (whole[h + 1:] == 255).all() and (whole[:, w + 1:] == 255).all() and (whole[2:h - 1, : w - 1] != 255).all()
    bad = SegmentationDataModule(Pairs(3), Pairs(), class_names="abc", image_size=20, num_workers=0)
    with pytest.raises(DataError, match="pair 3: the mask holds class 9, where there are 3 classes"): batches(bad)
    with pytest.raises(ConfigError, match="give class_names"): SegmentationDataModule(Pairs(), Pairs())
    with pytest.raises(ConfigError, match="no pictures for 'val'"): SegmentationDataModule(Pairs(), [], class_names="abc")
    again = SegmentationDataModule(Pairs(), Pairs(), class_names="abc", num_workers=0)
    assert data.fingerprint() == again.fingerprint() != SegmentationDataModule(Pairs(), Shapes(5, 32), class_names="abcd").fingerprint()


class Items(torch.utils.data.Dataset):
    "What is given, one after another, and before it a good pair."
    def __init__(self, *items): self.items = [(torch.zeros(3, 8, 8), torch.zeros(8, 8).long()), *items]
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]


MASK = torch.zeros(8, 8).long()


@pytest.mark.parametrize("item, reason", [
    ((torch.full((3, 8, 8), 200.0), MASK), "pixels from 0 to 1, got 200 to 200; give uint8 for 0 to 255"),
    ((torch.full((3, 8, 8), -2.0), MASK), "pixels from 0 to 1, got -2 to -2"),
    ((torch.full((3, 8, 8), torch.nan), MASK), "pixels from 0 to 1, got nan"),
    ((np.zeros((3, 8, 8), np.uint8), MASK), r"\(height, width, channels\) in uint8, got \[3, 8, 8\] in uint8"),
    ((np.zeros((8, 8, 3)), MASK), "in uint8, got .* in float64"),
    (("a.png", MASK), "a str is no image"),
    ((torch.zeros(3, 8, 8), "a.png"), ""),
    ((torch.zeros(3, 8, 9), MASK), "a mask of .* for a picture of"),
    ({"image": torch.zeros(3, 8, 8), "mask": MASK}, r"expected is \(picture, mask\), got a dict"),
    ((torch.zeros(3, 8, 8), MASK, 1), r"expected is \(picture, mask\), got a tuple of 3"),
])
def test_what_is_no_pair_is_named(item, reason):
    data = SegmentationDataModule(Items(item), Items(), class_names="ab", image_size=8, num_workers=0)
    with pytest.raises(DataError, match=f"^pair 1: .*{reason}"): data.datasets["train"][1]
    assert data.datasets["train"][0][0].shape == (3, 8, 8)


def test_pixels_that_resizing_took_a_little_too_far():
    image = v2.functional.resize(torch.rand(3, 40, 40).round(), [30, 30], v2.InterpolationMode.BICUBIC, antialias=True)
    assert image.max() > 1.01
    data = SegmentationDataModule(Items((image, MASK.new_zeros(30, 30))), Items(), class_names="ab", num_workers=0)
    assert torch.equal(data.datasets["train"].pair(1)[0], image)


@pytest.mark.parametrize("image", [torch.full((1, 8, 8), 102, dtype=torch.uint8), torch.full((8, 8), 0.4), np.full((8, 8), 102, np.uint8),
                                   np.full((8, 8, 3), 102, np.uint8), PIL.Image.new("RGB", (8, 8), (102,) * 3), PIL.Image.new("L", (8, 8), 102)])
def test_pictures_in_gray(image, root):
    options = dict(mean=[0.5], std=[0.2], mode="L", image_size=8, batch_size=1, num_workers=0)
    data = SegmentationDataModule(Items(), Items((image, MASK)), class_names="ab", **options)
    pictures = [x for x, _ in data.val_dataloader()]
    torch.testing.assert_close(pictures[1], torch.full((1, 1, 8, 8), -0.5))
    assert data.input_shape == [1, 8, 8] and next(iter(data.train_dataloader()))[0].shape == (1, 1, 8, 8) and data.show_batch().axes
    coloured = SegmentationDataModule(Items(), Items((image, MASK)), class_names="ab", image_size=8, num_workers=0)
    assert coloured.datasets["val"][1][0].shape == (3, 8, 8)


def test_a_folder_in_gray(root):
    data = MaskFolderDataModule(root, mode="L", image_size=24, num_workers=0)
    assert next(iter(data.val_dataloader()))[0].shape[1] == 1 and data.input_shape == [1, 24, 24]
    assert create_datamodule(data.config).config == data.config and data.config.arguments["mode"] == "L"
    with pytest.raises(ConfigError, match="mode is 'RGB' or 'L', got 'gray'"): MaskFolderDataModule(root, mode="gray", num_workers=0)
    with pytest.raises(ConfigError, match="a split is 'train' or 'val' or 'test', got 'valid'"): data.show_batch("valid")


# Names of classes in a file, and splits in lists

def test_class_names_from_a_file(root):
    (root / "codes.txt").write_text("\ufeffnothing\r\nround\r\nflat\r\nsharp\r\n\r\n", encoding="utf-8")
    names = ("nothing", "round", "flat", "sharp")
    assert MaskFolder(root).class_names == scan_masks(root, verify="header").class_names == names
    assert MaskFolderDataModule(root, num_workers=0).class_names == names
    assert MaskFolderDataModule(root, class_names=["a", "b", "c", "d"], num_workers=0).num_classes == 4
    shutil.copy(root / "codes.txt", root / "mine.txt")
    (root / "codes.txt").write_text("nothing\nround\n")
    for file in ("mine.txt", root / "mine.txt"): assert MaskFolderDataModule(root, class_names=file, num_workers=0).class_names == names
    with pytest.raises(DataError, match="where there are 2 classes"): MaskFolderDataModule(root, num_workers=0)
    (root / "classes.txt").write_text("a\n\nb\n")
    with pytest.raises(ConfigError, match="classes.txt and codes.txt"): MaskFolder(root)
    with pytest.raises(DataError, match="line 2 of .* is empty"): MaskFolder(root, class_names="classes.txt")
    (root / "classes.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match="lists 'a' twice"): MaskFolder(root, class_names="classes.txt")
    (root / "classes.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="cannot read"): MaskFolder(root, class_names="classes.txt")
    with pytest.raises(MissingPathError, match="no list of class names"): MaskFolder(root, class_names="none.txt")


def test_split_folders_share_the_file_above_them(root, tmp_path):
    for split in ("train", "val"):
        for folder in ("images", "masks"): shutil.copytree(root / folder, tmp_path / "ready" / split / folder)
    (tmp_path / "ready" / "classes.txt").write_text("a\nb\nc\nd\n")
    assert MaskFolderDataModule(tmp_path / "ready", num_workers=0).class_names == tuple("abcd")


def write_lists(root, **lists):
    (root / "lists").mkdir(exist_ok=True)
    for split, names in lists.items(): (root / "lists" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def stems(data):
    return [[image.removeprefix("images/").rsplit(".", 1)[0] for image, _ in data.datasets[s].data.files] for s in ("train", "val", "test")]


def test_lists_are_kept_in_their_order(root, monkeypatch):
    from flame_vision.data import masks
    looked = []
    monkeypatch.setattr(masks, "look_at_pair", lambda *pair, look=masks.look_at_pair: looked.append(pair[1]) or look(*pair))
    train, val = ["4", "a/1 é", "0", "6"], ["a/7 é", "2"]
    write_lists(root, train=train, val=val)
    for lists in ("lists", root / "lists"):
        looked.clear()
        data = MaskFolderDataModule(root, lists=lists, image_size=24, num_workers=0)
        assert len(looked) == len(set(looked)) == 6 and stems(data) == [train, val, val] and not data.held_out
    assert MaskFolderDataModule.from_config(data.config).fingerprint() == data.fingerprint()
    write_lists(root, test=["a/5 é"])
    data = MaskFolderDataModule(root, lists="lists", num_workers=0)
    assert stems(data) == [train, val, ["a/5 é"]] and data.held_out
    write_lists(root, test=["unknown", "secret"])  # a benchmark that keeps its masks
    assert stems(MaskFolderDataModule(root, lists="lists", num_workers=0)) == [train, val, val]


def test_classes_are_counted_in_all_lists_together(root):
    for name in ("0", "2"): PIL.Image.fromarray(np.eye(32, dtype=np.uint8)).save(root / "masks" / f"{name}.png")
    write_lists(root, train=["0", "2"], val=["4", "6"])
    PIL.Image.fromarray(5 * np.eye(32, dtype=np.uint8)).save(root / "masks" / "4.png")
    data = MaskFolderDataModule(root, lists="lists", num_workers=0)
    assert data.num_classes == 6 and {data.datasets[s].data.class_names for s in ("train", "val")} == {tuple("012345")}


def test_all_that_is_wrong_with_lists(root):
    write_lists(root, train=["0", "2", "0", "4", "nobody", "6"], val=["4", "a/3 é", "a/5 é"], test=["a/5 é", "a/1 é"])
    (root / "masks" / "6.png").unlink()
    (root / "images" / "2.bmp").write_bytes(b"BM no")
    wanted = {"train.txt: lists '0' 2 times", "train.txt: lists '4', which val.txt lists too", "val.txt: lists 'a/5 é', which test.txt lists too",
              "images/6.jpg: no mask of this name in 'masks'", "nobody: no picture in 'images' and no mask in 'masks' of this name"}
    with pytest.raises(DataError, match="has 6 problems") as caught: MaskFolderDataModule(root, lists="lists", num_workers=0)
    assert all(line in str(caught.value) for line in wanted) and "images/2.bmp: " in str(caught.value)
    with pytest.warns(UserWarning, match="6 problems") as warned:
        data = MaskFolderDataModule(root, lists="lists", on_error="skip", num_workers=0)
    assert len(warned) == 1 and stems(data) == [["0"], ["4", "a/3 é"], ["a/5 é", "a/1 é"]]


def test_lists_that_leave_nothing(root):
    make = lambda **o: MaskFolderDataModule(root, lists="lists", num_workers=0, **o)  # noqa: E731
    with pytest.raises(MissingPathError, match="no folder of lists"): make()
    write_lists(root, train=["0", "nobody"])
    with pytest.raises(DataError, match="2 problems: lists/val.txt: no such list; nobody"): make()
    with pytest.warns(UserWarning), pytest.raises(DataError, match="has no pair for 'val' .*val.txt: no such list"): make(on_error="skip")
    write_lists(root, train=["0"], val=[])
    with pytest.raises(DataError, match="has no pair for 'val'"): make()
    (root / "lists" / "val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot read"): make()
    with pytest.raises(MissingPathError, match="no folder at"): MaskFolderDataModule(root / "nowhere", lists="lists")


# torchvision's data sets, from files that are drawn here

def draw(folder, names, numbers, suffix="png", size=40, mode="L"):
    "Pictures in one folder, masks with these numbers for ground, circle, square and triangle in another; a rim of the last number."
    images, masks, of_image, of_mask = folder
    images.mkdir(parents=True, exist_ok=True), masks.mkdir(parents=True, exist_ok=True)
    for i, (name, (image, mask)) in enumerate(zip(names, Shapes(len(names), size, seed=5))):
        found = np.array(numbers[:4], np.uint8)[mask[: size - i].numpy()]
        found[:2] = numbers[4]
        v2.functional.to_pil_image(image[:, : size - i]).save(images / of_image.format(name))
        made = PIL.Image.fromarray(found)
        if mode == "P": made.putpalette(list(range(255, -1, -1)) * 3)
        made.save(masks / of_mask.format(name))


VOC_NUMBERS, VOC_TRAIN, VOC_VAL = (0, 1, 15, 20, 255), ["2007_9", "2011_3", "2008_5"], ["2009_1", "2007_2"]


@pytest.fixture
def voc(tmp_path):
    base = tmp_path / "VOCdevkit" / "VOC2012"
    draw((base / "JPEGImages", base / "SegmentationClass", "{}.jpg", "{}.png"), VOC_TRAIN + VOC_VAL, VOC_NUMBERS, mode="P")
    PIL.Image.new("RGB", (9, 9)).save(base / "JPEGImages" / "2012_0.jpg")
    (base / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, names in dict(train=VOC_TRAIN, val=VOC_VAL, trainval=VOC_TRAIN + VOC_VAL).items():
        (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return tmp_path


def read(path): return torch.from_numpy(np.array(PIL.Image.open(path)).astype(np.int64))


def test_voc_is_torchvisions(voc):
    base = voc / "VOCdevkit" / "VOC2012"
    for root in (voc, voc / "VOCdevkit", base, str(base)):
        data = VOCSegmentationDataModule(root, image_size=24, num_workers=0)
        for split in ("train", "val"):
            theirs, ours = datasets.VOCSegmentation(voc, year="2012", image_set=split, download=False), data.datasets[split].data
            assert [tuple(os.path.relpath(f, base) for f in pair) for pair in zip(theirs.images, theirs.masks)] == ours.files
            for (image, mask), (same, numbers) in zip(theirs, ours, strict=True):
                assert np.array_equal(image, same) and np.array_equal(np.asarray(mask), plain(numbers).numpy())
            assert set(torch.cat([plain(m).flatten() for _, m in ours]).tolist()) <= set(VOC_NUMBERS)
    assert data.num_classes == 21 and data.class_names[15] == "person" and not data.held_out and data.ignore_index == 255
    assert VOCSegmentationDataModule.from_config(data.config).fingerprint() == data.fingerprint()
    assert all(isinstance(create_datamodule(name, root=voc, num_workers=0), VOCSegmentationDataModule) for name in ("voc", "pascal_voc"))
    images, masks = next(iter(data.val_dataloader()))
    assert images.shape[-2:] == masks.shape[-2:] and (masks == 255).any()


def test_voc_that_cannot_be_found(voc):
    with pytest.raises(MissingPathError, match="no folder at"): VOCSegmentationDataModule(voc / "nowhere")
    with pytest.raises(MissingPathError, match="no Pascal VOC at"): VOCSegmentationDataModule(voc / "VOCdevkit" / "VOC2012" / "ImageSets")
    shutil.copytree(voc / "VOCdevkit" / "VOC2012", voc / "VOCdevkit" / "VOC2007")
    with pytest.raises(ConfigError, match="VOC2007, VOC2012; give one of them"): VOCSegmentationDataModule(voc)
    shutil.rmtree(voc / "VOCdevkit" / "VOC2007" / "ImageSets")
    with pytest.raises(MissingPathError, match="no folder of lists"): VOCSegmentationDataModule(voc / "VOCdevkit" / "VOC2007")
    shutil.rmtree(voc / "VOCdevkit" / "VOC2007")
    (voc / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2011_3.png").unlink()
    with pytest.raises(DataError, match="2011_3.jpg: no mask"): VOCSegmentationDataModule(voc)
    with pytest.warns(UserWarning): assert len(VOCSegmentationDataModule(voc, on_error="skip").datasets["train"]) == 2


def test_voc_names_are_those_of_published_weights():
    from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

    from flame_vision.data.torchvision_datasets import VOC_CLASSES
    assert VOC_CLASSES[1:] == tuple(DeepLabV3_ResNet50_Weights.DEFAULT.meta["categories"][1:]) and VOC_CLASSES[0] == "background"


def test_voc_wrapped(voc):
    data = datasets.VOCSegmentation(voc, year="2012", image_set="train", download=False)
    wrapped = wrap_dataset(data)
    assert len(wrapped) == 3 and len(wrapped.class_names) == 21 and wrap_dataset(wrapped) is wrapped
    for (image, mask), picture, file in zip(wrapped, data.images, data.masks, strict=True):
        assert torch.equal(plain(mask), read(file)) and isinstance(mask, tv_tensors.Mask) and np.array_equal(image, PIL.Image.open(picture))
    val = datasets.VOCSegmentation(voc, image_set="val")
    ways = [(data, val, None), (wrapped, wrap_dataset(val)), (wrapped, val), (datasets.wrap_dataset_for_transforms_v2(data), val)]
    made = [SegmentationDataModule(*way, image_size=24, batch_size=2, num_workers=n) for n, way in zip((0, 2, 0, 0), ways)]
    for other in made[1:]:
        assert other.class_names == made[0].class_names and other.fingerprint() == made[0].fingerprint()
        for a, b in zip(batches(made[0]), batches(other), strict=True): assert all(torch.equal(x, y) for x, y in zip(a, b))
    again = VOCSegmentationDataModule(voc, image_size=24, batch_size=2, num_workers=0)
    for a, b in zip(batches(made[0]), batches(again), strict=True): assert all(torch.equal(x, y) for x, y in zip(a, b))
    raw = SegmentationDataModule(data, val, class_names=[f"c{i}" for i in range(30)], image_size=24, num_workers=0)
    assert raw.num_classes == 30 and raw.datasets["train"].data is data


def test_sbd_wrapped_and_together_with_voc(voc, tmp_path):
    scipy = pytest.importorskip("scipy.io")
    root, names = tmp_path / "sbd", ["2008_1", "2008_2"]
    draw((root / "img", root / "cls", "{}.jpg", "{}.png"), names, (0, 3, 7, 12, 0))
    for name in names:
        inner = np.array([(np.array(PIL.Image.open(root / "cls" / f"{name}.png")),)], dtype=[("Segmentation", object)])
        scipy.savemat(root / "cls" / f"{name}.mat", {"GTcls": inner})
    (root / "train.txt").write_text("\n".join(names))
    data = datasets.SBDataset(root, image_set="train", mode="segmentation")
    wrapped = wrap_dataset(data)
    for (_, mask), name in zip(wrapped, names, strict=True): assert torch.equal(plain(mask), read(root / "cls" / f"{name}.png"))
    own = datasets.VOCSegmentation(voc)
    both = SegmentationDataModule(torch.utils.data.ConcatDataset([own, data]), datasets.VOCSegmentation(voc, image_set="val"), num_workers=0)
    assert len(both.datasets["train"]) == 5 and both.class_names == wrapped.class_names == wrap_dataset(own).class_names
    assert torch.equal(both.datasets["train"].pair(4)[1], read(root / "cls" / "2008_2.png"))
    with pytest.raises(ConfigError, match="gives 'boundaries'; make it with mode='segmentation'"): wrap_dataset(datasets.SBDataset(root))


@pytest.fixture
def cityscapes(tmp_path):
    for city, names, numbers in (("ulm", ["ulm_1", "ulm_0"], (7, 24, 33, 4, 0)), ("aachen", ["aachen_0"], (11, 26, 29, 23, 1))):
        folder = tmp_path / "leftImg8bit" / "train" / city, tmp_path / "gtFine" / "train" / city
        draw((*folder, "{}_leftImg8bit.png", "{}_gtFine_labelIds.png"), names, numbers)
        draw((*folder, "{}_leftImg8bit.png", "{}_gtFine_instanceIds.png"), names, numbers)
    return tmp_path


def test_cityscapes_wrapped(cityscapes):
    data = datasets.Cityscapes(cityscapes, split="train", mode="fine", target_type="semantic")
    wrapped = wrap_dataset(data)
    assert wrapped.class_names == ("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
                                   "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    scored = dict(zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), range(19)))  # cityscapesScripts' labels.py
    names = ["aachen/aachen_0", "ulm/ulm_0", "ulm/ulm_1"]  # by name, however the file system lists them
    for (image, mask), name in zip(wrapped, names, strict=True):
        file = read(cityscapes / "gtFine" / "train" / f"{name}_gtFine_labelIds.png")
        assert torch.equal(plain(mask), torch.tensor([scored.get(n, 255) for n in range(256)])[file]) and (plain(mask)[:2] == 255).all()
        assert np.array_equal(image, PIL.Image.open(cityscapes / "leftImg8bit" / "train" / f"{name}_leftImg8bit.png"))
    seen = set(torch.cat([plain(mask).flatten() for _, mask in wrapped]).tolist())
    assert {0, 2, 255} < seen and seen & {11, 13, 18}
    module = SegmentationDataModule(data, data, image_size=24, num_workers=0)
    assert module.num_classes == 19 and len(batches(module)) > 0
    for wrong in ("instance", ["semantic", "instance"], "color"):
        with pytest.raises(ConfigError, match="make it with target_type='semantic'"): wrap_dataset(datasets.Cityscapes(cityscapes, target_type=wrong))
    file = cityscapes / "gtFine" / "train" / "ulm" / "ulm_0_gtFine_labelIds.png"
    PIL.Image.fromarray(np.full((40, 40), 77, np.uint8)).save(file)
    with pytest.raises(DataError, match="picture 1 of Cityscapes cannot be used: the mask holds 77"): wrapped[1]
    file.unlink()
    with pytest.raises(DataError, match="picture 1 of Cityscapes cannot be used: no such file"): wrapped[1]


@pytest.fixture
def pets(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    names = ["Abyssinian_1", "beagle_2", "Bombay_3", "pug_4"]
    draw((base / "images", base / "annotations" / "trimaps", "{}.jpg", "{}.png"), names, (2, 1, 1, 1, 3))
    lines = [f"{name} {i + 1} {i % 2 + 1} 1\n" for i, name in enumerate(names)]
    for split, part in dict(trainval=lines[:3], test=lines[3:]).items(): (base / "annotations" / f"{split}.txt").write_text("".join(part))
    return tmp_path


def test_pets_wrapped(pets):
    data = datasets.OxfordIIITPet(pets, split="trainval", target_types="segmentation", download=False)
    wrapped = wrap_dataset(data)
    assert wrapped.class_names == ("background", "pet", "border") and len(wrapped) == 3
    for (_, mask), name in zip(wrapped, ("Abyssinian_1", "beagle_2", "Bombay_3"), strict=True):
        file = read(pets / "oxford-iiit-pet" / "annotations" / "trimaps" / f"{name}.png")
        assert torch.equal(plain(mask), torch.tensor([99, 1, 0, 2])[file]) and (plain(mask)[:2] == 2).all()
    train, val = torch.utils.data.random_split(data, [2, 1], torch.Generator().manual_seed(0))
    module = SegmentationDataModule(train, val, datasets.OxfordIIITPet(pets, "test", "segmentation"), image_size=24, batch_size=2, num_workers=0)
    assert [len(module.datasets[s]) for s in ("train", "val", "test")] == [2, 1, 1] and module.held_out and module.num_classes == 3
    for part, split in ((train, "train"), (val, "val")):
        for place, index in enumerate(part.indices): assert torch.equal(module.datasets[split].pair(place)[1], plain(wrapped[index][1]))
    for wrong in (["category", "segmentation"], []):
        data = datasets.OxfordIIITPet(pets, target_types=wrong)
        with pytest.raises(ConfigError, match="make it with target_types='segmentation'"): wrap_dataset(data)
    for other in ("category", "binary-category"):
        data = datasets.OxfordIIITPet(pets, target_types=other)
        with pytest.raises(ConfigError, match="is for classification, and this is segmentation; .* say so when it is made"):
            SegmentationDataModule(data, data)


def test_what_is_not_wrapped(voc, pets, tmp_path):
    flip = v2.RandomHorizontalFlip()
    for own in (dict(transforms=flip), dict(transform=flip), dict(target_transform=flip)):
        data = datasets.VOCSegmentation(voc, **own)
        for make in (lambda: wrap_dataset(data), lambda: SegmentationDataModule(data, data),  # noqa: B023
                     lambda: wrap_dataset(torch.utils.data.Subset(data, [0]))):  # noqa: B023
            with pytest.raises(ConfigError, match="has transforms of its own.*train_transforms"): make()
    for data in (Shapes(4, 40), datasets.FakeData(3)):
        with pytest.raises(ConfigError, match="no reading is registered for .* give the data module its class_names"): wrap_dataset(data)
    with pytest.raises(ConfigError, match="give class_names"): SegmentationDataModule(datasets.FakeData(3), datasets.FakeData(3))
    own, other = datasets.VOCSegmentation(voc), datasets.OxfordIIITPet(pets, target_types="segmentation")
    with pytest.raises(ConfigError, match="name their classes differently"): wrap_dataset(torch.utils.data.ConcatDataset([own, other]))
    with pytest.raises(ConfigError, match="'val' calls its classes background, pet, border"): SegmentationDataModule(own, other)
    with pytest.raises(ConfigError, match="VOCSegmentation is for segmentation, and this is detection"):
        from flame_vision.data.torchvision_datasets import wrap_known
        wrap_known(own, "detection")


def test_a_reading_of_ones_own(voc):
    from flame_vision.data.torchvision_datasets import Numbers, Reading, reading_of

    class Fruit(torch.utils.data.Dataset):
        def __len__(self): return 2
        def __getitem__(self, i): return PIL.Image.new("RGB", (30, 20)), np.full((20, 30), 10 * i + 10, np.uint8)

    @reading_of.register(Fruit)
    def read_fruit(data): return Reading("segmentation", ("apple", "pear"), Numbers(((10, 0), (20, 1))))

    data = SegmentationDataModule(Fruit(), Fruit(), image_size=20, num_workers=0)
    assert data.class_names == ("apple", "pear") and [int(data.datasets["train"].pair(i)[1].unique()) for i in (0, 1)] == [0, 1]

    class Voc(datasets.VOCSegmentation): pass
    assert len(wrap_dataset(Voc(voc)).class_names) == 21


# What is seen of a batch

def folder_of_colours(root):
    for name in ("red", "green"):
        (root / name).mkdir(parents=True)
        for i in range(4): PIL.Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8)).save(root / name / f"{name}{i}.png")
    return create_datamodule("folder", root=root, image_size=32, fractions=(0.5, 0.25, 0.25), num_workers=0)


MODULES = {"digits": lambda root, voc, path: create_datamodule("digits", image_size=24),
           "folder": lambda root, voc, path: folder_of_colours(path / "colours"),
           "shapes": lambda root, voc, path: create_datamodule("shapes", image_size=32, lengths=(9, 5, 5)),
           "masks": lambda root, voc, path: create_datamodule("masks", root=root, class_names=["rest", "ball", "box", "tent"], image_size=24,
                                                              num_workers=0),
           "voc": lambda root, voc, path: create_datamodule("voc", root=voc, image_size=24, num_workers=0),
           "pairs": lambda root, voc, path: SegmentationDataModule(Pairs(), Pairs(), class_names="abc", image_size=20, num_workers=0)}


def seen(figure): return [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images]


def picture(data, image):
    mean, std = (torch.tensor(x)[:, None, None] for x in data.normalization)
    return (image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()


BOXES = {"shapes_detection", "coco", "voc_detection"}  # drawn in test_detection_data.py


def test_every_data_module_is_drawn(): assert set(list_datasets()) == set(MODULES) - {"pairs"} | BOXES


@pytest.mark.parametrize("name", MODULES)
def test_show_batch(name, root, voc, tmp_path):
    data = MODULES[name](root, voc, tmp_path)
    size = min(4, *map(len, data.datasets.values()))
    masked = getattr(data, "task", "classification") == "segmentation"
    frames = seen(figure := data.show_batch("val", size, columns=size))
    assert len(frames) == size * (1 + masked) and len(figure._repr_png_()) > 1000
    samples = [data.datasets["val"][i] for i in range(len(data.datasets["val"]))]
    numbers = set()
    for place, frame in enumerate(frames[:size]):
        tones = 1 / 255 if masked else 1e-5
        same = [i for i, (x, _) in enumerate(samples) if picture(data, x).shape == frame.shape[:2] + (3,)
                and np.abs(picture(data, x) - frame / (255 if frame.dtype == np.uint8 else 1)).max() <= tones]
        assert same, "a frame that is no picture of the data"
        if not masked:
            assert figure.axes[place].get_title() in {data.class_names[int(samples[i][1])] for i in same}
            continue
        mask = samples[same[0]][1].numpy()
        numbers |= set(mask.flatten().tolist())
        colours = np.vstack([class_colors(255), [[255] * 3]])[mask] / 255
        assert np.abs(np.where((mask == 0)[..., None], frame, colours) - frames[size + place]).max() < 1e-3
    if masked:
        words = {t.get_text() for t in figure.legends[0].get_texts()}
        assert words == {"not counted" if n == 255 else data.class_names[n] for n in numbers}
    train = seen(data.show_batch("train", size))
    assert len(train) == len(frames) and all(np.array_equal(a, b) for a, b in zip(train, seen(data.show_batch("train", size))))
    data.datasets["train"].transform = data.eval_transforms
    plainly = [picture(data, data.datasets["train"][i][0]) for i in range(min(100, len(data.datasets["train"])))]
    assert not any(p.shape == f.shape and np.abs(p - f).max() < 0.01 for p in plainly for f in train[:size]), "not augmented"
