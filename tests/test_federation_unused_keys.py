"""Keys that no arm would look at are refused, one line each; defaults that a file was written with are none."""

from __future__ import annotations

import pytest
from test_federation_config import SMALLEST, fault

from fedcore.errors import ConfigError
from fedcore.federation.config_file import parse_config, to_toml

NOISE = '[privacy]\nepsilon = 8\ndelta = 1e-3\nmode = "distributed"\n'
FFA = '[[arms]]\nname = "a"\nmethod = "ffa_lora"\n'
PLAIN = '[[arms]]\nname = "b"\nspace = "parameters"\n'
NOISY = 'with privacy.mode = "distributed", which has a grid of its own: leave it out'
EQUAL = 'with weights = "equal", by which each client counts for 1: leave it out'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[server]\ndata = "s.jsonl"\n', 's.jsonl" with mean; only rules that compare with an update of the server'),
        ('[server]\ndata = "s.jsonl"\n[[arms]]\nname = "a"\nmethod = "fedit"\n', 's.jsonl" with fedit; only rules'),
        (
            '[server]\ndata = "s.jsonl"\n[aggregation]\nrule = "monna"\nparameters = { f = 1, pivot = 0 }\n',
            's.jsonl" with monna; only rules',
        ),
        (
            '[aggregation]\nrule = "krum"\nparameters = { f = 1 }\n'
            'before = [{ rule = "bucketing", s = 1, seed = 1, round = 7 }]\n',
            "aggregation: bucketing: parameter 'round': got 7, and each round of a run has buckets of its own; leave",
        ),
        (
            '[[arms]]\nname = "a"\nrule = "bucketing"\nparameters = { s = 2, seed = 1, round = 0 }\n',
            "arms[0]: bucketing: parameter 'round': got 0",
        ),
        (NOISE + "[secure]\nbits = 16\n" + FFA, f"secure.bits: got 16 {NOISY}"),
        (NOISE + "[secure]\nlargest = 0.5\n" + FFA, 'secure.largest: got 0.5 with privacy.mode = "distributed", where'),
        (NOISE + "[secure]\nlargest_weight = 7\n" + FFA, f"secure.largest_weight: got 7 {EQUAL}"),
        (NOISE + FFA + "secure = { bits = 16 }\n", f"arms[0].secure.bits: got 16 {NOISY}"),
        (
            '[aggregation]\nspace = "parameters"\nweights = "equal"\n[secure]\nlargest_weight = 7\n',
            'secure.largest_weight: got 7 with weights = "equal"',
        ),
        (
            NOISE + 'arms = ["a"]\n[secure]\nbits = 16\n' + FFA + PLAIN + "secure = false\n",
            'secure.bits: got 16 with privacy.mode = "distributed"',
        ),
    ],
)  # fmt: skip
def test_a_key_that_nothing_would_look_at_is_refused_in_one_line(text, said):
    message = fault(SMALLEST + text)
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        NOISE + "[secure]\n" + FFA,
        NOISE + 'arms = ["a"]\n[secure]\nbits = 16\nlargest = 0.5\nlargest_weight = 7\n' + FFA + PLAIN,
        '[server]\ndata = "s.jsonl"\n[[arms]]\nname = "a"\n[[arms]]\nname = "b"\nrule = "fltrust"\n',
        '[server]\ndata = "s.jsonl"\n[aggregation]\nrule = "monna"\nparameters = { f = 1 }\n',
    ],
)
def test_defaults_and_keys_that_one_arm_uses_pass_and_so_does_the_file_written_whole(text):
    config = parse_config(SMALLEST + text, "c.toml")
    assert parse_config(to_toml(config), "again") == config


def test_what_a_run_began_with_is_read_whatever_is_refused_today():
    """Else its report could not be made, and what it keeps in private would outlive its days."""
    text = SMALLEST + '[server]\ndata = "s.jsonl"\n'
    with pytest.raises(ConfigError, match=r"server\.data"):
        parse_config(text, "c.toml")
    assert parse_config(text, "run.json", ran=True).server.data.endswith("s.jsonl")
