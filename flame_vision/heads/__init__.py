"Heads: feature maps in, what the task asks for out."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from .base import BaseHead as BaseHead
    from .base import create_head as create_head
    from .base import list_heads as list_heads
    from .base import register_head as register_head
    from .classifier import ClassificationHead as ClassificationHead
    from .segmenter import SegmentationHead as SegmentationHead

CATALOGUE_MODULES = ("classifier",)

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
