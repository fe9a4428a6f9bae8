"""Ranks that share the counts of a batch.

A `Communicator` wraps the C library's: one all-gather of a few kilobytes a batch. Every rank makes
the same calls in the same order, also with zero tokens. When a rank is gone, or slower than the
timeout, the others get an error and their communicator is dead until it is made again on all ranks.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import numbers
import os
import secrets
import weakref
from typing import Any, Iterator, Sequence

import numpy as np

from . import _library as c
from ._arrays import address
from ._checks import INT64, Unique, filled, integer

DEFAULT_TIMEOUT = 10.0


def counts_bytes(n_experts: int) -> int:
    """Most bytes a rank contributes when the counts of n_experts experts are shared."""
    return max(256, (n_experts + 2) * 8)


_interrupts: list[BaseException] = []


def _answers() -> Iterator[int]:
    """What the library is told when it asks, while it waits, whether to go on. Signal handlers of
    Python run where its code does: here, and behind `yield` what they raise is inside the try."""
    answer = 0
    while True:
        try:
            yield answer
            answer = 0
        except GeneratorExit:
            return
        except BaseException as error:  # nothing may pass through C
            _interrupts.append(error)
            answer = 1


_generator = _answers()
next(_generator)
_asked = c.INTERRUPT(_generator.__next__)


def _raise_interrupts() -> None:
    if _interrupts:
        raise _interrupts.pop()


class Communicator(Unique):
    """A group of ranks; make one with `local`, `shared_memory`, `torch_group` or `from_group`."""

    _instead = "make one anew on all ranks, or share this one"

    def __init__(self, handle: ctypes.c_void_p, keep: Any = None,
                 interrupts: list[BaseException] | None = None) -> None:
        self._handle = handle
        self._keep = keep  # callbacks that the C side calls
        self._interrupts = interrupts
        self._close = weakref.finalize(self, c.lib().lplb_comm_destroy, handle)

    # ---- making one ----

    @classmethod
    def local(cls) -> Communicator:
        """One rank, nothing to share."""
        handle = ctypes.c_void_p()
        c.check(c.lib().lplb_comm_create_local(ctypes.byref(handle)))
        return cls(handle)

    @classmethod
    def shared_memory(cls, name: str, rank: int, ranks: int, max_bytes: int,
                      timeout: float = DEFAULT_TIMEOUT) -> Communicator:
        """Ranks of one host over POSIX shared memory.

        name: the same on all ranks, used by no other communicator. max_bytes: `counts_bytes(E)`.
        Waits until all ranks have joined, at most `timeout` seconds.
        """
        handle = ctypes.c_void_p()
        c.lib().lplb_comm_set_interrupt(_asked)
        status = c.lib().lplb_comm_create_shm(
            name.encode(), integer(rank, "rank"), integer(ranks, "ranks"),
            integer(max_bytes, "max_bytes", *INT64), nanoseconds(timeout), ctypes.byref(handle))
        _raise_interrupts()
        c.check(status)
        return cls(handle, interrupts=_interrupts)

    @classmethod
    def custom(cls, name: str, rank: int, ranks: int, max_bytes: int, all_gather: Any,
               timeout: float = DEFAULT_TIMEOUT) -> Communicator:
        """A transport of one's own (mpi4py, Ray, ...).

        all_gather(send, timeout) -> received: send is a uint8 numpy array [n]; received [ranks][n]
        uint8 by rank. It raises TimeoutError or any other exception when it fails.
        """

        interrupts: list[BaseException] = []  # Ctrl-C must not end in a status

        def gather(_state, send, receive, count, timeout_ns, message, message_bytes) -> int:
            try:
                mine = np.frombuffer(ctypes.string_at(send, count), dtype=np.uint8)
                got = np.ascontiguousarray(all_gather(mine, timeout_ns * 1e-9), dtype=np.uint8)
                if got.shape != (ranks, count):
                    raise ValueError(f"gathered shape {got.shape}, not {(ranks, count)}")
                ctypes.memmove(receive, address(got), got.size)
                return c.OK
            except BaseException as error:  # nothing may pass through C
                if not isinstance(error, Exception):
                    interrupts.append(error)
                text = f"{type(error).__name__}: {error}".encode()[:message_bytes - 1] + b"\0"
                ctypes.memmove(message, text, len(text))
                return c.TIMEOUT if isinstance(error, TimeoutError) else c.REMOTE

        callback = c.ALL_GATHER(gather)
        transport = filled(c.Transport, struct_size=ctypes.sizeof(c.Transport), name=name.encode(),
                           rank=rank, ranks=ranks, max_bytes=max_bytes, all_gather=callback)
        handle = ctypes.c_void_p()
        c.check(c.lib().lplb_comm_create(ctypes.byref(transport), nanoseconds(timeout),
                                             ctypes.byref(handle)))
        return cls(handle, callback, interrupts)

    @classmethod
    def torch_group(cls, group: Any, max_bytes: int,
                    timeout: float = DEFAULT_TIMEOUT) -> Communicator:
        """Over a torch.distributed process group of any backend.

        After a timeout the group itself still waits for the missing rank until its own timeout
        (the one of `init_process_group`), which also delays the end of the process.
        """
        device = _group_device(group)

        def all_gather(send: np.ndarray, seconds: float) -> np.ndarray:
            return _torch_all_gather(group, device, send, seconds)

        return cls.custom("torch", group.rank(), group.size(), max_bytes, all_gather, timeout)

    @classmethod
    def from_group(cls, group: Any, n_experts: int, transport: str = "auto",
                   timeout: float = DEFAULT_TIMEOUT) -> Communicator:
        """For a torch.distributed group; a collective call.

        transport: "shm" (all ranks on one host), "torch" (any), or "auto": shm where it can be.
        """
        if transport not in ("auto", "shm", "torch"):
            raise c.bad(f"transport '{transport}' is not known; auto, shm or torch")
        if group.size() == 1:
            return cls.local()
        card = {"transport": transport, "host": _host_key(), "name": secrets.token_hex(8)}
        cards = [json.loads(text) for text in _exchange(group, json.dumps(card).encode())]
        asked = [other["transport"] for other in cards]
        if len(set(asked)) > 1:  # they would wait for each other in different calls
            raise c.Error(c.DISAGREE, f"the ranks ask for different transports: {asked}")
        hosts = {other["host"] for other in cards}
        most = counts_bytes(n_experts)
        if transport != "torch" and len(hosts) == 1 and "" not in hosts:
            return cls.shared_memory(cards[0]["name"], group.rank(), group.size(), most, timeout)
        if transport == "shm":
            raise c.bad(f"the ranks share no /dev/shm ({len(hosts)} of them): use the transport "
                        "torch", c.UNSUPPORTED)
        return cls.torch_group(group, most, timeout)

    # ---- using it ----

    def size(self) -> int:
        """Ranks of the group."""
        return c.lib().lplb_comm_ranks(self._handle)

    def rank(self) -> int:
        """This one, from 0."""
        return c.lib().lplb_comm_rank(self._handle)

    @property
    def transport(self) -> str:
        """"local", "shm", "torch", or the name of a custom one."""
        return c.lib().lplb_comm_transport_name(self._handle).decode()

    @property
    def alive(self) -> bool:
        """False once a call has failed; then close it and make a new one on all ranks."""
        return c.lib().lplb_comm_state(self._handle) == c.OK

    def all_gather(self, data: bytes) -> list[bytes]:
        """The data of all ranks, by rank; the same length on all of them."""
        receive = ctypes.create_string_buffer(len(data) * self.size())
        self._check(c.lib().lplb_comm_all_gather(self._handle, data, receive, len(data)))
        return [receive.raw[r * len(data):(r + 1) * len(data)] for r in range(self.size())]

    def gather_counts(self, counts: np.ndarray, tag: int = 0) -> np.ndarray:
        """counts int64 [E] of this rank -> int64 [ranks][E]. Ranks must give the same tag."""
        counts = np.ascontiguousarray(counts, dtype=np.int64)
        out = np.empty((self.size(), counts.size), np.int64)
        self._check(self.gather_into(tag, address(counts), counts.size, address(out)))
        return out

    def gather_into(self, tag: int, counts: int | None, n_experts: int, out: int | None) -> int:
        """`gather_counts` from address to address; returns the status. counts None: this rank
        takes part without any, and all ranks are told so (REMOTE)."""
        status = c.lib().lplb_comm_gather_counts(self._handle, tag, counts, n_experts, out)
        if self._interrupts:
            raise self._interrupts.pop()
        return status

    def _check(self, status: int) -> None:
        if self._interrupts:
            raise self._interrupts.pop()
        c.check(status)

    def agree(self, items: dict[str, Any]) -> None:
        """Raises on every rank, naming item and ranks, when a value differs from rank 0's."""
        names = [key.encode() for key in items]
        values = [str(value).encode() for value in items.values()]
        array = ctypes.c_char_p * len(items)
        self._check(c.lib().lplb_comm_agree(self._handle, array(*names), array(*values),
                                                len(items)))

    def close(self) -> None:
        """Tells the others that this rank leaves."""
        self._close()


