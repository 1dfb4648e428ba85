"Every ViT, Swin and hybrid against timm, torchvision and transformers: keys, tensors, outputs, maps, and what a user can ask of them."
import os
import subprocess
import sys
import time
from copy import deepcopy

import pytest
import timm
import torch
from peers import LARGE, assert_same, count, empty, fill, from_timm, from_torchvision
from safetensors.torch import load_file
from timm.models import swin_transformer as timm_swin
from timm.models import vision_transformer as timm_vit
from torchvision import models as tv

from flame_vision.backbones import create_backbone
from flame_vision.backbones.hybrid import HYBRIDS
from flame_vision.backbones.swin import SWINS, SWINV2S
from flame_vision.backbones.vit import VITS, ViTBackbone
from flame_vision.blocks import DropPath, resample_patch_embedding
from flame_vision.core import ConfigError, ShapeError, WeightsError, summary
from flame_vision.core.weights import export_weights, load_weights
from flame_vision.models import TRANSFORMERS, create_model, torchvision_name

NAMES = list(TRANSFORMERS)
WINDOWED = SWINS | SWINV2S
ONE_EACH = ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "vit_tiny_r_s16_p8_224"]
TORCHVISIONS = [name for name in NAMES if torchvision_name(name) in tv.list_models()]


def image(*size, batch=2, seed=1): return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def native(name): return empty(create_backbone, name).config.arguments["img_size"]


def cases(name):
    "Arguments that ours and timm's are built with, and sizes: native, another grid, two that are not square, one of them not filled."
    if name in WINDOWED: return [(dict(img_size=size), dict(img_size=size), [size]) for size in ((64, 64), (160, 160), (96, 136))]
    patch = empty(create_backbone, name).min_size[0]
    side, taking_any = 4 * patch, dict(dynamic_img_size=True, dynamic_img_pad=True)
    sizes = [(side, side), (6 * patch, 6 * patch), (3 * patch, 5 * patch + 1), (3 * patch, 5 * patch)]
    return [(dict(img_size=side), dict(img_size=side, **taking_any), sizes)]


def known_zeros(model, state):
    "Torchvision's Swin V2 stores the biases of its keys, which are zero."
    return sum(v.numel() // 3 for k, v in state.items() if k.endswith("attn.qkv.bias")) if getattr(model.backbone, "version", 1) == 2 else 0


def check_keys(ours, theirs, layout):
    "Keys, shapes and types, there and back, without a number computed."
    state, chosen = theirs.state_dict(), next(m for m in ours.key_maps if m.layout == layout)
    assert {k: v.shape for k, v in chosen.convert(state).items()} == {k: v.shape for k, v in ours.state_dict().items()}
    assert {k: (v.shape, v.dtype) for k, v in export_weights(ours, layout).items()} == {k: (v.shape, v.dtype) for k, v in state.items()}
    assert count(ours) == count(theirs) - known_zeros(ours, state)


def load_strictly(ours, theirs, layout):
    "Every key accounted for, and the way back gives the same tensors."
    state = theirs.state_dict()
    report = load_weights(ours, state)
    assert report.layout == layout and len(report.loaded) == len(ours.state_dict())
    assert not (report.skipped or report.absent or report.reinitialised or report.resampled)
    back = export_weights(ours, layout)
    assert back.keys() == state.keys()
    for k, v in state.items():
        if k not in report.zero: torch.testing.assert_close(back[k], v, rtol=0, atol=1e-6)  # what is computed may be rounded otherwise
        if k not in report.zero + report.derived: assert torch.equal(back[k], v), k
    for k in report.zero: assert torch.equal(torch.cat([back[k].chunk(3)[i] for i in (0, 2)]), torch.cat([state[k].chunk(3)[i] for i in (0, 2)]))
    return report


def ours_of(name, **arguments): return empty(create_model, name, **arguments).to_empty(device="cpu").eval()


def check_outputs(name, ours_with, theirs_with, sizes):
    theirs = fill(from_timm(name, num_classes=10, **theirs_with))
    ours = ours_of(name, num_classes=10, **ours_with)
    load_strictly(ours, theirs, "timm")
    for size in sizes:
        x = image(*size)
        with torch.inference_mode():
            features = theirs.forward_features(x)
            assert_same(ours(x), theirs.forward_head(features), f"{name}, {size}")
            vector, expected = ours.forward_head(ours.forward_features(x), pre_logits=True), theirs.forward_head(features, pre_logits=True)
            assert_same(vector, expected, f"{name}, {size}, vector")
    return ours, theirs


@pytest.mark.parametrize("name", NAMES)
def test_equals_timm(name):
    ours, theirs = empty(create_model, name), from_timm(name, num_classes=1000)
    check_keys(ours, theirs, "timm")
    if count(theirs) > LARGE: return
    for ours_with, theirs_with, sizes in cases(name):
        model, peer = check_outputs(name, ours_with, theirs_with, sizes)
    x, backbone = image(*sizes[-1], seed=2), create_backbone(name, **ours_with).eval()
    assert len(load_weights(backbone, peer.state_dict()).skipped) == 2, "weight and bias of the classifier"
    ends = None if name in WINDOWED else [blocks.stop - 1 for blocks in backbone.stages.values()]
    with torch.inference_mode(): maps, expected = backbone(x), peer.forward_intermediates(x, indices=ends, intermediates_only=True)
    for s, m in zip((1, 2, 3, 4), expected, strict=True): assert_same(maps[s], m, f"{name}, stage {s}")


SLOWLY = [pytest.param(n, marks=pytest.mark.slow) for n in NAMES if n not in ONE_EACH and "huge" not in n]


@pytest.mark.parametrize("name", [*ONE_EACH, *SLOWLY])
def test_equals_timm_at_the_published_size(name):
    side = native(name)
    taking_any = {} if name in WINDOWED else dict(dynamic_img_size=True)
    sizes = [(side, side), (side + 64, side - 64)]
    if side > 400 or name in WINDOWED or count(empty(create_backbone, name)) > LARGE: del sizes[1]
    check_outputs(name, {}, taking_any, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if "huge" not in n])
