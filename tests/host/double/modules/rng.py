import torch


class ImageRNG:
    """Noise of each picture from a generator of its own."""

    def __init__(self, shape, seeds, subseeds=None, subseed_strength=0.0, seed_resize_from_h=0, seed_resize_from_w=0):
        self.shape = tuple(shape)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.others = [torch.Generator().manual_seed(seed) for seed in subseeds or seeds]
        self.strength = subseed_strength

    def next(self):
        noise = torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])
        if not self.strength:
            return noise
        other = torch.stack([torch.randn(self.shape, generator=g) for g in self.others])
        strength, self.strength = self.strength, 0
        return (1 - strength) ** 0.5 * noise + strength**0.5 * other
