"""Texts: read, split and dealt; bad rows named by file and line; what is held out is seen by nobody."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedcore.errors import ConfigError, FormatError, MissingError
from fedcore.federation.config_file import parse_config
from fedcore.federation.data import continuations, load_texts
from fedcore.federation.learner import silos_of, text_digest
from fedcore.federation.messages import client_seed

WORDS = [f"word{i}" for i in range(200)]


def jsonl(folder: Path, count: int = 200, **more: object) -> Path:
    generator = np.random.default_rng(0)
    rows = [
        {"body": f"text {i}: " + " ".join(generator.choice(WORDS, 20)), "topic": "abc"[i % 3]} | more
        for i in range(count)
    ]
    path = folder / "texts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def texts(path: Path, partition: str = 'kind = "iid"', data: str = "", model: str = 'source = "m"'):
    table = "[model]" if "source" in model else "[model.pretrain]"
    return load_texts(
        parse_config(
            f'{table}\n{model}\n[data]\nsource = "{path}"\ntext = "body"\n{data}\n[partition]\n{partition}\n', "c.toml"
        )
    )


def test_every_text_is_with_one_client_or_held_out(tmp_path):
    made = texts(jsonl(tmp_path), "clients = 4", "held_out = 0.1")
    dealt = [text for client in made.clients for text in client.texts]
    assert 10 < len(made.held_out) < 30
    assert len(dealt) + len(made.held_out) == 200
    assert len({*dealt, *made.held_out}) == 200
    assert sorted(document.text for document in made.public) == sorted(dealt)


def test_the_same_seed_gives_the_same_texts_and_questions(tmp_path):
    path = jsonl(tmp_path)
    assert texts(path, "clients = 4") == texts(path, "clients = 4")


def test_labels_come_from_the_column(tmp_path):
    made = texts(jsonl(tmp_path), 'kind = "column"\ncolumn = "topic"')
    assert [list(client.labels) for client in made.clients] == [["a"], ["b"], ["c"]]


def test_held_out_texts_are_limited(tmp_path):
    assert len(texts(jsonl(tmp_path), "clients = 2", "held_out = 0.5\nheld_out_limit = 7").held_out) == 7


def test_a_limit_leaves_held_out_texts_of_the_whole_file(tmp_path):
    """The first ones in the file's order would be of one kind, where a file is sorted."""
    held_out = texts(jsonl(tmp_path, 400), "clients = 2", "held_out = 0.5\nheld_out_limit = 40").held_out
    numbers = [int(text.split()[1].rstrip(":")) for text in held_out]
    assert len(numbers) == 40
    assert min(numbers) < 100
    assert max(numbers) >= 300


def test_the_seed_of_the_run_decides_what_is_held_out(tmp_path):
    path = jsonl(tmp_path)
    one, other = (set(texts(path, f"clients = 2\n[run]\nseed = {seed}", "held_out = 0.5").held_out) for seed in (1, 2))
    assert one != other


def test_the_label_of_the_base_goes_to_no_client(tmp_path):
    made = texts(jsonl(tmp_path), 'kind = "dirichlet"\nclients = 3\ncolumn = "topic"', model='label = "a"\nsilos = 2')
    assert {document.label for document in made.public} == {"a"}
    assert all(set(client.labels) == {"b", "c"} for client in made.clients)
    public = {document.text for document in made.public}
    assert not public & {*made.held_out, *(text for client in made.clients for text in client.texts)}
    silos = silos_of(made, 2)
    assert sorted(map(len, silos.values())) == [33, 34]
    with pytest.raises(ConfigError, match=r"model\.pretrain\.label: got 'z', .* they have a, b, c"):
        texts(tmp_path / "texts.jsonl", 'kind = "dirichlet"\ncolumn = "topic"', model='label = "z"')


