from modules import sd_samplers_kdiffusion, sd_samplers_timesteps

ALL = {data.name: data for data in [*sd_samplers_kdiffusion.samplers_data, *sd_samplers_timesteps.samplers_data]}


def create_sampler(name, model):
    config = ALL[name]
    sampler = config.constructor(model)
    sampler.config = config
    return sampler
