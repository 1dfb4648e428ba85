"Other libraries' encoders under our contract: one model of every module of timm, its sizes, maps, gradients, weights."
import json
import threading
import warnings
from copy import deepcopy

import pytest
import timm
import torch
from peers import jitter
from safetensors.torch import save_file
from torch import nn

from flame_vision.architectures.classifier import Classifier
from flame_vision.backbones import ExternalBackbone, create_backbone
from flame_vision.backbones.base import BACKBONES
from flame_vision.backbones.external import number_stages
from flame_vision.backbones.timm_encoders import TimmBackbone
from flame_vision.core import ConfigError, ShapeError, UnknownNameError, WeightsError
from flame_vision.core.errors import UnknownArgumentError
from flame_vision.core.weights import load_weights
from flame_vision.parts import build, make

# the smallest model of each of timm's modules
MODELS = dict(
    beit="beit_base_patch16_224", byoanet="halonet_h1", byobnet="test_byobnet", cait="cait_xxs24_224", coat="coat_tiny", convit="convit_tiny",
    convmixer="convmixer_768_32", convnext="test_convnext", cpubone="cpubone_nano", crossvit="crossvit_tiny_240", csatv2="csatv2",
    cspnet="cs3darknet_focus_s", cspnext="cspnext_tiny", davit="davit_tiny", deepseek_vit="deepseek_vit_412m", deit="deit_tiny_patch16_224",
    densenet="densenet121", dla="dla46x_c", dpn="dpn48b", edgenext="edgenext_xx_small", efficientformer="efficientformer_l1",
    efficientformer_v2="efficientformerv2_s0", efficientnet="test_efficientnet", efficientvim="efficientvim_m1",
    efficientvit_mit="efficientvit_b0", efficientvit_msra="efficientvit_m0", eva="vit_tiny_patch16_dinov3_qkvb", fasternet="fasternet_t0",
    fastvit="fastvit_t8", focalnet="focalnet_tiny_srf", gcvit="gcvit_xxtiny", gemma4_vit="gemma4_vit_167m", ghostnet="ghostnet_050",
    hardcorenas="hardcorenas_b", hgnet="hgnetv2_b0", hiera="hiera_tiny_224", hieradet_sam2="sam2_hiera_tiny", hrnet="hrnet_w18_small",
    iformer="iformer_t", inception_next="inception_next_atto", inception_resnet_v2="inception_resnet_v2", inception_v3="inception_v3",
    inception_v4="inception_v4", lcnetv2="lcnetv2_small", levit="levit_128s", lowformer="lowformer_b0", mambaout="test_mambaout",
    maxxvit="test_coatnet", metaformer="poolformerv2_s12", mlp_mixer="gmlp_ti16_224", mobilenetv3="mobilenetv3_small_050",
    mobilenetv5="mobilenetv5_base", mobilevit="mobilevit_xxs", mvitv2="mvitv2_tiny", naflexvit="naflexvit_base_patch16_parfac_gap",
    nasnet="nasnetalarge", nest="nest_tiny", nextvit="nextvit_small", nfnet="test_nfnet", pit="pit_ti_224", pnasnet="pnasnet5large",
    pvt_v2="pvt_v2_b0", qwen3_vit="qwen3_vit_88m", rdnet="rdnet_tiny", regnet="regnetx_002", repghost="repghostnet_050", repvit="repvit_m1",
    res2net="res2next50", resnest="resnest14d", resnet="test_resnet", resnetv2="resnetv2_18", rexnet="rexnet_100", selecsls="selecsls42",
    senet="legacy_seresnet18", sequencer="sequencer2d_s", shvit="shvit_s1", sknet="skresnet18", starnet="starnet_s050",
    swiftformer="swiftformer_xs", swin_transformer="swin_tiny_patch4_window7_224", swin_transformer_v2="swinv2_tiny_window16_256",
    swin_transformer_v2_cr="swinv2_cr_tiny_224", tiny_vit="tiny_vit_5m_224", tnt="tnt_s_legacy_patch16_224", tresnet="tresnet_m",
    twins="twins_svt_small", vgg="vgg11", visformer="visformer_tiny", vision_transformer="test_vit",
    vision_transformer_hybrid="vit_tiny_r_s16_p8_224", vision_transformer_relpos="test_vit_relpos",
    vision_transformer_sam="samvit_base_patch16_224", vitamin="vitamin_small_224", volo="volo_d1_224", vovnet="ese_vovnet19b_slim_dw",
    xception="legacy_xception", xception_aligned="xception41p", xcit="xcit_nano_12_p8_224",
)