def test_pythons_documentation_gives_the_base_prose_and_the_clients_docstrings():
    config = parse_config(
        '[model.pretrain]\nlabel = "reference"\n[partition]\nkind = "dirichlet"\n[data]\nheld_out_limit = 10000\n',
        "c.toml",
    )
    made = load_texts(config)
    assert len(made.public) > 100
    labels = {label for client in made.clients for label in client.labels}
    assert labels == {"interface", "language", "network", "testing"}
    assert len(made.questions) == 100
    # what is asked and its answer stand in one held-out text, and in none that anybody trains on
    plain = {
        name: [" ".join(text.split()) for text in found]
        for name, found in {
            "held out": made.held_out,
            "trained on": [text for client in made.clients for text in client.texts],
        }.items()
    }
    for question in made.questions:
        whole = " ".join(f"{question.prompt}{question.answers[question.correct]}".split())
        assert any(whole in text for text in plain["held out"]), whole
        assert not any(whole in text for text in plain["trained on"]), whole


def test_questions_are_continuations_of_held_out_texts(tmp_path):
    made = texts(jsonl(tmp_path), "clients = 2", "held_out = 0.2\nquestions = 15")
    assert len(made.questions) == 15
    held_out = [" ".join(text.split()) for text in made.held_out]
    for question in made.questions:
        assert len(set(question.answers)) == 4
        assert any(question.prompt + question.answers[question.correct] in text for text in held_out)
    assert len({question.correct for question in made.questions}) > 1


def test_a_continuation_is_asked_for_among_others_and_never_twice():
    few = [" ".join(f"word{k}.{i}" for i in range(8)) for k in range(4)]
    for seed in range(20):
        for question in continuations(few, 4, seed):
            assert len(set(question.answers)) == 4


def test_no_two_sequences_of_texts_share_a_digest():
    assert len({text_digest(given) for given in (["ab", "c"], ["a", "bc"], ["abc"], ["", "abc"], ["abc", ""])}) == 5


def test_too_few_or_too_short_texts_give_no_questions():
    assert continuations(["a b c d e f g h"] * 9, 5, 0) == []
    assert continuations(["short"] * 9, 5, 0) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"body": ', r"texts\.jsonl:3: not valid JSON \(.*\); write one JSON object per line"),
        ('["body"]', r"texts\.jsonl:3: got a JSON list, expected an object; write one JSON object per line"),
        ('{"txt": "x", "topic": "a"}', r"texts\.jsonl:3: no column 'body' \(data\.text\); it has txt, topic"),
        ('{"body": "x"}', r"texts\.jsonl:3: no column 'topic' \(partition\.column\)"),
        ('{"body": 3, "topic": "a"}', r"texts\.jsonl:3: column 'body' holds int, expected text"),
        ('{"body": null, "topic": "a"}', r"texts\.jsonl:3: column 'body' \(data\.text\) is null"),
        ('{"body": "cut \\ud83d", "topic": "a"}', r"texts\.jsonl:3: column 'body' \(data\.text\) holds half a char"),
        (
            '{"body": "x", "topic": "\\ud83d"}',
            r"texts\.jsonl:3: column 'topic' \(partition\.column\) holds half a char",
        ),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, line, said):
    path = jsonl(tmp_path)
    rows = path.read_text().splitlines()
    rows[2] = line
    path.write_text("\n".join(rows))
    with pytest.raises(FormatError, match=said):
        texts(path, 'kind = "dirichlet"\ncolumn = "topic"')


