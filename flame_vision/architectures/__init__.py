"Architectures: backbone, neck and head in one model."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from .base import BaseArchitecture as BaseArchitecture
    from .base import list_architectures as list_architectures
    from .base import register_architecture as register_architecture
    from .classifier import Classifier as Classifier
    from .cnn import ResNet as ResNet
    from .detector import Detector as Detector
    from .networks import ConvNeXt as ConvNeXt
    from .networks import EfficientNet as EfficientNet
    from .networks import MobileNetV2 as MobileNetV2
    from .networks import MobileNetV3 as MobileNetV3
    from .networks import RegNet as RegNet
    from .segmenter import Segmenter as Segmenter
    from .transformer import HybridTransformer as HybridTransformer
    from .transformer import SwinTransformer as SwinTransformer
    from .transformer import VisionTransformer as VisionTransformer

CATALOGUE_MODULES = ("classifier", "cnn", "networks", "transformer", "segmenter", "segmenters", "detector", "detectors", "custom")

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
