"""Real text without a network: the documentation that Python itself ships, as documents, splits and ranking questions.

The text is `pydoc_data.topics` (the language reference behind `help()`) and the docstrings of the standard library,
read from source files with `ast` and never imported. Order and content follow from the installed Python alone: files
sorted by path, definitions in source order. Each docstring and each paragraph of the topics is kept once, the first
time it is seen.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import random
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fedcore.clients.settings import Question
from fedcore.errors import MissingError, ShapeError

#: silo -> what of the standard library belongs to it; "language" holds the rest, "reference" the topics. Each silo has
#: members in every distribution of Python (a Linux package may leave out tkinter and idlelib, never argparse).
GROUPS = {
    "interface": "tkinter idlelib turtle turtledemo curses argparse optparse cmd code pdb bdb readline rlcompleter "
    "pydoc textwrap pprint gettext getopt getpass locale webbrowser",
    "network": "email http urllib html xml xmlrpc wsgiref smtplib smtpd smtp imaplib poplib ftplib nntplib telnetlib "
    "socket socketserver ssl ipaddress mailbox mailcap mimetypes cgi cgitb uuid base64 quopri uu netrc nturl2path json",
    "testing": "asyncio concurrent multiprocessing threading queue sched subprocess signal selectors asyncore asynchat "
    "unittest doctest test timeit trace tracemalloc cProfile profile pstats logging warnings traceback faulthandler",
}
LABELS = (*GROUPS, "language", "reference")
_LABEL_OF = {name: label for label, names in GROUPS.items() for name in names.split()}
_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "pydoc_data"}
_TOPIC_CHARACTERS = 1500
_SMALLEST = 40
_SIGNATURE = re.compile(r"[\w.]+\(.*\)", re.DOTALL)
_SENTENCE = re.compile(r"(.+?[.!?])(?=\s|$)", re.DOTALL)
_HEADING = re.compile(r".+\n([*=~^\-])\1+")
_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Document:
    """One text and the silo that it belongs to. A function's text is its signature on one line, then its docstring."""

    text: str
    label: str


@cache
def _documents() -> tuple[Document, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    found = [*_topics(), *_docstrings(root)]
    if len(found) < 1000:
        raise MissingError(
            f"{root}: got {len(found)} documents, expected the sources of Python's standard library; install them "
            "(a full Python, not a zipped or stripped one) or give a JSONL file of your own text",
            filename=root,
        )
    return tuple(found)


def python_documentation() -> list[Document]:
    """Python's own documentation by silo: docstrings of 'interface', 'network', 'testing', 'language'; 'reference'.

    Some 2.3 million characters in 7,100 documents with CPython 3.11, read in about 3 s and kept for the next call.
    The same Python gives the same list. Raises MissingError where the standard library's sources are not installed.
    """
    return list(_documents())


def split(
    documents: Sequence[Document], held_out: float = 0.05, seed: int = 0
) -> tuple[list[Document], list[Document]]:
    """Documents for training and held-out ones, both in their given order; `held_out`: the fraction of the latter.

    Each falls by a hash of `seed` and of its first sentence, or its text where it documents no function: no other
    document moves it, on which the privacy of one client's texts among others' rests, and copies of one docstring (the
    most common near-duplicate) are on one side, so no held-out question's answer was seen in training. Hence the
    fraction is one in expectation. Raises ShapeError where a side would be empty.
    """
    train: list[Document] = []
    held: list[Document] = []
    for document in documents:
        (held if _drawn(seed, _key(document)) < held_out * 2**64 else train).append(document)
    if not train or not held:
        raise ShapeError(
            f"held_out: got {held_out:g} of {len(documents)} texts, each held out or not by its own hash: {len(train)} "
            f"to train on and {len(held)} held out, expected some of each; bring more texts, or take another fraction "
            "or seed"
        )
    return train, held


def _drawn(seed: int, key: str) -> int:
    """64 bits that follow from a seed and a text."""
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "little")


