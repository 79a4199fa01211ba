"""A segmenter as one file that needs none of this code: a torch.export program or an ONNX model.

torch is imported by the functions: the formats of masks and flow do not wait for it.
"""

from collections import Counter

from pipeline import storage
from pipeline.config import ExportConfig
from pipeline.errors import GwmError


def write_torch_export(config: ExportConfig) -> Counter[str]:
    """A .pt2 file, for torch.export.load."""
    import torch

    from gwm_model.export import export_program
    from pipeline.inference import open_segmenter

    segmenter, _ = open_segmenter(str(config.model), "cpu")
    program = export_program(segmenter)
    with storage.open_write(config.output) as file:
        torch.export.save(program, file)
    return Counter()


def write_onnx(config: ExportConfig) -> Counter[str]:
    """An .onnx file with its weights in it."""
    from gwm_model.export import export_onnx
    from pipeline.inference import open_segmenter

    segmenter, _ = open_segmenter(str(config.model), "cpu")
    try:
        model = export_onnx(segmenter)
    except ImportError as error:
        raise GwmError(f"format=onnx needs packages that `pip install gwm[onnx]` brings: {error}.") from error
    storage.write_bytes(config.output, model)
    return Counter()
