import torch
from modules import prompt_parser, script_callbacks, sd_samplers_common, shared


def _part(cond, rows):
    return {key: value[rows] for key, value in cond.items()} if isinstance(cond, dict) else cond[rows]


def _joined(conds):
    return {key: torch.cat([c[key] for c in conds]) for key in conds[0]} if isinstance(conds[0], dict) else torch.cat(conds)


def _arguments(cond, image_cond):
    text = cond if isinstance(cond, dict) else {"c_crossattn": [cond]}
    return {**text, "c_concat": [image_cond]}


def _tell():
    script_callbacks.steps_told.append((shared.state.sampling_step, shared.state.sampling_steps))


class CFGDenoiser(torch.nn.Module):
    """Guidance around the model; masks and previews where the host has them."""

    mask_before_denoising = False

    def __init__(self, sampler):
        super().__init__()
        self.sampler, self.model_wrap, self.p, self.step = sampler, None, None, 0
        self.mask = self.nmask = self.init_latent = None

    @property
    def inner_model(self):
        raise NotImplementedError

    def update_inner_model(self):
        self.model_wrap = None
        self.sampler.sampler_extra_args["cond"], self.sampler.sampler_extra_args["uncond"] = self.p.get_conds()

    def clean(self, x, out, sigma):
        return out

    def blend(self, latent):
        return latent * self.nmask + self.init_latent * self.mask

    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        if shared.state.interrupted or shared.state.skipped:
            raise sd_samplers_common.InterruptedException
        if sd_samplers_common.apply_refiner(self, sigma):
            cond, uncond = self.sampler.sampler_extra_args["cond"], self.sampler.sampler_extra_args["uncond"]
        if self.mask_before_denoising and self.mask is not None:
            x = self.blend(x)
        parts, cond = prompt_parser.reconstruct_multicond_batch(cond, self.step)
        owners = [picture for picture, of_picture in enumerate(parts) for _ in of_picture] + list(range(len(x)))
        x_in, sigma_in, image_in = x[owners], sigma[owners], image_cond[owners]
        uncond = torch.cat([uncond, uncond[:, -1:].repeat(1, cond.shape[1] - uncond.shape[1], 1)], dim=1)
        both = _joined([cond, uncond])
        _tell()
        batch = len(owners) if shared.opts.batch_cond_uncond else len(x)
        out = torch.zeros_like(x_in)
        for start in range(0, len(out), batch):
            rows = slice(start, start + batch)
            out[rows] = self.inner_model(x_in[rows], sigma_in[rows], cond=_arguments(_part(both, rows), image_in[rows]))
        _tell()
        without = out[-len(x) :]
        guided = without.clone()
        for picture, of_picture in enumerate(parts):
            for row, weight in of_picture:
                guided[picture] += (out[row] - without[picture]) * (weight * cond_scale)
        with_prompt = torch.stack([out[of_picture[0][0]] for of_picture in parts])
        if not self.mask_before_denoising and self.mask is not None:
            guided = self.blend(guided)
        self.sampler.last_latent = self.clean(x, with_prompt, sigma)
        self.step += 1
        return guided
