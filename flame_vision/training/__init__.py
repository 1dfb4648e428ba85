"Lightning modules, tracking, and the trainer."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from .callbacks import BestCheckpoint as BestCheckpoint
    from .callbacks import Speed as Speed
    from .modules import ClassificationModule as ClassificationModule
    from .results import prove_reload as prove_reload
    from .segmentation import SegmentationModule as SegmentationModule
    from .tracking import create_loggers as create_loggers
    from .trainer import FitResult as FitResult
    from .trainer import fit as fit

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
