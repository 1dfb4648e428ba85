"Attention blocks against timm's, torchvision's and transformers', over options, sizes and types; and what compilers make of them."
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import timm.layers as timm_layers
import torch
from timm.models import swin_transformer, swin_transformer_v2, vision_transformer
from torch import nn
from torchvision.models import swin_transformer as torchvision_swin
from torchvision.models.vision_transformer import EncoderBlock

from flame_vision.blocks import (
    AttentionBlock,
    ConvBlock,
    CosineWindowAttention,
    CrossAttention,
    FeedForward,
    LayerScale,
    MultiHeadAttention,
    PatchEmbed,
    ResidualBlock,
    SelfAttention,
    ShiftedWindowBlock,
    TransformerBlock,
    WindowAttention,
    relative_position_index,
    resample_patch_embedding,
    resample_position_embedding,
    resample_relative_position_bias,
    sincos_position_embedding,
)
from flame_vision.blocks.window_attention import by_index, by_views, log_offsets
from flame_vision.core.errors import ConfigError, ShapeError

TIMM = {"attention.": "attn.", "feed_forward.": "mlp.", "scale1": "ls1", "scale2": "ls2",
        "position_bias.table": "relative_position_bias_table", "position_bias.mlp": "cpb_mlp"}
NORM6 = partial(nn.LayerNorm, eps=1e-6)


def renamed(block, words=TIMM):
    state = block.state_dict()
    for ours, theirs in words.items(): state = {k.replace(ours, theirs): v for k, v in state.items()}
    return state


def scattered(block):
    "Parameters that are all different from their start, so that none of them can hide."
    for p in block.parameters(): nn.init.trunc_normal_(p, mean=0.1 if p.ndim == 1 else 0, std=0.3)
    return block.eval()


def same(ours, theirs, within=1e-5):
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() <= within * theirs.abs().max()


# Blocks on tokens

@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}, {"qk_norm": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_equals_timms(options, dtype):
    ours = scattered(MultiHeadAttention(48, 3, **options)).to(dtype)
    theirs = timm_layers.Attention(48, 3, norm_layer=NORM6, **{"qkv_bias": True, **options}).to(dtype).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 17, 48, dtype=dtype)
    may_see, added = torch.rand(17, 17) > 0.5, torch.randn(2, 1, 17, 17, dtype=dtype)
    may_see.fill_diagonal_(True)
    for mask in (None, may_see, added): same(ours(x, mask), theirs(x, mask), 1e-5 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("block", [MultiHeadAttention(48, 3, qk_norm=True), CrossAttention(48, 3), TransformerBlock(48, 3, layer_scale=0.1),
                                   WindowAttention(48, [3, 4], 3), CosineWindowAttention(48, [3, 4], 3)], ids=lambda b: type(b).__name__)
def test_asking_for_the_weights_changes_nothing(block):
    inputs = [torch.randn(2, 12, 48)] * (2 if isinstance(block, CrossAttention) else 1)
    out, weights = block.eval()(*inputs, return_attention=True)
    assert torch.equal(out, block(*inputs)) and weights.shape == (2, 3, 12, 12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 12))


@pytest.mark.parametrize("options, theirs", [
    ({}, {}), ({"qkv_bias": False}, {"qkv_bias": False}), ({"layer_scale": 0.1}, {"init_values": 0.1}),
    ({"qk_norm": True, "mlp_ratio": 2.5}, {"qk_norm": True, "mlp_ratio": 2.5}), ({"norm_eps": 1e-3}, {"norm_layer": partial(nn.LayerNorm, eps=1e-3)}),
    ({"feed_forward": "swiglu"}, {"mlp_layer": timm_layers.SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 8.0}),
    ({"act": "gelu_tanh"}, {"act_layer": partial(nn.GELU, approximate="tanh")})], ids=str)
def test_transformer_block_equals_timms(options, theirs):
    ours = scattered(TransformerBlock(48, 3, **options))
    theirs = vision_transformer.Block(48, 3, **{"qkv_bias": True, "norm_layer": NORM6, **theirs}).eval()
    theirs.load_state_dict(renamed(ours))
    x = torch.randn(2, 17, 48)
    same(ours(x), theirs(x))


