"""Self-contained pages about runs. Nothing imports this package but the command line."""

from cdo_ad.report.build import write_report
from cdo_ad.report.compare import write_comparison

__all__ = ["write_comparison", "write_report"]
