"Preprocessing against transformers' own processors and timm's, and files beside weights that mean something else."
import io
import json
from dataclasses import asdict

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

from flame_vision.core import pretrained
from flame_vision.core.errors import ConfigError, DataError, ShapeError
from flame_vision.core.pretrained import Provenance, beside, described, find_pretrained, find_weights, named, read_config
from flame_vision.core.processors import PROCESSORS, share_of
from flame_vision.preprocessing import transforms_for
from flame_vision.transforms import RGB, Compose, Grayscale, Resize, ToTensor, build_transforms

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CASES = {
    "vit": ("vit", "ViT", {"size": 224, **HALF}),
    "swin, named as a feature extractor": ("swin", "ViT", {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 3, **HALF}),
    "vit, silent": ("vit", "ViT", {"do_resize": True}),
    "vit, a list": ("vit", "ViT", {"size": [192, 256]}),
    "vit, not normalised": ("vit", "ViT", {"do_normalize": False}),
    "vit, nulls": ("vit", "ViT", {"crop_size": None, "do_center_crop": None}),
    "deit": ("deit", "DeiT", {"size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3, **HALF}),
    "convnext 224": ("convnext", "ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    "convnext 384": ("convnext", "ConvNext", {"size": {"shortest_edge": 384}, "crop_pct": 0.875}),
    "convnext, silent": ("convnextv2", "ConvNext", {"do_resize": True}),
    "resnet": ("resnet", "ConvNext", {"size": 224, "crop_pct": 0.875, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}),
    "beit 256 to 224": ("beit", "Beit", {"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}),
    "beit": ("beit", "Beit", {"size": {"height": 224, "width": 224}}),
    "dinov2": ("dinov2", "Bit", {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}),
}


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)
    return PIL.Image.fromarray(blocks).resize((500, 300), PIL.Image.Resampling.BICUBIC)


def difference(origin, processor, picture):
    "The largest, in shades of 255."
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    ours = transforms_for(origin)(picture)
    assert ours.shape == theirs.shape
    return ((ours - theirs) * torch.tensor(origin.std).view(3, 1, 1)).abs().max().item() * 255


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_pixels_are_those_of_transformers(case, named, picture):
    model_type, kind, said = CASES[case]
    own = {k: v for k, v in said.items() if not k.endswith("_type")}
    origin = described("x", {"model_type": model_type}, {"image_processor_type": f"{kind}ImageProcessorFast", **said} if named else said)
    assert difference(origin, getattr(transformers, f"{kind}ImageProcessor")(**own), picture) < 4, "resized by torchvision or by Pillow"
    exact = getattr(transformers, f"{kind}ImageProcessorPil", None)
    if exact: assert difference(origin, exact(**own), picture) < 0.01


@pytest.mark.parametrize("kind", PROCESSORS)
def test_every_row_of_the_table_is_what_the_class_takes_by_default(kind, picture):
    made = getattr(transformers, f"{kind}ImageProcessor", None)
    if made is None: pytest.skip(f"transformers {transformers.__version__} has no such processor")
    written = made().to_dict()
    origin = described("x", {"model_type": "any"}, {"image_processor_type": f"{kind}ImageProcessor"})
    assert described("x", {"model_type": "any"}, {**written, "image_processor_type": f"{kind}ImageProcessor"}) == origin
    same = "size", "resample", "image_mean", "image_std"
    assert {k for k in same if k in written} == set(same)
    if origin.input_size is None: return
    assert difference(origin, made(), picture) < 4


UNKNOWN = {
    "another class": {"image_processor_type": "EfficientNetImageProcessor"}, "a class of its own": {"image_processor_type": "MyProcessor"},
    "from 0 to 255": {"do_rescale": False}, "another scale": {"rescale_factor": 1 / 127.5}, "a filter that there is not": {"resample": 9},
    "a filter by name": {"resample": "bicubic"}, "no resizing": {"do_resize": False},
    "the longest edge": {"size": {"shortest_edge": 224, "longest_edge": 500}},
    "a mean for all": {"image_mean": 0.5}, "two means": {"image_mean": [0.5, 0.5]}, "a deviation of 0": {"image_std": [0.0] * 3},
    "blue first": {"do_flip_channel_order": True}, "padding": {"do_pad": True}, "a size in words": {"size": "224"},
    "no size": {"size": None}, "no filter": {"resample": None}, "no mean": {"image_mean": None},
    "a size that follows the picture": {"size": {"shortest_edge": 224}},
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_understood_is_said(case):
    origin = described("owner/name", {"model_type": "vit"}, UNKNOWN[case])
    assert origin.architecture == "vit" and None in (origin.mean, origin.input_size)
    with pytest.raises(ConfigError, match="owner/name does not say how"): transforms_for(origin)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(1, 1024), st.integers(1, 1024))
def test_a_share_gives_the_side_again(kept, side): assert int(kept / share_of(kept, side)) == side


inner_names = st.sampled_from(["height", "width", "shortest_edge", "mean"])
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from([224, 0.5, [0.5] * 3, [3, 32, 32]])
anything = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(inner_names, inner), max_leaves=6)
names = ["mean", "std", "input_size", "crop_pct", "num_classes", "tag", "license", "pretrained_cfg", "architecture", "interpolation",
         "test_input_size", "size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor", "do_center_crop", "do_resize",
         "do_normalize", "do_rescale"]
types = st.sampled_from([f"{kind}ImageProcessor" for kind in PROCESSORS])
kinds = st.fixed_dictionaries({}, optional={"image_processor_type": types, "model_type": st.just("vit")})
files = st.builds(lambda a, b: {**a, **b}, st.dictionaries(st.sampled_from(names), anything), kinds) | anything


@settings(max_examples=400, deadline=None, derandomize=True)
@given(files, files)
def test_no_file_beside_weights_keeps_them_from_being_read(config, processor):
    origin = described("x", config, processor)
    json.dumps(asdict(origin))
    assert origin.input_size is None or len(origin.input_size) == 3 and min(origin.input_size) > 0
    assert origin.mean is None or len(origin.mean) == len(origin.std) and min(origin.std) > 0
    try: transforms_for(origin)
    except ConfigError: pass


@pytest.mark.parametrize("text", [
    '{"input_size": 224}', '{"mean": 0.5}', '{"mean": "imagenet"}', "[1, 2]", "7", "null", '{"pretrained_cfg": null}', '{"crop_pct": "x"}',
    '{"mean": [NaN, 1, 1], "std": [1, 1, 1]}', '{"model_type": 3}', "{", '{"num_classes": "ten"}', pytest.param("[" * 100_000, id="deep")])
def test_a_training_scripts_configuration_is_not_ours(text, tmp_path):
    save_file({"fc.weight": torch.eye(2)}, tmp_path / "w.safetensors")
    for name in ("config.json", "preprocessor_config.json"): (tmp_path / name).write_text(text)
    assert beside("w", tmp_path) == Provenance("w")
    origin, path = find_weights("resnet18", tmp_path / "w.safetensors")
    assert (origin.source, path) == ("w.safetensors", tmp_path / "w.safetensors")


def test_timms_own_table_is_read_as_it_is():
    for name in timm.list_pretrained()[::7]:
        cfg = timm.get_pretrained_cfg(name)
        origin = read_config("x", asdict(cfg))
        for field in ("mean", "std", "input_size", "crop_pct", "interpolation", "crop_mode", "num_classes", "test_input_size", "test_crop_pct"):
            theirs = getattr(cfg, field)
            assert getattr(origin, field) == (tuple(theirs) if isinstance(theirs, (list, tuple)) else theirs), (name, field)


def test_what_was_tested_is_what_timm_measured(picture):
    for name in ("resnet50.a1_in1k", "convnext_tiny.fb_in22k_ft_in1k", "efficientnet_b0.ra_in1k"):
        theirs = create_transform(**resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict(), use_test_size=True))
        assert torch.equal(transforms_for(find_pretrained(*name.split(".")), tested=True)(picture), theirs(picture))
    old = {k: v for k, v in find_pretrained("resnet50").to_dict().items() if not k.startswith("test_")}
    assert transforms_for(Provenance(**old), tested=True).get_output_shape([3, 300, 400]) == [3, 224, 224]


@pytest.mark.parametrize("which", ["", 0, [], None, False, 3.5, {"fc.weight": torch.zeros(100, 100)}], ids=lambda which: type(which).__name__)
def test_what_says_nothing_is_refused_in_few_words(which):
    with pytest.raises(ConfigError, match="a tag, a file, a folder or a hub repository") as raised: named(which)
    assert len(str(raised.value)) < 200
    if isinstance(which, dict): assert "load_weights" in str(raised.value)
    if which == "":
        with pytest.raises(ConfigError, match="a tag, a file, a folder or a hub repository"): find_weights("resnet18", which)


def test_an_address_is_fetched(tmp_path, monkeypatch):
    asked = []
    def fetch(url, allow_pickle):
        asked.append((url, allow_pickle))
        return path
    path = tmp_path / "y.pth"
    torch.save({}, path)
    monkeypatch.setattr(pretrained, "fetch_url", fetch)
    for url in ("https://x.org/y.pth", "https://x.org/y"): assert find_weights("resnet18", url)[0].source == url
    assert asked == [("https://x.org/y.pth", True), ("https://x.org/y", False)], "a pickle that is named itself is meant"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "I;16B"])