def test_large_ones_give_equal_outputs_too(name):
    "What `make test` compares by keys and shapes alone."
    if count(empty(create_backbone, name)) <= LARGE: pytest.skip("compared in make test")
    for ours_with, theirs_with, sizes in cases(name): check_outputs(name, ours_with, theirs_with, sizes)


def check_torchvision(name, sizes, **arguments):
    sized = {"image_size": arguments["img_size"]} if arguments else {}
    theirs = fill(from_torchvision(torchvision_name(name), num_classes=10, **sized))
    ours = ours_of(name, num_classes=10, **arguments)
    report = load_strictly(ours, theirs, "torchvision")
    depth = sum(TRANSFORMERS[name].get("depths", ()))
    assert (len(report.derived), len(report.zero)) == ((2 * depth, depth) if name in SWINV2S else (depth, 0))
    for size in sizes:
        with torch.inference_mode(): assert_same(ours(image(*size)), theirs(image(*size)), f"{name}, torchvision, {size}")


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_equals_torchvision(name):
    other = torchvision_name(name)
    theirs = from_torchvision(other)
    ours = empty(create_model, name)
    check_keys(ours, theirs, "torchvision")
    for weights in tv.get_model_weights(other):
        side = weights.meta["min_size"][0]
        cost = summary(empty(create_model, name, img_size=side), [1, 3, side, side], depth=0)
        assert cost.parameters == weights.meta["num_params"] - known_zeros(ours, theirs.state_dict()), weights
        assert round(cost.macs / 1e9, 3) == weights.meta["_ops"], weights
    if count(theirs) > LARGE: return
    check_torchvision(name, [(64, 64), (224, 224), (96, 136)])  # a Swin takes any size that patches fill


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISIONS)
def test_large_ones_equal_torchvisions_too(name):
    if count(empty(create_backbone, name)) <= LARGE or "huge" in name: pytest.skip("compared in make test, or by keys only")
    if name in WINDOWED: check_torchvision(name, [(64, 64), (224, 224), (96, 136)])
    else:
        for side in (native(name), 2 * empty(create_backbone, name).min_size[0]): check_torchvision(name, [(side, side)], img_size=side)


def test_a_small_vit_equals_torchvisions():
    "All of torchvision's ViTs are large; the same class with fewer numbers, at two sizes."
    for side in (64, 96):
        theirs = fill(tv.VisionTransformer(side, 16, 4, 3, 192, 768, num_classes=10))
        ours = ours_of("vit_tiny_patch16_224", num_classes=10, img_size=side)
        ours.backbone = ViTBackbone(img_size=side, embed_dim=192, depth=4, num_heads=3).eval()
        load_strictly(ours, theirs, "torchvision")
        with torch.inference_mode(): assert_same(ours(image(side, side)), theirs(image(side, side)), f"ViT, {side}")


ON_DISK = [*[("vit_tiny_patch16_224", size) for size in ((64, 64), (160, 160), (64, 96))],
           *[("swin_tiny_patch4_window7_224", size) for size in ((224, 224), (256, 320))],
           *[("swinv2_tiny_window8_256", size) for size in ((256, 256), (288, 320))]]


