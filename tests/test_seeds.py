"The snippets of the documents that this project started from, with its import root."
from types import SimpleNamespace

import torch
from torch import nn


def test_resnet_factories():
    import flame_vision.models as models
    with torch.device("meta"):
        for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
                     "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"):
            model = getattr(models, name)(num_classes=1000, pretrained=False)
            assert model.get_output_shape([1, 3, 224, 224]) == [1, 1000]
            assert model.num_features() == (512 if name in ("resnet18", "resnet34") else 2048)
        assert models.resnet50(num_classes=10).get_output_shape([1, 3, 224, 224]) == [1, 10]


def test_resnet_class_and_methods():
    from flame_vision.models import ResNet, ResNetBlockType
    model = ResNet(
        block_type=ResNetBlockType.BOTTLENECK,
        layers=[3, 4, 6, 3],
        num_classes=1000,
        zero_init_residual=False,
        groups=1,
        width_per_group=64
    )
    assert model.get_output_shape([1, 3, 224, 224]) == [1, 1000]
    assert model.block_type is ResNetBlockType.BOTTLENECK and model.layer_config == [3, 4, 6, 3]
    assert model.has_fc() and model.num_features() == 2048
    features = model.forward_features([1, 3, 224, 224])
    assert [f.shape for f in features] == [[1, 64, 56, 56], [1, 256, 56, 56], [1, 512, 28, 28], [1, 1024, 14, 14], [1, 2048, 7, 7]]
    model.remove_fc()
    assert not model.has_fc() and model.get_output_shape([1, 3, 224, 224]) == [1, 2048, 7, 7]
    assert not ResNet(ResNetBlockType.BASIC, [1, 1, 1, 1], num_classes=0).has_fc()


# input size and features, as the seed's table has them
EFFICIENTNETS = {"b0": (224, 1280), "b1": (240, 1280), "b2": (260, 1408), "b3": (300, 1536), "b4": (380, 1792)}


def test_efficientnet_face():
    import flame_vision.models as models
    for size, (side, features) in EFFICIENTNETS.items():
        with torch.device("meta"): model = getattr(models, f"efficientnet_{size}")()
        assert model.get_output_shape([1, 3, side, side]) == [1, 1000] and model.num_features() == features
    model = models.efficientnet_b0(num_classes=10, pretrained=False)
    assert model.get_output_shape([1, 3, 224, 224]) == [1, 10]
    assert model.forward_features([1, 3, 224, 224]).shape == [1, 1280, 7, 7] == list(model.forward_features(torch.zeros(1, 3, 224, 224)).shape)
    assert model.has_classifier()
    model.remove_classifier()
    assert model.get_output_shape([1, 3, 224, 224]) == [1, 1280, 7, 7] and not model.has_classifier() and model.num_features() == 1280


def test_image_classification(capsys):
    import flame_vision.models as models
    from flame_vision.transforms import CenterCrop, Compose, Normalize, Resize
    preprocess = Compose([
        Resize(256),
        CenterCrop(224),
        Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    ])
    model = models.resnet50(num_classes=1000)
    input_shape = [1, 3, 480, 640]
    output_shape = model.get_output_shape(
        preprocess.get_output_shape(input_shape)
    )
    print(f"Output: {output_shape}")
    assert capsys.readouterr().out == "Output: [1, 1000]\n"


def test_feature_extraction(capsys):
    import flame_vision.models as models
    backbone = models.resnet50()
    backbone.remove_fc()
    features = backbone.forward_features([1, 3, 224, 224])
    for i, feat in enumerate(features): print(f"Stage {i}: {feat.shape}")
    assert capsys.readouterr().out.splitlines() == [
        "Stage 0: [1, 64, 56, 56]", "Stage 1: [1, 256, 56, 56]", "Stage 2: [1, 512, 28, 28]",
        "Stage 3: [1, 1024, 14, 14]", "Stage 4: [1, 2048, 7, 7]"]


def test_model_inspection(capsys):
    import flame_vision.models as models
    model = models.resnet50()
    print(model)
    for name, spec in model.parameter_specs().items(): print(f"{name}: {spec.shape}")
    out = capsys.readouterr().out
    assert "ResNet(" in out and "head.fc.weight: [1000, 2048]" in out
    assert [name for name, _ in model.named_parameters()] == list(model.parameter_specs())


