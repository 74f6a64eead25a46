"""From live objects to staged images: capture them, see what room they need, copy every byte there."""

from __future__ import annotations

from collections.abc import Callable

from asyncsave.bundle import brief_room, places
from asyncsave.catalogue.brief import Brief
from asyncsave.errors import StagingError
from asyncsave.image.layout import Layout
from asyncsave.notices import advise
from asyncsave.persist import Image
from asyncsave.request import Request
from asyncsave.staging.arena import Arena
from asyncsave.staging.capture import capture
from asyncsave.staging.copying import synchronize
from asyncsave.staging.stage import collector_paused, fill, layout_of
from asyncsave.workers import Workers

__all__ = ["Intake"]


class Intake:
    """The objects of one save, captured: from here on it is known how much room they need.

    Args:
        request: What is to be saved. Its objects must not change before :meth:`fill` has returned.
        room: Tells how many bytes of an arena an image needs.

    Attributes:
        nbytes: Bytes of an arena that all of it needs.
        brief: Of a step.

    Raises:
        StagingError: An object cannot be captured.
    """

    def __init__(self, request: Request, room: Callable[[Layout], int]) -> None:
        with collector_paused():
            self._captured = [
                capture(
                    obj,
                    pickle_module=request.pickle_module,
                    pickle_protocol=request.pickle_protocol,
                    compact=request.compact,
                )
                for obj in request.objects
            ]
            self._layouts = [layout_of(captured) for captured in self._captured]
        self._protocol = request.pickle_protocol
        synchronize()
        rooms = [room(layout) for layout in self._layouts]
        self._places = places(rooms)
        self.brief: Brief | None = None
        self.nbytes = self._places[-2] + rooms[-1]
        if request.describe is not None:
            self.brief = request.describe(sum(captured.tensors for captured in self._captured))
            self.nbytes = self._places[-1] + brief_room(self.brief)

    def advise(self) -> None:
        """Say what will surprise whoever loads it."""
        for captured in self._captured:
            total = sum(span.nbytes for span in captured.spans)
            advise(self._protocol, captured.unsafe, captured.unreferenced, total)

    def fill(self, arena: Arena, workers: Workers) -> list[Image]:
        """Copy everything into an arena; block until the last byte is there.

        Raises:
            StagingError: That failed.
        """
        images: list[Image] = []
        ends = [*self._places[1:-1], self._places[-1] if self.brief is not None else arena.capacity]
        berths = [arena.berth(start, end) for start, end in zip(self._places, ends, strict=False)]
        try:
            with collector_paused():
                for captured, layout, berth, start in zip(
                    self._captured, self._layouts, berths, self._places, strict=False
                ):
                    images.append(Image(berth.view, layout, fill(captured, layout, berth, workers), start))
        except BaseException as error:
            for berth in berths:  # who keeps the error must not keep the memory
                berth.view.release()
            if not isinstance(error, Exception):
                raise
            message = f"cannot copy the state: {type(error).__name__}: {error}. Nothing was written"
            raise StagingError(message) from error
        return images
