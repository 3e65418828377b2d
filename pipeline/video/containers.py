"""Which files are opened at all: containers that hold their frames in themselves, not lists of other files.

To FFmpeg a "video" may be a text that names files or hosts (ffconcat, an HLS or DASH playlist, SDP) or a pattern of
picture names, and it would read files that the sender of the video must not see. So the demuxers are named that are
allowed, and of the protocols only the local file. Still pictures are no videos and are refused as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import VideoError

CONTAINERS = (
    "mov", "mp4", "matroska", "webm", "mpegts", "mpeg", "avi", "flv", "asf", "ogg", "mxf", "nut", "ivf", "gif", "dv",
    "h264", "hevc", "av1", "obu", "m4v", "mpegvideo", "yuv4mpegpipe",
)  # fmt: skip
"""FFmpeg's names of demuxers that read the file that they are given and no other."""


def open_container(path: Path, options: dict[str, str] | None = None) -> Any:
    """PyAV's container of a local file, which opens nothing besides that file.

    Args: options: more options of the demuxer.
    Raises: VideoError for a container that is not on the list; what PyAV raises for an unreadable one.
    """
    import av

    only = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
    # An absolute path has no scheme: a file called "concat:a.mp4" is that file.
    container = av.open(str(path.absolute()), options={**(options or {}), **only})
    try:
        require_container(path, container.format.name)
    except VideoError:
        container.close()
        raise
    return container


def require_container(path: Path, name: str) -> None:
    """Refuse a demuxer, by FFmpeg's name, that is not on the list.

    Raises: VideoError.
    """
    if not set(name.split(",")) & set(CONTAINERS):
        raise VideoError(
            "a video file that holds its own frames",
            f"{path}, which FFmpeg reads as {name}: a playlist, a still picture or another list of files",
            "name the video itself, or encode it as an mp4 first",
            path=path,
        )
