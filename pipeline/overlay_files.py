"""Where masks are drawn for people: a film of each video, one sheet of photos. Both show all masks that there are.

<output>/overlays/<video>.mp4     a video's frames with their masks; a folder of frames is called <folder>.mp4
<output>/contact_sheet.jpg        some of the photos with theirs
"""

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.file_names import safe_key
from pipeline.records import Row

CONTACT_SHEET = "contact_sheet.jpg"
SUFFIX = ".mp4"


def overlay_url(video: str, output: str) -> str:
    """Where the film of a video of this name is, or will be."""
    key = safe_key(video)
    return storage.join(output, "overlays", key if key.lower().endswith(SUFFIX) else f"{key}{SUFFIX}")


def contact_sheet_url(output: str) -> str:
    """Where the sheet is, or will be."""
    return storage.join(output, CONTACT_SHEET)


def forget_drawing(row: Row, dataset: Dataset) -> None:
    """Removes what was drawn of an input, a row of `inputs_of`, before more of its masks are made: it is drawn anew."""
    is_video = row["kind"] != "images"
    url = overlay_url(row["names"][0], dataset.url) if is_video else contact_sheet_url(dataset.url)
    if storage.exists(url):
        storage.delete(url)
