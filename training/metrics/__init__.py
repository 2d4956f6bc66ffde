# SPDX-License-Identifier: Apache-2.0
"""Numbers of predictions and truth: overlap, ROC, free-response ROC, calibration; no engine is needed."""
