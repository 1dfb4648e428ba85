"Checkpoints, and the registry of trained models."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from .archives import archive_folder as archive_folder
    from .archives import write_archive as write_archive
    from .cards import model_card as model_card
    from .checkpoint import read_checkpoint as read_checkpoint
    from .checkpoint import save_checkpoint as save_checkpoint
    from .differences import VersionDiff as VersionDiff
    from .differences import diff_versions as diff_versions
    from .files import atomic_write as atomic_write
    from .files import content_digest as content_digest
    from .hub_models import pull_from_hub as pull_from_hub
    from .hub_models import push_to_hub as push_to_hub
    from .lineage import Lineage as Lineage
    from .lineage import lineage_of as lineage_of
    from .loading import CheckpointReport as CheckpointReport
    from .loading import LoadedCheckpoint as LoadedCheckpoint
    from .loading import load_checkpoint as load_checkpoint
    from .manifest import Manifest as Manifest
    from .registry import ModelRegistry as ModelRegistry
    from .registry import ModelVersion as ModelVersion
    from .wandb_artifacts import pull_from_wandb as pull_from_wandb
    from .wandb_artifacts import push_to_wandb as push_to_wandb

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
