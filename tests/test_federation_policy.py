"""The clients' policy in a run: every arm is asked before anything is trained or written, and every round again."""

from __future__ import annotations

import re

import fake_learner as fake
import pytest
from test_federation_secure import BASE, CLIENTS, MEAN, NOISE, arms, run
from typer.testing import CliRunner

from fedcore.cli import app
from fedcore.errors import ConfigError, MissingError, PrivacyError, StorageError
from fedcore.federation import client_policy, simulation
from fedcore.federation.config_file import parse_config

FFA = 'method = "ffa_lora"\n'
OPEN = MEAN + "secure = false\n"
CENTRAL = "[privacy]\nepsilon = 8\ndelta = 1e-5\nclip = 0.5\n"
LOCAL = CENTRAL + 'mode = "local"\n'


class Watching(fake.FakeLearner):
    """Says whether it evaluated."""

    evaluated = False

    def evaluate(self, *given):
        self.evaluated = True
        return super().evaluate(*given)


@pytest.fixture
def policy(tmp_path):
    return tmp_path / "policy.toml"


def refused(tmp_path, body, error=PrivacyError) -> str:
    """The one line that refuses a run under the policy, with nothing trained, evaluated or written."""
    learner = Watching()
    with pytest.raises(error) as caught:
        run(tmp_path / "run", body, learner=learner, top=f'secure = {{ policy = "{tmp_path}/policy.toml" }}\n')
    assert f"{tmp_path}/policy.toml" in str(caught.value)
    assert learner.trained == []
    assert not learner.evaluated
    assert not (tmp_path / "run").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("policy_text", "body", "said"),
    [
        ("smallest_cohort = 20", arms(a=MEAN), "arm 'a': .*: smallest_cohort = 20, but only 5 honest"),
        ("corrupt = 0.4", arms(a=MEAN), "arm 'a': .*: corrupt = 0.4, but the round allows for 0 of 6"),
        ('methods = ["mean"]', arms(a=MEAN, b=FFA), "arm 'b': .*: methods = mean, but the round runs 'ffa_lora'"),
        ("largest_epsilon = 9", arms(a=MEAN), "arm 'a': .*: largest_epsilon = 9, but the round leads to inf"),
        (f'model = "{"a" * 64}"', arms(a=MEAN), "arm 'a': .*: model = aaaaaaaaaaaa…, but the round is for another"),
        ("secure = true", arms(a=MEAN, b=OPEN), "arm 'b': .*: secure = true, but the round sends vectors in the clear"),
        (
            "secure = false\nsmallest_cohort = 3",
            arms(a=MEAN, b=OPEN),
            "arm 'b': .*: smallest_cohort = 3, but the round",
        ),
        (
            'adversary = "malicious"',
            arms(a=MEAN, b=MEAN + 'secure = { adversary = "semi_honest", policy = "POLICY" }\n'),
            "arm 'b': .*: adversary = 'malicious', but the round trusts",
        ),
        (
            "smallest_cohort = 20",
            arms(a=MEAN + "secure = true\n"),
            "arm 'a': .*: smallest_cohort = 20, but only 5 honest",
        ),
        (
            'adversary = "malicious"',
            arms(a=MEAN, b=MEAN + 'secure = { adversary = "semi_honest" }\n'),
            "arm 'b': .*: adversary = 'malicious', but the round trusts",
        ),
        ("largest_epsilon = 1", NOISE + arms(a=FFA), "arm 'a': .*: largest_epsilon = 1.*, but the round leads to 8"),
        ("smallest_cohort = 7", NOISE + arms(a=FFA), "arm 'a': .*: smallest_cohort = 7, but only 4 honest"),
        (
            "largest_epsilon = 9\nsecure = false",
            NOISE + arms(a=FFA + "secure = false\n"),
            "arm 'a': .*: largest_epsilon = 9, but the round leads to inf: in the clear, .* part of a sum's; refused",
        ),
        (
            "largest_epsilon = 9",
            NOISE + arms(a=FFA),
            "arm 'a': .*: no largest_delta, so that 1e-05 holds, but .* δ = 0.001; refused",
        ),
        (
            "largest_epsilon = 1\nsecure = false",
            CENTRAL + arms(a=FFA + "secure = false\n"),
            "arm 'a': .*: largest_epsilon = 1, but the round leads to 8.0; refused",
        ),
        (
            'largest_epsilon = 8\nsecure = false\nadversary = "malicious"',
            CENTRAL + arms(a=FFA + "secure = false\n"),
            "arm 'a': .*: adversary = 'malicious', but the round sends vectors in the clear",
        ),
        (
            "largest_epsilon = 8\nsecure = false\ncorrupt = 0.4",
            LOCAL + arms(a=FFA + "secure = false\n"),
            "arm 'a': .*: corrupt = 0.4, but the round sends vectors in the clear",
        ),
    ],
)
def test_an_arm_that_clients_refuse_is_noticed_before_anything_is_done(tmp_path, policy, policy_text, body, said):
    policy.write_text(policy_text)
    assert re.fullmatch(f"{said}.*", refused(tmp_path, body.replace("POLICY", str(policy))))


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda path: None, MissingError, "arm 'a': .*policy.toml: no such file"),
        (lambda path: path.mkdir(), StorageError, "arm 'a': .*policy.toml: .*expected the client's policy"),
        (lambda path: path.write_text("cohort = 3"), ConfigError, "arm 'a': .*policy.toml: unknown key 'cohort'"),
    ],
)
def test_a_policy_that_cannot_be_read_is_noticed_before_anything_is_done(tmp_path, policy, make, error, said):
    make(policy)
    assert re.fullmatch(f"{said}.*", refused(tmp_path, arms(a=MEAN), error))


