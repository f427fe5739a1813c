"""The two kinds of job and how the host takes them through their passes."""

from dataclasses import dataclass, field

import numpy as np
import torch
from modules import devices, extra_networks, images, prompt_parser, rng, sd_hijack, sd_models, sd_samplers, sd_samplers_common, shared
from PIL import Image

FACTOR = 8


class DecodedSamples(list):
    already_decoded = True


def decode_latent_batch(model, batch, target_device=None, check_for_nans=False):
    if check_for_nans and batch.isnan().any():
        raise RuntimeError("not a number")
    return DecodedSamples(sd_samplers_common.decode_first_stage(model, one[None])[0].to(target_device) for one in batch)


def create_infotext(
    p,
    all_prompts,
    all_seeds,
    all_subseeds,
    comments=None,
    iteration=0,
    position_in_batch=0,
    use_main_prompt=False,
    index=None,
    all_negative_prompts=None,
):
    params = {"Seed": all_seeds[index], "Negative": all_negative_prompts[index], **p.extra_generation_params}
    return f"{all_prompts[index]}\n" + ", ".join(f"{name}: {value}" for name, value in params.items() if value is not None)


class Processed:
    def __init__(self, p, images_list):
        self.images, self.infotexts = images_list, []


@dataclass
class StableDiffusionProcessing:
    outpath_samples: str = "out"
    prompt: str = "a leaf"
    negative_prompt: str = "blurry"
    seed: int = 11
    subseed: int = 0
    subseed_strength: float = 0.0
    seed_resize_from_h: int = 0
    seed_resize_from_w: int = 0
    sampler_name: str = "euler"
    scheduler: str = "Automatic"
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 4
    cfg_scale: float = 3.0
    width: int = 64
    height: int = 64
    tiling: bool = False
    eta: float = None
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = float("inf")
    do_not_save_samples: bool = True
    denoising_strength: float = 0.6
    is_api: bool = False
    scripts: object = None
    sampler: object = None
    paste_to: tuple = None
    is_hr_pass: bool = False
    extra_generation_params: dict = field(default_factory=dict)
    comments: dict = field(default_factory=dict)
    disable_extra_networks: bool = False
    extra_network_data: dict = None
    all_prompts: list = None
    all_seeds: list = None
    prompts: list = None
    negative_prompts: list = None
    seeds: list = None
    subseeds: list = None
    rng: object = None
    iteration: int = 0
    batch_index: int = 0
    firstpass_steps: int = 0
    c: object = None
    firstpass_image: object = None
    refiner_checkpoint_info: object = None
    refiner_switch_at: float = None

    sampler_noise_scheduler_override = None
    mask = None

    @property
    def script_args(self):
        return () if self.scripts is None else self.scripts.args

    @script_args.setter
    def script_args(self, args):
        self.scripts.args = args

    def comment(self, text):
        self.comments[text] = 1

    def save_samples(self):
        return not self.do_not_save_samples

    def conditioning(self, prompts, steps, hires_steps=None):
        """(prompts, negative prompts) as the sampler takes them."""
        made = prompt_parser.get_multicond_learned_conditioning(shared.sd_model, prompts, steps, hires_steps)
        return made, torch.full((len(prompts), 77, shared.sd_model.cond_stage_model.width), -0.5)

    def parse_extra_network_prompts(self):
        self.prompts, self.extra_network_data = extra_networks.parse_prompts(self.prompts)
        if hasattr(self, "hr_extra_network_data"):
            self.hr_prompts, self.hr_extra_network_data = extra_networks.parse_prompts(self.hr_prompts)

    def setup_conds(self):
        """Of the pass that runs, by the loaded checkpoint."""
        hr = self.is_hr_pass
        self.c = self.conditioning(self.hr_prompts if hr else self.prompts, self.firstpass_steps, (self.hr_second_pass_steps or self.steps) if hr else None)

    def get_conds(self):
        return self.c

    def tell_scripts(self, x, noise, c, uc):
        if self.scripts is not None:
            self.scripts.process_before_every_sampling(p=self, x=x, noise=noise, c=c, uc=uc)

    def noise_source(self, shape):
        more = {"subseeds": self.subseeds, "subseed_strength": self.subseed_strength}
        return rng.ImageRNG(shape, self.seeds, **more, seed_resize_from_h=self.seed_resize_from_h, seed_resize_from_w=self.seed_resize_from_w)


