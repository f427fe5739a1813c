"""The speed benchmark: evaluations, the engine's own time and memory, and how near it is to the bare model."""
