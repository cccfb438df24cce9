"""Tests of encoders and modules."""
