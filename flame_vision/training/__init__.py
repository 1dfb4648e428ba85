"Lightning modules, tracking, and the trainer."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from .average_precision import AveragePrecision as AveragePrecision
    from .callbacks import BestCheckpoint as BestCheckpoint
    from .callbacks import Pictures as Pictures
    from .callbacks import Speed as Speed
    from .checkpoints import SafeCheckpoint as SafeCheckpoint
    from .checkpoints import SafeCheckpointIO as SafeCheckpointIO
    from .classification import ClassificationModule as ClassificationModule
    from .detection import DetectionModule as DetectionModule
    from .hardest import TopLosses as TopLosses
    from .hardest import examples_at as examples_at
    from .hardest import top_losses as top_losses
    from .lightning_files import LightningImport as LightningImport
    from .lightning_files import import_lightning_checkpoint as import_lightning_checkpoint
    from .lightning_files import read_lightning_checkpoint as read_lightning_checkpoint
    from .modules import Example as Example
    from .modules import TaskModule as TaskModule
    from .modules import list_tasks as list_tasks
    from .modules import register_task as register_task
    from .results import prove_reload as prove_reload
    from .segmentation import SegmentationModule as SegmentationModule
    from .segmentation import segmentation_scores as segmentation_scores
    from .tracking import create_loggers as create_loggers
    from .trainer import FitResult as FitResult
    from .trainer import fit as fit

CATALOGUE_MODULES: tuple[str, ...] = ("classification", "segmentation", "detection")

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
