"""pretrained: weights that were made elsewhere become an artifact, which `finetune` and its kin start from.

They are a folder as `save_pretrained` writes it (config.json, safetensors, tokenizer), or a model on the Hugging Face
hub at a commit, which stands for its content, so that a plan asks nobody. Weights in pickles can run code when they are
opened and are refused unless `allow_pickle` says otherwise; what ships is safetensors in any case.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from infra import source_files
from infra.errors import StageError
from infra.sources_read import SourceFile, snapshot
from tasks.models.given_folder import PICKLED, SAFE, weights
from tasks.objective import ObjectiveField
from tasks.processors import given_files
from tasks.processors.given_tokenizer import FILES
from tasks.stage import Job, Located, Stage, StageParams

HUB = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)@(?P<revision>[0-9a-f]{40})")


class Params(StageParams):
    """Source of the weights."""

    folder: Annotated[str | None, Located()] = Field(None, description="Folder, as `save_pretrained` writes it.")
    hub: str | None = Field(
        None,
        description="Model on the Hugging Face hub: ORG/NAME@COMMIT. Taken from the local cache where it is there.",
    )
    max_length: int | None = Field(
        None,
        ge=1,
        description="Tokens an example may have. None: as many as the model's positions and tokenizer allow.",
    )
    objective: ObjectiveField | None = Field(
        None,
        description="What the weights, with their head, were trained for: they can then be evaluated and exported as "
        "they are. None: only their backbone counts, and a `finetune` stage comes next.",
    )
    allow_pickle: bool = Field(False, description="Read weights that are no safetensors (`pytorch_model.bin`).")

    @model_validator(mode="after")
    def _one_place(self) -> Params:
        if (self.folder is None) == (self.hub is None):
            raise ValueError("give exactly one of `folder` and `hub`")
        if self.hub is not None and not HUB.fullmatch(self.hub):
            raise ValueError("write `hub: ORG/NAME@COMMIT` with all 40 digits; a branch or tag could move")
        return self

    def patterns(self) -> list[str]:
        """Names of the files that matter."""
        return ["config.json", *FILES, *given_files.FILES, *SAFE, *(PICKLED if self.allow_pickle else ())]


def sources(params: Params) -> list[SourceFile]:
    """The files of the folder; of a model on the hub its commit. Raises StageError where they cannot be read."""
    if params.folder is None:
        return [SourceFile(str(params.hub), hashlib.sha256(str(params.hub).encode()).hexdigest())]
    folder = Path(params.folder)
    found = _files(params, folder)
    try:
        (folder / "config.json").stat()
        digests = source_files.digests([source_files.local(path) for path in found])
    except OSError as error:
        raise StageError(
            f"cannot read {error.filename}: {error.strerror}",
            where="folder",
            hint="A model is a folder with config.json and its weights, as save_pretrained writes it.",
        ) from error
    weights(folder, allow_pickle=params.allow_pickle)
    return [SourceFile(path.name, sha) for path, sha in zip(found, digests, strict=True)]


def _files(params: Params, folder: Path) -> list[Path]:
    return sorted({path for pattern in params.patterns() for path in folder.glob(pattern) if path.is_file()})


def run(job: Job[Params]) -> dict[str, float]:
    import json

    from tasks.models.card import ModelCard, write_card
    from tasks.models.checkpoint_fit import check_finite
    from tasks.models.given_folder import check_files
    from tasks.models.given_head import given_labels
    from tasks.models.loading import count_parameters, load_model
    from tasks.models.pretrained import bring_weights, longest, pad_in_config
    from tasks.processors.given_tokenizer import bring_tokenizer
    from tasks.processors.tokenizer import check_vocabulary, load_tokenizer

    params, field = job.params, "folder" if job.params.folder else "hub"
    given = Path(params.folder) if params.folder is not None else _from_hub(params)
    try:
        weights(given, allow_pickle=params.allow_pickle)
        if params.folder is None:
            folder, read = given, sources(params)  # the commit says which files they are
        else:
            folder = job.scratch / (given.resolve().name or "model")
            read = snapshot({path.name: path for path in _files(params, given)}, folder)
        job.has_read(read)
        check_files(folder)
        bring_weights(folder, job.output, allow_pickle=params.allow_pickle, move=folder is not given)
        there = bring_tokenizer(folder, job.output, job.warn)
        tokenizer = load_tokenizer(job.output) if there else None
        processor = given_files.bring_processor(folder, job.output)
        pad_in_config(job.output, tokenizer)
        check_finite(job.output)
        model = load_model(job.output, None, new_head=True)  # its own head does not count yet
        check_vocabulary(model, tokenizer, where=field)
        labels = None
        if params.objective is not None:
            model, labels = given_labels(job.output, params.objective)
    except StageError as error:
        raise StageError(error.what, where=f"{field} {params.folder or params.hub}", hint=error.hint) from error
    limit = None if processor and not tokenizer else params.max_length or longest(model.config, tokenizer)
    settings = params.objective.model_dump(mode="json") if params.objective is not None else None
    write_card(job.output, ModelCard(settings, limit, labels))
    listed = [[file.path, file.sha256] for file in read]
    (job.records / "sources.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    length = {} if limit is None else {"max_length": float(limit)}
    return {"parameters": float(count_parameters(model)), **length}


def _from_hub(params: Params) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    found = HUB.fullmatch(str(params.hub))
    assert found is not None
    try:
        return Path(snapshot_download(found["name"], revision=found["revision"], allow_patterns=params.patterns()))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise StageError(
            f"{params.hub} could not be downloaded: {str(error).splitlines()[0]}",
            where="hub",
            hint="Without a network, the hub's local cache must hold it (HF_HOME).",
        ) from error


STAGE = Stage(kind="pretrained", version=2, makes="model", params=Params, run=run, warm=True, sources=sources)
