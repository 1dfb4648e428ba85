"Encoders of transformers as backbones, against transformers' own classes from the same folders: one small network of every family."
import json
import math
import shutil
import threading
import warnings
from copy import deepcopy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from loopback_hub import Repo, client, loopback_hub, sha256
from peers import jitter
from safetensors.torch import load_file, save_file

from flame_vision.backbones import BaseBackbone, create_backbone
from flame_vision.backbones.transformers_encoders import TransformersBackbone
from flame_vision.core import ConfigError, FlameVisionError, MissingExtraError, MissingPathError, ShapeError, UnknownNameError, WeightsError

hf.logging.set_verbosity_error()
hf.logging.disable_progress_bar()

WIDE = dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
HEADS = dict(num_attention_heads=[1, 2, 2, 4], mlp_ratios=[2] * 4)
SMALL = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2)
PLAIN = dict(**SMALL, intermediate_size=48, image_size=64, patch_size=8)
WINDOWS = dict(image_size=160, embed_dim=8, depths=[2] * 4, num_heads=[1, 2, 2, 4], window_size=4)
TEXT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50)
LEVIT = dict(image_size=64, hidden_sizes=[32, 48, 64], num_attention_heads=[2, 2, 4], depths=[1, 2, 1], key_dim=[8] * 3)

