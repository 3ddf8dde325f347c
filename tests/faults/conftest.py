import pytest
from command_processes import Process


@pytest.fixture
def start():
    """Starts processes of main.py, and kills those that a failed test leaves."""
    started = []

    def begin(*words, **more):
        started.append(Process(*words, **more))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
