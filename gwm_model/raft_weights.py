"""RAFT checkpoints, torchvision's own and the original code's, read strictly into torchvision's networks.

The original checkpoints (princeton-vl/RAFT) hold the same tensors under other names: a `module.` prefix,
`fnet` and `cnet` for the encoders, `gru` for the recurrent block, and every projection's norm stored twice.
"""

import hashlib
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.error import URLError
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from gwm_model.tensor_files import no_checkpoint, read_tensor_file

RaftName = Literal["raft_large", "raft_small"]

_PRINCETON_NAMES = (
    (r"^module\.", ""),
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"^(feature_encoder|context_encoder)\.conv1\.", r"\1.convnormrelu.0."),
    (r"^(feature_encoder|context_encoder)\.norm1\.", r"\1.convnormrelu.1."),
    (r"^(feature_encoder|context_encoder)\.conv2\.", r"\1.conv."),
    (r"(\.layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(\.layer\d\.\d)\.norm(\d)\.", r"\1.convnormrelu\2.1."),
    (r"^update_block\.encoder\.convc(\d)\.", r"update_block.motion_encoder.convcorr\1.0."),
    (r"^update_block\.encoder\.convf(\d)\.", r"update_block.motion_encoder.convflow\1.0."),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.conv([zrq])([12])\.", r"update_block.recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.gru\.conv([zrq])\.", r"update_block.recurrent_block.convgru1.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
)


class WeightsError(ValueError):
    """The weights cannot be used; the message says what the file looks like."""


def load_raft_network(name: RaftName, weights: str) -> nn.Module:
    """The torchvision network with its weights.

    `weights`: `pretrained` (torchvision's default), a torchvision weights name such as `C_T_V2`, or a path or
    an http(s) URL to a checkpoint, `.pth` (read without running any of its code) or `.safetensors`.
    Raises WeightsError for weights that do not fit.
    """
    network: nn.Module = get_model(name, weights=None)
    state = _torchvision_names(_read_state(name, weights))
    problem = _mismatch(state, network.state_dict())
    if problem:
        raise WeightsError(f"weights {weights!r} do not fit {name}: {_looks_like(state)} ({problem})")
    network.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    )
    return network


def _read_state(name: RaftName, weights: str) -> dict[str, Tensor]:
    """The checkpoint's tensors by their stored names."""
    known = get_model_weights(name)
    short_name = weights.removeprefix(f"{known.__name__}.")
    if weights == "pretrained":
        short_name = "DEFAULT"
    try:
        if short_name in known.__members__:
            # What lies in torch's hub folder under this name is read like any other file.
            with _readable(weights), no_checkpoint():
                return dict(
                    known[short_name].get_state_dict(progress=False, check_hash=True, weights_only=True)
                )
        if weights.startswith(("http://", "https://")):
            return _download(weights)
    except URLError as error:
        raise WeightsError(f"weights {weights!r} of {name} cannot be downloaded: {error.reason}") from error
    path = Path(weights).expanduser()
    if path.is_dir():
        raise WeightsError(f"weights {weights!r} is a folder; give the checkpoint file")
    if not path.is_file():
        names = ", ".join(known.__members__)
        raise WeightsError(
            f"weights {weights!r} is neither a file nor a torchvision weights name of {name} ({names})"
        )
    return _read_file(path)


def _download(url: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint on a web server, kept in torch's hub folder."""
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}{Path(urlsplit(url).path).suffix}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        torch.hub.download_url_to_file(url, str(path), progress=False)
    try:
        return _read_file(path)
    except WeightsError:
        path.unlink()
        raise


def _read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a local checkpoint file."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"weights '{path}' is a Git LFS pointer, not the checkpoint itself: fetch it with git lfs pull"
        )
    if head.lstrip()[:1] == b"<":
        raise WeightsError(f"weights '{path}' is a web page, not a checkpoint: download the file again")
    with _readable(str(path)):
        loaded = read_tensor_file(path)
    return _tensors(loaded, str(path))


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turns what the readers of checkpoints raise into WeightsError."""
    try:
        yield
    except SafetensorError as error:
        raise WeightsError(
            f"weights '{where}' is not a readable safetensors file; it may be cut off"
        ) from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights '{where}' holds pickled objects other than tensors, which are never loaded"
        ) from error
    except RuntimeError as error:
        raise WeightsError(
            f"weights '{where}' is not a readable torch checkpoint; it may be cut off"
        ) from error


def _tensors(loaded: object, where: str) -> dict[str, Tensor]:
    """Names and tensors of a loaded checkpoint, which may hold them under `model` or `state_dict`."""
    state = loaded
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"weights {where!r} hold no plain mapping of names to tensors")
    return {str(key): value for key, value in state.items()}


def _torchvision_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under torchvision's names; those that have them already stay as they are."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        new_key = key
        for pattern, replacement in _PRINCETON_NAMES:
            new_key = re.sub(pattern, replacement, new_key)
        is_projection_norm = re.search(r"cnet\.layer\d\.\d\.norm[34]\.", key) is not None
        if not (is_projection_norm and _second_name(key) in state):
            renamed[new_key] = value
    return renamed


def _second_name(norm_key: str) -> str:
    """The other name under which the original code stores a projection's norm."""
    return re.sub(r"\.norm[34]\.", ".downsample.1.", norm_key)


def _mismatch(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What does not fit, or an empty string."""
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    reshaped = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    kinds = (("missing", missing), ("unknown", unexpected), ("of another shape", reshaped))
    return "; ".join(f"{len(keys)} tensors {kind}, such as {keys[0]}" for kind, keys in kinds if keys)


def _looks_like(state: Mapping[str, Tensor]) -> str:
    """What a checkpoint that does not fit seems to be."""
    first = state.get("feature_encoder.convnormrelu.0.weight")
    if first is None:
        return "the file does not look like a RAFT checkpoint"
    name = {64: "raft_large", 32: "raft_small"}.get(len(first))
    if name and not _mismatch(state, get_model(name, weights=None).state_dict()):
        return f"the file looks like {name}"
    return "the file looks like a changed or incomplete RAFT checkpoint"


def weights_sha256(network: nn.Module) -> str:
    """Hash of the names and values in use, the same for every file format that holds them."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        if not key.endswith("num_batches_tracked"):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
