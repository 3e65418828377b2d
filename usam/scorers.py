"""The paper's entropies of an image's objects: over masks, clicks, perturbed images and model sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from usam.capture import DecoderCall
from usam.entropy import mask_weighted_entropy, probabilities, score_weights
from usam.errors import EvaluationError, ShapeError
from usam.image import EncodedImage, decode_points, encode_image, upsampled_iou
from usam.perturb import PERTURBATIONS, perturb

Entropy = Literal["H_Std", "H_A", "H_XP", "H_T", "H_Theta", "H_Y"]
Select = Literal["gt", "sam_score"]
ENTROPIES: tuple[Entropy, ...] = get_args(Entropy)


class ImageViews:
    """An image as several models see it under perturbations; each pair is encoded once, and the plain ones are kept.

    Args:
        models: sam2 `SAM2Base` by name of size, e.g. tiny and large; one may be enough.
        rgb_hw3: (H, W, 3) uint8.
        seed: of the noise.
    """

    def __init__(self, models: Mapping[str, Any], rgb_hw3: NDArray[np.uint8], seed: int | Sequence[int] = 0) -> None:
        self.models, self.rgb_hw3, self.seed = dict(models), rgb_hw3, seed
        self._plain: dict[str, EncodedImage] = {}

    def model(self, name: str) -> Any:
        """A model by name.

        Raises: EvaluationError for an unknown one.
        """
        if name not in self.models:
            raise EvaluationError(f"a model out of {', '.join(self.models)}", repr(name), "correct the name")
        return self.models[name]

    def plain(self, name: str) -> EncodedImage:
        """The unperturbed image as one model encodes it: at the first call, kept from then on."""
        if name not in self._plain:
            self._plain[name] = encode_image(self.model(name), self.rgb_hw3)
        return self._plain[name]

    def perturbed(self, perturbation: str, names: Sequence[str]) -> Iterator[tuple[str, EncodedImage]]:
        """One perturbed image as several models encode it, one after the other; nothing but the plain image is kept."""
        if perturbation == "identity":
            yield from ((name, self.plain(name)) for name in names)
            return
        rgb_hw3 = perturb(perturbation, self.rgb_hw3, self.seed)
        yield from ((name, encode_image(self.model(name), rgb_hw3)) for name in names)


@torch.inference_mode()
def image_entropies(
    views: ImageViews,
    deployed: str,
    points_k82: NDArray[np.floating[Any]],
    truth_khw: NDArray[np.bool_] | None = None,
    *,
    select: Select = "sam_score",
    kinds: Sequence[Entropy] = ENTROPIES,
    batch_prompts: int = 64,
) -> dict[Entropy, Tensor]:
    """Entropies of every object of an image.

    | name | map given to H |
    |---|---|
    | H_Std | the chosen mask |
    | H_A | the three masks, weighted by SAM2's scores |
    | H_XP | mean over eight clicks, each a prompt of its own |
    | H_T | mean over five perturbed images |
    | H_Theta | mean over the models |
    | H_Y | all of them: 1 / models * 1/5 * 1/8 * score / sum of scores |

    "The chosen mask" is picked per click, image and model: with `sam_score` the one that SAM2 scores best, which is
    what production can know; with `gt` the one nearest to the truth, as published. Maps of models with another grid
    are resampled to the deployed model's.

    Args:
        views: the image and the models; each (model, perturbation) is encoded at most once, and encodings are reused.
        deployed: the model whose mask is judged.
        points_k82: (k, 8, 2) pixels of the image: centre click first, see `usam.prompts.dense_points`.
        truth_khw: (k, H, W) bool, for `select="gt"` only.
        select: see above.
        kinds: which entropies; only what they need is run.
        batch_prompts: clicks per decoder call.
    Returns: by name (k,) float32 on the CPU, bits in [0, 1].
    Raises:  EvaluationError for an unknown kind or model, or `gt` without truth; ShapeError for other points.
    Source:  Kaiser et al., ICML 2025.
    """
    return entropies_by_model(
        views, [deployed], points_k82, truth_khw, select=select, kinds=kinds, batch_prompts=batch_prompts
    )[deployed]


@torch.inference_mode()
def entropies_by_model(
    views: ImageViews,
    deployed: Sequence[str],
    points_k82: NDArray[np.floating[Any]],
    truth_khw: NDArray[np.bool_] | None = None,
    *,
    select: Select = "sam_score",
    kinds: Sequence[Entropy] = ENTROPIES,
    batch_prompts: int = 64,
) -> dict[str, dict[Entropy, Tensor]]:
    """`image_entropies` of several models' masks at once: they share encoder runs and decodings.

    Args:    deployed: the models whose masks are judged; the rest as `image_entropies` takes it.
    Returns: by model what `image_entropies` gives; H_Theta and H_Y differ only where grids do.
    Raises:  as `image_entropies`.
    """
    _check(views, deployed, points_k82, truth_khw, select, kinds)
    grids = {name: views.model(name).sam_image_embedding_size * 4 for name in deployed}
    clicks, models = points_k82.shape[1], list(views.models)
    maps: dict[tuple[Entropy, str | None, int], Tensor] = {}  # by kind, whose (None: everybody's) and grid

    def add(kind: Entropy, map_khw: Tensor, rows: slice, whose: str | None = None) -> None:
        if kind in kinds:
            for size in {grids[whose]} if whose else set(grids.values()):
                key = kind, whose, size
                if key not in maps:
                    maps[key] = map_khw.new_zeros(len(points_k82), size, size)
                maps[key][rows] += resampled(map_khw, size).to(maps[key].device)

    for perturbation in PERTURBATIONS:
        plain = perturbation == "identity"
        wanted = models if "H_Y" in kinds or (plain and "H_Theta" in kinds) else list(deployed)
        if not plain and not {"H_Y", "H_T"} & set(kinds):
            break
        for name, image in views.perturbed(perturbation, wanted):
            own = name in deployed
            used = clicks if "H_Y" in kinds or (plain and own and "H_XP" in kinds) else 1
            for rows, call in _decoded(views.model(name), image, points_k82[:, :used], batch_prompts):
                prob_kx3hw = probabilities(call.candidates_n3hw).unflatten(0, (-1, used))
                weight_kx3 = score_weights(call.candidate_scores_n3).unflatten(0, (-1, used))
                mixed_kxhw = torch.einsum("kxj,kxjhw->kxhw", weight_kx3, prob_kx3hw)
                chosen_kxhw = _chosen(call, prob_kx3hw, None if truth_khw is None else truth_khw[rows], select)
                if plain and own:
                    add("H_Std", chosen_kxhw[:, 0], rows, name)
                    add("H_A", mixed_kxhw[:, 0], rows, name)
                    add("H_XP", chosen_kxhw.mean(1), rows, name)
                if own:
                    add("H_T", chosen_kxhw[:, 0] / len(PERTURBATIONS), rows, name)
                if plain:
                    add("H_Theta", chosen_kxhw[:, 0] / len(models), rows)
                add("H_Y", mixed_kxhw.mean(1) / (len(PERTURBATIONS) * len(models)), rows)
    bits = {key: mask_weighted_entropy(map_khw).cpu() for key, map_khw in maps.items()}
    shared = ("H_Theta", "H_Y")
    return {
        name: {kind: bits[kind, None if kind in shared else name, size] for kind in kinds}
        for name, size in grids.items()
    }


def _decoded(
    model: Any, image: EncodedImage, points_kx2: NDArray[np.floating[Any]], batch_prompts: int
) -> Iterator[tuple[slice, DecoderCall]]:
    """Whole objects at a time, as many as fit into a batch."""
    clicks = points_kx2.shape[1]
    step = max(1, batch_prompts // clicks)
    for start in range(0, len(points_kx2), step):
        rows = slice(start, min(start + step, len(points_kx2)))
        yield rows, decode_points(model, image, points_kx2[rows].reshape(-1, 1, 2), batch_prompts=batch_prompts)


def _chosen(call: DecoderCall, prob_kx3hw: Tensor, truth_khw: NDArray[np.bool_] | None, select: Select) -> Tensor:
    if select == "gt" and truth_khw is not None:
        logits = call.candidates_n3hw.unflatten(0, prob_kx3hw.shape[:2])
        index_kx = upsampled_iou(logits, truth_khw).argmax(-1)
    else:
        index_kx = call.candidate_scores_n3.argmax(-1).unflatten(0, prob_kx3hw.shape[:2])
    return prob_kx3hw.take_along_dim(index_kx[..., None, None, None], 2)[:, :, 0]


def resampled(map_khw: Tensor, size: int) -> Tensor:
    """Square maps (k, h, w) float on another grid, (k, size, size), bilinear; untouched if they have the size."""
    if map_khw.shape[-1] == size:
        return map_khw
    return functional.interpolate(map_khw[:, None], size=(size, size), mode="bilinear", align_corners=False)[:, 0]


def _check(
    views: ImageViews,
    deployed: Sequence[str],
    points_k82: NDArray[np.floating[Any]],
    truth_khw: NDArray[np.bool_] | None,
    select: str,
    kinds: Sequence[str],
) -> None:
    for name in deployed:
        views.model(name)
    odd = [kind for kind in kinds if kind not in ENTROPIES]
    if odd:
        raise EvaluationError(f"entropies out of {', '.join(ENTROPIES)}", repr(odd[0]), "correct the name")
    if select not in get_args(Select) or (select == "gt" and truth_khw is None):
        got = "gt without truth" if select == "gt" else repr(select)
        raise EvaluationError("select sam_score, or gt with truth", got, "give truth_khw or choose by SAM2's score")
    if points_k82.ndim != 3 or points_k82.shape[2] != 2 or 0 in points_k82.shape:
        raise ShapeError("points (k, 8, 2)", str(points_k82.shape), "use usam.prompts.dense_points per object")
    shape = (len(points_k82), *views.rgb_hw3.shape[:2])
    if truth_khw is not None and truth_khw.shape != shape:
        raise ShapeError(f"truth {shape}", str(truth_khw.shape), "give one mask per object at the image's size")
