"""What the adapter relies on in Forge and its kin, beyond `contract.py`: `test_contract_forge.py` holds the double of Forge's seam, and checkouts of
these hosts, to it.

Forge at dfdcbab6 and Forge Neo 2.26 (package `backend`), Forge Classic at 1f95d717 and reForge at 3b56b268 (package `ldm_patched`).
"""

PATCHER = {"ModelPatcher.memory_required": "self input_shape", "ModelPatcher.set_model_unet_function_wrapper": "self unet_wrapper_function"}
MODEL = "self x t c_concat c_crossattn control transformer_options **kwargs"
CONTROL = "self x_noisy t cond batched_number"

# Root -> file -> functions and methods, with their parameters in order.
SIGNATURES = {
    "FORGE_ROOT": {
        "backend/patcher/base.py": PATCHER,
        "backend/patcher/unet.py": {"UnetPatcher.clone": "self", "UnetPatcher.list_controlnets": "self"},
        "backend/patcher/controlnet.py": {
            "ControlBase.cleanup": "self",
            "ControlBase.get_models": "self",
            "ControlBase.inference_memory_requirements": "self dtype",
            "ControlBase.pre_run": "self model percent_to_timestep_function",
            "ControlNet.get_control": CONTROL,
            "T2IAdapter.get_control": CONTROL,
        },
        "backend/modules/k_model.py": {"KModel.apply_model": MODEL, "KModel.memory_required": "self input_shape"},
        "backend/sampling/sampling_function.py": {
            "calc_cond_uncond_batch": "model cond uncond x_in timestep model_options",
            "sampling_cleanup": "unet",
            "sampling_function": "self denoiser_params cond_scale cond_composition",
            "sampling_prepare": "unet x",
        },
        "backend/modules/k_prediction.py": {
            "AbstractPrediction.calculate_input": "self sigma noise",
            "AbstractPrediction.noise_scaling": "self sigma noise latent_image max_denoise",
            "PredictionDiscreteFlow.timestep": "self sigma",
            "PredictionFlux.timestep": "self sigma",
        },
        "backend/nn/flux.py": {"IntegratedFluxTransformer2DModel.forward": "self x timestep context y guidance **kwargs"},
        "backend/nn/chroma.py": {"IntegratedChromaTransformer2DModel.forward": "self x timestep context **kwargs"},
        "backend/diffusion_engine/base.py": {"ForgeObjects.shallow_copy": "self"},
        "backend/text_processing/classic_engine.py": {
            "ClassicTextProcessingEngine.process_texts": "self texts",
            "ClassicTextProcessingEngine.tokenize": "self texts",
        },
        "backend/text_processing/textual_inversion.py": {"EmbeddingDatabase.find_embedding_at_position": "self tokens offset"},
        "modules/sd_models.py": {"forge_model_reload": ""},
    },
    "CLASSIC_ROOT": {
        "ldm_patched/modules/model_patcher.py": PATCHER,
        "modules_forge/unet_patcher.py": {"UnetPatcher.clone": "self", "UnetPatcher.list_controlnets": "self"},
        "ldm_patched/modules/controlnet.py": {"ControlNet.get_control": CONTROL, "T2IAdapter.get_control": CONTROL},
        "ldm_patched/modules/model_base.py": {"BaseModel.apply_model": MODEL, "BaseModel.memory_required": "self input_shape"},
        "ldm_patched/modules/samplers.py": {"calc_cond_uncond_batch": "model cond uncond x_in timestep model_options"},
        "modules_forge/forge_sampler.py": {"forge_sample": "self denoiser_params cond_scale cond_composition", "sampling_prepare": "unet x"},
        "modules/sd_models.py": {"reload_model_weights": "sd_model info forced_reload"},
    },
    "REFORGE_ROOT": {
        "ldm_patched/modules/model_patcher.py": PATCHER,
        "modules_forge/unet_patcher.py": {"UnetPatcher.list_controlnets": "self"},
        "ldm_patched/modules/controlnet.py": dict.fromkeys(("ControlNet.get_control", "T2IAdapter.get_control"), f"{CONTROL} transformer_options"),
        "ldm_patched/modules/model_base.py": {"BaseModel.memory_required": "self input_shape cond_shapes"},
        "modules_forge/forge_sampler.py": {"sampling_prepare": "unet x"},
        "modules/sd_models.py": {"reload_model_weights": "sd_model info forced_reload"},
    },
}

