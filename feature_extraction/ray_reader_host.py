"""The reader actor of a Ray cluster: a supervised reader process on one of its nodes.

Damage in a slide costs that slide and not the actor.
"""

import asyncio
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from feature_extraction.batches import TILES_A_JOB
from feature_extraction.ray_nodes import Place
from feature_extraction.reader_process import Answer, Forget, ReadTiles, Request
from feature_extraction.readers import Readers, ReaderSettings

Answered = tuple[Answer, UInt8[np.ndarray, "tile side side 3"] | None]
"""An answer, and the tiles where they were asked for."""


class ReaderHost:
    """The actor: a supervised reader process on a node.

    Args:
        settings: Of the reader process; its room for tiles is of this node only.
        place: What the node must have.
    """

    def __init__(self, settings: ReaderSettings, place: Place) -> None:
        self._place = place
        self._readers = Readers(settings)
        self._free: asyncio.Queue[int] = asyncio.Queue()
        for first in range(0, settings.n_tiles - TILES_A_JOB + 1, TILES_A_JOB):
            self._free.put_nowait(first)

    async def begin(self) -> str:
        """Start the reader process; returns the name of the node.

        Raises:
            InputError: The node does not see the files.
        """
        node = self._place.settle()
        self._readers.__enter__()
        return node

    async def answer(self, request: Request) -> Answered:
        """What the reader process says, and the tiles of a `ReadTiles`, which is of at most `TILES_A_JOB`."""
        if not isinstance(request, ReadTiles):
            return await asyncio.wrap_future(self._readers.ask(request)), None
        first = await self._free.get()
        try:
            answer = await asyncio.wrap_future(self._readers.ask(replace(request, first=first)))
            return answer, self._readers.tiles[first : first + len(request.coords_lv0)].copy()
        finally:
            self._free.put_nowait(first)

    async def forget(self, request: Forget) -> None:
        """Let go of a slide file's handles."""
        self._readers.forget(request.slide_id, request.path)
