"""Worker processes: answers in order, errors where they belong, nobody left behind; the same clients' bytes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from worker_calls import break_client, die, die_while_answering, fail, pid_after

from fedcore.clients.workers import Workers
from fedcore.errors import BackendError, NonFiniteError, TrainingError
from fedcore.federation import simulation
from fedcore.federation.config_file import parse_config
from fedcore.federation.data import Client, Texts
from fedcore.federation.learner import QLoRALearner
from fedcore.federation.simulation import run_arms
from fedcore.updates import Update


@pytest.fixture(scope="module")
def workers():
    with Workers(2) as made:
        yield made


def test_answers_come_in_order_from_all_workers(workers):
    # the first call is done last
    calls = [partial(pid_after, 0.4 if k == 0 else 0.01, k) for k in range(9)]
    found = [answer() for answer in workers.each(calls)]
    assert [value for value, _ in found] == list(range(9))
    assert len({pid for _, pid in found} - {os.getpid()}) == 2


def test_no_more_calls_are_under_way_than_are_soon_asked_for(workers):
    taken = []
    calls = (taken.append(k) or partial(pid_after, 0.0, k) for k in range(100))
    answers = workers.each(calls)
    next(answers)
    time.sleep(0.2)
    assert len(taken) < 12
    assert [answer()[0] for answer in answers] == list(range(1, 100))


def test_an_error_is_raised_where_its_result_is_asked_for(workers):
    answers = list(workers.each([partial(fail, 3), partial(pid_after, 0.0, 7), partial(fail, 0)]))
    with pytest.raises(NonFiniteError, match="client 3") as caught:
        answers[0]()
    assert caught.value.row == 3
    assert answers[1]()[0] == 7
    with pytest.raises(RuntimeError, match=r"(?s)in a worker process.*in fail.*ZeroDivisionError: by a fault"):
        answers[2]()


def test_calls_that_nobody_waited_for_do_not_answer_for_others(workers):
    next(workers.each([partial(pid_after, 0.1, 50 + k) for k in range(6)]))()
    assert [answer()[0] for answer in workers.each([partial(pid_after, 0.0, k) for k in range(6)])] == list(range(6))


def test_where_a_worker_cannot_do_what_comes_first_no_call_is_made():
    with Workers(2) as made:
        made.everywhere(partial(fail, 4))
        for _ in range(2):
            with pytest.raises(NonFiniteError, match="client 4"):
                list(made.each([partial(pid_after, 0.0, 1)] * 4))


def test_ctrl_c_is_for_the_process_that_started_them(workers):
    pids = {answer()[1] for answer in workers.each([partial(pid_after, 0.1, k) for k in range(4)])}
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert [answer()[0] for answer in workers.each([partial(pid_after, 0.0, k) for k in range(4)])] == list(range(4))


def test_a_worker_that_dies_is_named_with_what_to_do():
    with Workers(1) as alone:
        answers = alone.each([os.getpid, die])
        next(answers)()
        with pytest.raises(BackendError, match=r"one of 1 ended with signal 9, expected an answer; .*run\.workers"):
            next(answers)()


def test_a_worker_that_dies_amid_its_answer_is_named_as_well():
    with Workers(1) as alone:
        answers = alone.each([os.getpid, die_while_answering])
        next(answers)()
        receive = alone._receive
        # busy with other things, while half of the answer waits
        alone._receive = lambda: (time.sleep(1.5), receive())
        with pytest.raises(BackendError, match=r"one of 1 ended with signal 9, expected an answer; .*run\.workers"):
            next(answers)()


def test_a_call_that_cannot_travel_leaves_the_workers_as_they_were(workers):
    with pytest.raises(Exception, match="pickle"):
        list(workers.each([lambda: 1]))
    assert [answer()[0] for answer in workers.each([partial(pid_after, 0.0, k) for k in range(5)])] == list(range(5))


def test_two_that_ask_in_turn_each_get_their_own_answers(workers):
    first = workers.each([partial(pid_after, 0.01, k) for k in range(6)])
    assert next(first)()[0] == 0
    assert [answer()[0] for answer in workers.each([partial(pid_after, 0.0, k + 50) for k in range(3)])] == [50, 51, 52]
    assert [answer()[0] for answer in first] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("busy", [False, True])
def test_workers_end_when_the_process_that_started_them_is_killed(busy):
    program = (
        "import os, signal, time; from functools import partial; from fedcore.clients.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    workers = Workers(2)\n"
        "    print(*{a() for a in workers.each([os.getpid] * 8)}, flush=True)\n"
        f"    workers.everywhere(partial(time.sleep, {600 * busy}))\n"
        "    time.sleep(0.2)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    pids = [int(word) for word in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL
    assert pids, done.stderr
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


CONFIG = """
[run]
rounds = 2
[model]
source = "{directory}"
device = "cpu"
[partition]
clients = 3
[adapter]
rank = 2
[training]
steps = 2
batch_size = 2
sequence_length = 16
[aggregation]
space = "parameters"
[[arms]]
name = "mean"
[[arms]]
name = "poisoned"
attack = {{ clients = 1 }}
[[arms]]
name = "fedsb"
method = "fedsb"
[[arms]]
name = "masked"
secure = true
"""


def test_clients_that_train_in_workers_send_the_same_bytes(tiny_directory, texts, tmp_path, workers):
    clients = tuple(Client(f"client-{i}", tuple(texts[i::3]), {"": len(texts[i::3])}) for i in range(3))
    config, given = parse_config(CONFIG.format(directory=tiny_directory), "c.toml"), Texts(clients, (), ("Held.",), ())
    before = torch.get_num_threads()
    torch.set_num_threads(next(workers.each([torch.get_num_threads]))())
    try:
        learner, kept = QLoRALearner(config, given, lambda *_, **__: None), []
        for name, who in (("here", None), ("there", workers)):
            folder = run_arms(config, given, learner, tmp_path / name, resume=False, workers=who)
            lines = [{k: v for k, v in line.items() if k != "seconds"} for line in folder.metrics.entries]
            kept.append((folder.ledger.entries, lines))
            learner.train = None  # where there are workers, this process trains nobody
    finally:
        torch.set_num_threads(before)
    assert len(kept[0][0]) == 8
    assert kept[0] == kept[1]


def run_of_five(directory, texts, arms, path, workers, *, resume=False):
    text = CONFIG.format(directory=directory).replace("clients = 3", "clients = 5").partition("[[arms]]")[0]
    clients = tuple(Client(f"client-{i}", tuple(texts[i::5]), {"": len(texts[i::5])}) for i in range(5))
    config, given = parse_config(text + arms, "c.toml"), Texts(clients, (), ("Held.",), ())
    learner = QLoRALearner(config, given, lambda *_, **__: None)
    return run_arms(config, given, learner, path, resume=resume, workers=workers)


@pytest.fixture
def mended(workers):
    """Workers in which tests break a client, which is whole again for the next test."""
    yield workers
    workers.everywhere(partial(break_client, None))


def test_a_client_that_fails_in_a_worker_drops_out_of_a_secure_sum(tiny_directory, texts, tmp_path, mended):
    arms = '[[arms]]\nname = "masked"\nsecure = true\n'
    mended.everywhere(partial(break_client, "client-2"))
    folder = run_of_five(tiny_directory, texts, arms, tmp_path / "run", mended)
    for entry in folder.ledger.entries:
        assert entry["excluded"] == {"client-2": "dropped out"}
        assert entry["secure"]["survivors"] == [["client-0", "client-1", "client-3", "client-4"]]
    assert len(folder.ledger.entries) == 2


def test_a_run_that_a_worker_stopped_resumes_to_the_same_ledger(tiny_directory, texts, tmp_path, mended):
    arms = '[[arms]]\nname = "mean"\n'
    whole = run_of_five(tiny_directory, texts, arms, tmp_path / "whole", mended)
    mended.everywhere(partial(break_client, "client-2"))
    with pytest.raises(TrainingError, match="client-2: its machine is gone"):
        run_of_five(tiny_directory, texts, arms, tmp_path / "stopped", mended)
    mended.everywhere(partial(break_client, None))
    again = run_of_five(tiny_directory, texts, arms, tmp_path / "stopped", mended, resume=True)
    assert again.ledger.entries == whole.ledger.entries
    assert len(whole.ledger.entries) == 2


def test_a_run_starts_its_workers_and_ends_them(tiny_directory, texts, tmp_path, monkeypatch):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    text = CONFIG.format(directory=tiny_directory).replace("[run]", "[run]\nworkers = 2").partition("[[arms]]")[0]
    text += f'[data]\nsource = "{tmp_path / "texts.jsonl"}"\ntext = "text"\nheld_out = 0.1\n'
    started = []
    monkeypatch.setattr(simulation, "Workers", lambda count: started.append(Workers(count)) or started[0], raising=True)
    folder = simulation.simulate(parse_config(text, "c.toml"), tmp_path / "run")
    assert len(folder.ledger.entries) == 2
    assert [process.exitcode for process in started[0]._processes.values()] == [0, 0]


def test_a_worker_refuses_another_base_than_the_run_began_with(tiny_directory, texts, tmp_path):
    clients = (Client("client-0", tuple(texts), {"": len(texts)}),)
    text = CONFIG.format(directory=tiny_directory).replace("clients = 3", "clients = 1").partition("[[arms]]")[0]
    config, given = parse_config(text, "c.toml"), Texts(clients, (), ("Held.",), ())
    learner = QLoRALearner(config, given, lambda *_, **__: None)
    learner.digest = "0" * 64
    with (
        Workers(1) as alone,
        pytest.raises(BackendError, match=r"a worker process reads .* 0000000000000000; .*start again"),
    ):
        run_arms(config, given, learner, tmp_path / "run", resume=False, workers=alone)


def test_an_update_pickles_as_its_bytes(tmp_path):
    import pickle

    import numpy as np

    made = Update.from_tensors({"w": np.arange(6, dtype=np.float32)}, num_examples=3, client_id="c")
    (tmp_path / "u.safetensors").write_bytes(made.to_bytes())
    for update in (made, Update.open(tmp_path / "u.safetensors")):
        again = pickle.loads(pickle.dumps(update))
        assert again.to_bytes() == made.to_bytes()
        assert (again.client_id, again.num_examples) == ("c", 3)


def test_what_a_worker_made_is_given_back_at_the_end():
    """Else Python says at the end of a good run that semaphores leaked."""
    work = "from worker_calls import hold_a_semaphore\nfrom fedcore.clients.workers import Workers\n"
    work += "with Workers(2) as both:\n    print([answer() for answer in both.each([hold_a_semaphore] * 2)])\n"
    path = os.pathsep.join(filter(None, sys.path))
    ended = subprocess.run(
        [sys.executable, "-c", work], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[True, True]\n", "")


@pytest.mark.parametrize(
    ("number", "do"), [(signal.SIGTERM, r"if memory ran out, .*run\.workers"), (signal.SIGABRT, "a library crashed")]
)
def test_a_signal_is_named_with_what_it_may_mean(number, do):
    with Workers(1) as alone, pytest.raises(BackendError) as caught:
        list(alone.each([partial(die, number)]))
    assert re.search(rf"one of 1 ended with signal {int(number)}, expected an answer; {do}", str(caught.value))
