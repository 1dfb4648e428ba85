"Data sets, and the data modules that feed them to training."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from ..images import load_image as load_image
    from ..resizing import ResizeShortest as ResizeShortest
    from .box_folders import BoxFolder as BoxFolder
    from .boxes import SanitizeBoxes as SanitizeBoxes
    from .boxes import detection_transforms as detection_transforms
    from .boxes import pad_boxes as pad_boxes
    from .classification import ClassificationDataModule as ClassificationDataModule
    from .coco import CocoDataModule as CocoDataModule
    from .coco import coco_splits as coco_splits
    from .datamodules import DigitsDataModule as DigitsDataModule
    from .datamodules import ImageDataModule as ImageDataModule
    from .datamodules import ImageFolderDataModule as ImageFolderDataModule
    from .datamodules import create_datamodule as create_datamodule
    from .datamodules import list_datasets as list_datasets
    from .datamodules import register_dataset as register_dataset
    from .datasets import Digits as Digits
    from .datasets import stratified_split as stratified_split
    from .detection import BoxPairs as BoxPairs
    from .detection import DetectionDataModule as DetectionDataModule
    from .detection import ShapesDetectionDataModule as ShapesDetectionDataModule
    from .folders import FolderReport as FolderReport
    from .folders import ImageFolder as ImageFolder
    from .folders import Problem as Problem
    from .folders import scan_folder as scan_folder
    from .mask_folders import MaskFolderDataModule as MaskFolderDataModule
    from .masks import MaskFolder as MaskFolder
    from .masks import scan_masks as scan_masks
    from .segmentation import SegmentationDataModule as SegmentationDataModule
    from .segmentation import ShapesDataModule as ShapesDataModule
    from .segmentation import add_legend as add_legend
    from .segmentation import painted as painted
    from .segmentation import segmentation_transforms as segmentation_transforms
    from .shapes import Shapes as Shapes
    from .torchvision_datasets import wrap_dataset as wrap_dataset
    from .voc import VOCSegmentationDataModule as VOCSegmentationDataModule
    from .voc_boxes import VOCDetectionDataModule as VOCDetectionDataModule

CATALOGUE_MODULES = ("datamodules", "segmentation", "mask_folders", "voc", "detection", "coco", "voc_boxes")

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