def test_post_norm_block_equals_timms():
    ours, theirs = scattered(TransformerBlock(48, 3, post_norm=True)), vision_transformer.ResPostBlock(48, 3, qkv_bias=True, norm_layer=NORM6).eval()
    theirs.load_state_dict(renamed(ours))
    x = torch.randn(2, 17, 48)
    same(ours(x), theirs(x))


def test_transformer_block_equals_torchvisions_and_transformers():
    modeling_vit = pytest.importorskip("transformers.models.vit.modeling_vit")
    x = torch.randn(2, 17, 48)
    ours, theirs = scattered(TransformerBlock(48, 3)), EncoderBlock(3, 48, 192, 0.0, 0.0).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values())))
    same(ours(x), theirs(x))
    config = modeling_vit.ViTConfig(hidden_size=48, num_attention_heads=3, intermediate_size=192, attn_implementation="sdpa")
    ours, theirs = scattered(TransformerBlock(48, 3, norm_eps=1e-12)), modeling_vit.ViTLayer(config).eval()
    q, k, v = ours.attention.qkv.weight.detach().chunk(3)
    bq, bk, bv = ours.attention.qkv.bias.detach().chunk(3)
    a, f = ours.attention, ours.feed_forward
    values = {"q": (q, bq), "k": (k, bk), "v": (v, bv), "query": (q, bq), "key": (k, bk), "value": (v, bv), "layernorm_before": ours.norm1,
              "layernorm_after": ours.norm2, "fc1": f.fc1, "fc2": f.fc2, "o": a.proj, "dense": a.proj}
    for name, part in theirs.named_modules():
        if not isinstance(part, (nn.Linear, nn.LayerNorm)): continue
        source = values[name.split(".")[-1].removesuffix("_proj")]
        weight, bias = source if isinstance(source, tuple) else (source.weight, source.bias)
        part.weight.data, part.bias.data = weight.data, bias.data
    found = theirs(x)
    same(ours(x), found[0] if isinstance(found, tuple) else found)


@pytest.mark.parametrize("act", [None, "relu", "silu", "hardswish"])
@pytest.mark.parametrize("kind", ["mlp", "glu", "swiglu"])
def test_feed_forward_learns_with_every_activation(kind, act):
    block = FeedForward(12, 20, kind, act)
    block(torch.randn(2, 5, 12)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in block.parameters())


def test_cross_attention_over_itself_is_self_attention():
    cross, own = CrossAttention(48, 3), MultiHeadAttention(48, 3)
    own.load_state_dict({"qkv.weight": torch.cat([cross.q.weight, cross.kv.weight]), "qkv.bias": torch.cat([cross.q.bias, cross.kv.bias]),
                         "proj.weight": cross.proj.weight, "proj.bias": cross.proj.bias})
    x = torch.randn(2, 9, 48)
    same(cross(x, x), own(x))


def test_dropouts_and_dropped_paths_act_while_training_only():
    x = torch.randn(64, 9, 48)
    for options in ({"dropout": 0.5}, {"attention_dropout": 0.5}, {"drop_path": 0.5}):
        block = TransformerBlock(48, 3, **options)
        plain = TransformerBlock(48, 3).eval()
        plain.load_state_dict(block.state_dict())
        assert not torch.equal(block(x), plain(x)) and torch.equal(block.eval()(x), plain(x))
    dropped = TransformerBlock(48, 3, drop_path=0.9)
    assert (dropped(x) == x).flatten(1).all(1).any()  # both branches of some sample
    windows = ShiftedWindowBlock(48, 3, 3, attention_dropout=0.5)
    maps = torch.randn(2, 6, 6, 48)
    assert not torch.equal(windows(maps), windows(maps)) and torch.equal(windows.eval()(maps), windows(maps))


