"""Large pictures through an autoencoder in tiles."""
