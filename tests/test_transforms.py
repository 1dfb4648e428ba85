"Transforms against torchvision's own, over many sizes, and what goes wrong with them."
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms import v2

from flame_vision import transforms as T
from flame_vision.core.errors import ConfigError, DataError, ShapeError, UnknownArgumentError, UnknownNameError
from flame_vision.core.shapes import TensorSpec

side = st.integers(1, 97)
small = st.integers(1, 61)
quick = settings(max_examples=40, deadline=None, derandomize=True)


@quick
@given(side, side, small, st.sampled_from(["nearest", "bilinear", "bicubic"]), st.booleans())
def test_resize_tells_the_size_that_torchvision_gives(h, w, size, mode, antialias):
    ours = T.Resize(size, mode, antialias=antialias)
    theirs = v2.Resize(size, v2.InterpolationMode(mode), antialias=antialias)
    x = torch.rand(1, h, w)
    assert torch.equal(ours(x), theirs(x))
    assert ours.get_output_shape([1, h, w]) == list(theirs(x).shape)
    image = PIL.Image.fromarray(np.zeros((h, w), np.uint8))
    assert ours(image).size == tuple(ours.get_output_shape([1, h, w])[:0:-1])


@quick
@given(side, side, small, small, st.integers(0, 9))
def test_crops_and_pads_tell_their_size(h, w, ch, cw, pad):
    x = torch.rand(2, 3, h, w)
    for ours, theirs in [(T.CenterCrop((ch, cw)), v2.CenterCrop((ch, cw))), (T.Pad((pad, 1)), v2.Pad((pad, 1))),
                         (T.RandomResizedCrop((ch, cw)), v2.RandomResizedCrop((ch, cw))),
                         (T.RandomCrop((ch, cw), pad_if_needed=True), v2.RandomCrop((ch, cw), pad_if_needed=True))]:
        torch.manual_seed(0)
        expected = theirs(x)
        shape = ours.get_output_shape([2, 3, h, w])
        torch.manual_seed(0)
        assert torch.equal(ours(x), expected)
        assert shape == list(expected.shape)


@quick
@given(side, side)
def test_ready_pipelines_give_one_size(h, w):
    evaluate, train = T.classification_transforms(32), T.training_transforms(32, erase=1.0)
    image = PIL.Image.fromarray(np.full((h, w, 3), 128, np.uint8))
    for pipeline in (evaluate, train):
        assert pipeline.get_output_shape([3, h, w]) == list(pipeline(image).shape) == [3, 32, 32]


def test_random_crop_that_does_not_fit_is_named():
    step = T.Compose([T.Resize(20), T.RandomCrop(64)])
    with pytest.raises(ShapeError, match=r"step 1, RandomCrop\(size=\(64, 64\).*\[3, 20, 26\]"):
        step.get_output_shape([3, 48, 64])


def test_nested_pipelines_name_both_steps():
    inner = T.Compose([T.CenterCrop(8), T.Normalize([0.5] * 3, [0.5] * 3)])
    with pytest.raises(ShapeError, match="step 1, step 1, Normalize"):
        T.Compose([T.Resize(9), inner]).get_output_shape([1, 9, 9])


@pytest.mark.parametrize("shape", [[3], [5, 5], [], [3, -1, 4], [3, 0, 0]])
def test_what_is_no_image_shape_is_refused(shape):
    with pytest.raises(ShapeError): T.Resize(8).get_output_shape(shape)
    with pytest.raises(ShapeError): T.Compose([T.Resize(8)]).get_output_shape(shape)


def test_spec_with_a_type():
    shape = T.Compose([T.ToTensor(), T.Resize(8)]).get_output_shape(TensorSpec([3, 16, 16], torch.uint8))
    assert shape == [3, 8, 8]


def test_asking_changes_nothing():
    pipeline = T.training_transforms(32, erase=0.5)
    torch.manual_seed(0)
    state, arguments = torch.get_rng_state(), pipeline.config
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: pipeline.get_output_shape([3, n, n + 7]), range(20, 60)))
    assert answers == [[3, 32, 32]] * 40
    assert torch.equal(torch.get_rng_state(), state)
    assert pipeline.config == arguments


