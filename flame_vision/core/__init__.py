"The ground floor: errors, names, shapes, weights and counts."
from typing import TYPE_CHECKING

from flame_vision.core.lazy import lazy_exports

if TYPE_CHECKING:
    from .errors import CheckpointError as CheckpointError
    from .errors import ConfigError as ConfigError
    from .errors import DataError as DataError
    from .errors import FlameVisionError as FlameVisionError
    from .errors import MissingExtraError as MissingExtraError
    from .errors import MissingPathError as MissingPathError
    from .errors import RegistryError as RegistryError
    from .errors import ShapeError as ShapeError
    from .errors import TamperedError as TamperedError
    from .errors import UnknownArgumentError as UnknownArgumentError
    from .errors import UnknownNameError as UnknownNameError
    from .errors import VersionExistsError as VersionExistsError
    from .errors import VersionNotFoundError as VersionNotFoundError
    from .errors import WeightsError as WeightsError
    from .names import Catalogue as Catalogue

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
