"""What Spark has to be told of a scorer: the types of its columns, and the function of a column expression."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..packages import package
from .batches import BatchScorer
from .scoring import Output

__all__ = ["schema", "udf"]


def schema(scorer: BatchScorer, given: Any) -> Any:
    """The schema of what `scorer.each` gives of rows with the schema `given`: `frame.mapInPandas(scorer.each, schema(scorer, frame.schema))`.

    Raises `PackageMissing` without pyspark, `InputError` for a column to keep that there is not.
    """
    types = package("pyspark.sql.types", "spark", "distributed.spark")
    kept = list(given.names) if scorer.keep is None else list(scorer.keep)
    if gone := sorted(set(kept) - set(given.names)):
        raise InputError(f"there is no column {gone[0]!r} to keep: there are {', '.join(given.names)}")
    return types.StructType([*(given[name] for name in kept), *_added(scorer, types)])


def udf(scorer: BatchScorer) -> Any:
    """A column of structs, scores and `reason`, from the columns of the features: `frame.withColumn("scored", udf(scorer)(*names))`.

    `names` are those of `scorer.scoring().columns.names()`, in this order. It is Spark's `predict_batch_udf`, with batches of `scorer.rows` rows.
    Lists of one column alone have to have one length each: `mapInPandas` sets those aside that have not.

    Raises `PackageMissing` without pyspark, and as `fastrec.load`. Cost: the model is opened here as well, to know its columns.
    """
    types = package("pyspark.sql.types", "spark", "distributed.spark")
    functions = package("pyspark.ml.functions", "spark", "distributed.spark")
    columns = scorer.scoring().columns.names()
    # The table has its columns still.
    bare = replace(scorer, keep=())

    def predictor() -> Callable[..., dict[str, Any]]:
        def predict(*values: Any) -> dict[str, Any]:
            found: dict[str, Any] = bare(dict(zip(columns, values, strict=True)))
            return found

        # Spark counts the arguments.
        kind = inspect.Parameter.POSITIONAL_ONLY
        parameters = [inspect.Parameter(f"column_{place}", kind) for place in range(len(columns))]
        predict.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions take attributes
        return predict

    return functions.predict_batch_udf(
        predictor,
        return_type=types.StructType(_added(scorer, types)),
        batch_size=scorer.rows,
        # Lists as they are, whatever their lengths.
        input_tensor_shapes=[None] * len(columns),
    )


def _added(scorer: BatchScorer, types: Any) -> list[Any]:
    fields = [types.StructField(one.name, _type(one, types)) for one in scorer.outputs]
    return [*fields, types.StructField("reason", types.StringType())]


def _type(one: Output, types: Any) -> Any:
    kind = types.FloatType() if one.dtype == np.float32 else types.DoubleType()
    return types.ArrayType(kind) if one.shape else kind
