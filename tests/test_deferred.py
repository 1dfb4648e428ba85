"Nobody can tell a network that was built inside `deferred_init` from another one, whatever its constructor does."
import copy
import io

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations

from flame_vision.core.deferred import deferred_init, stepped_outside
from flame_vision.core.weights import load_weights

LIMIT = 8 ** -0.5  # of PyTorch's linear layer with eight inputs


def linear(): return nn.Linear(8, 8)


def sound(weight): return bool(weight.isfinite().all()) and 0.3 * LIMIT < weight.detach().abs().max() <= LIMIT


def given_other_memory(layer): layer.weight.data = torch.eye(8)
def swapped(layer): torch.utils.swap_tensors(layer.weight, nn.Parameter(torch.eye(8)))


@pytest.mark.parametrize("change", [given_other_memory, swapped])
def test_a_replaced_parameter_is_not_filled(change):
    with deferred_init(): change(layer := linear())
    assert torch.equal(layer.weight, torch.eye(8))


def test_copies_between_tensors_that_wait():
    with deferred_init():
        a, b, c = linear(), linear(), linear()
        a.load_state_dict(a.state_dict())
        b.weight.data.copy_(b.weight.data)
        load_weights(c, a.state_dict())
    assert sound(a.weight) and sound(b.weight) and torch.equal(a.weight, c.weight)


def test_operands_are_those_of_the_moment():
    with deferred_init():
        scale, rows = torch.tensor(1.0), []
        for _ in range(3):
            rows.append(torch.empty(2).fill_(1.0).mul_(scale))
            scale *= 0.1
        own = torch.empty(2).fill_(3.0)
        own.fill_(own[0])
    assert [round(row[0].item(), 6) for row in rows] == [1.0, 0.1, 0.01] and own.tolist() == [3.0, 3.0]


READERS = {"list": lambda t: t.tolist(), "array": lambda t: t.detach().numpy().tolist(), "number": lambda t: [t[0].item()] * 3,
           "copy": lambda t: copy.deepcopy(t).tolist(),
           "apply": lambda t: t.detach().clone().apply_(lambda v: v).tolist(), "float": lambda t: [float(t.sum()) / 3] * 3}


@pytest.mark.parametrize("read", READERS)
def test_readers_see_what_was_filled(read):
    with deferred_init(): assert READERS[read](torch.empty(3).fill_(2.0)) == [2.0, 2.0, 2.0]


def test_what_is_saved_inside_is_what_it_is():
    with deferred_init():
        torch.save((layer := linear()).state_dict(), held := io.BytesIO())
    held.seek(0)
    assert torch.equal(torch.load(held, weights_only=True)["weight"], layer.weight) and sound(layer.weight)


def test_subclasses_exceptions_inference_and_reentry():
    class Special(nn.Parameter): pass
    with deferred_init(): nn.init.zeros_(zeroed := Special(torch.empty(4).normal_()))
    assert zeroed.tolist() == [0.0] * 4
    with pytest.raises(RuntimeError), deferred_init():
        kept = linear()
        raise RuntimeError("the cell failed, and the layer stays")
    assert sound(kept.weight)
    with deferred_init(), torch.inference_mode(): filled = torch.empty(3).fill_(1.0)
    assert filled.tolist() == [1.0] * 3
    with (context := deferred_init()):
        outer = linear()
        with context: inner = linear()
    assert sound(outer.weight) and sound(inner.weight)


def test_constructors_that_work_on_their_weights():
    torch.manual_seed(0)
    with deferred_init():
        ways = parametrizations.orthogonal, parametrizations.weight_norm, parametrizations.spectral_norm
        orthogonal, normed, spectral = [way(linear()) for way in ways]
        lazy, tied, mixed = nn.LazyLinear(4), linear(), nn.MultiheadAttention(8, 2)
        other = linear()
        other.weight = tied.weight
        lazy(torch.ones(1, 3))
    assert torch.allclose(orthogonal.weight @ orthogonal.weight.T, torch.eye(8), atol=1e-5)
    assert sound(normed.weight) and torch.linalg.matrix_norm(spectral.weight, 2).item() == pytest.approx(1, abs=0.1)
    assert lazy.weight.abs().max() <= 3 ** -0.5 and other.weight is tied.weight and sound(tied.weight) and mixed.in_proj_weight.std() > 0.1


def test_outside_is_outside():
    with deferred_init():
        with stepped_outside() as left: assert left is not None and linear().weight.abs().max() <= LIMIT
        with torch.device("meta"): assert linear().weight.is_meta
        kept = linear()
    with stepped_outside() as left: assert left is None
    assert sound(kept.weight)


NETWORKS = "test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_nfnet", "swinv2_cr_tiny_224", "beit_base_patch16_224"


@pytest.mark.parametrize("name", NETWORKS)
def test_timms_networks_are_initialised_as_ever(name):
    "Each tensor has the spread that it has without the context."
    torch.manual_seed(0)
    plain = timm.create_model(name).state_dict()
    with deferred_init(): model = timm.create_model(name)
    for key, tensor in model.state_dict().items():
        a, b = tensor.double(), plain[key].double()
        assert a.isfinite().all(), key
        if b.numel() > 500: assert a.std() == pytest.approx(b.std().item(), rel=0.25, abs=1e-6), key
        elif b.std(correction=0) == 0: assert torch.equal(a, b), key
