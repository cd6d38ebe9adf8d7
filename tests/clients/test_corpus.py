"""The built-in corpus: the same everywhere and every time, split without leaks, never imported."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from fedcore.clients import Document, python_documentation, questions, split
from fedcore.clients.corpus import LABELS
from fedcore.errors import ShapeError

HASH = "hashlib.sha256(repr([(d.text, d.label) for d in python_documentation()]).encode()).hexdigest()"


@pytest.fixture(scope="module")
def documents():
    return python_documentation()


def test_another_process_reads_the_same_and_imports_none_of_it(documents):
    code = (
        "import hashlib, sys\nfrom fedcore.clients.corpus import python_documentation\n"
        f"print({HASH})\nprint([m for m in ('tkinter', 'turtle', 'this', 'antigravity', 'torch', 'ftplib') if m in "
        "sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={"PYTHONHASHSEED": "7"}
    )
    assert done.returncode == 0, done.stderr
    here = hashlib.sha256(repr([(d.text, d.label) for d in documents]).encode()).hexdigest()
    assert done.stdout.split("\n")[:2] == [here, "[]"]


def test_there_is_enough_in_every_silo(documents):
    characters = Counter()
    for document in documents:
        characters[document.label] += len(document.text)
    assert set(characters) == set(LABELS)
    assert min(characters.values()) > 100_000
    assert sum(characters.values()) > 1_000_000


def test_texts_are_clean_and_none_comes_twice(documents):
    texts = [document.text for document in documents]
    assert len(set(texts)) == len(texts)
    assert min(map(len, texts)) >= 40
    assert all(
        text == text.rstrip() and text[0] != "\n" and "\n\n\n" not in text and " \n" not in text for text in texts
    )


def test_a_function_is_its_signature_then_its_docstring(documents):
    assert any(
        d.text.startswith("dedent(text)\nRemove any common leading whitespace from every line in `text`.")
        and d.label == "interface"
        for d in documents
    )


def test_the_caller_may_change_its_list(documents):
    python_documentation().clear()
    assert python_documentation() == documents


def full_sentence(question):
    """The sentence that a question was cut from."""
    return question.prompt.partition("\n")[2] + question.answers[question.correct]


def test_a_split_keeps_all_documents_and_no_sentence_on_both_sides(documents):
    train, held = split(documents, 0.1, seed=1)
    assert sorted(map(repr, train + held)) == sorted(map(repr, documents))
    assert 0.05 < len(held) / len(documents) < 0.15
    own = [full_sentence(question).lower() for question in questions(held, 100, seed=0)]
    for document in train:
        text = " ".join(document.text.partition("\n")[2].split()).lower()
        assert not any(text.startswith(sentence) for sentence in own), document
    assert split(documents, 0.1, seed=1) == (train, held)
    assert split(documents, 0.1, seed=2)[1] != held


def test_copies_of_one_docstring_stay_together():
    copies = [Document(f"f{i}(x)\nReturn the copied thing.\n\nDetail {i} of it.", "a") for i in range(20)]
    rest = [Document(f"g{i}(x)\nReturn thing number {i} of many.", "a") for i in range(20)]
    for seed in range(8):
        train, held = split(copies + rest, 0.3, seed=seed)
        assert len([d for d in held if d in copies]) in (0, 20)
        assert len(train) + len(held) == 40


def test_a_documents_side_is_its_own_whatever_the_others_are(documents):
    """In a private run whoever is noised must not decide what others train on."""
    held = set(split(documents, 0.1, seed=1)[1])
    for part in (documents[:300], documents[100:200], documents[::7]):
        assert set(split(part, 0.1, seed=1)[1]) == held & set(part)
    counts = [len(split(documents, 0.5, seed=seed)[1]) / len(documents) for seed in range(4)]
    assert np.allclose(counts, 0.5, atol=0.03)


def test_questions_ask_for_the_end_of_a_functions_own_sentence_among_others(documents):
    _, held = split(documents)
    asked = questions(held, 150, seed=3)
    texts = [(document.text.partition("\n")[0], " ".join(document.text.split())) for document in held]
    for question in asked:
        assert len(set(question.answers)) == 4
        head, start = question.prompt.split("\n")
        fitting = [
            i for i in range(4) if any(h == head and f"{start}{question.answers[i]}" in text for h, text in texts)
        ]
        assert fitting == [question.correct]
        assert len(start.split()) >= 2
    assert set(Counter(question.correct for question in asked)) == {0, 1, 2, 3}
    assert asked == questions(held, 150, seed=3) != questions(held, 150, seed=4)


def test_too_few_functions_are_refused(documents):
    with pytest.raises(
        ShapeError, match="got 0 functions with a sentence of their own in 1 documents, expected at least 5"
    ):
        questions([Document("Just prose, no function at all.", "a")], 5, seed=0)
    with pytest.raises(ShapeError, match=r"held_out: got 0\.05 of 1 texts.*: 1 to train on and 0 held out"):
        split(documents[:1])
