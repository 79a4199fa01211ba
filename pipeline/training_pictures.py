"""What the segmenter makes of a few frames while it is trained: frame, flow, regions."""

import numpy as np
import torch

from gwm_model.segmenter import Segmenter
from pipeline.batches import BatchLoader
from pipeline.pictures import colour_flow, colour_regions, encode_jpeg, resize, side_by_side

NUM_PICTURES = 6
HEIGHT_PX = 120


@torch.no_grad()
def training_picture(segmenter: Segmenter, loader: BatchLoader) -> bytes:
    """A JPEG with one row for each of a few frames spread over the dataset, always the same ones."""
    was_training = segmenter.training
    segmenter.eval()
    rows = []
    for frame_id in np.linspace(0, loader.flow.num_frames - 1, NUM_PICTURES).astype(int):
        frame = loader.reader.read(int(frame_id))
        pixels = torch.from_numpy(np.ascontiguousarray(frame.image.transpose(2, 0, 1)))[None].to(
            loader.device
        )
        regions = segmenter(pixels).softmax(1)[0].cpu().numpy()
        pictures = [frame.image, colour_flow(frame.flow[0]), colour_regions(regions)]
        rows.append(side_by_side([resize(picture, height_px=HEIGHT_PX) for picture in pictures]))
    segmenter.train(was_training)
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return encode_jpeg(np.concatenate(padded))