MODIFIED = "model, x, timestep, uncond, cond, cond_scale, model_options, seed = modifier("
CALLED = "model_options['model_function_wrapper'](model.apply_model, {'input': input_x, 'timestep': timestep_, 'c': c, 'cond_or_uncond': cond_or_uncond})"
ASKED = "unet.model_options.get('memory_peak_estimation_modifier', unet.memory_required)"

# Which UNet a sampler prepares, where the LoRAs that are on are left, and what of a UNet a checkpoint that is loaded again is given back.
PREPARED = ("self.model_wrap = self.model_wrap_cfg.inner_model", "unet_patcher = self.model_wrap.inner_model.forge_objects.unet")
NETWORKS = ("current_sd.forge_objects_after_applying_lora = current_sd.forge_objects.shallow_copy()",)
ATTACHED = (
    "self.controlnet_linked_list = None",
    "self.extra_concat_condition = None",
    "self.extra_preserved_memory_during_sampling = 0",
    "self.extra_model_patchers_during_sampling = []",
)
PATCHES = ("self.patches = {}", "self.object_patches = {}", "self.model_options = {'transformer_options': {}}")

# When Neo gives a checkpoint its shift: at the beginning of a pass.
SHIFTED = ("self.sd_model.set_shift(shift=self.distilled_cfg_scale)", "self.sd_model.set_shift(shift=self.hr_distilled_cfg)")
# What a prompt is to the networks without a vector beside it.
T5, GEMMA = "return self.text_processing_engine_t5(prompt)", "return self.text_processing_engine_gemma(prompt)"
# A network's places in its input: they begin anew in every call.
POSITIONS = ("torch.linspace(0, h_len - 1, steps=h_len", "torch.linspace(0, w_len - 1, steps=w_len")

