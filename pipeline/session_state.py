"""A session's state between two frames as plain tensors, numbers and strings, and back: it goes on bit for bit."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import PropagationError
from pipeline.prompts import FramePrompt, ObjectPrompts
from pipeline.results import FrameResult
from pipeline.track import Memory, Track

if TYPE_CHECKING:
    from pipeline.propagate import Session

VERSION = 1


def take_state(session: Session) -> dict[str, Any]:
    """Everything that the passes still need, on the CPU, sharing no storage with the session.

    Returns: nested dictionaries and lists of tensors, numbers and strings, which `torch.load(weights_only=True)` reads.
    """
    return {
        "version": VERSION,
        "stage": session.stage,
        "next_frame": session.next_frame,
        "num_frames": session.num_frames,
        "barriers": sorted(session.barriers),
        "place": _own(session.memory_place),
        "tracks": [_plain_track(track) for track in session.tracks],
        "prompted": [_plain_result(result) for result in session.prompted.values()],
    }


def put_state(session: Session, state: dict[str, Any]) -> None:
    """Bring a new session to a state that was taken of one like it.

    Raises: PropagationError for a state of another version, another length, or of other objects.
    """
    expected = f"a state of version {VERSION} over {session.num_frames} frames"
    got = f"version {state.get('version')} over {state.get('num_frames')} frames"
    again = "start the video from its beginning"
    if (state.get("version"), state.get("num_frames")) != (VERSION, session.num_frames):
        raise PropagationError(expected, got, again)
    own = {track.object_id: track for track in session.tracks}
    given = [p["object_id"] for p in state["tracks"] if not p["discovered"] or p["object_id"] in own]
    if sorted(own) != sorted(given):
        raise PropagationError(f"a state of objects {sorted(own)}", f"one of {sorted(given)}", again)
    device = session.device
    session.tracks = [
        _fill(own.get(plain["object_id"]) or _discovered(plain, session.num_frames), plain, device)
        for plain in state["tracks"]
    ]
    session.stage, session.next_frame = state["stage"], state["next_frame"]
    session.barriers = set(state["barriers"])
    session.memory_place = None if state["place"] is None else state["place"].to(device)
    results = [_result(plain, device) for plain in state["prompted"]]
    session.prompted = {(result.object_id, result.frame_index): result for result in results}


def _own(tensor: Tensor | None) -> Tensor | None:
    """A copy on the CPU: a slice would be written with its whole group's storage."""
    return None if tensor is None else tensor.detach().to("cpu", copy=True).contiguous()


def _plain_track(track: Track) -> dict[str, Any]:
    memories = {
        name: {index: (_own(m.spatial_1chw), _own(m.pointer_1c)) for index, m in found.items()}
        for name, found in (("conditioning", track.conditioning), ("propagated", track.propagated))
    }
    return {
        "object_id": track.object_id,
        "earliest": track.earliest,
        "discovered": track.discovered,
        "active": track.active,
        "ended": track.ended,
        "prompts": [_plain_prompt(prompt) for prompt in track.prompts.values()] if track.discovered else [],
        **memories,
    }


def _plain_prompt(prompt: FramePrompt) -> dict[str, Any]:
    if prompt.mask_hw is not None:
        raise PropagationError("a discovered object prompted by clicks or a box", "one by a mask", "prompt it by a box")
    arrays = (prompt.points_n2, prompt.labels_n, prompt.box_xyxy)
    points, labels, box = (None if array is None else torch.from_numpy(np.array(array)) for array in arrays)
    return {"frame_index": prompt.frame_index, "points": points, "labels": labels, "box": box, "auto": prompt.auto}


def _discovered(plain: dict[str, Any], num_frames: int) -> Track:
    def array(value: Tensor | None) -> Any:
        return None if value is None else value.numpy()

    prompts = tuple(
        FramePrompt(p["frame_index"], array(p["points"]), array(p["labels"]), array(p["box"]), auto=p["auto"])
        for p in plain["prompts"]
    )
    return Track.of(ObjectPrompts(plain["object_id"], None, prompts, plain["earliest"]), num_frames, discovered=True)


def _fill(track: Track, plain: dict[str, Any], device: torch.device) -> Track:
    track.discovered, track.active, track.ended = plain["discovered"], plain["active"], plain["ended"]
    track.conditioning, track.propagated = (
        {
            int(index): Memory(None if spatial is None else spatial.to(device), pointer.to(device))
            for index, (spatial, pointer) in plain[name].items()
        }
        for name in ("conditioning", "propagated")
    )
    return track


def _plain_result(result: FrameResult) -> dict[str, Any]:
    values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return {name: _own(value) if isinstance(value, Tensor) else value for name, value in values.items()}


def _result(plain: dict[str, Any], device: torch.device) -> FrameResult:
    values: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in plain.items()}
    return FrameResult(**values)