@pytest.mark.parametrize("block", [MultiHeadAttention(48, 3), CrossAttention(48, 3)], ids=lambda b: type(b).__name__)
def test_a_token_that_may_see_nobody_has_no_weights_and_a_gradient(block):
    may_see = torch.rand(9, 9) > 0.5
    may_see.fill_diagonal_(True)
    may_see[4] = False
    for mask in (may_see, torch.zeros(9, 9).masked_fill(~may_see, -torch.inf), may_see.expand(2, 3, 9, 9)):
        x = torch.randn(2, 9, 48, requires_grad=True)
        out, weights = block(*[x] * (2 if isinstance(block, CrossAttention) else 1), mask=mask, return_attention=True)
        assert out.isfinite().all() and (weights[..., 4, :] == 0).all() and (weights[~may_see.expand_as(weights)] == 0).all()
        torch.testing.assert_close(weights.sum(-1), (torch.arange(9) != 4).float().expand(2, 3, 9))
        (out.sum() + weights.square().sum()).backward()
        assert x.grad.isfinite().all()
        x.grad = None


def test_a_mask_of_another_precision_is_taken():
    block, x, mask = MultiHeadAttention(48, 3), torch.randn(2, 9, 48), torch.randn(9, 9)
    for masks, types in (((mask, mask.double()), torch.float32), ((mask, mask.double()), torch.float64)):
        torch.testing.assert_close(*[block.to(types)(x.to(types), m) for m in masks])


# Blocks in windows

WINDOWED = {1: swin_transformer.SwinTransformerBlock, 2: swin_transformer_v2.SwinTransformerV2Block}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("grid, window, shift", [
    ((8, 8), 4, 0), ((8, 12), 4, 2), ((8, 15), (4, 5), (2, 2)), ((14, 7), 7, 3), ((6, 9), 3, 1),            # windows fill the grid
    ((9, 13), 4, 2), ((10, 8), (4, 5), (2, 2)), ((13, 29), 7, 3), ((9, 9), 4, 0)])                          # or not
def test_window_block_equals_timms(version, grid, window, shift):
    theirs = WINDOWED[version](24, grid, 3, window_size=window, shift_size=shift).eval()
    ours = scattered(ShiftedWindowBlock(24, 3, list(theirs.window_size), list(theirs.shift_size), version, roll_first=True))
    theirs.load_state_dict(renamed(ours))
    x = torch.randn(2, *grid, 24)
    same(ours(x), theirs(x), 2e-5)
    with torch.no_grad(): same(ours(x), theirs(x), 2e-5)  # by another kernel


@pytest.mark.parametrize("version", [1, 2])
def test_window_block_in_half_precision_has_padding_without_keys(version):
    block, x = scattered(ShiftedWindowBlock(24, 3, 4, 2, version)), torch.randn(1, 9, 13, 24)
    expected = block(x)
    for learns in (True, False):
        block.requires_grad_(learns).half()
        same(block(x.half()).float(), expected, 0.02)
        block.float()
    start = ShiftedWindowBlock(16, 2, 4, 2, version).half()
    assert start(torch.randn(1, 9, 14, 16).half()).isfinite().all() and start(torch.zeros(1, 9, 14, 16).half()).isfinite().all()


@pytest.mark.parametrize("make", [WindowAttention, CosineWindowAttention])
def test_a_bias_that_learns_gives_the_gradients_of_one_that_does_not(make):
    block, mask = scattered(make(24, [3, 4], 3)), torch.randn(4, 12, 12)
    for m in (None, mask):
        x = torch.randn(8, 12, 24, requires_grad=True)
        grads = []
        for learns in (True, False):
            block.position_bias.requires_grad_(learns)
            grads.append(torch.autograd.grad(block(x, m).square().sum(), [x, block.qkv.weight]))
        for one, other in zip(*grads): same(one, other, 1e-4)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("grid", [(8, 12), (9, 13), (4, 13), (3, 9), (4, 4), (2, 3)])
def test_window_block_equals_torchvisions(version, grid):
    "Also where there is a single window along an axis, or less than one."
    ours = scattered(ShiftedWindowBlock(24, 3, 4, 2, version))
    theirs = {1: torchvision_swin.SwinTransformerBlock, 2: torchvision_swin.SwinTransformerBlockV2}[version](24, 3, [4, 4], [2, 2]).eval()
    state = renamed(ours, {**TIMM, "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"})
    state["attn.relative_position_index"] = relative_position_index((4, 4)).flatten()
    if version == 2:
        q, v = state.pop("attn.q_bias"), state.pop("attn.v_bias")
        state |= {"attn.qkv.bias": torch.cat([q, torch.zeros_like(q), v]), "attn.relative_coords_table": log_offsets((4, 4)).view(1, 7, 7, 2)}
    # torchvision's second version has its norms in the same places under the same names
    theirs.load_state_dict(state)
    x = torch.randn(2, *grid, 24)
    same(ours(x), theirs(x), 2e-5)