def nanoseconds(seconds: float) -> int:
    if not isinstance(seconds, numbers.Real):
        raise c.bad(f"timeout is {seconds!r}, must be a number of seconds")
    if not 0 < seconds < 1e9:
        raise c.bad(f"timeout is {seconds} s; it must be positive", c.RANGE)
    return int(seconds * 1e9)


# ---- torch.distributed ---------------------------------------------------------------------------


def _group_device(group: Any) -> Any:
    """Where tensors of the group's collectives must live."""
    import torch

    backend = torch.distributed.get_backend(group)
    if "gloo" in backend or "mpi" in backend or backend == "undefined":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _torch_all_gather(group: Any, device: Any, send: np.ndarray, seconds: float) -> np.ndarray:
    import torch

    mine = torch.from_numpy(send.copy()).to(device)
    all_ranks = torch.empty((group.size(), send.size), dtype=torch.uint8, device=device)
    rows = [all_ranks[r] for r in range(group.size())]
    work = torch.distributed.all_gather(rows, mine, group=group, async_op=True)
    try:
        work.wait(datetime.timedelta(seconds=seconds))
    except RuntimeError as error:
        if "timed out" in str(error).lower() or "timeout" in str(error).lower():
            raise TimeoutError(f"not all ranks called within {seconds:g} s") from None
        raise
    return all_ranks.cpu().numpy()


