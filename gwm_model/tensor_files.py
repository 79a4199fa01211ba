"""Files of tensors from elsewhere: safetensors, and torch checkpoints, read without running any of their code."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file


def read_tensor_file(path: Path) -> Any:
    """What the file holds, on the CPU.

    Raises OSError, SafetensorError, UnpicklingError for a checkpoint with objects other than tensors, and
    RuntimeError for what is no checkpoint.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    with no_checkpoint():
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def no_checkpoint() -> Iterator[None]:
    """Makes one RuntimeError of whatever torch raises when it unpickles noise; OSError and UnpicklingError pass."""
    try:
        yield
    except (OSError, RuntimeError, UnpicklingError):
        raise
    except Exception as error:
        raise RuntimeError("it is no checkpoint that can be read") from error
