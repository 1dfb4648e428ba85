"Backbones: images in, feature maps by stage out."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from .base import BaseBackbone as BaseBackbone
    from .base import FeatureInfo as FeatureInfo
    from .base import FeatureSelector as FeatureSelector
    from .base import register_backbone as register_backbone
    from .base import register_backbone_prefix as register_backbone_prefix
    from .base import register_variants as register_variants
    from .convnext import ConvNeXtBackbone as ConvNeXtBackbone
    from .create import create_backbone as create_backbone
    from .create import families_with as families_with
    from .create import list_backbones as list_backbones
    from .efficientnet import EfficientNetBackbone as EfficientNetBackbone
    from .external import ExternalBackbone as ExternalBackbone
    from .hybrid import HybridBackbone as HybridBackbone
    from .mobilenet import MobileNetV2Backbone as MobileNetV2Backbone
    from .mobilenet import MobileNetV3Backbone as MobileNetV3Backbone
    from .plain import PlainTransformer as PlainTransformer
    from .prune import keep_needed as keep_needed
    from .prune import needed_parameters as needed_parameters
    from .pyramid import SimpleFeaturePyramid as SimpleFeaturePyramid
    from .regnet import RegNetBackbone as RegNetBackbone
    from .regnet import RegNetBlock as RegNetBlock
    from .resnet import ResNetBackbone as ResNetBackbone
    from .resnet import ResNetBlockType as ResNetBlockType
    from .resnetv2_stem import ResNetV2Stem as ResNetV2Stem
    from .rows import Row as Row
    from .rows import RowBackbone as RowBackbone
    from .swin import SwinBackbone as SwinBackbone
    from .timm_encoders import TimmBackbone as TimmBackbone
    from .transformers_encoders import TransformersBackbone as TransformersBackbone
    from .vit import ViTBackbone as ViTBackbone
    from .vit import attention_rollout as attention_rollout

CATALOGUE_MODULES = ("resnet", "regnet", "convnext", "efficientnet", "mobilenet", "swin", "vit", "hybrid", "timm_encoders", "transformers_encoders")

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
