"Blocks: the parts that backbones and heads are composed of."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    pass

CATALOGUE_MODULES = ("conv", "residual")

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
