import cv2
import numpy as np
import pytest

from pipeline.errors import GwmError
from pipeline.layouts import (
    LAYOUTS,
    dataset_mean,
    missing_sentence,
    official_positions,
    paper_positions,
    read_layout,
)

PICTURE = cv2.imencode(".png", np.zeros((4, 6), np.uint8))[1].tobytes()


def write_layout(root, dataset, sequences, annotated=None):
    """Empty pictures: `sequences` maps a name to its frames' stems, `annotated` to those with ground truth."""
    layout = LAYOUTS[dataset]
    for name, stems in sequences.items():
        for folder, wanted in ((layout.frames, stems), (layout.annotations, (annotated or sequences)[name])):
            for stem in wanted:
                path = root / folder / name / f"{stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(PICTURE)


def numbers(first, count):
    return [f"{first + number:05d}" for number in range(count)]


def test_official_lists_have_their_published_lengths():
    lengths = {name: len(set(layout.official)) for name, layout in LAYOUTS.items()}
    assert lengths == {"davis2016": 20, "segtrackv2": 14, "fbms59": 30, "images": 0}


def test_davis_scores_all_frames_but_the_ends_and_the_paper_skips_one_more(tmp_path):
    write_layout(tmp_path, "davis2016", {"dog": numbers(0, 6)})
    (sequence,) = read_layout("davis2016", str(tmp_path)).sequences
    assert sequence.frame_names == tuple(numbers(0, 6))
    assert official_positions("davis2016", sequence) == [1, 2, 3, 4]
    assert paper_positions("davis2016", sequence) == [2, 3, 4]


def test_segtrack_scores_every_frame_and_the_paper_all_but_the_last(tmp_path):
    write_layout(tmp_path, "segtrackv2", {"girl": numbers(1, 4)})
    (sequence,) = read_layout("segtrackv2", str(tmp_path)).sequences
    assert official_positions("segtrackv2", sequence) == [0, 1, 2, 3]
    assert paper_positions("segtrackv2", sequence) == [0, 1, 2]


def test_fbms_scores_the_annotated_frames_and_the_paper_no_last_frame(tmp_path):
    write_layout(tmp_path, "fbms59", {"cars1": numbers(1, 9)}, {"cars1": ["00001", "00005", "00009"]})
    (sequence,) = read_layout("fbms59", str(tmp_path)).sequences
    assert len(sequence.frame_names) == 9
    assert official_positions("fbms59", sequence) == [0, 4, 8]
    assert paper_positions("fbms59", sequence) == [0, 4]
    assert sequence.annotation_urls[4].endswith("Annotations/cars1/00005.png")


def test_image_pairs_are_found_by_name(tmp_path):
    write_layout(tmp_path, "images", {"": ["0007", "0012", "b"]})
    (group,) = read_layout("images", str(tmp_path)).sequences
    assert not group.is_video
    assert group.frame_names == ("0007", "0012", "b")
    assert official_positions("images", group) == [0, 1, 2]


def test_frames_are_in_order_of_their_numbers(tmp_path):
    write_layout(tmp_path, "segtrackv2", {"girl": ["2", "10", "1"]})
    (sequence,) = read_layout("segtrackv2", str(tmp_path)).sequences
    assert sequence.frame_names == ("1", "2", "10")


def test_only_official_sequences_count_and_the_missing_ones_are_known(tmp_path):
    write_layout(tmp_path, "davis2016", {name: numbers(0, 4) for name in ("dog", "bear", "cows")})
    truth = read_layout("davis2016", str(tmp_path))
    assert [sequence.name for sequence in truth.sequences] == ["cows", "dog"]
    assert len(truth.missing) == 18
    assert "bear" not in truth.missing
    assert missing_sentence(truth, "D") == "18 of the 20 sequences of davis2016 are not in D."


def test_data_of_ones_own_in_the_same_layout_is_scored_as_it_is(tmp_path):
    write_layout(tmp_path, "davis2016", {"scene_0": numbers(0, 4), "scene_1": numbers(0, 4)})
    truth = read_layout("davis2016", str(tmp_path))
    assert [sequence.name for sequence in truth.sequences] == ["scene_0", "scene_1"]
    assert truth.missing == ()


def test_a_missing_file_is_named(tmp_path):
    write_layout(tmp_path, "davis2016", {"dog": numbers(0, 4)})
    annotation = tmp_path / "Annotations/480p/dog/00002.png"
    annotation.unlink()
    with pytest.raises(GwmError, match=r"dog/00002.png has no ground truth named 00002"):
        read_layout("davis2016", str(tmp_path))
    annotation.write_bytes(PICTURE)
    (tmp_path / "JPEGImages/480p/dog/00003.png").unlink()
    with pytest.raises(GwmError, match=r"dog/00003.png has no frame .*dog/00003"):
        read_layout("davis2016", str(tmp_path))


def test_wrong_roots_and_names_are_one_sentence(tmp_path):
    with pytest.raises(GwmError, match=r"no images under .*Annotations/480p"):
        read_layout("davis2016", str(tmp_path))
    with pytest.raises(GwmError, match="dataset=davis is not known: it is one of davis2016, segtrackv2"):
        read_layout("davis", str(tmp_path))


def test_two_images_of_one_frame_are_refused(tmp_path):
    write_layout(tmp_path, "davis2016", {"dog": numbers(0, 4)})
    (tmp_path / "JPEGImages/480p/dog/00001.jpg").write_bytes(PICTURE)
    with pytest.raises(GwmError, match="two images of one frame"):
        read_layout("davis2016", str(tmp_path))


def test_the_mean_is_over_sequences_for_davis_and_over_frames_for_the_others():
    scores = {"a": [1.0], "b": [0.0, 0.0, 0.0], "c": []}
    assert dataset_mean(LAYOUTS["davis2016"], scores) == 0.5
    assert dataset_mean(LAYOUTS["segtrackv2"], scores) == 0.25
    assert dataset_mean(LAYOUTS["fbms59"], scores) == 0.25
    assert dataset_mean(LAYOUTS["davis2016"], {}) == 0.0


def test_real_davis(test_data):
    truth = read_layout("davis2016", str(test_data / "DAVIS2016"))
    assert len(truth.sequences) == 12
    assert len(truth.missing) == 8
    assert sum(len(sequence.frame_names) for sequence in truth.sequences) == 777
    assert sum(len(official_positions("davis2016", sequence)) for sequence in truth.sequences) == 753
    assert sum(len(paper_positions("davis2016", sequence)) for sequence in truth.sequences) == 741


def test_real_image_pairs(test_data):
    (group,) = read_layout("images", str(test_data / "ECSSD")).sequences
    assert len(group.annotation_urls) == 60
