"""A pass of the host's, run phase by phase with the engine inside."""
