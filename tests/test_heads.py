"Poolings and classification heads against timm, what a model may ask of them, and a classifier of several classes from training to prediction."
import subprocess
import sys

import pytest
import timm.layers
import torch
from lightning.pytorch import Trainer
from peers import assert_same, fill
from sklearn.metrics import average_precision_score, f1_score
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from flame_vision.core.errors import ConfigError, ShapeError, UnknownArgumentError, UnknownNameError
from flame_vision.core.weights import load_weights
from flame_vision.heads import AttentionPool, ClassificationHead, GeMPool, MLPHead, create_head, create_pool, list_heads, list_pools, register_pool
from flame_vision.heads.pooling import POOLS, BasePool
from flame_vision.predictions import classify
from flame_vision.training import ClassificationModule

QUIET = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
OF_MAPS = ["attention", "avg", "avgmax", "gem", "max"]


def pool_of(name, channels=32): return create_pool(name, **({"channels": channels} if name == "attention" else {})).eval()


def test_the_catalogue(): assert list_pools() == sorted([*OF_MAPS, "token"]) and {"classifier", "mlp"} <= set(list_heads(task="classification"))


@pytest.mark.parametrize("name", ["avg", "max", "avgmax"])
@pytest.mark.parametrize("grid", [(7, 5), (1, 1), (14, 14)])
def test_pools_are_timms(name, grid):
    maps = torch.randn(3, 16, *grid, requires_grad=True)
    ours, theirs = pool_of(name)(maps), timm.layers.SelectAdaptivePool2d(pool_type=name, flatten=True)(maps)
    assert_same(ours, theirs, name)
    weights = torch.randn(3, 16)
    assert_same(*[torch.autograd.grad((out * weights).sum(), maps)[0] for out in (ours, theirs)], f"{name}'s gradient")


@pytest.mark.parametrize("name", ["avg", "max", "avgmax", "gem"])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_what_stands_before_the_patches_has_no_say(name, prefix):
    maps = torch.randn(2, 32, 4, 6)
    tokens = torch.cat([100 * torch.randn(2, prefix, 32), maps.flatten(2).mT], 1)
    pool = pool_of(name)
    assert_same(pool(tokens, prefix), pool(maps), name)
    assert not prefix or not torch.allclose(pool(tokens), pool(maps))


@pytest.mark.parametrize("p", [0.5, 1.0, 2.7, 6.0, 30.0])
def test_gem_is_its_formula(p):
    "In double precision, with gradients of maps and exponent; values that are negative count as eps, and learn nothing."
    maps, gem = torch.randn(2, 8, 5, 4, dtype=torch.float64, requires_grad=True), GeMPool(p, eps=1e-3).double()
    ours, theirs = gem(maps), maps.clamp(min=1e-3).pow(gem.p).mean((2, 3)).pow(1 / gem.p)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    weights = torch.randn(2, 8, dtype=torch.float64)
    for a, b in zip(*[torch.autograd.grad((out * weights).sum(), [maps, gem.p]) for out in (ours, theirs)]):
        assert b.abs().max() > 1e-6
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        if a.ndim: assert (a[maps < 1e-3] == 0).all()
    single = GeMPool(p, eps=1e-3)(maps.detach().float())
    assert_same(single.double(), theirs.detach(), "in single precision")


def test_gem_lies_between_mean_and_maximum():
    maps = torch.rand(2, 8, 5, 4) + 0.01
    between = [GeMPool(p)(maps).detach() for p in (1.0, 2.0, 4.0, 16.0, 256.0, 4096.0)]
    assert_same(between[0], maps.mean((2, 3)), "p = 1")
    for less, more in zip(between, between[1:]): assert (more > less).all()
    assert (between[-1] <= maps.amax((2, 3)) * (1 + 1e-6)).all()
    torch.testing.assert_close(between[-1], maps.amax((2, 3)), rtol=2e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 6e4])
