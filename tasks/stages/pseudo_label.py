"""pseudo_label: a model writes the references of a dataset again, for students to learn from.

    taught: {pseudo_label: {teacher: teacher, data: pairs, decoding: {num_beams: 4}}}
    student: {finetune: {model: small, data: taught, objective: ..., epochs: 3}}

Sequence-level distillation (Kim and Rush, 2016): what a student learns is one text for each prompt, the teacher's
likeliest, where references of many hands contradict each other. The result is the dataset with other references in one
split, train unless another is named; what is held out stays as people wrote it.
Evidence in `records/`: samples.json, some of the texts beside the references they replace.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, SerializeAsAny

from infra.errors import StageError
from tasks.generation.kinds import DEFAULT, Decoding, kinds, product_of
from tasks.objective import spread
from tasks.stage import Input, Job, Stage, StageParams

if TYPE_CHECKING:
    from tasks.generation.product import Output, Producer, Product
    from tasks.objective import Objective

SHOWN = 12


class Params(StageParams):
    """The model that generates the references, the data and the decoding."""

    teacher: Annotated[str, Input("model", trained=True)] = Field(description="The model that generates the texts.")
    data: Annotated[str, Input("dataset")] = Field(
        description="Prompts, with the split (`pairs.validation`); default train."
    )
    decoding: SerializeAsAny[Decoding] = Field(
        default_factory=lambda: kinds()[DEFAULT].settings(), description="Decoding settings."
    )
    truncation: bool = Field(False, description="Cut prompts that are too long for the model instead of refusing them.")


def run(job: Job[Params]) -> dict[str, float]:
    from tasks.models.card import read_card

    params, data = job.params, job.input("data")
    objective, split = read_card(job.input("teacher").path).objective, data.split or "train"
    product = product_of(objective, where=f"stages.{job.name}.teacher")(params.decoding)
    if objective.reference_column is None:
        raise StageError(
            f"objective {objective.name} has no column of references that texts could be written to",
            where=f"stages.{job.name}.teacher",
            hint="Use a model that was trained to write targets for sources, or answers in conversations.",
        )
    producer = product.producer(
        job.input("teacher"), data, split, objective, job.execution, truncation=params.truncation, threads=job.cores
    )
    outputs: list[Output] = []
    batches = producer.described().batches
    for batch in range(batches):
        outputs += producer.produce(batch)[0]
        job.progress(batch + 1, batches)
    outputs.sort(key=lambda output: output.place)
    _write_dataset(job, objective, split, outputs)
    _write_samples(job, product, producer, outputs)
    count = len(outputs)
    return {
        "examples": float(count),
        "unfinished": sum(not output.finished for output in outputs) / count,
        product.unit: float(sum(output.size for output in outputs)),
    }


def _write_dataset(job: Job[Params], objective: Objective, split: str, outputs: list[Output]) -> None:
    """The dataset, and in one split the outputs, one for each row, where the references were."""
    import pyarrow as pa

    from tasks.data.dataset.layout import split_files
    from tasks.data.dataset.row_files import schema_of, table_of, writer

    source, column = job.input("data").path, objective.reference_column
    shutil.copytree(source, job.output, dirs_exist_ok=True)
    left = iter(outputs)
    for file in split_files(source, split):
        table = table_of(file, schema_of(file).names)
        values = [objective.with_reference(value, next(left)) for value in table[column].to_pylist()]
        place = table.schema.get_field_index(column)
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.types[place]))
        with writer(job.output / split / file.name, table.schema) as out:
            out.write_table(table)


def _write_samples(job: Job[Params], product: Product, producer: Producer, outputs: list[Output]) -> None:
    chosen = [(producer.requests[i], outputs[i]) for i in spread(len(outputs), SHOWN)]
    writes = f"{job.input('teacher').stage} writes"
    samples = [
        {"prompt": request.shown, "reference": request.reference, writes: product.shown(output)}
        for request, output in chosen
    ]
    text = json.dumps(samples, indent=1, ensure_ascii=False) + "\n"
    (job.records / "samples.json").write_text(text, encoding="utf-8")


# Exclusive, because a stage of one process gets every core only so.
STAGE = Stage(kind="pseudo_label", version=1, makes="dataset", params=Params, run=run, warm=True, exclusive=True)
