"""The number of threads beside other processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from luthier.engine import cores
from luthier.engine.cores import Cores, decided


class Machine:
    """Rates by thread count, a clock, and the CPU time that the process has had."""

    def __init__(self) -> None:
        self.rates = {4: 300.0, 2: 190.0, 1: 100.0}
        self.now, self.used, self.tries = 100.0, 10.0, 0

    def timed(self, count: int) -> float:
        self.tries += 1
        torch.set_num_threads(count)
        return self.rates[count]

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.used

    def goes_on(self, seconds: float, share: float) -> None:
        self.now, self.used = self.now + seconds, self.used + share * seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine()
    monkeypatch.setattr(cores, "timed", made.timed)
    monkeypatch.setattr(cores, "time", made)
    for name in cores.NAMED:
        monkeypatch.delenv(name)
    torch.set_num_threads(4)
    yield made
    torch.set_num_threads(1)


def test_all_threads_unless_fewer_are_clearly_faster() -> None:
    assert decided({2: 100.0, 1: 129.0}) == 2
    assert decided({2: 100.0, 1: 131.0}) == 1
    assert decided({8: 10.0, 4: 90.0, 2: 50.0, 1: 30.0}) == 4


def test_a_quiet_machine_keeps_its_threads_and_is_left_alone(machine: Machine) -> None:
    said: list[str] = []
    mine = Cores()
    mine.watch(said.append)
    assert machine.tries == 9, "three counts, three times"
    for _ in range(50):
        machine.goes_on(30, 3.8)
        mine.watch(said.append)
    assert (torch.get_num_threads(), machine.tries, said) == (4, 9, [])


def test_threads_go_and_come_back(machine: Machine) -> None:
    said: list[str] = []
    mine = Cores()
    mine.watch(said.append)
    machine.rates = {4: 8.0, 2: 190.0, 1: 100.0}
    machine.goes_on(5, 1.0)
    mine.watch(said.append)
    assert torch.get_num_threads() == 4, "not looked at again so soon"
    machine.goes_on(30, 1.0)
    mine.watch(said.append)
    assert torch.get_num_threads() == 2
    told = "Other processes use the cores: 2 of 4 threads from here on, 23.8 times as fast just now (OMP_NUM_THREADS=4 keeps them)."
    assert said == [told]
    machine.goes_on(30, 1.9)
    mine.watch(said.append)
    assert (torch.get_num_threads(), len(said)) == (2, 1), "still busy, and said once"
    machine.rates[4] = 300.0
    machine.goes_on(60, 1.9)
    mine.watch(said.append)
    assert torch.get_num_threads() == 4
    assert said[1] == "The cores are free again: 4 of 4 threads."


def test_work_that_waits_for_its_disk_is_tried_ever_more_rarely(machine: Machine) -> None:
    mine = Cores()
    for _ in range(1000):
        mine.watch(print)
        machine.goes_on(1, 0.5)
    assert torch.get_num_threads() == 4
    assert machine.tries <= 9 * 10


def test_a_number_that_somebody_chose_stays(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.rates[4] = 1.0
    mine = Cores()
    mine.fix(4)
    mine.watch(print)
    assert (torch.get_num_threads(), machine.tries) == (4, 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    other = Cores()
    other.watch(print)
    assert (torch.get_num_threads(), machine.tries) == (4, 0)


def test_afterwards_there_are_as_many_as_before(machine: Machine) -> None:
    machine.rates[4] = 1.0
    mine = Cores()
    with mine.lent():
        mine.watch(print)
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 4
    with mine.lent():
        mine.fix(4)
        with mine.lent():
            mine.fix(3)
        mine.watch(print)
        assert torch.get_num_threads() == 3, "the outer run's number was fixed by hand, and stays so"
        assert mine.fixed
    assert not mine.fixed


RUN = """
import os, sys, json
os.environ.pop("OMP_NUM_THREADS", None); os.environ.pop("MKL_NUM_THREADS", None)
import torch
from luthier.engine import cores
torch.set_num_threads(2)
def timed(count):
    torch.set_num_threads(count)
    return {2: 1.0, 1: 9.0}[count]
cores.timed = timed
from luthier.run import run
record = run(json.loads(sys.argv[1]), runs=sys.argv[2], name="busy").record
print(json.dumps([record["environment"]["threads"], torch.get_num_threads()]))
"""


def test_a_run_works_with_what_is_left(easy: Path, tmp_path: Path) -> None:
    """In a process of its own, with two threads of which the second is held up."""
    recipe = {
        "model": "pocket", "adapt": "head", "data": {"train": str(easy)}, "method": {"kind": "supervised"},
        "train": {"steps": 4, "device": "cpu", "precision": "fp32"},
    }  # fmt: skip
    told = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(recipe), str(tmp_path)], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr[-2000:]
    assert told.stderr.count("1 of 2 threads from here on, 9.0 times as fast") == 1, told.stderr
    assert json.loads(told.stdout.splitlines()[-1]) == [1, 2], "one in the run, two again when it is over"
