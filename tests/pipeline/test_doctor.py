"""The doctor reaches its last line on any machine, and says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import doctor
from pipeline.doctor import Check, check_cache, check_package, check_pyav, check_store, healthy
from pipeline.settings import Settings, load_settings


def test_a_check_that_crashes_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> Check:
        raise RuntimeError("boom\nand more")

    monkeypatch.setattr(doctor, "check_torch", crash)
    monkeypatch.setattr(doctor, "check_embedded", lambda settings: Check("embedded model", "ok", ""))
    checks = {check.part: check for check in doctor.examine(Settings())}
    assert checks["torch"].state == "broken"
    assert checks["torch"].found == "RuntimeError: boom and more"
    assert "flows" in checks
    assert not healthy(list(checks.values()))


def test_a_missing_package_names_the_command_that_installs_it() -> None:
    check = check_package("x", "no-such-distribution", exactly="1.0")
    assert (check.state, check.next_step) == ("broken", "pip install no-such-distribution==1.0")


def test_limits_do_not_make_the_machine_unhealthy() -> None:
    assert healthy([Check("a", "ok", ""), Check("b", "warn", "")])


def test_the_decoder_reads_back_what_it_wrote() -> None:
    assert check_pyav().state in ("ok", "warn")


def test_a_store_that_can_be_written_is_ok_and_left_empty(tmp_path: Path) -> None:
    assert check_store(str(tmp_path / "out"), Settings()).state == "ok"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_store_that_cannot_be_written_is_broken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    checks = {check.part: check for check in doctor.examine(Settings(), str(tmp_path / "file" / "out"))}
    assert checks["object store"].state == "broken"
    assert checks["object store"].next_step


def test_a_cache_that_is_not_there_yet_is_ok(tmp_path: Path) -> None:
    settings = load_settings(None, {"model.cache_dir": str(tmp_path / "new" / "cache")})
    assert check_cache(settings).state == "ok"
    assert not (tmp_path / "new").exists()