def test_what_clients_allow_runs(tmp_path, policy):
    policy.write_text(f'smallest_cohort = 4\nmodel = "{"f" * 64}"\nmethods = ["mean", "ffa_lora"]\nsecure = true\n')
    top = f'secure = {{ policy = "{policy}" }}\n'
    plain = run(tmp_path / "plain", arms(a=MEAN, b=FFA), top=top)
    with policy.open("a") as file:
        file.write("largest_epsilon = 8\nlargest_delta = 1e-3\n")
    noisy = run(tmp_path / "noisy", NOISE + arms(b=FFA), top=top)
    policy.write_text("secure = false\n")
    clear = run(tmp_path / "open", arms(a=OPEN, b=MEAN), top=top)
    for config, folder in (plain, noisy, clear):
        done = [(entry["arm"], "secure" in entry) for entry in folder.ledger.entries]
        masked = [(arm.name, config.secure_of(arm) is not None) for arm in config.arms]
        assert done == [arm for arm in masked for _ in range(config.run.rounds)]


@pytest.mark.parametrize("noise", [CENTRAL, LOCAL])
def test_who_trusts_the_server_with_vectors_in_the_clear_caps_what_it_publishes_or_is_sent(tmp_path, policy, noise):
    policy.write_text("secure = false\nlargest_epsilon = 8\n")
    body = noise + arms(a=FFA + "secure = false\n")
    config = parse_config(f'secure = {{ policy = "{policy}" }}\n' + BASE + body, "c.toml")
    client_policy.all_agree(config, CLIENTS, None)
    policy.write_text("secure = false\nlargest_epsilon = 0.001\n")
    with pytest.raises(PrivacyError, match=r"arm 'a': .*: largest_epsilon = 0\.001, but the round leads to "):
        client_policy.all_agree(config, CLIENTS, None)


