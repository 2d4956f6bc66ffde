# SPDX-License-Identifier: Apache-2.0
"""The built-in phantoms: synthetic CT of chest and abdomen and MR of the brain, and the data sets made of them."""
