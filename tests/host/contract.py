"""What the adapter relies on in the host, version 1.10.1: `tests/host/test_contract.py` holds the double, and a checkout of the host, to it."""

# File -> functions and methods, with their parameters in order.
SIGNATURES = {
    "modules/devices.py": {"autocast": "disable", "torch_gc": ""},
    "modules/errors.py": {"report": "message exc_info"},
    "modules/extra_networks.py": {"activate": "p extra_network_data"},
    "modules/images.py": {
        "flatten": "img bgcolor",
        "get_font": "fontsize",
        "read_info_from_image": "image",
        "resize_image": "resize_mode im width height upscaler_name",
        "save_image": "image path basename seed prompt extension info short_filename no_prompt grid pnginfo_section_name p existing_info"
        " forced_filename suffix save_to_dirs",
    },
    "modules/infotext_utils.py": {"PasteField.__new__": "cls component target api", "parse_generation_parameters": "x skip_fields"},
    "modules/options.py": {
        "OptionInfo.__init__": "self default label component component_args onchange section refresh comment_before comment_after infotext"
        " restrict_api category_id",
        "OptionInfo.info": "self info",
        "Options.add_option": "self key info",
    },
    "modules/processing.py": {
        "StableDiffusionProcessing.comment": "self text",
        "StableDiffusionProcessing.save_samples": "self",
        "StableDiffusionProcessingImg2Img.init": "self all_prompts all_seeds all_subseeds",
        "StableDiffusionProcessingTxt2Img.init": "self all_prompts all_seeds all_subseeds",
        "StableDiffusionProcessingTxt2Img.sample_hr_pass": "self samples decoded_samples seeds subseeds subseed_strength prompts",
        "create_infotext": "p all_prompts all_seeds all_subseeds comments iteration position_in_batch use_main_prompt index all_negative_prompts",
        "decode_latent_batch": "model batch target_device check_for_nans",
        "process_images": "p",
    },
    "modules/prompt_parser.py": {
        "SdConditioning.__init__": "self prompts is_negative_prompt width height copy_from",
        "get_learned_conditioning_prompt_schedules": "prompts base_steps hires_steps use_old_scheduling",
        "get_multicond_prompt_list": "prompts",
        "parse_prompt_attention": "text",
        "reconstruct_multicond_batch": "c current_step",
    },
    "modules/rng.py": {
        "ImageRNG.__init__": "self shape seeds subseeds subseed_strength seed_resize_from_h seed_resize_from_w",
        "ImageRNG.next": "self",
    },
    "modules/script_callbacks.py": {
        "on_app_started": "callback name",
        "on_before_ui": "callback name",
        "on_ui_settings": "callback name",
    },
    "modules/scripts.py": {
        "PostSampleArgs.__init__": "self samples",
        "PostprocessImageArgs.__init__": "self image",
        "Script.after_component": "self component **kwargs",
        "Script.before_process": "self p *args",
        "Script.elem_id": "self item_id",
        "Script.post_sample": "self p ps *args",
        "Script.postprocess": "self p processed *args",
        "Script.postprocess_batch": "self p *args **kwargs",
        "Script.postprocess_image": "self p pp *args",
        "Script.process": "self p *args",
        "Script.process_before_every_sampling": "self p *args **kwargs",
        "Script.run": "self p *args",
        "Script.show": "self is_img2img",
        "Script.title": "self",
        "Script.ui": "self is_img2img",
    },
    "modules/sd_models.py": {"get_closet_checkpoint_match": "search_string", "reload_model_weights": "sd_model info forced_reload"},
    "modules/sd_samplers.py": {"create_sampler": "name model"},
    "modules/sd_samplers_cfg_denoiser.py": {
        "CFGDenoiser.forward": "self x sigma uncond cond cond_scale s_min_uncond image_cond",
        "CFGDenoiser.inner_model": "self",
        "CFGDenoiser.update_inner_model": "self",
    },
    "modules/sd_samplers_common.py": {
        "apply_refiner": "cfg_denoiser sigma",
        "images_tensor_to_samples": "image approximation model",
        "setup_img2img_steps": "p steps",
    },
    "modules/sd_samplers_kdiffusion.py": {
        "CFGDenoiserKDiffusion.inner_model": "self",
        "KDiffusionSampler.get_sigmas": "self p steps",
        "KDiffusionSampler.sample": "self p x conditioning unconditional_conditioning steps image_conditioning",
        "KDiffusionSampler.sample_img2img": "self p x noise conditioning unconditional_conditioning steps image_conditioning",
    },
    "modules/sd_samplers_timesteps.py": {
        "CFGDenoiserTimesteps.inner_model": "self",
        "CompVisSampler.get_timesteps": "self p steps",
        "CompVisSampler.sample": "self p x conditioning unconditional_conditioning steps image_conditioning",
        "CompVisSampler.sample_img2img": "self p x noise conditioning unconditional_conditioning steps image_conditioning",
    },
    "modules/shared_total_tqdm.py": {"TotalTQDM.updateTotal": "self new_total"},
    "modules/ui_components.py": {"InputAccordion.__init__": "self value **kwargs"},
}

