"""Self-contained pages about runs. Nothing imports this package but the command line."""

from cdo_ad.reporting.build import write_report
from cdo_ad.reporting.compare import write_comparison

__all__ = ["write_comparison", "write_report"]
