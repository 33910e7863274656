"""From a checkpoint to verified plans: the only layer that knows models by name."""
