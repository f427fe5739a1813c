"""What other extensions hang on the model, distilled to what each goes by: rows, calls, or where it believes a call to lie in the picture."""

from itertools import pairwise
from types import MethodType, SimpleNamespace

import torch
from torch import nn

count, pn = 0, True  # NegPiP keeps them in its module, too: whether the call under way has the prompt


def layers(model):
    return [module for name, module in model.model.diffusion_model.named_modules() if name.endswith("attn2")]


class Script:
    """An extension's script that puts a forward onto every layer of cross-attention, and takes it off when it is told of the end."""

    args_from = args_to = 0
    active = True

    def __init__(self, model):
        self.model, self.ended = model, 0

    def title(self):
        return self.name

    def process(self, p):
        self.batch_size = p.batch_size
        self.put(p)

    def put(self, p):
        for layer in layers(self.model):
            layer.forward = self.hook(layer)

    def postprocess(self, p, processed, *args):
        self.ended += 1
        for layer in layers(self.model):
            layer.__dict__.pop("forward", None)


class NegPiP(Script):
    """Adds to the prompt's rows: the first half of two for each picture, or else every second call of the UNet."""

    name = "NegPiP"

    def process_before_every_sampling(self, p):
        pass

    def process_batch(self):
        return count, pn

    def tell_step(self):
        """At every callback of the host's denoiser."""
        global count, pn
        count, pn = 0, True

    def hook(self, layer):
        def forward(x, context):
            global count, pn
            own = type(layer).forward(layer, x, context)
            if len(x) == 2 * self.batch_size:
                own[: self.batch_size] += 1
                return own
            now = pn
            count += 1
            if count == len(layers(self.model)):
                count, pn = 0, not pn
            return own + 1 if now else own

        return forward


class RegionalPrompter(Script):
    """Makes every region of the prompt's rows brighter by a number of its own; the regions lie over a picture of `h` x `w` pixels.

    Pictures become that much brighter by the UNet's second channel; on the layers themselves it only looks at the size of what they see.
    """

    name = "Regional Prompter"
    diff = None

    def __init__(self, model, mode="Horizontal", bands=(), masks=(), values=()):
        super().__init__(model)
        self.mode, self.aratios, self.regmasks, self.values = mode, list(bands), list(masks), list(values)
        self.h = self.w = 0
        self.hr = self.in_hr = False

    def put(self, p):
        self.h, self.w = p.height, p.width
        unet = self.model.model.diffusion_model
        unet.forward = lambda x, context: torch.cat([type(unet).forward(unet, x, context), self.brighter(x)], dim=1)
        super().put(p)

    def postprocess(self, p, processed, *args):
        super().postprocess(p, processed, *args)
        self.model.model.diffusion_model.__dict__.pop("forward", None)

    def brighter(self, x):
        believed = (self.h // 8, self.w // 8)
        assert tuple(x.shape[-2:]) == believed, "the call shows another size than the extension believes"
        made = torch.zeros(len(x), 1, *believed)
        made[: len(x) // 2] = self.map(*believed)
        return made

    def hook(self, layer):
        return lambda x, context: type(layer).forward(layer, x, context)

    def map(self, rows, columns):
        """(rows, columns), put together region by region as the extension does it."""
        if "Mask" in self.mode:
            shrunk = [nn.functional.interpolate(mask[None].float(), (rows, columns), mode="nearest")[0, 0] for mask in self.regmasks]
            return sum(mask * value for mask, value in zip(shrunk, self.values, strict=True))
        upright = "Hor" not in self.mode
        out, inner = (columns, rows) if upright else (rows, columns)
        values, bands = iter(self.values), []
        for band in self.aratios:
            cells = [torch.full((int(out * band.ed) - int(out * band.st), int(inner * c.ed) - int(inner * c.st)), float(next(values))) for c in band.cols]
            bands.append(torch.cat(cells, 1))
        made = torch.cat(bands, 0)
        return made.T if upright else made


def cells(*edges, **more):
    """Regions between these edges, 0 to 1."""
    return [SimpleNamespace(st=a, ed=b, **more) for a, b in pairwise(edges)]


def listens_to_self_attention(model):
    """Put a listener onto a layer of self-attention, as Self-Attention Guidance does; returns the layer."""
    layer = nn.Linear(4, 4)
    layer.forward = MethodType(lambda self, x: nn.Linear.forward(self, x), layer)
    model.model.diffusion_model.middle_block[0].add_module("attn1", layer)
    return layer
