"""A segmenter with all that it needs at run time, for programs without this code: torch.export and ONNX."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from gwm_model.merge import (
    choose_foreground,
    foreground_probability,
    merge_by_border,
    merge_regions,
)
from gwm_model.segmenter import Segmenter

INPUT = "images"
OUTPUTS = ("masks", "object")
EXAMPLES = 2
"""A batch of one would be taken for a constant."""


class ObjectNetwork(nn.Module):
    """Images at the segmenter's input size -> probabilities of the K regions and of the object."""

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.segmenter = segmenter

    def forward(
        self, images: UInt8[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B K h w"], Float[Tensor, "B h w"]]:
        """Each image is decided alone; frames of a video may differ in what is the object."""
        logits, features = self.segmenter.segment(images)
        masks = logits.softmax(1)
        labels = merge_regions(masks, features)
        if self.segmenter.backbone is None:
            labels = merge_by_border(masks, labels)
        return masks, foreground_probability(masks, labels, choose_foreground(masks, labels))


def export_program(segmenter: Segmenter) -> ExportedProgram:
    """The network as a graph: `images` uint8 RGB [B, 3, H, W] -> `masks` [B, K, h, w], `object` [B, h, w].

    H and W are the input size of the segmenter's configuration, B is any from 1 on.
    """
    network = ObjectNetwork(segmenter).eval()
    device = next(segmenter.parameters()).device
    size = (EXAMPLES, 3, segmenter.config.height_px, segmenter.config.width_px)
    images = torch.zeros(size, dtype=torch.uint8, device=device)
    with torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes={INPUT: {0: Dim("batch", min=1)}})


def export_onnx(segmenter: Segmenter) -> bytes:
    """The same network as an ONNX model, weights included; input and outputs have the names above.

    Raises ImportError without the packages onnx and onnxscript.
    """
    program = torch.onnx.export(
        export_program(segmenter), dynamo=True, input_names=[INPUT], output_names=list(OUTPUTS), verbose=False
    )
    if program is None:
        raise RuntimeError("torch.onnx returned no model")
    return bytes(program.model_proto.SerializeToString())
