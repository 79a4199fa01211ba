import subprocess
import sys

import pytest

ROUNDS, FLOATS, PAGE_BYTES = 40, 2**24, 4096
FAULTS = f"""
import resource
from threading import Thread
import torch
from pipeline.torch_settings import set_up_torch

def fill():
    torch.ones({FLOATS}).mul_(2)

def fill_often():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({ROUNDS}):
        fill()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

set_up_torch(1)
assert torch.get_num_threads() == 1
fill_often()
other = Thread(target=fill_often)
other.start()
other.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_the_memory_of_large_tensors_is_used_again() -> None:
    """In the main thread, and in another, as Ray Train's: by default each round maps all the tensor's pages anew."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    for faults in done.stdout.split():
        assert int(faults) < ROUNDS * FLOATS * 4 / PAGE_BYTES / 2, done.stdout
    assert len(done.stdout.split()) == 2