def test_a_policys_corrupt_clients_are_counted_over_all_groups(tmp_path, policy):
    """Of 24 clients 2 may be in one group of six, which a tenth of six would not allow for."""
    policy.write_text("corrupt = 0.1\n")
    config = parse_config(
        f'secure = {{ groups = 4, corrupt = 0.1, dropout = 0.0, policy = "{policy}" }}\n{BASE}{arms(a=MEAN)}'.replace(
            f"clients = {CLIENTS}", "clients = 24"
        ),
        "c.toml",
    )
    client_policy.all_agree(config, 24, None)
    policy.write_text("corrupt = 0.13\n")
    with pytest.raises(PrivacyError, match=r"corrupt = 0\.13, but the round allows for 2 of 6 members, and"):
        client_policy.all_agree(config, 24, None)


@pytest.mark.parametrize("body", [arms(a=MEAN), NOISE + arms(a=FFA), arms(a=OPEN)])
def test_each_round_asks_again(tmp_path, policy, body):
    """Clients may change their policy while others train."""

    class Changing(fake.FakeLearner):
        def evaluate(self, *given):
            policy.write_text("secure = false\nsmallest_cohort = 20\n")
            return super().evaluate(*given)

    policy.write_text("secure = false\n")
    learner = Changing()
    with pytest.raises(PrivacyError, match=f"^arm 'a': {policy}: smallest_cohort = 20"):
        run(tmp_path / "run", body, learner=learner, top=f'secure = {{ policy = "{policy}" }}\n')
    assert len(learner.trained) == (0 if "privacy" in body else CLIENTS)  # alone


@pytest.mark.parametrize(
    ("top", "body"),
    [
        ("", arms(a=MEAN)),
        ("groups = 2, dropout = 0.1, ", arms(a=MEAN)),
        ("corrupt = 0.2, ", NOISE + "fewest_clients = 5\n" + arms(a=FFA)),
    ],
)
def test_what_is_asked_first_are_the_sums_of_the_rounds(tmp_path, policy, monkeypatch, top, body):
    """In all that a policy looks at: the length of the vectors, and how much noise is in them, are not known yet."""
    asked = []
    monkeypatch.setattr(client_policy, "_check", lambda config, arm, path, sums, *rest: asked.append(sums))
    run(tmp_path / "run", body, top=f'secure = {{ {top}policy = "{policy}" }}\n')
    early, *later = [[(p.clients, p.corrupt, p.min_honest, p.adversary) for p in sums] for sums in asked]
    assert later == [early] * 2
    assert len({p.length for sums in asked for p in sums}) == 2


def test_a_run_asks_before_it_makes_the_base(tmp_path, policy, monkeypatch):
    """All but for the base itself, which may be one that is trained first."""
    policy.write_text("smallest_cohort = 20\n")
    config = tmp_path / "c.toml"
    config.write_text('secure = { policy = "policy.toml" }\n' + BASE + arms(a=MEAN))
    monkeypatch.setattr(simulation, "load_texts", lambda config: fake.texts(CLIENTS))
    monkeypatch.setattr(simulation, "QLoRALearner", None)
    found = CliRunner().invoke(app, ["run", str(config), "--output", str(tmp_path / "run")])
    assert found.exit_code != 0
    assert str(found.exception).startswith(f"arm 'a': {policy}: smallest_cohort = 20")
    assert not (tmp_path / "run").exists()
    policy.write_text(f'model = "{"a" * 64}"\n')
    with pytest.raises(TypeError, match="NoneType"):  # of the learner that is none: the digest is not known yet
        simulation.simulate(parse_config(config.read_text(), "c.toml", tmp_path), tmp_path / "run")


@pytest.mark.parametrize("exists", [False, True])
def test_a_policy_is_found_beside_the_file_that_names_it(tmp_path, policy, exists):
    if exists:
        policy.write_text("secure = true\n")
    body = arms(a=MEAN, b=MEAN + 'secure = { policy = "policy.toml" }\n')
    config = parse_config('secure = { policy = "policy.toml" }\n' + BASE + body, "c.toml", tmp_path)
    assert [config.secure_of(arm).policy for arm in config.arms] == [str(policy)] * 2
