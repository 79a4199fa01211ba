import io
import tarfile

import numpy as np
import webdataset
from PIL import Image

from tests.pipeline.formats.conftest import decoded, exported


def test_webdataset_reads_images_masks_and_descriptions(make_masks, photos, videos, tmp_path):
    masks, rows = make_masks()
    summary = exported("webdataset", tmp_path / "tars", masks=masks, images=str(photos))
    assert summary["images"] == 22
    tars = sorted(str(path) for path in (tmp_path / "tars").iterdir())
    samples = (
        webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8").to_tuple("jpg", "mask.png", "json")
    )
    found = {}
    for image, mask, description in samples:
        key = description["source"], description["frame_index"]
        found[key] = image
        row = rows[key]
        assert image.shape == (row.height_px, row.width_px, 3) == mask.shape
        assert np.array_equal(mask[..., 0] > 0, decoded(row))
        assert description["area_fraction"] == row.area_fraction
    assert found.keys() == {key for key, row in rows.items() if row.error is None}
    assert np.array_equal(found["photos/a.jpg", None], np.asarray(Image.open(photos / "photos" / "a.jpg")))
    upright = np.rot90(found["photos/a.jpg", None], -1).astype(int)
    assert np.abs(found["photos/turned.jpg", None].astype(int) - upright).mean() < 12


def test_equal_masks_make_equal_tars(make_masks, videos, tmp_path):
    masks, _ = make_masks()
    for name in ("one", "two"):
        exported("webdataset", tmp_path / name, masks=masks, images=str(videos))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
            assert [name.split(".", 1)[1] for name in archive.getnames()][:3] == ["jpg", "mask.png", "json"]