FAST = ["byobnet", "convnext", "dla", "efficientnet", "levit", "mambaout", "maxxvit", "nfnet", "resnet", "vision_transformer", "xcit"]
QUICK = ["beit", "byobnet", "cait", "cspnet", "davit", "deit", "dla", "dpn", "efficientnet", "efficientvim", "ghostnet", "levit", "mambaout",
         "maxxvit", "metaformer", "nest", "nfnet", "pit", "resnet", "selecsls", "sequencer", "swin_transformer", "tresnet", "vgg",
         "vision_transformer", "volo", "xception", "xcit"]  # every kind of deviation once
SHORT = {"crossvit", "inception_resnet_v2", "inception_v3", "inception_v4", "nasnet", "pit", "pnasnet", "xception"}  # no padding
UNCHECKPOINTED = {"coat", "convit", "crossvit", "cspnet", "dla", "hrnet", "inception_resnet_v2", "inception_v3", "inception_v4", "nasnet", "pit",
                  "pnasnet", "selecsls", "senet", "sequencer", "twins", "vgg", "xception"}
DILATED = ["resnet", "efficientnet", "convnext", "nfnet", "byobnet", "regnet", "mobilevit", "inception_next"]


def each(modules, slow=()):
    "A case for each module; those that take long wait for `make slow`."
    return pytest.mark.parametrize("module", [pytest.param(m, marks=pytest.mark.slow) if m in slow else m for m in modules])


def everywhere(fast): return each(MODELS, set(MODELS) - set(fast))


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def on_meta(name, **arguments):
    with torch.device("meta"): return TimmBackbone(name, **arguments).eval()


def real(module, seed=0, **arguments):
    torch.manual_seed(seed)
    return jitter(TimmBackbone(MODELS[module], **arguments))


def image(backbone, batch=1): return torch.randn(batch, *backbone.probe_shape[1:], generator=torch.Generator().manual_seed(1))


