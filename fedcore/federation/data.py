"""The texts of a federation: a JSONL file, a `datasets` name, or Python's own documentation; dealt to clients."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcore.errors import ConfigError, DependencyError, FormatError, MissingError, ShapeError
from fedcore.federation.config import Config
from fedcore.federation.config_data import BUILT_IN_TEXTS
from fedcore.federation.partition import partition
from fedcore.updates.header import json_object
from fedcore.updates.layout import LONE_SURROGATE

if TYPE_CHECKING:
    from fedcore.clients.corpus import Document
    from fedcore.clients.settings import Question


@dataclass(frozen=True)
class Client:
    """What one client holds.

    labels  counts its texts by label (all under '' where the data has no labels)
    drawn   what its batches are drawn by, where that is not its id
    """

    id: str
    texts: tuple[str, ...]
    labels: dict[str, int]
    drawn: str = ""

    @property
    def seeded_by(self) -> str:
        """What `client_seed` takes of it."""
        return self.drawn or self.id


@dataclass(frozen=True)
class Texts:
    """The data of a run.

    public   what [model.pretrain] reads: never a held-out text
    server   the server's own texts, where [server] has data
    """

    clients: tuple[Client, ...]
    public: tuple[Document, ...]
    held_out: tuple[str, ...]
    questions: tuple[Question, ...]
    server: Client | None = None


def load_texts(config: Config) -> Texts:
    """Read, split and deal the texts as the configuration says; the same seed gives the same result.

    In a partition by column, what one client trains on, and by which seed, depends on its texts and label alone.
    Raises MissingError, FormatError (file and line), ConfigError (key) or DependencyError.
    """
    from fedcore.clients.corpus import split

    seed, settings = config.run.seed, config.data
    public, documents = _public(_documents(config), config.model.pretrain.label if config.model.pretrain else None)
    try:
        training, held_out = split(documents, settings.held_out, seed)
    except ShapeError as error:
        raise ConfigError(f"data.{error}") from None
    if config.partition.kind == "column" and (none := {d.label for d in held_out} - {d.label for d in training}):
        raise ConfigError(
            f"partition.min_examples: all texts of {len(none)} of {len({d.label for d in documents})} clients are held "
            f"out, expected at least {config.partition.min_examples} to train on; bring more texts or leave such "
            "clients out"
        )
    held_out = [held_out[i] for i in np.random.default_rng([seed, 0x68656C64]).permutation(len(held_out))]
    shares = partition([d.label for d in training], config.partition, seed)
    clients = []
    for share in shares:
        own = [training[i] for i in share.indices]
        labels = dict(sorted(Counter(d.label for d in own).items()))
        clients.append(Client(share.client_id, tuple(d.text for d in own), labels, share.drawn))
    limited = held_out[: settings.held_out_limit]
    return Texts(
        tuple(clients),
        tuple(public or training),
        tuple(d.text for d in limited),
        tuple(_questions(config, held_out)),
        _server(config, clients, {d.text for d in held_out}),
    )


def _server(config: Config, clients: Sequence[Client], held_out: Set[str]) -> Client | None:
    """The server as a client, with the texts of [server] data.

    held_out: all of them, scored or not. Raises ConfigError where one is among those or with a client.
    """
    if config.server.data is None:
        return None
    own = tuple(document.text for document in _read(config.server.data, config, None, "server.data"))
    if not own:
        raise FormatError(f"{config.server.data}: got no text, expected at least 1; check server.data and data.text")
    dealt = {text for client in clients for text in client.texts}
    scored, shared = (sum(text in others for text in own) for others in (held_out, dealt))
    if scored or shared:
        raise ConfigError(
            f"server.data: {scored} of its {len(own)} texts are held out and {shared} are clients', expected none: an "
            "update of the server would come from what the run is scored on, or from what clients alone hold; give "
            "texts of its own"
        )
    return Client("server", own, {"": len(own)})


def _public(documents: list[Document], label: str | None) -> tuple[list[Document], list[Document]]:
    """(texts that make the base, texts of the federation). Raises ConfigError if one of them would be empty."""
    public = [document for document in documents if document.label == label] if label is not None else []
    rest = [document for document in documents if label is None or document.label != label]
    if (label is not None and not public) or not rest:
        known = ", ".join(sorted({document.label for document in documents} - {""}))
        have = f"they have {known}" if known else "they have none: name their column in partition.column"
        raise ConfigError(f"model.pretrain.label: got {label!r}, expected one of several labels of the texts; {have}")
    return public, rest


def _documents(config: Config) -> list[Document]:
    """Every text with its label. The label comes from partition.column; Python's documentation brings its own."""
    source = config.data.source
    if source == BUILT_IN_TEXTS:
        from fedcore.clients.corpus import python_documentation

        return python_documentation()
    documents = list(_read(source, config, config.partition.column, "data.source"))
    if len(documents) < 2:
        raise FormatError(f"{source}: got {len(documents)} texts, expected at least 2; check data.text and the file")
    return documents


