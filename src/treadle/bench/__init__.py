"""Measures tokens a second at fixed points and relates them to the machine's limits, probed in the same run."""
