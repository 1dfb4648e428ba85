"Losses against PyTorch, torchvision and segmentation_models_pytorch: values and gradients, and what must not happen."
import copy

import pytest
import torch
from segmentation_models_pytorch.losses import DiceLoss as SmpDice
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from flame_vision.core.errors import ConfigError, DataError, ShapeError, UnknownArgumentError, UnknownNameError
from flame_vision.heads import create_loss, list_losses, losses, register_loss
from flame_vision.heads.loss_sums import WeightedSum
from flame_vision.heads.losses import LOSSES, BaseLoss, BinaryCrossEntropyLoss, CrossEntropyLoss, DiceLoss, FocalLoss, check_labels

LABELS = ("cross_entropy", "focal", "dice")
SHAPES = {"pixels": (3, 5, 7, 9), "images": (40, 5)}
WEIGHTS = [0.5, 1.0, 2.0, 0.0, 3.0]


def batch(shape, ignored=0.2, dtype=torch.float32, scale=3):
    "Scores and labels, of which a share is ignored; every class is there."
    scores = (scale * torch.randn(shape, dtype=dtype)).requires_grad_()
    labels = torch.randint(shape[1], (shape[0], *shape[2:]))
    labels.flatten()[:shape[1]] = torch.arange(shape[1])
    hidden = torch.rand(labels.shape) < ignored
    hidden.view(-1)[:shape[1]] = False
    return scores, labels.masked_fill(hidden, 255)


def assert_equal(ours, theirs, scores, what=""):
    "The same number, and the same gradient, within 1e-5 of the largest value."
    for a, b in [(ours, theirs), [torch.autograd.grad(loss, scores, retain_graph=True)[0] for loss in (ours, theirs)]]:
        assert b.abs().max() > 1e-4, f"{what}: nothing to compare"
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * b.abs().max().item(), msg=lambda m: f"{what}: {m}")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_pytorchs(shape, smoothing, weights):
    scores, labels = batch(shape)
    loss = CrossEntropyLoss(weights, label_smoothing=smoothing)
    given = None if weights is None else torch.tensor(weights)
    assert_equal(loss(scores, labels), F.cross_entropy(scores, labels, given, ignore_index=255, label_smoothing=smoothing), scores)
    assert_equal(loss.eval()(scores, labels), F.cross_entropy(scores, labels, given, ignore_index=255), scores)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_softmax_focal_is_smps(shape, gamma):
    scores, labels = batch(shape)
    known = labels != 255
    kept, truth = scores.movedim(1, -1)[known], labels[known]
    assert_equal(FocalLoss(gamma)(scores, labels), softmax_focal_loss_with_logits(kept, truth, gamma), scores, f"gamma {gamma}")


@pytest.mark.parametrize("alpha", [0.25, 0.9])
@pytest.mark.parametrize("gamma", [0.0, 2.0, 3.5])
def test_focal_of_two_classes_is_torchvisions(alpha, gamma):
    one, there = (2 * torch.randn(3, 6, 5)).requires_grad_(), torch.randint(2, (3, 6, 5))
    ours = FocalLoss(gamma, alpha=[1 - alpha, alpha])(torch.stack([torch.zeros_like(one), one], 1), there)
    assert_equal(ours, sigmoid_focal_loss(one, there.float(), alpha, gamma, "mean"), one)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("smooth", [0.0, 1.0, 50.0])
def test_dice_is_smps_with_its_smoothing_counted_twice(shape, smooth):
    scores, labels = batch(shape)
    assert_equal(DiceLoss(2 * smooth)(scores, labels), SmpDice("multiclass", smooth=smooth, ignore_index=255)(scores, labels), scores)


def test_dice_of_absent_classes():
    scores, labels = batch((3, 5, 7, 9))
    some = labels.masked_fill((labels == 1) | (labels == 4), 0)
    peer = SmpDice("multiclass", smooth=0.5, ignore_index=255)(scores, some)  # leaves two out, and divides by five
    assert_equal(DiceLoss(1.0)(scores, some), peer * 5 / 3, scores)
    p, known = scores.softmax(1), (some != 255)
    terms = [1 - (2 * (p[:, k] * (some == k)).sum() + 1) / ((p[:, k] * known).sum() + (some == k).sum() + 1) for k in range(5)]
    assert_equal(DiceLoss(1.0, skip_absent=False)(scores, some), torch.stack(terms).mean(), scores)
    assert torch.stack(terms)[[1, 4]].min() > 0.9, "what is left out: almost 1"


