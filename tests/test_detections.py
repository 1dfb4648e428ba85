"What a detector says of pictures: boxes in their own pixels, whatever the batch; and boxes on pictures, whatever the size."
import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from flame_vision.core.errors import ConfigError, DataError, ShapeError
from flame_vision.data import detection_transforms
from flame_vision.detections import Detection, detect, draw_boxes, text_place
from flame_vision.preprocessing import whole_image_transforms
from flame_vision.transforms import Compose, RandomHorizontalFlip, classification_transforms

PLAIN = whole_image_transforms(100, (0, 0, 0), (1, 1, 1))


class Brightest(nn.Module):
    "A box around what is red, green and blue; remembers which batches it saw."
    def __init__(self):
        super().__init__()
        self.seen, self.layer = [], nn.Linear(1, 1)

    def forward(self, x, sizes=None):
        self.seen.append((tuple(x.shape), sizes.tolist()))
        columns, rows = (x > 0.5).any(2), (x > 0.5).any(3)
        def ends(on): return on.int().argmax(2), on.shape[2] - on.flip(2).int().argmax(2)
        (x1, x2), (y1, y2) = ends(columns), ends(rows)
        logits = torch.where(torch.eye(4)[1:].bool() & columns.any(2)[..., None], 2.0, -9.0)
        return {"logits": logits, "boxes": torch.stack([x1, y1, x2, y2], 2).float()}

    def postprocess(self, outputs, sizes, original_sizes, score_threshold=None, nms_threshold=None, max_detections=None):
        found = []
        for logits, boxes, size, original in zip(outputs["logits"], outputs["boxes"], sizes, original_sizes):
            scores, labels = logits.sigmoid().max(1)
            kept = scores >= (0.05 if score_threshold is None else score_threshold)
            found.append({"boxes": (boxes * (original / size).flip(0).repeat(2))[kept][:max_detections], "scores": scores[kept][:max_detections],
                          "labels": labels[kept][:max_detections]})
        return found


