"""One self-contained HTML page about a run. Nothing imports this package but the command line."""

from cdo_ad.report.build import write_report

__all__ = ["write_report"]
