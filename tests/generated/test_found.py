"""Models on which a rewrite once failed, kept as they were printed, made small. Each test's name says what was wrong."""

from .check import assert_the_answer_is_kept
from .describe import Deep, Description, Dots, Excited, Experts, Field, Stack, Unit


def test_a_view_of_what_is_spread() -> None:
    # A flow that wrote in place was decomposed, and holds views where others hold reshapes.
    assert_the_answer_is_kept(
        Description(
            fields=(Field("history", request=True, size=4, pool="bag"), Field(), Field()),
            blocks=(Dots(form="lists"), Deep()),
        )
    )


def test_constants_before_inputs() -> None:
    assert_the_answer_is_kept(
        Description(fields=(Field(request=True), Field()), blocks=(Deep(then=Stack()),))
    )


def test_rows_of_what_a_split_gives() -> None:
    assert_the_answer_is_kept(
        Description(
            fields=(Field(size=2), Field(request=True)), blocks=(Experts(),), form="matrices", cut="split"
        )
    )


def test_no_rows_of_a_matrix_with_request_columns() -> None:
    assert_the_answer_is_kept(
        Description(
            fields=(Field("history", size=3), Field(request=True), Field("dense", request=True, size=3)),
            blocks=(Unit(then=Stack(widths=(3, 3))),),
            form="floats",
            answer="cat",
        )
    )


def test_stacked_vectors_have_no_such_dimension() -> None:
    assert_the_answer_is_kept(
        Description(
            fields=(
                Field(request=True, width=3),
                Field(request=True, shared=True),
                Field("history", size=4),
                Field(request=True),
            ),
            blocks=(
                Unit(
                    then=Stack(first="batch", residual=True),
                    beside=True,
                    query=9,
                    parts=("q*k", "k", "q", "q-k"),
                    layers=Stack(widths=(2,), act="prelu"),
                    mask="inf",
                    spread="repeat",
                ),
                Excited(of=(6, 11, 9, 5, 7, 9), then=Stack(widths=(5,), act="prelu", residual=True)),
            ),
            width=2,
            squash=True,
        )
    )
