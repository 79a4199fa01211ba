"""Names of files that are made of the names of inputs."""

import hashlib
import re

from pipeline import storage

MAX_NAME_BYTES = 200
"""Of one part of a path; file systems take 255, with our suffix."""
DIGEST_MARK = "~"
PICTURES = (".png", ".jpg")
"""Suffixes of what is written: a folder that has one could be in the way of a file."""


def safe_key(name: str, *, is_folder: bool = False) -> str:
    """A source's name as a path below a folder: never out of it, never another's, never too long to write.

    A plain name stays as it is. Any other lies in a folder of its own that is called after its digest.
    """
    *folders, last = parts = name.split("/")
    files = [] if is_folder else [last]
    folders = folders if files else parts
    if all(map(_is_plain, parts)) and not any(part.endswith(PICTURES) for part in folders):
        return name
    own = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32]
    shown = [re.sub(r"[^\w.-]|^\.", "_", part)[: MAX_NAME_BYTES // 4] for part in parts if part.strip(".")]
    return "/".join([f"{DIGEST_MARK}{own}", *shown[-2:]])


def _is_plain(part: str) -> bool:
    """Whether a part of a name may be written, and hides nothing."""
    is_short = 0 < len(part.encode(errors="surrogateescape")) <= MAX_NAME_BYTES
    starts_well = not part.startswith((DIGEST_MARK, storage.TEMPORARY_PREFIX)) and part.strip(".") != ""
    return is_short and starts_well and part.isprintable() and "\\" not in part