FAMILIES = {
    "resnet": lambda: hf.ResNetConfig(embedding_size=8, layer_type="basic", **WIDE),
    "resnet_bottleneck": lambda: hf.ResNetConfig(embedding_size=8, hidden_sizes=[16, 16, 24, 32], depths=[1, 2, 1, 1]),
    "convnext": lambda: hf.ConvNextConfig(**WIDE),
    "convnextv2": lambda: hf.ConvNextV2Config(**WIDE),
    "dinov3_convnext": lambda: hf.DINOv3ConvNextConfig(**WIDE),
    "regnet": lambda: hf.RegNetConfig(embedding_size=8, groups_width=8, **WIDE),
    "bit": lambda: hf.BitConfig(embedding_size=8, num_groups=4, **WIDE),
    "hgnet_v2": lambda: hf.HGNetV2Config(
        embedding_size=8, stem_channels=[3, 4, 8], stage_in_channels=[8, 16, 24, 32], stage_mid_channels=[8] * 4, stage_out_channels=[16, 24, 32, 40],
        stage_num_blocks=[1] * 4, stage_numb_of_layers=[2] * 4, hidden_sizes=[16, 24, 32, 40], depths=[1] * 4),
    "rt_detr_resnet": lambda: hf.RTDetrResNetConfig(embedding_size=8, hidden_sizes=[16, 16, 24, 32], depths=[1] * 4),
    "pp_lcnet": lambda: hf.PPLCNetConfig(scale=0.25),
    "textnet": lambda: hf.TextNetConfig(hidden_sizes=[8, 8, 16, 24, 32], stem_out_channels=8, image_size=[64, 64]),
    "mobilenet_v1": lambda: hf.MobileNetV1Config(depth_multiplier=0.25),
    "mobilenet_v2": lambda: hf.MobileNetV2Config(depth_multiplier=0.25),
    "efficientnet": lambda: hf.EfficientNetConfig(image_size=64, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320),
    "mobilevit": lambda: hf.MobileViTConfig(image_size=64, hidden_sizes=[24, 32, 40], neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64]),
    "mobilevitv2": lambda: hf.MobileViTV2Config(image_size=64, width_multiplier=0.25, n_attn_blocks=[1, 1, 1]),
    "poolformer": lambda: hf.PoolFormerConfig(**WIDE),
    "swiftformer": lambda: hf.SwiftFormerConfig(embed_dims=[8, 16, 24, 32], depths=[2] * 4),
    "cvt": lambda: hf.CvtConfig(embed_dim=[8, 16, 32], num_heads=[1, 2, 4], depth=[1, 2, 3]),
    "segformer": lambda: hf.SegformerConfig(**WIDE, **HEADS),
    "glpn": lambda: hf.GLPNConfig(**WIDE, **HEADS),
    "pvt_v2": lambda: hf.PvtV2Config(image_size=64, **WIDE, **HEADS),
    "pvt": lambda: hf.PvtConfig(image_size=64, **WIDE, **HEADS),
    "swin": lambda: hf.SwinConfig(**WINDOWS),
    "swinv2": lambda: hf.Swinv2Config(**WINDOWS),
    "focalnet": lambda: hf.FocalNetConfig(image_size=64, embed_dim=8, depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 32, 64]),
    "levit": lambda: hf.LevitConfig(**LEVIT),
    "hiera": lambda: hf.HieraConfig(image_size=[64, 64], embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 4]),
    "vit": lambda: hf.ViTConfig(**PLAIN),
    "deit": lambda: hf.DeiTConfig(**PLAIN),
    "vit_msn": lambda: hf.ViTMSNConfig(**PLAIN),
    "vit_mae": lambda: hf.ViTMAEConfig(**PLAIN),
    "ijepa": lambda: hf.IJepaConfig(**PLAIN),
    "dpt": lambda: hf.DPTConfig(**PLAIN),
    "yolos": lambda: hf.YolosConfig(**{**PLAIN, "image_size": [64, 64]}),
    "beit": lambda: hf.BeitConfig(**PLAIN, use_relative_position_bias=True),
    "beit_absolute": lambda: hf.BeitConfig(**PLAIN, use_absolute_position_embeddings=True),
    "data2vec": lambda: hf.Data2VecVisionConfig(**PLAIN, use_relative_position_bias=True),
    "dinov2": lambda: hf.Dinov2Config(**SMALL, mlp_ratio=2, image_size=56, patch_size=14, layerscale_value=0.7),
    "dinov2_registers": lambda: hf.Dinov2WithRegistersConfig(**SMALL, mlp_ratio=2, image_size=56, patch_size=14, num_register_tokens=4),
    "dinov3_vit": lambda: hf.DINOv3ViTConfig(**PLAIN, num_register_tokens=4),
    "clip": lambda: hf.CLIPConfig(text_config=TEXT, vision_config=PLAIN, projection_dim=16),
    "clip_vision": lambda: hf.CLIPVisionConfig(**PLAIN),
    "siglip": lambda: hf.SiglipConfig(text_config=TEXT, vision_config=PLAIN),
    "siglip_vision": lambda: hf.SiglipVisionConfig(**PLAIN),
    "mlcd": lambda: hf.MLCDVisionConfig(**PLAIN),
    "aimv2": lambda: hf.Aimv2VisionConfig(**PLAIN),
    "pixio": lambda: hf.PixioConfig(**PLAIN),
    "sapiens2": lambda: hf.Sapiens2Config(**PLAIN),
    "vitdet": lambda: hf.VitDetConfig(**SMALL, mlp_ratio=2, image_size=64, patch_size=8, window_size=4, window_block_indices=[0, 1]),
    "vitpose": lambda: hf.VitPoseBackboneConfig(**SMALL, mlp_ratio=2, image_size=[64, 48], patch_size=[8, 8]),
}
NAMES = list(FAMILIES)
ONE_SIZE = {"levit", "hiera", "aimv2", "vitpose"}
FEW = ["resnet", "swin", "vit", "segformer"]
TWINS = {  # built and read as another one of the list
    "resnet_bottleneck", "rt_detr_resnet", "pp_lcnet", "textnet", "hgnet_v2", "convnextv2", "mobilenet_v1", "mobilevitv2", "glpn", "vit_msn", "ijepa",
    "dpt", "yolos", "deit", "beit_absolute", "data2vec", "dinov2_registers", "clip_vision", "siglip_vision", "mlcd", "pixio", "sapiens2", "vitpose"}
each = pytest.mark.parametrize("name", NAMES)
most = pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in TWINS else ()) for n in NAMES])
few = pytest.mark.parametrize("name", FEW)


def published(config):
    "A class that a repository of this network could have been saved with: with a classifier, where there is one."
    for auto in (hf.AutoModelForImageClassification, hf.AutoModel, hf.AutoBackbone):
        if type(config) in (hf.CLIPConfig, hf.SiglipConfig) and auto is hf.AutoModelForImageClassification: continue  # whole, with its text tower
        found = auto._model_mapping.get(type(config), None)
        if found is not None: return found[0] if isinstance(found, tuple) else found


def stir(model, seed=0):
    "Every parameter takes part, also those that start as zeros, as layer scales and position biases do."
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.abs().max() < 1e-3: p.data.normal_(0, 0.1, generator=generator)
    return jitter(model)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    "A folder of each family, written when it is first asked for."
    root, lock = tmp_path_factory.mktemp("transformers"), threading.Lock()

    def folder(name):
        with lock:
            if not (root / name).is_dir():
                torch.manual_seed(0)
                config = FAMILIES[name]()
                stir(published(config)(config)).save_pretrained(root / name)
        return str(root / name)
    return folder