def test_window_block_equals_transformers_off_the_grid():
    modeling_swin = pytest.importorskip("transformers.models.swin.modeling_swin")
    config = modeling_swin.SwinConfig(window_size=4, mlp_ratio=4.0, qkv_bias=True, attn_implementation="eager")
    theirs = modeling_swin.SwinLayer(config, 24, (9, 13), 3, shift_size=2).eval()
    ours = scattered(ShiftedWindowBlock(24, 3, 4, 2))
    a, parts = ours.attention, dict(theirs.named_modules())
    linear = dict(zip(("q", "k", "v"), zip(a.qkv.weight.detach().chunk(3), a.qkv.bias.detach().chunk(3))))
    linear |= {"o": (a.proj.weight, a.proj.bias), "fc1": (ours.feed_forward.fc1.weight, ours.feed_forward.fc1.bias),
               "fc2": (ours.feed_forward.fc2.weight, ours.feed_forward.fc2.bias), "layernorm_before": (ours.norm1.weight, ours.norm1.bias),
               "layernorm_after": (ours.norm2.weight, ours.norm2.bias)}
    old = {"query": "q", "key": "k", "value": "v", "attention.output.dense": "o", "intermediate.dense": "fc1", "output.dense": "fc2"}
    for name, part in parts.items():
        if not isinstance(part, (nn.Linear, nn.LayerNorm)): continue
        key = next((v for k, v in old.items() if name.endswith(k)), name.split(".")[-1].removesuffix("_proj"))
        part.weight.data, part.bias.data = (t.data for t in linear[key])
    table = next(p for n, p in theirs.named_parameters() if n.endswith("relative_position_bias_table"))
    table.data = a.position_bias.table.data
    x = torch.randn(2, 9, 13, 24)
    found = theirs(x.flatten(1, 2), (9, 13))
    same(ours(x).flatten(1, 2), found[0] if isinstance(found, tuple) else found)


@pytest.mark.parametrize("roll_first", [False, True])
def test_both_ways_to_the_windows_agree(roll_first):
    for h in (1, 3, 4, 5, 8, 11):
        for w in (2, 5, 6, 10, 13):
            for shift in ((0, 0), (2, 0), (1, 4), (3, 2)):
                x = torch.randn(2, h, w, 3)
                (cut, mask, back), (cut2, mask2, back2) = [way(x, (4, 5), shift, roll_first) for way in (by_views, by_index)]
                assert torch.equal(cut, cut2) and torch.equal(back(cut), x) and torch.equal(back2(cut2), x)
                if mask2 is not None: assert torch.equal(mask2, torch.zeros_like(mask2) if mask is None else mask.repeat(2, 1, 1))


def test_images_of_a_batch_do_not_meet():
    block, x = ShiftedWindowBlock(24, 3, 4, 2).eval(), torch.randn(3, 9, 13, 24)
    for way in (block, lambda x: torch.cat([block(one[None]) for one in x])): same(way(x), block(x))
    first, _ = block(x, return_attention=True)
    assert torch.equal(first, block(x))


def test_a_block_made_without_memory_is_whole_when_filled():
    "No buffer has to be computed again."
    for version in (1, 2):
        ours = scattered(ShiftedWindowBlock(24, 3, 4, 2, version))
        with torch.device("meta"): twin = ShiftedWindowBlock(24, 3, 4, 2, version).eval()
        twin.load_state_dict(ours.state_dict(), assign=True)
        x = torch.randn(1, 9, 13, 24)
        assert torch.equal(twin(x), ours(x)) and not list(ours.buffers())


# Patches, positions, resampling

