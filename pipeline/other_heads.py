"""Heads for facts that are there already: found by the model that made them, refused if they do not fit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from pipeline.errors import HeadError
from pipeline.models import bank_folders, resolve_device
from pipeline.records import HEAD_COLUMNS
from pipeline.score import bank_scores, score_head
from pipeline.settings import Settings
from pipeline.tokens import Beside, has_features, token_offset
from usam.bank_files import bank_path_for
from usam.heads import HeadBank
from usam.targets import STACKED
from usam.weights import bank_sha256, load_bank


class Fitting(NamedTuple):
    """Heads that fit some facts.

    Attributes:
        heads_alone: their stacker was left out, because the tokens have no track features for it.
    """

    bank: HeadBank
    sha256: str
    heads_alone: bool


class Banks:
    """Finds heads; each bank is loaded once. Threads may share it.

    Args:
        settings: `score.bank` names one for all; without it every model has the one that is installed for it.
    Raises: HeadError if the bank that is named cannot be read; ModelError for a device that is not there.
    """

    def __init__(self, settings: Settings) -> None:
        self._device = resolve_device(settings.model.device)
        self._folders = bank_folders(settings.model.cache_dir)
        self._lock, self._installed = Lock(), dict[str, HeadBank]()
        path = settings.score.bank
        self._named = None if path is None else load_bank(path).to(self._device)

    def fitting(self, facts: Mapping[str, Any], tokens: Mapping[str, Any]) -> Fitting:
        """The heads for facts by what the metadata of their two files say.

        Raises: HeadError if there are none for this model, those that were named are of another, or they are fed
                another token than was kept.
        """
        model = facts.get("model") or {}
        name, sha256 = str(model.get("name")), str(model.get("sha256"))
        bank = self._named or self._of_model(name, sha256)
        if bank.card.model_sha256 != sha256:
            got = f"heads of {bank.card.model_name} {bank.card.model_sha256[:12]}"
            raise HeadError(f"heads for {name} {sha256[:12]}", got, "name the bank that was fitted to this model")
        alone = bank.stacker is not None and not has_features(tokens)
        if alone:
            bank = copy.copy(bank)
            bank.stacker = None
        if (offset := token_offset({**facts, **tokens}, bank)) != bank.mask_token_offset:
            expected = f"heads with mask_token_offset {offset}, as the tokens that were kept"
            step = "name heads that are fed these tokens, or label the video again"
            raise HeadError(expected, f"{bank.mask_token_offset}", step)
        return Fitting(bank, bank_sha256(bank), alone)

    def _of_model(self, name: str, sha256: str) -> HeadBank:
        with self._lock:
            if sha256 not in self._installed:
                path = bank_path_for(sha256, self._folders)
                if path is None:
                    step = "fit some with `masksieve usam fit`, or name a bank with --bank"
                    raise HeadError(f"heads for {name} {sha256[:12]}", "none installed", step)
                self._installed[sha256] = load_bank(path).to(self._device)
            return self._installed[sha256]


def rescored(facts: pa.RecordBatch, beside: Beside, bank: HeadBank) -> pa.RecordBatch:
    """Rows of facts with the scores of other heads; everything else stays.

    Args:    facts: rows of `records.MASKS`. beside: their tokens.
             bank: heads; their stacker is left out where there are no features.
    Returns: the rows; columns that these heads do not fill are null. Rows that had no score have none, and absent ones
             are still scored by the presence head.
    Raises:  ShapeError for tokens of another width.
    """
    scores: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
    if len(beside.rows_m):
        features = None if beside.features_mf is None else torch.from_numpy(beside.features_mf).to(bank.device)
        names, scores_hm = bank_scores(bank, torch.from_numpy(beside.tokens_m2d).to(bank.device), features)
        scores = dict(zip(names, scores_hm.cpu().numpy(), strict=True))
    columns = dict(zip(facts.schema.names, facts.columns, strict=True))
    has_tokens = np.zeros(facts.num_rows, dtype=bool)
    has_tokens[beside.rows_m] = True
    for name in (*HEAD_COLUMNS, STACKED):
        values = np.zeros(facts.num_rows, np.float32)
        if name in scores:
            values[beside.rows_m] = scores[name]
        columns[name] = pa.array(values, mask=~has_tokens if name in scores else np.ones(facts.num_rows, dtype=bool))
    before = columns["score_source"].to_numpy(zero_copy_only=False)
    scored = np.where(has_tokens, score_head(bank), "sam_score")
    kept = (before == None) | (before == "object_score")  # noqa: E711 - element by element
    columns["score_source"] = pa.array(np.where(kept, before, scored), pa.string())
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=facts.schema)
