"""Training state as files that any other layout of ranks can read: flat pieces of parameters in safetensors.

Every rank holds a run of each parameter's elements (all of them, a slice, or none, as ZeRO has it) and writes

    rank-00001-of-00002.safetensors     weights/NAME, exp_avg/NAME, exp_avg_sq/NAME: fp32, 1-D
                                        __metadata__: {"starts": {NAME: first element of the run}}

A reader asks for any run of any tensor and gets it put together from the files that hold parts of it, whatever number
of ranks wrote them. Nothing here is DeepSpeed's, and reading needs no GPU.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from infra.errors import StageError

ALIGNMENT = 64
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.bool: "BOOL", torch.int32: "I32"}


@dataclass(frozen=True)
class Piece:
    """The run of a parameter that this rank keeps: `parts` maps weights, exp_avg, ... to 1-D fp32 views of it."""

    name: str
    start: int
    parts: Mapping[str, torch.Tensor]


class SnapshotBuffer:
    """Host memory with the layout of a safetensors file, allocated once and filled at every snapshot.

    On Linux it is a memory file, which a child process can inherit by `fd` and which vanishes with its last user;
    elsewhere a file in `folder`. Filling is one memory copy; on CUDA the memory is pinned.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], starts: Mapping[str, int], folder: Path) -> None:
        header, size = _header(tensors, starts)
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("forgeline-snapshot")
            self.path = Path(f"/proc/self/fd/{self.fd}")
        else:
            self.path = folder / "snapshot.safetensors"
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self.fd, len(header) + size)
        self.nbytes = len(header) + size
        self._memory = mmap.mmap(self.fd, self.nbytes)
        self._memory[: len(header)] = header
        self._places: dict[str, torch.Tensor] = {}
        offset = len(header)
        for name, tensor in tensors.items():
            count = tensor.numel()
            place = torch.frombuffer(self._memory, dtype=tensor.dtype, count=count, offset=offset) if count else None
            self._places[name] = torch.empty(0, dtype=tensor.dtype) if place is None else place
            offset += _padded(count * tensor.element_size())
        self._pinned = any(tensor.is_cuda for tensor in tensors.values()) and self._pin()

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the tensors' present values; they have the names and sizes that the buffer was made for."""
        assert tensors.keys() == self._places.keys(), "the state has changed its layout"
        for name, place in self._places.items():
            place.copy_(tensors[name].reshape(-1), non_blocking=self._pinned)
        if self._pinned:
            torch.cuda.synchronize()

    def close(self) -> None:
        """Give the memory back. Only when nobody reads it any more."""
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(next(iter(self._places.values())).data_ptr())  # type: ignore[no-untyped-call]
        self._places.clear()
        self._memory.close()
        os.close(self.fd)

    def _pin(self) -> bool:
        first = next(iter(self._places.values()))
        begin = first.data_ptr()
        size = self.nbytes - (begin - torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr())
        return int(torch.cuda.cudart().cudaHostRegister(begin, size, 0)) == 0  # type: ignore[no-untyped-call]


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _header(tensors: Mapping[str, torch.Tensor], starts: Mapping[str, int]) -> tuple[bytes, int]:
    """The safetensors header (8 bytes of length, JSON, blanks up to the alignment) and the size of the data.

    The format wants the data without holes, so each tensor's padding is a tensor of its own.
    """
    entries: dict[str, object] = {"__metadata__": {"starts": json.dumps(dict(starts))}}
    offset = 0
    for number, (name, tensor) in enumerate(tensors.items()):
        size = tensor.numel() * tensor.element_size()
        shape = [tensor.numel()]
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": shape, "data_offsets": [offset, offset + size]}
        end = offset + _padded(size)
        if end > offset + size:
            hole = {"dtype": "U8", "shape": [end - offset - size], "data_offsets": [offset + size, end]}
            entries[f"padding/{number}"] = hole
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (_padded(8 + len(text)) - 8 - len(text))
    return len(text).to_bytes(8, "little") + text, offset


def shard_name(rank: int, ranks: int) -> str:
    """File name of a rank's shard."""
    return f"rank-{rank:05d}-of-{ranks:05d}.safetensors"


@dataclass(frozen=True)
class _Run:
    start: int
    stop: int
    shard: Any


class ShardReader:
    """Reads runs of tensors from the shards in a folder, which stay open (mapped, not read); keeps no tensor."""

    def __init__(self, folder: Path) -> None:
        self._runs: dict[str, list[_Run]] = {}
        for path in sorted(folder.glob("rank-*.safetensors")):
            shard: Any = safe_open(path, framework="pt")
            starts = json.loads((shard.metadata() or {}).get("starts", "{}"))
            for key in shard.keys():  # noqa: SIM118 - not a dict
                if key.startswith("padding/"):
                    continue
                start = int(starts.get(key.partition("/")[2], 0))
                stop = start + int(shard.get_slice(key).get_shape()[0])
                self._runs.setdefault(key, []).append(_Run(start, stop, shard))

    def names(self, part: str) -> list[str]:
        """Names of which `part` (weights, exp_avg, buffers, ...) is stored, sorted."""
        return sorted(key.partition("/")[2] for key in self._runs if key.partition("/")[0] == part)

    def size(self, part: str, name: str) -> int:
        """Elements stored of a tensor, counted from 0 to the end of the last run."""
        return max(run.stop for run in self._runs[f"{part}/{name}"])

    def read(self, part: str, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Elements [start, stop) as a 1-D CPU tensor. Raises StageError if the shards do not hold all of them."""
        key = f"{part}/{name}"
        stop = self.size(part, name) if stop is None and key in self._runs else stop
        found = [] if stop is None else list(self._overlaps(key, start, stop))
        if stop is None or sum(values.numel() for values in found) != stop - start:
            raise StageError(
                f"{key} is not complete in the checkpoint: elements {start} to {stop} are asked for",
                hint="The model has other parameters than the one that was saved; see the versions in its state.json.",
            )
        return found[0] if len(found) == 1 else torch.cat(found) if found else torch.empty(0)

    def _overlaps(self, key: str, start: int, stop: int) -> Iterator[torch.Tensor]:
        for run in sorted(self._runs.get(key, []), key=lambda run: run.start):
            first, last = max(start, run.start), min(stop, run.stop)
            if first < last:
                yield run.shard.get_slice(key)[first - run.start : last - run.start]
