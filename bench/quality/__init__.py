"""The quality benchmark: every setting on pictures whose true large versions are known."""
