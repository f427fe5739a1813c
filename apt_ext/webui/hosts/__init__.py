"""Which host this is."""
