"""Procedural videos with exact truth: moving textured shapes that hide, leave, return, and look alike."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

UInt8Array = NDArray[np.uint8]
Float32Array = NDArray[np.float32]

# The mix: how often a clip (or, for `part` and `small`, an object) is hard in each way. The held-out exam freezes these
# numbers by value in benchmarks/heldout.yaml; a change here without a new exam is caught by its fingerprint.
DEFAULT_MIX: dict[str, float] = {
    "camouflage": 0.18,
    "low_contrast": 0.18,
    "noise": 0.40,
    "blur": 0.22,
    "fast": 0.20,
    "twin": 0.22,
    "occluder": 0.20,
    "flicker": 0.15,
    "exit": 0.25,
    "part": 0.65,
    "small": 0.18,
}
_SHAPES = ("blob", "ellipse", "polygon", "star", "rectangle")
_SUPERSAMPLE = 3


@dataclass(frozen=True)
class Clip:
    """One synthetic video and its truth.

    Args:
        frames_thw3: (T, H, W, 3) uint8 RGB.
        ids_thw: (T, H, W) uint8, id of the object seen at each pixel, 0 for background and occluders.
        parts_thw: (T, H, W) uint8, id of the object whose marked part is seen at each pixel, else 0.
        tags: what makes the clip hard, clip-wide.
        object_tags: the same per object id.
        seed: the clip's seed; (seed, frames, size, mix) determine every pixel.
    """

    frames_thw3: UInt8Array
    ids_thw: UInt8Array
    parts_thw: UInt8Array
    tags: frozenset[str]
    object_tags: dict[int, frozenset[str]]
    seed: int

    @property
    def object_ids(self) -> list[int]:
        """Ids of all objects that the scene holds, seen or not."""
        return sorted(self.object_tags)

    def mask(self, object_id: int) -> NDArray[np.bool_]:
        """(T, H, W) bool, the visible pixels of one object, its part included."""
        seen: NDArray[np.bool_] = self.ids_thw == object_id
        return seen


@dataclass
class _Thing:
    """A textured shape on a path; id 0 is an occluder."""

    object_id: int
    verts_n2: Float32Array
    texture: Image.Image
    path_t2: Float32Array
    angle_t: Float32Array
    radius_t: Float32Array
    wobble_amp: float
    wobble_phase: float
    part_verts_n2: Float32Array | None = None
    part_texture: Image.Image | None = None
    tags: set[str] = field(default_factory=set)


def _noise_field(rng: np.random.Generator, n: int, cells: int, channels: int) -> Float32Array:
    """Smooth noise in about [-1, 1], shape (n, n, channels)."""
    layers = []
    for _ in range(channels):
        grid = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        layers.append(np.asarray(grid.resize((n, n), Image.Resampling.BICUBIC)))
    return np.stack(layers, -1)


def _texture(rng: np.random.Generator, n: int, colour_3: NDArray[np.floating], contrast: float) -> Image.Image:
    """A textured RGB tile of n x n pixels around one colour."""
    out = np.broadcast_to(np.asarray(colour_3, np.float32), (n, n, 3)).copy()
    out += contrast * _noise_field(rng, n, int(rng.integers(2, 9)), 1)
    out += 0.5 * contrast * _noise_field(rng, n, int(rng.integers(3, 14)), 3)
    if rng.random() < 0.4:
        yy, xx = np.mgrid[0:n, 0:n] / n
        a, f = rng.uniform(0, np.pi), rng.uniform(2, 9) * 2 * np.pi
        wave = np.sin(f * (xx * np.cos(a) + yy * np.sin(a)) + rng.uniform(0, 6))
        out += (contrast * rng.uniform(0.4, 1.0) * wave)[..., None] * rng.uniform(0.4, 1, 3)
    return Image.fromarray(np.clip(out, 0, 255).astype(np.uint8))


def _shape(rng: np.random.Generator) -> Float32Array:
    """Vertices (n, 2) of a unit shape: its farthest vertex is at distance 1 from the origin."""
    kind = _SHAPES[rng.integers(len(_SHAPES))]
    if kind == "rectangle":
        w, h = 1.0, rng.uniform(0.35, 1.0)
        v = np.array([[-w, -h], [w, -h], [w, h], [-w, h]])
    elif kind == "star":
        k = int(rng.integers(4, 8))
        a = np.arange(2 * k) * np.pi / k
        r = np.where(np.arange(2 * k) % 2 == 0, 1.0, rng.uniform(0.4, 0.7))
        v = np.stack([r * np.cos(a), r * np.sin(a)], 1)
    elif kind == "polygon":
        k = int(rng.integers(3, 8))
        a = np.sort(rng.uniform(0, 2 * np.pi, k)) * 0.5 + np.arange(k) * np.pi / k
        v = np.stack([np.cos(a), np.sin(a)], 1) * rng.uniform(0.7, 1.0, (k, 1))
    else:
        a = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        r = np.ones_like(a)
        if kind == "blob":
            for m in range(2, 5):
                r += rng.uniform(0, 0.28 / (m - 1)) * np.cos(m * a + rng.uniform(0, 6.3))
        v = np.stack([r * np.cos(a), r * np.sin(a) * rng.uniform(0.5, 1.0)], 1)
    unit: Float32Array = (v / np.linalg.norm(v, axis=1).max()).astype(np.float32)
    return unit


def _path(rng: np.random.Generator, frames: int, radius: float, fast: bool, exits: bool) -> Float32Array:
    """Centre of a thing per frame, (T, 2) in units of the frame's side."""
    t = np.arange(frames, dtype=np.float32)
    speed = rng.uniform(0.03, 0.07) if fast else rng.uniform(0.0, 0.016)
    heading = rng.uniform(0, 2 * np.pi)
    lo, hi = 0.12 + 0.5 * radius, 0.88 - 0.5 * radius
    start = rng.uniform(lo, max(hi, lo + 0.02), 2)
    line = start + speed * t[:, None] * np.array([np.cos(heading), np.sin(heading)])
    sway = rng.uniform(0, 0.05, 2) * np.sin(2 * np.pi * t[:, None] / rng.uniform(8, 30, 2) + rng.uniform(0, 6.3, 2))
    span = max(hi - lo, 0.05)
    folded = np.abs((line - lo) % (2 * span) - span)  # bounces between the borders
    path = lo + span - folded + sway
    if exits:
        side, away = int(rng.integers(4)), np.zeros(frames)
        first = int(rng.integers(max(2, frames // 6), max(3, frames * 2 // 3)))
        gone = int(rng.integers(max(2, frames // 8), max(3, frames // 2)))
        ramp = int(rng.integers(2, 6))
        back = rng.random() < 0.65
        for i in range(frames):
            leave = np.clip((i - first) / ramp, 0, 1)
            come = np.clip((i - first - ramp - gone) / ramp, 0, 1) if back else 0.0
            away[i] = leave - come
        out = -1.4 * radius - 0.02 if side % 2 == 0 else 1 + 1.4 * radius + 0.02
        axis = side // 2
        path[:, axis] = path[:, axis] * (1 - away) + out * away
    result: Float32Array = path.astype(np.float32)
    return result


def _motion(rng: np.random.Generator, frames: int, radius: float) -> tuple[Float32Array, Float32Array]:
    """Angle (radians) and radius (frame sides) of a thing per frame."""
    t = np.arange(frames, dtype=np.float32)
    spin = rng.normal(0, 0.05) if rng.random() < 0.7 else 0.0
    angle = rng.uniform(0, 6.3) + spin * t + rng.uniform(0, 0.25) * np.sin(t / rng.uniform(2, 8))
    grow = np.exp(rng.uniform(-0.012, 0.012) * t + rng.uniform(0, 0.1) * np.sin(t / rng.uniform(3, 9)))
    return angle.astype(np.float32), (radius * grow).astype(np.float32)


def _paint(canvas: Float32Array, thing: _Thing, t: int, size: int, ids: UInt8Array, parts: UInt8Array) -> None:
    """Draw one thing over the canvas and the truth maps of one frame, in place."""
    c, s = np.cos(thing.angle_t[t]), np.sin(thing.angle_t[t])
    rot = np.array([[c, -s], [s, c]], np.float32)
    r = float(thing.radius_t[t]) * size
    centre = thing.path_t2[t] * size

    def place(verts_n2: Float32Array) -> Float32Array:
        a = np.arctan2(verts_n2[:, 1], verts_n2[:, 0])
        w = 1 + thing.wobble_amp * np.sin(3 * a + thing.wobble_phase + 0.5 * t)
        placed: Float32Array = (verts_n2 * w[:, None] * r) @ rot.T + centre
        return placed

    for verts, texture, is_part in (
        (thing.verts_n2, thing.texture, False),
        (thing.part_verts_n2, thing.part_texture, True),
    ):
        if verts is None or texture is None:
            continue
        pts = place(verts)
        x0, y0 = np.floor(pts.min(0) - 1).astype(int).clip(0, size)
        x1, y1 = np.ceil(pts.max(0) + 1).astype(int).clip(0, size)
        if x1 <= x0 or y1 <= y0:
            continue
        k = _SUPERSAMPLE
        cover = Image.new("L", ((x1 - x0) * k, (y1 - y0) * k))
        local = (pts - (x0, y0)) * k
        ImageDraw.Draw(cover).polygon([(float(x), float(y)) for x, y in local], fill=255)
        alpha = np.asarray(cover.reduce(k), np.float32) / 255
        # texture moves with the thing: output pixel -> texture pixel
        n = texture.width
        g = n / (2.3 * r)
        ox, oy = x0 - centre[0], y0 - centre[1]
        affine = (g * c, g * s, n / 2 + g * (c * ox + s * oy), -g * s, g * c, n / 2 + g * (-s * ox + c * oy))
        skin = texture.transform(
            (int(x1 - x0), int(y1 - y0)), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
        )
        region = canvas[y0:y1, x0:x1]
        region += alpha[..., None] * (np.asarray(skin, np.float32) - region)
        solid = alpha > 0.5
        if is_part:  # a part never leaves its whole
            solid &= ids[y0:y1, x0:x1] == thing.object_id
        else:
            ids[y0:y1, x0:x1][solid] = thing.object_id
        parts[y0:y1, x0:x1][solid] = thing.object_id if is_part else 0


def _make_things(
    rng: np.random.Generator, frames: int, size: int, tags: set[str], mix: dict[str, float], ground: Image.Image
) -> list[_Thing]:
    """The scene's objects and occluders, back to front."""
    ground_mean = np.asarray(ground, np.float32).mean((0, 1))
    n_tex = min(max(64, size // 2), ground.width)
    things: list[_Thing] = []
    count = int(rng.choice([1, 2, 3, 4], p=[0.25, 0.35, 0.25, 0.15]))
    if "twin" in tags:
        count = max(count, 2)
    special = int(rng.integers(count))  # the object that the clip's hard tags apply to
    for i in range(count):
        own: set[str] = set()
        small = rng.random() < mix["small"]
        radius = rng.uniform(0.045, 0.075) if small else rng.uniform(0.09, 0.24)
        fast = "fast" in tags and (i == special or rng.random() < 0.3)
        exits = "exit" in tags and (i == special or rng.random() < 0.3)
        verts = _shape(rng)
        colour = rng.uniform(20, 235, 3)
        contrast = rng.uniform(8, 45)
        if "camouflage" in tags and (i == special or rng.random() < 0.4):
            own.add("camouflage")
            x, y = rng.integers(0, ground.width - n_tex + 1, 2)
            shifted = np.asarray(ground.crop((x, y, x + n_tex, y + n_tex)), np.float32)
            shifted = shifted + rng.choice([-1, 1]) * rng.uniform(8, 22) + rng.uniform(-6, 6, 3)
            texture = Image.fromarray(shifted.clip(0, 255).astype(np.uint8))
        else:
            if "low_contrast" in tags and (i == special or rng.random() < 0.4):
                own.add("low_contrast")
                colour = ground_mean + rng.choice([-1, 1]) * rng.uniform(18, 36) + rng.uniform(-8, 8, 3)
                contrast = rng.uniform(4, 14)
            texture = _texture(rng, n_tex, colour, contrast)
        angle, radii = _motion(rng, frames, radius)
        thing = _Thing(
            object_id=i + 1,
            verts_n2=verts,
            texture=texture,
            path_t2=_path(rng, frames, radius, fast, exits),
            angle_t=angle,
            radius_t=radii,
            wobble_amp=float(rng.uniform(0, 0.12)) if rng.random() < 0.5 else 0.0,
            wobble_phase=float(rng.uniform(0, 6.3)),
        )
        if rng.random() < mix["part"] and not small:
            off = rng.uniform(-0.35, 0.35, 2)
            thing.part_verts_n2 = (0.45 * _shape(rng) + off).astype(np.float32)
            thing.part_texture = _texture(rng, n_tex, rng.uniform(20, 235, 3), rng.uniform(5, 30))
            own.add("part")
        own |= {name for name, on in (("fast", fast), ("exit", exits), ("small", small)) if on}
        thing.tags = own
        things.append(thing)
    if "twin" in tags:
        source, twin = things[special], things[(special + 1) % count]
        twin.verts_n2, twin.texture = source.verts_n2, source.texture
        twin.part_verts_n2, twin.part_texture = source.part_verts_n2, source.part_texture
        twin.wobble_amp = source.wobble_amp
        twin.radius_t = (twin.radius_t / twin.radius_t[0] * source.radius_t[0]).astype(np.float32)
        looks = {"part", "small", "camouflage", "low_contrast"}
        twin.tags = {"twin"} | (source.tags & looks) | (twin.tags - looks)
        source.tags |= {"twin"}
    order = list(rng.permutation(count))
    things = [things[i] for i in order]
    if "occluder" in tags:
        for _ in range(int(rng.integers(1, 3))):
            w, length = rng.uniform(0.06, 0.16), 1.3
            bar = np.array([[-length, -w], [length, -w], [length, w], [-length, w]], np.float32)
            drift = rng.normal(0, 0.006, 2)
            path = rng.uniform(0.25, 0.75, 2) + drift * np.arange(frames)[:, None]
            things.append(
                _Thing(
                    object_id=0,
                    verts_n2=bar / length,
                    texture=_texture(rng, n_tex, rng.uniform(20, 235, 3), rng.uniform(5, 40)),
                    path_t2=path.astype(np.float32),
                    angle_t=np.full(frames, rng.uniform(0, 6.3), np.float32),
                    radius_t=np.full(frames, length, np.float32),
                    wobble_amp=0.0,
                    wobble_phase=0.0,
                )
            )
    return things


def render_clip(seed: int, *, frames: int = 24, size: int = 128, mix: dict[str, float] | None = None) -> Clip:
    """Draw one clip.

    Args:
        seed: any int >= 0; the same arguments give the same pixels.
        frames: number of frames, >= 1.
        size: side of the square frame in pixels, >= 32.
        mix: probability of each difficulty, as `DEFAULT_MIX`; missing names take its values.
    Returns: the clip with its truth.
    """
    rng = np.random.default_rng(seed)
    mix = {**DEFAULT_MIX, **(mix or {})}
    tags = {name for name in DEFAULT_MIX if name not in ("part", "small") and rng.random() < mix[name]}
    wide = int(size * 1.5)
    ground = _texture(rng, wide, rng.uniform(30, 225, 3), rng.uniform(8, 50))
    things = _make_things(rng, frames, size, tags, mix, ground)
    pan = np.clip(
        (wide - size) / 2 + size * 0.004 * rng.normal(0, 1, 2) * np.arange(frames)[:, None], 0, wide - size
    ).astype(int)
    gain = 1 + (rng.uniform(0.05, 0.25) * rng.normal(0, 1, frames) if "flicker" in tags else np.zeros(frames))
    sigma = rng.uniform(6, 22) if "noise" in tags else rng.uniform(0, 3)
    blur = rng.uniform(0.6, 1.7) * size / 128 if "blur" in tags else 0.0
    ground_hw3 = np.asarray(ground, np.float32)
    rgb = np.empty((frames, size, size, 3), np.uint8)
    ids = np.zeros((frames, size, size), np.uint8)
    parts = np.zeros((frames, size, size), np.uint8)
    for t in range(frames):
        x, y = pan[t]
        canvas = ground_hw3[y : y + size, x : x + size].copy()
        for thing in things:
            _paint(canvas, thing, t, size, ids[t], parts[t])
        canvas *= gain[t]
        if blur:
            soft = Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
            canvas = np.asarray(soft, np.float32)
        canvas = canvas + sigma * rng.standard_normal((size, size, 1), np.float32)
        rgb[t] = canvas.clip(0, 255)
    object_tags = {thing.object_id: frozenset(thing.tags) for thing in things if thing.object_id}
    return Clip(rgb, ids, parts, frozenset(tags), object_tags, seed)
