import numpy as np
import onnxruntime
import pytest
import torch

from gwm_model import load_segmenter
from pipeline import cli, storage
from pipeline.config import DecodeLimits, ExportConfig
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.export import export
from pipeline.formats.shards import read_mask_rows
from pipeline.images import read_grey
from pipeline.masks import MASK_SCHEMA_VERSION, decode_mask


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"format": "cocoa", "masks": "m"}, r"format=cocoa is not known: it is one of coco, png, .* onnx\."),
        ({"format": "coco"}, r"format=coco is made of masks: give masks= and none of the others\."),
        ({"format": "coco", "flow": "f", "masks": "m"}, r"format=coco is made of masks"),
        ({"format": "flo", "masks": "m"}, r"format=flo is made of flow"),
        ({"format": "davis", "masks": "m"}, r"format=davis holds the images too: give images="),
        ({"format": "coco", "masks": "/none"}, r"/none is not a masks dataset"),
        ({"format": "onnx", "model": "/none"}, r"There is no folder /none"),
    ],
)
def test_what_is_missing_or_too_much_is_one_sentence(values, said, tmp_path):
    with pytest.raises(GwmError, match=said):
        export(ExportConfig(output=str(tmp_path / "out"), **values))
    assert not (tmp_path / "out").exists()


def test_a_model_becomes_files_that_run_alone(tiny_model, tmp_path, capsys):
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    with torch.no_grad():
        expected = load_segmenter(tiny_model)(images).softmax(1)
    for name in ("torch_export", "onnx"):
        words = [f"format={name}", f"model={tiny_model}", f"output={tmp_path / name}"]
        assert cli.main(["export", *words]) == 0
    program = torch.export.load(str(tmp_path / "torch_export")).module()
    assert (program(images)[0] - expected).abs().max() <= 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx"))
    masks, _ = session.run(None, {"images": images.numpy()})
    assert np.abs(masks - expected.numpy()).max() <= 1e-5


def test_a_bucket_in_and_a_bucket_out(segment_stages, make_frame_folder, s3, tmp_path):
    folder = make_frame_folder("dog", num_frames=4)
    for path in folder.iterdir():
        storage.write_bytes(f"{s3.url}/videos/dog/{path.name}", path.read_bytes())
    config = segment_stages.config(images=f"{s3.url}/videos", output=f"{s3.url}/masks")
    Dataset.open(config.output, kind="masks", config=config, schema_version=MASK_SCHEMA_VERSION)
    segment_stages.run(config)
    (shard,) = Dataset(url=config.output).shards()
    rows = read_mask_rows(shard, DecodeLimits())
    words = [f"masks={config.output}", f"images={s3.url}/videos"]
    for name, output in (("davis", "davis"), ("coco", "coco.json"), ("webdataset", "tars")):
        assert cli.main(["export", f"format={name}", f"output={s3.url}/{output}", *words]) == 0
    for row in rows:
        mask = read_grey(f"{s3.url}/davis/Annotations/480p/dog/{row.frame_index:05d}.png") > 0
        assert np.array_equal(mask, decode_mask(row.mask_rle, row.height_px, row.width_px))
    assert storage.read_bytes(f"{s3.url}/coco.json").startswith(b'{"categories"')
    assert len(list(storage.list_files(f"{s3.url}/tars"))) == 1