@pytest.mark.parametrize("skip", [True, False])
def test_dice_of_each_image_is_the_mean_over_images_with_labels(skip):
    scores, labels = batch((4, 5, 7, 9))
    labels[0].masked_fill_((labels[0] == 2) | (labels[0] == 3), 1)
    labels[2] = 255
    loss = DiceLoss(0.5, skip_absent=skip)
    alone = torch.stack([loss(scores[i:i + 1], labels[i:i + 1]) for i in (0, 1, 3)]).mean()
    assert_equal(DiceLoss(0.5, True, skip)(scores, labels), alone, scores)
    assert (loss(scores, labels) - alone).abs() > 1e-3, "the batch as a whole is something else"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_binary_cross_entropy_is_pytorchs(shape, weights):
    scores, _ = batch(shape)
    for targets in (torch.rand(shape), torch.rand(shape) < 0.3, (torch.rand(shape) < 0.3).long()):
        positive = None if weights is None else torch.tensor(weights).view(-1, *[1] * (len(shape) - 2))
        peer = F.binary_cross_entropy_with_logits(scores, targets.float(), pos_weight=positive)
        assert_equal(BinaryCrossEntropyLoss(weights)(scores, targets), peer, scores)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*LABELS, "binary_cross_entropy"])
def test_half_precision_is_cast_up(name, dtype):
    scores, labels = batch((2, 5, 16, 16))
    truth = torch.rand(2, 5, 16, 16) if name == "binary_cross_entropy" else labels
    half = scores.detach().to(dtype).requires_grad_()
    loss = create_loss(name)(half, truth)
    assert loss.dtype == torch.float32
    wide = half.detach().float().requires_grad_()
    torch.testing.assert_close(loss, create_loss(name)(wide, truth), rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16): torch.testing.assert_close(create_loss(name)(wide, truth), loss, rtol=0, atol=0)
    loss.backward()
    assert half.grad.dtype == dtype and half.grad.isfinite().all() and half.grad.abs().max() > 0
    assert create_loss(name)(scores.double(), truth).dtype == torch.float64


def test_a_sum_over_a_million_pixels_keeps_its_digits():
    scores, labels = torch.randn(1, 2, 1024, 1024), torch.randint(2, (1, 1024, 1024))
    for name in LABELS:
        exact = create_loss(name)(scores.double(), labels)
        assert abs(create_loss(name)(scores, labels).item() - exact.item()) <= 1e-5 * exact.item(), name


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("loss", [
    *LABELS, {"cross_entropy": 1.0, "dice": 0.5}, {"cross_entropy": {"class_weights": WEIGHTS, "label_smoothing": 0.1}},
    {"dice": {"smooth": 0.0}}, {"dice": {"smooth": 0.0, "skip_absent": False}}, {"dice": {"per_image": True, "smooth": 0.0}},
    {"focal": {"gamma": 0.5, "alpha": WEIGHTS}}], ids=str)
def test_ignored_labels_change_nothing(shape, loss):
    "Nothing but ignored labels: 0, with a gradient of 0. Some: what stands there has no say, and gets no gradient."
    loss = create_loss(loss)
    scores, labels = batch(shape)
    value = loss(scores, torch.full_like(labels, 255))
    assert value.item() == 0 and torch.equal(torch.autograd.grad(value, scores)[0], torch.zeros(shape))
    hidden = labels == 255
    other = torch.where(hidden.unsqueeze(1), 10 * torch.randn(shape), scores.detach()).requires_grad_()
    torch.testing.assert_close(loss(scores, labels), loss(other, labels), rtol=0, atol=0)
    gradient = torch.autograd.grad(loss(scores, labels), scores)[0].movedim(1, -1)
    assert hidden.any() and (gradient[hidden] == 0).all() and (gradient[~hidden].abs().sum(-1) > 0).any()


