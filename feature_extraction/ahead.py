"""Work ahead: apply a function to items on threads, a few items before they are needed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


class Ahead(Iterator[Out], Generic[In, Out]):
    """Results in the order of the items, at most ``n_ahead`` of them waiting.

    Args:
        executor: Whose threads do the work.
        function: Applied to each item.
        items: Taken one by one, as results are taken.
        n_ahead: Results made before they are asked for.
    """

    def __init__(
        self, executor: ThreadPoolExecutor, function: Callable[[In], Out], items: Iterable[In], n_ahead: int
    ) -> None:
        self._executor = executor
        self._function = function
        self._items = iter(items)
        self._n_ahead = n_ahead
        self._waiting: deque[Future[Out]] = deque()
        self._top_up()

    def is_ready(self) -> bool:
        """Whether the next result, or the end, is there at once."""
        return not self._waiting or self._waiting[0].done()

    def wait(self, seconds: float) -> None:
        """Wait for the next result, at most so long."""
        wait(list(self._waiting)[:1], timeout=seconds)

    def __next__(self) -> Out:
        if not self._waiting:
            raise StopIteration
        result = self._waiting.popleft().result()
        self._top_up()
        return result

    def cancel(self) -> None:
        """Give up what has not begun."""
        for future in self._waiting:
            future.cancel()
        self._items = iter(())

    def _top_up(self) -> None:
        while len(self._waiting) < self._n_ahead:
            try:
                item = next(self._items)
            except StopIteration:
                return
            self._waiting.append(self._executor.submit(self._function, item))