def _read(source: str, config: Config, column: str | None, key: str) -> Iterable[Document]:
    """The texts of a .jsonl path or a `datasets` name, which the file has under `key`."""
    rows = _jsonl(Path(source), key) if source.endswith((".jsonl", ".json")) else _dataset(source, config, key)
    return _labelled(rows, config.data.text, column)


def _jsonl(path: Path, key: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """(place, row) of each non-empty line."""
    if not path.is_file():
        others = f", a `datasets` name or {BUILT_IN_TEXTS!r}" if key == "data.source" else " or a `datasets` name"
        raise MissingError(f"{path}: no such file; {key} is a .jsonl path{others}", filename=path)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)  # some editors begin a file with it
            if line.strip():
                place = f"{path}:{number}"
                yield place, json_object(line, place, "write one JSON object per line, in UTF-8")


def _dataset(name: str, config: Config, key: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """(place, row) of each row of a `datasets` data set: a directory, or a name in the hub's cache or on the hub."""
    try:
        import datasets
    except ImportError:
        raise DependencyError(
            f"{key}: {name!r} needs the datasets package; install fedcore[train]", name="datasets"
        ) from None
    from fedcore.clients.hub import line, nowhere, why_not

    reason = None if Path(name).is_dir() else why_not("dataset", name)
    offline = datasets.config.HF_HUB_OFFLINE
    try:
        # without the hub, its cache is looked into at once; else five times after a longer wait each
        datasets.config.HF_HUB_OFFLINE = offline or reason is not None
        rows = datasets.load_dataset(name, split=config.data.split)
    except (OSError, ValueError) as error:
        if reason is not None and isinstance(error, OSError):
            raise MissingError(
                f"{key}: {name!r}: {nowhere(config.folder / name, reason)}; correct the path or the name"
            ) from None
        raise MissingError(
            f"{key}: cannot load {name!r}, split {config.data.split!r}: {line(error)}; check both names"
        ) from None
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    for number, row in enumerate(rows):
        yield f"{name}[{number}]", row


def _labelled(rows: Iterable[tuple[str, Mapping[str, Any]]], text: str, column: str | None) -> Iterable[Document]:
    """Rows as documents. Raises FormatError naming the row that lacks a column; empty texts are left out."""
    from fedcore.clients.corpus import Document

    for place, row in rows:
        for key, where in ((text, "data.text"), (column, "partition.column")):
            if key is None:
                continue
            if key not in row:
                raise FormatError(f"{place}: no column {key!r} ({where}); it has {', '.join(row)}")
            if row[key] is None:
                raise FormatError(f"{place}: column {key!r} ({where}) is null; give it a value or remove the row")
            if LONE_SURROGATE.search(str(row[key])):
                raise FormatError(
                    f"{place}: column {key!r} ({where}) holds half a character (a lone surrogate), which is no text in "
                    "UTF-8; correct the row"
                )
        if not isinstance(row[text], str):
            raise FormatError(f"{place}: column {text!r} holds {type(row[text]).__name__}, expected text")
        if row[text].strip():
            yield Document(row[text], "" if column is None else str(row[column]))


def _questions(config: Config, held_out: Sequence[Document]) -> list[Question]:
    """Ranking questions from held-out texts only. Fewer than asked for if the texts do not give as many."""
    count, seed = config.data.questions, config.run.seed
    if config.data.source == BUILT_IN_TEXTS:
        from fedcore.clients.corpus import questions

        return questions(held_out, count, seed) if count else []
    return continuations([d.text for d in held_out], count, seed)


def continuations(texts: Sequence[str], count: int, seed: int) -> list[Question]:
    """For texts of any kind: which of four second halves continues this first half? Chance is 1 in 4."""
    from fedcore.clients.settings import Question

    halves = []
    for text in texts:
        words = text.split()
        if len(words) >= 8:
            middle = min(len(words) // 2, 32)
            halves.append((" ".join(words[:middle]), " " + " ".join(words[middle : middle + 16])))
    if len({second for _, second in halves}) < 4:
        return []
    generator = np.random.default_rng([seed, 0x71756573])
    made = []
    for index in generator.permutation(len(halves))[:count]:
        prompt, own = halves[index]
        others = sorted({second for _, second in halves} - {own})
        answers = [own, *(others[i] for i in generator.choice(len(others), 3, replace=False))]
        order = generator.permutation(4)
        made.append(Question(prompt, tuple(answers[i] for i in order), int(np.flatnonzero(order == 0)[0])))
    return made
