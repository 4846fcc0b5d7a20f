import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import closing

import pytest

from palinka.data import loader as read_ahead
from palinka.data.loader import ReadAhead


def counting(drawn: list[int], closed: list[bool], last: int = 10) -> Generator[int, None, None]:
    try:
        for number in range(last):
            drawn.append(number)
            yield number
    finally:
        closed.append(threading.current_thread() is not threading.main_thread())


def test_items_come_in_order_and_the_generator_is_closed_in_its_thread() -> None:
    drawn: list[int] = []
    closed: list[bool] = []
    with closing(ReadAhead(counting(drawn, closed), 3)) as items:
        assert list(items) == list(range(10))
        assert list(items) == []
    assert closed == [True]


def test_no_more_is_read_ahead_than_asked() -> None:
    drawn: list[int] = []
    with closing(ReadAhead(counting(drawn, []), 3)) as items:
        for taken in range(4):
            deadline = time.monotonic() + 10
            while len(drawn) < taken + 3 and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)
            assert len(drawn) == taken + 3
            assert next(items) == taken


def test_an_exception_comes_in_its_place() -> None:
    def failing() -> Generator[int, None, None]:
        yield 1
        yield 2
        raise KeyError("three")

    with closing(ReadAhead(failing(), 2)) as items:
        assert [next(items), next(items)] == [1, 2]
        with pytest.raises(KeyError, match="three"):
            next(items)
        assert list(items) == []


def test_closing_ends_the_thread_and_the_iteration() -> None:
    closed: list[bool] = []
    items = ReadAhead(counting([], closed), 1)
    assert next(items) == 0
    items.close()
    assert closed == [True]
    assert list(items) == []
    items.close()


def test_a_waiting_consumer_is_released_by_close() -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow() -> Generator[int, None, None]:
        started.set()
        go_on.wait(10)
        yield 1

    items = ReadAhead(slow(), 1)
    seen: list[int] = []
    consumer = threading.Thread(target=lambda: seen.extend(items))
    consumer.start()
    started.wait(10)
    threading.Timer(0.05, go_on.set).start()
    items.close()
    consumer.join(10)
    assert not consumer.is_alive()


UNFINISHED = """
import importlib.util, sys
from contextlib import closing
spec = importlib.util.spec_from_file_location("read_ahead", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

def numbers():
    while True:
        yield bytes(100_000)

def batches():
    with closing(module.ReadAhead(numbers(), 2)) as items:
        yield from items

running = batches()
next(running)
"""


def test_an_unfinished_iteration_does_not_keep_the_process_alive() -> None:
    for _ in range(3):
        subprocess.run(
            [sys.executable, "-c", UNFINISHED, read_ahead.__file__], check=True, timeout=60
        )
