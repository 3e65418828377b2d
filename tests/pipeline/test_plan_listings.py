"""Planning whatever a listing holds: every video in one bucket, every wanted one in one batch, equal bytes together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import pipeline.plan
from pipeline.drops import FILM_SUFFIX, is_video
from pipeline.names import unhandled_name
from pipeline.plan import BUCKETS, plan_drop
from pipeline.storage.download import Entry
from pipeline.storage.objects import ObjectStore
from pipeline.work import WorkLog

from .planning import NOW, Listed, commit, make

names_of_files = st.builds(
    lambda folder, stem, suffix: f"{folder}{stem}{suffix}",
    st.sampled_from(["", "x/", "x/y/", "../", ".hidden/"]),
    st.text("ab é\n.", min_size=1, max_size=3),
    st.sampled_from([".mp4", ".MOV", ".prompts.json", ".txt", FILM_SUFFIX, ".mp4.done"]),
)
listings = st.dictionaries(
    names_of_files,
    st.builds(
        lambda size, age: Entry("", size, f"tag-{size}", NOW - age), st.integers(0, 4), st.floats(-1e5, 1e5)
    ),
    max_size=25,
)  # fmt: skip


@pytest.fixture(scope="module")
def cheap_digest() -> Iterator[None]:
    """Weights need not be hashed anew for every example."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.plan, "settings_digest", lambda settings: "digest")
        yield


@pytest.mark.usefixtures("cheap_digest")
@hypothesis_settings(deadline=None, max_examples=40)
@given(listings, st.integers(1, 4), st.sampled_from([None, ".done"]), st.sampled_from(["refuse", "auto"]), st.data())
def test_every_video_is_in_one_bucket_and_every_wanted_one_in_one_batch(
    tmp_path_factory: pytest.TempPathFactory,
    listing: dict[str, Entry],
    batch_videos: int,
    marker: str | None,
    on_missing: str,
    data: st.DataObject,
) -> None:
    out = ObjectStore(tmp_path_factory.mktemp("out"))
    settings = make(batch_videos=batch_videos, done_marker=marker, on_missing=on_missing)
    entries = [dataclasses.replace(entry, key=key) for key, entry in listing.items()]
    plan = plan_drop(Listed(data.draw(st.permutations(entries))), out, settings, now=NOW)
    hidden = {key for key in listing if any(part.startswith(".") and part != ".." for part in key.split("/"))}
    films = {key for key in listing if key.endswith(FILM_SUFFIX)}
    videos = {key for key in listing if is_video(key)} - hidden
    found = [item.video for bucket in BUCKETS for item in plan.buckets[bucket]]
    assert len(found) == len(set(found))
    handled = {key for key in videos if unhandled_name(key) is None}
    assert {f"s3://drops/night/{key}" for key in handled - films} <= set(found)
    assert len(videos - films) <= len(found) <= len(videos)
    assert sum(plan.counts[bucket] for bucket in BUCKETS) == len(found)

    assert plan == plan_drop(Listed(entries), out, settings, now=NOW)  # in whatever order the store lists
    batched = [item for batch in plan.batches for item in batch.items]
    assert sorted(batched, key=lambda item: item.video) == list(plan.wanted)
    where: dict[str, int] = {}
    for number, batch in enumerate(plan.batches):
        assert [item.video for item in batch.items] == sorted(item.video for item in batch.items)
        tags = [listing[item.video.removeprefix("s3://drops/night/")].tag or "" for item in batch.items]
        assert len(batch.items) <= batch_videos or len(set(tags)) == 1
        for tag in tags:
            assert where.setdefault(tag, number) == number  # equal bytes share a batch

    records = WorkLog(out, settings.drops)
    for item in plan.wanted:
        done = out.path(records.done_key(item, "ab" * 32))
        assert done is not None
        done.parent.mkdir(parents=True)
        done.touch()
    commit(out, "ab" * 32)
    after = plan_drop(Listed(entries), out, settings, now=NOW)
    assert (list(after.wanted), list(after.batches)) == ([], [])
    assert after.counts["done"] == len(plan.wanted)
