"""SIGINT and SIGTERM: at once, or at the end of what must not be cut in two."""

from __future__ import annotations

import os
import signal

import pytest

from tracked_cls import signals
from tracked_cls.errors import Interrupted

BOTH = pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])


@pytest.fixture(autouse=True)
def _handlers():
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    signals.install()
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def send(signum):
    os.kill(os.getpid(), signum)


@BOTH
def test_outside_a_signal_interrupts_at_once(signum, code):
    with pytest.raises(Interrupted) as caught:
        send(signum)
    assert caught.value.exit_code == code


@BOTH
def test_deferred_holds_a_signal_back_to_the_end_of_the_block(signum, code):
    seen = []

    def work():
        with signals.deferred() as interrupted:
            seen.append(interrupted())
            send(signum)
            seen.append(interrupted())

    with pytest.raises(Interrupted) as caught:
        work()
    assert seen == [False, True]
    assert caught.value.exit_code == code


def test_deferred_without_a_signal_is_silent():
    with signals.deferred() as interrupted:
        assert not interrupted()


def test_after_a_deferred_block_signals_interrupt_at_once_and_the_next_block_starts_clean():
    with pytest.raises(Interrupted), signals.deferred():
        send(signal.SIGTERM)
    with signals.deferred() as interrupted:
        assert not interrupted()
    with pytest.raises(Interrupted):
        send(signal.SIGTERM)


def test_an_error_inside_a_deferred_block_ends_the_deferral():
    with pytest.raises(ZeroDivisionError), signals.deferred():
        raise ZeroDivisionError
    with pytest.raises(Interrupted):
        send(signal.SIGTERM)


def test_a_command_does_not_catch_an_interruption_by_accident():
    assert not issubclass(Interrupted, Exception)
