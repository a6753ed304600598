"""Signals that wait until what is being done is safe."""

import signal
import threading
from types import FrameType, TracebackType

from lib.distributed.group import active

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruptions:
    """Within, SIGTERM and SIGINT are noted in ``caught`` and wait for ``deliver``.

    The second one does not wait, except for one of several ranks, whom torchrun and the terminal
    both tell. Signals that are ignored stay so; outside of the main thread, where Python has no
    handlers, nothing changes.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self.before: dict = {}  # signal number: the handler it had

    def __enter__(self) -> "Interruptions":
        self.caught = None
        self.before = {}
        if threading.current_thread() is not threading.main_thread():
            return self

        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler in (signal.SIG_IGN, None):
                continue
            self.before[number] = handler
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.caught and not active():
            self.deliver(number)
        else:
            self.caught = number

    def deliver(self, number: int) -> None:
        """Let a signal do what it would have done: end the process, or raise KeyboardInterrupt."""
        self.caught = None
        signal.signal(number, self.before[number])
        signal.raise_signal(number)
        signal.signal(number, self._note)  # whoever handled it wants the work to go on

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

        if self.caught:  # whatever else went wrong: who asked for an end gets it
            signal.raise_signal(self.caught)