def test_missing_empty_and_undecodable_files(tmp_path):
    with pytest.raises(MissingError, match=r"nowhere\.jsonl: no such file"):
        texts(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(FormatError, match="got 0 texts, expected at least 2"):
        texts(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"body": "\xe9"}\n')
    with pytest.raises(FormatError, match=r"latin\.jsonl:1: not valid JSON .*utf-8.*; write one .*, in UTF-8"):
        texts(tmp_path / "latin.jsonl")


def test_a_byte_order_mark_is_dropped_where_a_file_begins(tmp_path):
    path = jsonl(tmp_path)
    plain, data = texts(path), path.read_bytes()
    for start in (b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"):
        path.write_bytes(start + data)
        assert texts(path) == plain
    path.write_bytes(data + b'\xef\xbb\xbf{"body": "x"}\n')
    with pytest.raises(FormatError, match=r"texts\.jsonl:\d+: not valid JSON"):
        texts(path)


def test_a_partition_by_label_needs_a_column(tmp_path):
    with pytest.raises(ConfigError, match=r"partition\.column: missing; kind = 'dirichlet' needs the column"):
        texts(jsonl(tmp_path), 'kind = "dirichlet"')


def test_a_mistyped_data_set_says_where_it_was_looked_for_and_the_hub_is_asked_once(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="data sets by name need fedcore[train]")
    asked = []

    def unreachable(_, name, **more):
        asked.append(name)
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    config = parse_config('[model]\nsource = "m"\n[data]\nsource = "nodata"\n', "c.toml", tmp_path)
    with pytest.raises(MissingError) as caught:
        load_texts(config)
    assert str(caught.value) == (
        f"data.source: 'nodata': no such directory (looked at {tmp_path}/nodata), and it is not in the hub's cache and "
        "the hub cannot be reached (no route to host); correct the path or the name"
    )
    assert asked == ["nodata"]
    assert datasets.config.HF_HUB_OFFLINE is False


def users(folder: Path, change=lambda user, number, text: text, name=lambda user: user) -> dict:
    """What each of twenty users of a file trains on, and from which seed, where their texts may be changed."""
    path = folder / "users.jsonl"
    rows = [
        {
            "body": change(u, t, f"User {u} wrote text {t}. And more words follow, number {u * t}."),
            "user": name(f"u{u}"),
        }
        for u in range(20)
        for t in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["body"]))
    config = parse_config(
        f'[model]\nsource = "m"\n[data]\nsource = "{path}"\ntext = "body"\n'
        '[partition]\nkind = "column"\ncolumn = "user"\nmin_examples = 2\n',
        "c.toml",
    )
    found = {
        next(iter(client.labels)): (client.texts, client_seed(config, 3, client.seeded_by))
        for client in load_texts(config).clients
    }
    assert len({seed for _, seed in found.values()}) == 20
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda u, t, text: f"Quite another thing {t}: " + text if u == 7 else text,
        lambda u, t, text: None if u == 7 and t >= 10 else text,
        lambda u, t, text: f"User 3 wrote text {t}. And more words follow, number {3 * t}." if u == 7 else text,
    ],
    ids=["other words", "fewer", "copies of another's"],
)
def test_one_users_texts_move_no_other_users_training(tmp_path, change):
    before, after = users(tmp_path), users(tmp_path, change)
    assert before["u7"] != after["u7"]
    assert {u: x for u, x in before.items() if u != "u7"} == {u: x for u, x in after.items() if u != "u7"}


def test_one_users_name_moves_no_other_users_training(tmp_path):
    before, after = users(tmp_path), users(tmp_path, name=lambda user: "zz" if user == "u7" else user)
    assert before.pop("u7")[0] == after.pop("zz")[0]
    assert before == after


def test_a_user_whose_texts_are_all_held_out_is_refused_not_lost(tmp_path):
    seen = set()
    for word in range(40):  # whether the one text is held out hangs on it
        try:
            users(tmp_path, lambda u, t, text, word=word: text if u != 7 else "" if t else f"Words and more {word}.")
        except ConfigError as error:
            seen.add(str(error).split(",")[0])
    assert any("partition.min_examples: all texts of 1 of 20 clients are held out" in said for said in seen), seen
    assert any("would hold 1" in said for said in seen), seen


def test_too_few_texts_to_hold_one_out_are_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError) as caught:
        texts(jsonl(tmp_path, 20), "clients = 1", "held_out = 0.0005")
    assert str(caught.value) == (
        "data.held_out: got 0.0005 of 20 texts, each held out or not by its own hash: 20 to train on and 0 held out, "
        "expected some of each; bring more texts, or take another fraction or seed"
    )