def _exchange(group: Any, card: bytes, most: int = 256) -> list[bytes]:
    """Short texts of all ranks, by rank, under the group's own timeout."""
    import torch

    row = np.zeros(most, np.uint8)
    row[:len(card)] = np.frombuffer(card, np.uint8)
    device = _group_device(group)
    mine = torch.from_numpy(row).to(device)
    rows = [torch.empty_like(mine) for _ in range(group.size())]
    try:
        torch.distributed.all_gather(rows, mine, group=group)
    except RuntimeError as error:
        raise c.Error(c.REMOTE, f"the ranks of the group did not meet: {error}") from None
    return [r.cpu().numpy().tobytes().rstrip(b"\0") for r in rows]


@contextlib.contextmanager
def all_or_none(group: Any, what: str) -> Iterator[None]:
    """A part of a collective call that each rank does by itself: where it fails on one rank, that
    one's error is raised there, and an error that names it on all others."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(Exception):  # it may be the group that is at fault
            _reasons(group, f"{type(error).__name__}: {error}")
        raise
    for rank, reason in enumerate(_reasons(group, "")):
        if reason:
            raise c.Error(c.REMOTE, f"rank {rank} cannot {what}: {reason}")


def _reasons(group: Any, own: str, most: int = 256) -> list[str]:
    """The reasons of all ranks why they cannot go on, "" = none."""
    if group is None:
        return []
    text = own.encode()[:most].ljust(most, b"\0")
    texts = group.all_gather(text) if isinstance(group, Communicator) else _exchange(group, text)
    return [t.rstrip(b"\0").decode(errors="replace") for t in texts]


def _host_key() -> str:
    """The same for processes that see the same /dev/shm; "" where there is none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}/{os.stat('/dev/shm').st_dev:x}/"
    except OSError:
        return ""


def nodes_of(group: Any) -> list[int]:
    """For every rank of a torch group the number of its host, by first appearance; collective."""
    cards = _exchange(group, _boot_id().encode())
    return _numbered(cards)


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        import socket

        return socket.gethostname()


def _numbered(keys: Sequence[Any]) -> list[int]:
    seen: dict[Any, int] = {}
    return [seen.setdefault(key, len(seen)) for key in keys]
