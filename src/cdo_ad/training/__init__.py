"""From good images to a run folder."""
