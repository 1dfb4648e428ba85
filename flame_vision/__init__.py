"A literate research framework for computer vision."
__version__ = "0.1.0"
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from .architectures.base import list_architectures as list_architectures
    from .backbones.create import create_backbone as create_backbone
    from .backbones.create import list_backbones as list_backbones
    from .catalogue import search_models as search_models
    from .core.errors import FlameVisionError as FlameVisionError
    from .core.shapes import TensorSpec as TensorSpec
    from .core.shapes import get_output_shape as get_output_shape
    from .core.cost import summary as summary
    from .core.weights import load_weights as load_weights
    from .models import create_model as create_model
    from .models import list_models as list_models

__getattr__, __dir__, _names = lazy_exports(__name__, __file__)
__all__ = ["__version__", *_names]
