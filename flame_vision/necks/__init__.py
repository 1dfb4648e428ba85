"Necks: feature maps in, feature maps out."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from .base import BaseNeck as BaseNeck
    from .base import create_neck as create_neck
    from .base import list_necks as list_necks
    from .base import register_neck as register_neck
    from .feature_pyramid import FeaturePyramid as FeaturePyramid
    from .feature_pyramid import build_fpn as build_fpn
    from .fpn import FPN as FPN
    from .pan import PAN as PAN

CATALOGUE_MODULES: tuple[str, ...] = ("fpn", "pan")

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
