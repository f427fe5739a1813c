class OptionInfo:
    def __init__(
        self,
        default=None,
        label="",
        component=None,
        component_args=None,
        onchange=None,
        section=None,
        refresh=None,
        comment_before="",
        comment_after="",
        infotext=None,
        restrict_api=False,
        category_id=None,
    ):
        self.default, self.label, self.component, self.component_args = default, label, component, component_args
        self.section, self.infotext, self.note = section, infotext, ""

    def info(self, info):
        self.note = info
        return self


class Options:
    sd_vae_encode_method = "Full"
    sd_vae_decode_method = "Full"
    upscaler_for_img2img = None
    img2img_background_color = "#ffffff"
    samples_format = "png"
    sdxl_crop_top = 0
    sdxl_crop_left = 0
    img2img_fix_steps = False
    batch_cond_uncond = True
    apt_window_sd1 = 64
    tiling = False
    s_churn = 0.0
    s_tmin = 0.0
    s_tmax = 0.0  # as in the host: no end
    sigma_max = 0.0  # as in the host: the checkpoint's own
    eta_ancestral = 1.0
    emphasis = "Original"
    refiner_switch_by_sample_steps = False
    hires_fix_refiner_pass = "second pass"
    use_old_scheduling = False
    use_old_emphasis_implementation = False

    def __init__(self):
        self.added = {}

    def add_option(self, key, info):
        self.added[key] = info
        setattr(self, key, info.default)
