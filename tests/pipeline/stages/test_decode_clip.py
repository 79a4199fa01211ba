import json
import os

import numpy as np
import pytest

from pipeline.errors import GwmError
from pipeline.stages.decode_clip import decode_clip


def test_any_split_into_clips_gives_the_frames_of_the_whole_video(make_video, stages):
    make_video(num_frames=30)
    whole_config = stages.config(decode={"clip_frames": 100, "height_px": 32})
    (whole,) = (decode_clip(row, whole_config)["frames"] for row in stages.plan(whole_config))
    assert whole.shape == (30, 3, 32, 42)
    for clip_frames in (1, 4, 7, 16):
        config = stages.config(decode={"clip_frames": clip_frames, "height_px": 32})
        for row in stages.plan(config):
            clip = decode_clip(row, config)
            assert np.array_equal(clip["frames"], whole[row["frame_index"]])


def test_a_folder_of_frames(make_frame_folder, stages):
    make_frame_folder(num_frames=6)
    config = stages.config()
    (row,) = (decode_clip(row, config) for row in stages.plan(config))
    assert row["frames"].shape == (6, 3, 48, 64)
    assert row["seconds_decode_clip"] > 0


def test_a_clip_that_cannot_be_decoded_becomes_a_failure(make_video, stages):
    path = make_video()
    config = stages.config()
    row = stages.plan(config)[1]
    path.unlink()
    failed = decode_clip(row, config)
    assert (failed["status"], failed["unit"]) == ("failed", row["unit"])
    assert json.loads(failed["failure"])["stage"] == "decode_clip"
    assert "frames" not in failed


def test_a_clip_that_takes_for_ever_becomes_a_failure(make_video, stages):
    path = make_video()
    row = stages.plan(stages.config())[0]
    path.unlink()
    os.mkfifo(path)  # opening it waits for somebody who writes
    failed = json.loads(decode_clip(row, stages.config(decode={"timeout_s": 0.5}))["failure"])
    assert failed["reason"] == "decoding took longer than decode.timeout_s (0.5 s)"
    assert failed["attempts"] == 2


def test_storage_that_is_gone_ends_the_job(make_video, stages, monkeypatch):
    make_video()
    config = stages.config()
    row = stages.plan(config)[0]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    row["url"] = "s3://bucket/video.mp4"
    with pytest.raises(GwmError, match="Cannot reach"):
        decode_clip(row, config)


def test_other_rows_pass(stages):
    row = {"unit": "u", "source": "s", "status": "skipped", "num_units": 3}
    assert decode_clip(row, stages.config()) is row
