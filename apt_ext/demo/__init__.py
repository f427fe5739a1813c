"""The embedded model and its command line: the core at work without a GPU or a host."""