# Root -> file -> what occurs in it, as Python writes its own syntax tree.
LINES = {
    "FORGE_ROOT": {
        "backend/sampling/sampling_function.py": (
            CALLED,
            MODIFIED,
            ASKED,
            "unet_patcher = self.inner_model.inner_model.forge_objects.unet",
            "process_cond(batch_size=x_in.shape[0], device=x_in.device, area=area)",
            "conds[0].concat(conds[1:])",
            "c1[k].can_concat(c2[k])",
            "c['control_model'] = control",
            "transformer_options['cond_mark']",
            "transformer_options['sigmas'] = timestep",
            "transformer_options['cond_indices'], transformer_options['uncond_indices']",
        ),
        "backend/modules/k_model.py": ("self.predictor", "self.diffusion_model = model"),
        "backend/modules/k_prediction.py": (
            "self.register_buffer('sigmas'",
            "self.prediction_type",
            "sigma * noise + (1.0 - sigma) * latent_image",
            "model_input - model_output * sigma",
            "super().__init__(sigma_data=1.0, prediction_type='const')",
            "sigma_data=1.0, prediction_type='const', shift=1.0",
        ),
        "backend/sampling/condition.py": ("y=Condition(pooled_output)", "result['model_conds']['guidance'] = Condition(cond['guidance'])"),
        "backend/diffusion_engine/flux.py": ("class Flux(ForgeDiffusionEngine)", "PredictionFlux(mu=1.0)"),
        "backend/diffusion_engine/chroma.py": ("class Chroma(ForgeDiffusionEngine)", "PredictionFlux(mu=1.0)", T5),
        "backend/nn/chroma.py": ("patch_size = 2", *POSITIONS),
        "backend/diffusion_engine/sd35.py": ("class StableDiffusion3(ForgeDiffusionEngine)", "PredictionDiscreteFlow(shift=3.0)", "self.is_sd3 = True"),
        "k_diffusion/sampling.py": ("isinstance(model.inner_model.predictor, PredictionFlux)",),
        "backend/args.py": ("dynamic_args = dict(",),
        "modules/sd_samplers_kdiffusion.py": (
            *PREPARED,
            "xi = self.model_wrap.predictor.noise_scaling(sigma_sched[0], noise, x, max_denoise=False)",
        ),
        "backend/diffusion_engine/sdxl.py": (
            "self.embedder = Timestep(256)",
            "self.embedder(torch.Tensor([crop_h])), self.embedder(torch.Tensor([crop_w]))",
            "self.text_processing_engine_l",
        ),
        "backend/diffusion_engine/sd15.py": ("self.is_sd1 = True", "self.text_processing_engine ="),
        "backend/nn/unet.py": ("self.heads = heads", "self.to_q = ", "self.to_k = ", "self.attn2 = "),
        "backend/patcher/base.py": ("self.lora_patches = {}", *PATCHES[1:]),
        "backend/patcher/unet.py": ATTACHED,
        "extensions-builtin/sd_forge_lora/networks.py": NETWORKS,
        "backend/patcher/controlnet.py": (
            "x_noisy.shape[0] != self.cond_hint.shape[0]",
            "self.cond_hint_original",
            "self.previous_controlnet",
            "self.control_input = None",
            "cnet.advanced_mask_weighting",
            "cnet.advanced_frame_weighting",
        ),
        "modules/sd_samplers_cfg_denoiser.py": ("fake_sigmas[sigma.round().long()", "sampling_function(self, denoiser_params=denoiser_params"),
        "modules/sd_samplers_common.py": ("cfg_denoiser.update_inner_model()",),
        "modules/processing.py": (
            "self.sd_model.forge_objects = self.sd_model.forge_objects_after_applying_lora.shallow_copy()",
            "hr_additional_modules: list = field(default=None)",
            "hr_cfg: float = 1.0",
            "hr_distilled_cfg: float = 3.5",
            "'Use same choices' not in self.hr_additional_modules",
        ),
        "modules/gradio_extensions.py": ("kwargs['js'] = kwargs['_js']",),
    },
    "CLASSIC_ROOT": {
        "extensions-builtin/Lora/networks.py": NETWORKS,
        "modules/sd_samplers_kdiffusion.py": PREPARED,
        "ldm_patched/modules/model_patcher.py": PATCHES,
        "modules_forge/unet_patcher.py": ATTACHED,
        "ldm_patched/modules/samplers.py": (CALLED, "c['control_model'] = control", "transformer_options['cond_mark']"),
        "modules_forge/forge_sampler.py": (MODIFIED, ASKED, "self.inner_model.inner_model.forge_objects.unet.model"),
        "ldm_patched/modules/model_base.py": ("self.model_sampling = ",),
        "ldm_patched/ldm/modules/attention.py": ("self.heads = heads", "self.to_q = ", "self.to_k = ", "self.attn2 = "),
        "modules_forge/forge_loader.py": ("sd_model.model.diffusion_model = forge_objects.unet.model.diffusion_model",),
        "modules/sd_samplers_cfg_denoiser.py": ("fake_sigmas[sigma.round().long()", "forge_sampler.forge_sample(self"),
        "modules/sd_samplers_common.py": ("cfg_denoiser.update_inner_model()",),
    },
    "REFORGE_ROOT": {
        "extensions-builtin/Lora/networks.py": NETWORKS,
        "modules/sd_samplers_kdiffusion.py": PREPARED,
        "ldm_patched/modules/model_patcher.py": (*PATCHES, "self.patches_uuid = uuid.uuid4()"),
        "modules_forge/unet_patcher.py": ATTACHED,
        "ldm_patched/modules/samplers.py": (
            CALLED,
            "v.size()",
            "transformer_options['cond_or_uncond']",
            "c['control'] = control.get_control(input_x, timestep_, c, len(cond_or_uncond), transformer_options)",
        ),
        "ldm_patched/modules/controlnet.py": (
            "x_noisy.shape[0] != self.cond_hint.shape[0]",
            "self.cond_hint_original",
            "self.latent_format = None",
            "self.extra_concat_orig = []",
            "self.control_input = None",
        ),
        "modules_forge/forge_sampler.py": (ASKED,),
        # Why it loads no SD3: what it makes for one has no `model`, and no text encoder of the three kinds that it goes on with.
        "modules_forge/forge_loader.py": (
            "is_sd3 = 'model.diffusion_model.x_embedder.proj.weight' in state_dict",
            "sd_model = torch.nn.Module()",
            "sd_model.model.diffusion_model = forge_objects.unet.model.diffusion_model",
            "raise NotImplementedError('Bad Clip Class Name:' + type(sd_model.cond_stage_model).__name__)",
        ),
        # Which makes flow models of any checkpoint: refused by its title, its modes and its first two arguments.
        "extensions-builtin/reForge-advanced_model_sampling/scripts/advanced_model_sampling_script.py": (
            "return 'Advanced Model Sampling for reForge'",
            "self.sampling_mode in ['SD3', 'Aura Flow', 'Flux']",
            "self.enabled, self.sampling_mode, self.discrete_sampling, ",
            "sampler.sample_img2img = patched_sample_img2img",
        ),
        "ldm_patched/modules/model_base.py": ("self.model_sampling = ",),
        "modules/sd_samplers_cfg_denoiser.py": (
            "fake_sigmas[sigma.round().long()",
            "model_options = self.inner_model.inner_model.forge_objects.unet.model_options",
            "model, x, sigma, uncond_patched, cond_patched, cond_scale, model_options, seed = modifier(model, x, sigma, uncond_patched, cond_patched,",
        ),
        "modules/sd_samplers_common.py": ("cfg_denoiser.update_inner_model()",),
    },
}