def scene(height, width, *kinds):
    "A picture with a rectangle of each kind (0 red, 1 green, 2 blue), and their boxes."
    pixels, boxes, rng = np.zeros((height, width, 3), np.uint8), [], np.random.default_rng(height + width)
    for kind in kinds:
        x, y = (int(rng.integers(0, side // 2)) for side in (width, height))
        w, h = (int(rng.integers(side // 4, side // 2)) for side in (width, height))
        pixels[y:y + h, x:x + w, kind] = 255
        boxes.append([x, y, x + w, y + h])
    return Image.fromarray(pixels), torch.tensor(boxes).float()


def test_boxes_come_back_to_each_pictures_pixels_in_the_order_of_the_pictures():
    sizes = [(120, 200), (300, 100), (120, 200), (97, 131), (120, 200), (300, 100)]
    scenes = [scene(*size, *range(i % 4)) for i, size in enumerate(sizes)]
    model = Brightest().train()
    found = detect(model, [picture for picture, _ in scenes], PLAIN, batch_size=2)
    assert model.training
    for one, (_, boxes), size in zip(found, scenes, sizes):
        assert len(one) == len(boxes) and one.labels.tolist() == list(range(1, len(boxes) + 1))
        if len(boxes): torch.testing.assert_close(one.boxes, boxes, rtol=0, atol=max(1.0, min(size) / 100))
    assert sorted(shape for shape, _ in model.seen) == [(1, 3, 128, 160), (1, 3, 128, 192), (2, 3, 128, 192), (2, 3, 320, 128)]


def test_an_answer_does_not_depend_on_the_neighbours():
    pictures = [scene(h, w, 0, 1, 2)[0] for h, w in ((120, 200), (121, 200), (200, 120), (64, 64))]
    together = detect(Brightest(), pictures, PLAIN)
    for picture, one in zip(pictures, together):
        alone, = detect(Brightest(), picture, PLAIN)
        assert torch.equal(alone.boxes, one.boxes) and torch.equal(alone.scores, one.scores)


def test_the_way_back_is_torchvisions():
    picture, _ = scene(173, 291, 0, 1)
    found, = detect(Brightest(), picture, PLAIN)
    seen = PLAIN(picture)
    raw = Brightest()(seen[None], torch.tensor([seen.shape[1:]]))["boxes"][0, :2]
    theirs = GeneralizedRCNNTransform(100, 1000, [0] * 3, [1] * 3).eval().postprocess([{"boxes": raw}], [tuple(seen.shape[1:])], [(173, 291)])
    torch.testing.assert_close(found.boxes, theirs[0]["boxes"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["path", "array", "tensor", "batch", "gray"])
def test_pictures_in_any_form(kind, tmp_path):
    picture, boxes = scene(100, 140, 1)
    picture.save(tmp_path / "a.png")
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    given = {"path": str(tmp_path / "a.png"), "array": np.array(picture), "tensor": tensor, "batch": tensor[None], "gray": picture.convert("L")}[kind]
    found = detect(Brightest(), given, PLAIN, ["background", "red", "green", "blue"])
    assert len(found) == 1
    if kind == "gray": assert found[0].counts() == {"red": 1, "green": 1, "blue": 1}   # 150 of 255 in each channel
    else: assert found[0].counts() == {"green": 1} and torch.equal(found[0].boxes, boxes)


def test_no_pictures_and_nothing_found():
    assert detect(Brightest(), [], PLAIN) == []
    found, = detect(Brightest(), scene(64, 64)[0], PLAIN)
    assert len(found) == 0 and found.boxes.shape == (0, 4) and found.counts() == {} and found.found == []
    picture = scene(64, 64)[0]
    assert found.draw(picture).tobytes() == picture.tobytes()


@pytest.mark.parametrize("wrong, error, says", [
    (dict(batch_size=0), ConfigError, "at least 1"), (dict(score_threshold=2), ConfigError, "between 0 and 1, got 2"),
    (dict(transforms=lambda picture: picture), DataError, "picture 0 leaves .* as Image, .*ToTensor"),
    (dict(transforms=v2.Compose([v2.ToImage(), v2.CenterCrop(9)])), ConfigError, r"cut pictures \(CenterCrop\)"),
    (dict(transforms=Compose([RandomHorizontalFlip(), PLAIN])), ConfigError, r"at random \(RandomHorizontalFlip\).*fitted_transforms"),
    (dict(transforms=detection_transforms(64, augment="jitter")), ConfigError, "cut pictures"),
    (dict(nms_threshold=True), ConfigError, "between 0 and 1"), (dict(max_detections=0), ConfigError, "max_detections"),
    (dict(class_names=["a", "b"]), ConfigError, "2 class names for 4 classes"),
    (dict(transforms=classification_transforms(64)), ConfigError, "cut pictures")])
def test_what_makes_no_sense_is_refused(wrong, error, says):
    with pytest.raises(error, match=says): detect(Brightest(), scene(64, 64)[0], **{"transforms": PLAIN, **wrong})


def test_thresholds_reach_the_model():
    picture, _ = scene(64, 64, 0, 1, 2)
    assert len(detect(Brightest(), picture, PLAIN, score_threshold=0.9)[0]) == 0      # they are sure by 88 %
    assert len(detect(Brightest(), picture, PLAIN, max_detections=2)[0]) == 2


def test_an_answer_can_be_taken_apart():
    answer = Detection(torch.rand(4, 4), torch.tensor([2, 1, 2, 3]), torch.tensor([0.9, 0.8, 0.5, 0.1]), ["background", "cat", "dog", "cow"])
    assert answer.counts() == {"dog": 2, "cat": 1, "cow": 1} and len(answer) == 4
    assert answer.above(0.5).labels.tolist() == [2, 1, 2]
    assert answer.of("dog").scores.tolist() == answer.of(2).scores.tolist() == pytest.approx([0.9, 0.5])
    assert [name for name, _, _ in answer.found] == ["dog", "cat", "dog", "cow"]
    with pytest.raises(ConfigError, match="did you mean 'cat'"): answer.of("cats")
    with pytest.raises(ConfigError, match="no class 4"): answer.of(4)
    assert "cow" not in repr(answer)


def changed(before, after):
    "Corners of the part of a picture that differs."
    return ImageChops.difference(before, after).getbbox()


@pytest.mark.parametrize("size", [(16, 16), (64, 48), (640, 480), (2000, 1300)])
def test_a_frame_lies_where_its_box_is_on_pictures_of_any_size(size):
    picture = Image.new("RGB", size, (128, 128, 128))
    w, h = size
    box = [w // 4, h // 4, 3 * w // 4, 3 * h // 4]
    x1, y1, x2, y2 = changed(picture, draw_boxes(picture, [box]))
    assert max(abs(a - b) for a, b in zip((x1, y1, x2, y2), box)) <= 1      # the dark line around it
    assert draw_boxes(picture, [box]).getpixel((w // 2, h // 2)) == (128, 128, 128)
    drawn = draw_boxes(picture, [box], [1], [0.5], ["background", "thing"])
    assert drawn.size == size and changed(drawn, draw_boxes(picture, [box])) and picture.getbbox() == (0, 0, w, h)


def test_small_pictures_grow_by_a_whole_factor_and_boxes_with_them():
    picture = Image.new("RGB", (50, 30), (90, 90, 90))
    large = draw_boxes(picture, [[10, 5, 30, 20]], least=320)
    assert large.size == (350, 210)
    found = changed(Image.new("RGB", (350, 210), (90, 90, 90)), large)
    assert max(abs(a - b) for a, b in zip(found, (70, 35, 210, 140))) <= 1
    assert draw_boxes(picture, [], least=20).size == (50, 30)


def test_the_best_is_on_top_and_colors_are_those_of_the_class():
    picture = Image.new("RGB", (40, 40))
    boxes = [[5, 5, 35, 35], [5, 5, 35, 35]]
    assert draw_boxes(picture, boxes, colors=["red", (0, 0, 255)]).getpixel((5, 20)) == (255, 0, 0)
    from flame_vision.segmentations import class_colors
    assert draw_boxes(picture, boxes[:1], [3]).getpixel((34, 34)) == tuple(class_colors(4)[3])


def test_boxes_outside_and_of_any_kind_of_numbers_can_be_drawn():
    picture = Image.new("RGB", (40, 40))
    tiny = torch.tensor([[3.7, 2.2, 3.9, 2.3]], dtype=torch.float64)
    for boxes in ([[-50.0, -50, 90, 90]], np.array([[100, 100, 120, 120]]), tiny, [], torch.zeros(0, 4), [[10, 10, 10, 10]], [[20, 20, 5, 5]]):
        assert draw_boxes(picture, boxes, [1] * len(boxes), names=["background", "a very long name that fits nowhere"]).size == (40, 40)
    assert draw_boxes(picture, [[1, 1, 9, 9]], [70], names=["background", "a"]).size == (40, 40)     # a class without a name is its number


@pytest.mark.parametrize("given, says", [
    (([1, 2, 3, 4],), r"\[n, 4\], got \[4\]"), (([[1, 2, 3]],), r"\[n, 4\]"), (([[1, 2, 3, 4]], [1, 2]), "2 labels for 1 boxes"),
    (([[1, 2, 3, 4]], [1], [0.5, 0.6]), "2 scores for 1 boxes"), (([[1, 2, 3, 4]], None, None, None, ["red", "blue"]), "2 colours for 1 boxes")])
def test_what_cannot_be_drawn_is_refused(given, says):
    with pytest.raises(ShapeError, match=says): draw_boxes(Image.new("RGB", (8, 8)), *given)


def test_names_do_not_cover_each_other_where_there_is_room():
    taken = []
    for _ in range(4):
        x, y = text_place([20, 40, 80, 90], (30, 10), (100, 130), taken)
        assert 0 <= x <= 70 and 0 <= y <= 120 and not any(x < b[2] and b[0] < x + 30 and y < b[3] and b[1] < y + 10 for b in taken)
        taken.append((x, y, x + 30, y + 10))
    assert [y for _, y, _, _ in taken] == [30, 40, 90, 80]
    assert text_place([95, -20, 140, 300], (30, 10), (100, 130), [])[0] == 70
