"""Phases, sign-off and their evidence: what `treadle gate` runs and records, in a checkout of treadle's sources."""