@pytest.mark.parametrize("name", LABELS)
def test_any_label_can_be_the_ignored_one(name):
    scores, labels = batch((2, 5, 6, 6), ignored=0)
    expected = create_loss(name)(scores, labels.masked_fill(labels == 0, 255))
    torch.testing.assert_close(create_loss(name, ignore_index=0)(scores, labels), expected)
    torch.testing.assert_close(create_loss(name, ignore_index=-1)(scores, labels.masked_fill(labels == 0, -1)), expected)
    assert not torch.allclose(create_loss(name, ignore_index=None)(scores, labels), expected)
    many, last = torch.randn(4, 300), torch.tensor([255, 1, 299, 255])
    with pytest.raises(ConfigError, match="255 is one of 300 classes here; say ignore_index=None"): create_loss(name)(many, last)
    assert create_loss(name, ignore_index=None)(many, last) > 0


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("score", [0.0, 20.0, 100.0, 1e4])
def test_focal_has_a_gradient_where_nothing_is_doubted(gamma, score):
    scores = torch.tensor([[score, -score]], requires_grad=True)
    for label in (0, 1):
        gradient = torch.autograd.grad(FocalLoss(gamma)(scores, torch.tensor([label])), scores)[0]
        assert gradient.isfinite().all(), f"label {label}: {gradient}"


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_of_small_doubts_is_exact(gamma):
    "1 - p is not the difference of two numbers near 1."
    scores = torch.tensor([[12.0, 0.0]])
    entropy = F.cross_entropy(scores, torch.tensor([0])).double()
    expected = ((1 - (-entropy).exp()) ** gamma * entropy).item()
    assert abs(FocalLoss(gamma)(scores, torch.tensor([0])).item() - expected) <= 1e-5 * expected


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_any_whole_type(name):
    scores, labels = batch((2, 5, 6, 6))
    for dtype in (torch.uint8, torch.int16, torch.int32):
        torch.testing.assert_close(create_loss(name)(scores, labels.to(dtype)), create_loss(name)(scores, labels), rtol=0, atol=0)


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_are_no_classes(name, monkeypatch):
    scores, labels = batch((2, 5, 6, 6))
    labels[0, 0, :4] = torch.tensor([5, 9, -1, 254])
    with pytest.raises(DataError, match=r"0 to 4, or 255 to be ignored; 4 of 72 are -1, 5, 9, 254"): create_loss(name)(scores, labels)
    known = create_loss(name)(scores, labels.clamp(0, 4))
    monkeypatch.setattr(losses, "at_hand", lambda given: False)  # as on a GPU
    assert create_loss(name)(scores, labels).isnan()
    torch.testing.assert_close(create_loss(name)(scores, labels.clamp(0, 4)), known, rtol=0, atol=0)


def test_check_labels():
    check_labels(torch.tensor([[0, 4], [255, 1]]), 5)
    with pytest.raises(DataError, match="are 255"): check_labels(torch.tensor([255]), 5, ignore_index=None)
    with pytest.raises(DataError, match="5, 6, 7, 8, 9 and 3 others"): check_labels(torch.arange(13), 5)


def test_targets_that_are_none(monkeypatch):
    scores, fine = torch.randn(2, 3), torch.tensor([[0, 1.0, 0.5], [0, 0, 0]])
    known = BinaryCrossEntropyLoss()(scores, fine)
    for wrong in ([[0, 1, 2.0], [0, 0, 0]], [[0, 1, -0.5], [0, 0, 0]], [[0, 1, float("nan")], [0, 0, 0]]):
        with pytest.raises(DataError, match="between 0 and 1"): BinaryCrossEntropyLoss()(scores, torch.tensor(wrong))
        with monkeypatch.context() as patch:
            patch.setattr(losses, "at_hand", lambda given: False)
            assert BinaryCrossEntropyLoss()(scores, torch.tensor(wrong)).isnan()
            torch.testing.assert_close(BinaryCrossEntropyLoss()(scores, fine), known, rtol=0, atol=0)
    with pytest.raises(ShapeError, match="numbers of classes are for 'cross_entropy'"): BinaryCrossEntropyLoss()(scores, torch.tensor([0, 2]))
    with pytest.raises(ConfigError, match="2 pos_weight for 3 classes"): BinaryCrossEntropyLoss([1, 2])(scores, torch.zeros(2, 3))


@pytest.mark.parametrize("name", LABELS)
def test_shapes_that_do_not_fit(name):
    scores, labels = batch((2, 5, 6, 6))
    for wrong in (labels[:, None], labels[:, :5], labels[:, 0, 0]):
        with pytest.raises(ShapeError, match=r"want labels \[2, 6, 6\], got"): create_loss(name)(scores, wrong)


def test_sums():
    scores, labels = batch((2, 5, 6, 6))
    loss = create_loss({"cross_entropy": {"weight": 2.0, "class_weights": WEIGHTS}, "focal": 0.25, "dice": {"smooth": 0.0}})
    parts = [CrossEntropyLoss(WEIGHTS), FocalLoss(), DiceLoss(0.0)]
    expected = [part(scores, labels) for part in parts]
    assert_equal(loss(scores, labels), 2 * expected[0] + 0.25 * expected[1] + expected[2], scores)
    assert list(loss.each(scores, labels)) == ["cross_entropy", "focal", "dice"]
    for part, value in zip(loss.each(scores, labels).values(), expected): torch.testing.assert_close(part, value)
    again = create_loss(loss.config)
    assert isinstance(again, WeightedSum) and again.config == loss.config and not loss.state_dict()
    torch.testing.assert_close(again(scores, labels), loss(scores, labels), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(loss)(scores, labels), loss(scores, labels), rtol=0, atol=0)


