"Data sets, and the data modules that feed them to training."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    pass

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
