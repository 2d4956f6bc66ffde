# SPDX-License-Identifier: Apache-2.0
"""The first cause of a chain of errors, or the first error that says enough."""

from __future__ import annotations

import itertools

from models_genesis.datasets import BadScanError
from models_genesis.datasets.io.root_cause import root_cause


def chain(*errors: BaseException) -> BaseException:
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[0]


def test_the_first_cause():
    first = KeyError("image")
    assert root_cause(chain(RuntimeError("applying transform"), ValueError("load"), first)) is first
    assert root_cause(first) is first


def test_an_error_that_says_enough_is_taken_whatever_caused_it():
    bad, inner = BadScanError("ct.nii.gz", "missing", "expected a file"), BadScanError("b.nii.gz", "missing", "")
    error = chain(RuntimeError("applying transform"), bad, inner, FileNotFoundError("ct.nii.gz"))
    assert root_cause(error, BadScanError) is bad
    assert root_cause(bad, KeyError, BadScanError) is bad


def test_an_error_that_was_being_handled_is_not_a_cause():
    try:
        try:
            raise KeyError("image")
        except KeyError:
            raise ValueError("load")  # noqa: B904
    except ValueError as error:
        assert root_cause(error) is error
