"Blocks: the parts that backbones and heads are composed of."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from ..backbones.base import create_backbone as create_backbone
    from .conv import ConvBlock as ConvBlock
    from .conv import create_activation as create_activation
    from .conv import create_block as create_block
    from .conv import create_norm as create_norm
    from .conv import list_blocks as list_blocks
    from .conv import register_block as register_block
    from .residual import Bottleneck as Bottleneck
    from .residual import ResidualBlock as ResidualBlock
    from .residual import SqueezeExcitation as SqueezeExcitation

CATALOGUE_MODULES = ("conv", "residual")

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
