registered = {"ui_settings": [], "before_ui": [], "app_started": []}
steps_told = []  # (step, steps) of every callback of the denoiser


def on_ui_settings(callback, *, name=None):
    registered["ui_settings"].append(callback)


def on_before_ui(callback, *, name=None):
    registered["before_ui"].append(callback)


def on_app_started(callback, *, name=None):
    registered["app_started"].append(callback)