def wanted(backbone, h, w):
    "The contract: each map has so many channels, and a pixel for each whole or begun stride."
    return {i.stage: [2, i.channels, -(-h // i.stride), -(-w // i.stride)] for i in backbone.feature_info}


def test_every_module_of_timm_has_its_model():
    assert set(MODELS) == set(timm.list_modules())
    assert all(name in timm.list_models(module=module) for module, name in MODELS.items())


@everywhere(QUICK)
def test_contract(module):
    backbone = on_meta(MODELS[module])
    declared = backbone.encoder.feature_info
    declared = [declared[i] for i in range(len(declared))]
    theirs = [declared[i] for i in number_stages(backbone.survey.strides).values()]
    assert [(i.channels, i.stride) for i in backbone.feature_info] == [(d["num_chs"], d["reduction"]) for d in theirs]
    stages = [i.stage for i in backbone.feature_info]
    assert stages == sorted(set(stages)) and stages == list(backbone.output_indices)
    h, w = backbone.survey.size or backbone.native
    sizes = [(h, w)] if backbone.survey.size else [(h, w), (h, w + backbone.size_divisibility), (h - 21, w // 2 + 23), (200, 149)]
    for size in sizes: assert backbone.get_output_shape([2, 3, *size]) == wanted(backbone, *size), size
    if not backbone.survey.size: return
    with pytest.raises(ShapeError, match=rf"takes images of {h} × {w} only, got 96 × 64; make it with img_size=\(96, 64\)"):
        backbone.get_output_shape([2, 3, 96, 64])


def timm_features(backbone, module, count):
    "timm's own extractor with the same weights; None for the one that timm cannot build."
    if module == "tresnet": return None
    theirs = timm.create_model(MODELS[module], features_only=True, out_indices=tuple(range(count))).eval()
    def plain(key): return key.replace("_", ".")
    state, held = {plain(k): v for k, v in backbone.encoder.state_dict().items()}, theirs.state_dict()
    names = {k: next(n for n in (plain(k), plain(k).removeprefix("model."), plain(k).removeprefix("body.")) if n in state) for k in held}
    theirs.load_state_dict({k: state[n] for k, n in names.items()})
    return theirs


@everywhere(FAST)
def test_maps_are_timms_own(module):
    backbone = real(module)
    x, numbers = image(backbone), number_stages(backbone.survey.strides)
    theirs = timm_features(backbone, module, len(backbone.survey.strides))
    with torch.no_grad(): maps, published = backbone(x), theirs(x) if theirs else backbone.encoder.forward_intermediates(x, intermediates_only=True)
    assert backbone.survey.short == (module in SHORT)
    for stage, ours in maps.items():
        own = published[numbers[stage]]
        if own.shape[1] != ours.shape[1]: own = own.movedim(3, 1)  # timm's extractor gives some maps with channels last
        grown = [a - b for a, b in zip(ours.shape[2:], own.shape[2:])]
        assert all(n >= 0 for n in grown) and (module in SHORT or not any(grown))
        inside = ours[:, :, grown[0] // 2:, grown[1] // 2:][:, :, :own.shape[2], :own.shape[3]]
        assert own.abs().max() > 0 and (inside - own).abs().max() <= 1e-5 * own.abs().max(), stage


@everywhere(FAST)
def test_every_parameter_learns(module):
    backbone = real(module, features_only=True).train()
    x = image(backbone, batch=2)
    sum(m.float().pow(2).mean() for m in backbone(x).values()).backward()
    idle = [name for name, p in backbone.named_parameters() if p.grad is None and p.requires_grad]
    if module == "crossvit": idle = [name for name in idle if not name.startswith("encoder.blocks.2.")]  # its last fusion, which timm keeps
    assert not idle


@everywhere(FAST)
def test_checkpointing_changes_no_gradient(module):
    backbone = real(module, features_only=True).train()
    x = image(backbone, batch=2)
    def gradients():
        backbone.zero_grad()
        torch.manual_seed(0)  # for networks that drop paths by themselves
        sum(m.pow(2).mean() for m in backbone(x).values()).backward()
        return {k: p.grad.clone() for k, p in backbone.named_parameters() if p.grad is not None}
    plain = gradients()
    if module in UNCHECKPOINTED:
        with pytest.raises(ConfigError, match="has no gradient checkpointing"): backbone.set_gradient_checkpointing(True)
        return
    backbone.set_gradient_checkpointing(True)
    assert backbone.config.arguments["gradient_checkpointing"] is True
    again = gradients()
    assert plain.keys() == again.keys()
    assert all(torch.allclose(plain[k], again[k], rtol=1e-4, atol=1e-6 * plain[k].abs().max().item()) for k in plain)
    backbone.set_gradient_checkpointing(False)


@everywhere(FAST)
def test_weights_of_a_file(module, tmp_path):
    torch.manual_seed(1)
    published = timm.create_model(MODELS[module])
    save_file({k: v.contiguous().clone() for k, v in published.state_dict().items()}, tmp_path / "model.safetensors")
    for arguments in ({}, {"features_only": True, "output_indices": [0]}):
        if arguments: arguments["output_indices"] = [on_meta(MODELS[module]).output_indices[0]]
        backbone = TimmBackbone(MODELS[module], **arguments)
        report = backbone.load_pretrained(str(tmp_path / "model.safetensors"))
        held, state = backbone.encoder.state_dict(), published.state_dict()
        whole = [k for k in held if held[k].shape == state[k].shape]  # EfficientViM's weights of stages are cut with them
        assert all(torch.equal(held[k], state[k]) for k in whole) and len(report.loaded) == len(whole) and set(held) - set(whole) <= {"weights"}
        assert len(backbone.provenance.digest) == 64
    by_map = TimmBackbone(MODELS[module])
    load_weights(by_map, published.state_dict())
    assert all(torch.equal(t, state[k]) for k, t in by_map.encoder.state_dict().items())


@everywhere(FAST)
def test_a_classifier_reads_timms_vector(module):
    torch.manual_seed(0)
    theirs = jitter(timm.create_model(MODELS[module]))
    backbone = TimmBackbone(MODELS[module])
    load_weights(backbone, theirs.state_dict())
    model = Classifier(backbone=backbone, num_classes=5).eval()
    x = image(backbone)
    with torch.no_grad():
        vector = model.forward_head(model.forward_features(x), pre_logits=True)
        own = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
        assert model(x).shape == (1, 5)
    assert torch.allclose(vector, own, rtol=1e-4, atol=1e-5 * own.abs().max().item())
    assert vector.shape[1] == backbone.classifier_features == theirs.head_hidden_size


@pytest.mark.parametrize("output_stride", [8, 16])
@each(DILATED, DILATED[3:])
def test_output_stride(module, output_stride):
    backbone = real(module, output_stride=output_stride)
    theirs = timm.create_model(MODELS[module], num_classes=0, output_stride=output_stride).eval()
    theirs.load_state_dict(backbone.encoder.state_dict())
    stages = backbone.output_indices
    assert stages == on_meta(MODELS[module]).output_indices
    assert [i.stride for i in backbone.feature_info] == [min(2 ** (s + 1), output_stride) for s in stages]
    x = image(backbone)
    with torch.no_grad(): maps, own = backbone(x), theirs.forward_intermediates(x, intermediates_only=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(maps.values(), own))
    assert backbone.get_output_shape([2, 3, 200, 149]) == wanted(backbone, 200, 149)


def test_padding_is_seen_by_nobody_else():
    "An image that needs none gives what timm gives; one that does, what timm gives for it with zeros around."
    backbone = real("vision_transformer")
    x = torch.randn(1, 3, 75, 50)
    with torch.no_grad():
        maps = backbone(x)
        own = backbone.encoder.forward_intermediates(nn.functional.pad(x, (0, 14, 0, 5)), intermediates_only=True)
    assert maps[4].shape == (1, 64, 5, 4) and torch.equal(maps[4], own[-1])


def test_pyramid():
    backbone = TimmBackbone("test_vit", hierarchical=True, pyramid_channels=32).eval()
    assert [(i.stage, i.channels, i.stride) for i in backbone.feature_info] == [(1, 32, 4), (2, 32, 8), (3, 32, 16), (4, 32, 32)]
    assert {s: list(m.shape) for s, m in backbone(torch.randn(2, 3, 75, 50)).items()} == wanted(backbone, 75, 50)
    with pytest.raises(ConfigError, match="hierarchical=True is for encoders of one stride"): TimmBackbone("test_resnet", hierarchical=True)


def test_img_size_makes_a_fixed_encoder_for_another():
    backbone = TimmBackbone("test_coatnet", img_size=(200, 149)).eval()
    assert backbone.survey.size == (224, 160)
    assert {s: list(m.shape) for s, m in backbone(torch.randn(2, 3, 200, 149)).items()} == wanted(backbone, 200, 149)
    with pytest.raises(ShapeError, match="takes images of 224 × 160 only, got 96 × 96"): backbone(torch.randn(1, 3, 96, 96))


@pytest.mark.parametrize("name, arguments, words", [
    ("vgg11", {"drop_path_rate": 0.1}, "timm's vgg11 takes no drop_path_rate"),
    ("resnet18", {"img_size": 64}, "timm's resnet18 takes no img_size"),
    ("resnet18", {"patch_size": 8}, "timm's resnet18 takes no patch_size"),
    ("vgg11", {"output_stride": 8}, "timm cannot make vgg11"),
    ("test_vit", {"output_stride": 16}, "timm's test_vit takes no output_stride"),
    ("test_resnet", {"output_stride": 7}, "output_stride must be 8, 16 or 32"),
    ("test_resnet", {"kwargs": {"num_classes": 5}}, "num_classes"),
    ("test_resnet", {"kwargs": {"stem_withd": 5}}, "takes no stem_withd"),
    ("test_resnet", {"output_indices": [7]}, r"this backbone has \(0, 1, 2, 3, 4\)"),
    ("test_resnet", {"gradient_checkpointing": [1]}, "True or False"),
])
def test_what_timm_does_not_take_is_refused(name, arguments, words):
    with pytest.raises(ConfigError, match=words): on_meta(name, **arguments)


def test_names():
    with pytest.raises(UnknownNameError, match="did you mean 'resnet50'"): BACKBONES["timm/resnet5O"]
    with pytest.raises(UnknownNameError, match="no weights of resnet50 with the tag 'a1_in1'.*mean 'a1_in1k'"): BACKBONES["timm/resnet50.a1_in1"]
    with pytest.raises(UnknownArgumentError, match="has no argument 'depth'"): make(BACKBONES, "timm/test_resnet", depth=3)
    assert "timm/test_vit" in BACKBONES


def test_config_builds_an_equal_backbone():
    backbone = make(BACKBONES, "timm/test_resnet", output_indices=[1, -1], in_channels=1, drop_path_rate=0.1, output_stride=16)
    again = build(BACKBONES, backbone.config)
    assert again.config == backbone.config and backbone.config.name == "timm/test_resnet" and "model" not in backbone.config.arguments
    assert {k: t.shape for k, t in again.state_dict().items()} == {k: t.shape for k, t in backbone.state_dict().items()}
    by_class = TimmBackbone("test_resnet", in_channels=1)
    assert build(BACKBONES, by_class.config).config == by_class.config


def test_other_channels_and_sizes_by_timms_rule(tmp_path):
    torch.manual_seed(1)
    published = timm.create_model("test_vit", num_classes=7)
    save_file(published.state_dict(), path := tmp_path / "model.safetensors")
    arguments = dict(in_chans=1, img_size=(96, 64), num_classes=0)
    overlay = dict(file=str(path), num_classes=7)
    theirs = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    backbone = TimmBackbone("test_vit", in_channels=1, img_size=(96, 64))
    said = r"proj.weight' was adapted from \[64, 3, 16, 16\] to \[64, 1, 16, 16\]; scaled to another grid: 'encoder.pos_embed'"
    with pytest.warns(UserWarning, match=said):
        report = backbone.load_pretrained(str(path))
    state = theirs.state_dict()
    assert all(torch.equal(t, state[k]) for k, t in backbone.encoder.state_dict().items())
    assert report.resampled == ["encoder.pos_embed"] and list(report.adapted) == ["encoder.patch_embed.proj.weight"]


def test_weights_of_another_network_change_nothing(tmp_path):
    save_file(timm.create_model("test_resnet").state_dict(), path := tmp_path / "model.safetensors")
    backbone = TimmBackbone("test_vit")
    before = deepcopy(backbone.state_dict())
    with pytest.raises(WeightsError, match="timm's test_vit"): backbone.load_pretrained(str(path))
    assert all(torch.equal(t, before[k]) for k, t in backbone.state_dict().items()) and backbone.provenance is None


def test_create_backbone_with_weights(tmp_path):
    torch.manual_seed(1)
    published = timm.create_model("test_efficientnet")
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    described = dict(input_size=[3, 160, 160], mean=[0.5] * 3, std=[0.5] * 3, license="mit")
    (tmp_path / "config.json").write_text(json.dumps(dict(architecture="test_efficientnet", num_classes=1000, pretrained_cfg=described)))
    backbone = create_backbone("timm/test_efficientnet", pretrained=str(tmp_path), output_indices=[2, 4])
    state = published.state_dict()
    assert all(torch.equal(t, state[k]) for k, t in backbone.encoder.state_dict().items())
    assert (backbone.provenance.license, backbone.provenance.mean, tuple(backbone(torch.randn(1, 3, 64, 64)))) == ("mit", (0.5, 0.5, 0.5), (2, 4))


@pytest.mark.parametrize("name", ["test_vit", pytest.param("regnetx_002", marks=pytest.mark.slow), pytest.param("vgg11", marks=pytest.mark.slow)])
def test_exports_with_any_size(name):
    backbone = TimmBackbone(name, features_only=True, output_indices=[2, 4]).eval()
    sides = {2: torch.export.Dim("h", min=65, max=320), 3: torch.export.Dim("w", min=65, max=320)}
    program = torch.export.export(backbone, (torch.randn(2, 3, 96, 160),), dynamic_shapes=({0: torch.export.Dim("b", max=8), **sides},))
    for size in ((96, 160), (75, 101)):
        x = torch.randn(3, 3, *size)
        with torch.no_grad(): assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(program.module()(x).values(), backbone(x).values()))


def test_threads_and_copies():
    backbone = TimmBackbone("test_convnext").eval()
    twin, x = deepcopy(backbone), torch.randn(1, 3, 75, 50)
    with torch.no_grad(): expected = {s: m.clone() for s, m in twin(x).items()}
    wrong = []
    def work():
        with torch.no_grad():
            for _ in range(5): wrong.extend(s for s, m in backbone(x).items() if not torch.equal(m, expected[s]))
    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not wrong


def test_an_encoder_of_ones_own():
    "No method, no map, a map of stride 1 only, two stages that share a map: each says what it is."
    class Own(ExternalBackbone):
        def __init__(self, *layers, **arguments):
            super().__init__()
            self.encoder = nn.ModuleList(layers)
            self.arrange(64, **arguments)

        def peer_maps(self, x, numbers=None):
            maps = []
            for layer in self.encoder: maps.append(x := layer(x))
            return maps if numbers is None else [maps[i] for i in numbers]
    with pytest.raises(ConfigError, match="no map at a stride of 2 or more"): Own(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1))
    with pytest.raises(ShapeError, match="must define peer_maps"): ExternalBackbone().arrange(64)
    two = Own(nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 4, 1))
    assert two.output_indices == (1, 2, 3, 4) and two.get_output_shape([1, 3, 20, 30])[1] == [1, 4, 3, 4]
