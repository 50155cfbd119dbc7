"""A lineage as OpenLineage events (spec 2-0-2), for catalogues such as Marquez and DataHub.

One RunEvent COMPLETE an artifact: the job is the pipeline's stage, inputs are artifacts and source files, the output is
the artifact, each with its content digest as version. Run ids are uuid5 of what the run made, so sending the same
lineage twice changes nothing. `eventTime` is when the store says the manifest was written.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from infra.artifacts import Manifest
from infra.lineage import Graph, Node
from infra.store import Store
from tasks.release.lineage.view import facts, name_of

SPEC = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs"
FACETS = "https://openlineage.io/spec/facets"
NAMESPACE, SOURCES = "forgeline", "forgeline-sources"
"""Of jobs, and of source files: these are known by their path below a source, wherever that lies."""


def events(graph: Graph, store: Store) -> Iterator[dict[str, Any]]:
    """One event for each artifact that is there, what others were made from first."""
    for node in reversed(graph.nodes.values()):
        if node.manifest is not None:
            yield _event(node, node.manifest, graph, store)


def _event(node: Node, manifest: Manifest, graph: Graph, store: Store) -> dict[str, Any]:
    known = facts(node)
    version = str((known.get("versions") or {}).get("forgeline", "unknown"))
    producer = f"urn:forgeline:{version}"
    pipeline = str(known.get("pipeline") or "unknown")
    written = datetime.fromtimestamp(store.modified(f"{manifest.ref.prefix}/manifest.json"), UTC)

    def facet(schema: str, **values: Any) -> dict[str, Any]:
        return {"_producer": producer, "_schemaURL": schema, **values}

    def dataset(namespace: str, name: str, digest: str) -> dict[str, Any]:
        schema = f"{FACETS}/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet"
        return {
            "namespace": namespace,
            "name": name,
            "facets": {"version": facet(schema, datasetVersion=digest)} if digest else {},
        }

    engine = f"{FACETS}/1-1-1/ProcessingEngineRunFacet.json#/$defs/ProcessingEngineRunFacet"
    facets = {
        "processing_engine": facet(engine, name="forgeline", version=version),
        "forgeline": facet(f"{SPEC}/RunFacet", **known, timings=manifest.timings, metrics=manifest.metrics),
    }
    if "run" in known:
        parent = f"{FACETS}/1-1-0/ParentRunFacet.json#/$defs/ParentRunFacet"
        run, job = {"runId": _uuid(store, "run", known["run"])}, {"namespace": NAMESPACE, "name": pipeline}
        facets["parent"] = facet(parent, run=run, job=job)
    type_ = f"{FACETS}/2-0-3/JobTypeJobFacet.json#/$defs/JobTypeJobFacet"
    inputs = [dataset(store.url, f"{link.to[0]}/{link.to[1]}", link.digest) for link in node.links]
    return {
        "eventType": "COMPLETE",
        "eventTime": written.isoformat(timespec="milliseconds"),
        "producer": producer,
        "schemaURL": f"{SPEC}/RunEvent",
        "run": {"runId": _uuid(store, *node.id, manifest.attempt), "facets": facets},
        "job": {
            "namespace": NAMESPACE,
            "name": f"{pipeline}.{name_of(node)}",
            "facets": {
                "jobType": facet(type_, processingType="BATCH", integration="FORGELINE", jobType=node.id[0].upper())
            },
        },
        "inputs": [*inputs, *(dataset(SOURCES, file.path, file.sha256) for file in node.sources)],
        "outputs": [dataset(store.url, "/".join(node.id), manifest.digest)],
    }


def _uuid(store: Store, *parts: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join((store.url, *parts))))