@pytest.mark.parametrize("new", [(14, 14), (7, 7), (16, 16), (9, 21)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_position_embedding_equals_timms(new, prefix, dtype):
    embedding = torch.randn(1, prefix + 196, 8, dtype=dtype)
    for old in (None, (7, 28)):
        ours = resample_position_embedding(embedding, new, old, prefix)
        assert torch.equal(ours, timm_layers.resample_abs_pos_embed(embedding, list(new), old and list(old), prefix)) and ours.dtype == dtype


@pytest.mark.parametrize("old, new", [((16, 16), (8, 8)), ((8, 8), (7, 15)), ((4, 4), (6, 6)), ((8, 12), (12, 8))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patch_embedding_equals_timms(old, new, dtype):
    weight = torch.randn(6, 3, *old, dtype=dtype)
    ours = resample_patch_embedding(weight, new)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, timm_layers.resample_patch_embed(weight, list(new)), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("old, new", [(7, 8), (7, 12), (12, 7), (8, 24), ((4, 6), (6, 4)), (7, (12, 16)), (1, 3), (3, 1), (7, 7)])
def test_relative_position_bias_equals_timms(old, new):
    (oh, ow), (nh, nw) = [(n, n) if isinstance(n, int) else n for n in (old, new)]
    table = torch.randn((2 * oh - 1) * (2 * ow - 1), 4)
    theirs = timm_layers.resize_rel_pos_bias_table(table, (nh, nw), ((2 * nh - 1) * (2 * nw - 1), 4), (oh, ow))
    torch.testing.assert_close(resample_relative_position_bias(table, new, old), theirs, rtol=1e-4, atol=1e-5)
    if oh == ow: assert torch.equal(resample_relative_position_bias(table, new), resample_relative_position_bias(table, new, old))


@pytest.mark.parametrize("grid", [(1, 1), (14, 14), (5, 9)])
@pytest.mark.parametrize("interleave", [False, True])
def test_sincos_equals_timms(grid, interleave):
    torch.testing.assert_close(sincos_position_embedding(grid, 24, 100.0, interleave=interleave),
                               timm_layers.build_sincos2d_pos_embed(list(grid), 24, 100.0, interleave_sin_cos=interleave))


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"flatten": False, "norm": "layer"}, {"dynamic": True}])
def test_patch_embed_equals_timms(options):
    ours = PatchEmbed(3, 16, [4, 6], **options)
    more = {"bias": options.get("bias", True), "norm_layer": nn.LayerNorm if "norm" in options else None}
    theirs = timm_layers.PatchEmbed(None, (4, 6), 3, 16, dynamic_img_pad="dynamic" in options, **more,
                                    **({} if options.get("flatten", True) else {"output_fmt": "NHWC"}))
    theirs.load_state_dict(ours.state_dict())
    for size in ((8, 12), (13, 20) if "dynamic" in options else (16, 6)):
        x = torch.randn(2, 3, *size)
        same(ours(x), theirs(x))
        rows, columns = ours.grid(*size)
        assert ours.get_output_shape([2, 3, *size]) == ([2, rows * columns, 16] if options.get("flatten", True) else [2, rows, columns, 16])


# All of them

BLOCKS = {
    "heads": (lambda: MultiHeadAttention(24, 3, qk_norm=True), [(2, 9, 24)]), "cross": (lambda: CrossAttention(24, 3, 16), [(2, 9, 24), (2, 5, 16)]),
    "transformer": (lambda: TransformerBlock(24, 3, layer_scale=0.1, feed_forward="swiglu"), [(2, 9, 24)]),
    "self": (lambda: SelfAttention(24), [(2, 24, 5, 7)]), "attention": (lambda: AttentionBlock(24), [(2, 24, 5, 7)]),
    "swin": (lambda: ShiftedWindowBlock(24, 3, 4, 2), [(2, 9, 13, 24)]), "swin2": (lambda: ShiftedWindowBlock(24, 3, 4, 2, 2), [(2, 9, 13, 24)]),
    "patches": (lambda: PatchEmbed(3, 24, 4, "layer", dynamic=True), [(2, 3, 13, 17)])}


@pytest.mark.parametrize("name", BLOCKS)
def test_types_configuration_and_gradients(name):
    make, shapes = BLOCKS[name]
    block, inputs = scattered(make()), [torch.randn(s) for s in shapes]
    assert type(block).from_config(block.config).config == block.config
    expected = block(*inputs)
    assert block.get_output_shape(*map(list, shapes)) == list(expected.shape)
    for dtype, within in ((torch.float64, 1e-5), (torch.bfloat16, 0.1)):
        out = block.to(dtype)(*[x.to(dtype) for x in inputs])
        assert out.dtype == dtype
        same(out.float(), expected, within)
    block.float()
    with torch.autocast("cpu", torch.bfloat16): same(block(*inputs).float(), expected, 0.1)
    block(*inputs).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in block.parameters())