def loaded(folder, **arguments):
    backbone = TransformersBackbone(folder, **arguments).eval()
    backbone.load_pretrained()
    return backbone


@cache
def whole(folder): return loaded(folder)  # not to be changed


def native(backbone): return backbone.probe_shape[2:]


def image(height, width, channels=3, batch=2): return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def same(ours, theirs, what=""):
    assert ours.shape == theirs.shape, f"{what}: {list(ours.shape)}, not {list(theirs.shape)}"
    assert theirs.abs().max() > 1e-3 and (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max(), f"{what}: off by {(ours - theirs).abs().max():.1e}"


def encoder_of(folder):
    "transformers' own encoder of a folder: its backbone class without the norms that it adds, else its model."
    config = hf.AutoConfig.from_pretrained(folder)
    config = getattr(config, "vision_config", None) or config
    cls = hf.AutoBackbone._model_mapping.get(type(config), None)
    if cls is None or config.model_type in ("focalnet", "hiera"):
        return hf.AutoModel._model_mapping[type(config)].from_pretrained(folder, config=config).eval()
    config.out_features = config.stage_names
    model = cls.from_pretrained(folder, config=config).eval()
    if hasattr(model.config, "apply_layernorm"): model.config.apply_layernorm = False
    if hasattr(model, "hidden_states_norms"):
        for stage in model.hidden_states_norms: model.hidden_states_norms[stage] = torch.nn.Identity()
    if config.model_type == "vitpose_backbone": model.layernorm = torch.nn.Identity()
    if hasattr(model, "norm"): model.norm = torch.nn.Identity()  # DINOv3 puts it on the last map whatever it is told
    return model


def grid(tokens, rows, columns, first):
    "Tokens as a map, pixel by pixel."
    return torch.stack([torch.stack([tokens[:, first + r * columns + c] for c in range(columns)], -1) for r in range(rows)], -2)


def seen(model, x, modules, pick=lambda out: out):
    "What modules gave in a forward pass."
    found = []
    handles = [m.register_forward_hook(lambda m, args, out: found.append(pick(out))) for m in modules]
    model(x)
    for handle in handles: handle.remove()
    return found


PREFIX = {"vit": 1, "deit": 2, "vit_msn": 1, "ijepa": 0, "dpt": 1, "yolos": 1, "data2vec-vision": 1, "clip_vision_model": 1, "siglip_vision_model": 0,
          "mlcd_vision_model": 1, "aimv2_vision_model": 0}
SCALED = ("vit", "deit", "vit_msn", "data2vec-vision", "ijepa", "clip_vision_model", "siglip_vision_model", "beit")


@torch.no_grad()
def maps_of(model, x):
    "transformers' maps, read in ways of their own."
    kind, (h, w) = model.config.model_type, x.shape[2:]
    more = {"interpolate_pos_encoding": True} if kind in SCALED else {}
    if kind == "vit_mae":
        for ratio in (0.0, 0.75): assert hf.ViTMAEConfig(mask_ratio=ratio).mask_ratio == ratio
        model.config.mask_ratio = 0.0
        noise = torch.arange((h // 8) * (w // 8)).repeat(len(x), 1)
        return [grid(s, h // 8, w // 8, 1) for s in model(x, noise=noise, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states]
    if kind == "focalnet":
        stages = model.encoder.stages
        first, *before = seen(model, x, [model.embeddings, *stages], lambda out: out[0] if len(out) == 2 else out[1])
        return [grid(t, -(-h // s), -(-w // s), 0) for t, s in zip([first, *before], (4, 4, 8, 16, 32))]
    if kind == "levit":
        kinds = [[type(m).__name__ for m in stage.layers] + ["LevitAttentionSubsample"] for stage in model.encoder.stages]
        tokens = seen(model, x, [stage.layers[names.index("LevitAttentionSubsample") - 1] for stage, names in zip(model.encoder.stages, kinds)])
        return [grid(t, side, side, 0) for t, side in zip(tokens, (4, 2, 1))]
    if kind == "pvt":
        if (h, w) != (64, 64):  # at another size it fails; as if it had been trained there
            for embedding, side in zip(model.encoder.patch_embeddings, (4, 8, 16, 32)):
                first, rest = embedding.position_embeddings.split([side // 32, (64 // side) ** 2], 1)
                picture = rest.transpose(1, 2).reshape(1, -1, 64 // side, 64 // side)
                new = torch.cat([first, F.interpolate(picture, (h // side, w // side), mode="bilinear").flatten(2).transpose(1, 2)], 1)
                embedding.position_embeddings = torch.nn.Parameter(new)
                embedding.interpolate_pos_encoding = lambda positions, height, width: positions
        tokens = seen(model, x, [blocks[-1] for blocks in model.encoder.block], lambda out: out[0])
        return [grid(t, h // s, w // s, s == 32) for t, s in zip(tokens, (4, 8, 16, 32))]
    out = model(x, output_hidden_states=True, **more)
    if kind == "hiera": return [s.movedim(3, 1) for s in out.reshaped_hidden_states]  # HieraBackbone's rows were never in the order that it undoes
    if kind == "vitpose_backbone": return [grid(s, h // 8, w // 8, 0) for s in out.feature_maps]
    if "feature_maps" in out: return list(out.feature_maps)
    if kind in PREFIX: return [grid(s, h // 8, w // 8, PREFIX[kind]) for s in out.hidden_states]
    return list(out.hidden_states)


def expected(model, x, backbone):
    "By stage: of the padded image, cut to what the image covers."
    (h, w), unit = x.shape[2:], backbone.survey.unit
    maps = maps_of(model, F.pad(x, (0, -w % unit, 0, -h % unit)))
    sides = [round(math.log2((h + -h % unit) / m.shape[2])) for m in maps]
    if len({m.shape[2:] for m in maps}) == 1 and len(maps) > 2: found = {s: maps[-(-(len(maps) - 1) * s // 4)] for s in range(5)}
    else: found = {side - 1: m for side, m in zip(sides, maps) if side}
    strides = {i.stage: i.stride for i in backbone.feature_info}
    return {s: m[:, :, :-(-h // strides[s]), :-(-w // strides[s])] for s, m in found.items()}


@each
def test_maps_are_those_of_transformers(name, folders):
    backbone = whole(folders(name))
    h, w = native(backbone)
    if h > 160: h = w = 64  # convolutions, which have no size of their own
    sizes = [(h, w)] if name in ONE_SIZE else [(h, w), (h + 33, h + 1)]
    for size in sizes:
        x = image(*size)
        with torch.no_grad(): ours = backbone(x)
        theirs = expected(encoder_of(folders(name)), x, backbone)
        assert set(ours) == set(theirs), (set(ours), set(theirs))
        for s in ours: same(ours[s], theirs[s], f"{name} at {size}, stage {s}")
        assert {s: list(m.shape) for s, m in ours.items()} == backbone.get_output_shape(list(x.shape))


@most
def test_only_what_maps_need_is_left_and_learns(name, folders):
    full = whole(folders(name))
    chosen = list(full.output_indices[1:-1])
    part = loaded(folders(name), output_indices=chosen, features_only=True)
    x = image(*native(full))
    with torch.no_grad(): theirs = full(x)
    ours = part(x)
    assert list(ours) == chosen and part.taken_out
    for s in chosen: same(ours[s], theirs[s], name)
    sum((m * torch.randn_like(m)).sum() for m in part.train()(x).values()).backward()
    assert not [n for n, p in part.named_parameters() if p.requires_grad and p.grad is None]
    assert sum(p.numel() for p in part.parameters()) < sum(p.numel() for p in full.parameters())


@most
def test_the_rest_of_the_contract(name, folders):
    backbone = loaded(folders(name))
    assert isinstance(backbone, BaseBackbone) and backbone.num_features == backbone.feature_info[-1].channels
    for info in backbone.feature_info: assert info.stride in (2, 4, 8, 14, 16, 32, 64)
    report = backbone.load_pretrained()
    assert report.layout == "transformers" and set(report.loaded) == {k for k in backbone.state_dict()} and not report.reinitialised
    assert len(backbone.provenance.digest) == 64 and backbone.provenance.architecture
    again = TransformersBackbone.from_config(deepcopy(backbone.config.arguments))
    assert again.config == backbone.config and set(again.state_dict()) == set(backbone.state_dict())
    x = image(*native(backbone), batch=1)
    features = backbone(x)
    last = backbone.finish(features[backbone.output_indices[-1]] if not backbone.final_pooled else features[backbone.output_indices[-1]].mean((2, 3)))
    assert last.shape[1] == backbone.classifier_features
    copied = deepcopy(backbone)
    with torch.no_grad():
        for a, b in zip(copied(x).values(), features.values()): same(a, b, name)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in NAMES])
def test_they_export(name, folders):
    backbone = loaded(folders(name), features_only=True)
    x = image(*native(backbone), batch=1)
    program = torch.export.export(backbone, (x,), strict=False)
    with torch.no_grad():
        for a, b in zip(program.module()(x).values(), backbone(x).values()): same(a, b, name)


COMPILE = """
import json, sys, torch
from flame_vision.backbones.transformers_encoders import TransformersBackbone
off = {}
for folder in sys.argv[1:]:
    torch._dynamo.reset()
    backbone = TransformersBackbone(folder, features_only=True).eval()
    x = torch.randn(1, *backbone.probe_shape[1:])
    with torch.no_grad():
        pairs = zip(torch.compile(backbone, backend="eager", fullgraph=True)(x).values(), backbone(x).values(), strict=True)
        off[folder] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
print(json.dumps(off))
"""


@pytest.mark.slow
def test_they_compile_whole(folders):
    "In a process of its own: the suite's run-time shape checks are no part of what a user compiles."
    import subprocess
    import sys
    done = subprocess.run([sys.executable, "-c", COMPILE, *map(folders, NAMES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert max(json.loads(done.stdout.splitlines()[-1]).values()) < 1e-4


@most
def test_checkpointing_changes_no_gradient(name, folders):
    plain = loaded(folders(name), features_only=True)
    if not plain.encoder.supports_gradient_checkpointing:
        with pytest.raises(ConfigError, match="has no gradient checkpointing"): plain.set_gradient_checkpointing(True)
        return
    again = loaded(folders(name), features_only=True, gradient_checkpointing=True)
    x = image(*native(plain))
    for net in (plain, again):
        net.train()
        for part in net.modules():
            if isinstance(part, torch.nn.Dropout) or "Drop" in type(part).__name__: part.eval()
        torch.manual_seed(0)
        sum(m.square().mean() for m in net(x).values()).backward()
    for (key, a), b in zip(plain.named_parameters(), again.parameters()):
        if a.requires_grad: assert torch.allclose(a.grad, b.grad, atol=1e-5 * float(a.grad.abs().max() + 1e-6)), key
    again.set_gradient_checkpointing(False)
    assert again.config.arguments["gradient_checkpointing"] is False


@few
@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_by_timms_rule(name, channels, folders):
    from timm.models._manipulate import adapt_input_conv
    backbone = TransformersBackbone(folders(name), in_channels=channels).eval()
    with pytest.warns(UserWarning, match="was adapted from"): report = backbone.load_pretrained()
    (key,) = report.adapted
    kernel = loaded(folders(name)).state_dict()[key]
    assert torch.equal(backbone.state_dict()[key], adapt_input_conv(channels, kernel))
    assert backbone(image(*native(backbone), channels=channels)) and backbone.in_channels == channels
    with pytest.raises(ShapeError): backbone(image(64, 64, channels=3))


@pytest.mark.parametrize("name", ["vit", "dinov2", "hiera", "pvt", "aimv2"])
def test_positions_for_another_size(name, folders):
    wanted = {"vit": [96, 128], "dinov2": 84, "hiera": [128, 64], "pvt": 128, "aimv2": 96}[name]
    backbone = TransformersBackbone(folders(name), img_size=wanted).eval()
    with pytest.warns(UserWarning, match="scaled to another grid"): report = backbone.load_pretrained()
    assert report.resampled and not report.reinitialised
    size = wanted if isinstance(wanted, list) else [wanted, wanted]
    assert native(backbone) == size
    for info, m in zip(backbone.feature_info, backbone(image(*size)).values()): assert list(m.shape[2:]) == [-(-n // info.stride) for n in size]


def test_positions_are_scaled_as_they_lie(folders):
    "Positions that rise evenly from row to row do so after scaling, and the class token keeps its own."
    from flame_vision.backbones.transformers_sources import scaled
    rows = torch.arange(8.)[:, None].expand(8, 8).reshape(1, 64, 1)
    positions = torch.cat([torch.full((1, 1, 1), -5.), rows], 1)
    new = scaled(positions, 1 + 16 * 8, 2.0)
    assert new[0, 0] == -5 and new.shape == (1, 129, 1)
    inner = new[0, 1:, 0].reshape(16, 8)
    assert torch.allclose(inner[3:-3, 0], torch.arange(16.)[3:-3] / 2 - 0.25, atol=0.05) and torch.allclose(inner[:, 0], inner[:, 5])
    assert scaled(torch.zeros(1, 8, 4), 19, 1.0) is None


def test_hieras_pixels_are_where_they_were(folders):
    "Its first stage looks into windows of 32 pixels: what changes in one of them changes the map there and nowhere else."
    backbone, x = loaded(folders("hiera")), image(64, 64)
    other = x.clone()
    other[:, :, 4:28, 36:60] += 1
    with torch.no_grad(): changed = (backbone(x)[1] - backbone(other)[1]).abs().amax((0, 1)) > 1e-6
    assert changed[:8, 8:].all() and changed.sum() == 64


def test_levit_forgets_biases_that_were_replaced(folders):
    backbone, x = TransformersBackbone(folders("levit")).eval(), image(64, 64)
    with torch.no_grad():
        backbone(x)
        backbone.load_pretrained()
        same(backbone(x)[5], loaded(folders("levit"))(x)[5])


def test_levits_biases_are_for_one_size(folders):
    backbone = TransformersBackbone(folders("levit"), img_size=128)
    with pytest.raises(WeightsError, match="leave img_size out"): backbone.load_pretrained()
    with pytest.raises(ShapeError, match="128 × 128 only.*img_size="): backbone(image(64, 64))


def test_swins_windows_never_remember_an_image(folders):
    config = hf.SwinConfig(**{**WINDOWS, "image_size": 128})
    torch.manual_seed(0)
    peer = stir(hf.SwinModel(config))
    peer.save_pretrained(folders("vit") + "/../swin_128")
    backbone = loaded(folders("vit") + "/../swin_128")
    large, native_image, small = image(192, 224), image(128, 128), image(40, 56)
    with torch.no_grad():
        before = backbone(large)
        theirs = peer(native_image, output_hidden_states=True, output_hidden_states_before_downsampling=True).reshaped_hidden_states
        same(backbone(native_image)[4], theirs[-1], "the model's own last map, which one window covers and which is not rolled")
        backbone(small)
        for a, b in zip(backbone(large).values(), before.values()): assert torch.equal(a, b)
    results = []
    def look(x): results.append((x.shape, torch.no_grad()(backbone)(x)[4]))
    threads = [threading.Thread(target=look, args=(x,)) for x in [large, small, native_image] * 3]
    for t in threads: t.start()
    for t in threads: t.join()
    for x in (large, small, native_image):
        with torch.no_grad(): assert all(torch.equal(found, backbone(x)[4]) for shape, found in results if shape == x.shape)


@pytest.mark.parametrize("name", ["resnet", "vit", "clip"])
def test_a_checkpoint_in_parts(name, folders, tmp_path):
    config = FAMILIES[name]()
    published(config).from_pretrained(folders(name)).save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    parts, one = loaded(str(tmp_path)), whole(folders(name))
    for (k, a), b in zip(parts.state_dict().items(), one.state_dict().values()): assert torch.equal(a, b), k
    assert parts.provenance.digest != one.provenance.digest and len(parts.provenance.digest) == 64
    next(tmp_path.glob("*-00002-*.safetensors")).unlink()
    with pytest.raises(WeightsError, match="lacks 'model-00002"): parts.load_pretrained()


def test_heads_are_skipped_and_nothing_else(folders):
    report = TransformersBackbone(folders("vit")).load_pretrained()
    assert sorted(report.skipped) == ["classifier.bias", "classifier.weight"] and "skipped 2" in str(report)
    clip = TransformersBackbone(folders("clip")).load_pretrained()
    assert any("text_model" in k for k in clip.skipped) and not any("vision_model" in k for k in clip.skipped)


def test_a_part_that_is_missing_is_refused(folders, tmp_path):
    shutil.copytree(folders("vit"), tmp_path / "vit")
    state = load_file(tmp_path / "vit" / "model.safetensors")
    def without(words):
        save_file({k: t for k, t in state.items() if not any(word in k for word in words)}, tmp_path / "vit" / "model.safetensors")
        return TransformersBackbone(str(tmp_path / "vit"), output_indices=[1, 2])
    backbone = without(["layer.0."])
    before = {k: t.clone() for k, t in backbone.state_dict().items()}
    with pytest.raises(WeightsError, match="lacks 16 of 70 tensors"): backbone.load_pretrained()
    assert all(torch.equal(t, before[k]) for k, t in backbone.state_dict().items())
    with pytest.warns(UserWarning, match="start at random"): report = without(["layer.3."]).load_pretrained()
    assert all("layers.3." in k for k in report.reinitialised), "what no selected map needs may be missing"
    save_file({**state, "vit.embeddings.cls_token": torch.zeros(1, 1, 8)}, tmp_path / "vit" / "model.safetensors")
    with pytest.raises(WeightsError, match="does not fit its own config.json"): backbone.load_pretrained()
    (tmp_path / "vit" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="damaged"): backbone.load_pretrained()


def test_a_pickle_only_where_it_is_asked_for(folders, tmp_path):
    shutil.copytree(folders("resnet"), tmp_path / "resnet")
    state = load_file(tmp_path / "resnet" / "model.safetensors")
    (tmp_path / "resnet" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "resnet" / "pytorch_model.bin")
    backbone = TransformersBackbone(str(tmp_path / "resnet"))
    with pytest.raises(WeightsError, match="allow_pickle=True"): backbone.load_pretrained()
    assert backbone.load_pretrained(allow_pickle=True).loaded
    torch.save({"a": print}, tmp_path / "resnet" / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="it was not opened"): backbone.load_pretrained(allow_pickle=True)


def test_weights_from_elsewhere(folders, tmp_path):
    backbone = TransformersBackbone(folders("resnet"))
    other = hf.ResNetModel(FAMILIES["resnet"]())
    other.save_pretrained(tmp_path / "other")
    for which in (str(tmp_path / "other"), str(tmp_path / "other" / "model.safetensors")):
        backbone.load_pretrained(which)
        assert torch.equal(backbone.encoder.state_dict()["embedder.embedder.convolution.weight"], other.embedder.embedder.convolution.weight)
    with pytest.raises(WeightsError, match="name a source of the same network"): backbone.load_pretrained(folders("vit"))


def test_provenance_of_a_processor(folders, tmp_path):
    shutil.copytree(folders("vit"), tmp_path / "vit")
    processor = hf.ViTImageProcessor(size={"height": 64, "width": 48}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5] * 3, resample=3)
    processor.save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "README.md").write_text("---\ntags:\n- a\nlicense: mit\n---\nlicense: none\n")
    known = loaded(str(tmp_path / "vit")).provenance
    assert (known.mean, known.std, known.input_size, known.interpolation) == ((0.1, 0.2, 0.3), (0.5,) * 3, (3, 64, 48), "bicubic")
    assert known.license == "mit" and known.digest == sha256((tmp_path / "vit" / "model.safetensors").read_bytes()) and known.num_classes == 2


def test_configurations_that_lead_elsewhere(tmp_path):
    def tell(config, **arguments):
        if isinstance(config, dict): (tmp_path / "config.json").write_text(json.dumps(config))
        else: config.save_pretrained(tmp_path)
        with pytest.raises(FlameVisionError) as e: TransformersBackbone(str(tmp_path), **arguments)
        return type(e.value), str(e.value)
    for config, kind, words in [
            (hf.BertConfig(), ConfigError, "reads input_ids, not images"),
            (hf.WhisperConfig(), ConfigError, "not images"),
            (hf.Mask2FormerConfig(backbone_config=hf.SwinConfig()), ConfigError, "around a backbone ('swin')"),
            (hf.TimmWrapperConfig(architecture="resnet18"), ConfigError, "timm/resnet18"),
            (hf.Siglip2VisionConfig(), ConfigError, "besides the image"),
            (hf.VideoMAEConfig(**PLAIN), ConfigError, "gives no maps"),
            (hf.MaskFormerSwinConfig(**WINDOWS), ConfigError, "gives no maps"),
            (hf.DinatConfig(), MissingExtraError, "natten"),
            ({"model_type": "resnett"}, ConfigError, "did you mean 'resnet'"),
            ({"architecture": "resnet18"}, ConfigError, "timm/resnet18"),
            ({"model_type": "own", "auto_map": {"AutoModel": "x.Y"}}, ConfigError, "never run"),
            ({"model_type": "vit", "hidden_size": "big"}, ConfigError, "not one of 'vit'"),
            ({}, ConfigError, "names no model_type")]:
        found, message = tell(config)
        assert found is kind and words in message, message
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="names no model_type"): TransformersBackbone(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is no JSON"): TransformersBackbone(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match="has no config.json"): TransformersBackbone(str(tmp_path))
    with pytest.raises(MissingPathError, match="no folder"): TransformersBackbone("./nowhere")
    with pytest.raises(UnknownNameError): create_backbone("hf/")


def test_code_of_a_repository_is_never_run(tmp_path):
    (tmp_path / "net.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    classes = {"AutoConfig": "net.Config", "AutoModel": "net.Net"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "auto_map": classes, **PLAIN}))
    TransformersBackbone(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_without_transformers(folders, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match="flame-vision"): TransformersBackbone("owner/name")


def test_by_name_in_a_model(folders):
    from flame_vision.models import create_model
    model = create_model(backbone=f"hf/{folders('vit')}", head="classifier", num_classes=5)
    assert model.get_output_shape([2, 3, 64, 64]) == [2, 5]
    model(image(64, 96)).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None], "a head reads the last norm, too"
    again = create_model(model.config)
    assert again.config == model.config
    backbone = create_backbone(f"hf/{folders('swin')}", pretrained=True, features_only=True, output_indices=[2, 3], drop_path_rate=0.2)
    assert backbone.provenance.digest and backbone.config.name == f"hf/{folders('swin')}" and [i.stride for i in backbone.feature_info] == [8, 16]
    rates = [p.drop_prob for p in backbone.modules() if type(p).__name__ == "SwinDropPath"]
    assert rates and max(rates) < 0.2, "the last stage, where the rate is highest, was taken out"


def test_a_plain_encoder_as_a_pyramid(folders):
    backbone = TransformersBackbone(folders("vit"), hierarchical=True, pyramid_channels=16, output_indices=[1, 3])
    with pytest.warns(UserWarning, match="start at random"): backbone.load_pretrained()
    assert backbone.get_output_shape([1, 3, 96, 65]) == {1: [1, 16, 24, 17], 3: [1, 16, 6, 5]}
    with pytest.raises(ConfigError, match="encoders of one stride"): TransformersBackbone(folders("resnet"), hierarchical=True)
    with pytest.raises(ConfigError, match="no stage"): TransformersBackbone(folders("vit"), hierarchical=True, output_indices=[0])


def test_what_it_warns_of(folders, tmp_path):
    shutil.copytree(folders("resnet"), tmp_path / "resnet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded(str(tmp_path / "resnet"))
    state = load_file(tmp_path / "resnet" / "model.safetensors")
    state["resnet.embedder.embedder.convolution.weight"][0] = float("nan")
    save_file(state, tmp_path / "resnet" / "model.safetensors")
    with pytest.warns(UserWarning, match="NaN"): loaded(str(tmp_path / "resnet"))


HUB = """
from flame_vision.backbones import create_backbone
from flame_vision.core import FlameVisionError
def tell(name, **arguments):
    try: backbone = create_backbone(name, **arguments).eval()
    except FlameVisionError as e: return type(e).__name__ + ": " + str(e)
    import torch
    with torch.inference_mode(): maps = backbone(torch.linspace(-1, 1, 3 * 64 * 80).reshape(1, 3, 64, 80))
    origin = backbone.provenance.to_dict() if hasattr(backbone, "provenance") else None
    return [[m.flatten()[:5].tolist() for m in maps.values()], origin]
print(json.dumps([tell(name, **arguments) for name, arguments in json.loads(sys.argv[1])]))
"""


def test_from_the_hub(folders, tmp_path):
    "The real client against a server on loopback: a repository, its revision, one in parts, a gated one and one that is not there; then offline."
    def read(folder): return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    from pathlib import Path
    config = FAMILIES["resnet"]()
    published(config).from_pretrained(folders("resnet")).save_pretrained(tmp_path / "parts", max_shard_size="30KB")
    resnet, vit = read(Path(folders("resnet"))), read(Path(folders("vit")))
    asked = [[f"hf/lab/{name}", {"pretrained": True}] for name in ("net", "net@old", "parts", "gated", "nothing")]
    parts = Repo(read(tmp_path / "parts"))
    repositories = {"lab/net": Repo(resnet, revisions={"old": vit}), "lab/parts": parts, "lab/gated": Repo(resnet, access="gated")}
    with loopback_hub(repositories) as hub: first, old, parts, gated, nothing = client(HUB, tmp_path / "home", hub, json.dumps(asked))
    backbone, x = loaded(folders("resnet")), torch.linspace(-1, 1, 3 * 64 * 80).reshape(1, 3, 64, 80)
    with torch.inference_mode(): maps = [m.flatten()[:5] for m in backbone(x).values()]
    for told in (first, parts): assert all(torch.allclose(torch.tensor(a), b, atol=1e-5) for a, b in zip(told[0], maps))
    assert first[1]["digest"] == sha256(resnet["model.safetensors"]) and len(first[1]["revision"]) == 40 and len(old[0]) == 5
    assert gated.startswith("WeightsError") and "gated" in gated and nothing.startswith("WeightsError") and "no repository" in nothing
    offline = client(HUB, tmp_path / "home", None, json.dumps(asked[:3] + [["hf/lab/other", {}]]))
    assert offline[:3] == [first, old, parts] and "HF_HUB_OFFLINE" in offline[3]
