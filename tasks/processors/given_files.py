"""The files of processors of other data than texts, beside a model that was made elsewhere: taken as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

from tasks.processors.image import ImageProcessor
from tasks.processors.processor import Processor

PROCESSORS = (ImageProcessor,)
FILES = tuple(name for processor in PROCESSORS for name in processor.names)


def bring_processor(folder: Path, output: Path) -> Processor | None:
    """Copy the files; the processor they are of, None where there are none. Raises StageError on settings that are not
    understood.
    """
    for name in FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, output / name)
    return next((found for one in PROCESSORS if (found := one.load(output)) is not None), None)