def test_channels_last_maps():
    for block in (SelfAttention(24, layer_scale=None).eval(), AttentionBlock(24).eval()):
        x = torch.randn(2, 24, 5, 7)
        same(block(x.contiguous(memory_format=torch.channels_last)), block(x))


def test_numbers_of_heads_for_any_width():
    for channels in (1, 2, 3, 31, 33, 64, 127, 384, 1000):
        heads = SelfAttention(channels).attention.num_heads
        assert channels % heads == 0 and (heads == 1 or channels // heads >= 32)


@pytest.mark.parametrize("wrong, says", [
    (lambda: MultiHeadAttention(64, 6), "one of 1, 2, 4, 8, 16, 32, 64"), (lambda: MultiHeadAttention(64, 0), "one of 1, 2"),
    (lambda: TransformerBlock(64, 4, attention_dropout=1.0), "[0, 1)"), (lambda: TransformerBlock(64, 4, drop_path=-0.1), "[0, 1)"),
    (lambda: TransformerBlock(64, 4, act="swoosh"), "swoosh"), (lambda: FeedForward(64, kind="geglu"), "mlp, glu, swiglu"),
    (lambda: FeedForward(64, 0), "hidden_dim must be an int of at least 1, got 0"), (lambda: ShiftedWindowBlock(24, 3, 0), "at least 1"),
    (lambda: ShiftedWindowBlock(24, 3, 4, -1), "at least 0"),
    (lambda: ShiftedWindowBlock(24, 3, [4, 2], 3), "less than the window"), (lambda: ShiftedWindowBlock(24, 3, version=3), "1 or 2"),
    (lambda: PatchEmbed(3, 8, norm="batch"), "'layer' or None"), (lambda: PatchEmbed(3, 8, [4]), "or two of them"),
    (lambda: AttentionBlock(64, 0), "num_heads=0 must divide"),
    (lambda: SelfAttention(64, 0), "num_heads=0 must divide"), (lambda: SelfAttention(0), "got 0"),
    (lambda: CrossAttention(64, 4, 0), "got 0"), (lambda: CrossAttention(64, 4, attention_dropout=1), "attention_dropout"),
    (lambda: ShiftedWindowBlock(24, 3, pretrained_window_size=-3), "pretrained_window_size"),
    (lambda: ShiftedWindowBlock(24, 3, version=2, pretrained_window_size=0), "got 0"),
    (lambda: sincos_position_embedding((3, 3), 6), "multiple of 4")], ids=lambda value: value if isinstance(value, str) else "")
def test_bad_arguments(wrong, says):
    with pytest.raises(ConfigError) as error: wrong()
    assert says in str(error.value)


@pytest.mark.parametrize("wrong, says", [
    (lambda: resample_position_embedding(torch.zeros(1, 50, 8), (7, 7), num_prefix_tokens=0), "not square"),
    (lambda: resample_position_embedding(torch.zeros(1, 50, 8), (7, 7), (5, 5)), "5 × 5"),
    (lambda: resample_relative_position_bias(torch.zeros(91, 3), 7), "not square"),
    (lambda: LayerScale(24)(torch.zeros(2, 9, 8)), "must be 24, got [2, 9, 8]"), (lambda: LayerScale(24)(torch.zeros(2, 9, 1)), "must be 24"),
    (lambda: WindowAttention(16, 4, 2)(torch.randn(4, 9, 16)), "have 16 tokens, got 9"),
    (lambda: WindowAttention(16, 3, 2)(torch.randn(4, 9, 16), torch.zeros(3, 9, 9)), "divisor of the 4 windows; got float32, [3, 9, 9]"),
    (lambda: CosineWindowAttention(16, 3, 2)(torch.randn(4, 4, 16)), "CosineWindowAttention: windows of 3 × 3"),
    (lambda: PatchEmbed(3, 8, 4)(torch.zeros(1, 3, 9, 8)), "8 × 8")], ids=lambda value: value if isinstance(value, str) else "")
def test_bad_shapes(wrong, says):
    with pytest.raises(ShapeError) as error: wrong()
    assert says in str(error.value)


@pytest.mark.parametrize("name", BLOCKS)
def test_shapes_that_do_not_fit_are_named_before_anything_runs(name):
    make, shapes = BLOCKS[name]
    for wrong in ([2, 5], [1, 2, 3, 4, 5], [n + 1 for n in shapes[0]]):
        with pytest.raises(ShapeError): make().get_output_shape(wrong, *map(list, shapes[1:]))


# The user's snippets

def test_one_configuration_makes_a_convolution_and_the_attention_behind_it():
    for config in (SimpleNamespace(in_channels=3, out_channels=64, num_classes=10),
                   SimpleNamespace(in_channels=64, out_channels=64, channels=64, num_heads=8),
                   {"in_channels": 3, "out_channels": 20, "act": "relu", "norm": "batch", "mlp_ratio": 2.0}):
        backbone = nn.Sequential(ConvBlock(config), AttentionBlock(config))
        channels = (config if isinstance(config, dict) else vars(config))
        assert backbone(torch.randn(2, channels["in_channels"], 8, 6)).shape == (2, channels["out_channels"], 8, 6)


def test_custom_block():
    from flame_vision.blocks.attention import SelfAttention

    class CustomBlock(nn.Module):
        def __init__(self, in_channels, out_channels):
            super().__init__()
            self.conv = ConvBlock(in_channels, out_channels)
            self.attention = SelfAttention(out_channels)
            self.residual = ResidualBlock(out_channels)

        def forward(self, x):
            x = self.conv(x)
            x = self.attention(x)
            x = self.residual(x)
            return x

    block, x = CustomBlock(3, 40), torch.randn(2, 3, 9, 7)
    assert block(x).shape == (2, 40, 9, 7)
    without = block.eval().residual(block.conv(x))
    assert (block(x) - without).abs().max() < 1e-3


# Compilers, in a process of their own, where declared shapes are not checked

HEAD = """
import torch
from torch import nn
from torch.export import Dim
from flame_vision.blocks import *
torch.manual_seed(0)
def same(a, b): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
kinds = (1, 0, False), (1, 2, False), (2, 2, False), (1, 2, True)
windows = nn.Sequential(*[ShiftedWindowBlock(24, 3, 4, s, v, roll_first=f) for v, s, f in kinds]).eval()
sizes = [(1, 8, 8, 24), (3, 4, 17, 24), (2, 3, 2, 24), (1, 30, 21, 24)]
"""
EXPORT = HEAD + """
any_size = {i: Dim(n, min=1, max=512) for i, n in enumerate(("batch", "height", "width"))}
program = torch.export.export(windows, (torch.randn(2, 4, 4, 24),), dynamic_shapes=[any_size]).module()
for size in sizes:
    x = torch.randn(size)
    same(program(x), windows(x))
maps = {0: Dim("b", min=1, max=64), 2: Dim("h", min=2, max=64), 3: Dim("w", min=2, max=64)}
block, x = nn.Sequential(SelfAttention(24, layer_scale=None), AttentionBlock(24)).eval(), torch.randn(3, 24, 8, 6)
same(torch.export.export(block, (torch.randn(2, 24, 5, 7),), dynamic_shapes=[maps]).module()(x), block(x))
cross = CrossAttention(24, 3, 16).eval()
b, n, m = Dim("b", max=64), Dim("n", max=512), Dim("m", max=512)
program = torch.export.export(cross, (torch.randn(2, 9, 24), torch.randn(2, 5, 16)), dynamic_shapes=[{0: b, 1: n}, {0: b, 1: m}]).module()
x, context = torch.randn(4, 3, 24), torch.randn(4, 11, 16)
same(program(x, context), cross(x, context))
for block, x in ((windows, torch.randn(2, 9, 13, 24)), (TransformerBlock(24, 3), torch.randn(2, 9, 24)),
                 (PatchEmbed(3, 24, 4), torch.randn(1, 3, 8, 12))):
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    same(compiled(x), block(x))
moved, x = windows[3], torch.randn(2, 12, 17, 24)
same(torch.compile(moved, backend="eager", fullgraph=True, dynamic=True)(x), moved(x))
print("equal")
"""
REFUSED = HEAD + """
from flame_vision.core.errors import ConfigError, ShapeError
for wrong in (lambda: AttentionBlock(1.5), lambda: AttentionBlock(1.5, 1), lambda: SelfAttention(1.5), lambda: MultiHeadAttention(64, 2.0),
              lambda: CrossAttention(64, 4, 1.5), lambda: FeedForward(64.0), lambda: FeedForward(64, 1.5), lambda: LayerScale(1.5),
              lambda: ShiftedWindowBlock(24, 3, "77"), lambda: ShiftedWindowBlock(24, 3, 1.5), lambda: ShiftedWindowBlock(24.0, 3),
              lambda: PatchEmbed(3, 8, 1.5), lambda: resample_patch_embedding(torch.zeros(1, 1, 2, 2), 1.5)):
    try: wrong()
    except ConfigError: continue
    raise AssertionError("not refused")
x, maps = torch.randn(2, 9, 24), torch.randn(2, 24, 3, 3)
masks = [torch.zeros(shape) for shape in ((9,), (9, 5), (10, 9), (2, 9, 9), (3, 1, 9, 9), (2, 3, 9, 8), (2, 2, 9, 9))]
masks.append(torch.ones(9, 9, dtype=torch.int64))
blocks = {MultiHeadAttention(24, 3): [x], CrossAttention(24, 3): [x, x], TransformerBlock(24, 3): [x], AttentionBlock(24, 3): [maps]}
for block, inputs in blocks.items():
    for mask in masks:
        try: block(*inputs, mask=mask)
        except ShapeError as e: assert "[9, 9] or [2, 3, 9, 9]" in str(e) and str(list(mask.shape)) in str(e), e
        else: raise AssertionError((block, mask.shape))
    for shape in ((9, 9), (1, 9), (2, 1, 9, 9), (1, 3, 9, 9), (2, 3, 9, 9), (2, 1, 1, 9)):
        same(block(*inputs, mask=torch.zeros(shape)), block(*inputs, mask=torch.ones(shape, dtype=torch.bool)))
block, x = WindowAttention(24, 3, 3), torch.randn(4, 9, 24)
for mask in (torch.zeros(9, 9), torch.zeros(2, 9, 8), torch.zeros(2, 4, 4), torch.zeros(3, 9, 9), torch.zeros(8, 9, 9), torch.zeros(0, 9, 9),
             torch.ones(2, 9, 9, dtype=torch.bool), torch.zeros(4, 3, 9, 9)):
    try: block(x, mask)
    except ShapeError as e: assert "[m, 9, 9]" in str(e) and str(list(mask.shape)) in str(e), e
    else: raise AssertionError(mask.shape)
block, mask = MultiHeadAttention(24, 3).eval(), torch.randn(9, 9)
b, n = Dim("b", max=64), Dim("n", max=512)
program = torch.export.export(block, (torch.randn(2, 9, 24), mask), dynamic_shapes=[{0: b, 1: n}, {0: n, 1: n}]).module()
x, mask = torch.randn(4, 7, 24), torch.rand(7, 7)
same(program(x, mask), block(x, mask))
same(torch.compile(block, backend="eager", fullgraph=True, dynamic=True)(x, mask), block(x, mask))
print("equal")
"""
ONNX = HEAD + """
import sys
import onnxruntime
any_size = {i: Dim(n, min=1, max=512) for i, n in enumerate(("batch", "height", "width"))}
windows = windows[1:3]
program = torch.onnx.export(windows, (torch.randn(2, 9, 13, 24),), dynamo=True, dynamic_shapes=[any_size], verbose=False)
program.save(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
for size in sizes:
    x = torch.randn(size)
    same(torch.tensor(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]), windows(x).detach())
print("equal")
"""


def run(code, *arguments):
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True)
    assert ran.stdout.strip().endswith("equal"), ran.stderr


def test_compiled_and_exported_for_every_size(): run(EXPORT)


def test_what_does_not_fit_is_refused_where_declared_types_are_not_checked(): run(REFUSED)


def test_onnx_runtime_takes_every_size(tmp_path):
    for module in ("onnx", "onnxscript", "onnxruntime"): pytest.importorskip(module)
    run(ONNX, str(tmp_path / "windows.onnx"))
