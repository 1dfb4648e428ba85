"The ground floor: errors, names, shapes, weights and counts."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from .cost import LayerSummary as LayerSummary
    from .cost import ModelSummary as ModelSummary
    from .cost import summary as summary
    from .errors import CheckpointError as CheckpointError
    from .errors import ConfigError as ConfigError
    from .errors import DataError as DataError
    from .errors import FlameVisionError as FlameVisionError
    from .errors import MissingExtraError as MissingExtraError
    from .errors import MissingPathError as MissingPathError
    from .errors import RegistryError as RegistryError
    from .errors import ShapeError as ShapeError
    from .errors import StoppedError as StoppedError
    from .errors import StoreError as StoreError
    from .errors import TamperedError as TamperedError
    from .errors import TrainingError as TrainingError
    from .errors import UnknownArgumentError as UnknownArgumentError
    from .errors import UnknownNameError as UnknownNameError
    from .errors import VersionExistsError as VersionExistsError
    from .errors import VersionNotFoundError as VersionNotFoundError
    from .errors import WeightsError as WeightsError
    from .errors import require as require
    from .key_maps import KeyMap as KeyMap
    from .key_maps import Rule as Rule
    from .key_maps import concat as concat
    from .key_maps import derive as derive
    from .key_maps import drop as drop
    from .key_maps import keep as keep
    from .key_maps import rename as rename
    from .key_maps import reshape as reshape
    from .key_maps import split as split
    from .names import Catalogue as Catalogue
    from .names import did_you_mean as did_you_mean
    from .pretrained import Provenance as Provenance
    from .pretrained import find_pretrained as find_pretrained
    from .pretrained import load_pretrained as load_pretrained
    from .shapes import ShapeMixin as ShapeMixin
    from .shapes import TensorSpec as TensorSpec
    from .shapes import forget_shapes as forget_shapes
    from .shapes import get_output_shape as get_output_shape
    from .shapes import get_output_specs as get_output_specs
    from .weights import LoadReport as LoadReport
    from .weights import export_weights as export_weights
    from .weights import load_weights as load_weights
    from .weights import read_weights as read_weights

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
