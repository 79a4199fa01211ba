import pytest

from pipeline.config import DecodeLimits
from pipeline.errors import UnitError
from pipeline.frames import FrameList, Stamps, read_frame_list, read_video, stamps
from pipeline.images import decode_images
from pipeline.inputs import Source
from pipeline.video import decode_frames, probe

LIMITS = DecodeLimits()


def source_of(path):
    return Source(url=str(path), name=path.name, kind="video")


def everything(path, index, height_px=48, width_px=64):
    return decode_frames(
        str(path),
        index.pts.tolist(),
        seek_pts=None,
        timed=index.timed,
        height_px=height_px,
        width_px=width_px,
    )


@pytest.mark.parametrize("name", ["v.mp4", "v.avi"])
def test_any_frames_of_a_video_are_those_of_a_full_decode(make_video, name):
    codec = {"v.mp4": "libx264", "v.avi": "mpeg4"}[name]
    path = make_video(name, num_frames=40, codec=codec)
    index = probe(source_of(path))
    whole = everything(path, index)
    for positions in ([0], [39], [3, 4, 5], [0, 13, 14, 27, 38], []):
        found = read_video(str(path), stamps(index, positions), 48, 64, LIMITS)
        assert (found == whole[positions]).all()


def test_stamps_travel_in_a_row(make_video):
    index = probe(source_of(make_video(num_frames=20)))
    wanted = stamps(index, [1, 15])
    assert Stamps.of_row(wanted.to_row("anchor_"), "anchor_") == wanted
    assert len(wanted) == 2


def test_frames_that_cannot_be_decoded_are_an_error_or_left_out(make_video):
    path = make_video(num_frames=20)
    index = probe(source_of(path))
    wanted = stamps(index, [1, 15])
    broken = Stamps(pts=(*wanted.pts, wanted.pts[-1] + 10**9), seek_pts=(*wanted.seek_pts, 10**9), timed=True)
    with pytest.raises(UnitError, match="cannot be decoded"):
        read_video(str(path), broken, 48, 64, LIMITS)
    assert len(read_video(str(path), broken, 48, 64, LIMITS, skip_broken=True)) == 2


def test_a_list_of_image_files(make_frame_folder):
    folder = make_frame_folder(num_frames=5)
    urls = tuple(str(path) for path in sorted(folder.iterdir()))
    frames = FrameList(kind="files", urls=urls, num_frames=5)
    assert len(frames) == 5
    assert FrameList.of_row(frames.to_row()) == frames
    expected = decode_images([urls[1], urls[4]], height_px=24, width_px=32)
    assert (read_frame_list(frames, [1, 4], 24, 32, LIMITS) == expected).all()


def test_a_list_of_a_videos_frames(make_video):
    path = make_video(num_frames=20)
    frames = FrameList(kind="video", urls=(str(path),), num_frames=20)
    whole = everything(path, probe(source_of(path)))
    assert (read_frame_list(frames, [2, 19], 48, 64, LIMITS) == whole[[2, 19]]).all()
