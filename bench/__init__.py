"""Benchmarks: one command each, figures into JSON, tables for the docs out of it."""