def test_gem_in_half_precision(dtype, scale):
    maps = (scale * torch.rand(2, 4, 6, 6)).to(dtype).requires_grad_()
    for p in (1.0, 3.0, 20.0):
        out = GeMPool(p).to(dtype)(maps)
        exact = GeMPool(p)(maps.detach().float())
        assert out.dtype == dtype and out.isfinite().all()
        torch.testing.assert_close(out.float(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
        gradient = torch.autograd.grad(out.float().sum() / scale, maps)[0]
        assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_gem_of_nothing_and_of_much():
    for value in (0.0, 1e-30, 1e30):
        maps = torch.full((1, 2, 3, 3), value, requires_grad=True)
        gem = GeMPool(30.0)
        out = gem(maps)
        torch.testing.assert_close(out, torch.full((1, 2), max(value, 1e-6)))
        out.sum().backward()
        assert maps.grad.isfinite().all() and gem.p.grad.isfinite()


def test_gem_learns_its_exponent():
    "It finds the exponent that targets were made with."
    maps, gem = torch.rand(16, 4, 6, 6), GeMPool(3.0)
    target, optimizer = GeMPool(8.0)(maps).detach(), torch.optim.Adam(gem.parameters(), 0.2)
    for _ in range(150): optimizer.zero_grad(); F.mse_loss(gem(maps), target).backward(); optimizer.step()
    assert abs(gem.p.item() - 8) < 0.1 and "pooling.p" in ClassificationHead(4, 2, pool="gem").state_dict()


@pytest.mark.parametrize("options", [{}, {"norm_layer": nn.LayerNorm}, {"norm_layer": nn.LayerNorm, "qk_norm": True}, {"qkv_bias": False}], ids=str)
def test_attention_is_timms(options):
    theirs = timm.layers.AttentionPoolLatent(48, num_heads=6, mlp_ratio=3, **options)
    fill(theirs)
    ours = AttentionPool(48, 6, mlp_ratio=3, norm="norm_layer" in options, norm_eps=1e-5,
                         **{k: v for k, v in options.items() if k != "norm_layer"}).eval()
    report = load_weights(ours, theirs.state_dict())
    assert report.layout == "timm" and len(report.loaded) == len(theirs.state_dict())
    tokens = torch.randn(2, 13, 48)
    assert_same(ours(tokens, prefix_tokens=1), theirs(tokens), "tokens")
    maps = torch.randn(2, 48, 5, 3)
    assert_same(ours(maps), theirs(maps.flatten(2).mT), "maps")
    (back,) = [m.convert(ours.state_dict(), "theirs") for m in ours.key_maps]
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_attention_of_a_published_head():
    "SigLIP's head, with timm's names under `attn_pool`."
    theirs = timm.create_model("vit_base_patch16_siglip_224", img_size=32, embed_dim=96, depth=1, num_heads=3, num_classes=0).eval()
    pool = AttentionPool(96, 3, mlp_ratio=4).eval()
    fill(theirs.attn_pool)
    load_weights(pool, theirs.attn_pool.state_dict())
    images = torch.randn(2, 3, 32, 32)
    tokens = theirs.forward_features(images)
    assert_same(pool(tokens), theirs.forward_head(tokens), "SigLIP's head")


def test_attention_looks_where_its_query_says():
    "A value that no average could find: the query answers to one of 1000 places."
    pool = AttentionPool(4, 1, qkv_bias=False).eval()
    with torch.no_grad():
        for layer in (pool.attention.q, pool.attention.proj): layer.weight.copy_(torch.eye(4))
        pool.attention.proj.bias.zero_()
        pool.attention.kv.weight.copy_(torch.eye(4).repeat(2, 1))
        pool.query.copy_(torch.tensor([0, 0, 0, 40.0]))
    tokens = torch.zeros(1, 1000, 4)
    tokens[0, 123] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(pool(tokens), tokens[:, 123])


@pytest.mark.parametrize("name", [*OF_MAPS, "token"])
def test_everything_learns_and_says_what_it_is(name):
    pool = pool_of(name).train()
    x = torch.randn(2, 9, 32, requires_grad=True)
    pool(x, 1).square().sum().backward()
    assert x.grad.abs().sum() > 0 and all(p.grad is not None and p.grad.abs().sum() > 0 for p in pool.parameters())
    again = POOLS.create(pool.config.name, **pool.config.arguments)
    assert type(again) is type(pool) and again.config == pool.config
    if name != "token": assert pool.get_output_shape([2, 32, 7, 5]) == [2, 32]


@pytest.mark.parametrize("make, error, says", [
    (lambda: create_pool("gen"), UnknownNameError, "did you mean 'gem'"),
    (lambda: create_pool("gem", power=2), UnknownArgumentError, "power"),
    (lambda: GeMPool(0), ConfigError, "p must be a number above 0"),
    (lambda: GeMPool(float("nan")), ConfigError, "above 0"),
    (lambda: GeMPool(eps=0), ConfigError, "eps"),
    (lambda: AttentionPool(32, 5), ConfigError, "num_heads=5 must divide"),
    (lambda: AttentionPool(32, mlp_ratio=0), ConfigError, "mlp_ratio"),
    (lambda: pool_of("attention")(torch.zeros(1, 8, 2, 2)), ShapeError, "must be 32, got 8"),
    (lambda: pool_of("avg")(torch.zeros(1, 5, 8), -1), ConfigError, "prefix_tokens"),
    (lambda: pool_of("avg")(torch.zeros(1, 5, 8), 5), ShapeError, "5 of 5 tokens"),
    (lambda: pool_of("token")(torch.zeros(1, 5, 8)), ConfigError, "use pool='avg'"),
    (lambda: pool_of("token")(torch.zeros(1, 8, 2, 2)), ShapeError, "use pool='avg'"),
    (lambda: ClassificationHead(8, 3)(torch.zeros(1, 5, 8)), ShapeError, "name a pool, one of attention"),
    (lambda: ClassificationHead(8, 3, pool="average"), UnknownNameError, "no pool is called 'average'"),
    (lambda: ClassificationHead(8, 3, pool={"name": "avg", "arguments": {"p": 3}}), UnknownArgumentError, "'p'"),
    (lambda: ClassificationHead(8, 3, hidden_features=0), ConfigError, "hidden_features"),
    (lambda: ClassificationHead(8, 3, hidden_features=4, act="gleu"), ConfigError, "did you mean 'gelu'"),
    (lambda: ClassificationHead(8, 3).classify(torch.zeros(1, 9)), ShapeError, "in_features=8"),
])
def test_slips(make, error, says):
    with pytest.raises(error, match=says): make()


def test_a_head_as_published_is_what_it_was():
    "No keys but the classifier's, timm's scores, dict or map."
    head, maps = ClassificationHead(24, 5).eval(), {2: torch.randn(2, 8, 8, 8), 4: torch.randn(2, 24, 3, 5)}
    theirs = fill(timm.layers.ClassifierHead(24, 5))
    assert list(head.state_dict()) == ["fc.weight", "fc.bias"]
    head.load_state_dict(theirs.state_dict())
    assert_same(head(maps), theirs(maps[4]), "the head")
    assert torch.equal(head(maps), head(maps[4])) and torch.equal(head.pool(maps), maps[4].mean((2, 3)))


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
@pytest.mark.parametrize("act", ["gelu", "tanh", "relu"])
def test_a_hidden_layer_is_timms(pool, act):
    theirs = fill(timm.layers.NormMlpClassifierHead(24, 5, hidden_size=16, pool_type=pool, norm_layer=nn.Identity, act_layer=act))
    head, maps = ClassificationHead(24, 5, pool=pool, hidden_features=16, act=act).eval(), torch.randn(3, 24, 4, 6)
    head.load_state_dict({k.replace("pre_logits.fc.", "hidden."): v for k, v in theirs.state_dict().items()})
    assert_same(head(maps), theirs(maps), f"{pool}, {act}")


def test_dropout_stands_before_the_last_layer():
    "And behind the hidden one: what is dropped is what the last layer would have read."
    for hidden, width in ((None, 8), (32, 32)):
        head, seen = ClassificationHead(8, 3, dropout=0.5, hidden_features=hidden, act="sigmoid"), []
        head.fc.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        head(torch.rand(64, 8, 2, 2) + 0.1)
        assert seen[0].shape == (64, width) and 0.4 < (seen[0] == 0).float().mean() < 0.6


def test_the_mlp_by_name():
    head = create_head("mlp", in_features=24, num_classes=5)
    assert isinstance(head, MLPHead) and head.hidden.out_features == 24 and head.classifier == "fc."
    assert head.config.name == "mlp" and create_head("mlp", **head.config.arguments).config == head.config
    assert create_head("mlp", in_features=24, num_classes=5, hidden_features=7).fc.in_features == 7


def test_a_head_pools_what_it_is_told_and_classifies_what_it_is_given():
    head = ClassificationHead(12, 3, pool={"name": "attention", "arguments": {"num_heads": 2}}, pool_channels=8)
    assert head.pooling.channels == 8 and head.pooling.attention.num_heads == 2
    assert head.pool({3: torch.zeros(2, 4, 4, 4), 4: torch.randn(2, 8, 2, 2)}).shape == (2, 8)
    assert head.classify(torch.randn(2, 12)).shape == (2, 3)
    assert create_head(head.config.name, **head.config.arguments).config == head.config
    tokens = torch.randn(2, 10, 12)
    assert torch.equal(ClassificationHead(12, 3, pool="token").pool(tokens, 1), tokens[:, 0])


def test_a_pool_of_ones_own():
    @register_pool("tests_median")
    class Median(BasePool):
        "The middle value."
        def reduce(self, x, axes): return x.flatten(axes[0], axes[-1]).median(axes[0]).values
    try:
        maps = torch.randn(2, 8, 5, 5)
        torch.testing.assert_close(ClassificationHead(8, 3, pool="tests_median").pool(maps), maps.flatten(2).median(2).values)
    finally: del POOLS.entries["tests_median"]


EXPORT = """
import io, sys, torch
from flame_vision.heads import ClassificationHead
names, onnx = sys.argv[1].split(","), sys.argv[2] == "onnx"
for name in names:
    tokens = name == "token"
    head = ClassificationHead(8, 3, pool=None if name == "none" else name, hidden_features=6).eval()
    example, other = (torch.randn(2, 7, 8), torch.randn(3, 12, 8)) if tokens else (torch.randn(2, 8, 6, 7), torch.randn(3, 8, 9, 4))
    class Alone(torch.nn.Module):
        def __init__(self): super().__init__(); self.head = head
        def forward(self, x): return self.head(x, 1 if x.ndim == 3 else 0)
    axes = {0: torch.export.Dim("b"), 1: torch.export.Dim("n", min=2)} if tokens else {
        0: torch.export.Dim("b"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    if onnx:
        import numpy as np, onnxruntime
        program = torch.onnx.export(Alone(), (example,), dynamo=True, dynamic_shapes=(axes,), verbose=False)
        file = io.BytesIO(); program.save(file)
        session = onnxruntime.InferenceSession(file.getvalue())
        run = lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    else: run = torch.export.export(Alone(), (example,), dynamic_shapes=(axes,)).module()
    for x in (example, other):
        expected = Alone()(x).detach()
        assert (run(x) - expected).abs().max() <= 1e-5 * expected.abs().max(), name
    print(name)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["export", "onnx"])
def test_heads_are_exported_with_any_batch_and_grid(how):
    "In a process without the hook that checks shapes."
    names = ["none", *OF_MAPS, "token"]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", EXPORT, ",".join(names), how], capture_output=True, text=True)
    assert [line for line in done.stdout.split() if line in names] == names, done.stderr[-2000:]


class Pixels(nn.Module):
    "A multi-label head that reads the means of the colours."
    def __init__(self):
        super().__init__()
        self.head = ClassificationHead(3, 3, multi_label=True)

    def forward(self, x): return self.head(x)


def test_several_classes_from_training_to_prediction():
    present = (torch.rand(400, 3) < 0.5).float()
    images = present[:, :, None, None] * 0.8 + 0.2 * torch.rand(400, 3, 4, 4)
    module = ClassificationModule(Pixels(), 3, learning_rate=0.1)
    assert module.multi_label and module.confusion is None and set(module.train_metrics.keys()) == {"train/accuracy", "train/f1"}
    trainer = Trainer(max_epochs=5, **QUIET)
    trainer.fit(module, DataLoader(TensorDataset(images[:300], present[:300]), 20))
    tested = trainer.test(module, DataLoader(TensorDataset(images[300:], present[300:]), 32), verbose=False)[0]
    with torch.no_grad(): scores, truth = module.eval()(images[300:]), present[300:]
    assert tested["test/map"] > 0.99 and tested["test/f1"] == pytest.approx(f1_score(truth, scores > 0, average="macro"), abs=1e-6)
    assert tested["test/map"] == pytest.approx(average_precision_score(truth, scores), abs=1e-6)
    expected = F.binary_cross_entropy_with_logits(scores, truth).item()
    assert tested["test/loss"] == pytest.approx(expected, rel=1e-5)
    given = torch.cat(Trainer(**QUIET).predict(module, DataLoader(TensorDataset(images[:5]), 5)))
    torch.testing.assert_close(given, module(images[:5]).sigmoid())
    found = classify(module.model, images[:5], nn.Identity(), ["red", "green", "blue"], 2, multi_label=True)
    for answer, row in zip(found, given):
        assert set(answer.labels) == set((row > 0.5).nonzero().flatten().tolist())
        assert [row[i] for i in answer.labels] == sorted((row[i] for i in answer.labels), reverse=True)
        assert answer.top(3) == [(answer.names[i], float(answer.scores[i])) for i in row.argsort(descending=True).tolist()]
        torch.testing.assert_close(answer.scores, row)


def test_scores_that_look_like_probabilities_are_not_taken_for_them():
    "torchmetrics takes numbers between 0 and 1 for probabilities: here all of them are scores above zero, so every class is there."
    class Same(nn.Module):
        def forward(self, x): return x.flatten(1)
    scores, targets = 0.1 + 0.3 * torch.rand(20, 4), torch.ones(20, 4)
    module = ClassificationModule(Same(), 4, multi_label=True)
    tested = Trainer(**QUIET).test(module, DataLoader(TensorDataset(scores[:, :, None, None], targets), 5), verbose=False)[0]
    assert tested["test/accuracy"] == 1


def test_losses_of_a_module():
    scores, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 3, 3])
    def loss(**arguments): return ClassificationModule(nn.Identity(), 4, **arguments).loss(scores, labels).item()
    assert loss() == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-6)
    smooth = F.cross_entropy(scores, labels, label_smoothing=0.1).item()
    assert loss(label_smoothing=0.1) == pytest.approx(smooth, rel=1e-6)
    assert loss(loss=nn.CrossEntropyLoss(label_smoothing=0.1)) == pytest.approx(smooth, rel=1e-6)
    summed = loss(loss={"cross_entropy": 2.0, "dice": 1.0}, label_smoothing=0.1)
    assert summed == pytest.approx(2 * smooth + loss(loss="dice"), rel=1e-6)
    assert "loss" in ClassificationModule(nn.Identity(), 4, loss="focal").hparams
    assert "loss" not in ClassificationModule(nn.Identity(), 4, loss=nn.CrossEntropyLoss()).hparams
    with pytest.raises(ConfigError, match="none to smooth"): loss(loss=nn.CrossEntropyLoss(), label_smoothing=0.1)
    with pytest.raises(ConfigError, match="multi_label=True"): loss(loss="binary_cross_entropy")
    with pytest.raises(UnknownNameError, match="did you mean 'focal'"): loss(loss="focl")


def test_a_loss_adds_nothing_to_a_lightning_checkpoint():
    weighted = {"cross_entropy": {"class_weights": [1, 2, 3]}, "dice": 1.0}
    plain, other = (ClassificationModule(nn.Linear(4, 3), 3, loss=loss) for loss in (None, weighted))
    assert list(plain.state_dict()) == list(other.state_dict())
