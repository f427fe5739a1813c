"""The double of the host's package."""
