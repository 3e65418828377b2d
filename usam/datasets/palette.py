"""A folder of frames beside a folder of id maps, per video: the layout that DAVIS and MOSE share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from usam.datasets.files import IdMap, Latest, need_folder, need_same_frames, numbered, picture_size, read_ids, read_rgb
from usam.datasets.samples import DataSet, Frame, Selection
from usam.errors import DatasetError


class PaletteDataSet(DataSet):
    """Videos as `IMAGES/VIDEO/%05d.jpg` with `MASKS/VIDEO/%05d.png`; every id but 0 is an object.

    Args: first_only: only frame 0 has truth that is public; later masks are not looked for.
    """

    def __init__(
        self, split: str, listed: Sequence[str], selection: Selection, folders: tuple[Path, Path], first_only: bool
    ) -> None:
        self._images, self._masks = folders
        self._first_only = first_only
        self._rgb, self._ids = Latest(read_rgb), Latest(read_ids)
        super().__init__(split, listed, selection, self._images)
        for video_id in self.video_ids:
            for folder in folders:
                need_folder(folder / video_id, f"the listed video {video_id}")

    def read(self, video_id: str) -> Iterator[Frame]:
        folders = (self._images / video_id, self._masks / video_id)
        images, masks = numbered(folders[0], ".jpg"), numbered(folders[1], ".png")
        if self._first_only:
            images, masks = ({0: files[0]} if 0 in files else {} for files in (images, masks))
        if not images and not masks:
            raise DatasetError(f"frames from 00000.jpg on in {folders[0]}", "none", "fetch the video again")
        need_same_frames(images, masks, folders)
        for index in self.selection.frames(video_id, list(images)):
            yield Frame(
                self.name,
                self.split,
                video_id,
                index,
                IdMap(masks[index], self._ids),
                partial(self._rgb.copy, images[index]),
                partial(picture_size, images[index]),
            )
