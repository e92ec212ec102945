"""The loader's threads: order, bound, errors, and that nothing of them stays."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch

from nnunet_ext.augmentation.threads import Abandoned, ThreadLoader


def own_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("nnunet_ext_")]


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    assert not own_threads()


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_things_come_in_order(threads):
    def make(number, go_on):
        time.sleep(0.005 * (number % 3))  # later ones are ready before earlier ones
        return number

    loader = ThreadLoader(make, threads, ahead=4, first=7)
    assert [next(loader) for _ in range(20)] == list(range(7, 27))
    loader.close()
    if threads:
        with pytest.raises(RuntimeError, match="closed"):
            next(loader)
    else:  # there was nothing to end
        assert next(loader) == 27


def test_no_more_are_made_than_wanted_ahead():
    begun = []

    def make(number, go_on):
        begun.append(number)
        return number

    loader = ThreadLoader(make, threads=2, ahead=3)
    deadline = time.monotonic() + 10
    while len(begun) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert sorted(begun) == [0, 1, 2]
    next(loader)
    while len(begun) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    loader.close()
    assert sorted(begun) == [0, 1, 2, 3]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_comes_where_its_thing_is_awaited(threads):
    def make(number, go_on):
        if number == 3:
            raise ValueError("number 3")
        return number

    loader = ThreadLoader(make, threads, ahead=8)
    assert [next(loader) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="number 3"):
        next(loader)
    loader.close()


def test_closing_abandons_what_is_in_the_making():
    started = threading.Event()

    def make(number, go_on):
        started.set()
        while go_on():
            time.sleep(0.001)
        raise Abandoned

    loader = ThreadLoader(make, threads=2, ahead=2)
    assert started.wait(10)
    loader.close()
    assert not own_threads()


def test_a_forgotten_loader_ends_its_threads():
    loader = ThreadLoader(lambda number, go_on: number, threads=2, ahead=2)
    next(loader)
    del loader
    gc.collect()
    assert not own_threads()


def test_torchs_threads_stay_the_trainings_own():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        inside = []
        loader = ThreadLoader(lambda number, go_on: inside.append(torch.get_num_threads()), threads=2, ahead=2)
        next(loader)
        loader.close()
        later = []
        other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert set(inside) == {1} and torch.get_num_threads() == 3 and later == [3]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 1), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_ends_the_process_at_once(number, status):
    """While the main thread waits for what never comes, and threads are busy."""
    program = textwrap.dedent("""
        import sys, time
        from nnunet_ext.augmentation.threads import Abandoned, ThreadLoader

        def make(number, go_on):
            while go_on():
                time.sleep(0.001)
            raise Abandoned

        loader = ThreadLoader(make, 2, 2)
        try:
            print("waiting", flush=True)
            next(loader)
        except KeyboardInterrupt:
            sys.exit(1)
    """)
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "waiting\n"
    child.send_signal(number)
    assert child.wait(30) == status
