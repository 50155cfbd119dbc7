"""Parts for other machines, some to a batch: handing work out costs a tenth of a second, preparing a small shard less.

What makes a batch there needs Forgeline, the store and what the parts are made of. Parts are kept as they are made, and
those that are there are not made again: a batch begun on a machine that died costs what it had under way.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from infra.errors import StageError
from infra.store import Store
from tasks.data.parts.parts import existing, make_parts, opened
from tasks.stage import PartKind, PartSpec

WORTH_HANDING_OUT = 8 << 20
"""Bytes of input that take about a second or more; 300 shards of 20 kB took 18 s in batches, 61 s one by one."""
PART_COST = 256 << 10
"""Bytes whose preparation takes as long as what every part costs, however small."""
MOST = 1000
"""Batches in all: each is handed out before the first result is looked at."""


class Batch:
    """Parts made in one go. Not a dataclass: Prefect searches those for futures, down to the last value."""

    def __init__(self, kind: PartKind, specs: list[PartSpec], store_url: str) -> None:
        self.kind, self.specs, self.store_url = kind, specs, store_url

    @property
    def size(self) -> int:
        """Bytes of input."""
        return sum(spec.size for spec in self.specs)

    def make(self, scratch: Path) -> None:
        """Make the parts that are not there. Raises StageError in another version of Forgeline."""
        module = importlib.import_module(self.kind.function.partition(":")[0])
        for spec in self.specs:
            if spec.identity["version"] != module.VERSION:
                raise StageError(
                    f"{self.kind.kind} of version {spec.identity['version']} were asked for, but the Forgeline of this "
                    f"worker makes version {module.VERSION}",
                    hint="Install the same version of Forgeline on every worker.",
                )
        make_parts(self.kind, self.specs, opened(self.store_url), workers=1, scratch=scratch)


def batches(kind: PartKind, specs: Sequence[PartSpec], store: Store) -> list[Batch]:
    """The parts that are not in the store, each once, the largest first."""
    missing = {s.key(kind): s for s, part in zip(specs, existing(kind, specs, store), strict=True) if part is None}
    enough = max(WORTH_HANDING_OUT, sum(spec.size + PART_COST for spec in missing.values()) // MOST)
    found: list[list[PartSpec]] = []
    cost = enough
    for spec in sorted(missing.values(), key=lambda spec: -spec.size):
        if cost >= enough:
            found.append([])
            cost = 0
        found[-1].append(spec)
        cost += spec.size + PART_COST
    return [Batch(kind, chosen, store.url) for chosen in found]
