"""One thread that reads batches ahead of their use."""

import sys
import threading
import time
from collections.abc import Generator, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class _End:
    """Nothing more will come, for the given reason if any."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class ReadAhead(Generic[T]):
    """Draws items from a generator in a thread of its own, a few ahead of the consumer.

    An exception in the thread is raised where the item would have come. The thread ends with
    the generator or with `close`.

    Args:
        items: Drawn from, and closed at the end, by the thread alone.
        ahead: How many items may be ready or under way.

    Attributes:
        wait_seconds: How long the consumer waited for the latest item.
    """

    def __init__(self, items: Generator[T, None, None], ahead: int) -> None:
        self.wait_seconds = 0.0
        self._ready: SimpleQueue[T | _End] = SimpleQueue()
        self._slots = threading.Semaphore(ahead)
        self._stop = threading.Event()
        # A daemon: a consumer that is dropped at exit must not keep the process alive.
        self._thread = threading.Thread(
            target=_draw,
            args=(items, self._ready, self._slots, self._stop),
            name="read-ahead",
            daemon=True,
        )
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._stop.is_set():
            raise StopIteration
        started = time.perf_counter()
        item = self._ready.get()
        self.wait_seconds = time.perf_counter() - started
        if isinstance(item, _End):
            self._stop.set()
            if item.error is not None:
                raise item.error
            raise StopIteration
        self._slots.release()
        return item

    def close(self) -> None:
        """End the thread, and with it the iteration."""
        self._stop.set()
        # At exit, daemon threads are frozen; and garbage may be collected in the thread itself.
        if not sys.is_finalizing() and threading.current_thread() is not self._thread:
            self._slots.release()
            self._thread.join()
            self._ready.put(_End())


def _draw(
    items: Generator[T, None, None],
    ready: "SimpleQueue[T | _End]",
    slots: threading.Semaphore,
    stop: threading.Event,
) -> None:
    """The thread's work; it must not refer to its `ReadAhead`, whose end it waits for."""
    end = _End()
    try:
        while True:
            # The timeout serves a consumer that went away without a word.
            while not slots.acquire(timeout=1.0) and not stop.is_set():
                pass
            if stop.is_set():
                break
            ready.put(next(items))
    except StopIteration:
        pass
    except BaseException as error:
        end = _End(error)
    finally:
        items.close()
        ready.put(end)
