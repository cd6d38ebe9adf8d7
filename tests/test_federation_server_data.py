"""The server's own texts: read under their own key, held by no client, and never what is scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_federation_data import jsonl

from fedcore.errors import ConfigError, FormatError, MissingError
from fedcore.federation.config_file import parse_config
from fedcore.federation.data import Texts, load_texts

RULE = '[aggregation]\nrule = "fltrust"\n'


def texts(source: Path, server: object, data: str = "", model: str = '[model]\nsource = "m"') -> Texts:
    read = f'{model}\n[data]\nsource = "{source}"\ntext = "body"\n{data}\n'
    return load_texts(
        parse_config(f'{read}[partition]\nclients = 3\n{RULE}[server]\ndata = "{server}"\n', "c.toml", source.parent)
    )


def written(path: Path, bodies: list[str]) -> Path:
    path.write_text("".join(json.dumps({"body": body}) + "\n" for body in bodies))
    return path


def test_texts_of_its_own_are_the_servers(tmp_path):
    made = texts(jsonl(tmp_path), written(tmp_path / "own.jsonl", ["one", "two", "two"]))
    assert made.server is not None
    assert made.server.texts == ("one", "two", "two")


def test_the_runs_own_file_is_refused_with_how_many_texts_are_whose(tmp_path):
    path = jsonl(tmp_path)
    with pytest.raises(ConfigError) as caught:
        texts(path, path, "held_out = 0.1\nheld_out_limit = 1")
    own = texts(path, written(tmp_path / "own.jsonl", ["one"]), "held_out = 0.1\nheld_out_limit = 1000")
    held, dealt = len(own.held_out), sum(len(client.texts) for client in own.clients)
    assert str(caught.value) == (
        f"server.data: {held} of its 200 texts are held out and {dealt} are clients', expected none: an update of the "
        "server would come from what the run is scored on, or from what clients alone hold; give texts of its own"
    )


def test_one_text_beyond_the_limit_of_what_is_scored_is_found(tmp_path):
    path = jsonl(tmp_path)
    own = written(tmp_path / "own.jsonl", ["one"])
    most, least = (texts(path, own, f"held_out = 0.1\nheld_out_limit = {limit}").held_out for limit in (1000, 1))
    written(own, ["one", next(text for text in most if text not in least)])
    with pytest.raises(ConfigError, match=r"^server\.data: 1 of its 2 texts are held out and 0 are clients'"):
        texts(path, own, "held_out = 0.1\nheld_out_limit = 1")


def test_a_text_of_a_client_is_found(tmp_path):
    path = jsonl(tmp_path)
    own = written(tmp_path / "own.jsonl", ["one"])
    written(own, ["one", texts(path, own).clients[1].texts[0]])
    with pytest.raises(ConfigError, match=r"^server\.data: 0 of its 2 texts are held out and 1 are clients'"):
        texts(path, own)


def test_faults_of_its_file_name_its_key(tmp_path, monkeypatch):
    path = jsonl(tmp_path)
    with pytest.raises(MissingError) as caught:
        texts(path, "nowhere.jsonl")
    said = f"{tmp_path}/nowhere.jsonl: no such file; server.data is a .jsonl path or a `datasets` name"
    assert str(caught.value) == said
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(FormatError, match=r"got no text, expected at least 1; check server\.data and data\.text"):
        texts(path, "empty.jsonl")
    pytest.importorskip("datasets", reason="data sets by name need fedcore[train]")
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: (_ for _ in ()).throw(ConnectionError))
    with pytest.raises(MissingError, match=r"^server\.data: 'nodata': no such directory"):
        texts(path, "nodata")
