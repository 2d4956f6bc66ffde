# SPDX-License-Identifier: Apache-2.0
"""What is attached to a training or an evaluation: checkpoints, history, guards, schedules, pictures, reports."""
