"""fc.secagg: secure aggregation for any transport (fedcore/privacy/secagg)."""

from fedcore.privacy.secagg import *  # noqa: F403
from fedcore.privacy.secagg import __all__ as __all__
