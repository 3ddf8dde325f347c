import pytest

from scorefield.sde_lib import SDES, DDPMChain

EVERY_SDE = {name: make() for name, make in SDES.items()} | {
    f"ddpm-{schedule}": DDPMChain.from_schedule(schedule).to_sde() for schedule in ("cosine", "sigmoid")}


@pytest.fixture(params=EVERY_SDE.values(), ids=EVERY_SDE.keys(), scope="session")
def sde(request):
    """Every SDE of the registry with its defaults, and the chains of the other schedules."""
    return request.param
