"Pictures that we draw, folders of masks with everything wrong, and pairs that must stay pairs."
import os
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from flame_vision.core.errors import ConfigError, DataError, MissingPathError
from flame_vision.data import (
    MaskFolder,
    MaskFolderDataModule,
    SegmentationDataModule,
    Shapes,
    ShapesDataModule,
    create_datamodule,
    list_datasets,
    scan_masks,
    segmentation_transforms,
)
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
    for wrong in (dict(task="pose"), dict(size=8), dict(max_shapes=0), dict(length=0), dict(seed=-1)):
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
    assert len(MaskFolder(root, class_names="abcd", verify="none")) == len(MaskFolder(root, class_names="abcd", verify="header")) == 8
    for path in (root / "masks").rglob("*.png"): PIL.Image.fromarray(np.uint8(np.asarray(PIL.Image.open(path)) > 0) * 255).save(path)
    with pytest.raises(DataError, match="only 0 and 255"): MaskFolder(root)
    assert MaskFolder(root, ignore_index=None, class_names=[str(i) for i in range(256)])[0][1].max() == 255


def test_a_photo_that_is_turned_has_a_mask_that_is_turned(tmp_path):
    for folder in ("images", "masks"): (tmp_path / folder).mkdir()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (20, 10)).save(tmp_path / "images" / "a.jpg", exif=exif)
    PIL.Image.fromarray(np.eye(20, 10, dtype=np.uint8)).save(tmp_path / "masks" / "a.png")
    for verify in ("decode", "header"): assert not scan_masks(tmp_path, class_names="ab", verify=verify).problems
    image, mask = MaskFolder(tmp_path)[0]
    assert image.size == (10, 20) and mask.shape == (20, 10)
    PIL.Image.fromarray(np.eye(10, 20, dtype=np.uint8)).save(tmp_path / "masks" / "a.png")
    for verify in ("decode", "header"): assert len(scan_masks(tmp_path, class_names="ab", verify=verify).problems) == 1


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
    import shutil
    for split in ("train", "val"):
        for folder in ("images", "masks"): shutil.copytree(root / folder, tmp_path / "ready" / split / folder)
    data = MaskFolderDataModule(tmp_path / "ready", image_size=24, num_workers=0)
    assert [len(data.datasets[s]) for s in ("train", "val", "test")] == [8, 8, 8] and not data.held_out and data.num_classes == 4


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
