"""One kind of network, which a prompt has as <lora:strength>: the loaded checkpoint's estimates become that much brighter."""

import re
from collections import defaultdict

WRITTEN = re.compile(r"<lora:([^>]+)>")


def parse_prompts(prompts):
    found = defaultdict(list)
    found["lora"] += [float(one) for one in WRITTEN.findall(prompts[0])]
    return [WRITTEN.sub("", one) for one in prompts], found


def activate(p, extra_network_data):
    from modules import shared

    shared.sd_model.strength = sum(extra_network_data["lora"])
