"""Looks at a video every N frames for objects that no track follows, and says which automatic tracks have left."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

from pipeline.auto_prompts import Proposals, propose
from pipeline.prompts import FramePrompt, ObjectPrompts, PromptSet

if TYPE_CHECKING:
    from pipeline.propagate import FrameResult, Session
    from pipeline.settings import AutoPromptSettings
    from pipeline.steps import Features

FIRST_OBJECT_ID = 1
_METHOD = 2  # counted up when other proposals come out of the same settings, so that videos are labelled anew


def automatic_prompts(rules: AutoPromptSettings) -> PromptSet:
    """The prompts of a video that nobody prompted: no objects yet, and a hash of how they will be found."""
    how = {"auto": rules.model_dump(mode="json"), "method": _METHOD}
    text = json.dumps(how, sort_keys=True, separators=(",", ":"))
    return PromptSet((), hashlib.sha256(text.encode()).hexdigest(), "automatic prompts")


class Discovery:
    """Finds objects on the way; the session that it is attached to calls it after every frame.

    It looks on the first frame, on every `every_frames`-th, on the last, and on the first frame of a new shot; without
    `every_frames`, on the first frame alone. What it finds gets the next object_id, largest first, and is followed back
    to the look before at most, never into another shot. An object that its model has called absent for
    `end_after_absent` frames in a row has left: the session follows it no further, and if it comes back it is a new
    object.

    Args:
        model: SAM2 in eval mode.
        video_hw: height and width of the video as presented, px.
        rules: the thresholds and limits.

    Attributes:
        reaches_back: whether the latest look found objects that are followed back from it.
        shot_starts: frames on which a new shot begins, each added before it is looked at; the session's barriers are
            heeded as well.
    """

    def __init__(self, model: Any, video_hw: tuple[int, int], rules: AutoPromptSettings) -> None:
        self.model, self.video_hw, self.rules = model, video_hw, rules
        self.reaches_back, self.shot_starts = False, set[int]()
        self._session: Session | None = None
        self._next_id = FIRST_OBJECT_ID
        self._latest_look = 0
        self._absent: dict[int, int] = {}  # of each object that is followed: frames in a row without it

    def attach(self, session: Session) -> None:
        """Heed a session's length and barriers, and end its tracks. The session was made with this as `discover`."""
        self._session = session

    def __call__(self, index: int, features: Features, results: list[FrameResult]) -> list[ObjectPrompts]:
        """What is new on this frame.

        Args:   index: of the frame; every frame comes once, in order.
                features: the encoder's output.
                results: of the objects that are followed.
        """
        self._end_what_left(results)
        if not self.looks_at(index):
            return []
        room = min(self.rules.max_objects - len(self._absent), self.rules.max_total - (self._next_id - FIRST_OBJECT_ID))
        visible = [r.logits_hw > 0 for r in results if r.visibility == "visible" and r.logits_hw is not None]
        found: list[ObjectPrompts] = []
        if room > 0:
            proposals = propose(self.model, features, self.rules, torch.stack(visible) if visible else None)
            found = [self._object(index, proposals, row) for row in range(min(room, len(proposals)))]
        self.reaches_back = bool(found) and index > 0 and not self._begins_shot(index)
        self._latest_look = index
        return found

    def looks_at(self, index: int) -> bool:
        """Whether this frame is looked at."""
        if index == 0 or self.rules.every_frames is None:
            return index == 0
        last = self._session is not None and index == self._session.num_frames - 1
        return index % self.rules.every_frames == 0 or last or self._begins_shot(index)

    def frames_to_next_look(self, index: int) -> int:
        """How many frames there are at most from this one on, before the next that is looked at or the video's end."""
        every = self.rules.every_frames or 1
        frames = every - index % every
        return frames if self._session is None else min(frames, self._session.num_frames - index)

    def state(self) -> dict[str, Any]:
        """Everything that is remembered between two frames, as plain lists and numbers."""
        return {
            "reaches_back": self.reaches_back,
            "shot_starts": sorted(self.shot_starts),
            "next_id": self._next_id,
            "latest_look": self._latest_look,
            "absent": dict(self._absent),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.reaches_back, self.shot_starts = bool(state["reaches_back"]), set(state["shot_starts"])
        self._next_id, self._latest_look = int(state["next_id"]), int(state["latest_look"])
        self._absent = {int(one): int(frames) for one, frames in state["absent"].items()}

    def _begins_shot(self, index: int) -> bool:
        return index in self.shot_starts or (self._session is not None and index in self._session.barriers)

    def _end_what_left(self, results: list[FrameResult]) -> None:
        visibility = {result.object_id: result.visibility for result in results}
        for object_id in list(self._absent):
            seen = visibility.get(object_id, "untracked")
            self._absent[object_id] = 0 if seen == "visible" else self._absent[object_id] + 1
            if seen == "untracked" or self._absent[object_id] >= self.rules.end_after_absent:
                del self._absent[object_id]
                if self._session is not None:
                    self._session.end(object_id)

    def _object(self, index: int, proposals: Proposals, row: int) -> ObjectPrompts:
        height, width = self.video_hw
        scale_4 = torch.tensor([width, height, width, height]) / self.model.image_size
        box_xyxy = (proposals.boxes_n4[row].cpu() * scale_4).numpy()
        object_id, self._next_id = self._next_id, self._next_id + 1
        self._absent[object_id] = 0
        earliest = index if self._begins_shot(index) else self._latest_look
        return ObjectPrompts(object_id, None, (FramePrompt(index, box_xyxy=box_xyxy, auto=True),), earliest)
