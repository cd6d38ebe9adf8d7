"""Where the population's budget and its sealing key lie: not for readers of a run's public files."""

from __future__ import annotations

import shutil

import pytest
from private_runs import SMALL, config, dies, run

from fedcore.cli import main
from fedcore.errors import ConfigError, StorageError
from fedcore.federation.config_file import load_config, parse_config
from fedcore.federation.folder import RunFolder
from fedcore.federation.journal import LineLog
from fedcore.federation.sealing import sealing_key
from fedcore.report.html import write_report

pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")


def elsewhere(folder, extra=""):
    """A private run's configuration whose budget and sealing key lie in `folder`/hidden-place."""
    place = folder / "hidden-place"
    place.mkdir()
    (place / "key").write_bytes(bytes(range(32)))
    return config(f'{SMALL}budget = "{place}/budget"\nsealing_key = "{place}/key"\n{extra}')


def test_no_public_file_names_the_places_and_the_run_goes_on_from_its_own_configuration(tmp_path, monkeypatch, capsys):
    settings, path = elsewhere(tmp_path), tmp_path / "run"
    dies(path, LineLog, "append", 4, settings=settings)
    for name in ("budget", "sealing_key"):
        assert f'\n{name} = ""\n' in (path / "config.toml").read_text()
    assert (path / "private/places.json").stat().st_mode & 0o777 == 0o600
    kept = load_config(path / "config.toml")
    assert (kept.privacy, kept.arms) == (settings.privacy, settings.arms)
    folder = run(path, kept, resume=True)
    assert len(folder.ledger.entries) == 2
    assert len(run(path, settings, resume=True).ledger.entries) == 2  # and from the one that it began with
    write_report(folder)
    public = [p for p in path.rglob("*") if p.is_file() and "private" not in p.relative_to(path).parts]
    assert [p.name for p in public if b"hidden-place" in p.read_bytes()] == []
    assert main(["report", str(path), "--destroy-noise-keys"]) == 0
    assert "2 noise keys and the run's secret were deleted" in capsys.readouterr().err
    assert [p.name for p in (path / "private").glob("budget*")] == []


def test_a_copy_of_the_public_configuration_starts_no_budget_of_its_own(tmp_path):
    path = tmp_path / "run"
    run(path, elsewhere(tmp_path))
    shutil.copy(path / "config.toml", tmp_path / "copy.toml")
    with pytest.raises(ConfigError, match=r'copy\.toml: privacy\.budget: got "", .*: restore that, or in a copy give'):
        load_config(tmp_path / "copy.toml")
    places = path / "private/places.json"
    for damage in (lambda: places.write_text("[]"), lambda: places.write_text("{"), places.unlink):
        damage()
        with pytest.raises(ConfigError, match=r'run\.json: privacy\.budget: got ""'):
            RunFolder.read(path)


def test_a_run_that_names_no_places_keeps_none(tmp_path):
    path = tmp_path / "run"
    run(path)
    assert "budget =" not in (path / "config.toml").read_text()
    assert not (path / "private/places.json").exists()
    with pytest.raises(ConfigError, match=r'c\.toml: privacy\.sealing_key: got ""'):
        parse_config(f'[model]\nsource = "m"\n[privacy]\n{SMALL}sealing_key = ""\n', "c.toml")


def test_a_folder_in_the_sealing_keys_place_is_named(tmp_path):
    (tmp_path / "key").mkdir()
    settings = config(f'{SMALL}sealing_key = "{tmp_path}/key"\n').privacy
    with pytest.raises(StorageError, match=r"key: cannot be read \(Is a directory\)"):
        sealing_key(settings, tmp_path)
