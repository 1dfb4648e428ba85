"Necks: feature maps in, feature maps out."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from .base import BaseNeck as BaseNeck
    from .base import create_neck as create_neck
    from .base import list_necks as list_necks
    from .base import register_neck as register_neck

CATALOGUE_MODULES: tuple[str, ...] = ()

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