@pytest.mark.parametrize("name,size", ON_DISK)
def test_equals_transformers_on_disk(name, size, tmp_path):
    import transformers as hf
    kinds = {"vit": (hf.ViTConfig, hf.ViTForImageClassification, hf.ViTModel), "swin": (hf.SwinConfig, hf.SwinForImageClassification, hf.SwinModel),
             "swinv2": (hf.Swinv2Config, hf.Swinv2ForImageClassification, hf.Swinv2Model)}[name.split("_")[0]]
    more = dict(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    if name in WINDOWED: more = dict(window_size=TRANSFORMERS[name]["window_size"])
    config, arguments, shown = kinds[0](image_size=size, num_labels=10, **more), dict(img_size=size), size
    theirs = fill(kinds[1](config))
    theirs.save_pretrained(tmp_path / "whole")
    ours = create_model(name, num_classes=10, **arguments).eval()
    report = load_weights(ours, tmp_path / "whole" / "model.safetensors")
    assert report.layout == "transformers" and len(report.loaded) == len(ours.state_dict())
    assert report.adopted == ({} if name in WINDOWED else {"norm_eps": 1e-12})
    on_disk, back = load_file(tmp_path / "whole" / "model.safetensors"), export_weights(ours, "transformers")
    assert back.keys() == on_disk.keys() and all(torch.equal(back[k], v) for k, v in on_disk.items())
    with torch.inference_mode(): assert_same(ours(image(*shown)), theirs(image(*shown)).logits, f"{name}, {shown}")
    body = fill(kinds[2](config))
    body.save_pretrained(tmp_path / "body")
    backbone = create_backbone(name, **arguments).eval()
    report = load_weights(backbone, tmp_path / "body" / "model.safetensors")
    assert len(report.loaded) == len(backbone.state_dict()) and all("pooler" in k for k in report.skipped)
    with torch.inference_mode():
        a, b = backbone(image(*shown)), body(image(*shown)).last_hidden_state
        a = backbone.finish(a[4]).flatten(2).transpose(1, 2) if name in WINDOWED else backbone.finish(backbone.forward_tokens(image(*shown)))
    assert_same(a, b, f"{name}, {shown}, body")


@pytest.mark.parametrize("size", [(96, 96), (64, 112)])
def test_positions_of_another_grid_are_scaled_as_timm_does(size):
    state = fill(from_timm("vit_tiny_patch16_224", num_classes=10, img_size=64)).state_dict()
    theirs = from_timm("vit_tiny_patch16_224", num_classes=10, img_size=size).to_empty(device="cpu").eval()
    theirs.load_state_dict(timm_vit.checkpoint_filter_fn(dict(state), theirs))
    ours = create_model("vit_tiny_patch16_224", num_classes=10, img_size=size).eval()
    report = load_weights(ours, state)
    assert report.resampled == ["backbone.tokens.positions"] and "resampled 1" in str(report)
    assert torch.equal(ours.backbone.tokens.positions, theirs.pos_embed)
    with torch.inference_mode(): assert_same(ours(image(*size)), theirs(image(*size)), f"scaled to {size}")
    moved = create_model("vit_tiny_patch16_224", num_classes=10, img_size=64).eval()
    load_weights(moved, state)
    moved.backbone.set_input_size(size)
    with torch.inference_mode(): assert_same(moved(image(*size)), theirs(image(*size)), "set_input_size")
    assert create_model(config=moved.config).backbone.tokens.grid == moved.backbone.tokens.grid


OTHER_WINDOWS = [dict(window_size=12, img_size=384), dict(window_size=5, img_size=160), dict(img_size=96),
                 dict(window_size=(4, 8), img_size=(128, 256))]


@pytest.mark.parametrize("arguments", OTHER_WINDOWS)
def test_biases_of_another_window_are_scaled_as_timm_does(arguments):
    name = "swin_tiny_patch4_window7_224"
    state = fill(from_timm(name)).state_dict()
    theirs = timm.create_model(name, **arguments).eval()
    theirs.load_state_dict(timm_swin.checkpoint_filter_fn(dict(state), theirs))
    ours = create_model(name, **arguments).eval()
    report = load_weights(ours, state)
    assert report.resampled and all(k.endswith("position_bias.table") for k in report.resampled)
    back = export_weights(ours, "timm")
    for k in back: torch.testing.assert_close(back[k], theirs.state_dict()[k], rtol=0, atol=2e-6)


def test_a_published_file_of_torchvision_has_older_names():
    theirs = fill(tv.VisionTransformer(64, 16, 2, 3, 192, 768, num_classes=10))
    old = {k.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v for k, v in theirs.state_dict().items()}
    small = {"name": "vit", "arguments": dict(img_size=64, embed_dim=192, depth=2, num_heads=3)}
    ours = create_model(backbone=small, head="classifier", num_classes=10).eval()
    assert load_weights(ours, old).layout == "torchvision"
    with torch.inference_mode(): assert_same(ours(image(64, 64)), theirs(image(64, 64)), "linear_1 and linear_2")


OPTIONS = [dict(register_tokens=4), dict(register_tokens=2, embed_prefix=False), dict(class_token=False, pool="avg"), dict(pool="avg"),
           dict(class_token=False, register_tokens=3, pool="avg"), dict(qk_norm=True), dict(layer_scale=0.1), dict(qkv_bias=False)]


@pytest.mark.parametrize("options", OPTIONS)
def test_tokens_and_pooling_are_timms(options):
    words = dict(register_tokens="reg_tokens", pool="global_pool", layer_scale="init_values", embed_prefix="no_embed_class")
    theirs = {words.get(k, k): (not v if k == "embed_prefix" else v) for k, v in options.items()}
    small = dict(img_size=64, depth=2)
    peer = fill(from_timm("vit_tiny_patch16_224", num_classes=10, dynamic_img_size=True, **small, **theirs))
    vit = {"name": "vit", "arguments": dict(embed_dim=192, num_heads=3, **small, **options)}
    model = create_model(backbone=vit, head="classifier", num_classes=10).eval()
    load_strictly(model, peer, "timm")
    for size in ((64, 64), (48, 96)):
        with torch.inference_mode(): assert_same(model(image(*size)), peer(image(*size)), f"{options}, {size}")


@pytest.mark.parametrize("name", NAMES)
def test_stochastic_depth_is_timms(name):
    ours, theirs = empty(create_backbone, name, drop_path_rate=0.2), from_timm(name, drop_path_rate=0.2)
    a = [m.p for m in ours.modules() if isinstance(m, DropPath)]
    b = [m.drop_prob for m in theirs.modules() if isinstance(m, timm.layers.DropPath) and m.drop_prob]
    assert a and len(a) == len(b) and all(abs(p - q) < 1e-6 for p, q in zip(a, b))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_training_with_stochastic_depth_equals_timms(name):
    "The same draws in the same order: loss and gradients of a training step are timm's."
    size = dict(img_size=64)
    theirs = fill(from_timm(name, num_classes=10, drop_path_rate=0.5, **size)).train()
    ours = create_model(name, num_classes=10, drop_path_rate=0.5, **size).train()
    load_weights(ours, theirs.state_dict())
    losses = []
    for net in (ours, theirs):
        torch.manual_seed(3)
        losses.append(net(image(64, 64, batch=4)).square().mean())
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)
    for m in ours.modules():
        for p in m.parameters(recurse=False): p.data = p.grad if p.grad is not None else torch.zeros_like(p)
    gradients = export_weights(ours, "timm")
    for k, p in theirs.named_parameters():
        torch.testing.assert_close(gradients[k], p.grad, rtol=1e-2, atol=1e-4 * p.grad.abs().max().item() + 1e-9, msg=k)


