"""Private names of other packages, in one place, with the versions that need them.

Nothing else in this package imports a name with a leading underscore from a dependency.
"""

from __future__ import annotations

# scvi-tools 1.4 and 1.5: no public spelling of what "auto" means for accelerator and devices.
from scvi.model._utils import parse_device_args

__all__ = ["parse_device_args"]
