"""S3 as s3fs speaks it, every request tried again where that helps (pipeline/retries.py).

All of s3fs goes through `_call_s3`: listings, puts, the parts of an upload, the ranges that an open file reads.
"""

import io
from typing import Any

import s3fs
from fsspec.asyn import sync_wrapper

from pipeline.retries import BodyCutShortError, retried_async
from pipeline.storage_errors import server_code

OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,  # workers and other machines write while we look
    # Read ahead: a clip or a training frame is a small part of its file. S3 takes no smaller parts in writing.
    "default_block_size": 5 * 2**20,
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 60,
        "retries": {"mode": "standard", "total_max_attempts": 1},
    },
}


class PatientS3(s3fs.S3FileSystem):  # type: ignore[misc]
    """The file system of s3:// for this process and thread."""

    retries = 1  # tries of s3fs itself

    async def _call_s3(self, method: str, *defaults: dict[str, Any], **arguments: Any) -> Any:
        """The answer to one request; the body of an object is read whole before it counts as an answer."""
        await self.set_session()
        num_tries = 0

        async def attempt() -> Any:
            nonlocal num_tries
            num_tries += 1
            try:
                answer = await s3fs.S3FileSystem._call_s3(self, method, *defaults, **arguments)
            except OSError as error:
                if num_tries > 1 and await self._was_done(method, error, arguments):
                    return {}
                raise
            if method == "get_object":
                answer["Body"] = _Body(await _whole_body(answer))
            return answer

        return await retried_async(self._s3.meta.endpoint_url, attempt)

    call_s3 = sync_wrapper(_call_s3)

    async def _was_done(self, method: str, error: OSError, arguments: dict[str, Any]) -> bool:
        """Whether an earlier try, whose answer was lost, did what this try is refused."""
        code = server_code(error)
        if method == "complete_multipart_upload" and code == "NoSuchUpload":
            stored = await self._call_s3("head_object", Bucket=arguments["Bucket"], Key=arguments["Key"])
            num_parts = len(arguments["MultipartUpload"]["Parts"])
            return bool(stored["ETag"].strip('"').endswith(f"-{num_parts}"))
        return method == "abort_multipart_upload" and code == "NoSuchUpload"

    async def _get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        """Downloads an object in ranges, so that a broken connection costs one of them."""
        bucket, key, _version = self.split_path(rpath)
        num_bytes = (await self._info(rpath))["size"]
        await self._download_file_part_concurrent(bucket, key, lpath, num_bytes, self.default_block_size)

    def mkdir(self, path: str, **_: Any) -> None:
        """Nothing: a bucket has no folders, and s3fs would make a bucket that is missing."""


class _Body:
    """The body of an object, in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    async def read(self, num_bytes: int = -1) -> bytes:
        return self._data.read(num_bytes)

    def close(self) -> None:
        self._data.close()


async def _whole_body(answer: dict[str, Any]) -> bytes:
    try:
        data: bytes = await answer["Body"].read()
    finally:
        answer["Body"].close()
    if len(data) != answer.get("ContentLength", len(data)):
        raise BodyCutShortError(f"{len(data)} bytes of {answer['ContentLength']}")
    return data