def test_every_mode_of_pillow_becomes_what_the_network_takes(mode, picture):
    origin, gray = find_pretrained("resnet18"), picture.convert("L")
    if mode.startswith("I"):
        deep = np.asarray(gray).astype(np.uint16) * 257
        order = {"I": "=i4", "I;16": "<u2", "I;16B": ">u2"}[mode]
        image = PIL.Image.frombytes(mode, gray.size, deep.astype(order).tobytes())
    elif mode == "LAB": image = PIL.Image.new("LAB", (500, 300), (128, 128, 128))
    elif mode == "PA": image = picture.convert("P").convert("PA")
    else: image = picture.convert(mode)
    colours, grays = (transforms_for(origin, channels)(image) if (mode, channels) != ("LAB", 1) else None for channels in (3, 1))
    assert colours.shape == (3, 224, 224)
    if mode.startswith("I"):
        assert (grays - transforms_for(origin, 1)(gray)).abs().max() < 0.05, "nothing is cut off"
        assert (colours - transforms_for(origin)(gray)).abs().max() < 0.05


def test_gray_stays_as_deep_as_it_is():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    for pixels in (ramp.astype(np.uint16), ramp.astype(np.int32), (ramp / 65535).astype(np.float32)):
        image = PIL.Image.fromarray(pixels)
        out = Compose([Grayscale(), ToTensor()])(image)
        assert out.dtype == torch.float32 and torch.allclose(out[0], torch.from_numpy(ramp / 65535).float(), atol=2e-5)
        assert len(Compose([Grayscale(), Resize(32), ToTensor()])(image).unique()) > 900
    file = io.BytesIO()
    PIL.Image.fromarray(ramp.astype(np.uint16)).save(file, "png")
    assert len(ToTensor()(Grayscale()(PIL.Image.open(file))).unique()) > 4000
    with pytest.raises(DataError, match="from 0 to 65535"): Grayscale()(PIL.Image.fromarray(ramp.astype(np.float32)))
    with pytest.raises(DataError, match="is white"): RGB()(PIL.Image.fromarray(ramp.astype(np.float32)))


def test_pipelines_say_what_they_cannot_take(tmp_path):
    pipeline = transforms_for(find_pretrained("resnet18"))
    assert build_transforms(pipeline.config).config == pipeline.config
    assert pipeline.get_output_shape([3, 300, 400]) == pipeline.get_output_shape([1, 300, 400]) == [3, 224, 224]
    for path in ("a.jpg", tmp_path / "a.jpg"):
        with pytest.raises(DataError, match="load_image"): pipeline(path)
    for channels in (2, 4):
        with pytest.raises(ShapeError, match="1 or 3 channels"): pipeline(torch.rand(channels, 300, 300))
        with pytest.raises(ShapeError, match="step 0, RGB"): pipeline.get_output_shape([channels, 300, 300])
    x = torch.rand(2, 3, 8, 8)
    assert RGB()(x) is x