@pytest.mark.parametrize("name", ONE_EACH)
def test_checkpointing_changes_nothing(name):
    torch.manual_seed(0)
    plain = create_backbone(name, features_only=True, drop_path_rate=0.3, img_size=64).train()
    spared, runs = deepcopy(plain), {}
    spared.set_gradient_checkpointing((2, 3))
    for net in (plain, spared):
        for s in (1, 2, 3, 4):
            block = net.stages[str(s)].blocks[0] if name in WINDOWED else net.blocks[net.stages[s].start]
            block.register_forward_pre_hook(lambda *_, key=(net is spared, s): runs.update({key: runs.get(key, 0) + 1}))
        torch.manual_seed(1)
        sum(m.square().mean() for m in net(image(64, 96)).values()).backward()
    assert runs == {(twice, s): 1 + (twice and s in (2, 3)) for twice in (False, True) for s in (1, 2, 3, 4)}
    for (key, p), q in zip(plain.named_parameters(), spared.parameters(), strict=True): assert torch.equal(p.grad, q.grad), key


@pytest.mark.parametrize("hierarchical", [False, True])
@pytest.mark.parametrize("name", ONE_EACH)
def test_attention_can_be_asked_for_and_changes_nothing(name, hierarchical):
    if hierarchical and name in WINDOWED: pytest.skip("has stages of its own")
    more = dict(hierarchical=True) if hierarchical else {}
    model, x = create_model(name, num_classes=3, img_size=64, **more).eval(), image(64, 93)
    with torch.inference_mode():
        plain, (scores, weights) = model(x), model(x, return_attention=True)
        maps, again = model.backbone(x), model.backbone(x, return_attention=True)
    assert torch.equal(plain, scores) and all(torch.equal(maps[s], again[0][s]) for s in maps)
    blocks = [n for n, _ in model.backbone.named_modules() if n.endswith(".feed_forward")]
    assert set(weights) == {1, 2, 3, 4} and sum(len(w) for w in weights.values()) == len(blocks)
    for w in (w for stage in weights.values() for w in stage): torch.testing.assert_close(w.sum(-1), torch.ones(w.shape[:-1]), rtol=0, atol=1e-5)
    model.train()
    spared = deepcopy(model)
    spared.set_gradient_checkpointing()
    assert torch.equal(model(x, return_attention=True)[0], spared(x, return_attention=True)[0])


