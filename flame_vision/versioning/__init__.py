"Checkpoints, and the registry of trained models."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from .checkpoint import LoadedCheckpoint as LoadedCheckpoint
    from .checkpoint import load_checkpoint as load_checkpoint
    from .checkpoint import read_checkpoint as read_checkpoint
    from .checkpoint import save_checkpoint as save_checkpoint
    from .files import atomic_write as atomic_write
    from .files import content_digest as content_digest
    from .manifest import Manifest as Manifest
    from .registry import ModelRegistry as ModelRegistry
    from .registry import ModelVersion as ModelVersion

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
