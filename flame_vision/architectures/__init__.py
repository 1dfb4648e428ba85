"Architectures: backbone, neck and head in one model."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    pass

CATALOGUE_MODULES = ("base", "cnn")

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
