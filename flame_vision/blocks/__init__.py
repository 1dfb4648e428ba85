"Blocks: the parts that backbones and heads are composed of."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from ..backbones.base import create_backbone as create_backbone
    from .base import Block as Block
    from .base import block_summary as block_summary
    from .base import create_block as create_block
    from .base import list_blocks as list_blocks
    from .base import register_block as register_block
    from .channel_attention import EfficientChannelAttention as EfficientChannelAttention
    from .channel_attention import SqueezeExcitation as SqueezeExcitation
    from .conv import ConvBlock as ConvBlock
    from .conv import DepthwiseSeparableConv as DepthwiseSeparableConv
    from .convnext import ConvNeXtBlock as ConvNeXtBlock
    from .drop_path import DropPath as DropPath
    from .drop_path import drop_path_rates as drop_path_rates
    from .layers import LayerNorm2d as LayerNorm2d
    from .layers import create_activation as create_activation
    from .layers import create_norm as create_norm
    from .mobile import FusedInvertedResidual as FusedInvertedResidual
    from .mobile import InvertedResidual as InvertedResidual
    from .residual import Bottleneck as Bottleneck
    from .residual import PreActivationBlock as PreActivationBlock
    from .residual import ResidualBlock as ResidualBlock

CATALOGUE_MODULES = ("conv", "drop_path", "channel_attention", "residual", "mobile", "convnext")

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