@dataclass
class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_prompt: str = ""
    hr_prompts: list = None
    hr_extra_network_data: list = None
    hr_upscaler: str = None
    hr_second_pass_steps: int = 0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_sampler_name: str = None
    hr_scheduler: str = None
    hr_checkpoint_info: object = None
    hr_upscale_to_x: int = 0
    hr_upscale_to_y: int = 0
    truncate_x: int = 0
    truncate_y: int = 0
    latent_scale_mode: dict = None

    def init(self, all_prompts, all_seeds, all_subseeds):
        if not self.enable_hr:
            return
        mode = shared.latent_upscale_default_mode if self.hr_upscaler is None else self.hr_upscaler
        self.latent_scale_mode = shared.latent_upscale_modes.get(mode)
        if self.latent_scale_mode is None and not any(one.name == mode for one in shared.sd_upscalers):
            raise RuntimeError(f"could not find upscaler named {mode}")
        width, height = (self.hr_resize_x, self.hr_resize_y) if self.hr_resize_x else (int(self.width * self.hr_scale), int(self.height * self.hr_scale))
        if self.hr_resize_x and self.hr_resize_y:
            ratio = max(width / self.width, height / self.height)
            self.hr_upscale_to_x, self.hr_upscale_to_y = int(self.width * ratio + 1e-6), int(self.height * ratio + 1e-6)
        else:
            self.hr_upscale_to_x, self.hr_upscale_to_y = width, height
        self.truncate_x, self.truncate_y = (self.hr_upscale_to_x - width) // FACTOR, (self.hr_upscale_to_y - height) // FACTOR
        if not shared.state.processing_has_refined_job_count:
            shared.state.job_count = 2 * (self.n_iter if shared.state.job_count == -1 else shared.state.job_count)
            shared.state.processing_has_refined_job_count = True

    def sample(self, conditioning, unconditional_conditioning, seeds, subseeds, subseed_strength, prompts):
        self.sampler = sd_samplers.create_sampler(self.sampler_name, shared.sd_model)
        if self.firstpass_image is not None:
            decoded = torch.from_numpy(np.array(self.firstpass_image)).permute(2, 0, 1)[None] / 127.5 - 1
            return self.sample_hr_pass(None, decoded, seeds, subseeds, subseed_strength, prompts)
        x = self.rng.next()
        self.tell_scripts(x, x, conditioning, unconditional_conditioning)
        samples = self.sampler.sample(self, x, conditioning, unconditional_conditioning, image_conditioning=x.new_zeros(len(x), 5, 1, 1))
        if not self.enable_hr:
            return samples
        decoded = None if self.latent_scale_mode else torch.stack(decode_latent_batch(shared.sd_model, samples, devices.cpu))
        return self.sample_hr_pass(samples, decoded, seeds, subseeds, subseed_strength, prompts)

    def sample_hr_pass(self, samples, decoded_samples, seeds, subseeds, subseed_strength, prompts):
        if shared.state.interrupted:
            return samples
        sd_models.reload_model_weights(info=self.hr_checkpoint_info)
        self.is_hr_pass = True
        self.sampler = sd_samplers.create_sampler(self.hr_sampler_name or self.sampler_name, shared.sd_model)
        size = (self.hr_upscale_to_y // FACTOR, self.hr_upscale_to_x // FACTOR)
        if self.latent_scale_mode is None:
            levels = ((decoded_samples + 1) / 2).clamp(0, 1).mul(255).permute(0, 2, 3, 1).to(torch.uint8).numpy()
            larger = [images.resize_image(0, Image.fromarray(one), size[1] * FACTOR, size[0] * FACTOR, upscaler_name=self.hr_upscaler) for one in levels]
            pixels = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) / 255 for one in larger])
            samples = sd_samplers_common.images_tensor_to_samples(pixels, 0, shared.sd_model)
        else:
            samples = torch.nn.functional.interpolate(samples, size=size, **self.latent_scale_mode)
        shared.state.nextjob()
        top, left = self.truncate_y // 2, self.truncate_x // 2
        samples = samples[..., top : top + size[0] - self.truncate_y, left : left + size[1] - self.truncate_x]
        self.rng = self.noise_source(samples.shape[1:])
        noise = self.rng.next()
        steps = self.hr_second_pass_steps or self.steps
        extra_networks.activate(self, self.hr_extra_network_data)
        c, uc = self.conditioning(self.hr_prompts, self.firstpass_steps, steps)
        image = noise.new_zeros(len(noise), 5, 1, 1)
        self.tell_scripts(samples, noise, c, uc)
        samples = self.sampler.sample_img2img(self, samples, noise, c, uc, steps=self.hr_second_pass_steps or self.steps, image_conditioning=image)
        self.sampler = None
        decoded = decode_latent_batch(shared.sd_model, samples, target_device=devices.cpu, check_for_nans=True)
        self.is_hr_pass = False
        return decoded


