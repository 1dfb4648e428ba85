"Blocks: the parts that backbones and heads are composed of."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from ..backbones.create import create_backbone as create_backbone
    from .attention import AttentionBlock as AttentionBlock
    from .attention import CrossAttention as CrossAttention
    from .attention import FeedForward as FeedForward
    from .attention import LayerScale as LayerScale
    from .attention import MultiHeadAttention as MultiHeadAttention
    from .attention import SelfAttention as SelfAttention
    from .attention import TransformerBlock as TransformerBlock
    from .attention import attention_weights as attention_weights
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
    from .grid_pool import GridPool as GridPool
    from .layers import LayerNorm2d as LayerNorm2d
    from .layers import create_activation as create_activation
    from .layers import create_norm as create_norm
    from .mobile import FusedInvertedResidual as FusedInvertedResidual
    from .mobile import InvertedResidual as InvertedResidual
    from .patches import PatchEmbed as PatchEmbed
    from .patches import resample_patch_embedding as resample_patch_embedding
    from .patches import resample_position_embedding as resample_position_embedding
    from .patches import resample_relative_position_bias as resample_relative_position_bias
    from .patches import sincos_position_embedding as sincos_position_embedding
    from .residual import Bottleneck as Bottleneck
    from .residual import PreActivationBlock as PreActivationBlock
    from .residual import ResidualBlock as ResidualBlock
    from .tokens import Tokens as Tokens
    from .window_attention import CosineWindowAttention as CosineWindowAttention
    from .window_attention import ShiftedWindowBlock as ShiftedWindowBlock
    from .window_attention import WindowAttention as WindowAttention
    from .window_attention import relative_position_index as relative_position_index
    from .window_attention import window_partition as window_partition
    from .window_attention import window_reverse as window_reverse

CATALOGUE_MODULES = ("attention", "channel_attention", "conv", "convnext", "drop_path", "grid_pool", "mobile", "patches", "residual", "tokens",
                     "window_attention")

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
