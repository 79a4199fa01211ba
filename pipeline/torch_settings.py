"""What torch is told in a worker's process before anything is computed there."""

import ctypes

import torch

# Of malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
MOST = 2**31 - 1


def set_up_torch(num_threads: int) -> None:
    """Gives torch its threads, and keeps the memory of its tensors: before the first of either is taken."""
    torch.set_num_threads(num_threads)
    keep_memory()


def keep_memory() -> None:
    """Lets glibc keep what is freed for what comes next; nothing where another C library is in use.

    By default memory of 32 MiB and more goes back to the kernel at once, and all of the next tensor's pages are cleared
    and mapped anew: half of the time of an elementwise operation. The process stays as large as it was at its largest.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)  # another thread's arena has no room for a large tensor
        mallopt(M_TRIM_THRESHOLD, MOST)
        mallopt(M_MMAP_THRESHOLD, MOST)
