"""Files and messages from outside that are damaged or hostile: one line that names them, whoever reads them."""

from __future__ import annotations

import shutil

import fake_learner as fake
import numpy as np
import pytest
from safetensors.numpy import save
from test_federation_data import jsonl, texts

from fedcore.cli import main
from fedcore.errors import ConfigError, FedcoreError, FormatError, PrivacyError
from fedcore.federation.config_file import parse_config
from fedcore.federation.folder import RunFolder
from fedcore.federation.journal import LineLog
from fedcore.federation.private_journal import PrivateJournal
from fedcore.federation.private_run import read_plan
from fedcore.federation.server_state import ServerState
from fedcore.federation.simulation import run_arms
from fedcore.privacy import secagg
from fedcore.privacy.reservation import Noise
from fedcore.privacy.sent_once import mark_sent
from fedcore.report.html import page
from fedcore.updates.header import json_object

DAMAGES = {
    "cut short": b'{"a": ',
    "nested": b'{"a": ' + b"[" * 100_000,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "no UTF-8": b'{"a": "\xe9"}',
    "no text": b"\x00\xff\x00",
    "no object": b"[]",
}
TOMLS = {
    "cut short": "a = [",
    "nested": "a = " + "[" * 100_000,
    "digits": f"a = {'9' * 5000}",
    "dotted": "".join(f"{key}{'.a' * 5000} = 1\n" for key in ("seed", "f")),
}


@pytest.fixture(params=DAMAGES.values(), ids=DAMAGES)
def damage(request) -> bytes:
    return request.param


def refused(read, *given, kind: type[FedcoreError] = FormatError) -> str:
    with pytest.raises(kind) as caught:
        read(*given)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return str(caught.value)


def test_json_is_read_as_python_writes_it():
    assert json_object(b'{"a": NaN, "a": "\xc3\xa9"}', "x") == {"a": "é"}
    assert np.isnan(json_object('{"a": NaN}', "x")["a"])


def test_a_byte_order_mark_is_no_json_of_ours():
    assert "x: not valid JSON" in refused(json_object, b'\xef\xbb\xbf{"a": 1}', "x")


def test_a_text_that_is_no_json_object_is_named(damage):
    said = refused(json_object, damage, "run.json", "restore it")
    assert said.startswith("run.json: ")
    assert said.endswith("; restore it")


def test_the_facts_of_a_run(tmp_path, damage):
    (tmp_path / "run.json").write_bytes(damage)
    assert refused(lambda: RunFolder(tmp_path).facts).startswith(f"{tmp_path}/run.json: ")


def test_a_line_of_a_log(tmp_path, damage):
    (tmp_path / "ledger.jsonl").write_bytes(b'{"a": 1}\n' + damage + b"\n{}\n")
    assert refused(LineLog, tmp_path / "ledger.jsonl").startswith(f"{tmp_path}/ledger.jsonl:2: ")


def test_a_line_of_the_texts(tmp_path, damage):
    path = jsonl(tmp_path)
    lines = path.read_bytes().splitlines()
    lines[2] = damage
    path.write_bytes(b"\n".join(lines))
    assert refused(texts, path).startswith(f"{path}:3: ")


def test_what_a_private_round_kept(tmp_path, damage):
    journal = PrivateJournal(tmp_path)
    journal.keep("arm", 1, {"seconds": 1.5})
    [path] = tmp_path.rglob("*.json")
    path.write_bytes(damage)
    assert refused(journal.kept, "arm", 1).startswith(f"{path}: ")


def test_the_plan_of_a_private_run(tmp_path, damage):
    (tmp_path / "privacy.json").write_bytes(damage)
    said = refused(read_plan, tmp_path)
    assert said.startswith(f"{tmp_path}/privacy.json: ")
    assert said.count("restore it") == 1


def test_the_places_of_a_private_run(tmp_path, damage):
    (tmp_path / "private").mkdir()
    (tmp_path / "private/places.json").write_bytes(damage)
    text = '[model]\nsource = "fake"\n[privacy]\nepsilon = 1\ndelta = 1e-5\nbudget = ""\n'
    assert "private/places.json" in refused(parse_config, text, "c.toml", tmp_path, kind=ConfigError)


def test_the_state_of_a_server_optimiser(damage):
    said = damage.decode("latin-1")
    data = save({"m:w": np.zeros(3)}, {"fedcore.server_state": said})
    assert refused(ServerState.from_bytes, data, "server-001").startswith("server-001: ")
    data = len(damage).to_bytes(8, "little") + damage
    assert refused(ServerState.from_bytes, data, "server-001").startswith("server-001: ")


def test_the_mark_of_what_a_client_sent(tmp_path, damage):
    charge = Noise(b"k" * 32, "0" * 64, 1.0, 3, 2, 0.5)
    mark_sent(tmp_path / "budget", charge, "client", b"message")
    [kept] = tmp_path.rglob("*.message")
    kept.unlink()
    kept.with_suffix("").write_bytes(damage)
    said = refused(mark_sent, tmp_path / "budget", charge, "client", b"message", kind=PrivacyError)
    assert said.startswith(f"{kept.with_suffix('')}: client sent another message under charge {charge.number},")


@pytest.mark.parametrize("text", TOMLS.values(), ids=TOMLS)
@pytest.mark.parametrize("table", ["[run]\n", '[aggregation]\nrule = "krum"\n[aggregation.parameters]\n'])
def test_a_configuration(table, text):
    with pytest.raises(ConfigError) as caught:
        parse_config(f'[model]\nsource = "fake"\n{table}{text}\n', "c.toml")
    for line in str(caught.value).splitlines():
        assert line.startswith("c.toml: ")
        assert len(line) < 700


@pytest.mark.parametrize("text", [*TOMLS.values(), "corrupt.a" + ".a" * 5000 + " = 1"], ids=[*TOMLS, "value"])
def test_the_policy_of_a_client(tmp_path, text):
    (tmp_path / "policy.toml").write_text(text)
    assert "policy.toml" in refused(secagg.Policy.load, tmp_path / "policy.toml", kind=ConfigError)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    run_arms(fake.config(), fake.texts(), fake.FakeLearner(), path, resume=False)
    return path


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "ledger.jsonl"])
def test_a_report_names_the_damaged_file(whole, tmp_path, capsys, name, damage):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    (path / name).write_bytes(damage + b"\n")
    assert main(["report", str(path)]) == 1
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith(f"fedcore: error: {path}/{name}:")


def test_a_report_says_that_the_configuration_is_damaged(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    (path / "config.toml").write_bytes(b"# caf\xe9\n" + (path / "config.toml").read_bytes())
    said = page(RunFolder.read(path))
    assert f"Changed after the run began: {path}/config.toml: not UTF-8 text (invalid continuation byte at" in said
    assert "[run]\nseed = 5\n" in said