def test_attention_of_what_has_none():
    with pytest.raises(ConfigError, match="ResNetBackbone has no attention"): create_model("resnet18")(image(32, 32), return_attention=True)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224", "vit_small_patch32_224", "vit_small_patch8_224"])
def test_a_pyramid_of_true_strides(name):
    net = create_backbone(name, img_size=64, hierarchical=True, pyramid_channels=32).eval()
    assert [info.stride for info in net.feature_info] == [4, 8, 16, 32] and {info.channels for info in net.feature_info} == {32}
    x = image(128, 96)
    assert {s: tuple(m.shape[2:]) for s, m in net(x).items()} == {s: (128 // 2 ** (s + 1), 96 // 2 ** (s + 1)) for s in (1, 2, 3, 4)}
    assert net.size_divisibility == 32
    report = load_weights(net, fill(from_timm(name, num_classes=0, img_size=64)).state_dict())
    assert report.reinitialised and all(k.startswith("pyramid.") for k in report.reinitialised)
    with pytest.warns(UserWarning, match="has no place for 'pyramid"): assert not any(k.startswith("pyramid") for k in export_weights(net, "timm"))
    own = create_backbone(name, img_size=64).state_dict()
    assert len(load_weights(net, own).reinitialised) == len(report.reinitialised), "weights of one's own plain network"
    sum(m.square().mean() for m in net.train()(x).values()).backward()
    assert all(p.grad is not None for p in net.parameters())
    two = create_backbone(name, img_size=64, hierarchical=True, pyramid_channels=32, output_indices=(2, 4))
    assert load_weights(two, net.state_dict()).skipped and not load_weights(two, net.state_dict()).reinitialised
    assert [info.stride for info in two.feature_info] == [8, 32] and count(two) < count(net)


def test_the_seeds_call():
    net = create_backbone("vit", patch_size=16, hierarchical=True)
    assert [info.stride for info in net.feature_info] == [4, 8, 16, 32]


@pytest.mark.parametrize("name", ONE_EACH)
def test_features_only_keeps_what_is_needed(name):
    whole, part = create_backbone(name, img_size=64).eval(), create_backbone(name, img_size=64, output_indices=(0, 2), features_only=True).eval()
    report = load_weights(part, whole.state_dict())
    assert report.skipped and len(report.loaded) == len(part.state_dict()) < len(whole.state_dict())
    with torch.inference_mode(): a, b = whole(image(64, 64)), part(image(64, 64))
    assert list(b) == [0, 2] and all(torch.equal(a[s], m) for s, m in b.items())
    part.train()
    sum(m.square().mean() for m in part(image(64, 64)).values()).backward()
    assert all(p.grad is not None for p in part.parameters())


@pytest.mark.parametrize("name", ONE_EACH)
def test_any_number_of_channels_and_any_size(name):
    net = create_backbone(name, in_channels=5, features_only=True, img_size=64).eval()
    for size in ((64, 64), (65, 97), (130, 40)):
        x = torch.randn(1, 5, *size)
        assert {s: list(m.shape) for s, m in net(x).items()} == net.get_output_shape([1, 5, *size])
        for m, info in zip(net(x).values(), net.feature_info, strict=True): assert tuple(m.shape[2:]) == tuple(-(-n // info.stride) for n in size)
    with pytest.raises(ShapeError, match=r"axis 1 \(c\) must be 5, got 3"): net(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("name", NAMES)
def test_made_on_the_meta_device_in_no_time_and_no_memory(name):
    with torch.device("meta"):
        create_backbone(name)
        start = time.process_time()
        net = create_backbone(name)
        taken = time.process_time() - start
    assert all(t.is_meta for t in [*net.parameters(), *net.buffers()])
    assert taken < 1, f"{taken:.2f} s"


@pytest.mark.parametrize("name", ONE_EACH)
def test_configuration_makes_an_equal_model(name):
    model = empty(create_model, name, num_classes=7, in_channels=1, drop_path_rate=0.1, gradient_checkpointing=(3,), img_size=(64, 96))
    again = empty(create_model, config=model.config)
    assert again.config == model.config and again.backbone.checkpointed_stages == {3}
    assert [(k, v.shape) for k, v in again.state_dict().items()] == [(k, v.shape) for k, v in model.state_dict().items()]


@pytest.mark.parametrize("name,setting", [("vit_tiny_patch16_224", {"norm_eps": 1e-12}), ("swin_tiny_patch4_window7_224", {"roll_first": True})])
def test_a_registered_model_is_what_it_was_after_weights_changed_it(name, setting, tmp_path):
    from flame_vision.versioning import ModelRegistry
    model = create_model(name, num_classes=3, img_size=64).eval()
    layout = "transformers" if "norm_eps" in setting else "timm"
    with pytest.warns(UserWarning, match="which are others here"): state = export_weights(model, layout)
    assert load_weights(model, state, layout=layout).adopted == setting
    registry = ModelRegistry(tmp_path)
    registry.register("adopted", model=model)
    again = registry.load("adopted").eval()
    with torch.inference_mode(): assert torch.equal(again(image(64, 90)), model(image(64, 90)))
    assert setting.items() <= again.config.arguments.items()


def test_published_weights_of_another_size_make_a_model_of_that_size():
    from flame_vision.models import published_size
    assert published_size("vit_b_16", tv.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1) == {"img_size": 384}
    assert published_size("vit_b_16", "DEFAULT") == {"img_size": 224} and published_size("resnet18", "DEFAULT") == {}


WRONG = {"output_indices": [(7,), "4", (True,)], "drop_path_rate": [1.0, None], "gradient_checkpointing": [(9,), 3], "in_channels": [0, -1, "3"],
         "norm_eps": [-1.0], "img_size": [0, 3, (64,), "64", 2.5], "proj_dropout": [1.0, -0.1], "attention_dropout": [2.0]}
SLIPS = [("vit", dict(num_heads=5)), ("vit", dict(pool="max")), ("vit", dict(class_token=False)), ("vit", dict(depth=0)),
         ("vit", dict(patch_size=0)), ("vit", dict(register_tokens=-1)), ("vit", dict(img_size=100, dynamic=False)), ("vit", dict(embed_dim=0)),
         ("vit", dict(class_token=2)), ("vit", dict(depth="3")), ("vit", dict(depth=True)), ("vit", dict(mlp_ratio="4")),
         ("vit", dict(layer_scale="x")),
         ("vit", dict(patch_size=(8, 16), hierarchical=True)), ("swin", dict(mlp_ratio="4")), ("swin", dict(roll_first="no")),
         ("vit", dict(patch_size=14, hierarchical=True)), ("vit_huge_patch14_224", dict(hierarchical=True)), ("swin", dict(version=3)),
         ("swin", dict(num_heads=(3, 6, 12, 25))), ("swin", dict(depths=(2, 2, 6))), ("swin", dict(window_size=0)), ("swin", dict(patch_size=0))]
REFUSE = """
import sys, torch
sys.path.insert(0, "tests")
from test_transformers import ONE_EACH, SLIPS, WRONG, ConfigError
from flame_vision.backbones.base import BACKBONES
for name, arguments in SLIPS + [(n, {k: v}) for n in ONE_EACH for k, values in WRONG.items() for v in values]:
    try:
        with torch.device("meta"): BACKBONES.create(name, **arguments)
    except ConfigError as e: assert str(e); continue
    raise AssertionError((name, arguments))
"""


def test_values_that_make_no_sense_are_refused_in_our_own_words():
    "In a process of its own: in this suite the run-time type checks would be faster."
    ran = subprocess.run([sys.executable, "-c", REFUSE], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_images_that_no_patch_fits_in(name):
    patch = 16 if name.startswith("vit") else 4
    net = create_backbone(name, img_size=64)
    for ask in (net.get_output_shape, lambda shape: net(torch.zeros(shape))):
        with pytest.raises(ShapeError, match=f"{patch} × {patch}"): ask([1, 3, patch - 1, 64])


def test_one_size_only_where_that_was_asked_for():
    net = create_backbone("vit_tiny_patch16_224", img_size=(64, 96), dynamic=False).eval()
    assert net.feature_info[-1].stride == 16 and net(image(64, 96))[4].shape == (2, 192, 4, 6)
    for size in ((64, 64), (96, 64), (65, 96)):
        with pytest.raises(ShapeError, match=r"takes images of 64 × 96 only, got .*set_input_size"): net(image(*size))


@pytest.mark.parametrize("name,other", [("vit_tiny_patch16_224", dict(patch_size=32, img_size=128)),
                                        ("swin_tiny_patch4_window7_224", dict(patch_size=8, img_size=448))])
def test_weights_with_patches_of_another_size(name, other):
    theirs = create_model(name, num_classes=2, **other)
    ours = create_model(name, num_classes=2, img_size=64 if "vit" in name else 224)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    state = theirs.state_dict()
    with pytest.raises(WeightsError, match=r"patches of \d+ × \d+, this model of \d+ × \d+: make it with patch_size=\d+"): load_weights(ours, state)
    assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items())
    key = next(k for k in state if k.endswith("proj.weight") and state[k].ndim == 4)
    state[key] = resample_patch_embedding(state[key], before[key].shape[2:])
    assert len(load_weights(ours, state).loaded) == len(before)


def test_remembered_shapes_follow_the_input_size():
    "As many patches as before, in another grid: also a model that holds the backbone answers anew."
    model = create_model("vit_tiny_patch16_224", num_classes=3, img_size=(32, 128), dynamic=False)
    assert model.get_output_shape([1, 3, 32, 128]) == [1, 3] and model.feature_info[-1].stride == 16
    model.set_input_size((64, 64))
    assert model.get_output_shape([1, 3, 64, 64]) == [1, 3] and model.feature_info[-1].stride == 16
    with pytest.raises(ShapeError, match="takes images of 64 × 64 only"): model.get_output_shape([1, 3, 32, 128])


@pytest.mark.parametrize("options", [dict(pool="avg"), dict(class_token=False, pool="avg"), dict(register_tokens=2), dict(embed_prefix=False),
                                     dict(qkv_bias=False), dict(act="relu")])
def test_what_is_no_network_of_a_peers_is_not_written_as_one(options):
    model = create_model(backbone={"name": "vit", "arguments": dict(img_size=64, embed_dim=32, depth=1, num_heads=2, **options)}, head="classifier")
    for layout in ("torchvision", "transformers"):
        with pytest.raises(WeightsError, match=f"has no layout '{layout}'"): export_weights(model, layout)
    assert export_weights(model, "timm")


def test_another_trained_window_reaches_torchvision():
    "Its buffer of offsets carries what ours knows by `pretrained_window_sizes`."
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
    kinds = dict(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)
    theirs = fill(tv.SwinTransformer([4, 4], 24, [1, 2, 1, 1], [1, 2, 3, 4], [4, 4], num_classes=5, **kinds))
    small = dict(embed_dim=24, depths=(1, 2, 1, 1), num_heads=(1, 2, 3, 4), window_size=4, img_size=128, version=2)
    small["pretrained_window_sizes"] = (8, 8, 8, 8)
    ours = create_model(backbone={"name": "swin", "arguments": small}, head="classifier", num_classes=5).eval()
    load_weights(ours, theirs.state_dict())
    theirs.load_state_dict(export_weights(ours, "torchvision"))
    with torch.inference_mode(): assert_same(ours(image(128, 96)), theirs(image(128, 96)), "trained with windows of 8")


def test_a_published_network_takes_no_stages():
    from flame_vision.models import VisionTransformer
    with pytest.raises(ConfigError, match="takes no output_indices"): VisionTransformer("vit_tiny_patch16_224", output_indices=(2,))


def test_positions_without_a_square_grid():
    state = create_model("vit_tiny_patch16_224", num_classes=2, img_size=(64, 96)).state_dict()
    ours = create_model("vit_tiny_patch16_224", num_classes=2, img_size=64)
    with pytest.raises(WeightsError, match="positions of these weights cannot be scaled"): load_weights(ours, state)


@pytest.mark.parametrize("name", ONE_EACH)
@pytest.mark.parametrize("given", ["name", "module"])
def test_any_head_goes_on_any_backbone(name, given):
    "A head of one's own takes the maps by stage, and leaves nothing without a gradient."
    from flame_vision.architectures import Classifier
    from flame_vision.heads import register_head
    from flame_vision.parts import Part

    @register_head("deepest_mean_of_a_transformer")
    class DeepestMean(Part):
        def __init__(self, in_features: int, num_classes: int):
            super().__init__()
            self.fc = torch.nn.Linear(in_features, num_classes)

        def forward(self, maps): return self.fc(maps[max(maps)].mean((2, 3)))

    head = "deepest_mean_of_a_transformer" if given == "name" else DeepestMean(create_backbone(name).num_features, 3)
    model = Classifier(backbone=name, head=head, num_classes=3 if given == "name" else None)
    model(image(64, 64)).sum().backward()
    assert all(p.grad is not None for k, p in model.named_parameters() if not k.endswith(("class_token", "position_bias.mlp.0.bias")))


TRACE = """
import sys, torch
from flame_vision.models import create_model
torch.manual_seed(0)
name, extra = sys.argv[1], eval(sys.argv[2])
def make(**more): return create_model(backbone={"name": name, "arguments": {"img_size": 64, **extra, **more}}, head="classifier", num_classes=5)
model, x = make().eval(), torch.randn(2, 3, 64, 96)
with torch.no_grad():
    scores = model(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), scores, rtol=1e-4, atol=1e-5)
    batch, height, width = (torch.export.Dim.DYNAMIC,) * 3
    exported = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch, 2: height, 3: width}}).module()
    for shape in ((2, 3, 64, 96), (3, 3, 130, 65), (1, 3, 64, 64)):
        y = torch.randn(shape)
        torch.testing.assert_close(exported(y), model(y), rtol=1e-4, atol=1e-5)
spared = make(gradient_checkpointing=True).train()
torch.compile(spared, fullgraph=True, backend="aot_eager")(x).sum().backward()
assert all(p.grad is not None for p in spared.parameters())
"""


SMALL_VIT, SMALL_SWIN = dict(embed_dim=48, depth=4, num_heads=3), dict(embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4))
SLOW_TRACES = [*[(name, {}) for name in ONE_EACH], ("swin", {**SMALL_SWIN, "version": 2}),
               ("vit_tiny_patch16_224", {"hierarchical": True, "output_indices": (4,)})]


@pytest.mark.parametrize("name,extra", [("vit", SMALL_VIT), ("swin", {**SMALL_SWIN, "depths": (2, 2, 1, 1)}),
                                        *[pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_TRACES]])
def test_compiles_and_exports(name, extra):
    "In a process of its own: the suite's run-time shape checks are no part of what a user compiles."
    ran = subprocess.run([sys.executable, "-c", TRACE, name, repr(extra)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr[-3000:]


ONNX = """
import sys, numpy, onnxruntime, torch
from flame_vision.models import create_model
torch.manual_seed(0)
path, name, small = sys.argv[1], sys.argv[2], eval(sys.argv[3])
model = create_model(backbone={"name": name, "arguments": small}, head="classifier", num_classes=5).eval()
least = 16 if name == "vit" else 33
sizes = {0: torch.export.Dim("b", min=1, max=64), 2: torch.export.Dim("h", min=least, max=1024), 3: torch.export.Dim("w", min=least, max=1024)}
torch.onnx.export(model, (torch.randn(2, 3, 224, 224),), path, dynamo=True, dynamic_shapes=(sizes,), verbose=False, external_data=False)
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
for shape in ((2, 3, 224, 224), (1, 3, 65, 97), (3, 3, 200, 130), (1, 3, 80, 112)):
    x = torch.randn(shape)
    with torch.no_grad(): expected = model(x)
    got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    off = ((got - expected).abs().max() / expected.abs().max()).item()
    assert off < 1e-4, (shape, off)
"""
SLOW_ONNX = [("swin", {**SMALL_SWIN, "version": 2}), ("vit", SMALL_VIT), ("vit", {**SMALL_VIT, "hierarchical": True})]


@pytest.mark.parametrize("name,small", [("swin", {**SMALL_SWIN, "depths": (2, 2, 1, 1)}),
                                        *[pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_ONNX]])
def test_runs_in_onnx_runtime_at_other_sizes(name, small, tmp_path):
    pytest.importorskip("onnxscript")
    ran = subprocess.run([sys.executable, "-c", ONNX, str(tmp_path / "net.onnx"), name, repr(small)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.mark.parametrize("name", ONE_EACH)
def test_half_precision_stays_finite(name):
    net = create_backbone(name, img_size=64).eval().to(torch.bfloat16)
    with torch.inference_mode(): assert all(m.isfinite().all() and m.dtype == torch.bfloat16 for m in net(image(64, 93).bfloat16()).values())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_attention_runs_on_fused_kernels(name):
    from torch.utils._python_dispatch import TorchDispatchMode
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func.overloadpacket._qualified_op_name.removeprefix("aten::"))
            return func(*args, **(kwargs or {}))

    net = create_backbone(name, img_size=64).eval()
    with torch.no_grad(), Watch(): net(image(64, 64))
    assert "_scaled_dot_product_flash_attention_for_cpu" in seen and not seen & {"_softmax", "bmm"}


def test_every_name_is_one_of_a_family():
    assert set(NAMES) == {*VITS, *SWINS, *SWINV2S, *HYBRIDS} and {"vit_b_16", "swin_t", "swin_v2_b"} <= {torchvision_name(n) for n in NAMES}
