"""An ONNX graph in half precision: IEEE float16 weights and activations, by ONNX Runtime's own converter.

Inputs and outputs keep their types, so whoever runs the graph need not know. Numbers beyond 65504 have no half:
constants that stand for infinity (attention masks) become the largest there is, a weight so large is refused. bfloat16
is not offered, because ONNX Runtime has next to no CPU kernels for it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infra.errors import StageError


def convert_float16(source: Path, target: Path, *, keep_float: Sequence[str] = ()) -> None:
    """Write `source` in half precision to `target`, but for the nodes named in `keep_float`.

    Raises StageError on weights that have no half, and where ONNX Runtime cannot run the result on this machine.
    """
    import onnx
    import onnxruntime
    from onnx import numpy_helper
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(str(source))
    largest = float(np.finfo(np.float16).max)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 0:
            found = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
            if found > largest:
                raise StageError(
                    f"weight {tensor.name!r} holds {found:.6g}, and half precision ends at {largest:.0f}",
                    where="scheme",
                    hint="Use `scheme: dynamic_int8`, or leave the model in float32.",
                )
    # The converter takes a weight's type from here, where it would still cast the float weights of `keep_float`.
    weights = {tensor.name for tensor in model.graph.initializer}
    others = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(others)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of every number that is rounded to zero or cut to the largest
        halved = convert_float_to_float16(model, keep_io_types=True, node_block_list=list(keep_float))
    onnx.save(halved, str(target))
    try:
        onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    except Exception as error:
        # Its exceptions are private, one a status code.
        logging.getLogger(__name__).exception("ONNX Runtime refuses the graph in half precision")
        raise StageError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run this graph in half precision here: {error}",
            where="scheme",
            hint="Use `scheme: dynamic_int8`, or keep the layer it names in float32 (`keep_float`).",
        ) from error