# What SD3 is called by, which the checkpoint's double `flow` has on itself: file -> functions, and what occurs in it, as Python writes its syntax tree.
SD3 = {
    "modules/models/sd3/sd3_model.py": {
        "SD3Inferencer.add_noise_to_latent": "self x noise amount",
        "SD3Inferencer.apply_model": "self x t cond",
        "SD3Inferencer.create_denoiser": "self",
        "SD3Denoiser.forward": "self input sigma **kwargs",
    },
    "modules/models/sd3/sd3_impls.py": {"ModelSamplingDiscreteFlow.timestep": "self sigma"},
    "modules/sd_samplers_kdiffusion.py": {},
}
SD3_LINES = {
    "modules/models/sd3/sd3_model.py": ("return x * (1 - amount) + noise * amount", "self.model.model_sampling.sigmas"),
    "modules/models/sd3/sd3_impls.py": ("model_input - model_output * sigma", "self.shift * timestep / (1 + (self.shift - 1) * timestep)"),
    "modules/sd_samplers_kdiffusion.py": ("xi = shared.sd_model.add_noise_to_latent(x, noise, sigma_sched[0])",),
}

# File -> names that a module has.
GLOBALS = {
    "modules/devices.py": "cpu dtype_vae",
    "modules/infotext_utils.py": "PasteField",
    "modules/processing.py": "StableDiffusionProcessingTxt2Img",
    "modules/rng.py": "ImageRNG",
    "modules/sd_hijack.py": "model_hijack",
    "modules/scripts.py": "AlwaysVisible Script scripts_data",
    "modules/sd_models.py": "SkipWritingToConfig model_data",
    "modules/sd_samplers_common.py": "InterruptedException approximation_indexes",
    "modules/shared.py": "OptionInfo cmd_opts device latent_upscale_default_mode latent_upscale_modes opts sd_model sd_upscalers state total_tqdm",
    "modules/ui_components.py": "InputAccordion",
}

# File -> class -> attributes of its instances, its own or inherited ones.
FIELDS = {
    "modules/processing.py": {
        "DecodedSamples": "already_decoded",
        "Processed": "images infotexts",
        "StableDiffusionProcessing": "all_prompts batch_size cfg_scale comments denoising_strength disable_extra_networks eta extra_generation_params"
        " extra_network_data firstpass_image firstpass_steps height"
        " is_api is_hr_pass iteration n_iter negative_prompts outpath_samples paste_to prompts refiner_checkpoint_info rng s_churn"
        " s_tmax s_tmin sampler sampler_name sampler_noise_scheduler_override scheduler script_args"
        " scripts seed_resize_from_h seed_resize_from_w seeds steps subseed_strength subseeds tiling width",
        "StableDiffusionProcessingImg2Img": "image_mask init_images init_latent initial_noise_multiplier inpaint_full_res inpainting_fill mask"
        " nmask resize_mode",
        "StableDiffusionProcessingTxt2Img": "enable_hr hr_checkpoint_info hr_extra_network_data hr_prompts hr_resize_x hr_resize_y hr_sampler_name hr_scale"
        " hr_scheduler hr_second_pass_steps hr_upscale_to_x hr_upscale_to_y hr_upscaler latent_scale_mode truncate_x truncate_y",
    },
    "modules/prompt_parser.py": {
        "ComposableScheduledPromptConditioning": "schedules weight",
        "MulticondLearnedConditioning": "batch",
    },
    "modules/scripts.py": {"PostSampleArgs": "samples", "PostprocessImageArgs": "image", "Script": "create_group infotext_fields paste_field_names section"},
    "modules/sd_models.py": {"CheckpointInfo": "filename", "SdModelData": "sd_model"},
    "modules/sd_samplers_cfg_denoiser.py": {"CFGDenoiser": "init_latent mask model_wrap nmask p step"},
    "modules/sd_samplers_common.py": {"Sampler": "config funcname last_latent model_wrap_cfg sampler_extra_args"},
    "modules/sd_samplers_kdiffusion.py": {"KDiffusionSampler": "model_wrap model_wrap_cfg"},
    "modules/sd_samplers_timesteps.py": {"CompVisSampler": "model_wrap model_wrap_cfg"},
    "modules/shared_state.py": {
        "State": "current_image_sampling_step interrupted job_count job_no sampling_step sampling_steps skipped textinfo",
    },
}

# Keys of modules/shared_options.py.
OPTIONS = (
    "emphasis eta_ancestral img2img_background_color s_churn s_tmax s_tmin samples_format sd_vae_decode_method sd_vae_encode_method sdxl_crop_left"
    " sdxl_crop_top tiling upscaler_for_img2img use_old_emphasis_implementation use_old_scheduling"
)

# File -> names that only occur in it: of the checkpoint's own classes, and of what is put on objects from elsewhere.
OCCURRING = {
    "modules/cmd_args.py": "--api-auth",
    "modules/processing.py": "batch_index txt2img_upscale",
    "modules/prompt_parser.py": "ScheduledPromptConditioning cond end_at_step",
    "modules/scripts.py": "ScriptClassData alwayson_scripts script_class module",
    "modules/sd_hijack.py": "cond_stage_model embedding_db",
    "modules/textual_inversion/textual_inversion.py": "find_embedding_at_position",
    "modules/sd_hijack_clip.py": "embedding fixes input_key offset process_texts tokenize tokens vectors",
    "modules/sd_hijack_optimizations.py": "heads to_k to_q",
    "modules/sd_models.py": "sd_checkpoint_info",
    "modules/sd_models_types.py": "is_sd2 is_sd3 is_sdxl",
    "modules/sd_models_xl.py": "alphas_cumprod conditioner conditioning_key crop_coords_top_left diffusion_model embedders get_learned_conditioning"
    " parameterization",
    "modules/sd_samplers_common.py": "first_stage_model name",
    "modules/sd_samplers_timesteps.py": "alphas_cumprod parameterization",
}

# The dropdown script whose axes are extended; no part of the package, so not of the double.
PLOT = {"scripts/xyz_grid.py": {"AxisOption.__init__": "self label type apply format_value confirm cost choices prepare"}}
PLOT_GLOBALS = {"scripts/xyz_grid.py": "axis_options"}
