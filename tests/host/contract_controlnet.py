"""What the adapter relies on in sd-webui-controlnet, version 1.1.455: `tests/host/test_contract_controlnet.py` holds the double, and a checkout of the
extension, to it."""

# File -> class -> attributes of its instances.
FIELDS = {
    "scripts/controlnet.py": {"Script": "latest_network ui_batch_option_state title postprocess process"},
    "scripts/hook.py": {
        "UnetHook": "control_params model call_vae_using_process",
        "ControlParams": "hint_cond hr_hint_cond used_hint_cond used_hint_cond_latent used_hint_inpaint_hijack control_model control_model_type"
        " preprocessor global_average_pooling cfg_injection effective_region_mask",
    },
    "scripts/adapter.py": {"PlugableAdapter": "control"},
    "scripts/controlnet_lllite.py": {"LLLiteModule": "cond_image set_cond_image", "PlugableControlLLLite": "modules"},
    "scripts/ipadapter/plugable_ipadapter.py": {"PlugableIPAdapter": "cache reset"},
}

# File -> functions, with their parameters in order.
SIGNATURES = {
    "scripts/controlnet.py": {"Script.postprocess": "self p processed *args"},
    "scripts/hook.py": {
        "UnetHook.call_vae_using_process": "p x batch_size mask",
        "UnetHook.hook": "self model sd_ldm control_params process batch_option_uint_separate batch_option_style_align",
        "UnetHook.restore": "self",
    },
    "scripts/ipadapter/plugable_ipadapter.py": {"PlugableIPAdapter.reset": "self"},
    "scripts/controlnet_lllite.py": {"LLLiteModule.set_cond_image": "self cond_image"},
}

# The types of units.
KINDS = "ControlNet T2I_Adapter T2I_StyleAdapter MasaCtrl AttentionInjection ControlLoRA ReVision IPAdapter Controlllite InstantID ControlNetUnion"

# File -> what occurs in it word for word.
LINES = {
    "scripts/controlnet.py": (
        'return "ControlNet"',
        "self.latest_network.restore()",
        "processed.images.extend(",
        "getattr(processed, 'extra_generation_params', [])",
        "self.ui_batch_option_state[0] == BatchOption.SEPARATE.value",
        "batch_option_style_align = self.ui_batch_option_state[1]",
    ),
    "scripts/enums.py": ('SEPARATE = "Each ControlNet unit for each image in a batch"',),
    "scripts/hook.py": (
        # The hint of the pass, told by its height alone; of two that are equal, the hires pass's.
        "if abs(h - h_lr) < abs(h - h_hr):",
        "if param.used_hint_cond is not param.hr_hint_cond:",
        # Made from the hint unless it is there.
        "if param.used_hint_cond_latent is not None:",
        "if param.used_hint_inpaint_hijack is None:",
        # The latent and what an inpainting model gets are joined to x row by row.
        "x = torch.cat([x[:, :4, :, :], param.used_hint_inpaint_hijack], dim=1)",
        # Rows are counted for one picture each.
        "if pi % len(outer.control_params) != param_index:",
        # An adapter's one row is repeated for every row of x.
        "control = [torch.cat([c.clone() for _ in range(batch_size)], dim=0) for c in control]",
        # What ControlLLLite asks before it acts.
        "self.is_in_high_res_fix = is_in_high_res_fix",
        "POSITIVE_MARK_TOKEN = 1024",
        # Which rows are the prompt's. In place, and once; without marks, all rows are.
        "def mark_prompt_context(x, positive):",
        "if prompt_context_is_marked(cond): return x",
        "x.batch = mark_prompt_context(x.batch, positive)",
        "x.schedules = mark_prompt_context(x.schedules, positive)",
        "mark_batch = torch.ones(size=(x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device)",
        # From which step to which a unit acts.
        "current_sampling_percent = (x.sampling_step / x.total_sampling_steps)",
        # A hook that is taken off a network may be put on another.
        "scripts.script_callbacks.remove_callbacks_for_function(self.guidance_schedule_handler)",
        "scripts.script_callbacks.on_cfg_denoiser(self.guidance_schedule_handler)",
        "if getattr(process, 'sample_before_CN_hack', None) is None:",
    ),
    "scripts/ipadapter/plugable_ipadapter.py": (
        # Made for the rows of the first call, and kept.
        "if key in self.cache: return self.cache[key]",
        "lambda t: t.view(batch_size, -1, attn_heads, head_dim)",
        "def attn_forward_hacked(self, x, context=None, **kwargs):",
        "cond_uncond_image_emb=self.image_emb.eval(current_model.cond_mark)",
    ),
    "scripts/controlnet_lllite.py": ("cond_image = cond * 2.0 - 1.0", "if not is_in_high_res_fix:"),
    "scripts/adapter.py": ("if self.control is not None:",),
}
