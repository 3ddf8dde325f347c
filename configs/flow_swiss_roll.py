"""The swiss roll by flow matching, each batch's noise coupled to its points by optimal transport; as vp_swiss_roll else."""

from scorefield.configs import vp_swiss_roll
from scorefield.configs.sections import renew, sde


def get_config():
    config = vp_swiss_roll.get_config()
    config.sde = sde("flow")
    config.model.parametrization = "flow"
    renew(config, "training", "flow_matching")
    config.training.coupling = "optimal_transport"
    return config
