"Heads: feature maps in, what the task asks for out."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from .anchors import assign_by_center as assign_by_center
    from .anchors import assign_by_overlap as assign_by_overlap
    from .anchors import decode_deltas as decode_deltas
    from .anchors import decode_edges as decode_edges
    from .anchors import encode_deltas as encode_deltas
    from .anchors import encode_edges as encode_edges
    from .anchors import grid_anchors as grid_anchors
    from .base import BaseHead as BaseHead
    from .base import create_head as create_head
    from .base import list_heads as list_heads
    from .base import register_head as register_head
    from .classifier import ClassificationHead as ClassificationHead
    from .classifier import MLPHead as MLPHead
    from .deeplab import ASPP as ASPP
    from .deeplab import DeepLabV3Head as DeepLabV3Head
    from .deeplab import DeepLabV3PlusHead as DeepLabV3PlusHead
    from .dense_detector import DenseHead as DenseHead
    from .dense_detector import matched_boxes as matched_boxes
    from .detection_losses import box_loss_each as box_loss_each
    from .detection_losses import centerness as centerness
    from .detection_losses import focal_loss_sum as focal_loss_sum
    from .detection_transformer import DetectionTransformer as DetectionTransformer
    from .detector import DetectionHead as DetectionHead
    from .detr import DETRHead as DETRHead
    from .fcn import FCNHead as FCNHead
    from .fcos import FCOSHead as FCOSHead
    from .loss_sums import create_loss as create_loss
    from .loss_sums import list_losses as list_losses
    from .loss_sums import WeightedSum as WeightedSum
    from .losses import BaseLoss as BaseLoss
    from .losses import BinaryCrossEntropyLoss as BinaryCrossEntropyLoss
    from .losses import CrossEntropyLoss as CrossEntropyLoss
    from .losses import DiceLoss as DiceLoss
    from .losses import FocalLoss as FocalLoss
    from .losses import LabelLoss as LabelLoss
    from .losses import register_loss as register_loss
    from .matching import HungarianMatcher as HungarianMatcher
    from .pooling import AttentionPool as AttentionPool
    from .pooling import BasePool as BasePool
    from .pooling import create_pool as create_pool
    from .pooling import GeMPool as GeMPool
    from .pooling import list_pools as list_pools
    from .pooling import register_pool as register_pool
    from .retinanet import RetinaNetHead as RetinaNetHead
    from .segformer import SegFormerHead as SegFormerHead
    from .segmenter import SegmentationHead as SegmentationHead
    from .unet import UNetHead as UNetHead
    from .upernet import PyramidPooling as PyramidPooling
    from .upernet import UPerNetHead as UPerNetHead

CATALOGUE_MODULES = ("classifier", "deeplab", "detr", "fcn", "fcos", "retinanet", "segformer", "unet", "upernet")

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
