"DETR against transformers: the transformer, the matching, the losses, whole models from their files, answers; export, training and half precision."
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from peers import assert_same
from torch import nn
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.loss.loss_for_object_detection import HungarianMatcher as TransformersMatcher
from transformers.models.detr import modeling_detr as theirs

from flame_vision.backbones import create_backbone
from flame_vision.core.errors import ConfigError, DataError, ShapeError, TrainingError, WeightsError
from flame_vision.core.weights import export_weights, load_weights
from flame_vision.heads import DETRHead, create_head
from flame_vision.heads.detection_transformer import DetectionTransformer, seen_cells, sine_positions
from flame_vision.heads.detr import set_losses, to_pixels, to_shares
from flame_vision.heads.matching import HungarianMatcher, generalized_iou, match, matching_costs
from flame_vision.models import create_model

SMALL = dict(hidden_channels=32, num_queries=7, encoder_layers=2, decoder_layers=3, num_heads=4, feed_forward_channels=48)
CONFIG = dict(d_model=32, num_queries=7, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
              encoder_ffn_dim=48, decoder_ffn_dim=48)
RESNET = dict(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", out_features=["stage4"])
SIZES = torch.tensor([[128, 100], [90, 160]])


def random_weights(model, seed=0):
    "Kernels that keep the signal's scale; norms and their frozen statistics unlike those of the start, which transformers holds in buffers."
    generator = torch.Generator().manual_seed(seed)
    norms = (nn.LayerNorm, nn.BatchNorm2d, theirs.DetrFrozenBatchNorm2d)
    for module in model.modules():
        for name, t in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if not t.is_floating_point(): continue
            if t.ndim > 1: t.data.normal_(0, (1 / t[0].numel()) ** 0.5, generator=generator)
            elif name == "running_var" or name == "weight" and isinstance(module, norms): t.data.uniform_(0.5, 1.5, generator=generator)
            else: t.data.uniform_(-0.2, 0.2, generator=generator)
    return model.eval()


def peer_of(backbone="timm", num_labels=5, seed=0, **more):
    inside = dict(backbone="resnet18", use_pretrained_backbone=False) if backbone == "timm" else \
        dict(backbone_config=hf.ResNetConfig(**RESNET), use_timm_backbone=False)
    return random_weights(hf.DetrForObjectDetection(hf.DetrConfig(**{**CONFIG, "num_labels": num_labels, **inside, **more})), seed)


def model_of(num_classes=5, **more):
    return create_model(backbone="resnet18", head={"name": "detr", "arguments": {**SMALL, **more}}, num_classes=num_classes).eval()


def masks(sizes, height, width):
    mask = torch.zeros(len(sizes), height, width, dtype=torch.int64)
    for m, (h, w) in zip(mask, sizes.tolist()): m[:h, :w] = 1
    return mask


def objects(counts, seed=0, classes=5, sizes=None):
    "Targets in pixels of pictures of some sizes."
    generator, found = torch.Generator().manual_seed(seed), []
    for i, count in enumerate(counts):
        h, w = (128, 160) if sizes is None else sizes[i].tolist()
        low = torch.rand(count, 2, generator=generator) * 0.6
        boxes = torch.cat((low, low + 0.1 + 0.3 * torch.rand(count, 2, generator=generator)), 1) * torch.tensor([w, h, w, h])
        found.append({"boxes": boxes, "labels": torch.randint(1, classes, (count,), generator=generator)})
    return found


def theirs_of(targets, sizes):
    return [{"class_labels": t["labels"], "boxes": to_shares(t["boxes"], size)} for t, size in zip(targets, sizes)]


@pytest.mark.parametrize("grid", [(1, 1), (5, 7), (13, 4)])
@pytest.mark.parametrize("dim", [8, 32, 256])
def test_positions_equal_transformers(grid, dim):
    peer = theirs.DetrSinePositionEmbedding(dim // 2, normalize=True)
    seen = seen_cells(torch.tensor([[320, 96], [32, 320], [320, 320]]), (320, 320), grid)
    for mask in (seen, torch.ones_like(seen)):
        assert_same(sine_positions(mask, dim), peer((3, 0, *grid), "cpu", torch.float32, mask), f"{dim} on {grid}")


def test_padding_is_seen_as_nearest_interpolation_sees_it():
    for side, cells in [(s, c) for s in (*range(1, 70), 150, 175, 212, 318, 600, 1333) for c in {-(-s // 32), -(-s // 8), max(1, s // 3)}]:
        sizes = torch.tensor([[side, 1], [max(1, side - 5), 1], [1, 1], [max(1, side // 2), 1]])
        peer = F.interpolate(masks(sizes, side, 1)[:, None].float(), (cells, 1))[:, 0].bool()
        assert torch.equal(seen_cells(sizes, (side, 1), (cells, 1)), peer), f"{side} pixels, {cells} cells"
        turned = seen_cells(sizes.flip(1), (1, side), (1, cells))
        assert torch.equal(turned, peer.mT)


def test_generalized_iou_equals_torchvision_and_has_no_holes():
    boxes = box_convert(torch.rand(12, 4), "cxcywh", "xyxy").double()
    peer = generalized_box_iou(boxes[:7], boxes[7:])
    assert_same(generalized_iou(boxes[:7, None], boxes[7:]), peer, "GIoU")
    point = torch.full((1, 4), 0.5, requires_grad=True)
    assert generalized_iou(point, point).isfinite().all()


@pytest.mark.parametrize("n, m", [(1, 1), (5, 1), (7, 3), (6, 6), (2, 6), (4, 0)])
def test_plans_are_the_cheapest(n, m):
    for seed in range(30):
        costs = torch.randn(n, m, generator=torch.Generator().manual_seed(seed))
        plan = match(costs)
        taken = plan[plan >= 0]
        assert len(taken) == min(n, m) == len(taken.unique()) and plan.shape == (n,) and (plan < max(m, 1)).all()
        table = costs if n <= m else costs.T
        best = min((sum(table[i, j].item() for i, j in enumerate(p)) for p in permutations(range(max(n, m)), min(n, m))), default=0)
        assert costs[plan >= 0, taken].sum().item() == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("costs", [(1, 5, 2), (1, 1, 1), (2, 0, 0), (0, 1, 0), (0, 0, 3)])
def test_matching_equals_transformers(seed, costs):
    torch.manual_seed(seed)
    counts = [(3, 0, 7, 1), (0, 0, 0, 0), (12, 2, 9, 30), (1, 1, 1, 1), (0, 5, 0, 8)][seed]
    logits, boxes = 2 * torch.randn(4, 9, 6), torch.rand(4, 9, 4)
    labels, there = [torch.randint(1, 5, (m,)) for m in counts], [torch.rand(m, 4) for m in counts]
    plans = HungarianMatcher(*costs)(logits, boxes, labels, there)
    peer = TransformersMatcher(*costs)({"logits": logits, "pred_boxes": boxes}, [{"class_labels": c, "boxes": b} for c, b in zip(labels, there)])
    for plan, (queries, chosen) in zip(plans, peer):
        assert torch.equal(plan[queries], chosen) and (plan >= 0).sum() == len(chosen)


def test_matching_refuses_what_is_no_number():
    there = [torch.rand(2, 4)]
    for broken in (torch.nan, torch.inf):
        boxes = torch.rand(1, 3, 4)
        boxes[0, 1] = broken
        with pytest.raises(TrainingError, match="candidate 1 cannot be matched"):
            HungarianMatcher()(torch.randn(1, 3, 5), boxes, [torch.tensor([1, 2])], there)
    HungarianMatcher()(torch.full((1, 3, 5), torch.nan), torch.rand(1, 3, 4), [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, 4)])
    for wrong in (dict(class_cost=-1), dict(class_cost=0, l1_cost=0, giou_cost=0)):
        with pytest.raises(ConfigError): HungarianMatcher(**wrong)


@pytest.mark.parametrize("backbone", ["timm", "transformers"])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_whole_model_equals_transformers(backbone, where, tmp_path):
    peer, model = peer_of(backbone, seed=1), model_of()
    if where == "disk": peer.save_pretrained(tmp_path)
    report = load_weights(model, tmp_path / "model.safetensors" if where == "disk" else peer.state_dict())
    assert report.layout == "transformers" and len(report.loaded) == len(peer.state_dict())
    assert all(key.endswith("num_batches_tracked") for key in report.absent) and not report.skipped and not report.reinitialised
    for shape in ((128, 160), (90, 133), (32, 32)):
        images = torch.randn(2, 3, *shape)
        sizes = SIZES.clamp(max=torch.tensor(shape))
        for given, mask in ((None, None), (sizes, masks(sizes, *shape))):
            with torch.no_grad(): ours, its = model(images, given), peer(images, mask)
            assert_same(ours["logits"], its.logits, f"logits of {shape}")
            assert_same(ours["normalized"], its.pred_boxes, f"boxes of {shape}")
            scale = (torch.tensor([shape, shape]) if given is None else given).flip(1).repeat(1, 2)[:, None]
            assert_same(ours["boxes"], box_convert(its.pred_boxes, "cxcywh", "xyxy") * scale, f"pixels of {shape}")


def test_published_sizes_fit_resnet50_and_91_classes():
    "The numbers of facebook/detr-resnet-50, of keys and shapes; and the way back to a file of transformers."
    with torch.device("meta"): peer = hf.DetrForObjectDetection(hf.DetrConfig(backbone="resnet50", use_pretrained_backbone=False, num_labels=91))
    model = create_model(backbone="resnet50", head="detr", num_classes=91)
    back = export_weights(model, "transformers")
    on_disk = {k.replace("model.backbone.model", "model.backbone.conv_encoder.model").replace("o_proj", "out_proj").replace("mlp.fc", "fc"): v.shape
               for k, v in peer.state_dict().items()}
    back = {k: v.shape for k, v in back.items() if "num_batches_tracked" not in k}
    assert back == on_disk
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in peer.parameters()) + sum(
        b.numel() for n, b in peer.named_buffers() if n.endswith(("weight", "bias")))


def test_weights_of_other_classes_and_broken_files():
    peer, model = peer_of(num_labels=5), model_of(num_classes=9)
    report = load_weights(model, peer.state_dict())
    assert sorted(report.reinitialised) == ["head.logits.bias", "head.logits.weight"]
    state = peer.state_dict()
    with pytest.raises(WeightsError): load_weights(model_of(), {k: v for k, v in state.items() if "encoder_attn.k_proj" not in k})
    with pytest.raises(WeightsError): load_weights(model_of(), {**state, "stray.weight": torch.zeros(1)})
    with pytest.raises(WeightsError): load_weights(model_of(num_queries=8), state)
    written = export_weights(load_and_return(model_of(), state), "transformers")
    again = model_of()
    load_weights(again, written)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad(): assert_same(again(images)["logits"], peer(images).logits, "logits after the way back")


def load_and_return(model, state):
    load_weights(model, state)
    return model


def peer_layers(peer, images, mask):
    "What each decoder layer of theirs answers, normed on the way out only, as the authors' code does."
    out = peer(images, mask, output_hidden_states=True)
    states = [peer.model.decoder.layernorm(s) for s in out.decoder_hidden_states[1:-1]] + [out.last_hidden_state]
    states = states[-peer.config.decoder_layers:]
    states = torch.stack(states)
    return out, peer.class_labels_classifier(states), peer.bbox_predictor(states).sigmoid()


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("counts", [(3, 5), (0, 2), (0, 0), (9, 1)])
def test_losses_equal_transformers(auxiliary, counts):
    "Of every layer, with the gradients of all parameters; also where there are more objects than queries."
    peer, model = peer_of(dropout=0.0), model_of(auxiliary_loss=auxiliary, dropout=0.0)
    load_weights(model, peer.state_dict())
    model.head.train()
    images, targets = torch.randn(2, 3, 128, 160), objects(counts, sizes=SIZES)
    outputs = model(images, SIZES)
    ours = model.losses(outputs, targets)
    assert list(ours) == ["classification", "l1", "giou"] and all(v.ndim == 0 and v.dtype == torch.float32 for v in ours.values())
    assert model.loss_weights == {"classification": 1, "l1": 5, "giou": 2}
    total = sum(model.loss_weights[k] * v for k, v in ours.items())

    out, classes, boxes = peer_layers(peer, images, masks(SIZES, 128, 160))
    config = SimpleNamespace(**{k: getattr(peer.config, k) for k in ("class_cost", "bbox_cost", "giou_cost", "num_labels", "eos_coefficient",
                                                                     "bbox_loss_coefficient", "giou_loss_coefficient", "decoder_layers")})
    config.auxiliary_loss = auxiliary
    expected, parts, _ = ForObjectDetectionLoss(classes[-1], theirs_of(targets, SIZES), "cpu", boxes[-1], config, classes, boxes)
    for name, its in {"classification": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}.items():
        peers = sum(v for k, v in parts.items() if k.startswith(its))
        assert abs(ours[name] - peers) <= 1e-5 * abs(peers), f"{name}: {ours[name]}, not {peers}"
    assert abs(total - expected) <= 1e-5 * expected

    total.backward()
    expected.backward()
    there, named = dict(peer.named_parameters()), dict(model.head.named_parameters())
    moves, unknown = model.head.key_maps[0].plan(named, "theirs")
    assert not unknown and len(moves) == len(named)
    largest = max(p.grad.abs().max().item() for p in there.values() if p.grad is not None)
    for move in moves:
        mine, name = named[move.sources[0]].grad, move.targets[0]
        its = there[name if name in there else name.replace("out_proj", "o_proj").replace(".fc", ".mlp.fc")].grad
        off = (mine - (0 if its is None else its)).abs().max().item()
        assert off <= 1e-5 * largest, f"{name}: off by {off / largest:.1e} of the largest gradient"


def test_answers_equal_transformers():
    peer, model = peer_of(seed=3), model_of()
    load_weights(model, peer.state_dict())
    images, originals = torch.randn(2, 3, 128, 160), [(256, 200), (45, 80)]
    with torch.no_grad(): ours, its = model(images, SIZES), peer(images, masks(SIZES, 128, 160))
    answers = hf.DetrImageProcessor().post_process_object_detection(its, threshold=0.2, target_sizes=originals)
    compared = 0
    for mine, answer, (h, w) in zip(model.postprocess(ours, original_sizes=originals, score_threshold=0.2), answers, originals):
        keep = answer["scores"].argsort(descending=True, stable=True)
        keep = keep[answer["labels"][keep] > 0]
        assert torch.equal(mine["labels"], answer["labels"][keep]) and mine["labels"].dtype == torch.int64
        torch.testing.assert_close(mine["scores"], answer["scores"][keep], rtol=0, atol=1e-6)
        limit = torch.tensor([w, h, w, h], dtype=torch.float32)
        torch.testing.assert_close(mine["boxes"], answer["boxes"][keep].clamp(min=torch.zeros(4), max=limit), rtol=0, atol=1e-3)
        compared += len(keep)
    assert compared >= 8


def test_the_background_and_nothing_are_no_answers():
    head = DETRHead(8, 4, **SMALL).eval()
    with torch.no_grad(): outputs = head(torch.randn(1, 8, 2, 3))
    outputs["logits"] = torch.tensor([[9.0, 1, 0, 0, 0], [0, 0, 3, 0, 9], [0, 0, 0, 3, 0], [0, 2, 0, 0, 0], *[[0.0] * 5] * 3])[None]
    found = head.postprocess(outputs, score_threshold=0.1)[0]
    share = outputs["logits"][0].softmax(-1)
    assert found["labels"][:2].tolist() == [3, 1] and 0 not in found["labels"].tolist() and 4 not in found["labels"].tolist()
    assert torch.equal(found["scores"][:2], torch.stack((share[2, 3], share[3, 1])))
    assert [len(head.postprocess(outputs, score_threshold=t)[0]["labels"]) for t in (0.0, 0.21, 1.0)] == [7, 2, 0]
    assert len(head.postprocess(outputs, score_threshold=0.0, max_detections=3)[0]["boxes"]) == 3
    outputs["boxes"] = outputs["boxes"][:, :1].expand(1, 7, 4)
    assert sorted(head.postprocess(outputs, score_threshold=0.0, nms_threshold=0.5)[0]["labels"].tolist()) == [1, 2, 3]
    for wrong in (dict(score_threshold=5), dict(max_detections=0), dict(nms_threshold=-1)):
        with pytest.raises(ConfigError): head.postprocess(outputs, **wrong)
    with pytest.raises(ShapeError): head.postprocess(outputs, sizes=[(1, 2), (3, 4)])


def test_padding_changes_nothing():
    "A picture answers alike alone and in a padded batch, whatever stands in the border."
    head = DETRHead(8, 4, **SMALL).eval()
    maps = torch.randn(1, 8, 3, 4)
    alone = head(maps, (96, 128))
    padded = torch.full((1, 8, 5, 6), 7.0)
    padded[:, :, :3, :4] = maps
    batch = head(padded, (160, 192), torch.tensor([[96, 128]]))
    for name in ("logits", "boxes", "normalized", "sizes"): torch.testing.assert_close(batch[name], alone[name], rtol=0, atol=1e-4)
    assert batch["sizes"].tolist() == [[96, 128]]


def test_permuting_objects_changes_nothing():
    head = DETRHead(8, 5, **{**SMALL, "dropout": 0.0})
    outputs, targets = head(torch.randn(2, 8, 4, 5)), objects((4, 6))
    orders = [torch.randperm(len(t["labels"])) for t in targets]
    shuffled = [{k: v[order] for k, v in t.items()} for t, order in zip(targets, orders)]
    for (name, loss), other in zip(head.losses(outputs, targets).items(), head.losses(outputs, shuffled).values()):
        torch.testing.assert_close(loss, other, rtol=1e-6, atol=1e-6, msg=name)
    for plan, again, order in zip(head.assign(outputs, targets), head.assign(outputs, shuffled), orders):
        assert torch.equal(plan >= 0, again >= 0) and torch.equal(order[again[again >= 0]], plan[plan >= 0])
        assert sorted(plan[plan >= 0].tolist()) == list(range(len(order)))


@pytest.mark.parametrize("counts", [(3, 2), (0, 4), (0, 0)])
def test_a_gradient_reaches_every_parameter(counts):
    model = create_model(backbone="resnet18", head={"name": "detr", "arguments": SMALL}, num_classes=5).train()
    losses = model.losses(model(torch.randn(2, 3, 64, 96)), objects(counts, sizes=torch.tensor([[64, 96]] * 2)))
    sum(model.loss_weights[k] * v for k, v in losses.items()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not silent, f"no gradient: {silent}"
    learning = {n for n, p in model.named_parameters() if p.grad.abs().max() > 0}
    idle = tuple(f"head.transformer.decoder.0.{n}" for n in ("self_attention.", "norm1.weight"))  # at first the queries have nothing to say
    still = {n for n, _ in model.named_parameters()} - learning
    boxes = () if sum(counts) else tuple(n for n in still if n.startswith("head.boxes."))
    assert all(n.startswith(idle) or n in boxes or n.endswith("key.bias") for n in still), sorted(still)  # a key's bias shifts all scores alike


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_learns_in_float32(dtype):
    "Losses and matching are those of the same outputs in float32; boxes never are halves."
    head = DETRHead(8, 5, **{**SMALL, "dropout": 0.0})
    maps, targets = torch.randn(2, 8, 4, 5), objects((4, 0))
    with torch.autocast("cpu", dtype):
        outputs = head(maps)
        losses, plans = head.losses(outputs, targets), head.assign(outputs, targets)
    assert outputs["logits"].dtype == dtype and outputs["boxes"].dtype == outputs["normalized"].dtype == torch.float32
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())
    exact = {k: v.detach().float() if v.is_floating_point() else v for k, v in outputs.items()}
    for name, other in head.losses(exact, targets).items(): torch.testing.assert_close(losses[name], other, rtol=1e-6, atol=1e-7, msg=name)
    for plan, other in zip(plans, head.assign(exact, targets)): assert torch.equal(plan, other)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in head.parameters())
    with torch.autocast("cpu", dtype): costs = matching_costs(torch.randn(3, 5).to(dtype), torch.rand(3, 4), torch.tensor([1]), torch.rand(1, 4))
    assert costs.dtype == torch.float32


def test_a_model_of_halves_and_of_doubles():
    for dtype in (torch.bfloat16, torch.float64):
        head = DETRHead(8, 5, **SMALL).to(dtype)
        outputs = head(torch.randn(2, 8, 4, 5, dtype=dtype), sizes=torch.tensor([[128, 100], [96, 160]]))
        assert outputs["boxes"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        sum(head.losses(outputs, objects((3, 1))).values()).backward()
        assert all(p.grad.dtype == dtype for p in head.parameters())


def test_losses_by_hand():
    "One layer, one object, two queries, numbers that can be followed."
    logits = torch.tensor([[[[0.0, 0, 0], [0.0, 0, 0]]]])
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.4, 0.2]]]])
    plan = torch.tensor([[[-1, 0]]])
    found = set_losses(logits, boxes, [torch.tensor([1])], [torch.tensor([[0.5, 0.5, 0.2, 0.2]])], plan, 0.1)
    assert found["classification"].item() == pytest.approx(torch.log(torch.tensor(3.0)).item())  # the weights cancel where all are alike
    assert found["l1"].item() == pytest.approx(0.2) and found["giou"].item() == pytest.approx(0.5)
    pixels = torch.tensor([[10.0, 20, 30, 60]])
    torch.testing.assert_close(to_pixels(to_shares(pixels, torch.tensor([80, 50]))[None], torch.tensor([[80, 50]]))[0], pixels)


def test_targets_are_checked():
    head = DETRHead(8, 5, **SMALL)
    outputs = head(torch.randn(1, 8, 4, 5))
    for wrong in ({"labels": torch.tensor([5])}, {"labels": torch.tensor([0])}, {"boxes": torch.tensor([[3.0, 3, 3, 9]])}):
        with pytest.raises(DataError): head.losses(outputs, [{"boxes": torch.tensor([[1.0, 1, 9, 9]]), "labels": torch.tensor([1]), **wrong}])
    with pytest.raises(ShapeError): head.losses(outputs, [])


def test_any_backbone_and_a_single_cell():
    for backbone, neck in (("resnet18", None), ("resnet18", "fpn"), ("convnext_tiny", None)):
        model = create_model(backbone=backbone, neck=neck, head={"name": "detr", "arguments": SMALL}, num_classes=3).eval()
        assert model.head.stages == (4,) and model.head.strides == (32,)
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad(): outputs = model(images)
        assert model.get_output_shape([2, 3, 32, 32]) == {k: list(v.shape) for k, v in outputs.items()}
        assert outputs["boxes"].shape == (2, 7, 4) and outputs["boxes"].isfinite().all() and outputs["sizes"].tolist() == [[32, 32]] * 2
    again = type(model).from_config(model.config).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad(): assert torch.equal(again(images)["logits"], outputs["logits"])


def test_what_it_refuses():
    for wrong in (dict(num_classes=1), dict(num_classes=0), dict(hidden_channels=30), dict(num_heads=5), dict(num_queries=0), dict(decoder_layers=0),
                  dict(encoder_layers=-1), dict(dropout=1.5), dict(no_object_weight=2), dict(in_channels=[8, 8]),
                  dict(score_threshold=-0.1), dict(l1_cost=-1)):
        with pytest.raises(ConfigError): create_head("detr", **{**dict(in_channels=8, num_classes=4), **SMALL, **wrong})
    head = create_head("detr", in_channels=8, num_classes=4, **SMALL)
    with pytest.raises(ShapeError): head(torch.randn(1, 9, 4, 4))
    assert create_head("detr", **head.config.arguments).config == head.config
    with pytest.raises(ShapeError): DetectionTransformer(32, 4, 1, 1, 48, 7)(torch.randn(1, 16, 3, 3))


def test_resetting_the_classifier():
    model = model_of()
    before = {k: v.clone() for k, v in model.state_dict().items() if "logits" not in k}
    model.reset_classifier(12)
    assert model.head.logits.out_features == 13 and model.num_classes == 12 and model.config.arguments["num_classes"] == 12
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


@pytest.mark.slow
def test_exports_with_every_size():
    import os
    import subprocess
    import sys
    done = subprocess.run([sys.executable, "-c", EXPORT], capture_output=True, text=True, env={**os.environ, "FLAME_VISION_NO_TYPECHECK": "1"})
    assert done.returncode == 0, done.stderr[-3000:]


EXPORT = '''
import io, onnxruntime, torch
from flame_vision.models import create_model
torch.manual_seed(0)
arguments = dict(hidden_channels=32, num_queries=7, encoder_layers=2, decoder_layers=3, num_heads=4, feed_forward_channels=48)
model = create_model(backbone="resnet18", head={"name": "detr", "arguments": arguments}, num_classes=5).eval()
dim = torch.export.Dim
free = {0: dim("batch", min=1, max=8), 2: dim("height", min=33, max=1024), 3: dim("width", min=33, max=1024)}
for padded in (False, True):
    shapes = (free, {0: free[0]} if padded else None)
    given = (torch.randn(2, 3, 96, 160), torch.tensor([[96, 100], [64, 160]]) if padded else None)
    with torch.no_grad(): program = torch.export.export(model, given, dynamic_shapes=shapes, strict=False)
    torch.onnx.export(program, (), file := io.BytesIO(), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue())
    names = [i.name for i in session.get_inputs()]
    for shape in ((1, 3, 33, 40), (2, 3, 75, 200), (3, 3, 150, 318)):
        x, sizes = torch.randn(shape), torch.stack([torch.tensor(shape[2:]) - 7 * i for i in range(shape[0])])
        with torch.no_grad(): expected, exported = model(x, sizes if padded else None), program.module()(x, sizes if padded else None)
        feed = dict(zip(names, (x.numpy(), sizes.numpy())))
        for (name, peer), onnx in zip(expected.items(), session.run(None, feed)):
            for mine in (exported[name], torch.tensor(onnx)):
                off = (mine.double() - peer.double()).abs().max() / peer.double().abs().max()
                assert off <= 1e-5, f"{name} of {shape}, padded={padded}: {off:.1e}"
'''


@pytest.mark.slow
def test_learns_two_pictures_by_heart():
    "Drawn rectangles of three colours: after 300 steps each is found once, in its place, and nothing else."
    torch.manual_seed(0)
    pictures, targets = torch.zeros(2, 3, 96, 96), []
    for picture, there in zip(pictures, ([(0, 8, 8, 40, 30), (1, 50, 20, 90, 70), (2, 10, 56, 36, 90)], [(1, 6, 40, 44, 88), (0, 60, 10, 90, 50)])):
        for colour, x1, y1, x2, y2 in there: picture[colour, y1:y2, x1:x2] = 1
        targets.append({"boxes": torch.tensor([t[1:] for t in there]).float(), "labels": torch.tensor([t[0] + 1 for t in there])})
    backbone = create_backbone("resnet", block_type="basic", layers=[1, 1, 1, 1], features_only=True, output_indices=(2,), norm="group")
    head = {"name": "detr", "arguments": {**SMALL, "hidden_channels": 64, "dropout": 0.0}}
    model = create_model(backbone=backbone, head=head, num_classes=4).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=300)
    for _ in range(300):
        losses = model.losses(model(pictures), targets)
        optimizer.zero_grad()
        sum(model.loss_weights[k] * v for k, v in losses.items()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad(): found = model.postprocess(model(pictures), score_threshold=0.5)
    for answer, target in zip(found, targets):
        assert sorted(answer["labels"].tolist()) == sorted(target["labels"].tolist())
        for label, box in zip(answer["labels"], answer["boxes"]):
            truth = target["boxes"][target["labels"].tolist().index(label.item())]
            assert generalized_iou(box, truth) > 0.8, f"{label}: {box.tolist()}, not {truth.tolist()}"
