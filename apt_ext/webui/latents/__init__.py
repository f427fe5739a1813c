"""Pictures and latents: sizes, sources, enlarging, the VAE, colours, saving."""