def questions(documents: Sequence[Document], count: int, seed: int) -> list[Question]:
    """`count` ranking questions: which ending completes the first sentence of a function's documentation?

    The prompt is the function's name and signature, a line break and the first third of its sentence (two words or
    more); the answers are the rest of it and the rests of three sentences of other functions, cut in the same way.
    Without those first words a model of half a million parameters stays at chance: it looks a few tokens back, not to
    the name.

    Only functions of `documents` are asked about and quoted, so questions from held-out documents hold no training
    text. The wrong answers are drawn from the eight nearest in length out of a random 32, so that length tells little.
    Raises ShapeError where `documents` hold fewer than `count` such sentences, or fewer than 4.
    """
    cuts: dict[str, str] = {}
    for document in documents:
        pair = _signature_and_sentence(document.text)
        if pair is not None and len(pair[1].split()) >= 5:
            start, end = _cut(pair[1])
            cuts.setdefault(end, f"{pair[0]}\n{start}")
    ends = sorted(cuts)
    if count > len(ends) or len(ends) < 4:
        raise ShapeError(
            f"questions: got {len(ends)} functions with a sentence of their own in {len(documents)} documents, "
            f"expected at least {max(count, 4)}; hold out more documents or ask for fewer questions"
        )
    draw = random.Random(seed)
    asked = []
    for own in draw.sample(ends, count):
        others = [other for other in draw.sample(ends, min(33, len(ends))) if other != own]
        near = sorted(others, key=lambda other: (abs(len(other) - len(own)), other))[:8]
        answers = [own, *draw.sample(near, 3)]
        draw.shuffle(answers)
        asked.append(Question(prompt=cuts[own], answers=tuple(answers), correct=answers.index(own)))
    return asked


def _cut(sentence: str) -> tuple[str, str]:
    """(first third, at least two words; the rest with its leading blank)."""
    words = sentence.split()
    place = max(2, len(words) // 3)
    return " ".join(words[:place]), " " + " ".join(words[place:])


def _topics() -> Iterator[Document]:
    """Topics in documents of about 1,500 characters, cut at paragraphs; they quote each other, so each counts once."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    for name in sorted(topics):
        paragraphs: list[str] = []
        for paragraph in re.split(r"\n\s*\n", _clean(topics[name])):
            if paragraph.strip() in seen:
                continue
            seen.add(paragraph.strip())
            paragraphs.append(paragraph)
            if sum(map(len, paragraphs)) >= _TOPIC_CHARACTERS:
                yield Document(textwrap.dedent("\n\n".join(paragraphs)), "reference")
                paragraphs = []
        if sum(len(paragraph) for paragraph in paragraphs if not _HEADING.fullmatch(paragraph)) >= _SMALLEST:
            yield Document(textwrap.dedent("\n\n".join(paragraphs)), "reference")


def _docstrings(root: Path) -> Iterator[Document]:
    seen: set[str] = set()
    for path in _sources(root):
        label = _LABEL_OF.get(path.partition("/")[0].removesuffix(".py"), "language")
        for text, docstring in _of_file(root / path):
            if len(docstring) >= _SMALLEST and docstring not in seen:
                seen.add(docstring)
                yield Document(text, label)


def _sources(root: Path) -> list[str]:
    """Source files of the library proper, from `root`, in order; what is installed beside it is not looked through."""
    found: list[str] = []
    for folder, below, files in os.walk(root):
        at = Path(folder).relative_to(root)
        start = ("lib-dynload", "config-") if folder == str(root) else ()
        below[:] = [name for name in below if name not in _LEFT_OUT and not name.startswith(start)]
        found += [(at / name).as_posix() for name in files if name.endswith(".py")]
    return sorted(found)


def _of_file(path: Path) -> Iterator[tuple[str, str]]:
    """(text, docstring) of each documented module, class and function of one source file, in source order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in someone's old source are not ours to report
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return  # templates and test data of lib2to3 are not valid source on purpose
    docstring = _clean(ast.get_docstring(tree, clean=False) or "")
    yield docstring, docstring
    yield from _of_definitions(tree.body, "")


def _of_definitions(body: Sequence[ast.stmt], prefix: str) -> Iterator[tuple[str, str]]:
    for node in body:
        if not isinstance(node, _Definition):
            continue
        name = f"{prefix}{node.name}"
        docstring = _clean(ast.get_docstring(node, clean=False) or "")
        head = f"class {name}" if isinstance(node, ast.ClassDef) else f"{name}({ast.unparse(node.args)})"
        yield f"{head}\n{docstring}", docstring
        if isinstance(node, ast.ClassDef):
            yield from _of_definitions(node.body, f"{name}.")


def _clean(text: str) -> str:
    """Dedented, with no trailing blanks and no run of more than one empty line."""
    text = "\n".join(line.rstrip() for line in inspect.cleandoc(text).splitlines())
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _signature_and_sentence(text: str) -> tuple[str, str] | None:
    """A function document's signature and its docstring's first sentence on one line, or None for other documents."""
    head, _, docstring = text.partition("\n")
    match = _SENTENCE.match(docstring.split("\n\n")[0])
    if not _SIGNATURE.fullmatch(head) or match is None:
        return None
    sentence = " ".join(match[1].split())
    return (head, sentence) if 20 <= len(sentence) <= 200 else None


def _key(document: Document) -> str:
    """What makes two documents near-duplicates: the same first sentence, whatever its case and blanks."""
    pair = _signature_and_sentence(document.text)
    return (pair[1] if pair else " ".join(document.text.split())).lower()
