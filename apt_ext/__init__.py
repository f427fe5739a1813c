"""Patch-fusion upscaling with Adaptive Path Tracing."""

__version__ = "0.1.0"
