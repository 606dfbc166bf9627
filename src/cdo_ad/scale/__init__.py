"""Many categories and very many images: the work spread over the processes of a Ray cluster, or of one machine.

`sweep` trains and evaluates a run for each category, recipe and seed; `score` judges images wherever they are stored.
Both need the extra `scale`.
"""

from cdo_ad.scale.scoring import ScoreSummary, score
from cdo_ad.scale.sweeps import Outcome, Sweep, sweep

__all__ = ["Outcome", "ScoreSummary", "Sweep", "score", "sweep"]