@dataclass
class StableDiffusionProcessingImg2Img(StableDiffusionProcessing):
    init_images: list = None
    resize_mode: int = 0
    mask: object = None
    nmask: object = None
    image_mask: object = None
    inpainting_fill: int = 1
    inpaint_full_res: bool = False
    initial_noise_multiplier: float = 1.0
    init_latent: torch.Tensor = None
    image_conditioning: torch.Tensor = None

    def init(self, all_prompts, all_seeds, all_subseeds):
        self.sampler = sd_samplers.create_sampler(self.sampler_name, shared.sd_model)
        pictures = [images.resize_image(0 if self.resize_mode == 3 else self.resize_mode, one, self.width, self.height) for one in self.init_images]
        pixels = torch.stack([torch.from_numpy(np.array(one.convert("RGB"))).permute(2, 0, 1) / 255 for one in pictures])
        latents = sd_samplers_common.images_tensor_to_samples(pixels, 0, shared.sd_model)
        self.init_latent = latents.repeat(self.batch_size, 1, 1, 1) if len(latents) == 1 else latents
        if self.image_mask is not None:
            mask = np.asarray(self.image_mask.convert("L").resize((self.width // FACTOR, self.height // FACTOR), Image.Resampling.NEAREST))
            self.nmask = torch.from_numpy((mask > 127).astype(np.float32))[None].repeat(latents.shape[1], 1, 1)
            self.mask = 1 - self.nmask
        self.image_conditioning = self.init_latent.new_zeros(len(self.init_latent), 5, 1, 1)

    def sample(self, conditioning, unconditional_conditioning, seeds, subseeds, subseed_strength, prompts):
        x = self.rng.next() * self.initial_noise_multiplier
        self.tell_scripts(self.init_latent, x, conditioning, unconditional_conditioning)
        image = self.image_conditioning
        samples = self.sampler.sample_img2img(self, self.init_latent, x, conditioning, unconditional_conditioning, image_conditioning=image)
        return samples if self.mask is None else samples * self.nmask + self.init_latent * self.mask


def process_images(p):
    """All batches of a job, as pictures; `p` keeps what the last one left."""
    if p.scripts is not None:
        p.scripts.before_process(p)
    sd_hijack.model_hijack.apply_circular(p.tiling)
    count = p.batch_size * p.n_iter
    p.all_seeds, subseeds = [p.seed + k for k in range(count)], [p.subseed + k for k in range(count)]
    processed = Processed(p, [])
    with torch.no_grad():
        if p.scripts is not None:
            p.scripts.process(p)
        p.init([p.prompt] * count, p.all_seeds, subseeds)
        if shared.state.job_count == -1:
            shared.state.job_count = p.n_iter
        for n in range(p.n_iter):
            rows = slice(n * p.batch_size, (n + 1) * p.batch_size)
            p.iteration, p.firstpass_steps = n, p.steps
            p.prompts, p.negative_prompts = [p.prompt] * p.batch_size, [p.negative_prompt] * p.batch_size
            p.hr_prompts = [getattr(p, "hr_prompt", "") or p.prompt] * p.batch_size
            p.seeds, p.subseeds = p.all_seeds[rows], subseeds[rows]
            p.rng = p.noise_source((shared.sd_model.latent_channels, p.height // FACTOR, p.width // FACTOR))
            sd_models.reload_model_weights()
            p.parse_extra_network_prompts()
            extra_networks.activate(p, p.extra_network_data)
            p.setup_conds()
            samples = p.sample(*p.c, p.seeds, p.subseeds, p.subseed_strength, p.prompts)
            if p.scripts is not None:
                from modules.scripts import PostSampleArgs

                args = PostSampleArgs(samples)
                p.scripts.post_sample(p, args)
                samples = args.samples
            if not getattr(samples, "already_decoded", False):
                samples = decode_latent_batch(shared.sd_model, samples, target_device=devices.cpu, check_for_nans=True)
            shared.state.nextjob()
            finished = ((torch.stack(list(samples)).float() + 1) / 2).clamp(0, 1)
            if p.scripts is not None:
                p.scripts.postprocess_batch(p, finished, batch_number=n)
            for p.batch_index, one in enumerate(finished):
                picture = Image.fromarray((one * 255).permute(1, 2, 0).to(torch.uint8).numpy())
                if p.scripts is not None:
                    from modules.scripts import PostprocessImageArgs

                    args = PostprocessImageArgs(picture)
                    p.scripts.postprocess_image(p, args)
                    picture = args.image
                processed.images.append(picture)
                processed.infotexts.append(create_infotext(p, p.prompts, p.seeds, p.subseeds, index=p.batch_index, all_negative_prompts=p.negative_prompts))
    if p.scripts is not None:
        p.scripts.postprocess(p, processed)
    return processed.images