def test_create_model_and_custom_model():
    from flame_vision.architectures import BaseArchitecture
    from flame_vision.blocks import ConvBlock
    from flame_vision.heads import ClassificationHead
    from flame_vision.models import create_model

    class CustomModel(BaseArchitecture):
        def __init__(self, config):
            super().__init__()
            self.backbone = self.build_backbone(config)
            self.head = ClassificationHead(config)

        def build_backbone(self, config):
            return nn.Sequential(ConvBlock(config))

        def forward(self, x):
            features = self.backbone(x)
            return self.head(features)

    config = SimpleNamespace(in_channels=3, out_channels=16, in_features=16, num_classes=10)
    assert CustomModel(config).get_output_shape([2, 3, 32, 32]) == [2, 10]
    model = create_model(architecture="custom", backbone="resnet50", head="classifier", config=config)
    assert model.get_output_shape([2, 3, 32, 32]) == [2, 10]


def test_registry(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAME_VISION_REGISTRY", str(tmp_path))
    from flame_vision.models import ResNet
    from flame_vision.versioning import ModelRegistry
    model_config = {"block_type": "basic", "layers": [1, 1, 1, 1], "num_classes": 3}
    registry = ModelRegistry()
    registry.register(
        name="custom_model",
        version="1.0.0",
        model=ResNet,
        config=model_config
    )
    model = registry.load("custom_model", version="1.0.0")
    assert model.get_output_shape([1, 3, 64, 64]) == [1, 3]


def test_checkpoints(tmp_path):
    from flame_vision.versioning import load_checkpoint, save_checkpoint
    model = nn.Linear(3, 2)
    optimizer, epoch = torch.optim.AdamW(model.parameters()), 4
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    path = str(tmp_path / "checkpoints" / "model.pt")
    save_checkpoint(
        model=model,
        optimizer=optimizer,
        epoch=epoch,
        path=path
    )
    other = nn.Linear(3, 2)
    model, optimizer, epoch = load_checkpoint(
        path=path,
        model=other,
        optimizer=torch.optim.AdamW(other.parameters())
    )
    assert epoch == 4 and model is other


def test_blocks_by_name_of_their_modules():
    from flame_vision.blocks.conv import ConvBlock
    from flame_vision.blocks.residual import ResidualBlock

    class FeatureExtractor(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.stages = nn.ModuleList([
                self._make_stage(config, i)
                for i in range(config.num_stages)
            ])

        def _make_stage(self, config, stage_idx):
            layers = []
            for _ in range(config.blocks_per_stage[stage_idx]):
                layers.append(ResidualBlock(
                    in_channels=config.channels[stage_idx],
                    out_channels=config.channels[stage_idx + 1]
                ))
            return nn.Sequential(*layers)

    net = FeatureExtractor(SimpleNamespace(num_stages=2, blocks_per_stage=[1, 1], channels=[8, 16, 32]))
    x = ConvBlock(3, 8)(torch.randn(1, 3, 16, 16))
    for stage in net.stages: x = stage(x)
    assert x.shape == (1, 32, 16, 16)


def test_backbones():
    from flame_vision.backbones import BaseBackbone, create_backbone
    from flame_vision.blocks import create_backbone as from_blocks
    assert from_blocks is create_backbone

    class CustomBackbone(BaseBackbone):
        def __init__(self, config):
            super().__init__()
            self.build_backbone(config)

        def build_backbone(self, config):
            """Implement backbone architecture"""
            pass

        def forward(self, x):
            """Extract hierarchical features"""
            pass

    CustomBackbone({"depth": 3})
    backbone = create_backbone(name="resnet18", pretrained=False, features_only=True)
    features = backbone(torch.randn(1, 3, 64, 64))
    assert {stage: tuple(f.shape[1:]) for stage, f in features.items()} == {
        0: (64, 32, 32), 1: (64, 16, 16), 2: (128, 8, 8), 3: (256, 4, 4), 4: (512, 2, 2)}

    class FeatureSelector(nn.Module):
        def __init__(self, backbone, output_indices):
            super().__init__()
            self.backbone = backbone
            self.output_indices = output_indices

        def forward(self, x):
            features = self.backbone(x)
            return [features[i] for i in self.output_indices]

    assert [f.shape[1] for f in FeatureSelector(backbone, (2, 4))(torch.randn(1, 3, 64, 64))] == [128, 512]


def test_feature_pyramid():
    from flame_vision.backbones import create_backbone
    from flame_vision.necks import build_fpn

    class FeaturePyramid(nn.Module):
        def __init__(self, backbone, fpn_channels):
            super().__init__()
            self.backbone = backbone
            self.fpn = build_fpn(fpn_channels)

        def forward(self, x):
            features = self.backbone(x)
            return self.fpn(features)

    backbone = create_backbone(
        "efficient_net",
        output_indices=(2, 3, 4),
        features_only=True
    )
    maps = FeaturePyramid(backbone.eval(), 32)(torch.randn(1, 3, 96, 64))
    assert {stage: tuple(m.shape) for stage, m in maps.items()} == {2: (1, 32, 12, 8), 3: (1, 32, 6, 4), 4: (1, 32, 3, 2)}