def test_every_registered_transform_goes_through_its_configuration_and_pickle():
    import flame_vision.data.boxes  # noqa: F401 - they register some
    import flame_vision.data.segmentation  # noqa: F401
    sized = ("resize", "center_crop", "random_crop", "random_resized_crop", "random_scale_crop")
    needs = {**{name: {"size": 8} for name in sized}, "pad": {"padding": [1, 2]}, "normalize": {"mean": [0.5] * 3, "std": [0.2] * 3},
             "random_shortest_size": {"min_size": 8}, "scale_jitter": {"target_size": [16, 16]},
             "random_affine": {"degrees": 10}, "compose": {"transforms": ["to_tensor", "random_horizontal_flip"]}}
    x = torch.rand(3, 20, 24)
    for name in T.list_transforms():
        made = T.create_transform(name, **needs.get(name, {}))
        again = T.build_transforms(made.config)
        assert again.config == made.config and made.config.name == name
        outputs = []
        for transform in (made, again, pickle.loads(pickle.dumps(made))):
            torch.manual_seed(4)
            outputs.append(transform(x))
        assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2]), name
        assert list(outputs[0].shape) == made.get_output_shape([3, 20, 24]), name


def test_wrong_arguments_are_typed():
    for config in ["resise", {"name": "rezise"}, [{"name": "x"}]]:
        with pytest.raises(UnknownNameError): T.build_transforms(config)
    with pytest.raises(UnknownArgumentError, match="size"): T.Resize(sizes=3)
    for config in [3, [4], {"name": "resize", "arguments": {"size": "a"}}, {"name": "resize", "argument": 3}, {"nom": "resize"}]:
        with pytest.raises(ConfigError): T.build_transforms(config)
    with pytest.raises(ConfigError): T.Normalize([0.5], [0.0])
    with pytest.raises(ConfigError): T.Normalize([0.5], [0.5, 0.5])
    with pytest.raises(ConfigError): T.classification_transforms((0, 4))
    with pytest.raises(ConfigError): T.classification_transforms(32, crop_pct=0)


def test_arrays_are_pictures():
    rng = np.random.default_rng(0)
    for shape in [(20, 30), (20, 30, 1), (20, 30, 3), (20, 30, 4)]:
        array = rng.integers(0, 256, shape, dtype=np.uint8)
        assert list(T.Resize(10)(array).size) == [15, 10]
        assert list(T.Compose([T.CenterCrop(9), T.ToTensor()])(array).shape) == [shape[2] if len(shape) > 2 else 1, 9, 9]
    assert T.ToTensor()(rng.random((5, 6, 3)).astype(np.float32)).shape == (3, 5, 6)
    with pytest.raises(DataError, match="an array is a picture when"): T.ToTensor()(np.zeros(5, np.uint8))
    with pytest.raises(DataError, match="an array is a picture when"): T.Resize(3)(np.zeros((2, 5, 5, 3), np.uint8))
    with pytest.raises(DataError, match="put ToTensor before it"): T.Normalize([0.5], [0.5])(torch.zeros(1, 4, 4, dtype=torch.uint8))
    with pytest.raises(DataError, match="put ToTensor before it"): T.Normalize([0.5], [0.5])(PIL.Image.new("L", (3, 3)))


def test_samples_travel_together():
    target = {"mask": tv_tensors.Mask(torch.arange(40).repeat(30, 1)), "name": "a.jpg", "id": np.array([1, 2, 3])}
    sample = (tv_tensors.Image(torch.rand(3, 30, 40)), target)
    image, target = T.Compose([T.RandomCrop(20), T.RandomHorizontalFlip(1.0), T.ToTensor(), T.Normalize([0.5] * 3, [0.5] * 3)])(*sample)
    assert image.shape == (3, 20, 20) and target["mask"].shape == (20, 20) and target["name"] == "a.jpg"
    assert (target["mask"][0].diff() == -1).all() and target["mask"].dtype == torch.int64
    assert target["id"].tolist() == [1, 2, 3]


def test_importing_plots_imports_no_matplotlib():
    code = "import sys, flame_vision.transforms, flame_vision.plots; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
