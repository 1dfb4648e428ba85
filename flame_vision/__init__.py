"A literate research framework for computer vision."
__version__ = "0.1.0"
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from .core.errors import FlameVisionError as FlameVisionError

__getattr__, __dir__, _names = lazy_exports(__name__, __file__)
__all__ = ["__version__", *_names]