# Of Neo's samplers that add noise those that add it as rectified flow needs it, and by what they are told from Forge's.
NOISE_BY_SNR = ("euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "lcm")
SNR = "sigma_to_half_log_snr"

# Neo's are Forge's, but for these; it has no SD3.
SIGNATURES["NEO_ROOT"] = SIGNATURES["FORGE_ROOT"] | {
    "backend/nn/chroma.py": {"IntegratedChromaTransformer2DModel.forward": "self x timestep context guidance control transformer_options **kwargs"},
    "backend/nn/lumina.py": {"NextDiT.forward": "self x timesteps context num_tokens attention_mask transformer_options **kwargs"},
    "backend/nn/flux.py": {
        "IntegratedFluxTransformer2DModel.forward": "self x timestep context y guidance ref_latents control transformer_options **kwargs",
        "IntegratedFluxTransformer2DModel.process_img": "self x index h_offset w_offset",
    },
    "backend/diffusion_engine/base.py": {"ForgeObjects.shallow_copy": "self", "ForgeDiffusionEngine.set_shift": "self shift"},
    "backend/modules/k_prediction.py": SIGNATURES["FORGE_ROOT"]["backend/modules/k_prediction.py"]
    | {"PredictionDiscreteFlow.set_parameters": "self shift multiplier timesteps"},
    "modules_forge/packages/k_diffusion/external.py": {"ForgeScheduleLinker.__init__": "self predictor"},
    "modules_forge/packages/k_diffusion/sampling.py": {SNR: "sigma model_sampling", "_is_const": "sampling"},
    "backend/sampling/sampling_function.py": SIGNATURES["FORGE_ROOT"]["backend/sampling/sampling_function.py"]
    | {"sampling_function": "self denoiser_params cond_scale cond_composition extra_model_options"},
}
LINES["NEO_ROOT"] = {file: lines for file, lines in LINES["FORGE_ROOT"].items() if "sd35" not in file and not file.startswith("k_diffusion/")} | {
    "backend/sampling/sampling_function.py": (
        *(line for line in LINES["FORGE_ROOT"]["backend/sampling/sampling_function.py"] if line != ASKED),
        "unet.memory_required(",  # the clone itself
    ),
    "backend/modules/k_prediction.py": (
        "self.register_buffer('sigmas'",
        "self.prediction_type",
        "sigma * (noise_scale * noise) + (1.0 - sigma) * latent_image",
        "model_input - model_output * sigma",
        "super().__init__(sigma_data=None, prediction_type='const')",
    ),
    "backend/patcher/base.py": (*PATCHES, "self.patches_uuid = uuid.uuid4()"),
    "backend/diffusion_engine/flux.py": (
        "class Flux(ForgeDiffusionEngine)",
        "if not dynamic_args.kontext:\n                dynamic_args.ref_latents.clear()",  # so that only Kontext has references
    ),
    "backend/diffusion_engine/chroma.py": ("class Chroma(ForgeDiffusionEngine)", "k_predictor = self._get_predictor()", T5),
    "backend/diffusion_engine/lumina.py": ("class Lumina2(ForgeDiffusionEngine)", "k_predictor = self._get_predictor()", GEMMA, "self.use_shift = True"),
    "backend/diffusion_engine/zimage.py": ("class ZImage(ForgeDiffusionEngine)", "k_predictor = self._get_predictor()", GEMMA, "self.use_shift = True"),
    "backend/diffusion_engine/sdxl.py": (
        *LINES["FORGE_ROOT"]["backend/diffusion_engine/sdxl.py"],
        "k_predictor = PredictionDiscreteFlow(estimated_config)",
        "self.use_shift = True",
    ),
    "backend/diffusion_engine/mugen.py": ("class Mugen(ForgeDiffusionEngine)", "self.embedder = Timestep(256)", "self.is_sdxl = True", "self.use_shift = True"),
    "backend/text_processing/gemma_engine.py": ("negative: bool", "return zs"),
    "backend/text_processing/qwen3_engine.py": ("return zs",),
    "backend/nn/chroma.py": POSITIONS,
    "backend/nn/lumina.py": ("x_pos_ids[:, :, 1] = torch.arange(H_tokens", "x_pos_ids[:, :, 2] = torch.arange(W_tokens", "pad_to_patch_size(x, "),
    "backend/diffusion_engine/base.py": ("self.use_shift = False", "predictor.set_parameters(shift=shift)"),
    "backend/args.py": ("def get(cls, key, default=None)", "kontext: bool = False"),
    "backend/loader.py": ("dynamic_args.kontext = 'kontext' in str(sd).lower()",),
    "modules_forge/packages/k_diffusion/sampling.py": (
        "if _is_const(model.inner_model.predictor)",
        "return sampling.prediction_type == 'const'",
        "model.inner_model.predictor.noise_scaling(sigmas[i + 1]",
    ),
    "modules/sd_samplers_kdiffusion.py": (
        *LINES["FORGE_ROOT"]["modules/sd_samplers_kdiffusion.py"],
        "self.model_wrap = k_diffusion.external.ForgeScheduleLinker(shared.sd_model.forge_objects.unet.model.predictor)",
        "self.model_wrap.sigmas[0].item(), self.model_wrap.sigmas[-1].item()",
    ),
    "modules/gradio_extensions.py": ("kwargs['js'] = kwargs.pop('_js')",),
    "modules/processing.py": (*LINES["FORGE_ROOT"]["modules/processing.py"], "self.nmask = self.nmask[None, :, :, :]", *SHIFTED),
}

# What `get_sigmas` of any of them reads of a job: Neo asks which family a checkpoint is of, and for one schedule how large the picture will be.
SCHEDULES_READ = {"is_hr_pass", "scheduler", "hr_scheduler", "sampler_noise_scheduler_override", "extra_generation_params"}
SCHEDULES_READ |= {"sd_model", "width", "height", "hr_upscale_to_x", "hr_upscale_to_y"}

# What of `contract.py` is another one there: root -> file -> names, each with its parameters.
FORGE = {
    "modules/images.py": {"resize_image": "resize_mode im width height upscaler_name force_RGBA"},
    "modules/prompt_parser.py": {"SdConditioning.__init__": "self prompts is_negative_prompt width height copy_from distilled_cfg_scale"},
    "modules/scripts.py": {"PostprocessImageArgs.__init__": "self image index"},
    "modules/sd_samplers_common.py": {"apply_refiner": "cfg_denoiser x"},
}
NEO = FORGE | {
    "modules/devices.py": {"autocast": "*args **kwargs"},
    "modules/processing.py": {"StableDiffusionProcessing.save_samples": "self is_video"},
    "modules/prompt_parser.py": FORGE["modules/prompt_parser.py"] | {"get_learned_conditioning_prompt_schedules": "prompts base_steps hires_steps"},
    "modules/sd_samplers_cfg_denoiser.py": {"CFGDenoiser.forward": "self x sigma uncond cond cond_scale s_min_uncond image_cond **kwargs"},
    "modules/sd_samplers_common.py": {"apply_refiner": "cfg_denoiser x sigma"},
}
OTHERS = {"FORGE_ROOT": FORGE, "NEO_ROOT": NEO}
# And what is not asked for: 1.10.1's alone, or written in another way (an attribute of the class, a class factory).
NOT_ASKED = {"modules/ui_components.py": ("InputAccordion.__init__",), "modules/sd_models.py": ("reload_model_weights",)}
