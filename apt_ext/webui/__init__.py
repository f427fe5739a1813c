"""The adapter for AUTOMATIC1111's Stable Diffusion WebUI 1.10.1: the only place that knows the host."""