def test_wishes_are_granted_where_nobody_says_otherwise():
    loss = create_loss({"cross_entropy": {"weight": 1.0, "ignore_index": 7}, "dice": 1.0}, {"ignore_index": None, "label_smoothing": 0.1})
    assert loss.losses["cross_entropy"].ignore_index == 7 and loss.losses["cross_entropy"].label_smoothing == 0.1
    assert loss.losses["dice"].ignore_index is None
    assert create_loss("focal", {"ignore_index": None}, gamma=1.0).config.arguments == {"gamma": 1.0, "alpha": None, "ignore_index": None}


@pytest.mark.parametrize("make, error, says", [
    (lambda: create_loss("dise"), UnknownNameError, "did you mean 'dice'"),
    (lambda: create_loss("dice", gama=2), UnknownArgumentError, "gama"),
    (lambda: create_loss({"dice": {"gama": 2}}), UnknownArgumentError, "gama"),
    (lambda: create_loss({"dice": 1.0}, smooth=0.0), ConfigError, "stand with the losses"),
    (lambda: create_loss({}), ConfigError, "a mapping such as"),
    (lambda: create_loss({"dice": float("inf")}), ConfigError, "weight of 'dice'"),
    (lambda: create_loss({"dice": True}), ConfigError, "weight of 'dice'"),
    (lambda: create_loss({"dice": 1.0, "binary_cross_entropy": 1.0}), ConfigError, "at once: dice, binary_cross_entropy"),
    (lambda: CrossEntropyLoss([1, -1]), ConfigError, "class_weights are numbers of at least 0"),
    (lambda: CrossEntropyLoss([1, float("nan")]), ConfigError, "class_weights"),
    (lambda: CrossEntropyLoss([]), ConfigError, "class_weights"),
    (lambda: CrossEntropyLoss(label_smoothing=1.0), ConfigError, "label_smoothing"),
    (lambda: FocalLoss(gamma=-1), ConfigError, "gamma"),
    (lambda: DiceLoss(smooth=-1), ConfigError, "smooth"),
    (lambda: CrossEntropyLoss([1, 2])(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long)), ConfigError, "2 class_weights for 3 classes"),
    (lambda: CrossEntropyLoss([0, 0]), ConfigError, "not all of them 0"),
    (lambda: CrossEntropyLoss(ignore_index=True), ConfigError, "the whole number that stands for no class"),
    (lambda: FocalLoss(gamma=float("nan")), ConfigError, "gamma"),
    *[(lambda name=name, shape=shape: create_loss(name)(torch.randn(2, 1, *shape), torch.zeros(2, *shape, dtype=torch.long)), ConfigError,
       "num_classes=2.*binary_cross_entropy") for name in ("cross_entropy", "focal", "dice") for shape in ((), (4, 4))],
    *[(lambda loss=loss: loss.check({"out": 1, "aux": 2}, None), ShapeError, "got a dict of 'out', 'aux'") for loss in
      (CrossEntropyLoss(), BinaryCrossEntropyLoss())],
    (lambda: DiceLoss().check(torch.zeros(2, 3).long(), torch.zeros(2).long()), ShapeError, "in floating point, got torch.int64"),
    (lambda: DiceLoss().check(torch.zeros(2, 3), [0, 1]), ShapeError, "labels as a tensor, got a list"),
    (lambda: FocalLoss().check(torch.zeros(3), torch.zeros(3).long()), ShapeError, r"scores \(b, classes\) or"),
    (lambda: FocalLoss().check(torch.zeros(2, 3), torch.zeros(2)), DataError, "numbers of classes, got torch.float32"),
])
def test_slips(make, error, says):
    with pytest.raises(error, match=says): make()


def test_one_of_ones_own():
    @register_loss("tests_hinge")
    class Hinge(BaseLoss):
        "A margin."
        def forward(self, scores, labels): return F.multi_margin_loss(scores, labels)
    try:
        assert "tests_hinge" in list_losses()
        loss = create_loss({"tests_hinge": 1.0, "cross_entropy": 1.0})
        scores, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
        torch.testing.assert_close(loss(scores, labels), F.multi_margin_loss(scores, labels) + F.cross_entropy(scores, labels))
    finally: del LOSSES.entries["tests_hinge"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*LABELS, "binary_cross_entropy"])
def test_no_step_waits_for_the_device(name):
    scores, labels = batch((2, 5, 16, 16))
    truth = (torch.rand(2, 5, 16, 16) if name == "binary_cross_entropy" else labels).cuda()
    loss, given = create_loss(name).cuda(), scores.detach().cuda().requires_grad_()
    wrong = truth.clone()
    wrong[0, 0] = 77
    try:
        torch.cuda.set_sync_debug_mode("error")
        value, spoilt = loss(given, truth), loss(given, wrong)
        value.backward()
    finally: torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(value.cpu(), create_loss(name)(scores, truth.cpu()))
    assert spoilt.isnan()
