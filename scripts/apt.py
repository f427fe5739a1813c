"""Registers APT with the WebUI."""

from modules import script_callbacks

from apt_ext.webui.page.axes import add_axes
from apt_ext.webui.page.route import add_route
from apt_ext.webui.page.settings import add_settings
from apt_ext.webui.script import APTScript, APTUpscaleScript  # noqa: F401

script_callbacks.on_ui_settings(add_settings)
add_axes()  # at once: an API without the page lists the plot's axes before it tells anybody that it will be shown
script_callbacks.on_before_ui(add_axes)  # and again, for hosts that load the plot later
script_callbacks.on_app_started(add_route)
